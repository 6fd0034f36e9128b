//! What dom0 does for a backend in another domain: it makes the nodes of both ends with the right owners, and takes
//! them away. The daemon over there needs none of dom0's rights.
//!
//! It knows nodes, and runs no daemon here.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use drayage_wire::keys::{self, State};

use super::attachment::Attachment;
use super::error::{Failure, FailureKind};
use super::nodes::{self, Domain, Nodes};
use super::{AttachRequest, find_domain};
use crate::store::client::Notice;
use crate::store::{Store, children};
use crate::xen::DomainId;

/// How long the other daemon may take to close an interface.
const PATIENCE: Duration = Duration::from_secs(10);

fn other(message: String) -> Failure {
    Failure::new(FailureKind::Other, message)
}

/// Gives a guest an interface of another domain's. Returns what the daemon over there is told.
///
/// # Errors
/// [`Failure`]; nothing is then left.
pub fn attach(
    store: &impl Store,
    own: DomainId,
    request: &AttachRequest,
    backend: &str,
) -> Result<Attachment, Failure> {
    request.judge()?;
    let (guest, backend) = (find_domain(store, own, &request.domain)?, find_domain(store, own, backend)?);
    if guest.id == backend.id {
        let message = format!("domain {:?} cannot be its own backend", guest.name);
        return Err(Failure::new(FailureKind::BadValue, message));
    }
    let taken = |message: String| Err(Failure::new(FailureKind::Taken, message));
    let numbers = nodes::interfaces(store, guest.id)?;
    let vif = match request.vif {
        Some(vif) if numbers.contains(&vif) => {
            return taken(format!(
                "domain {:?} has an interface {vif} already; name another with --vif",
                guest.name
            ));
        }
        Some(vif) => vif,
        None if request.mac.is_none() && !served(store, &backend, &guest)?.is_empty() => {
            return taken(format!(
                "domain {:?} is attached to {:?} already; tell a second interface from the first with --vif or --mac",
                guest.name, backend.name
            ));
        }
        None => (0..).find(|n| !numbers.contains(n)).unwrap_or_default(),
    };
    let attachment = request.attachment(&guest, vif, backend.id);
    let text = serde_json::to_string(&attachment).map_err(|error| other(error.to_string()))?;
    Nodes::new(backend.id, guest.id, vif).create_for(
        store,
        attachment.mac,
        vif,
        attachment.mapping,
        &text,
    )?;
    Ok(attachment)
}

/// Returns the interfaces of a guest that a backend has.
fn served(store: &impl Store, backend: &Domain, guest: &Domain) -> Result<Vec<u32>, Failure> {
    let names = children(store, &format!("{}/{}", nodes::backend_root(backend.id), guest.id))?;
    Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
}

/// Takes an interface of another domain's away from a guest. `notices` are those of the store's connection.
///
/// # Errors
/// [`Failure`].
pub fn detach(
    store: &impl Store,
    own: DomainId,
    (guest, vif): (&str, Option<u32>),
    backend: &str,
    notices: &Receiver<Notice>,
) -> Result<(), Failure> {
    let (guest, backend) = (find_domain(store, own, guest)?, find_domain(store, own, backend)?);
    let (name, of) = (&guest.name, &backend.name);
    let all = served(store, &backend, &guest)?;
    let vif = match (vif, &all[..]) {
        (None, [one]) => *one,
        (Some(vif), all) if all.contains(&vif) => vif,
        (_, []) | (Some(_), _) => {
            let message = format!("domain {name:?} has no such interface of {of:?}");
            return Err(Failure::new(FailureKind::NotFound, message));
        }
        (None, _) => {
            let message = format!("domain {name:?} has interfaces {all:?} of {of:?}: name one with --vif");
            return Err(Failure::new(FailureKind::BadValue, message));
        }
    };
    let nodes = Nodes::new(backend.id, guest.id, vif);
    nodes.set(store, keys::ONLINE, "0")?;
    nodes.set_state(store, State::Closing)?;
    store.watch(&format!("{}/{}", nodes.backend, keys::STATE), "closed")?;
    let until = Instant::now() + PATIENCE;
    let mut closed = false;
    while !closed {
        match notices.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(Notice::Watch(_)) => {
                closed = matches!(nodes.backend_state(store)?, None | Some(State::Closed));
            }
            Ok(Notice::Broken(why)) => return Err(other(format!("xenstore went away: {why}"))),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        }
    }
    nodes.remove(store)?;
    if !closed {
        let seconds = PATIENCE.as_secs();
        return Err(other(format!(
            "the daemon in domain {of:?} did not close interface {vif} of {name:?} within {seconds} s; it was removed \
             without it"
        )));
    }
    Ok(())
}
