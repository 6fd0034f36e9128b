//! Page tables: one walk for both kinds of machine. Under PVH and without Xen they are ours, and tables lie
//! where their entries say. Under PV the entries hold machine frames, tables are read-only, and every change is
//! a request to Xen. Memory is mapped at its own (pseudo-physical) address in all cases.

use core::fmt;
use core::ptr::NonNull;

use drayage_entry::{BootInfo, PAGE_BYTES, Platform, Range};
use spin::Once;
use volatile::VolatilePtr;
use x86_64::VirtAddr;
use x86_64::instructions::tlb;
use x86_64::registers::control::Cr3;

use super::pages::Pages;
use super::window;
use crate::hypercall::{self, MmuUpdate, XenError};

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
/// A PV kernel runs in ring 3: its pages need the user bit, and Xen sets it where it is missing.
const USER: u64 = 1 << 2;
const UNCACHED: u64 = 1 << 4;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const FRAME_MASK: u64 = 0x000f_ffff_ffff_f000;

const ENTRIES: u64 = 512;
/// What one entry of a level maps: index 1 is the lowest level.
const LEVEL_BYTES: [u64; 5] = [0, 1 << 12, 1 << 21, 1 << 30, 1 << 39];

/// Where Xen maps its machine-to-pseudo-physical table for a PV guest (public/arch-x86/xen-x86_64.h).
const MACHINE_TO_PHYS: usize = 0xffff_8000_0000_0000;

/// A frame number as page tables and grants want it: a machine frame under PV, else the guest's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame(pub(crate) u64);

/// What a mapping allows. Code is never mapped after the boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Memory, or a page of Xen's that is memory: always cached.
    ReadWrite,
    /// A device's registers.
    Device,
}

/// Why a mapping was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MapError {
    /// No page is free for a page table or a pool.
    NoMemory,
    /// The window has no addresses left.
    NoAddresses,
    /// A page that should be mapped is not.
    NotMapped,
    /// A pool of no pages, or with a mirror longer than itself.
    BadSize,
    /// Xen refused.
    Refused(XenError),
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMemory => f.write_str("no page is free"),
            Self::NoAddresses => f.write_str("no addresses are left in the window"),
            Self::NotMapped => f.write_str("a page that should be mapped is not"),
            Self::BadSize => f.write_str("a pool needs pages, and its mirror may not be longer than itself"),
            Self::Refused(error) => write!(f, "a mapping was refused: {error}"),
        }
    }
}

impl From<XenError> for MapError {
    fn from(error: XenError) -> Self {
        Self::Refused(error)
    }
}

/// Who writes the tables.
#[derive(Clone, Copy, Debug)]
enum Tables {
    /// We do; the root is at this address.
    Own { root: u64 },
    /// Xen does.
    Pv { root: u64, root_machine: u64, frame_list: usize },
}

static TABLES: Once<Tables> = Once::new();

/// An entry that was found: where to read it, where to tell Xen that it is, and how high up.
#[derive(Clone, Copy)]
struct Slot {
    address: u64,
    machine: u64,
    level: usize,
}

/// Takes over the tables that are in use.
pub(super) fn start(boot: &BootInfo) -> Result<(), MapError> {
    TABLES.call_once(|| match boot.pv {
        Some(pv) => {
            let frame_list = pv.frame_list as usize;
            let root_machine = machine_frame(frame_list, pv.page_tables) * PAGE_BYTES;
            Tables::Pv { root: pv.page_tables, root_machine, frame_list }
        }
        None => Tables::Own { root: Cr3::read_raw().0.start_address().as_u64() },
    });
    window::start();
    Ok(())
}

