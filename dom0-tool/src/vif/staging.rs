//! Staged grants, the backend's side: a guest says over its control ring which of its pages are to be mapped
//! (netif.h, "Static Grants"), and what goes through those costs no grant operation.
//!
//! Each page is a mapping of its own: gntdev unmaps whole mappings only, and a guest may want any page back. A
//! list is worked off a few entries a pass, because a page takes two system calls; until all of an `ADD` is
//! mapped, none of it is used, and when an entry fails, all of it is undone. Everything that the guest wrote is
//! copied once and judged then. What is mapped is noted in a page that outlives the process, so that the next
//! backend maps it again; until it has, what is staged is copied as what is not. This module knows pages and
//! references, and no packets.

use std::sync::atomic::Ordering;

use drayage_wire::PAGE_SIZE;
use drayage_wire::control::{
    Control, GREF_READONLY, Gref, MAX_LIST_ENTRIES, Request, Response, kind, status,
};
use drayage_wire::ring::{BackRing, Overrun, SharedWords};

use super::Rings;
use super::counters::Counters;
use crate::memory::Pages;
use crate::xen::{Access, By, CopyOp, DomainId, EventPort, GNTST_OKAY, GrantRef, PageAccess, Xen};

/// Pages of one interface that are mapped at a time, at most: a receive and a send pool. With the most guests
/// that are served at a time, each page mapped twice in a PV dom0, that is all that Xen lets a domain map by
/// default (1024 frames of 256 maptrack entries).
pub const MAX_STAGED: usize = 512;
/// References that can be staged are below this: a grant table of 64 frames, Xen's default, has half as many.
const MAX_REFERENCE: usize = 1 << 16;
/// Entries of lists that one pass works off.
const ENTRIES_PER_PASS: usize = 16;
/// Marks a page of an `ADD` that is not done.
const PROVISIONAL: u16 = 1 << 15;
/// Marks a page that may only be read.
const READ_ONLY: u16 = 1 << 14;
/// The upper half of a ledger's first word, while the list after it is whole; the lower half is its length.
const LEDGER: u32 = 0x6772;
/// Marks a reference in a ledger whose page may only be read.
const LEDGER_READ_ONLY: u32 = 1 << 31;

/// The mapped pages of an interface, by reference.
#[derive(Debug)]
pub struct Table<P> {
    pages: Box<[Option<P>]>,
    free: Vec<u16>,
    /// For each reference 0, or the number of its page plus 1, and marks.
    places: Box<[u16]>,
}

/// Why an entry of a list is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Unfit;

impl<P> Table<P> {
    fn new() -> Self {
        Self {
            pages: (0..MAX_STAGED).map(|_| None).collect(),
            free: (0..MAX_STAGED as u16).rev().collect(),
            places: vec![0; MAX_REFERENCE].into_boxed_slice(),
        }
    }

    /// Returns how many pages are mapped.
    pub fn mapped(&self) -> usize {
        MAX_STAGED - self.free.len()
    }

    fn insert(&mut self, reference: u32, page: P, access: Access) -> Result<(), Unfit> {
        let place = self.places.get_mut(reference as usize).ok_or(Unfit)?;
        let number = self.free.pop().ok_or(Unfit)?;
        let mark = if access == Access::ReadOnly { READ_ONLY } else { 0 };
        *place = (number + 1) | PROVISIONAL | mark;
        self.pages[usize::from(number)] = Some(page);
        Ok(())
    }

    /// Returns whether a page of that reference could be inserted.
    fn has_room_for(&self, reference: u32) -> bool {
        self.places.get(reference as usize) == Some(&0) && !self.free.is_empty()
    }

    fn confirm(&mut self, reference: u32) {
        if let Some(place) = self.places.get_mut(reference as usize) {
            *place &= !PROVISIONAL;
        }
    }

    /// Unmaps a page. Returns whether it was mapped.
    fn remove(&mut self, reference: u32) -> bool {
        let Some(place) = self.places.get_mut(reference as usize) else { return false };
        let Some(number) = (std::mem::take(place) & !(PROVISIONAL | READ_ONLY)).checked_sub(1) else {
            return false;
        };
        self.pages[usize::from(number)] = None;
        self.free.push(number);
        true
    }

