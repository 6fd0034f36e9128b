//! `/dev/xen/gntdev`: mapping granted pages and copying to and from them.
//!
//! Numbers and layouts are those of Linux' `include/uapi/xen/gntdev.h` (`/usr/include/xen/gntdev.h`), pinned
//! by assertions here and compared with the header by a test.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use drayage_shared::{SharedBytes, SharedPage, Span};
use drayage_wire::PAGE_SIZE;
use drayage_wire::ring::SharedWords;

use super::{Access, By, CopyOp, DomainId, GNTST_GENERAL_ERROR, GrantRef, PageAccess};

/// The device file.
pub(super) const PATH: &str = "/dev/xen/gntdev";

/// `_IOC(_IOC_NONE, 'G', nr, size)`.
const fn ioc(nr: u64, size: usize) -> u64 {
    ((size as u64) << 16) | ((b'G' as u64) << 8) | nr
}

#[repr(C)]
struct MapGrantRef {
    count: u32,
    pad: u32,
    index: u64,
    domain: u32,
    grant: u32,
}

#[repr(C)]
struct UnmapGrantRef {
    index: u64,
    count: u32,
    pad: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Foreign {
    grant: u32,
    offset: u16,
    domain: u16,
}

#[repr(C)]
#[derive(Clone, Copy)]
union End {
    local: *mut u8,
    foreign: Foreign,
}

/// `struct gntdev_grant_copy_segment`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Segment {
    source: End,
    dest: End,
    len: u16,
    flags: u16,
    status: i16,
}

#[repr(C)]
struct GrantCopy {
    count: u32,
    segments: *mut Segment,
}

/// `IOCTL_GNTDEV_MAP_GRANT_REF`.
pub const MAP_GRANT_REF: u64 = ioc(0, size_of::<MapGrantRef>());
/// `IOCTL_GNTDEV_UNMAP_GRANT_REF`.
pub const UNMAP_GRANT_REF: u64 = ioc(1, size_of::<UnmapGrantRef>());
/// `IOCTL_GNTDEV_GRANT_COPY`.
pub const GRANT_COPY: u64 = ioc(8, size_of::<GrantCopy>());
/// `GNTCOPY_source_gref` (`xen/include/public/grant_table.h`).
pub const SOURCE_GREF: u16 = 1 << 0;
/// `GNTCOPY_dest_gref`.
pub const DEST_GREF: u16 = 1 << 1;

const _: () = {
    assert!(size_of::<MapGrantRef>() == 24);
    assert!(size_of::<UnmapGrantRef>() == 16);
    assert!(size_of::<Segment>() == 24);
    assert!(size_of::<GrantCopy>() == 16);
};

/// Returns where the fields of the structures lie, each as `(name in the header, offset, bytes)`, and the size of
/// each as `(name, size, 0)`, so that a test outside can compare them with the header.
#[doc(hidden)]
pub fn layout() -> Vec<(&'static str, usize, usize)> {
    use std::mem::offset_of;
    vec![
        ("ioctl_gntdev_map_grant_ref", size_of::<MapGrantRef>(), 0),
        ("ioctl_gntdev_map_grant_ref.count", offset_of!(MapGrantRef, count), 4),
        ("ioctl_gntdev_map_grant_ref.index", offset_of!(MapGrantRef, index), 8),
        ("ioctl_gntdev_map_grant_ref.refs[0].domid", offset_of!(MapGrantRef, domain), 4),
        ("ioctl_gntdev_map_grant_ref.refs[0].ref", offset_of!(MapGrantRef, grant), 4),
        ("ioctl_gntdev_unmap_grant_ref", size_of::<UnmapGrantRef>(), 0),
        ("ioctl_gntdev_unmap_grant_ref.index", offset_of!(UnmapGrantRef, index), 8),
        ("ioctl_gntdev_unmap_grant_ref.count", offset_of!(UnmapGrantRef, count), 4),
        ("ioctl_gntdev_grant_copy", size_of::<GrantCopy>(), 0),
        ("ioctl_gntdev_grant_copy.count", offset_of!(GrantCopy, count), 4),
        ("ioctl_gntdev_grant_copy.segments", offset_of!(GrantCopy, segments), 8),
        ("gntdev_grant_copy_segment", size_of::<Segment>(), 0),
        ("gntdev_grant_copy_segment.source.virt", offset_of!(Segment, source), 8),
        ("gntdev_grant_copy_segment.source.foreign.ref", offset_of!(Segment, source.foreign.grant), 4),
        ("gntdev_grant_copy_segment.source.foreign.offset", offset_of!(Segment, source.foreign.offset), 2),
        ("gntdev_grant_copy_segment.source.foreign.domid", offset_of!(Segment, source.foreign.domain), 2),
        ("gntdev_grant_copy_segment.dest.virt", offset_of!(Segment, dest), 8),
        ("gntdev_grant_copy_segment.dest.foreign.ref", offset_of!(Segment, dest.foreign.grant), 4),
        ("gntdev_grant_copy_segment.dest.foreign.offset", offset_of!(Segment, dest.foreign.offset), 2),
        ("gntdev_grant_copy_segment.dest.foreign.domid", offset_of!(Segment, dest.foreign.domain), 2),
        ("gntdev_grant_copy_segment.len", offset_of!(Segment, len), 2),
        ("gntdev_grant_copy_segment.flags", offset_of!(Segment, flags), 2),
        ("gntdev_grant_copy_segment.status", offset_of!(Segment, status), 2),
    ]
}

