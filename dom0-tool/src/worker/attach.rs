//! How an interface comes into the data path and leaves it: rings mapped, event channels bound, all of it given
//! back.
//!
//! It knows nothing of xenstore, which said where the rings are, nor of what is in them.

use drayage_wire::netif;
use drayage_wire::ring::{BackRing, Ledger, RingKind};

use super::{Target, Worker};
use crate::aggregate::REGION_BYTES;
use crate::clock::Clock;
use crate::fabric::{Kind, Port};
use crate::rules::Guard;
use crate::switch::{PortId, Segment};
use crate::vif::multicast::{Groups, Subscriptions};
use crate::vif::rx::Rx;
use crate::vif::staging::Staging;
use crate::vif::tx::Tx;
use crate::vif::{Aim, Connection, Counters, LocalEvents, RemoteEvents, Rings, Vif};
use crate::xen::{Access, Xen, XenError};

/// Why an interface could not be connected.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The guest's details are wrong.
    #[error(transparent)]
    Xen(#[from] XenError),
    /// There are too many.
    #[error("no room for another interface: {} are served already", crate::fabric::MAX_GUESTS)]
    NoRoom,
}

impl<X: Xen, C: Clock> Worker<X, C> {
    /// Maps a frontend's rings, binds its event channels, and serves it.
    ///
    /// # Errors
    /// [`ConnectError`]; nothing is then kept.
    pub fn connect(&mut self, segment: Segment, connection: &Connection) -> Result<PortId, ConnectError> {
        let id = self.fabric.vacancy().ok_or(ConnectError::NoRoom)?;
        let domain = connection.domain;
        let tx_page = self.xen.map(domain, connection.tx_ring, Access::ReadWrite)?;
        let rx_page = self.xen.map(domain, connection.rx_ring, Access::ReadWrite)?;
        let events = self.bind(connection)?;
        let staging = match self.attach_control(connection) {
            Ok(staging) => staging,
            Err(error) => {
                self.unbind(events);
                return Err(error.into());
            }
        };
        let Some(region) = self.fabric.take_region() else {
            self.unbind(events);
            if let Some(staging) = staging {
                self.xen.unbind(staging.event);
            }
            return Err(ConnectError::NoRoom);
        };
        let ledgers = ledger_names(connection);
        let (tx_ring, _) = ring::<netif::Tx, X>(&mut self.xen, tx_page, &ledgers[0], connection.rings);
        let (rx_ring, next) = ring::<netif::Rx, X>(&mut self.xen, rx_page, &ledgers[1], connection.rings);
        // An earlier backend may have published answers and not said so any more.
        let taken_over = connection.rings == Rings::TakenOver;
        // The list of groups is kept where there is one.
        let kept = match connection.groups {
            Groups::All => None,
            Groups::Subscribed => self.xen.keep(&ledgers[3]),
        };
        let sequence = next.unwrap_or(0);
        let vif = Vif {
            domain,
            tx: Tx::new(tx_ring, domain, connection.tx_format),
            rx: Rx::new(rx_ring, sequence, connection, REGION_BYTES),
            ledgers,
            staging,
            subscriptions: Subscriptions::new(connection.groups, kept, connection.rings),
            events,
            counters: Counters::default(),
            // Whatever the frontend did before we were bound made no event that we saw.
            tx_ready: true,
            tx_drained: false,
            aim: Aim::Nothing,
            frame_bytes: 0,
            held: None,
            promised_bytes: 0,
            woken: false,
            notify_tx: taken_over,
            notify_rx: taken_over,
            fault: None,
        };
        let control = vif.staging.as_ref().map(|staging| staging.event);
        // Requests may be there already.
        self.control_ready |= control.is_some();
        for port in [events.tx, events.rx].into_iter().chain(control) {
            let at = port.0 as usize;
            if self.owners.len() <= at {
                self.owners.resize(at + 1, None);
            }
            self.owners[at] = Some(id);
        }
        let kind = Kind::Guest { vif: Box::new(vif), region };
        let guard = Guard::new(connection.rules, connection.mac);
        self.fabric.ports[usize::from(id.0)] = Some(Port { segment, guard, kind });
        self.fabric.pin(id, segment, connection.mac);
        Ok(id)
    }

