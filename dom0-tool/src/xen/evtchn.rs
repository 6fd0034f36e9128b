//! `/dev/xen/evtchn`: event channels as a file.
//!
//! Reading returns the numbers of pending ports, each of which stays masked until its number is written back
//! (`drivers/xen/evtchn.c`, "lateeoi"). Numbers and layouts are those of `include/uapi/xen/evtchn.h`.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use super::{DomainId, EventPort};

/// The device file.
pub(super) const PATH: &str = "/dev/xen/evtchn";

/// `_IOC(_IOC_NONE, 'E', nr, size)`.
const fn ioc(nr: u64, size: usize) -> u64 {
    ((size as u64) << 16) | ((b'E' as u64) << 8) | nr
}

/// `IOCTL_EVTCHN_BIND_INTERDOMAIN`.
pub const BIND_INTERDOMAIN: u64 = ioc(1, 8);
/// `IOCTL_EVTCHN_UNBIND`.
pub const UNBIND: u64 = ioc(3, 4);
/// `IOCTL_EVTCHN_NOTIFY`.
pub const NOTIFY: u64 = ioc(4, 4);

/// Ports that are read or written at once.
const BATCH: usize = 128;

#[derive(Debug)]
pub(super) struct Evtchn {
    file: File,
}

impl Evtchn {
    pub(super) fn open() -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(PATH)?;
        Ok(Self { file })
    }

    pub(super) fn bind(&self, domain: DomainId, remote: EventPort) -> io::Result<EventPort> {
        let mut request: [u32; 2] = [u32::from(domain.0), remote.0];
        // SAFETY: the request is a live `struct ioctl_evtchn_bind_interdomain`: two unsigned ints.
        let port = unsafe { libc::ioctl(self.file.as_raw_fd(), BIND_INTERDOMAIN as _, request.as_mut_ptr()) };
        if port < 0 { Err(io::Error::last_os_error()) } else { Ok(EventPort(port as u32)) }
    }

    pub(super) fn unbind(&self, port: EventPort) {
        let mut request = port.0;
        // SAFETY: the request is a live `struct ioctl_evtchn_unbind`: an unsigned int. It only fails for a
        // port that is not bound, which is what is wanted.
        unsafe { libc::ioctl(self.file.as_raw_fd(), UNBIND as _, &raw mut request) };
    }

    pub(super) fn notify(&self, port: EventPort) {
        let mut request = port.0;
        // SAFETY: the request is a live `struct ioctl_evtchn_notify`: an unsigned int. A port whose other end
        // is gone loses the event.
        unsafe { libc::ioctl(self.file.as_raw_fd(), NOTIFY as _, &raw mut request) };
    }

    pub(super) fn take_pending(&mut self, into: &mut [EventPort]) -> usize {
        let mut bytes = [0u8; 4 * BATCH];
        let wanted = into.len().min(BATCH) * 4;
        let Ok(got) = self.file.read(&mut bytes[..wanted]) else { return 0 };
        let (ports, _) = bytes[..got].as_chunks::<4>();
        for (slot, port) in into.iter_mut().zip(ports) {
            *slot = EventPort(u32::from_ne_bytes(*port));
        }
        ports.len()
    }

    pub(super) fn unmask(&mut self, ports: &[EventPort]) {
        for batch in ports.chunks(BATCH) {
            let mut bytes = [0u8; 4 * BATCH];
            for (slot, port) in bytes.chunks_exact_mut(4).zip(batch) {
                slot.copy_from_slice(&port.0.to_ne_bytes());
            }
            // A port that was closed meanwhile is skipped by the kernel.
            let _ = self.file.write(&bytes[..batch.len() * 4]);
        }
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
