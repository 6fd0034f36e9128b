//! The xenstore nodes of a vif: where they are, who owns them, and how they come and go.
//!
//! It knows paths and permissions (libxl's `libxl__device_generic_add` is the model), and no state.

use drayage_wire::keys::{self, State};

use super::details::{Containers, Mapping, features};
use crate::store::{Permission, Store, StoreError, Transaction, children, read_text, transact};
use crate::switch::Mac;
use crate::xen::DomainId;

/// The two directories of a vif.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nodes {
    /// The frontend's, in the guest's home.
    pub frontend: String,
    /// The backend's, in ours.
    pub backend: String,
    own: DomainId,
    domain: DomainId,
    keeper: Keeper,
}

type Pairs = Vec<(&'static str, String)>;

/// Who makes and removes the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeper {
    /// This daemon does.
    Us,
    /// xl does, below `backend/vif`.
    Toolstack,
    /// Whoever gave a guest an interface of a driver domain's, from dom0.
    Dom0,
}

/// The key by which the hotplug script knows that we serve an interface that the toolstack made.
const OFFERED: &str = "drayage";
/// The key in which dom0 says what it wants of a driver domain.
const ATTACHMENT: &str = "attachment";

/// Returns a domain's home.
pub fn home(domain: DomainId) -> String {
    format!("/local/domain/{domain}")
}

/// Returns the directory in which all backend ends of our type are.
pub fn backend_root(own: DomainId) -> String {
    format!("{}/backend/{}", home(own), keys::BACKEND_TYPE)
}

/// A domain, as xenstore knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// Its number.
    pub id: DomainId,
    /// Its name.
    pub name: String,
    /// Its UUID, empty if the toolstack wrote none.
    pub uuid: String,
}

/// Returns a domain by its number.
///
/// # Errors
/// [`StoreError`].
pub fn domain(store: &impl Store, id: DomainId) -> Result<Option<Domain>, StoreError> {
    // A driver domain may not look into other homes.
    let text = |key: &str| match read_text(store, Transaction::NONE, &format!("{}/{key}", home(id))) {
        Err(StoreError::Denied(_)) => Ok(None),
        result => result,
    };
    let Some(name) = text("name")? else { return Ok(None) };
    // `vm` is a path: `/vm/<uuid>`.
    let uuid = text("vm")?.and_then(|vm| vm.rsplit('/').next().map(str::to_owned)).unwrap_or_default();
    Ok(Some(Domain { id, name, uuid }))
}

/// Returns all domains.
///
/// # Errors
/// [`StoreError`].
pub fn domains(store: &impl Store) -> Result<Vec<Domain>, StoreError> {
    let mut found = Vec::new();
    for name in children(store, "/local/domain")? {
        if let Ok(id) = name.parse()
            && let Some(domain) = domain(store, DomainId(id))?
        {
            found.push(domain);
        }
    }
    found.sort_by_key(|d| d.id);
    Ok(found)
}

/// Returns the numbers of all network interfaces of a domain, whoever serves them.
///
/// # Errors
/// [`StoreError`].
pub fn interfaces(store: &impl Store, domain: DomainId) -> Result<Vec<u32>, StoreError> {
    let own = format!("{}/device/{}", home(domain), keys::FRONTEND_TYPE);
    // libxl's own list names those that a guest cannot hide.
    let libxl = format!("/libxl/{domain}/device/{}", keys::FRONTEND_TYPE);
    let mut numbers: Vec<u32> = children(store, &own)?
        .into_iter()
        .chain(children(store, &libxl)?)
        .filter_map(|n| n.parse().ok())
        .collect();
    numbers.sort_unstable();
    numbers.dedup();
    Ok(numbers)
}

impl Nodes {
    /// Names the nodes of a vif.
    pub fn new(own: DomainId, domain: DomainId, vif: u32) -> Self {
        Self {
            frontend: format!("{}/device/{}/{vif}", home(domain), keys::FRONTEND_TYPE),
            backend: format!("{}/{domain}/{vif}", backend_root(own)),
            own,
            domain,
            keeper: Keeper::Us,
        }
    }