/// Makes memory at its own address readable, writable and not executable, if it is not yet. The range lies in
/// one chunk that a lowest-level table maps.
pub(super) fn map_ram(range: Range) -> Result<(), MapError> {
    match tables()? {
        Tables::Own { .. } => {
            // The entry code mapped what is below 4 GiB, and protect_image cares for what is not to be executed.
            if slot(range.start, 1)?.is_some() {
                return Ok(());
            }
            let large = range.start & !(LEVEL_BYTES[2] - 1);
            let slot = make_slot(large, 2)?;
            let entry = large | PRESENT | WRITABLE | ACCESSED | DIRTY | LARGE | NO_EXECUTE;
            // SAFETY: this maps memory that was not mapped, at its own address.
            unsafe { write(slot, large, entry) }
        }
        Tables::Pv { frame_list, .. } => {
            if slot(range.start, 1)?.is_none() {
                return map_new_table(range, frame_list);
            }
            // The builder's last table, or one of ours: fill what is missing, page by page.
            for address in (range.start..range.end).step_by(PAGE_BYTES as usize) {
                if frame_of(address).is_none() {
                    let frame = Frame(machine_frame(frame_list, address));
                    // SAFETY: this maps memory that was not mapped, at its own address.
                    unsafe { map(address, frame, Access::ReadWrite) }?;
                }
            }
            Ok(())
        }
    }
}

/// Maps a chunk of PV memory by one new table: filled first, then made read-only, then hooked in, so that Xen
/// checks it once.
fn map_new_table(range: Range, frame_list: usize) -> Result<(), MapError> {
    let table = Pages::allocate_lowest().ok_or(MapError::NoMemory)?.leak();
    for address in (range.start..range.end).step_by(PAGE_BYTES as usize) {
        let index = address / PAGE_BYTES % ENTRIES;
        let entry = (machine_frame(frame_list, address) * PAGE_BYTES) | flags(Access::ReadWrite);
        // SAFETY: the page is ours, writable, and the index is below 512.
        unsafe { entry_at(table + index * 8) }.write(entry);
    }
    hook_table(table, make_slot(range.start, 2)?, range.start)
}

/// Puts an ordinary, zeroed or filled, page into the tree as a table.
fn hook_table(table: u64, slot: Slot, address: u64) -> Result<(), MapError> {
    let frame = frame_of(table).ok_or(MapError::NotMapped)?;
    if matches!(tables()?, Tables::Pv { .. }) {
        // SAFETY: nothing but the walk uses the page from now on, and that only reads.
        unsafe { write_leaf(table, (frame.0 * PAGE_BYTES) | (flags(Access::ReadWrite) & !WRITABLE)) }?;
    }
    let entry = (frame.0 * PAGE_BYTES) | PRESENT | WRITABLE | USER | ACCESSED;
    // SAFETY: the slot was empty, and all that the table maps is memory at its own address, or nothing yet.
    unsafe { write(slot, address, entry) }
}

/// Takes the write permission from the image's code and constants, the execute permission from everything but
/// its code, and the mapping from page 0 and the page below the stack.
pub(super) fn protect_image(boot: &BootInfo) -> Result<(), MapError> {
    let image = super::image();
    match tables()? {
        Tables::Own { .. } => {
            let mut last = None;
            for large in (0..4 * LEVEL_BYTES[3]).step_by(LEVEL_BYTES[2] as usize) {
                let slot = slot_behind(last, large, 2)?.ok_or(MapError::NotMapped)?;
                last = Some(slot);
                if large < image.end {
                    split(slot, large)?;
                } else {
                    let is_used = is_used(boot, Range::new(large, large + LEVEL_BYTES[2]));
                    let entry = if is_used { read(slot.address) | NO_EXECUTE } else { 0 };
                    // SAFETY: our table is writable; nothing above the image is code, and nobody uses what is
                    // unmapped.
                    unsafe { entry_at(slot.address) }.write(entry);
                }
            }
            let end = image.end.next_multiple_of(LEVEL_BYTES[2]);
            last = None;
            for address in (0..end).step_by(PAGE_BYTES as usize) {
                let slot = slot_behind(last, address, 1)?.ok_or(MapError::NotMapped)?;
                last = Some(slot);
                let entry = protected(address, read(slot.address));
                // SAFETY: our table is writable; `protected` only takes permissions that the image does not use.
                unsafe { entry_at(slot.address) }.write(entry);
            }
            tlb::flush_all();
            Ok(())
        }
        Tables::Pv { .. } => {
            // What the builder mapped is contiguous from 0, and ends at or behind its last page.
            let taken_end = boot.taken.iter().last().map_or(image.end, |range| range.end.max(image.end));
            let mut batch = Batch::default();
            let mut last = None;
            for address in (0..).step_by(PAGE_BYTES as usize) {
                last = slot_behind(last, address, 1)?;
                let found = last.filter(|slot| read(slot.address) & PRESENT != 0);
                if let Some(slot) = found {
                    // SAFETY: `protected` only takes permissions that nothing uses.
                    unsafe { batch.push(slot, protected(address, read(slot.address))) }?;
                } else if address >= taken_end {
                    break;
                }
            }
            // SAFETY: as above.
            unsafe { batch.send() }?;
            hypercall::flush_tlb()?;
            Ok(())
        }
    }
}