    /// Returns the references that are mapped, as a ledger has them.
    fn noted(&self) -> impl Iterator<Item = u32> {
        let mapped = (0..).zip(&self.places).filter(|(_, place)| **place != 0);
        mapped.map(
            |(reference, place)| {
                if place & READ_ONLY != 0 { reference | LEDGER_READ_ONLY } else { reference }
            },
        )
    }
}

impl<P: PageAccess> Table<P> {
    /// Returns a mapped page.
    pub fn find(&self, grant: GrantRef) -> Option<&P> {
        let place = *self.places.get(grant.0 as usize)?;
        if place & PROVISIONAL != 0 {
            return None;
        }
        self.pages[usize::from((place & !READ_ONLY).checked_sub(1)?)].as_ref()
    }

    /// Returns a page that is mapped for writing.
    pub fn find_writable(&self, grant: GrantRef) -> Option<&P> {
        let place = *self.places.get(grant.0 as usize)?;
        if place & READ_ONLY != 0 { None } else { self.find(grant) }
    }

    /// Does a copy into a guest's page, if the page is mapped for writing. `bytes` are what goes there.
    pub fn copy_in(&self, op: &mut CopyOp, bytes: &[u8]) {
        if let Some(page) = self.find(op.grant)
            && page.copy_in(usize::from(op.offset), bytes)
        {
            (op.by, op.status) = (By::Mapping, GNTST_OKAY);
        }
    }

    /// Does a copy out of a guest's page, if the page is mapped.
    pub fn copy_out(&self, op: &mut CopyOp, into: &mut [u8]) {
        if let Some(page) = self.find(op.grant)
            && page.copy_out(usize::from(op.offset), into)
        {
            (op.by, op.status) = (By::Mapping, GNTST_OKAY);
        }
    }
}

/// What is done with a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    Add,
    /// An entry could not be mapped: those before it are unmapped again.
    Undo,
    Remove,
}

/// A list that is being worked off.
#[derive(Clone, Copy, Debug)]
struct Job {
    request: Request,
    task: Task,
    entries: usize,
    /// Entries that are done; of `Undo`, entries that are still mapped.
    next: usize,
    unmapped: u32,
}

/// What a pass left on the control ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing: an event says when there is more.
    Nothing,
    /// Something for the next pass.
    Some,
}

/// The control ring of an interface, and the pages that are mapped.
#[derive(Debug)]
pub struct Staging<P> {
    ring: BackRing<Control, P>,
    domain: DomainId,
    /// Our end of its event channel.
    pub event: EventPort,
    /// Whether the ring is to be looked at in the next pass.
    pub ready: bool,
    /// Whether an event is to be sent at the end of the pass.
    pub notify: bool,
    /// What is mapped.
    pub table: Table<P>,
    list: Pages,
    job: Option<Job>,
    /// A page of our own in which the next backend finds what is mapped; valid while no list is worked off.
    ledger: Option<P>,
    /// Whether the ledger is behind the table.
    stale: bool,
    /// How much of the ledger is mapped again, until all of it is.
    restored: Option<usize>,
}

impl<P: SharedWords> Staging<P> {
    /// Attaches to the guest's ring. What an earlier backend noted in `ledger` is mapped again, if the ring was
    /// taken over from it.
    pub fn new(page: P, domain: DomainId, event: EventPort, ledger: Option<P>, rings: Rings) -> Self {
        let taken_over = rings == Rings::TakenOver;
        Self {
            ring: BackRing::attach(page),
            domain,
            event,
            ready: true,
            // An earlier backend may have published an answer and not said so any more.
            notify: taken_over,
            table: Table::new(),
            list: Pages::new(PAGE_SIZE),
            job: None,
            stale: !taken_over,
            restored: (taken_over && ledger.is_some()).then_some(0),
            ledger,
        }
    }

