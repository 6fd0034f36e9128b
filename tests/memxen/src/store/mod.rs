//! xenstore: connections of domains to one tree.
//!
//! It knows no ring page and no socket: a request is a method call.

mod tree;

use std::time::{Duration, Instant};

use drayage_netfront::platform::StoreError;

pub(crate) use tree::Tree;
pub use tree::{Permission, WatchEvent};

use crate::{DomainId, Hypervisor};

/// A connection to xenstore, with watches and an event queue of its own. It ends when it is dropped.
#[derive(Debug)]
pub struct Connection {
    hv: Hypervisor,
    domain: DomainId,
    id: u64,
}

/// Outside of any transaction.
pub const NO_TRANSACTION: u32 = 0;

impl Hypervisor {
    /// Connects a domain to xenstore. Domain 0 may do anything.
    pub fn connect_store(&self, domain: DomainId) -> Connection {
        let id = self.lock().store.connect(domain);
        Connection { hv: self.clone(), domain, id }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.hv.lock().store.disconnect(self.id);
    }
}

impl Connection {
    /// Returns the domain that is connected.
    pub fn domain(&self) -> DomainId {
        self.domain
    }

    fn with<R>(&self, f: impl FnOnce(&mut Tree, u64) -> R) -> R {
        let mut state = self.hv.lock();
        let result = f(&mut state.store, self.id);
        self.hv.wake(state);
        result
    }

    /// Returns a node's value.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn read(&self, transaction: u32, path: &str) -> Result<Vec<u8>, StoreError> {
        self.with(|tree, id| tree.read(id, transaction, path))
    }

    /// Returns the names of a node's children.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn directory(&self, transaction: u32, path: &str) -> Result<Vec<String>, StoreError> {
        self.with(|tree, id| tree.directory(id, transaction, path))
    }

    /// Sets a node's value.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn write(&self, transaction: u32, path: &str, value: &[u8]) -> Result<(), StoreError> {
        self.with(|tree, id| tree.write(id, transaction, path, value))
    }

    /// Makes a node, if it is missing.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn mkdir(&self, transaction: u32, path: &str) -> Result<(), StoreError> {
        self.with(|tree, id| tree.mkdir(id, transaction, path))
    }

    /// Removes a node and all below it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove(&self, transaction: u32, path: &str) -> Result<(), StoreError> {
        self.with(|tree, id| tree.remove(id, transaction, path))
    }

    /// Returns a node's owner with what everybody may, then what single domains may.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn permissions(
        &self,
        transaction: u32,
        path: &str,
    ) -> Result<Vec<(DomainId, Permission)>, StoreError> {
        self.with(|tree, id| tree.permissions(id, transaction, path))
    }

    /// Sets a node's permissions, the owner first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn set_permissions(
        &self,
        transaction: u32,
        path: &str,
        permissions: &[(DomainId, Permission)],
    ) -> Result<(), StoreError> {
        self.with(|tree, id| tree.set_permissions(id, transaction, path, permissions))
    }

    /// Watches a node and all below it, or `@introduceDomain` or `@releaseDomain`. Fires once at once.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn watch(&self, path: &str, token: &str) -> Result<(), StoreError> {
        self.with(|tree, id| tree.watch(id, path, token))
    }

    /// Ends a watch.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn unwatch(&self, path: &str, token: &str) -> Result<(), StoreError> {
        self.with(|tree, id| tree.unwatch(id, path, token))
    }

    /// Opens a transaction.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn begin(&self) -> Result<u32, StoreError> {
        self.with(Tree::begin)
    }

    /// Commits a transaction.
    ///
    /// # Errors
    /// [`StoreError::Again`] when what it looked at was changed meanwhile, or a fault says so.
    pub fn commit(&self, transaction: u32) -> Result<(), StoreError> {
        let mut state = self.hv.lock();
        if let Some(domain) = state.domains.get_mut(&self.domain)
            && domain.faults.fail_commits > 0
        {
            domain.faults.fail_commits -= 1;
            state.store.abort(self.id, transaction)?;
            return Err(StoreError::Again);
        }
        let result = state.store.commit(self.id, transaction);
        self.hv.wake(state);
        result
    }

    /// Forgets a transaction.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn abort(&self, transaction: u32) -> Result<(), StoreError> {
        self.with(|tree, id| tree.abort(id, transaction))
    }

    /// Returns the next event of this connection's watches.
    pub fn next_event(&self) -> Option<WatchEvent> {
        self.hv.lock().store.next_event(self.id)
    }

    /// Waits for the next event of this connection's watches.
    pub fn wait_event(&self, timeout: Duration) -> Option<WatchEvent> {
        self.hv.wait_for(Instant::now() + timeout, |state| state.store.has_event(self.id));
        self.next_event()
    }
}
