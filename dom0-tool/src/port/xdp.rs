//! One queue of a network device as an uplink, by an AF_XDP socket (`linux/if_xdp.h`).
//!
//! A program of six instructions in the device's driver, or in the stack where the driver cannot, hands every
//! frame of the queue to the socket; Linux hears that queue no more. Four rings carry the frames, which lie in
//! chunks of one memory: chunks go by the fill ring to the kernel and come back, filled, by the receive ring; by
//! the transmit ring they go out, and come back by the completion ring. Frames are lent straight from their chunk.
//!
//! There are no offloads: blank checksums are filled and super-frames cut before they are sent. A veth's other end
//! leaves checksums blank and does not say so to XDP: a sum that is just that of the pseudo-header is taken for one.
//! A frame that is longer than a chunk is dropped by the kernel, and counted.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use drayage_wire::checksum;
use drayage_wire::container::{Checksum, Meta};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

use super::bpf::{self, Place, Program};
use super::device::{self, option, set_option};
use super::mapping::Mapping;
use super::spec::{XdpMode, XdpSpec};
use super::{Budget, By, DeviceError, Flushed, Sent, Uplink};
use crate::segment;

/// Entries of each ring: as many as there are chunks for that direction.
const ENTRIES: u32 = 2048;
/// What the kernel keeps free in front of a received frame (`XDP_PACKET_HEADROOM`).
const HEADROOM: usize = 256;
/// Chunks are of the one size or the other; the kernel takes none above a page.
const CHUNK_BYTES: [usize; 2] = [2048, 4096];

const NONE: &str = "; this kernel has no AF_XDP (CONFIG_XDP_SOCKETS): use packet:DEVICE in its place";
const TRY_PACKET: &str = "; packet:DEVICE needs less of the device and of the kernel";
const OTHER_PROGRAM: &str = "; another XDP program or socket may have it (`ip link show`, `bpftool net`); \
                             packet:DEVICE works beside it";
const NO_QUEUE: &str = "; does the device have such a queue? (`ls /sys/class/net/DEVICE/queues`)";