    /// Names the nodes of a vif that the toolstack makes and removes.
    pub fn of_toolstack(own: DomainId, domain: DomainId, vif: u32) -> Self {
        let backend = format!("{}/backend/{}/{domain}/{vif}", home(own), keys::FRONTEND_TYPE);
        Self { backend, keeper: Keeper::Toolstack, ..Self::new(own, domain, vif) }
    }

    /// Names the nodes of a vif that dom0 made for us, a driver domain.
    pub fn of_dom0(own: DomainId, domain: DomainId, vif: u32) -> Self {
        Self { keeper: Keeper::Dom0, ..Self::new(own, domain, vif) }
    }

    /// Returns whose frontend it is.
    pub fn domain(&self) -> DomainId {
        self.domain
    }

    /// Returns who makes and removes them.
    pub fn keeper(&self) -> Keeper {
        self.keeper
    }

    /// Makes both directories from dom0, for a daemon in the domain that owns the backend's. Both ends are in
    /// `Initialising`; `attachment` says what is wanted.
    ///
    /// # Errors
    /// [`StoreError`]; nothing is then there.
    pub fn create_for(
        &self,
        store: &impl Store,
        mac: Mac,
        vif: u32,
        mapping: Mapping,
        attachment: &str,
    ) -> Result<(), StoreError> {
        let (front, mut back) = self.common(vif, mac, 1500, mapping);
        back.push((ATTACHMENT, attachment.into()));
        back.push((keys::STATE, State::Initialising.value().into()));
        let above = format!("{}/{}", backend_root(self.own), self.domain);
        transact(store, |t| {
            // So that the daemon sees what comes, and may take away what is gone.
            for dir in [&backend_root(self.own), &above] {
                store.make(t, dir)?;
                store.permit(t, dir, &[(self.own, Permission::None)])?;
            }
            self.write_both(store, t, &front, &back)
        })
    }

