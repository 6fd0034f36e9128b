//! Frames into a TAP device many at a time: `/dev/vhost-net`, whose kernel thread takes them out of a ring in our
//! memory. One write into an eventfd hands over what a pass has, where the device file takes a system call, a soft
//! interrupt and often a reader's wake-up for every frame.
//!
//! It knows the kernel's interface, and not where frames come from. Numbers are those of `linux/vhost.h`.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use drayage_wire::container::Meta;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::vnet::make_header;
use super::vring::{self, Broken, Consumer, ENTRIES, Vring};
use super::{Flushed, Sent};

/// The device file.
pub const PATH: &str = "/dev/vhost-net";

/// `_IO(0xaf, 0x01)`.
const SET_OWNER: u64 = 0xaf01;
/// `_IOW(0xaf, 0x00, __u64)`.
const SET_FEATURES: u64 = 0x4008_af00;
/// `_IOW(0xaf, 0x03, struct vhost_memory)`.
const SET_MEM_TABLE: u64 = 0x4008_af03;
/// `_IOW(0xaf, 0x10, struct vhost_vring_state)`.
const SET_VRING_NUM: u64 = 0x4008_af10;
/// `_IOW(0xaf, 0x11, struct vhost_vring_addr)`.
const SET_VRING_ADDR: u64 = 0x4028_af11;
/// `_IOW(0xaf, 0x12, struct vhost_vring_state)`.
const SET_VRING_BASE: u64 = 0x4008_af12;
/// `_IOW(0xaf, 0x20, struct vhost_vring_file)`.
const SET_VRING_KICK: u64 = 0x4008_af20;
/// `_IOW(0xaf, 0x21, struct vhost_vring_file)`.
const SET_VRING_CALL: u64 = 0x4008_af21;
/// `_IOW(0xaf, 0x30, struct vhost_vring_file)`.
const NET_SET_BACKEND: u64 = 0x4008_af30;
/// The queue of frames that go to the device (`VHOST_NET_VQ_TX`, which is no part of the header). The other one stays
/// without a backend: we read the device ourselves, when we look at it, and no thread wakes for every frame.
const TX_QUEUE: u32 = 1;

/// An Ethernet header.
const ETHERNET_BYTES: usize = 14;
/// So many bytes in the ring, and the thread is behind: the longest super-frame.
const BEHIND_BYTES: u64 = 64 << 10;
/// How long a full ring is waited for, at most. Until then the kernel's thread does what our own writes would do.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
/// So many waits in a row that brought nothing, and the thread is taken for dead.
const MOST_WAITS: u32 = 100;

/// Returns the constants by their names in the headers, so that a test outside can compare them.
#[doc(hidden)]
pub fn constants() -> Vec<(&'static str, u64)> {
    let mut all = vec![
        ("VHOST_SET_OWNER", SET_OWNER),
        ("VHOST_SET_FEATURES", SET_FEATURES),
        ("VHOST_SET_MEM_TABLE", SET_MEM_TABLE),
        ("VHOST_SET_VRING_NUM", SET_VRING_NUM),
        ("VHOST_SET_VRING_ADDR", SET_VRING_ADDR),
        ("VHOST_SET_VRING_BASE", SET_VRING_BASE),
        ("VHOST_SET_VRING_KICK", SET_VRING_KICK),
        ("VHOST_SET_VRING_CALL", SET_VRING_CALL),
        ("VHOST_NET_SET_BACKEND", NET_SET_BACKEND),
        ("sizeof(struct vhost_memory)+sizeof(struct vhost_memory_region)", size_of::<Memory>() as u64),
        ("sizeof(struct vhost_vring_addr)", size_of::<Address>() as u64),
        ("offsetof(struct vhost_vring_addr, avail_user_addr)", std::mem::offset_of!(Address, avail) as u64),
        ("sizeof(struct vhost_vring_state)", size_of::<[u32; 2]>() as u64),
        ("sizeof(struct vhost_vring_file)", size_of::<[i32; 2]>() as u64),
    ];
    all.extend(vring::constants());
    all
}

