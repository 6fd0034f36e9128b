//! The backend's real control path over the in-memory xenstore.
//!
//! It knows xenstore and messages of the control path, and neither rings nor packets.

use std::cell::RefCell;
use std::rc::Rc;

use drayage::UplinkCounters;
use drayage::control::attachment::Memory;
use drayage::control::plane::DataPlane;
use drayage::control::{AttachRequest, Manager};
use drayage::port::Uplink;
use drayage::store::{End, Permission, Store, StoreError, Transaction, WatchEvent};
use drayage::switch::{PortId, Segment};
use drayage::vif::holds::HoldTimes;
use drayage::vif::{Connection, Counters, Fault};
use drayage::worker::{ConnectError, Worker};
use drayage::xen::DomainId;
use drayage_netfront::platform::StoreError as Theirs;
use memxen::Hypervisor;
use memxen::store::{self, NO_TRANSACTION};

use crate::back::Back;
use crate::hand::DOM0;
use crate::world::WorldClock;

/// The worker, shared by the control path and by whoever lets it run.
#[derive(Clone)]
pub struct SharedWorker(pub Rc<RefCell<Worker<Back, WorldClock>>>);

impl DataPlane for SharedWorker {
    fn connect(&mut self, segment: Segment, connection: Connection) -> Result<PortId, ConnectError> {
        self.0.borrow_mut().connect(segment, &connection)
    }
    fn disconnect(&mut self, port: PortId) -> Option<Counters> {
        self.0.borrow_mut().disconnect(port)
    }
    fn counters(&mut self, port: PortId) -> Option<Counters> {
        self.0.borrow().counters(port)
    }
    fn holds(&mut self, port: PortId) -> Option<HoldTimes> {
        self.0.borrow().holds(port)
    }
    fn add_uplink(&mut self, segment: Segment, link: Box<dyn Uplink>) -> Option<PortId> {
        self.0.borrow_mut().add_uplink(segment, link)
    }
    fn remove_uplink(&mut self, port: PortId) {
        self.0.borrow_mut().remove_uplink(port);
    }
    fn uplink_counters(&mut self, port: PortId) -> Option<UplinkCounters> {
        self.0.borrow().uplink_counters(port)
    }
    fn take_faults(&mut self) -> Vec<(PortId, Fault)> {
        self.0.borrow_mut().take_faults()
    }
}

/// Domain 0's connection to xenstore.
#[derive(Clone, Debug)]
pub struct MemStore(Rc<store::Connection>);

impl MemStore {
    /// Connects domain 0.
    pub fn new(hv: &Hypervisor) -> Self {
        Self(Rc::new(hv.connect_store(DOM0)))
    }

    /// Returns the next watch event.
    pub fn next_event(&self) -> Option<WatchEvent> {
        self.0.next_event().map(|event| WatchEvent { path: event.path, token: event.token })
    }
}

fn error(path: &str, theirs: Theirs) -> StoreError {
    match theirs {
        Theirs::Missing => StoreError::Missing(path.into()),
        Theirs::Again => StoreError::Again,
        Theirs::Denied => StoreError::Denied(path.into()),
        Theirs::Quota | Theirs::Failed => StoreError::Refused { path: path.into(), name: theirs.to_string() },
    }
}

impl Store for MemStore {
    fn read(&self, within: Transaction, path: &str) -> Result<Vec<u8>, StoreError> {
        self.0.read(within.0, path).map_err(|theirs| error(path, theirs))
    }
    fn write(&self, within: Transaction, path: &str, value: &str) -> Result<(), StoreError> {
        self.0.write(within.0, path, value.as_bytes()).map_err(|theirs| error(path, theirs))
    }
    fn make(&self, within: Transaction, path: &str) -> Result<(), StoreError> {
        self.0.mkdir(within.0, path).map_err(|theirs| error(path, theirs))
    }
    fn remove(&self, within: Transaction, path: &str) -> Result<(), StoreError> {
        match self.0.remove(within.0, path) {
            Ok(()) | Err(Theirs::Missing) => Ok(()),
            Err(theirs) => Err(error(path, theirs)),
        }
    }
    fn permit(
        &self,
        within: Transaction,
        path: &str,
        permissions: &[(DomainId, Permission)],
    ) -> Result<(), StoreError> {
        let theirs = |permission: &Permission| match permission {
            Permission::None => store::Permission::None,
            Permission::Read => store::Permission::Read,
        };
        let permissions: Vec<_> =
            permissions.iter().map(|(id, permission)| (memxen::DomainId(id.0), theirs(permission))).collect();
        self.0.set_permissions(within.0, path, &permissions).map_err(|theirs| error(path, theirs))
    }
    fn directory(&self, within: Transaction, path: &str) -> Result<Vec<String>, StoreError> {
        self.0.directory(within.0, path).map_err(|theirs| error(path, theirs))
    }
    fn watch(&self, path: &str, token: &str) -> Result<(), StoreError> {
        self.0.watch(path, token).map_err(|theirs| error(path, theirs))
    }
    fn unwatch(&self, path: &str, token: &str) -> Result<(), StoreError> {
        self.0.unwatch(path, token).map_err(|theirs| error(path, theirs))
    }
    fn begin(&self) -> Result<Transaction, StoreError> {
        self.0.begin().map(Transaction).map_err(|theirs| error("", theirs))
    }
    fn end(&self, transaction: Transaction, end: End) -> Result<(), StoreError> {
        let ended = match end {
            End::Commit => self.0.commit(transaction.0),
            End::Abort => self.0.abort(transaction.0),
        };
        ended.map_err(|theirs| error("", theirs))
    }
}

/// The control path, and the events that it is to see.
pub struct Control {
    /// The control path.
    pub manager: Manager<MemStore, SharedWorker>,
    /// Domain 0's xenstore.
    pub store: MemStore,
}

impl Control {
    /// Returns a control path without attachments.
    ///
    /// # Panics
    /// When xenstore fails.
    pub fn new(hv: &Hypervisor, worker: SharedWorker, memory: Memory) -> Self {
        let store = MemStore::new(hv);
        let manager = Manager::new(store.clone(), worker, DomainId(DOM0.0), memory);
        Self { manager: manager.expect("xenstore works"), store }
    }

    /// Writes what a toolstack writes of a domain.
    ///
    /// # Panics
    /// When xenstore fails.
    pub fn name(&self, id: DomainId, name: &str, uuid: &str) {
        let write = |key: &str, value: &str| {
            let path = format!("/local/domain/{id}/{key}");
            self.store.0.write(NO_TRANSACTION, &path, value.as_bytes()).expect("domain 0 may");
        };
        write("name", name);
        write("vm", &format!("/vm/{uuid}"));
    }

    /// Shows the control path what has happened. Returns whether there was anything.
    ///
    /// # Panics
    /// When xenstore breaks.
    pub fn pump(&mut self, now_ns: u64) -> bool {
        let mut any = false;
        while let Some(event) = self.store.next_event() {
            self.manager.on_watch(&event, now_ns).expect("xenstore works");
            any = true;
        }
        self.manager.on_faults().expect("xenstore works");
        self.manager.on_time(now_ns);
        any
    }

    /// Attaches a guest's interface 0.
    ///
    /// # Panics
    /// When that is refused.
    pub fn attach(&mut self, request: &AttachRequest) {
        if let Err(failure) = self.manager.attach(request) {
            panic!("{failure}");
        }
    }
}
