//! The system calls that the standard library does not have, each behind a safe function; the only
//! module of this crate with `unsafe` in it. Knows nothing of frames, reports or agents.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use socket2::{SockAddr, SockAddrStorage, Socket};

/// Returns CLOCK_MONOTONIC in nanoseconds.
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a live timespec that the call may write.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Sleeps until CLOCK_MONOTONIC has reached a time.
pub fn sleep_until(deadline_ns: u64) {
    let deadline = libc::timespec {
        tv_sec: (deadline_ns / 1_000_000_000) as libc::time_t,
        tv_nsec: (deadline_ns % 1_000_000_000) as libc::c_long,
    };
    // SAFETY: the timespec is live and initialised; an absolute sleep takes no remainder.
    while unsafe {
        libc::clock_nanosleep(libc::CLOCK_MONOTONIC, libc::TIMER_ABSTIME, &deadline, std::ptr::null_mut())
    } == libc::EINTR
    {}
}

/// Puts a terminal into raw mode, so that every byte passes as it is.
pub fn make_raw(tty: &File) -> io::Result<()> {
    // SAFETY: termios is plain integers, for which zero is a value.
    let mut settings: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open and `settings` is a live termios that the call may write.
    check(unsafe { libc::tcgetattr(tty.as_raw_fd(), &mut settings) })?;
    // SAFETY: `settings` was filled by tcgetattr.
    unsafe { libc::cfmakeraw(&mut settings) };
    // SAFETY: the descriptor is open and `settings` is initialised.
    check(unsafe { libc::tcsetattr(tty.as_raw_fd(), libc::TCSANOW, &settings) })?;
    Ok(())
}

/// Returns the index of a network device.
pub fn device_index(name: &str) -> io::Result<u32> {
    let c_name = CString::new(name)?;
    // SAFETY: `c_name` is a NUL-terminated string that outlives the call.
    match unsafe { libc::if_nametoindex(c_name.as_ptr()) } {
        0 => Err(io::Error::other(format!("network device {name:?}: {}", io::Error::last_os_error()))),
        index => Ok(index),
    }
}

/// Performs an ethtool command with one value on a network device, and returns the value that comes back.
pub fn ethtool(device: &str, command: u32, value: u32) -> io::Result<u32> {
    /// `struct ethtool_value` (`linux/ethtool.h`).
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    let mut value = Value { command, data: value };
    // SAFETY: ifreq is plain integers and pointers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(device.bytes().take(libc::IFNAMSIZ - 1)) {
        *slot = byte.cast_signed();
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: the request is a live ifreq whose data points to the value that every such command reads and writes.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) })?;
    Ok(value.data)
}

/// Returns the address that binds an AF_PACKET socket to a device for sending only.
pub fn packet_address(device_index: u32) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll is plain integers and not larger than sockaddr_storage.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as u16;
    // Protocol 0: nothing is received, so the kernel copies no frame to this socket.
    address.sll_protocol = 0;
    address.sll_ifindex = device_index as i32;
    let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the first `len` bytes are an initialised sockaddr_ll.
    unsafe { SockAddr::new(storage, len) }
}

/// Sets a socket's receive buffer past the system's limit (needs CAP_NET_ADMIN).
pub fn force_receive_buffer(socket: &Socket, bytes: usize) -> io::Result<()> {
    force_buffer(socket, libc::SO_RCVBUFFORCE, bytes)
}

/// Sets a socket's send buffer past the system's limit (needs CAP_NET_ADMIN).
pub fn force_send_buffer(socket: &Socket, bytes: usize) -> io::Result<()> {
    force_buffer(socket, libc::SO_SNDBUFFORCE, bytes)
}

fn force_buffer(socket: &Socket, option: libc::c_int, bytes: usize) -> io::Result<()> {
    let value = bytes as libc::c_int;
    // SAFETY: the pointer and the length describe `value`, which outlives the call.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    })?;
    Ok(())
}