    /// Answers requests, a bounded part of them.
    ///
    /// # Errors
    /// [`Overrun`]: the ring is not to be used any more.
    pub fn work<X: Xen<Page = P>>(&mut self, xen: &mut X, counters: &mut Counters) -> Result<Left, Overrun>
    where
        P: PageAccess,
    {
        let mut budget = ENTRIES_PER_PASS;
        let left = loop {
            if budget == 0 {
                break Left::Some;
            }
            budget -= 1;
            if let Some(at) = self.restored {
                self.restored = self.restore(at, xen);
                continue;
            }
            if self.job.is_some() {
                self.step(xen, counters);
                continue;
            }
            if self.ring.available()? > 0 {
                let request: Request = self.ring.peek(0);
                self.ring.advance(1);
                self.take(request, xen, counters);
            } else if !self.ring.rearm() {
                break Left::Nothing;
            }
        };
        counters.staging.pages = self.table.mapped() as u64;
        self.notify |= self.ring.publish();
        // Only what the guest knows to be mapped: of a list that was not answered, the next backend is asked again.
        if self.stale && self.job.is_none() {
            self.note();
        }
        Ok(left)
    }

    /// Writes down what is mapped.
    fn note(&mut self) {
        self.stale = false;
        let Some(ledger) = &self.ledger else { return };
        let mut count = 0;
        for (word, noted) in (1..).zip(self.table.noted()) {
            ledger.store(word, noted, Ordering::Relaxed);
            count += 1;
        }
        ledger.store(0, LEDGER << 16 | count, Ordering::Release);
    }

    /// Makes the ledger say nothing, before what it says becomes untrue.
    fn void(&mut self) {
        self.stale = true;
        if let Some(ledger) = &self.ledger {
            ledger.store(0, 0, Ordering::Release);
        }
    }

    /// Maps a page again that an earlier backend had mapped. Returns which one is next, if there is one.
    fn restore<X: Xen<Page = P>>(&mut self, at: usize, xen: &mut X) -> Option<usize> {
        let ledger = self.ledger.as_ref()?;
        let head = ledger.load(0, Ordering::Acquire);
        let count = (head & 0xffff) as usize;
        if head >> 16 != LEDGER || count > MAX_STAGED || at >= count {
            return None;
        }
        let noted = ledger.load(1 + at, Ordering::Relaxed);
        let flags = if noted & LEDGER_READ_ONLY != 0 { GREF_READONLY } else { 0 };
        let gref = noted & !LEDGER_READ_ONLY;
        // What cannot be mapped again is copied.
        if self.map(Gref { gref, flags, status: 0 }, xen).is_ok() {
            self.table.confirm(gref);
        }
        Some(at + 1)
    }

    /// Takes a request: answers it, or begins to work off its list.
    fn take<X: Xen<Page = P>>(&mut self, request: Request, xen: &mut X, counters: &mut Counters) {
        counters.staging.requests += 1;
        let [queue, list, entries] = request.data;
        let task = match request.kind {
            kind::GET_GREF_MAPPING_SIZE if queue == 0 => {
                return self.answer(request, status::SUCCESS, MAX_STAGED as u32, counters);
            }
            kind::GET_GREF_MAPPING_SIZE => {
                return self.answer(request, status::INVALID_PARAMETER, 0, counters);
            }
            kind::ADD_GREF_MAPPING => Task::Add,
            kind::DEL_GREF_MAPPING => Task::Remove,
            _ => return self.answer(request, status::NOT_SUPPORTED, 0, counters),
        };
        let entries = entries as usize;
        let sane = queue == 0 && (1..=MAX_LIST_ENTRIES).contains(&entries);
        if !sane || !self.fetch(GrantRef(list), entries, xen, counters) {
            return self.answer(request, status::INVALID_PARAMETER, 0, counters);
        }
        self.void();
        self.job = Some(Job { request, task, entries, next: 0, unmapped: 0 });
    }

    fn answer(&mut self, request: Request, status: u32, data: u32, counters: &mut Counters) {
        counters.staging.refused += u64::from(status != status::SUCCESS);
        // The request was just taken, or is the one that was taken last: it has no answer yet.
        let _ = self.ring.respond(Response { id: request.id, kind: request.kind, status, data });
    }

    fn copy_of_list(&self, list: GrantRef, entries: usize) -> CopyOp {
        let len = (entries * Gref::WORDS * 4) as u16;
        CopyOp::new(0, list, self.domain, 0, len)
    }

    /// Copies a list into private memory.
    fn fetch<X: Xen>(
        &mut self,
        list: GrantRef,
        entries: usize,
        xen: &mut X,
        counters: &mut Counters,
    ) -> bool {
        let mut op = self.copy_of_list(list, entries);
        xen.copy_from_guests(self.list.bytes_mut(), std::slice::from_mut(&mut op));
        counters.hypercalls += 1;
        op.status == GNTST_OKAY
    }

