//! A network device of Linux, asked and told through `struct ifreq` (`linux/if.h`), and options of sockets.
//!
//! It knows no frames.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use super::DeviceError;

/// The longest name of a network device (`IFNAMSIZ`, with its NUL).
pub(super) const IFNAMSIZ: usize = 16;

/// `struct ifreq`.
#[repr(C)]
pub(super) struct IfReq {
    name: [u8; IFNAMSIZ],
    /// `ifr_flags`, `ifr_ifindex`, `ifr_mtu`, `ifr_qlen`: the union starts here.
    pub(super) value: libc::c_int,
    rest: [u8; 20],
}

const _: () = assert!(size_of::<IfReq>() == size_of::<libc::ifreq>());

impl IfReq {
    pub(super) fn new(name: &str) -> Self {
        let mut request = Self { name: [0; IFNAMSIZ], value: 0, rest: [0; 20] };
        for (slot, byte) in request.name.iter_mut().zip(name.bytes().take(IFNAMSIZ - 1)) {
            *slot = byte;
        }
        request
    }

    pub(super) fn call(&mut self, fd: impl AsFd, number: u64) -> io::Result<()> {
        // SAFETY: every number passed here takes a `struct ifreq`, of which this is one, and it is live.
        let rc = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), number as _, &raw mut *self) };
        if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Returns a socket to call with requests about devices.
pub(super) fn control_socket() -> io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    Ok(socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?)
}

/// Returns a device's number.
pub(super) fn index(control: &OwnedFd, name: &str) -> io::Result<u32> {
    let mut request = IfReq::new(name);
    request.call(control, libc::SIOCGIFINDEX)?;
    Ok(request.value as u32)
}

/// Brings a device up.
pub(super) fn bring_up(control: &OwnedFd, name: &str) -> io::Result<()> {
    let mut flags = IfReq::new(name);
    flags.call(control, libc::SIOCGIFFLAGS)?;
    if flags.value & libc::IFF_UP == 0 {
        flags.value |= libc::IFF_UP;
        flags.call(control, libc::SIOCSIFFLAGS)?;
    }
    Ok(())
}

/// Returns a device's MTU.
pub(super) fn mtu(control: &OwnedFd, name: &str) -> io::Result<u16> {
    let mut mtu = IfReq::new(name);
    mtu.call(control, libc::SIOCGIFMTU)?;
    // netif's key has no larger ones.
    Ok(u16::try_from(mtu.value).unwrap_or(u16::MAX))
}

/// Returns whether a device carries Ethernet frames (`ARPHRD_ETHER`).
pub(super) fn is_ethernet(control: &OwnedFd, name: &str) -> io::Result<bool> {
    let mut address = IfReq::new(name);
    address.call(control, libc::SIOCGIFHWADDR)?;
    // `ifr_hwaddr.sa_family` is the first two bytes of the union.
    Ok(address.value as u16 == libc::ARPHRD_ETHER)
}

/// Sets an option of a socket. `T` is what the option takes.
pub(super) fn set_option<T: Copy>(fd: &OwnedFd, level: i32, name: i32, value: T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: pointer and length describe a live value, which the kernel only reads.
    let rc = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), len) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Reads an option of a socket into as many words as it has; what the kernel does not write stays zero.
pub(super) fn option<const WORDS: usize>(fd: &OwnedFd, level: i32, name: i32) -> io::Result<[u64; WORDS]> {
    let mut words = [0u64; WORDS];
    let mut len = size_of_val(&words) as libc::socklen_t;
    // SAFETY: pointer and length describe live words, of which every pattern is a value, and the kernel writes
    // no more than that.
    let rc =
        unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, words.as_mut_ptr().cast(), &raw mut len) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(words) }
}

/// Binds a socket to an address. `T` is a socket address.
pub(super) fn bind<T: Copy>(fd: &OwnedFd, address: T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: pointer and length describe a live value, which the kernel only reads.
    let rc = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Has a device take frames for all addresses, until the descriptor is closed.
pub(super) fn be_promiscuous(index: u32) -> io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    // Of no protocol, so that it receives nothing itself.
    let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    add_promiscuity(&socket, index)?;
    Ok(socket)
}

/// Has a device take frames for all addresses, while a packet socket is open.
pub(super) fn add_promiscuity(socket: &OwnedFd, index: u32) -> io::Result<()> {
    let membership = libc::packet_mreq {
        mr_ifindex: index as libc::c_int,
        mr_type: libc::PACKET_MR_PROMISC as libc::c_ushort,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    set_option(socket, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, membership)
}

/// A device that is up.
pub(super) struct Found {
    /// Its number.
    pub(super) index: u32,
    /// Its MTU.
    pub(super) mtu: u16,
}

/// Finds an Ethernet device for a port, and brings it up.
pub(super) fn prepare(port: &dyn std::fmt::Display, name: &str) -> Result<Found, DeviceError> {
    let failed = |doing| DeviceError::wrap(port, name, doing, "");
    let control = control_socket().map_err(failed("opening a socket"))?;
    let index = index(&control, name).map_err(|source| match source.raw_os_error() {
        Some(libc::ENODEV) => DeviceError::Missing(name.into()),
        _ => failed("looking for it")(source),
    })?;
    if !is_ethernet(&control, name).map_err(failed("reading its kind"))? {
        return Err(DeviceError::NotEthernet(name.into()));
    }
    bring_up(&control, name).map_err(failed("bringing it up"))?;
    let mtu = mtu(&control, name).map_err(failed("reading its mtu"))?;
    Ok(Found { index, mtu })
}