/// `struct vhost_memory` with one `struct vhost_memory_region`.
#[repr(C)]
struct Memory {
    regions: u32,
    padding: u32,
    guest_address: u64,
    len_bytes: u64,
    user_address: u64,
    flags: u64,
}

/// `struct vhost_vring_addr`.
#[repr(C)]
struct Address {
    queue: u32,
    flags: u32,
    descriptors: u64,
    used: u64,
    avail: u64,
    log: u64,
}

/// What could not be done.
pub(super) type Failed = (&'static str, io::Error);

/// A TAP device's ring.
#[derive(Debug)]
pub(super) struct Vhost {
    // Closed first: the kernel's thread is gone before the ring is.
    _device: File,
    kick: OwnedFd,
    call: OwnedFd,
    ring: Vring,
    /// What was published since the last flush, and what had no room.
    done: Flushed,
    waiting_bytes: u64,
    /// Waits in a row that brought nothing.
    waits: u32,
}

fn call<T>(device: &File, number: u64, argument: &T) -> io::Result<()> {
    // SAFETY: every number passed here takes a pointer to what is passed with it, which is live and only read.
    let rc = unsafe { libc::ioctl(device.as_raw_fd(), number as _, std::ptr::from_ref(argument)) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

impl Vhost {
    /// Has the kernel's thread take frames for a TAP device whose header is [`VNET_BYTES`](super::vnet::VNET_BYTES)
    /// long.
    pub(super) fn new(tap: &File) -> Result<Self, Failed> {
        let at = |doing: &'static str| move |error| (doing, error);
        let device = OpenOptions::new().read(true).write(true).open(PATH).map_err(at("opening it"))?;
        let ring = Vring::new().map_err(at("making room for frames"))?;
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(io::Error::from);
        let kick = event().map_err(at("making an eventfd"))?;
        let told = event().map_err(at("making an eventfd"))?;
        let [memory, descriptors, avail, used] = ring.addresses();
        // The argument is not looked at.
        call(&device, SET_OWNER, &0u64).map_err(at("becoming its owner"))?;
        // None: a queue as in virtio 0.9, and headers that the TAP device reads, without a count of buffers.
        call(&device, SET_FEATURES, &0u64).map_err(at("agreeing on its features"))?;
        let len_bytes = Vring::len_bytes() as u64;
        // Descriptors name addresses in a guest's memory: there is none, so these are our own.
        let table = Memory {
            regions: 1,
            padding: 0,
            guest_address: memory,
            len_bytes,
            user_address: memory,
            flags: 0,
        };
        call(&device, SET_MEM_TABLE, &table).map_err(at("naming its memory"))?;
        call(&device, SET_VRING_NUM, &[TX_QUEUE, ENTRIES.into()]).map_err(at("sizing its queue"))?;
        call(&device, SET_VRING_BASE, &[TX_QUEUE, 0]).map_err(at("starting its queue"))?;
        let address = Address { queue: TX_QUEUE, flags: 0, descriptors, used, avail, log: 0 };
        call(&device, SET_VRING_ADDR, &address).map_err(at("placing its queue"))?;
        let file = |fd: i32| [TX_QUEUE as i32, fd];
        call(&device, SET_VRING_KICK, &file(kick.as_raw_fd())).map_err(at("giving it an eventfd"))?;
        call(&device, SET_VRING_CALL, &file(told.as_raw_fd())).map_err(at("giving it an eventfd"))?;
        call(&device, NET_SET_BACKEND, &file(tap.as_raw_fd())).map_err(at("joining it to the device"))?;
        let done = Flushed::default();
        Ok(Self { _device: device, kick, call: told, ring, done, waiting_bytes: 0, waits: 0 })
    }

    /// Keeps a frame until the flush.
    ///
    /// # Errors
    /// [`Broken`]: the ring is not to be used any more.
    pub(super) fn send(&mut self, frame: &[u8], meta: Meta) -> Result<Sent, Broken> {
        // As the device file has it. Some kernels do not look here, and read past the end of such a frame.
        if frame.len() < ETHERNET_BYTES {
            return Ok(Sent::No);
        }
        self.make_room(frame.len())?;
        let Some(place) = self.ring.place(frame.len()) else { return Ok(Sent::No) };
        place.copy_from_slice(frame);
        Ok(self.send_placed(meta))
    }

    /// Hands over what waits and waits for room, if there is none for a frame of so many bytes.
    ///
    /// # Errors
    /// [`Broken`]: the ring is not to be used any more.
    pub(super) fn make_room(&mut self, frame_bytes: usize) -> Result<(), Broken> {
        if self.ring.place(frame_bytes).is_none() {
            self.hand_over();
            self.wait()?;
        }
        Ok(())
    }

    /// Returns where a frame of so many bytes may be written that is then [sent](Self::send_placed), if there is room.
    pub(super) fn place(&mut self, frame_bytes: usize) -> Option<&mut [u8]> {
        if frame_bytes < ETHERNET_BYTES { None } else { self.ring.place(frame_bytes) }
    }

    /// Keeps the frame that was written in its place until the flush.
    pub(super) fn send_placed(&mut self, meta: Meta) -> Sent {
        self.waiting_bytes += self.ring.keep(|frame| make_header(frame, meta)) as u64;
        Sent::Queued
    }

    /// Hands over what waits, and tells the kernel's thread if it sleeps.
    fn hand_over(&mut self) {
        let count = self.ring.waiting();
        if count > 0 {
            self.done.sent += u64::from(count);
            self.done.sent_bytes += std::mem::take(&mut self.waiting_bytes);
            if self.ring.publish() == Consumer::Sleeps {
                // It fails when the counter is full, and then the thread knows.
                let _ = rustix::io::write(&self.kick, &1u64.to_ne_bytes());
            }
        }
    }

    /// Waits until something was taken, within [`PATIENCE`].
    fn wait(&mut self) -> Result<(), Broken> {
        if self.ring.reclaim()? || self.ring.is_drained() {
            self.waits = 0;
            return Ok(());
        }
        let _ = rustix::io::read(&self.call, &mut [0; 8]);
        self.ring.ask();
        if !self.ring.reclaim()? {
            let mut list = [PollFd::from_borrowed_fd(self.call.as_fd(), PollFlags::IN)];
            let _ = poll(&mut list, Some(&PATIENCE));
            if !self.ring.reclaim()? {
                self.waits += 1;
                return if self.waits < MOST_WAITS { Ok(()) } else { Err(Broken) };
            }
        }
        self.waits = 0;
        Ok(())
    }

    /// Hands over what waits. A frame that goes alone, and overtakes nothing, is given to `write` in place: waking a
    /// thread for it takes longer.
    ///
    /// # Errors
    /// [`Broken`]: the ring is not to be used any more.
    pub(super) fn flush(&mut self, write: impl FnOnce(&[u8]) -> bool) -> Result<Flushed, Broken> {
        if self.ring.waiting() > 0 {
            self.ring.reclaim()?;
            if let Some(bytes) = self.ring.take_lone() {
                let bytes_sent = std::mem::take(&mut self.waiting_bytes);
                if write(bytes) {
                    self.done.sent += 1;
                    self.done.sent_bytes += bytes_sent;
                } else {
                    self.done.drops += 1;
                }
            } else {
                self.hand_over();
            }
        }
        Ok(std::mem::take(&mut self.done))
    }

    /// Returns whether much of what was handed over has not been taken yet.
    pub(super) fn is_behind(&mut self) -> bool {
        let much = |ring: &Vring| ring.used_bytes() >= BEHIND_BYTES;
        // Where the ring is broken, the next flush says so.
        much(&self.ring) && self.ring.reclaim().is_ok() && much(&self.ring)
    }

    /// Returns what came of the frames in a ring that is not to be used any more.
    pub(super) fn give_up(self) -> Flushed {
        let mut done = self.done;
        done.drops += u64::from(self.ring.waiting());
        done
    }
}