/// Tells whether there is anything at a range of physical addresses: memory, a shared page, or, without Xen,
/// devices.
fn is_used(boot: &BootInfo, range: Range) -> bool {
    let overlaps = |start: u64, end: u64| start < range.end && end > range.start;
    let shared = [boot.console, boot.store].into_iter().flatten();
    boot.platform == Platform::NoXen
        || boot.ram.iter().any(|ram| overlaps(ram.start, ram.end))
        || shared.map(|channel| channel.page).any(|page| overlaps(page, page + PAGE_BYTES))
}

/// Returns what a page's entry should be once the image is protected.
fn protected(address: u64, entry: u64) -> u64 {
    let inside = |range: Range| (range.start..range.end).contains(&address);
    if address == 0 || inside(super::stack_guard()) {
        0
    } else if inside(super::text()) {
        entry & !WRITABLE
    } else if inside(super::rodata()) {
        entry & !WRITABLE | NO_EXECUTE
    } else {
        entry | NO_EXECUTE
    }
}

/// Replaces a large page of ours by a table of small ones that maps the same.
fn split(large: Slot, address: u64) -> Result<(), MapError> {
    let old = read(large.address);
    if large.level != 2 || old & LARGE == 0 {
        return Ok(());
    }
    let table = Pages::allocate_lowest().ok_or(MapError::NoMemory)?.leak();
    for index in 0..ENTRIES {
        let page = (old & FRAME_MASK) + index * PAGE_BYTES;
        let entry = page | (old & !FRAME_MASK & !LARGE);
        // SAFETY: the page is ours, writable, and the index is below 512.
        unsafe { entry_at(table + index * 8) }.write(entry);
    }
    // SAFETY: the new table maps what the large page did.
    unsafe { write(large, address, table | PRESENT | WRITABLE | ACCESSED) }
}

/// Maps a frame at an address, in place of what was there.
///
/// # Safety
/// Nothing may use what was mapped there, and whoever uses the frame must bear another mapping of it.
pub(crate) unsafe fn map(address: u64, frame: Frame, access: Access) -> Result<(), MapError> {
    let slot = make_slot(address, 1)?;
    let entry = (frame.0 * PAGE_BYTES) | flags(access);
    match tables()? {
        // SAFETY: our caller vouches for the address and the frame.
        Tables::Own { .. } => unsafe { write(slot, address, entry) },
        // SAFETY: as above.
        Tables::Pv { .. } => unsafe { write_leaf(address, entry) },
    }
}

/// Maps `count` pages of memory in a row once more, at other addresses in a row.
///
/// # Safety
/// Nothing may be mapped at those addresses, and whoever uses the memory must bear another mapping of it.
pub(crate) unsafe fn map_again(address: u64, memory: u64, count: usize) -> Result<(), MapError> {
    let mut batch = Batch::default();
    let (mut to, mut from) = (None, None);
    for offset in (0..count as u64 * PAGE_BYTES).step_by(PAGE_BYTES as usize) {
        let slot = match slot_behind(to, address + offset, 1)? {
            Some(slot) if slot.level == 1 => slot,
            _ => make_slot(address + offset, 1)?,
        };
        to = Some(slot);
        match tables()? {
            Tables::Own { .. } => {
                let entry = (memory + offset) | flags(Access::ReadWrite);
                // SAFETY: our table is writable; our caller vouches for the address and the memory.
                unsafe { entry_at(slot.address) }.write(entry);
            }
            Tables::Pv { .. } => {
                from = slot_behind(from, memory + offset, 1)?;
                let old = from.map(|slot| read(slot.address)).filter(|entry| entry & PRESENT != 0);
                let frame = old.ok_or(MapError::NotMapped)? & FRAME_MASK;
                // SAFETY: our caller vouches for the address and the memory.
                unsafe { batch.push(slot, frame | flags(Access::ReadWrite)) }?;
            }
        }
    }
    // SAFETY: as above.
    unsafe { batch.send() }
}

