//! Grant tables: what `GNTTABOP_copy`, `map_grant_ref` and the table's owner do with them, with Xen's rules
//! (`xen/common/grant_table.c`).
//!
//! It knows pages and domains, and nothing of what is in the pages.

use std::ptr::NonNull;

use drayage_netfront::platform::{Refused, StillInUse};
use drayage_wire::PAGE_SIZE;

use crate::memory::{Frame, reserve_window, unmap_window};
use crate::{Access, DomainId, GrantRef, Hypervisor, State};

/// Status of a grant operation (`GNTST_*`).
pub mod status {
    /// Done.
    pub const OKAY: i16 = 0;
    /// The grant is not in force, not for this domain, or not for writing.
    pub const GENERAL_ERROR: i16 = -1;
    /// No such domain.
    pub const BAD_DOMAIN: i16 = -2;
    /// No such grant reference.
    pub const BAD_GRANT_REF: i16 = -3;
    /// The copy would cross its page.
    pub const BAD_COPY_ARG: i16 = -10;
}

/// What a page that is handed to the peer again is filled with, so that a stale read shows.
pub const POISON: u8 = 0xdb;

/// The first reference that is handed out; those below are reserved (`GNTTAB_NR_RESERVED_ENTRIES`).
const FIRST_REF: usize = 8;

/// An entry of a grant table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    claimed: bool,
    granted: bool,
    peer: DomainId,
    frame: Frame,
    access: Access,
    /// Mappings in force.
    mapped: u32,
}

/// What [`Hypervisor::map`] mapped.
pub(crate) struct MappedPages {
    by: DomainId,
    window: NonNull<u8>,
    pages: Vec<(DomainId, GrantRef)>,
}

// SAFETY: a description of a mapping; the address is only handed out and unmapped.
unsafe impl Send for MappedPages {}

/// Pages of other domains, mapped side by side.
#[derive(Clone, Copy, Debug)]
pub struct Mapping {
    /// What [`Hypervisor::unmap`] wants.
    pub handle: u64,
    /// The first byte of the first page.
    pub base: NonNull<u8>,
    /// How many pages.
    pub pages: usize,
}

/// One place in another domain's granted page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// Who granted the page.
    pub domain: DomainId,
    /// The grant.
    pub grant: GrantRef,
    /// Where in the page, in bytes.
    pub offset: u16,
}