    fn bind(&mut self, connection: &Connection) -> Result<LocalEvents, XenError> {
        let domain = connection.domain;
        match connection.events {
            RemoteEvents::Shared(remote) => {
                let port = self.xen.bind(domain, remote)?;
                Ok(LocalEvents { tx: port, rx: port })
            }
            RemoteEvents::Split { tx, rx } => {
                let tx = self.xen.bind(domain, tx)?;
                match self.xen.bind(domain, rx) {
                    Ok(rx) => Ok(LocalEvents { tx, rx }),
                    Err(error) => {
                        self.xen.unbind(tx);
                        Err(error)
                    }
                }
            }
        }
    }

    /// Maps a frontend's control ring, if it has one, and binds its event channel.
    fn attach_control(&mut self, connection: &Connection) -> Result<Option<Box<Staging<X::Page>>>, XenError> {
        let Some(control) = connection.control else { return Ok(None) };
        let domain = connection.domain;
        let page = self.xen.map(domain, control.ring, Access::ReadWrite)?;
        let event = self.xen.bind(domain, control.event)?;
        let [_, _, ledger, _] = ledger_names(connection);
        let ledger = self.xen.keep(&ledger);
        Ok(Some(Box::new(Staging::new(page, domain, event, ledger, connection.rings))))
    }

    fn unbind(&mut self, events: LocalEvents) {
        self.xen.unbind(events.tx);
        if events.rx != events.tx {
            self.xen.unbind(events.rx);
        }
    }

    /// Stops serving an interface, and gives back all that is the guest's. Returns its counters.
    pub fn disconnect(&mut self, id: PortId) -> Option<Counters> {
        let slot = self.fabric.ports.get_mut(usize::from(id.0))?;
        if !matches!(slot, Some(Port { kind: Kind::Guest { .. }, .. })) {
            return None;
        }
        let Some(Port { kind: Kind::Guest { mut vif, region }, .. }) = slot.take() else { return None };
        vif.rx.let_go(&mut self.fabric.leases);
        let control = vif.staging.as_ref().map(|staging| staging.event);
        for port in [vif.events.tx, vif.events.rx].into_iter().chain(control) {
            if let Some(owner) = self.owners.get_mut(port.0 as usize) {
                *owner = None;
            }
        }
        self.unbind(vif.events);
        if let Some(control) = control {
            self.xen.unbind(control);
        }
        for name in &vif.ledgers {
            self.xen.give_up(name);
        }
        self.fabric.switch.forget(id);
        self.fabric.give_region(region);
        if self.stream.as_ref().is_some_and(|s| s.target == Target::Guest(id)) {
            self.end_stream(true);
        }
        Some(vif.counters)
    }
}

/// Returns the names of the three rings' ledgers, and of that of the multicast groups.
fn ledger_names(connection: &Connection) -> [String; 4] {
    let Connection { domain, tx_ring, rx_ring, .. } = connection;
    ["tx", "rx", "control", "groups"].map(|ring| format!("{domain}-{}-{}-{ring}", tx_ring.0, rx_ring.0))
}

/// Takes a ring, with a ledger where there can be one. Returns it with what an earlier backend noted last.
fn ring<K: RingKind, X: Xen>(
    xen: &mut X,
    page: X::Page,
    ledger: &str,
    rings: Rings,
) -> (BackRing<K, X::Page>, Option<u32>) {
    match (xen.keep(ledger), rings) {
        (None, _) => (BackRing::attach(page), None),
        (Some(kept), Rings::New) => (BackRing::attach(page).keeping(Ledger::new(kept)), None),
        (Some(kept), Rings::TakenOver) => BackRing::resume(page, Ledger::new(kept)),
    }
}