    /// Returns what dom0 wants, if it is dom0 that made the nodes.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn wanted_by_dom0(&self, store: &impl Store) -> Result<Option<String>, StoreError> {
        read_text(store, Transaction::NONE, &format!("{}/{ATTACHMENT}", self.backend))
    }

    /// Returns whether the other end is still wanted.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn is_online(&self, store: &impl Store) -> Result<bool, StoreError> {
        let online = read_text(store, Transaction::NONE, &format!("{}/{}", self.backend, keys::ONLINE))?;
        Ok(online.as_deref() == Some("1"))
    }

    /// Writes into nodes of the toolstack's what we offer, and is in `InitWait` then.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn offer(
        &self,
        store: &impl Store,
        containers: Containers,
        mapping: Mapping,
    ) -> Result<(), StoreError> {
        transact(store, |t| {
            for (key, value) in features(containers, mapping) {
                store.write(t, &format!("{}/{key}", self.backend), &value)?;
            }
            store.write(t, &format!("{}/{OFFERED}", self.backend), env!("CARGO_PKG_VERSION"))?;
            store.write(t, &format!("{}/{}", self.backend, keys::STATE), State::InitWait.value())
        })
    }

    /// Returns whether we have [offered](Self::offer) anything there.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn is_offered(&self, store: &impl Store) -> Result<bool, StoreError> {
        Ok(read_text(store, Transaction::NONE, &format!("{}/{OFFERED}", self.backend))?.is_some())
    }

    /// Makes both directories: the frontend's in state `Initialising`, ours in `InitWait` with all that we
    /// offer.
    ///
    /// # Errors
    /// [`StoreError`]; nothing is then there.
    pub fn create(
        &self,
        store: &impl Store,
        vif: u32,
        mac: Mac,
        mtu: u16,
        containers: Containers,
        mapping: Mapping,
    ) -> Result<(), StoreError> {
        let (front, mut back) = self.common(vif, mac, mtu, mapping);
        back.push(("hotplug-status", "connected".into()));
        back.extend(features(containers, mapping));
        back.push((keys::STATE, State::InitWait.value().into()));
        transact(store, |t| self.write_both(store, t, &front, &back))
    }

    /// Tells a frontend that is about to connect which MTU its network has now.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn tell_mtu(&self, store: &impl Store, mtu: u16) -> Result<(), StoreError> {
        store.write(Transaction::NONE, &format!("{}/{}", self.frontend, keys::MTU), &mtu.to_string())
    }

    /// Returns what is written into the frontend's and into our directory in any case.
    fn common(&self, vif: u32, mac: Mac, mtu: u16, mapping: Mapping) -> (Pairs, Pairs) {
        let front = vec![
            (keys::BACKEND, self.backend.clone()),
            (keys::BACKEND_ID, self.own.to_string()),
            (keys::HANDLE, vif.to_string()),
            (keys::MAC, mac.to_string()),
            (keys::MTU, mtu.to_string()),
            (keys::TRUSTED, u8::from(mapping.trusted).to_string()),
            (keys::STATE, State::Initialising.value().into()),
        ];
        let back = vec![
            (keys::FRONTEND, self.frontend.clone()),
            (keys::FRONTEND_ID, self.domain.to_string()),
            (keys::ONLINE, "1".into()),
            (keys::HANDLE, vif.to_string()),
            (keys::MAC, mac.to_string()),
        ];
        (front, back)
    }

    fn write_both(
        &self,
        store: &impl Store,
        t: Transaction,
        front: &[(&'static str, String)],
        back: &[(&'static str, String)],
    ) -> Result<(), StoreError> {
        for (dir, owner, reader, pairs) in
            [(&self.backend, self.own, self.domain, back), (&self.frontend, self.domain, self.own, front)]
        {
            store.remove(t, dir)?;
            store.make(t, dir)?;
            store.permit(t, dir, &[(owner, Permission::None), (reader, Permission::Read)])?;
            for (key, value) in pairs {
                store.write(t, &format!("{dir}/{key}"), value)?;
            }
        }
        Ok(())
    }

    /// Returns whether both directories are there already, made by an earlier daemon for the same interface, so
    /// that it can be served from where that one stopped.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn found(&self, store: &impl Store, mac: Mac, containers: Containers) -> Result<bool, StoreError> {
        let back = |key: &str| read_text(store, Transaction::NONE, &format!("{}/{key}", self.backend));
        let lives = matches!(
            self.backend_state(store)?,
            Some(State::InitWait | State::Connected | State::Reconfigured)
        );
        let offered = back(keys::FEATURE_RX_CONTAINERS)?.is_some();
        Ok(lives
            && self.frontend_state(store)?.is_some()
            && back(keys::FRONTEND)?.as_deref() == Some(&*self.frontend)
            && back(keys::ONLINE)?.as_deref() == Some("1")
            && back(keys::MAC)? == Some(mac.to_string())
            && offered == (containers == Containers::On))
    }

    /// Removes both directories, where they are ours.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove(&self, store: &impl Store) -> Result<(), StoreError> {
        match self.keeper {
            Keeper::Toolstack => return Ok(()),
            // dom0 takes away what it made once we are Closed; if the guest is gone, what is left is ours.
            Keeper::Dom0 if self.frontend_state(store)?.is_some() => return Ok(()),
            Keeper::Dom0 => store.remove(Transaction::NONE, &self.backend)?,
            Keeper::Us => transact(store, |t| {
                store.remove(t, &self.frontend)?;
                store.remove(t, &self.backend)
            })?,
        }
        // The guest's own directory goes with its last interface.
        if let Some((parent, _)) = self.backend.rsplit_once('/')
            && children(store, parent)?.is_empty()
        {
            store.remove(Transaction::NONE, parent)?;
        }
        Ok(())
    }

    /// Returns the state of the frontend; `None` when its directory is gone.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn frontend_state(&self, store: &impl Store) -> Result<Option<State>, StoreError> {
        match state(store, &self.frontend) {
            // A driver domain may read it while it is there; of what is missing it is told as of the home above it,
            // which it may not look into.
            Err(StoreError::Denied(_)) if self.keeper == Keeper::Dom0 => Ok(None),
            result => result,
        }
    }

    /// Returns the state that we wrote last; `None` when our directory is gone.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn backend_state(&self, store: &impl Store) -> Result<Option<State>, StoreError> {
        state(store, &self.backend)
    }

    /// Writes our state.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn set_state(&self, store: &impl Store, state: State) -> Result<(), StoreError> {
        self.set(store, keys::STATE, state.value())
    }

    /// Writes a key of ours.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn set(&self, store: &impl Store, key: &str, value: &str) -> Result<(), StoreError> {
        // Not with a plain write: it would make a directory anew that was just removed.
        transact(store, |t| match store.read(t, &format!("{}/{}", self.backend, keys::FRONTEND)) {
            Ok(_) => store.write(t, &format!("{}/{key}", self.backend), value),
            Err(StoreError::Missing(_)) => Ok(()),
            Err(error) => Err(error),
        })
    }

    /// Leaves a message where the toolstack's users look for it (`xenbus_dev_error`).
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn report(&self, store: &impl Store, message: &str) -> Result<(), StoreError> {
        let below = self.backend.strip_prefix(&format!("{}/", home(self.own))).unwrap_or(&self.backend);
        let path = format!("{}/error/{below}/error", home(self.own));
        store.write(Transaction::NONE, &path, message)
    }
}

