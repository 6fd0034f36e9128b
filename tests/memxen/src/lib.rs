//! A hypervisor in memory, for tests: domains, shared pages, grants, event channels and xenstore, in one
//! process and without privileges.
//!
//! It behaves like Xen where a peer looks at it, and is stricter where a program errs: granting a page twice,
//! revoking twice, freeing a granted page, sending on a closed port and the like are written down as
//! [`Hypervisor::violations`], which a test asserts to be none. What a *peer* may try (copying into a revoked
//! grant, mapping one that is not its own) is refused with Xen's status and counted.
//!
//! It knows neither rings nor packets. `front` makes it the frontend's platform.

pub mod events;
pub mod front;
pub mod grants;
pub mod memory;
pub mod raw;
pub mod store;

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use drayage_netfront::platform::{Access, DomainId, GrantRef, Port, RawPool};

/// What a domain did, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Operations {
    /// Grants made (claimed).
    pub grants: u64,
    /// Revoked references granted again.
    pub regrants: u64,
    /// Successful revokes.
    pub revokes: u64,
    /// Revokes that failed because the page was in use.
    pub revokes_refused: u64,
    /// Batches of grant copies.
    pub copy_calls: u64,
    /// Grant copies.
    pub copies: u64,
    /// Bytes that grant copies moved.
    pub copied_bytes: u64,
    /// Grant copies that were refused.
    pub copies_refused: u64,
    /// Pages mapped.
    pub maps: u64,
    /// Pages unmapped.
    pub unmaps: u64,
    /// Events sent.
    pub notifies: u64,
    /// Pending bits that went from clear to set in this domain.
    pub events: u64,
}

/// What goes wrong on purpose. All off at first.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// This many allocations of pools are refused.
    pub refuse_allocations: u32,
    /// This many grants are refused.
    pub refuse_grants: u32,
    /// This many event channels are refused.
    pub refuse_ports: u32,
    /// This many revokes fail as if a copy were under way.
    pub fail_revokes: u32,
    /// This many xenstore commits fail with `EAGAIN`.
    pub fail_commits: u32,
}

#[derive(Default)]
pub(crate) struct Domain {
    pub(crate) operations: Operations,
    pub(crate) faults: Faults,
    pub(crate) cannot_mirror: bool,
    pub(crate) pools: BTreeMap<usize, memory::Pool>,
    pub(crate) grants: Vec<grants::Entry>,
    pub(crate) free_grants: Vec<u32>,
    pub(crate) ports: Vec<events::Channel>,
    pub(crate) on_event: Option<Arc<dyn Fn() + Send + Sync>>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) domains: BTreeMap<DomainId, Domain>,
    pub(crate) mappings: BTreeMap<u64, grants::MappedPages>,
    pub(crate) next_mapping: u64,
    pub(crate) store: store::Tree,
    pub(crate) violations: Vec<String>,
}

impl State {
    pub(crate) fn violation(&mut self, what: String) {
        self.violations.push(what);
    }
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    started: Instant,
}

/// A handle on the hypervisor; clones are the same hypervisor.
#[derive(Clone)]
pub struct Hypervisor(Arc<Shared>);

impl Default for Hypervisor {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Hypervisor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hypervisor").field("domains", &self.lock().domains.len()).finish()
    }
}

impl Hypervisor {
    /// Returns a hypervisor with domain 0 alone.
    pub fn new() -> Self {
        let hv = Self(Arc::new(Shared {
            state: Mutex::new(State::default()),
            changed: Condvar::new(),
            started: Instant::now(),
        }));
        hv.create_domain(DomainId(0));
        hv
    }

    /// Makes a domain, with a home in xenstore laid out as libxl does: `/local/domain/<id>` is readable by
    /// the guest, and `device` in it too. Fires `@introduceDomain`.
    pub fn create_domain(&self, id: DomainId) {
        let mut state = self.lock();
        state.domains.insert(id, Domain::default());
        state.store.introduce(id);
        self.wake(state);
    }

    /// Destroys a domain: its event channels are closed, its grants are gone, what others mapped of it stays
    /// mapped. Its xenstore home is removed and `@releaseDomain` fires.
    pub fn destroy_domain(&self, id: DomainId) {
        let ports = self.lock().domains.get(&id).map_or(0, |d| d.ports.len());
        for port in 0..ports {
            self.close(id, Port(port as u32));
        }
        let mut state = self.lock();
        if let Some(domain) = state.domains.remove(&id) {
            // The memory stays for as long as somebody may hold an address in it: the process's life.
            std::mem::forget(domain.pools);
        }
        state.store.release(id);
        self.wake(state);
    }

    /// Returns what the programs did wrong, oldest first.
    pub fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    /// Panics with the violations, if there are any.
    ///
    /// # Panics
    /// See above: this is a test's last line.
    pub fn assert_clean(&self) {
        let violations = self.violations();
        assert!(violations.is_empty(), "violations: {violations:#?}");
    }

    /// Returns what a domain did so far; nothing for one that is gone.
    pub fn operations(&self, id: DomainId) -> Operations {
        self.lock().domains.get(&id).map(|d| d.operations).unwrap_or_default()
    }

    /// Changes what goes wrong on purpose in a domain.
    pub fn set_faults(&self, id: DomainId, faults: Faults) {
        if let Some(domain) = self.lock().domains.get_mut(&id) {
            domain.faults = faults;
        }
    }

    /// Makes later pools of a domain unmirrored.
    pub fn forbid_mirroring(&self, id: DomainId) {
        if let Some(domain) = self.lock().domains.get_mut(&id) {
            domain.cannot_mirror = true;
        }
    }

    /// Calls `hook` whenever an event channel of the domain becomes pending or a watch of it fires. The hook
    /// runs under the hypervisor's lock: it may write to an eventfd, and must not call the hypervisor.
    pub fn on_event(&self, id: DomainId, hook: Arc<dyn Fn() + Send + Sync>) {
        if let Some(domain) = self.lock().domains.get_mut(&id) {
            domain.on_event = Some(hook);
        }
    }

    /// Returns the time since the hypervisor was made.
    pub fn uptime(&self) -> Duration {
        self.0.started.elapsed()
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Releases the lock and wakes whoever waits; calls the hooks of domains whose watches fired.
    pub(crate) fn wake(&self, mut state: MutexGuard<'_, State>) {
        while let Some(id) = state.store.take_roused() {
            if let Some(hook) = state.domains.get(&id).and_then(|d| d.on_event.as_ref()) {
                hook();
            }
        }
        drop(state);
        self.0.changed.notify_all();
    }

    /// Waits until `ready` holds, at most until `deadline`. Returns whether it does.
    pub(crate) fn wait_for(&self, deadline: Instant, mut ready: impl FnMut(&State) -> bool) -> bool {
        let mut state = self.lock();
        loop {
            if ready(&state) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.0.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