/// Sends frames with one `sendmmsg` and returns how many the kernel took.
pub fn send_many(socket: &Socket, frames: &[impl AsRef<[u8]>]) -> io::Result<usize> {
    let mut slices: Vec<libc::iovec> = frames
        .iter()
        .map(AsRef::as_ref)
        .map(|frame| libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() })
        .collect();
    let mut headers: Vec<libc::mmsghdr> = slices.iter_mut().map(message_header).collect();
    // SAFETY: every header names one live iovec, every iovec one live frame that sending only reads.
    let sent = check(unsafe {
        libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), headers.len() as libc::c_uint, 0)
    })?;
    Ok(sent as usize)
}

/// Reads datagrams with one `recvmmsg`, blocking for the first only, and returns their lengths.
pub fn receive_many(socket: &Socket, buffers: &mut [Vec<u8>], lengths: &mut Vec<usize>) -> io::Result<()> {
    lengths.clear();
    let mut slices: Vec<libc::iovec> = buffers
        .iter_mut()
        .map(|buffer| libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() })
        .collect();
    let mut headers: Vec<libc::mmsghdr> = slices.iter_mut().map(message_header).collect();
    // SAFETY: every header names one live iovec, every iovec one buffer borrowed mutably meanwhile.
    let got = check(unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr(),
            headers.len() as libc::c_uint,
            libc::MSG_WAITFORONE,
            std::ptr::null_mut(),
        )
    })?;
    lengths.extend(headers[..got as usize].iter().map(|header| header.msg_len as usize));
    Ok(())
}

fn message_header(slice: &mut libc::iovec) -> libc::mmsghdr {
    // SAFETY: mmsghdr is integers and pointers, for which zero is a value.
    let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
    header.msg_hdr.msg_iov = slice;
    header.msg_hdr.msg_iovlen = 1;
    header
}

/// Returns a descriptor that becomes readable when a child process ends.
pub fn process_descriptor(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and returns a new descriptor or -1.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
    let descriptor = check(descriptor as libc::c_int)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// What [`wait_readable`] saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// The descriptor is readable.
    Readable,
    /// The time passed first.
    TimedOut,
}

