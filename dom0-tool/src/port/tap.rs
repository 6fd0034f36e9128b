//! A TAP device with vnet headers: blank checksums and TCP super-frames pass it in both directions.
//!
//! It knows Linux' device, and no guest. Layouts are those of `linux/if_tun.h` and `linux/virtio_net.h`.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use drayage_wire::checksum;
use drayage_wire::container::{Checksum, Gso, GsoKind, Meta};

use super::spec::TapSpec;
use super::{Batch, Sent, Uplink};

/// The control device.
pub const TUN: &str = "/dev/net/tun";

/// `_IOW('T', 202, int)`.
const TUNSETIFF: u64 = 0x4004_54ca;
/// `_IOW('T', 208, unsigned int)`.
const TUNSETOFFLOAD: u64 = 0x4004_54d0;
/// `_IOW('T', 216, int)`.
const TUNSETVNETHDRSZ: u64 = 0x4004_54d8;
/// `TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6`.
const OFFLOADS: libc::c_ulong = 0x01 | 0x02 | 0x04;
/// `SIOCBRADDIF` (`linux/sockios.h`).
const SIOCBRADDIF: u64 = 0x89a2;
/// Frames that the kernel keeps for us while we do not read.
const QUEUE_FRAMES: libc::c_int = 4096;

/// Bytes of `struct virtio_net_hdr`.
const VNET_BYTES: usize = 10;
const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_ECN: u8 = 0x80;

/// Returns the constants by their names in the headers, so that a test outside can compare them.
#[doc(hidden)]
pub fn constants() -> Vec<(&'static str, u64)> {
    vec![
        ("TUNSETIFF", TUNSETIFF),
        ("TUNSETOFFLOAD", TUNSETOFFLOAD),
        ("TUNSETVNETHDRSZ", TUNSETVNETHDRSZ),
        ("TUN_F_CSUM|TUN_F_TSO4|TUN_F_TSO6", OFFLOADS),
        ("SIOCBRADDIF", SIOCBRADDIF),
        ("sizeof(struct virtio_net_hdr)", VNET_BYTES as u64),
        ("VIRTIO_NET_HDR_F_NEEDS_CSUM", NEEDS_CSUM.into()),
        ("VIRTIO_NET_HDR_F_DATA_VALID", DATA_VALID.into()),
        ("VIRTIO_NET_HDR_GSO_NONE", GSO_NONE.into()),
        ("VIRTIO_NET_HDR_GSO_TCPV4", GSO_TCPV4.into()),
        ("VIRTIO_NET_HDR_GSO_TCPV6", GSO_TCPV6.into()),
        ("VIRTIO_NET_HDR_GSO_ECN", GSO_ECN.into()),
    ]
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
    file: File,
}

#[repr(C)]
struct IfReq {
    name: [u8; 16],
    /// `ifr_flags`, `ifr_ifindex`, `ifr_mtu`, `ifr_qlen`: the union starts here.
    value: libc::c_int,
    rest: [u8; 20],
}

const _: () = assert!(size_of::<IfReq>() == size_of::<libc::ifreq>());

impl IfReq {
    fn new(name: &str) -> Self {
        let mut request = Self { name: [0; 16], value: 0, rest: [0; 20] };
        for (slot, byte) in request.name.iter_mut().zip(name.bytes().take(15)) {
            *slot = byte;
        }
        request
    }

    fn call(&mut self, fd: impl AsFd, number: u64) -> io::Result<()> {
        // SAFETY: every number passed here takes a `struct ifreq`, of which this is one, and it is live.
        let rc = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), number as _, &raw mut *self) };
        if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl Tap {
    /// Opens or makes the device, joins it to its bridge, and brings it up. Returns it with its MTU.
    ///
    /// # Errors
    /// [`TapError`].
    pub fn open(spec: &TapSpec) -> Result<(Self, u16), TapError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(TUN)
            .map_err(TapError::NoTun)?;
        let other = |doing| {
            let name = spec.name.clone();
            move |source| TapError::Other { name, doing, source }
        };
        let mut request = IfReq::new(&spec.name);
        request.value = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        request.call(&file, TUNSETIFF).map_err(|source| match source.raw_os_error() {
            Some(libc::EBUSY | libc::EINVAL) => TapError::Taken(spec.name.clone()),
            _ => other("attaching")(source),
        })?;
        let tap = Self { file };
        tap.set_header().map_err(other("setting its offloads"))?;
        let control = control_socket().map_err(other("opening a socket"))?;
        let mut queue = IfReq::new(&spec.name);
        queue.value = QUEUE_FRAMES;
        queue.call(&control, libc::SIOCSIFTXQLEN).map_err(other("setting its queue"))?;
        if let Some(bridge) = &spec.bridge {
            join(&control, &spec.name, bridge).map_err(|source| TapError::Bridge {
                bridge: bridge.clone(),
                name: spec.name.clone(),
                source,
            })?;
        }
        let mut flags = IfReq::new(&spec.name);
        flags.call(&control, libc::SIOCGIFFLAGS).map_err(other("reading its flags"))?;
        flags.value |= libc::IFF_UP;
        flags.call(&control, libc::SIOCSIFFLAGS).map_err(other("bringing it up"))?;
        let mut mtu = IfReq::new(&spec.name);
        mtu.call(&control, libc::SIOCGIFMTU).map_err(other("reading its mtu"))?;
        Ok((tap, u16::try_from(mtu.value).unwrap_or(1500)))
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

fn control_socket() -> io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    Ok(socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?)
}

