//! The frontend's platform over the in-memory hypervisor: what the kernel does with hypercalls.
//!
//! It knows neither rings nor packets.

use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use drayage_netfront::platform::{
    Access, DomainId, End, GrantRef, Platform, Port, RawPool, Refused, StillInUse, Store, StoreError,
    Transaction,
};

use crate::Hypervisor;
use crate::store::{Connection, WatchEvent};

/// A guest's view of the hypervisor. Clones share the xenstore connection.
#[derive(Clone, Debug)]
pub struct Front {
    hv: Hypervisor,
    id: DomainId,
    store: Arc<Connection>,
}

impl Front {
    /// Returns the view of a domain, made before with [`Hypervisor::create_domain`].
    pub fn new(hv: &Hypervisor, id: DomainId) -> Self {
        Self { hv: hv.clone(), id, store: Arc::new(hv.connect_store(id)) }
    }

    /// Returns the domain.
    pub fn id(&self) -> DomainId {
        self.id
    }

    /// Returns the next watch event.
    pub fn next_event(&self) -> Option<WatchEvent> {
        self.store.next_event()
    }

    /// Waits for the next watch event.
    pub fn wait_event(&self, timeout: Duration) -> Option<WatchEvent> {
        self.store.wait_event(timeout)
    }

    /// Sleeps until one of the ports is pending.
    pub fn poll(&self, ports: &[Port], timeout: Duration) -> bool {
        self.hv.poll(self.id, ports, timeout)
    }
}

// SAFETY: pools are memfds mapped for the domain until `free_pool`, and only the driver gets their address;
// the hypervisor writes a page only by way of a grant in force for writing, or of a mapping, during which
// `revoke` and `release` fail, all under one lock.
unsafe impl Platform for Front {
    fn alloc_pool(&self, pages: usize, mirror: usize) -> Result<RawPool, Refused> {
        self.hv.alloc_pool(self.id, pages, mirror)
    }

    unsafe fn free_pool(&self, pool: RawPool) {
        self.hv.free_pool(self.id, pool);
    }

    unsafe fn grant(&self, peer: DomainId, page: NonNull<u8>, access: Access) -> Result<GrantRef, Refused> {
        self.hv.grant(self.id, peer, page, access)
    }

    unsafe fn regrant(&self, grant: GrantRef, access: Access) {
        self.hv.regrant(self.id, grant, access);
    }

    fn revoke(&self, grant: GrantRef) -> Result<(), StillInUse> {
        self.hv.revoke(self.id, grant)
    }

    fn release(&self, grant: GrantRef) -> Result<(), StillInUse> {
        self.hv.release(self.id, grant)
    }

    fn alloc_unbound(&self, peer: DomainId) -> Result<Port, Refused> {
        self.hv.alloc_unbound(self.id, peer)
    }

    fn close(&self, port: Port) {
        self.hv.close(self.id, port);
    }

    fn notify(&self, port: Port) {
        self.hv.notify(self.id, port);
    }

    fn take_pending(&self, port: Port) -> bool {
        self.hv.take_pending(self.id, port)
    }

    fn now_ns(&self) -> u64 {
        self.hv.uptime().as_nanos() as u64
    }
}

impl Store for Front {
    fn read(&self, within: Transaction, path: &str) -> Result<Vec<u8>, StoreError> {
        self.store.read(within.0, path)
    }

    fn write(&self, within: Transaction, path: &str, value: &[u8]) -> Result<(), StoreError> {
        self.store.write(within.0, path, value)
    }

    fn remove(&self, within: Transaction, path: &str) -> Result<(), StoreError> {
        self.store.remove(within.0, path)
    }

    fn directory(&self, within: Transaction, path: &str) -> Result<Vec<String>, StoreError> {
        self.store.directory(within.0, path)
    }

    fn watch(&self, path: &str, token: &str) -> Result<(), StoreError> {
        self.store.watch(path, token)
    }

    fn unwatch(&self, path: &str, token: &str) -> Result<(), StoreError> {
        self.store.unwatch(path, token)
    }

    fn begin(&self) -> Result<Transaction, StoreError> {
        self.store.begin().map(Transaction)
    }

    fn end(&self, transaction: Transaction, end: End) -> Result<(), StoreError> {
        match end {
            End::Commit => self.store.commit(transaction.0),
            End::Abort => self.store.abort(transaction.0),
        }
    }
}