/// Waits until a descriptor is readable.
pub fn wait_readable(descriptor: &impl AsFd, timeout: Duration) -> io::Result<Readiness> {
    let deadline_ns = monotonic_ns().saturating_add(timeout.as_nanos() as u64);
    loop {
        let left_ns = deadline_ns.saturating_sub(monotonic_ns());
        let left_ms = left_ns.div_ceil(1_000_000).min(i32::MAX as u64) as libc::c_int;
        let mut entry = libc::pollfd { fd: descriptor.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one live pollfd that the call may write.
        match check(unsafe { libc::poll(&mut entry, 1, left_ms) }) {
            Ok(0) if left_ns == 0 => return Ok(Readiness::TimedOut),
            Ok(0) => {}
            Ok(_) => return Ok(Readiness::Readable),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Sends a signal to a whole process group.
pub fn signal_group(leader: u32, signal: i32) -> io::Result<()> {
    // SAFETY: two integers.
    check(unsafe { libc::killpg(leader as libc::pid_t, signal) })?;
    Ok(())
}

/// Watches a directory and returns a descriptor that becomes readable when a file in it changes.
pub fn watch_directory(path: &str) -> io::Result<File> {
    let c_path = CString::new(path)?;
    // SAFETY: an integer goes in, a new descriptor or -1 comes back.
    let descriptor = check(unsafe { libc::inotify_init1(libc::IN_CLOEXEC) })?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    let inotify = unsafe { File::from_raw_fd(descriptor) };
    // SAFETY: `c_path` is a NUL-terminated string that outlives the call.
    check(unsafe {
        libc::inotify_add_watch(
            inotify.as_raw_fd(),
            c_path.as_ptr(),
            libc::IN_MODIFY | libc::IN_CREATE | libc::IN_MOVED_TO,
        )
    })?;
    Ok(inotify)
}

/// Mounts a file system.
pub fn mount(kind: &str, target: &str) -> io::Result<()> {
    let c_kind = CString::new(kind)?;
    let c_target = CString::new(target)?;
    // SAFETY: three NUL-terminated strings that outlive the call, and no data.
    let result =
        unsafe { libc::mount(c_kind.as_ptr(), c_target.as_ptr(), c_kind.as_ptr(), 0, std::ptr::null()) };
    check(result).map_err(|error| io::Error::other(format!("mount {kind} on {target}: {error}")))?;
    Ok(())
}

/// Inserts a kernel module.
pub fn insert_module(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open, the parameters are an empty NUL-terminated string.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    check(result as libc::c_int)?;
    Ok(())
}

/// Waits for any child, as the first process must, and returns its pid; `None` when there is none.
pub fn reap_any() -> Option<u32> {
    // SAFETY: a null status pointer is allowed.
    let pid = unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) };
    u32::try_from(pid).ok()
}

/// Powers the machine off; returns only when that is not allowed.
pub fn power_off() -> io::Error {
    // SAFETY: no arguments.
    unsafe { libc::sync() };
    // SAFETY: one constant.
    unsafe { libc::reboot(libc::RB_POWER_OFF) };
    io::Error::last_os_error()
}

/// Puts known values into all vector registers, counts down, and tells whether they are still there.
pub fn keeps_vector_registers(count: u64, seed: u8) -> bool {
    let before: [u8; 256] = std::array::from_fn(|at| (at as u8).wrapping_mul(7).wrapping_add(seed));
    let mut after = [0u8; 256];
    // SAFETY: sixteen loads from and stores to live arrays of 256 bytes, none of which wants an alignment; every
    // register that changes is named.
    unsafe {
        std::arch::asm!(
            "movdqu xmm0, [{before}]",
            "movdqu xmm1, [{before} + 16]",
            "movdqu xmm2, [{before} + 32]",
            "movdqu xmm3, [{before} + 48]",
            "movdqu xmm4, [{before} + 64]",
            "movdqu xmm5, [{before} + 80]",
            "movdqu xmm6, [{before} + 96]",
            "movdqu xmm7, [{before} + 112]",
            "movdqu xmm8, [{before} + 128]",
            "movdqu xmm9, [{before} + 144]",
            "movdqu xmm10, [{before} + 160]",
            "movdqu xmm11, [{before} + 176]",
            "movdqu xmm12, [{before} + 192]",
            "movdqu xmm13, [{before} + 208]",
            "movdqu xmm14, [{before} + 224]",
            "movdqu xmm15, [{before} + 240]",
            "2:",
            "sub {count}, 1",
            "jnz 2b",
            "movdqu [{after}], xmm0",
            "movdqu [{after} + 16], xmm1",
            "movdqu [{after} + 32], xmm2",
            "movdqu [{after} + 48], xmm3",
            "movdqu [{after} + 64], xmm4",
            "movdqu [{after} + 80], xmm5",
            "movdqu [{after} + 96], xmm6",
            "movdqu [{after} + 112], xmm7",
            "movdqu [{after} + 128], xmm8",
            "movdqu [{after} + 144], xmm9",
            "movdqu [{after} + 160], xmm10",
            "movdqu [{after} + 176], xmm11",
            "movdqu [{after} + 192], xmm12",
            "movdqu [{after} + 208], xmm13",
            "movdqu [{after} + 224], xmm14",
            "movdqu [{after} + 240], xmm15",
            before = in(reg) before.as_ptr(),
            after = in(reg) after.as_mut_ptr(),
            count = inout(reg) count.max(1) => _,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
            out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
            out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
            options(nostack),
        );
    }
    before == after
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