    fn entry(&self, at: usize) -> Gref {
        let (entries, _) = self.list.bytes().as_chunks::<8>();
        Gref::from_bytes(entries[at])
    }

    /// Goes on with a list by one entry.
    fn step<X: Xen<Page = P>>(&mut self, xen: &mut X, counters: &mut Counters) {
        let Some(mut job) = self.job else { return };
        match job.task {
            Task::Add => {
                let entry = self.entry(job.next);
                if self.map(entry, xen).is_ok() {
                    job.next += 1;
                } else {
                    job.task = Task::Undo;
                }
            }
            Task::Undo => {
                // What is before the entry that failed was mapped by this list.
                if let Some(last) = job.next.checked_sub(1) {
                    self.table.remove(self.entry(last).gref);
                    job.next = last;
                }
            }
            Task::Remove => {
                let mut entry = self.entry(job.next);
                let removed = self.table.remove(entry.gref);
                job.unmapped += u32::from(removed);
                entry.status =
                    if removed { status::SUCCESS as u16 } else { status::INVALID_PARAMETER as u16 };
                let (entries, _) = self.list.bytes_mut().as_chunks_mut::<8>();
                entries[job.next] = entry.to_bytes();
                job.next += 1;
            }
        }
        self.job = Some(job);
        let done = if job.task == Task::Undo { job.next == 0 } else { job.next == job.entries };
        if done {
            self.job = None;
            self.finish(job, xen, counters);
        }
    }

    fn map<X: Xen<Page = P>>(&mut self, entry: Gref, xen: &mut X) -> Result<(), Unfit> {
        // Before anything is mapped: a reference that is staged already, or twice in a list, is no new one.
        if entry.flags & !GREF_READONLY != 0 || !self.table.has_room_for(entry.gref) {
            return Err(Unfit);
        }
        let access = if entry.flags & GREF_READONLY != 0 { Access::ReadOnly } else { Access::ReadWrite };
        let page = xen.map(self.domain, GrantRef(entry.gref), access).map_err(|_| Unfit)?;
        self.table.insert(entry.gref, page, access)
    }

    /// Answers the request whose list is worked off.
    fn finish<X: Xen>(&mut self, job: Job, xen: &mut X, counters: &mut Counters) {
        match job.task {
            Task::Add => {
                for at in 0..job.entries {
                    self.table.confirm(self.entry(at).gref);
                }
                self.answer(job.request, status::SUCCESS, 0, counters);
            }
            Task::Undo => self.answer(job.request, status::INVALID_PARAMETER, 0, counters),
            Task::Remove => {
                // A guest that does not let us write how its entries fared has no use for knowing.
                let mut op = self.copy_of_list(GrantRef(job.request.data[1]), job.entries);
                xen.copy_to_guests([self.list.bytes(), &[]], std::slice::from_mut(&mut op));
                counters.hypercalls += 1;
                self.answer(job.request, status::SUCCESS, job.unmapped, counters);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_so_many_places_and_gives_them_back() {
        let mut table = Table::new();
        for reference in 0..MAX_STAGED as u32 {
            assert!(table.has_room_for(8 + reference * 100));
            table.insert(8 + reference * 100, (), Access::ReadWrite).expect("there is room");
        }
        assert!(!table.has_room_for(9), "it is full");
        assert_eq!(table.mapped(), MAX_STAGED);
        assert!(table.remove(108) && !table.remove(108) && !table.remove(9) && !table.remove(u32::MAX));
        assert!(table.has_room_for(9) && !table.has_room_for(208), "208 is mapped");
        assert!(!table.has_room_for(MAX_REFERENCE as u32) && !table.has_room_for(u32::MAX));
        table.insert(9, (), Access::ReadOnly).expect("there is room");
        assert_eq!(table.insert(10, (), Access::ReadWrite), Err(Unfit));
        assert_eq!(table.noted().take(3).collect::<Vec<_>>(), [8, 9 | LEDGER_READ_ONLY, 208]);
        assert!(table.remove(9) && !table.remove(9), "however it was mapped");
    }
}