fn state(store: &impl Store, dir: &str) -> Result<Option<State>, StoreError> {
    match store.read(Transaction::NONE, &format!("{dir}/{}", keys::STATE)) {
        Ok(value) => Ok(Some(State::parse(&value))),
        Err(StoreError::Missing(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{End, Transaction};

    /// xenstore as a domain sees it that may read nothing.
    struct Denying;

    impl Store for Denying {
        fn read(&self, _: Transaction, path: &str) -> Result<Vec<u8>, StoreError> {
            Err(StoreError::Denied(path.into()))
        }
        fn write(&self, _: Transaction, path: &str, _: &str) -> Result<(), StoreError> {
            Err(StoreError::Denied(path.into()))
        }
        fn make(&self, _: Transaction, path: &str) -> Result<(), StoreError> {
            Err(StoreError::Denied(path.into()))
        }
        fn remove(&self, _: Transaction, path: &str) -> Result<(), StoreError> {
            Err(StoreError::Denied(path.into()))
        }
        fn permit(&self, _: Transaction, path: &str, _: &[(DomainId, Permission)]) -> Result<(), StoreError> {
            Err(StoreError::Denied(path.into()))
        }
        fn directory(&self, _: Transaction, path: &str) -> Result<Vec<String>, StoreError> {
            Err(StoreError::Denied(path.into()))
        }
        fn watch(&self, _: &str, _: &str) -> Result<(), StoreError> {
            Ok(())
        }
        fn unwatch(&self, _: &str, _: &str) -> Result<(), StoreError> {
            Ok(())
        }
        fn begin(&self) -> Result<Transaction, StoreError> {
            Ok(Transaction(1))
        }
        fn end(&self, _: Transaction, _: End) -> Result<(), StoreError> {
            Ok(())
        }
    }

    #[test]
    fn a_driver_domain_takes_a_frontend_that_it_may_not_read_for_one_that_is_gone() {
        let (own, guest) = (DomainId(1), DomainId(2));
        assert_eq!(Nodes::of_dom0(own, guest, 0).frontend_state(&Denying), Ok(None));
        let denied = Nodes::new(own, guest, 0).frontend_state(&Denying);
        assert!(matches!(denied, Err(StoreError::Denied(_))), "dom0 is denied nothing: {denied:?}");
        assert_eq!(domain(&Denying, guest), Ok(None), "and it knows no names of others");
    }
}