/// Takes the mapping of a page away.
///
/// # Safety
/// Nothing may use the address any more.
pub(crate) unsafe fn unmap(address: u64) -> Result<(), MapError> {
    let Some(slot) = slot(address, 1)?.filter(|slot| slot.level == 1) else { return Ok(()) };
    match tables()? {
        // SAFETY: our caller vouches for the address.
        Tables::Own { .. } => unsafe { write(slot, address, 0) },
        // SAFETY: as above.
        Tables::Pv { .. } => unsafe { write_leaf(address, 0) },
    }
}

/// Returns the frame that an address is mapped to: a page table's or a grant's name for the page.
pub(crate) fn frame_of(address: u64) -> Option<Frame> {
    let slot = slot(address, 1).ok()??;
    let entry = read(slot.address);
    let offset = address & (LEVEL_BYTES[slot.level] - 1);
    (entry & PRESENT != 0).then_some(Frame(((entry & FRAME_MASK) + offset) / PAGE_BYTES))
}

fn tables() -> Result<Tables, MapError> {
    TABLES.get().copied().ok_or(MapError::NotMapped)
}

fn flags(access: Access) -> u64 {
    let common = PRESENT | WRITABLE | ACCESSED | DIRTY | NO_EXECUTE;
    match (access, TABLES.get()) {
        (Access::Device, _) => common | UNCACHED,
        (Access::ReadWrite, Some(Tables::Pv { .. })) => common | USER,
        (Access::ReadWrite, _) => common,
    }
}

/// Finds the entry of the wanted level for an address, or that of a large page above it. `None` when a table is
/// missing on the way.
fn slot(address: u64, wanted: usize) -> Result<Option<Slot>, MapError> {
    let (mut table, mut machine) = match tables()? {
        Tables::Own { root } => (root, root),
        Tables::Pv { root, root_machine, .. } => (root, root_machine),
    };
    for level in (wanted..=4).rev() {
        let offset = address / LEVEL_BYTES[level] % ENTRIES * 8;
        let slot = Slot { address: table + offset, machine: machine + offset, level };
        let entry = read(slot.address);
        if level == wanted || entry & PRESENT != 0 && entry & LARGE != 0 {
            return Ok(Some(slot));
        }
        if entry & PRESENT == 0 {
            return Ok(None);
        }
        machine = entry & FRAME_MASK;
        table = table_address(machine)?;
    }
    Ok(None)
}

/// Finds the entry of the wanted level for an address, given that of the page before it: the next one, unless a
/// new table begins.
fn slot_behind(previous: Option<Slot>, address: u64, wanted: usize) -> Result<Option<Slot>, MapError> {
    match previous {
        Some(Slot { address: entry, machine, level })
            if level == wanted && !address.is_multiple_of(LEVEL_BYTES[level + 1]) =>
        {
            Ok(Some(Slot { address: entry + 8, machine: machine + 8, level }))
        }
        _ => slot(address, wanted),
    }
}

/// Changes of entries that Xen is told of many at a time (PV).
struct Batch {
    updates: [MmuUpdate; 64],
    count: usize,
}

impl Default for Batch {
    fn default() -> Self {
        Self { updates: [MmuUpdate::default(); 64], count: 0 }
    }
}

impl Batch {
    /// Adds a change.
    ///
    /// # Safety
    /// It must be sound.
    unsafe fn push(&mut self, slot: Slot, value: u64) -> Result<(), MapError> {
        self.updates[self.count] = MmuUpdate { entry: slot.machine, value };
        self.count += 1;
        if self.count == self.updates.len() {
            // SAFETY: our caller vouches for each change.
            unsafe { self.send() }?;
        }
        Ok(())
    }

