//! A TAP device with vnet headers: blank checksums and TCP super-frames pass it in both directions.
//!
//! It knows Linux' device, and no guest. Numbers are those of `linux/if_tun.h`.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use drayage_wire::container::{DESCRIPTOR_BYTES, HEADER_BYTES, MAX_RX_BYTES, Meta};

use super::device::{self, IfReq};
use super::gso;
use super::spec::{TapSpec, VhostUse};
use super::vhost::{self, Vhost};
use super::vnet::{VNET_BYTES, make_header, parse_header};
use super::vring::Broken;
use super::{Budget, By, Flushed, MAX_FRAME_BYTES, Sent, Uplink};

/// The control device.
pub const TUN: &str = "/dev/net/tun";

/// `_IOW('T', 202, int)`.
const TUNSETIFF: u64 = 0x4004_54ca;
/// `_IOW('T', 203, int)`.
const TUNSETPERSIST: u64 = 0x4004_54cb;
/// `_IOW('T', 208, unsigned int)`.
const TUNSETOFFLOAD: u64 = 0x4004_54d0;
/// `_IOW('T', 216, int)`.
const TUNSETVNETHDRSZ: u64 = 0x4004_54d8;
/// `TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6`.
const OFFLOADS: libc::c_ulong = 0x01 | 0x02 | 0x04;
/// `SIOCBRADDIF` (`linux/sockios.h`).
const SIOCBRADDIF: u64 = 0x89a2;
/// Linux sends frames that are shorter than this: what the largest container holds.
const GSO_MAX_BYTES: u32 = (MAX_RX_BYTES - HEADER_BYTES - DESCRIPTOR_BYTES - 2) as u32;
/// Frames that the kernel keeps for us while we do not read.
const QUEUE_FRAMES: libc::c_int = 4096;

/// Returns the constants by their names in the headers, so that a test outside can compare them.
#[doc(hidden)]
pub fn constants() -> Vec<(&'static str, u64)> {
    let mut all = vec![
        ("TUNSETIFF", TUNSETIFF),
        ("TUNSETPERSIST", TUNSETPERSIST),
        ("TUNSETOFFLOAD", TUNSETOFFLOAD),
        ("TUNSETVNETHDRSZ", TUNSETVNETHDRSZ),
        ("TUN_F_CSUM|TUN_F_TSO4|TUN_F_TSO6", OFFLOADS),
        ("SIOCBRADDIF", SIOCBRADDIF),
    ];
    all.extend(super::vnet::constants());
    all
}