/// A grant copy.
#[derive(Debug)]
pub enum Copy<'a> {
    /// Into a granted page.
    To(Foreign, &'a [u8]),
    /// Out of a granted page.
    From(Foreign, &'a mut [u8]),
}

impl State {
    fn entry(&mut self, id: DomainId, grant: GrantRef) -> Option<&mut Entry> {
        let entry = self.domains.get_mut(&id)?.grants.get_mut(grant.0 as usize)?;
        entry.claimed.then_some(entry)
    }

    /// Returns the frame behind a grant in force for `by`, or the status that Xen answers.
    fn resolve(&mut self, by: DomainId, place: Foreign, access: Access) -> Result<Frame, i16> {
        let domain = self.domains.get(&place.domain).ok_or(status::BAD_DOMAIN)?;
        let entry = domain.grants.get(place.grant.0 as usize).ok_or(status::BAD_GRANT_REF)?;
        let allowed = entry.claimed && entry.granted && entry.peer == by;
        if !allowed || (access == Access::ReadWrite && entry.access == Access::ReadOnly) {
            return Err(status::GENERAL_ERROR);
        }
        Ok(entry.frame)
    }

    fn copy(&mut self, by: DomainId, op: &mut Copy<'_>) -> Result<usize, i16> {
        let (place, len, access) = match op {
            Copy::To(place, data) => (*place, data.len(), Access::ReadWrite),
            Copy::From(place, data) => (*place, data.len(), Access::ReadOnly),
        };
        let offset = usize::from(place.offset);
        if offset >= PAGE_SIZE || offset + len > PAGE_SIZE {
            return Err(status::BAD_COPY_ARG);
        }
        let frame = self.resolve(by, place, access)?;
        let pool = self.domains[&place.domain].pools.get(&frame.pool).ok_or(status::GENERAL_ERROR)?;
        let at = frame.page * PAGE_SIZE + offset;
        match op {
            Copy::To(_, data) => pool.bytes.copy_in(at, data),
            Copy::From(_, data) => pool.bytes.copy_out(at, data),
        }
        .map_err(|_| status::GENERAL_ERROR)?;
        Ok(len)
    }

    fn put_in_force(&mut self, id: DomainId, grant: GrantRef, access: Access) {
        let Some(entry) = self.entry(id, grant) else {
            self.violation(format!("{id:?} grants through {grant:?}, which it has not claimed"));
            return;
        };
        if entry.granted {
            self.violation(format!("{id:?} grants through {grant:?} twice"));
            return;
        }
        entry.granted = true;
        entry.access = access;
        let frame = entry.frame;
        let domain = self.domains.get_mut(&id);
        let Some(pool) = domain.and_then(|d| d.pools.get_mut(&frame.pool)).filter(|p| !p.freed) else {
            self.violation(format!("{id:?} grants a page of a freed pool through {grant:?}"));
            return;
        };
        pool.granted[frame.page] += 1;
        if pool.granted[frame.page] > 1 {
            self.violation(format!("{id:?} grants {frame:?} through {grant:?} while it is granted already"));
        }
    }

    /// Takes a grant out of force.
    fn take_back(&mut self, id: DomainId, grant: GrantRef) -> Result<(), StillInUse> {
        let Some(domain) = self.domains.get_mut(&id) else { return Ok(()) };
        let Some(entry) = domain.grants.get_mut(grant.0 as usize) else { return Ok(()) };
        if entry.mapped > 0 || domain.faults.fail_revokes > 0 {
            domain.faults.fail_revokes = domain.faults.fail_revokes.saturating_sub(1);
            domain.operations.revokes_refused += 1;
            return Err(StillInUse);
        }
        entry.granted = false;
        domain.operations.revokes += 1;
        if let Some(pool) = domain.pools.get_mut(&entry.frame.pool) {
            pool.granted[entry.frame.page] -= 1;
        }
        Ok(())
    }
}

impl Hypervisor {
    /// Claims a grant reference and grants the page at `address` to `peer`.
    ///
    /// # Errors
    /// [`Refused`] for an address that is no page of the domain, or when a fault says so.
    pub fn grant(
        &self,
        id: DomainId,
        peer: DomainId,
        address: NonNull<u8>,
        access: Access,
    ) -> Result<GrantRef, Refused> {
        let mut state = self.lock();
        let domain = state.domains.get_mut(&id).ok_or(Refused::NoGrants)?;
        if domain.faults.refuse_grants > 0 {
            domain.faults.refuse_grants -= 1;
            return Err(Refused::NoGrants);
        }
        let Some(frame) = domain.frame_at(address.as_ptr() as usize) else {
            state.violation(format!("{id:?} grants {address:?}, which is no page of its pools"));
            return Err(Refused::Hypervisor(-22));
        };
        let entry = Entry { claimed: true, granted: false, peer, frame, access, mapped: 0 };
        let at = match domain.free_grants.pop() {
            Some(at) => at as usize,
            None => domain.grants.len().max(FIRST_REF),
        };
        let unused = Entry { claimed: false, ..entry };
        if domain.grants.len() <= at {
            domain.grants.resize(at + 1, unused);
        }
        domain.grants[at] = entry;
        domain.operations.grants += 1;
        let grant = GrantRef(at as u32);
        state.put_in_force(id, grant, access);
        Ok(grant)
    }

    /// Grants the page of a revoked reference again. Its bytes are poisoned for a peer that may write it:
    /// what the owner had in there is not the peer's business.
    pub fn regrant(&self, id: DomainId, grant: GrantRef, access: Access) {
        let mut state = self.lock();
        if let Some(domain) = state.domains.get_mut(&id) {
            domain.operations.regrants += 1;
            if let Some(entry) = domain.grants.get(grant.0 as usize).filter(|_| access == Access::ReadWrite)
                && let Some(pool) = domain.pools.get(&entry.frame.pool)
            {
                let _ = pool.bytes.copy_in(entry.frame.page * PAGE_SIZE, &[POISON; PAGE_SIZE]);
            }
        }
        state.put_in_force(id, grant, access);
    }

    /// Takes a page back.
    ///
    /// # Errors
    /// [`StillInUse`] while the peer maps the page, or when a fault says so.
    pub fn revoke(&self, id: DomainId, grant: GrantRef) -> Result<(), StillInUse> {
        let mut state = self.lock();
        match state.entry(id, grant) {
            Some(entry) if entry.granted => {}
            _ => {
                state.violation(format!("{id:?} revokes {grant:?}, which is not granted"));
                return Ok(());
            }
        }
        state.take_back(id, grant)
    }

    /// Takes a page back, if it is granted, and gives the reference back.
    ///
    /// # Errors
    /// As [`revoke`](Self::revoke).
    pub fn release(&self, id: DomainId, grant: GrantRef) -> Result<(), StillInUse> {
        let mut state = self.lock();
        let Some(entry) = state.entry(id, grant) else {
            state.violation(format!("{id:?} releases {grant:?}, which it has not claimed"));
            return Ok(());
        };
        if entry.granted {
            state.take_back(id, grant)?;
        }
        if let Some(domain) = state.domains.get_mut(&id) {
            domain.grants[grant.0 as usize].claimed = false;
            domain.free_grants.push(grant.0);
        }
        Ok(())
    }

    /// Returns how many references of a domain are claimed.
    pub fn claimed_grants(&self, id: DomainId) -> usize {
        self.lock().domains.get(&id).map_or(0, |d| d.grants.iter().filter(|e| e.claimed).count())
    }

    /// Makes a batch of grant copies for domain `by`, each with a status of its own (`GNTTABOP_copy`).
    ///
    /// # Panics
    /// When there are fewer places for statuses than operations.
    pub fn grant_copy(&self, by: DomainId, ops: &mut [Copy<'_>], statuses: &mut [i16]) {
        assert!(ops.len() <= statuses.len(), "a status for each operation");
        let mut state = self.lock();
        let mut did = (0, 0, 0);
        for (op, status) in ops.iter_mut().zip(statuses) {
            match state.copy(by, op) {
                Ok(len) => {
                    *status = status::OKAY;
                    did.0 += 1;
                    did.1 += len as u64;
                }
                Err(error) => {
                    *status = error;
                    did.2 += 1;
                }
            }
        }
        if let Some(domain) = state.domains.get_mut(&by) {
            domain.operations.copy_calls += 1;
            domain.operations.copies += did.0;
            domain.operations.copied_bytes += did.1;
            domain.operations.copies_refused += did.2;
        }
    }

    /// Maps granted pages side by side for domain `by`. All or none (as gntdev does).
    ///
    /// # Errors
    /// The status of the first page that cannot be mapped.
    pub fn map(&self, by: DomainId, pages: &[(DomainId, GrantRef)], access: Access) -> Result<Mapping, i16> {
        let mut state = self.lock();
        let window = reserve_window(pages.len().max(1)).ok_or(status::GENERAL_ERROR)?;
        let prot = match access {
            Access::ReadOnly => libc::PROT_READ,
            Access::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        };
        for (i, &(domain, grant)) in pages.iter().enumerate() {
            let mapped = state.resolve(by, Foreign { domain, grant, offset: 0 }, access).and_then(|frame| {
                let at = window.as_ptr().wrapping_add(i * PAGE_SIZE);
                let pool = state.domains[&domain].pools.get(&frame.pool).ok_or(status::GENERAL_ERROR)?;
                if pool.map_page(frame.page, at, prot) { Ok(()) } else { Err(status::GENERAL_ERROR) }
            });
            if let Err(error) = mapped {
                unmap_window(window, pages.len());
                return Err(error);
            }
        }
        for &(domain, grant) in pages {
            if let Some(entry) = state.entry(domain, grant) {
                entry.mapped += 1;
            }
        }
        if let Some(domain) = state.domains.get_mut(&by) {
            domain.operations.maps += pages.len() as u64;
        }
        let handle = state.next_mapping;
        state.next_mapping += 1;
        state.mappings.insert(handle, MappedPages { by, window, pages: pages.to_vec() });
        Ok(Mapping { handle, base: window, pages: pages.len() })
    }

    /// Unmaps what [`map`](Self::map) mapped. From here on its addresses fault.
    pub fn unmap(&self, by: DomainId, handle: u64) {
        let mut state = self.lock();
        match state.mappings.get(&handle) {
            Some(mapped) if mapped.by == by => {}
            _ => {
                state.violation(format!("{by:?} unmaps {handle}, which it has not mapped"));
                return;
            }
        }
        let Some(mapped) = state.mappings.remove(&handle) else { return };
        unmap_window(mapped.window, mapped.pages.len());
        for &(domain, grant) in &mapped.pages {
            if let Some(entry) = state.entry(domain, grant) {
                entry.mapped -= 1;
            }
        }
        if let Some(domain) = state.domains.get_mut(&by) {
            domain.operations.unmaps += mapped.pages.len() as u64;
        }
    }

    /// Returns how many mappings domain `by` holds.
    pub fn live_mappings(&self, by: DomainId) -> usize {
        self.lock().mappings.values().filter(|m| m.by == by).count()
    }
}
