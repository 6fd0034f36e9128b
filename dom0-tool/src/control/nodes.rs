//! The xenstore nodes of a vif: where they are, who owns them, and how they come and go.
//!
//! It knows paths and permissions (libxl's `libxl__device_generic_add` is the model), and no state.

use drayage_wire::keys::{self, State};

use super::details::{Containers, features};
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
}

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
    let text = |key: &str| read_text(store, Transaction::NONE, &format!("{}/{key}", home(id)));
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
        }
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
    ) -> Result<(), StoreError> {
        let front = [
            (keys::BACKEND, self.backend.clone()),
            (keys::BACKEND_ID, self.own.to_string()),
            (keys::HANDLE, vif.to_string()),
            (keys::MAC, mac.to_string()),
            (keys::MTU, mtu.to_string()),
            (keys::TRUSTED, "1".into()),
            (keys::STATE, State::Initialising.value().into()),
        ];
        let mut back = vec![
            (keys::FRONTEND, self.frontend.clone()),
            (keys::FRONTEND_ID, self.domain.to_string()),
            (keys::ONLINE, "1".into()),
            (keys::HANDLE, vif.to_string()),
            (keys::MAC, mac.to_string()),
            ("hotplug-status", "connected".into()),
        ];
        back.extend(features(containers));
        back.push((keys::STATE, State::InitWait.value().into()));
        transact(store, |t| {
            for (dir, owner, reader, pairs) in [
                (&self.backend, self.own, self.domain, &back[..]),
                (&self.frontend, self.domain, self.own, &front[..]),
            ] {
                store.remove(t, dir)?;
                store.make(t, dir)?;
                store.permit(t, dir, &[(owner, Permission::None), (reader, Permission::Read)])?;
                for (key, value) in pairs {
                    store.write(t, &format!("{dir}/{key}"), value)?;
                }
            }
            Ok(())
        })
    }

    /// Removes both directories.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove(&self, store: &impl Store) -> Result<(), StoreError> {
        transact(store, |t| {
            store.remove(t, &self.frontend)?;
            store.remove(t, &self.backend)
        })?;
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
        state(store, &self.frontend)
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