/// Why a TAP device could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The control device is missing.
    #[error("opening {TUN}: {0}; load the module with `modprobe tun`, and run as root")]
    NoTun(io::Error),
    /// Another program holds the device, or it is no TAP device.
    #[error(
        "tap device {0:?} is taken: another program holds it, or it is no tap device; choose another name"
    )]
    Taken(String),
    /// There is no such bridge.
    #[error(
        "bridge {bridge:?} for tap device {name:?}: {source}; make it with `ip link add {bridge} type bridge`"
    )]
    Bridge {
        /// The bridge.
        bridge: String,
        /// The TAP device.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel's thread for its frames was asked for, and cannot be had.
    #[error(
        "tap device {name:?}: {}: {doing}: {source}; load the module with `modprobe vhost_net`, or leave out vhost=on",
        vhost::PATH
    )]
    Vhost {
        /// The device.
        name: String,
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Something else.
    #[error("tap device {name:?}: {doing}: {source}")]
    Other {
        /// The device.
        name: String,
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// An open TAP device.
#[derive(Debug)]
pub struct Tap {
    // Before the file: the kernel's thread has that too, and the device is to be free when this is closed.
    vhost: Option<Box<Vhost>>,
    /// What came of the frames in a ring that was given up.
    given_up: Flushed,
    file: File,
    /// The frame that is being handed over.
    frame: Box<[u8]>,
}

/// Where a device came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It was made now. It stays when this process ends, with its addresses and its bridge, until it is
    /// [removed](remove).
    Made,
    /// It was there already.
    Found,
}

/// What opening a device brought.
#[derive(Debug)]
pub struct Opened {
    /// The device.
    pub tap: Tap,
    /// Its MTU.
    pub mtu: u16,
    /// Where it came from.
    pub origin: Origin,
    /// How it takes frames.
    pub sending: Sending,
}

/// How a device takes frames.
#[derive(Debug)]
pub enum Sending {
    /// From the kernel's thread, many at a time.
    Batched,
    /// One by one, as it was asked for.
    Single,
    /// One by one, because the thread cannot be had: what was tried, and what the system said.
    Refused(&'static str, io::Error),
}

/// Removes a device that nobody has open any more, and that was made by [`Tap::open`].
///
/// # Errors
/// [`TapError`].
pub fn remove(name: &str) -> Result<(), TapError> {
    let tap = Tap::hold(name)?;
    tap.set_persistent(false).map_err(|source| TapError::Other {
        name: name.into(),
        doing: "letting go of it",
        source,
    })
}

impl Tap {
    /// Opens the device, or makes it.
    fn hold(name: &str) -> Result<Self, TapError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(TUN)
            .map_err(TapError::NoTun)?;
        let mut request = IfReq::new(name);
        request.value = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        request.call(&file, TUNSETIFF).map_err(|source| match source.raw_os_error() {
            Some(libc::EBUSY | libc::EINVAL) => TapError::Taken(name.into()),
            _ => TapError::Other { name: name.into(), doing: "attaching", source },
        })?;
        let frame = vec![0; 4 + VNET_BYTES + MAX_FRAME_BYTES].into_boxed_slice();
        Ok(Self { vhost: None, given_up: Flushed::default(), file, frame })
    }

    /// Opens or makes the device, joins it to its bridge, and brings it up.
    ///
    /// # Errors
    /// [`TapError`].
    pub fn open(spec: &TapSpec) -> Result<Opened, TapError> {
        let other = |doing| {
            let name = spec.name.clone();
            move |source| TapError::Other { name, doing, source }
        };
        let control = device::control_socket().map_err(other("opening a socket"))?;
        let origin = if device::index(&control, &spec.name).is_ok() { Origin::Found } else { Origin::Made };
        let mut tap = Self::hold(&spec.name)?;
        tap.set_header().map_err(other("setting its offloads"))?;
        let mut queue = IfReq::new(&spec.name);
        queue.value = QUEUE_FRAMES;
        queue.call(&control, libc::SIOCSIFTXQLEN).map_err(other("setting its queue"))?;
        // Larger ones fit no container, and would be cut here. A kernel that knows no limit sends them as it did.
        let number = device::index(&control, &spec.name).map_err(other("reading its number"))?;
        let _ = gso::set_max_bytes(number, GSO_MAX_BYTES);
        if let Some(bridge) = &spec.bridge {
            join(&control, &spec.name, bridge).map_err(|source| TapError::Bridge {
                bridge: bridge.clone(),
                name: spec.name.clone(),
                source,
            })?;
        }
        device::bring_up(&control, &spec.name).map_err(other("bringing it up"))?;
        let mtu = device::mtu(&control, &spec.name).map_err(other("reading its mtu"))?;
        let sending = tap.join_vhost(spec)?;
        if origin == Origin::Made {
            // Last, so that a device that could not be set up is gone again.
            tap.set_persistent(true).map_err(other("making it stay"))?;
        }
        Ok(Opened { tap, mtu, origin, sending })
    }

    /// Has the kernel's thread take frames, where it is wanted and there.
    fn join_vhost(&mut self, spec: &TapSpec) -> Result<Sending, TapError> {
        if spec.vhost == VhostUse::Off {
            return Ok(Sending::Single);
        }
        match Vhost::new(&self.file) {
            Ok(vhost) => {
                self.vhost = Some(Box::new(vhost));
                Ok(Sending::Batched)
            }
            Err((doing, source)) if spec.vhost == VhostUse::On => {
                Err(TapError::Vhost { name: spec.name.clone(), doing, source })
            }
            Err((doing, source)) => Ok(Sending::Refused(doing, source)),
        }
    }

    /// Sends frames one by one from now on: the ring holds what cannot be.
    fn give_up_vhost(&mut self) {
        if let Some(vhost) = self.vhost.take() {
            self.given_up = vhost.give_up();
        }
    }

    fn set_persistent(&self, stays: bool) -> io::Result<()> {
        // SAFETY: the number takes its flag by value.
        let rc =
            unsafe { libc::ioctl(self.file.as_raw_fd(), TUNSETPERSIST as _, libc::c_ulong::from(stays)) };
        if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn set_header(&self) -> io::Result<()> {
        let mut size = VNET_BYTES as libc::c_int;
        // SAFETY: the number takes a pointer to an int, which is live.
        let rc = unsafe { libc::ioctl(self.file.as_raw_fd(), TUNSETVNETHDRSZ as _, &raw mut size) };
        if rc < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the number takes its flags by value.
        let rc = unsafe { libc::ioctl(self.file.as_raw_fd(), TUNSETOFFLOAD as _, OFFLOADS) };
        if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

fn join(control: &OwnedFd, name: &str, bridge: &str) -> io::Result<()> {
    let mut request = IfReq::new(bridge);
    request.value = device::index(control, name)? as libc::c_int;
    match request.call(control, SIOCBRADDIF) {
        // It is in a bridge already: in this one if the device's own folder says so.
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            let master = std::fs::read_link(format!("/sys/class/net/{name}/master"))?;
            let same = master.file_name().is_some_and(|master| master == bridge);
            if same { Ok(()) } else { Err(error) }
        }
        result => result,
    }
}

impl Uplink for Tap {
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    fn by(&self) -> By {
        if self.vhost.is_some() { By::Vhost } else { By::Write }
    }

    fn receive(&mut self, budget: &mut Budget, each: &mut dyn FnMut(&[u8], Meta)) {
        while budget.is_left() {
            // The frame starts at a multiple of 4 and two more, as containers want it.
            let memory = &mut self.frame[4..];
            let Ok(got) = self.file.read(memory) else { break };
            let Some(header) = memory.first_chunk().filter(|_| got >= VNET_BYTES) else { break };
            let meta = parse_header(*header);
            budget.spend(got);
            each(&memory[VNET_BYTES..got], meta);
        }
    }

    fn send(&mut self, frame: &[u8], meta: Meta) -> Sent {
        if let Some(vhost) = &mut self.vhost {
            match vhost.send(frame, meta) {
                Ok(sent) => return sent,
                Err(Broken) => self.give_up_vhost(),
            }
        }
        let header = make_header(frame, meta);
        match self.file.write_vectored(&[IoSlice::new(&header), IoSlice::new(frame)]) {
            // A frame is taken whole or not at all.
            Ok(written) if written > 0 => Sent::Yes,
            Ok(_) | Err(_) => Sent::No,
        }
    }

    fn is_behind(&mut self) -> bool {
        self.vhost.as_mut().is_some_and(|vhost| vhost.is_behind())
    }

    fn has_places(&self) -> bool {
        self.vhost.is_some()
    }

    fn place(&mut self, frame_bytes: usize) -> Option<&mut [u8]> {
        if self.vhost.as_mut()?.make_room(frame_bytes).is_err() {
            self.give_up_vhost();
        }
        self.vhost.as_mut()?.place(frame_bytes)
    }

    fn send_placed(&mut self, meta: Meta) -> Sent {
        // A place was given out, and nothing was given up since.
        self.vhost.as_mut().map_or(Sent::No, |vhost| vhost.send_placed(meta))
    }

    fn flush(&mut self) -> Flushed {
        let file = &mut self.file;
        match self.vhost.as_mut().map(|vhost| vhost.flush(|bytes| file.write(bytes).is_ok())) {
            Some(Ok(done)) => return done,
            Some(Err(Broken)) => self.give_up_vhost(),
            None => {}
        }
        std::mem::take(&mut self.given_up)
    }
}