/// The open device, and room for the segments of a batch.
#[derive(Debug)]
pub(super) struct Gntdev {
    file: Arc<File>,
    segments: Segments,
}

/// The array that the kernel reads. Its pointers are only valid during the call that filled it.
struct Segments(Vec<Segment>);

// SAFETY: between calls the pointers in the array are never followed.
unsafe impl Send for Segments {}

impl std::fmt::Debug for Segments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Segments").field("capacity", &self.0.capacity()).finish()
    }
}

/// Which way a batch goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    ToGuests,
    FromGuests,
}

impl Gntdev {
    pub(super) fn open(batch: usize) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(PATH)?;
        Ok(Self { file: Arc::new(file), segments: Segments(Vec::with_capacity(batch)) })
    }

    pub(super) fn map(&self, domain: DomainId, grant: GrantRef, access: Access) -> io::Result<MappedPage> {
        let mut request =
            MapGrantRef { count: 1, pad: 0, index: 0, domain: u32::from(domain.0), grant: grant.0 };
        // SAFETY: the request is a live `struct ioctl_gntdev_map_grant_ref` for one reference.
        let rc = unsafe { libc::ioctl(self.file.as_raw_fd(), MAP_GRANT_REF as _, &raw mut request) };
        if rc != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut page = MappedPage { file: self.file.clone(), index: request.index, at: None };
        let prot = match access {
            Access::ReadOnly => libc::PROT_READ,
            Access::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        };
        let offset = request.index as libc::off_t;
        // SAFETY: a mapping at an address of the kernel's choice replaces nothing.
        let at = unsafe {
            libc::mmap(std::ptr::null_mut(), PAGE_SIZE, prot, libc::MAP_SHARED, self.file.as_raw_fd(), offset)
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let at = NonNull::new(at.cast::<u8>()).ok_or(io::ErrorKind::InvalidData)?;
        // SAFETY: the page was just mapped, page-aligned; it stays so until `drop`, which drops this value with
        // it, and nothing else knows the address. It can be written unless it was mapped read-only: then it is
        // no ring, so nobody stores words, and `copy_in` refuses.
        let words = unsafe { SharedPage::new(at) };
        // SAFETY: as above. A page is used either as words, for a ring, or as bytes, for data.
        let bytes = unsafe { SharedBytes::new(at, PAGE_SIZE) };
        page.at = Some(Mapped { at, words, bytes, access });
        Ok(page)
    }

    pub(super) fn copy_to(&mut self, local: [&[u8]; 2], ops: &mut [CopyOp]) {
        // The kernel only reads through this pointer: the local end is each segment's source.
        self.copy(|op| op.bytes(local).map(|bytes| bytes.as_ptr().cast_mut()), ops, Way::ToGuests);
    }

    pub(super) fn copy_from(&mut self, local: &mut [u8], ops: &mut [CopyOp]) {
        let (start, len) = (local.as_mut_ptr(), local.len());
        self.copy(|op| op.range(len).map(|range| start.wrapping_add(range.start)), ops, Way::FromGuests);
    }

    /// `local` says where in memory an operation's private end is, `None` where not all of it is inside.
    fn copy(&mut self, local: impl Fn(&CopyOp) -> Option<*mut u8>, ops: &mut [CopyOp], way: Way) {
        let segments = &mut self.segments.0;
        segments.clear();
        for op in &mut *ops {
            if op.by != By::Grant {
                continue;
            }
            // An operation out of bounds would be this program's own mistake: it becomes an empty one.
            let (at, len) = local(op).map_or((std::ptr::null_mut(), 0), |at| (at, op.len));
            let inside = End { local: at };
            let foreign =
                End { foreign: Foreign { grant: op.grant.0, offset: op.offset, domain: op.domain.0 } };
            segments.push(match way {
                Way::ToGuests => Segment { source: inside, dest: foreign, len, flags: DEST_GREF, status: 0 },
                Way::FromGuests => {
                    Segment { source: foreign, dest: inside, len, flags: SOURCE_GREF, status: 0 }
                }
            });
        }
        if segments.is_empty() {
            return;
        }
        let mut request = GrantCopy { count: segments.len() as u32, segments: segments.as_mut_ptr() };
        // SAFETY: the array has `count` initialised segments and outlives the call. Every local end is empty,
        // or lies within memory that the caller has borrowed for the call: shared where the kernel reads (`copy_to`),
        // exclusively where it writes (`copy_from`).
        let rc = unsafe { libc::ioctl(self.file.as_raw_fd(), GRANT_COPY as _, &raw mut request) };
        for (op, segment) in ops.iter_mut().filter(|op| op.by == By::Grant).zip(&*segments) {
            let good = rc == 0 && local(op).is_some();
            op.status = if good { segment.status } else { GNTST_GENERAL_ERROR };
        }
    }
}

