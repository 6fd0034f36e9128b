//! The grant table, version 1 (public/grant_table.h): which pages another domain may use. It starts with one
//! frame and grows by one as references run out. Granting again and revoking allocate nothing and call nobody.

use alloc::vec;
use core::fmt;
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicUsize, Ordering, fence};

use drayage_entry::{PAGE_BYTES, Platform};
use drayage_kernel::grant_refs::GrantRefs;
use spin::Mutex;

use crate::hypercall::{self, PhysmapSpace, XenError};
use crate::memory::pages::Pages;
use crate::memory::paging::{self, Access as MapAccess};
use crate::memory::{Frame, MapError, window};

/// `struct grant_entry_v1`.
#[repr(C)]
struct Entry {
    flags: AtomicU16,
    domain: AtomicU16,
    frame: AtomicU32,
}

const _: () = assert!(size_of::<Entry>() == 8);

const ENTRIES_PER_FRAME: u32 = (PAGE_BYTES / 8) as u32;
/// Frames that are asked for at most, whatever Xen would allow: 32 768 references.
const MAX_FRAMES: u32 = 64;

const PERMIT_ACCESS: u16 = 1;
const READ_ONLY: u16 = 1 << 2;
/// The other domain reads, or writes: it has the page mapped, or copies just now.
const IN_USE: u16 = (1 << 3) | (1 << 4);

/// What the other domain may do with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GrantAccess {
    /// Only read it.
    ReadOnly,
    /// Read and write it.
    ReadWrite,
}

/// Why nothing was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GrantError {
    /// There is no grant table: no Xen.
    NoTable,
    /// The table is full and may not grow.
    NoReferences,
    /// A frame number that version 1 of the table cannot express.
    FrameTooHigh(u64),
    /// The table could not be mapped.
    Map(MapError),
    /// Xen refused.
    Refused(XenError),
}

impl fmt::Display for GrantError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTable => f.write_str("there is no grant table"),
            Self::NoReferences => f.write_str("the grant table is full"),
            Self::FrameTooHigh(frame) => write!(f, "frame {frame:#x} does not fit a grant entry"),
            Self::Map(error) => write!(f, "the grant table cannot be mapped: {error}"),
            Self::Refused(error) => write!(f, "the grant table cannot grow: {error}"),
        }
    }
}

/// The other domain still uses the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StillInUse;

struct Table {
    platform: Platform,
    /// Address of the entries, which are contiguous over all frames.
    address: u64,
    frames: u32,
    max_frames: u32,
    refs: GrantRefs,
}

static TABLE: Mutex<Option<Table>> = Mutex::new(None);

/// Where the mapped entries begin, and how many there are: for the data path, which takes no lock.
static ENTRIES: AtomicUsize = AtomicUsize::new(0);
static ENTRY_COUNT: AtomicU32 = AtomicU32::new(0);

/// Maps the first frame of the table.
///
/// # Errors
/// [`GrantError`]: without grants there are no devices.
pub(crate) fn start(platform: Platform) -> Result<(), GrantError> {
    let (_, max_frames) = hypercall::grant_query_size().map_err(GrantError::Refused)?;
    let max_frames = max_frames.min(MAX_FRAMES);
    let address = window::reserve(max_frames as usize).map_err(GrantError::Map)?;
    let mut table = Table { platform, address, frames: 0, max_frames, refs: GrantRefs::new() };
    table.grow()?;
    *TABLE.lock() = Some(table);
    Ok(())
}

/// Returns frames in use, frames allowed, and free references.
#[cfg(feature = "selftest")]
pub(crate) fn usage() -> Option<(u32, u32, usize)> {
    TABLE.lock().as_ref().map(|table| (table.frames, table.max_frames, table.refs.free_count()))
}

/// Grants a frame to a domain, and returns the reference.
///
/// # Errors
/// [`GrantError`]; nothing is then granted.
///
/// # Safety
/// The frame must be one whose contents the other domain may see, and change where it is granted for writing.
pub(crate) unsafe fn grant(domain: u16, frame: Frame, access: GrantAccess) -> Result<u32, GrantError> {
    let number = u32::try_from(frame.0).map_err(|_| GrantError::FrameTooHigh(frame.0))?;
    let mut table = TABLE.lock();
    let table = table.as_mut().ok_or(GrantError::NoTable)?;
    let reference = match table.refs.take() {
        Some(reference) => reference,
        None => {
            table.grow()?;
            table.refs.take().ok_or(GrantError::NoReferences)?
        }
    };
    let entry = entry(reference).ok_or(GrantError::NoReferences)?;
    entry.domain.store(domain, Ordering::Relaxed);
    entry.frame.store(number, Ordering::Relaxed);
    entry.permit(access);
    Ok(reference)
}