    /// Makes the changes.
    ///
    /// # Safety
    /// As for [`Batch::push`].
    unsafe fn send(&mut self) -> Result<(), MapError> {
        if self.count > 0 {
            // SAFETY: our caller vouches for the changes.
            unsafe { hypercall::mmu_update(&self.updates[..self.count]) }?;
            self.count = 0;
        }
        Ok(())
    }
}

/// Finds the entry of the wanted level for an address, and makes the tables that are missing on the way.
fn make_slot(address: u64, wanted: usize) -> Result<Slot, MapError> {
    for level in (wanted + 1..=4).rev() {
        let parent = slot(address, level)?.ok_or(MapError::NotMapped)?;
        if read(parent.address) & PRESENT == 0 {
            let table = Pages::allocate_lowest().ok_or(MapError::NoMemory)?.leak();
            hook_table(table, parent, address)?;
        }
    }
    slot(address, wanted)?.ok_or(MapError::NotMapped)
}

/// Returns where a table lies that an entry refers to.
fn table_address(machine: u64) -> Result<u64, MapError> {
    match tables()? {
        Tables::Own { .. } => Ok(machine),
        Tables::Pv { .. } => {
            let list = core::ptr::with_exposed_provenance::<u64>(MACHINE_TO_PHYS);
            // SAFETY: the list has an entry for every frame of the host.
            let entry = unsafe { list.add((machine / PAGE_BYTES) as usize) };
            // SAFETY: Xen maps the list readable into every PV guest.
            Ok(unsafe { entry.read_volatile() } * PAGE_BYTES)
        }
    }
}

/// Returns the machine frame of a page of ours, from the builder's list.
fn machine_frame(frame_list: usize, address: u64) -> u64 {
    let list = core::ptr::with_exposed_provenance::<u64>(frame_list);
    // SAFETY: callers ask for memory that the boot information lists, which is what the list covers.
    let entry = unsafe { list.add((address / PAGE_BYTES) as usize) };
    // SAFETY: as above; the list is mapped until the memory behind it is reclaimed, which is the last thing
    // that is done with it.
    unsafe { entry.read_volatile() }
}

/// Returns the entry of a table that lies at an address. It is volatile: the processor reads it, and marks it
/// as accessed and dirty, whenever it likes.
///
/// # Safety
/// A table must be mapped there for good. Page 0 holds none.
unsafe fn entry_at(address: u64) -> VolatilePtr<'static, u64> {
    let entry = core::ptr::with_exposed_provenance_mut(address as usize);
    // SAFETY: the caller's table is not in page 0.
    let entry = unsafe { NonNull::new_unchecked(entry) };
    // SAFETY: the caller vouches for the table, and entries lie at multiples of their size.
    unsafe { VolatilePtr::new(entry) }
}

/// Reads an entry, wherever it is in the tree.
fn read(entry: u64) -> u64 {
    // SAFETY: the walk only makes addresses of entries in tables that are mapped at their own address.
    unsafe { entry_at(entry) }.read()
}

/// Writes an entry and drops `address` from the TLB.
///
/// # Safety
/// The change of the mapping must be sound.
unsafe fn write(slot: Slot, address: u64, entry: u64) -> Result<(), MapError> {
    match tables()? {
        Tables::Own { .. } => {
            // SAFETY: our tables are writable; the caller vouches for the change.
            unsafe { entry_at(slot.address) }.write(entry);
            tlb::flush(VirtAddr::new_truncate(address));
        }
        Tables::Pv { .. } => {
            // SAFETY: the caller vouches for the change.
            unsafe { hypercall::mmu_update(&[MmuUpdate { entry: slot.machine, value: entry }]) }?;
        }
    }
    Ok(())
}

/// Writes the lowest-level entry of an address under PV, where Xen does the walk and the flush.
///
/// # Safety
/// The change of the mapping must be sound.
unsafe fn write_leaf(address: u64, entry: u64) -> Result<(), MapError> {
    // SAFETY: our caller vouches for the change.
    unsafe { hypercall::update_va_mapping(address, entry) }?;
    Ok(())
}
