//! Memory that a socket shares with the kernel: rings and the frames in them.
//!
//! It knows bounds and ordering, and not what lies where. The kernel is no adversary, but it writes while we
//! read: words go by atomic access, and frames are lent only while they are ours.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// Shared memory, unmapped when it is dropped.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory belongs to the mapping and to no thread.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps `len` bytes of a socket, from `offset` on.
    pub(super) fn new(fd: &OwnedFd, len: usize, offset: u64) -> io::Result<Self> {
        Self::map(fd.as_raw_fd(), len, offset, libc::MAP_SHARED | libc::MAP_POPULATE)
    }

    /// Maps `len` bytes that belong to nobody yet, zeroed.
    pub(super) fn anonymous(len: usize) -> io::Result<Self> {
        Self::map(-1, len, 0, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE)
    }

    fn map(fd: i32, len: usize, offset: u64, flags: i32) -> io::Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that is in use.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), len, access, flags, fd, offset as libc::off_t) };
        match NonNull::new(base.cast::<u8>()) {
            Some(start) if base != libc::MAP_FAILED => Ok(Self { base: start, len }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Returns where it starts.
    pub(super) fn address(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    fn at(&self, at: usize, len: usize) -> *mut u8 {
        assert!(at <= self.len && len <= self.len - at, "{len} bytes at {at} of {}", self.len);
        // SAFETY: it was just checked that the range lies in the mapping.
        unsafe { self.base.as_ptr().add(at) }
    }

    /// Returns a word that both sides access.
    pub(super) fn word(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(4));
        // SAFETY: the word lies in the mapping, is aligned (a mapping starts at a page), and lives as long as
        // the borrow; both sides access it as a whole.
        unsafe { AtomicU32::from_ptr(self.at(at, 4).cast()) }
    }

    /// Loads a word; what the kernel wrote before it is seen after it.
    pub(super) fn load(&self, at: usize) -> u32 {
        self.word(at).load(Ordering::Acquire)
    }

    /// Stores a word; what was read and written before it is done before the kernel sees it.
    pub(super) fn store(&self, at: usize, value: u32) {
        self.word(at).store(value, Ordering::Release);
    }

    /// Lends bytes.
    ///
    /// # Safety
    /// They are ours until the borrow ends: the kernel was not, or not yet, told that it may write them.
    pub(super) unsafe fn lend(&mut self, at: usize, len: usize) -> &mut [u8] {
        let start = self.at(at, len);
        // SAFETY: the range lies in the mapping; nobody else accesses it, as the caller vouches for the kernel
        // and the exclusive borrow for us.
        unsafe { std::slice::from_raw_parts_mut(start, len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nothing borrowed from the mapping outlives it.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