/// Grants the frame of a revoked reference again, to the same domain.
///
/// # Safety
/// The reference must be taken and revoked; else as for [`grant`].
#[inline]
pub(crate) unsafe fn regrant(reference: u32, access: GrantAccess) {
    if let Some(entry) = entry(reference) {
        entry.permit(access);
    }
}

/// Takes a frame back from the other domain; the reference stays taken.
///
/// # Errors
/// [`StillInUse`]: the frame stays granted.
#[inline]
pub(crate) fn revoke(reference: u32) -> Result<(), StillInUse> {
    entry(reference).map_or(Ok(()), Entry::revoke)
}

/// Revokes a grant if it is not revoked yet, and gives the reference back.
///
/// # Errors
/// [`StillInUse`]: the frame stays granted and the reference taken.
pub(crate) fn release(reference: u32) -> Result<(), StillInUse> {
    revoke(reference)?;
    if let Some(table) = &mut *TABLE.lock() {
        table.refs.give_back(reference);
    }
    Ok(())
}

/// Returns an entry of the table.
#[inline]
fn entry(reference: u32) -> Option<&'static Entry> {
    if reference >= ENTRY_COUNT.load(Ordering::Acquire) {
        return None;
    }
    let address = ENTRIES.load(Ordering::Relaxed) + reference as usize * size_of::<Entry>();
    let entry = core::ptr::with_exposed_provenance::<Entry>(address);
    // SAFETY: that many entries are mapped from there on, for good; all fields are atomics, so Xen may write at
    // any time.
    Some(unsafe { &*entry })
}

impl Entry {
    fn permit(&self, access: GrantAccess) {
        // The frame and what lies in it come first: flags make the entry valid.
        fence(Ordering::SeqCst);
        let flags = match access {
            GrantAccess::ReadOnly => PERMIT_ACCESS | READ_ONLY,
            GrantAccess::ReadWrite => PERMIT_ACCESS,
        };
        self.flags.store(flags, Ordering::Release);
    }

    fn revoke(&self) -> Result<(), StillInUse> {
        let mut flags = self.flags.load(Ordering::Acquire);
        loop {
            if flags & IN_USE != 0 {
                return Err(StillInUse);
            }
            // Xen sets the bits in use by compare-and-swap too, so one of the two wins.
            match self.flags.compare_exchange(flags, 0, Ordering::SeqCst, Ordering::Acquire) {
                Ok(_) => return Ok(()),
                Err(now) => flags = now,
            }
        }
    }
}

impl Table {
    /// Adds a frame to the table.
    fn grow(&mut self) -> Result<(), GrantError> {
        if self.frames >= self.max_frames {
            return Err(GrantError::NoReferences);
        }
        let frame = match self.platform {
            Platform::XenPv => {
                let mut list = vec![0; self.frames as usize + 1];
                hypercall::grant_setup_table(&mut list).map_err(GrantError::Refused)?;
                Frame(list[self.frames as usize])
            }
            Platform::XenPvh => {
                let page = Pages::allocate(1).ok_or(GrantError::Map(MapError::NoMemory))?.leak();
                let frame = page / PAGE_BYTES;
                // SAFETY: the page was just taken from the free ones and is never used as memory again: Xen
                // frees it and shows its own in its place.
                unsafe { hypercall::add_to_physmap(PhysmapSpace::GrantTable, self.frames.into(), frame) }
                    .map_err(GrantError::Refused)?;
                Frame(frame)
            }
            Platform::NoXen => return Err(GrantError::NoTable),
        };
        let address = self.address + u64::from(self.frames) * PAGE_BYTES;
        // SAFETY: the address was reserved for the table, and the frame is Xen's grant table.
        unsafe { paging::map(address, frame, MapAccess::ReadWrite) }.map_err(GrantError::Map)?;
        self.frames += 1;
        ENTRIES.store(self.address as usize, Ordering::Relaxed);
        ENTRY_COUNT.store(self.frames * ENTRIES_PER_FRAME, Ordering::Release);
        self.refs.grow_to(self.frames * ENTRIES_PER_FRAME);
        Ok(())
    }
}