/// Returns whether this kernel has AF_XDP, and we may use it.
///
/// # Errors
/// What the system says to a socket of it.
pub fn is_there() -> std::io::Result<()> {
    socket_with(AddressFamily::XDP, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    Ok(())
}

/// Returns constants and layouts by their names in the headers, so that a test outside can compare them.
#[doc(hidden)]
pub fn constants() -> Vec<(&'static str, u64)> {
    let mut all = vec![
        ("AF_XDP", libc::AF_XDP as u64),
        ("XDP_MMAP_OFFSETS", libc::XDP_MMAP_OFFSETS as u64),
        ("XDP_RX_RING", libc::XDP_RX_RING as u64),
        ("XDP_TX_RING", libc::XDP_TX_RING as u64),
        ("XDP_UMEM_REG", libc::XDP_UMEM_REG as u64),
        ("XDP_UMEM_FILL_RING", libc::XDP_UMEM_FILL_RING as u64),
        ("XDP_UMEM_COMPLETION_RING", libc::XDP_UMEM_COMPLETION_RING as u64),
        ("XDP_STATISTICS", libc::XDP_STATISTICS as u64),
        ("XDP_COPY", libc::XDP_COPY.into()),
        ("XDP_ZEROCOPY", libc::XDP_ZEROCOPY.into()),
        ("XDP_USE_NEED_WAKEUP", libc::XDP_USE_NEED_WAKEUP.into()),
        ("XDP_RING_NEED_WAKEUP", libc::XDP_RING_NEED_WAKEUP.into()),
        ("XDP_PGOFF_RX_RING", libc::XDP_PGOFF_RX_RING as u64),
        ("XDP_PGOFF_TX_RING", libc::XDP_PGOFF_TX_RING as u64),
        ("XDP_UMEM_PGOFF_FILL_RING", libc::XDP_UMEM_PGOFF_FILL_RING),
        ("XDP_UMEM_PGOFF_COMPLETION_RING", libc::XDP_UMEM_PGOFF_COMPLETION_RING),
        ("sizeof(struct xdp_umem_reg)", size_of::<libc::xdp_umem_reg>() as u64),
        ("sizeof(struct sockaddr_xdp)", size_of::<libc::sockaddr_xdp>() as u64),
        ("sizeof(struct xdp_mmap_offsets)", 16 * 8),
        ("sizeof(struct xdp_statistics)", 6 * 8),
        ("offsetof(struct xdp_statistics, rx_ring_full)", 3 * 8),
        ("offsetof(struct xdp_desc, len)", 8),
        ("sizeof(struct xdp_desc)", 16),
    ];
    all.extend(bpf::constants());
    all
}

/// One of the four rings: words that both sides access.
#[derive(Debug)]
struct Ring {
    memory: Mapping,
    producer_at: usize,
    consumer_at: usize,
    flags_at: usize,
    entries_at: usize,
    entry_bytes: usize,
    /// Our index: of the next entry to be produced or consumed. The kernel has the other.
    ours: u32,
}

impl Ring {
    /// Maps a ring. `offsets` are `struct xdp_ring_offset`'s: producer, consumer, entries, flags.
    fn map(socket: &OwnedFd, at: u64, offsets: [u64; 4], entry_bytes: usize) -> std::io::Result<Self> {
        let [producer_at, consumer_at, entries_at, flags_at] = offsets.map(|offset| offset as usize);
        let memory = Mapping::new(socket, entries_at + ENTRIES as usize * entry_bytes, at)?;
        Ok(Self { memory, producer_at, consumer_at, flags_at, entries_at, entry_bytes, ours: 0 })
    }

    fn entry(&self, index: u32) -> usize {
        self.entries_at + (index % ENTRIES) as usize * self.entry_bytes
    }

    fn read_long(&self, at: usize) -> u64 {
        use std::sync::atomic::Ordering::Relaxed;
        let (low, high) = (self.memory.word(at).load(Relaxed), self.memory.word(at + 4).load(Relaxed));
        u64::from(low) | u64::from(high) << 32
    }

    fn write_long(&self, at: usize, value: u64) {
        use std::sync::atomic::Ordering::Relaxed;
        self.memory.word(at).store(value as u32, Relaxed);
        self.memory.word(at + 4).store((value >> 32) as u32, Relaxed);
    }

    /// Returns how many entries the kernel has produced and we have not consumed.
    fn filled(&self) -> u32 {
        self.memory.load(self.producer_at).wrapping_sub(self.ours).min(ENTRIES)
    }

    fn publish_consumed(&self) {
        self.memory.store(self.consumer_at, self.ours);
    }

    fn publish_produced(&self) {
        self.memory.store(self.producer_at, self.ours);
    }

    /// Returns how many of the entries that we produced the kernel has not consumed.
    fn unconsumed(&self) -> u32 {
        self.ours.wrapping_sub(self.memory.load(self.consumer_at))
    }

    /// Returns whether the kernel sleeps and is to be told of new entries.
    fn needs_wakeup(&self) -> bool {
        self.memory.load(self.flags_at) & libc::XDP_RING_NEED_WAKEUP != 0
    }
}

/// Memory for frames, in chunks.
#[derive(Debug)]
struct Chunks {
    memory: Mapping,
    bytes: usize,
}

impl Chunks {
    fn total(&self) -> usize {
        2 * ENTRIES as usize * self.bytes
    }
}

/// A device's queue, open.
#[derive(Debug)]
pub struct Xdp {
    // In the order in which they are closed: the program first, the memory last.
    _link: OwnedFd,
    _program: Program,
    _promiscuous: OwnedFd,
    socket: OwnedFd,
    rx: Ring,
    fill: Ring,
    tx: Ring,
    completion: Ring,
    /// Chunks that nothing is in, for sending.
    free: Vec<u64>,
    chunks: Chunks,
    place: Place,
    waiting: Flushed,
}

impl Xdp {
    /// Opens a queue of the device, and brings it up. Returns it with its MTU.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn open(spec: &XdpSpec) -> Result<(Self, u16), DeviceError> {
        let found = device::prepare(spec, &spec.device)?;
        let failed = |doing, hint| DeviceError::wrap(spec, &spec.device, doing, hint);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::XDP, SocketType::RAW, flags, None)
            .map_err(|error| failed("opening an AF_XDP socket", NONE)(error.into()))?;
        let needed = usize::from(found.mtu) + 18 + HEADROOM;
        let bytes = *CHUNK_BYTES.iter().find(|bytes| **bytes >= needed).unwrap_or(&CHUNK_BYTES[1]);
        let memory =
            Mapping::anonymous(2 * ENTRIES as usize * bytes).map_err(failed("making room for frames", ""))?;
        let chunks = Chunks { memory, bytes };
        let region = libc::xdp_umem_reg {
            addr: chunks.memory.address(),
            len: chunks.total() as u64,
            chunk_size: bytes as u32,
            headroom: 0,
            flags: 0,
            tx_metadata_len: 0,
        };
        let set = |name, value: u32| set_option(&socket, libc::SOL_XDP, name, value);
        set_option(&socket, libc::SOL_XDP, libc::XDP_UMEM_REG, region)
            .map_err(failed("registering room for frames", "; is RLIMIT_MEMLOCK too low?"))?;
        for ring in
            [libc::XDP_UMEM_FILL_RING, libc::XDP_UMEM_COMPLETION_RING, libc::XDP_RX_RING, libc::XDP_TX_RING]
        {
            set(ring, ENTRIES).map_err(failed("making its rings", ""))?;
        }
        // `struct xdp_mmap_offsets`: rx, tx, fill, completion, four words each.
        let offsets: [u64; 16] = option(&socket, libc::SOL_XDP, libc::XDP_MMAP_OFFSETS)
            .map_err(failed("asking where its rings are", ""))?;
        let map = |which: usize, at, entry_bytes| {
            let words = std::array::from_fn(|word| offsets[4 * which + word]);
            Ring::map(&socket, at, words, entry_bytes).map_err(failed("mapping its rings", ""))
        };
        let rx = map(0, libc::XDP_PGOFF_RX_RING as u64, 16)?;
        let tx = map(1, libc::XDP_PGOFF_TX_RING as u64, 16)?;
        let mut fill = map(2, libc::XDP_UMEM_PGOFF_FILL_RING, 8)?;
        let completion = map(3, libc::XDP_UMEM_PGOFF_COMPLETION_RING, 8)?;
        // The first half of the chunks is for receiving, the second for sending.
        let address = |chunk: u32| u64::from(chunk) * bytes as u64;
        for chunk in 0..ENTRIES {
            fill.write_long(fill.entry(chunk), address(chunk));
        }
        fill.ours = ENTRIES;
        fill.publish_produced();
        let free = (ENTRIES..2 * ENTRIES).map(address).collect();
        let program = Program::load(spec.queue).map_err(failed("loading its program", TRY_PACKET))?;
        let (link, place) = attach(&program, found.index, spec.mode)
            .map_err(failed("attaching its program", OTHER_PROGRAM))?;
        let copying = match (spec.mode, place) {
            (XdpMode::ZeroCopy, _) => libc::XDP_ZEROCOPY,
            (_, Place::Stack) => libc::XDP_COPY,
            _ => 0,
        };
        let to = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            sxdp_flags: copying | libc::XDP_USE_NEED_WAKEUP,
            sxdp_ifindex: found.index,
            sxdp_queue_id: spec.queue,
            sxdp_shared_umem_fd: 0,
        };
        device::bind(&socket, to).map_err(|source| {
            let hint = match source.raw_os_error() {
                Some(libc::EINVAL) => NO_QUEUE,
                Some(libc::EBUSY) => OTHER_PROGRAM,
                _ => TRY_PACKET,
            };
            failed("binding an AF_XDP socket to it", hint)(source)
        })?;
        program.redirect(spec.queue, &socket).map_err(failed("redirecting its frames", TRY_PACKET))?;
        let promiscuous = device::be_promiscuous(found.index).map_err(failed("making it promiscuous", ""))?;
        let xdp = Self {
            _link: link,
            _program: program,
            _promiscuous: promiscuous,
            socket,
            rx,
            fill,
            tx,
            completion,
            free,
            chunks,
            place,
            waiting: Flushed::default(),
        };
        Ok((xdp, found.mtu))
    }

    /// Returns whether the program runs in the driver.
    pub fn is_native(&self) -> bool {
        self.place == Place::Driver
    }

    /// Takes back the chunks of what has been sent.
    fn reclaim(&mut self) {
        for _ in 0..self.completion.filled() {
            let at = self.completion.entry(self.completion.ours);
            // There are as many of them as the list had at first.
            self.free.push(self.completion.read_long(at));
            self.completion.ours = self.completion.ours.wrapping_add(1);
        }
        self.completion.publish_consumed();
    }

    /// Puts a frame that `write` writes into the transmit ring, unpublished.
    fn queue(&mut self, len: usize, write: impl FnOnce(&mut [u8])) -> Sent {
        if len > self.chunks.bytes {
            return Sent::No;
        }
        if self.free.is_empty() {
            self.reclaim();
        }
        let Some(chunk) = self.free.pop() else { return Sent::No };
        // SAFETY: the chunk is in no ring: it was never handed out, or it has been completed.
        write(unsafe { self.chunks.memory.lend(chunk as usize, len) });
        let at = self.tx.entry(self.tx.ours);
        self.tx.write_long(at, chunk);
        self.tx.write_long(at + 8, len as u64);
        // A chunk for each entry: the ring cannot be full while one is free.
        self.tx.ours = self.tx.ours.wrapping_add(1);
        self.waiting.sent += 1;
        self.waiting.sent_bytes += len as u64;
        Sent::Queued
    }
}