fn join(control: &OwnedFd, name: &str, bridge: &str) -> io::Result<()> {
    let mut index = IfReq::new(name);
    index.call(control, libc::SIOCGIFINDEX)?;
    let mut request = IfReq::new(bridge);
    request.value = index.value;
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

/// Reads a vnet header.
fn parse_header(header: [u8; VNET_BYTES]) -> Meta {
    let [flags, gso_type, _, _, size_low, size_high, ..] = header;
    let size = u16::from_ne_bytes([size_low, size_high]);
    let kind = match gso_type & !GSO_ECN {
        GSO_TCPV4 => Some(GsoKind::TcpV4),
        GSO_TCPV6 => Some(GsoKind::TcpV6),
        _ => None,
    };
    let gso = kind.filter(|_| size > 0).map(|kind| Gso { kind, size });
    let checksum = if flags & NEEDS_CSUM != 0 {
        Checksum::Blank
    } else if flags & DATA_VALID != 0 {
        Checksum::Valid
    } else {
        Checksum::Unverified
    };
    Meta { checksum, gso }
}

/// Writes the vnet header of a frame. What the frame says about itself is its sender's word: where it does
/// not fit, nothing is claimed, and the kernel checks what is claimed.
fn make_header(frame: &[u8], meta: Meta) -> [u8; VNET_BYTES] {
    let mut header = [0; VNET_BYTES];
    if meta.checksum != Checksum::Blank {
        // No promise is passed on: `DATA_VALID` would let a guest vouch for its own packets, which is what it
        // does on the kernel's backend too, but a wrong sum then travels on.
        if meta.checksum == Checksum::Valid {
            header[0] = DATA_VALID;
        }
        return header;
    }
    let Some(site) = checksum::locate(frame) else { return header };
    header[0] = NEEDS_CSUM;
    header[6..8].copy_from_slice(&(site.start as u16).to_ne_bytes());
    header[8..10].copy_from_slice(&(site.field as u16).to_ne_bytes());
    if let (Some(gso), checksum::Protocol::Tcp) = (meta.gso, site.protocol) {
        header[1] = match gso.kind {
            GsoKind::TcpV4 => GSO_TCPV4,
            GsoKind::TcpV6 => GSO_TCPV6,
        };
        let tcp_header = usize::from(frame[site.start + 12] >> 4) * 4;
        header[2..4].copy_from_slice(&((site.start + tcp_header) as u16).to_ne_bytes());
        header[4..6].copy_from_slice(&gso.size.to_ne_bytes());
    } else {
        header[1] = GSO_NONE;
    }
    header
}

impl Uplink for Tap {
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    fn receive(&mut self, batch: &mut Batch) {
        while batch.has_room() {
            let file = &mut self.file;
            let taken = batch.push_with(|memory| {
                // The frame starts at a multiple of 4 and two more, as containers want it.
                let memory = &mut memory[4..];
                let got = file.read(memory)?;
                let header = memory.first_chunk().ok_or(io::ErrorKind::InvalidData)?;
                if got < VNET_BYTES {
                    return Err(io::Error::from(io::ErrorKind::InvalidData));
                }
                Ok((4 + VNET_BYTES..4 + got, parse_header(*header)))
            });
            if taken.is_err() {
                break;
            }
        }
    }

    fn send(&mut self, frame: &[u8], meta: Meta) -> Sent {
        let header = make_header(frame, meta);
        match self.file.write_vectored(&[IoSlice::new(&header), IoSlice::new(frame)]) {
            // A frame is taken whole or not at all.
            Ok(written) if written > 0 => Sent::Yes,
            Ok(_) | Err(_) => Sent::No,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp_frame() -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend([8, 0, 0x45, 0, 0, 140, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0; 12]);
        frame.extend([0x80, 0x10]);
        frame.extend([0; 106]);
        frame
    }

    #[test]
    fn a_header_survives_the_way_there_and_back() {
        let gso = Some(Gso { kind: GsoKind::TcpV4, size: 1448 });
        for meta in [
            Meta { checksum: Checksum::Unverified, gso: None },
            Meta { checksum: Checksum::Valid, gso: None },
            Meta { checksum: Checksum::Blank, gso: None },
            Meta { checksum: Checksum::Blank, gso },
        ] {
            assert_eq!(parse_header(make_header(&tcp_frame(), meta)), meta);
        }
        let header = make_header(&tcp_frame(), Meta { checksum: Checksum::Blank, gso });
        // flags, type, header length 14 + 20 + 32, segment size, checksum start 34, offset 16.
        assert_eq!(header, [1, 1, 66, 0, 0xa8, 5, 34, 0, 16, 0]);
    }

    #[test]
    fn nothing_is_claimed_of_a_frame_that_is_not_understood() {
        let blank = Meta { checksum: Checksum::Blank, gso: None };
        assert_eq!(make_header(&[0xff; 60], blank), [0; VNET_BYTES]);
        assert_eq!(make_header(&tcp_frame()[..40], blank), [0; VNET_BYTES]);
    }
}