/// A page of another domain, mapped until it is dropped.
#[derive(Debug)]
pub struct MappedPage {
    file: Arc<File>,
    index: u64,
    at: Option<Mapped>,
}

/// Where a page is, and how it is reached.
#[derive(Debug)]
struct Mapped {
    at: NonNull<u8>,
    words: SharedPage,
    bytes: SharedBytes,
    access: Access,
}

// SAFETY: the address is only used through `SharedPage` and `SharedBytes`, which may be used from whichever
// thread owns them.
unsafe impl Send for MappedPage {}

impl SharedWords for MappedPage {
    fn load(&self, word: usize, order: Ordering) -> u32 {
        self.at.as_ref().map_or(0, |page| page.words.load(word, order))
    }

    fn store(&self, word: usize, value: u32, order: Ordering) {
        if let Some(page) = &self.at
            && page.access == Access::ReadWrite
        {
            page.words.store(word, value, order);
        }
    }

    fn full_fence(&self) {
        std::sync::atomic::fence(Ordering::SeqCst);
    }
}

impl PageAccess for MappedPage {
    fn copy_in(&self, offset: usize, bytes: &[u8]) -> bool {
        self.at
            .as_ref()
            .is_some_and(|page| page.access == Access::ReadWrite && page.bytes.copy_in(offset, bytes).is_ok())
    }

    fn copy_out(&self, offset: usize, into: &mut [u8]) -> bool {
        self.at.as_ref().is_some_and(|page| page.bytes.copy_out(offset, into).is_ok())
    }

    fn span(&self, offset: usize, len: usize) -> Option<Span<'_>> {
        self.at.as_ref()?.bytes.span(offset, len).ok()
    }

    fn copy_across(&self, offset: usize, to: &Self, at: usize, len: usize) -> bool {
        let (Some(from), Some(to)) = (&self.at, &to.at) else { return false };
        to.access == Access::ReadWrite && from.bytes.copy_across(offset, &to.bytes, at, len).is_ok()
    }
}

impl Drop for MappedPage {
    fn drop(&mut self) {
        if let Some(Mapped { at, .. }) = self.at.take() {
            // SAFETY: the range is the one that `map` mapped, and its only users were just taken.
            unsafe { libc::munmap(at.as_ptr().cast(), PAGE_SIZE) };
        }
        let mut request = UnmapGrantRef { index: self.index, count: 1, pad: 0 };
        // SAFETY: the request is a live `struct ioctl_gntdev_unmap_grant_ref`. Nothing can be done about an
        // error: the kernel then keeps the page until the file is closed.
        unsafe { libc::ioctl(self.file.as_raw_fd(), UNMAP_GRANT_REF as _, &raw mut request) };
    }
}