fn attach(program: &Program, device: u32, mode: XdpMode) -> std::io::Result<(OwnedFd, Place)> {
    if mode != XdpMode::Generic {
        match program.attach(device, Place::Driver) {
            Ok(link) => return Ok((link, Place::Driver)),
            // The driver cannot, or not with this MTU.
            Err(error)
                if mode == XdpMode::Auto
                    && matches!(
                        error.raw_os_error(),
                        Some(libc::EOPNOTSUPP | libc::ERANGE | libc::EINVAL | libc::ENOSPC)
                    ) => {}
            Err(error) => return Err(error),
        }
    }
    Ok((program.attach(device, Place::Stack)?, Place::Stack))
}

/// Returns what is to be done with the checksum of a frame about which nothing is known.
fn judge(frame: &[u8]) -> Meta {
    let blank = checksum::locate(frame).is_some_and(|site| {
        let at = site.start + site.field;
        [frame[at], frame[at + 1]] == site.pseudo.to_be_bytes()
    });
    Meta { checksum: if blank { Checksum::Blank } else { Checksum::Unverified }, gso: None }
}

impl Uplink for Xdp {
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }

    fn by(&self) -> By {
        match self.place {
            Place::Driver => By::XdpDriver,
            Place::Stack => By::XdpStack,
        }
    }

    fn receive(&mut self, budget: &mut Budget, each: &mut dyn FnMut(&[u8], Meta)) {
        let filled = self.rx.filled();
        let mut taken = 0;
        while taken < filled && budget.is_left() {
            let at = self.rx.entry(self.rx.ours);
            let (start, len) = (self.rx.read_long(at) as usize, self.rx.read_long(at + 8) as u32 as usize);
            // SAFETY: the kernel has handed the chunk over, and gets it back only after this.
            let frame = unsafe { self.chunks.memory.lend(start, len) };
            budget.spend(len);
            each(frame, judge(frame));
            // There is room: the chunk came from this ring.
            let chunk = start - start % self.chunks.bytes;
            self.fill.write_long(self.fill.entry(self.fill.ours), chunk as u64);
            self.fill.ours = self.fill.ours.wrapping_add(1);
            self.rx.ours = self.rx.ours.wrapping_add(1);
            taken += 1;
        }
        if taken > 0 {
            self.rx.publish_consumed();
            self.fill.publish_produced();
        } else if self.fill.needs_wakeup() {
            // The driver ran out of chunks and sleeps.
            let _ = recv(&self.socket, &mut [0u8; 0], RecvFlags::DONTWAIT);
        }
    }

    fn send(&mut self, frame: &[u8], meta: Meta) -> Sent {
        if let Some(gso) = meta.gso {
            let mut lost = 0;
            let cut = segment::tcp(frame, gso, |len, write| {
                lost += u64::from(self.queue(len, |bytes| write(bytes)) == Sent::No);
            });
            self.waiting.drops += lost;
            return if cut.is_ok() { Sent::Queued } else { Sent::No };
        }
        let blank = meta.checksum == Checksum::Blank;
        self.queue(frame.len(), |bytes| {
            bytes.copy_from_slice(frame);
            if blank {
                checksum::fill(bytes);
            }
        })
    }

    fn flush(&mut self) -> Flushed {
        let done = std::mem::take(&mut self.waiting);
        if done.sent > 0 {
            self.tx.publish_produced();
        }
        // The kernel takes a handful at a time where it copies.
        let mut left = self.tx.unconsumed();
        while left > 0 && self.tx.needs_wakeup() {
            let _ = send(&self.socket, &[], SendFlags::DONTWAIT);
            let now = self.tx.unconsumed();
            if now == left {
                // The device takes no more for now; the rest goes in a later pass.
                break;
            }
            left = now;
        }
        done
    }

    fn receive_drops(&self) -> u64 {
        // `struct xdp_statistics`: dropped (too long, say), two more, ring full, no chunk to fill.
        let counts: std::io::Result<[u64; 6]> = option(&self.socket, libc::SOL_XDP, libc::XDP_STATISTICS);
        counts.map_or(0, |[dropped, _, _, full, empty, _]| dropped + full + empty)
    }

    fn clear_error(&mut self) {
        let _: std::io::Result<[u64; 1]> = option(&self.socket, libc::SOL_SOCKET, libc::SO_ERROR);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_of_the_pseudo_header_alone_is_a_blank_one() {
        let mut frame = vec![2; 12];
        frame.extend([8, 0, 0x45, 0, 0, 30, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0, 7, 0, 7, 0, 10, 0, 0, 0xab, 0xcd]);
        // 0a00 + 0001 + 0a00 + 0002 + 0011 + 000a
        frame[40..42].copy_from_slice(&[0x14, 0x1e]);
        assert_eq!(judge(&frame).checksum, Checksum::Blank);
        checksum::fill(&mut frame);
        assert_eq!(judge(&frame).checksum, Checksum::Unverified);
        assert_eq!(judge(&frame[..20]).checksum, Checksum::Unverified);
    }
}
