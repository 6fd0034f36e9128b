//! One vif through its life: what its frontend's state asks of us (`xen/include/public/io/xenbus.h`, and the
//! habits of the frontends there are).
//!
//! Frontends differ: Linux waits for our `InitWait` before it writes anything, mini-os and its kin write
//! `Connected` at once, FreeBSD and a resumed Linux begin anew from `Closed`.

use drayage_wire::keys::{self, State};

use super::attachment::Attachment;
use super::nodes::{Domain, Nodes};
use super::plane::DataPlane;
use super::{CLOSE_PATIENCE_NS, Manager, details};
use crate::store::{Store, StoreError, transact};
use crate::switch::{PortId, Segment};
use crate::vif::{Connection, Counters, Rings, rx, tx};
use crate::xen::DomainId;

/// A vif.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) domain: Domain,
    pub(super) attachment: Attachment,
    pub(super) nodes: Nodes,
    pub(super) segment: Segment,
    pub(super) stage: Stage,
    /// Who had the rings of the next connection before.
    pub(super) rings: Rings,
    /// What it did until it was disconnected last.
    pub(super) last_counters: Counters,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The frontend has not connected, or has disconnected.
    Waiting,
    /// It is served.
    Connected { port: PortId, rx_containers: bool, tx_containers: bool },
    /// It was refused, or broke the protocol.
    Refused,
    /// It was asked to close.
    Closing { port: Option<PortId>, until_ns: u64 },
}

impl Stage {
    pub(super) fn port(self) -> Option<PortId> {
        match self {
            Self::Connected { port, .. } => Some(port),
            Self::Closing { port, .. } => port,
            Self::Waiting | Self::Refused => None,
        }
    }
}

impl Device {
    pub(super) fn new(
        domain: Domain,
        attachment: Attachment,
        nodes: Nodes,
        segment: Segment,
        rings: Rings,
    ) -> Self {
        let last_counters = Counters::default();
        Self { domain, attachment, nodes, segment, stage: Stage::Waiting, rings, last_counters }
    }

    /// Returns the node that is watched.
    pub(super) fn watched(&self) -> String {
        format!("{}/{}", self.nodes.frontend, keys::STATE)
    }

    /// Returns the watch's token.
    pub(super) fn token(&self) -> String {
        format!("vif/{}/{}", self.domain.id, self.attachment.vif)
    }

    /// Returns which device a token means.
    pub(super) fn key_of(token: &str) -> Option<(DomainId, u32)> {
        let (domain, vif) = token.strip_prefix("vif/")?.split_once('/')?;
        Some((DomainId(domain.parse().ok()?), vif.parse().ok()?))
    }
}

impl<S: Store, D: DataPlane> Manager<S, D> {
    /// Does what the frontend's state asks for.
    pub(super) fn advance(&mut self, key: (DomainId, u32), now_ns: u64) -> Result<(), StoreError> {
        let Some(device) = self.devices.get(&key) else { return Ok(()) };
        let Some(state) = device.nodes.frontend_state(&self.store)? else {
            return self.lose(key, now_ns);
        };
        match (state, device.stage) {
            (State::Initialised | State::Connected, Stage::Waiting) => self.connect(key),
            (State::Reconfiguring, Stage::Connected { .. }) => {
                // What was agreed holds until the next connection; there is nothing to take.
                device.nodes.set_state(&self.store, State::Reconfigured)
            }
            (State::Connected, Stage::Connected { .. })
                if device.nodes.backend_state(&self.store)? == Some(State::Reconfigured) =>
            {
                device.nodes.set_state(&self.store, State::Connected)
            }
            (State::Closing, Stage::Connected { .. } | Stage::Waiting) => {
                self.disconnect(key);
                self.set_state(key, State::Closing)
            }
            (State::Closed, Stage::Closing { .. }) => {
                self.drop_device(key);
                // It may have been closed to be attached otherwise.
                self.welcome(now_ns)
            }
            (State::Closed, _) => {
                self.disconnect(key);
                self.set_state(key, State::Closed)
            }
            // The frontend begins anew, or was connected and is set up again without closing.
            (State::Initialising, Stage::Connected { .. } | Stage::Refused) => {
                self.disconnect(key);
                self.invite(key)
            }
            (State::Initialising, Stage::Waiting) => match device.nodes.backend_state(&self.store)? {
                Some(State::InitWait) | None => Ok(()),
                _ => self.invite(key),
            },
            _ => Ok(()),
        }
    }

    fn set_state(&self, key: (DomainId, u32), state: State) -> Result<(), StoreError> {
        self.devices.get(&key).map_or(Ok(()), |d| d.nodes.set_state(&self.store, state))
    }

    /// Asks a frontend that begins anew to connect.
    fn invite(&self, key: (DomainId, u32)) -> Result<(), StoreError> {
        let Some(device) = self.devices.get(&key) else { return Ok(()) };
        if device.nodes.keeper() == super::nodes::Keeper::Us {
            device.nodes.tell_mtu(&self.store, self.segment_of(&device.attachment).1)?;
        }
        device.nodes.set_state(&self.store, State::InitWait)
    }

    fn connect(&mut self, key: (DomainId, u32)) -> Result<(), StoreError> {
        let Some(device) = self.devices.get(&key) else { return Ok(()) };
        let attachment = &device.attachment;
        let wanted = details::Wanted {
            domain: key.0,
            mac: attachment.mac,
            policy: attachment.policy,
            urgent: attachment.urgent,
            size_bytes: attachment.size_bytes as usize,
            containers: attachment.containers,
            rules: attachment.rules,
            mapping: attachment.mapping,
        };
        let (frontend, segment) = (device.nodes.frontend.clone(), device.segment);
        let read = transact(&self.store, |t| match details::read(&self.store, t, &frontend, &wanted) {
            Err(details::Refused::Store(error)) => Err(error),
            result => Ok(result.map_err(|refused| refused.to_string())),
        })?;
        let rings = device.rings;
        // What an earlier daemon left connected stays so: its frontend is not to notice anything.
        let connected = device.nodes.backend_state(&self.store)? == Some(State::Connected);
        let outcome = read.and_then(|mut connection: Connection| {
            connection.rings = rings;
            let (rx, tx) = (connection.rx_format, connection.tx_format);
            let port = self.data.connect(segment, connection).map_err(|error| error.to_string())?;
            Ok((port, rx != rx::Format::Plain, tx != tx::Format::Plain))
        });
        let Some(device) = self.devices.get_mut(&key) else { return Ok(()) };
        match outcome {
            Ok((port, rx_containers, tx_containers)) => {
                device.stage = Stage::Connected { port, rx_containers, tx_containers };
                device.rings = Rings::New;
                let what = match rings {
                    Rings::New => "connected",
                    Rings::TakenOver => "took over",
                };
                tracing::info!("{what} vif {} of domain {:?} ({})", key.1, device.domain.name, key.0);
                if connected { Ok(()) } else { device.nodes.set_state(&self.store, State::Connected) }
            }
            Err(message) => {
                tracing::warn!("refusing vif {} of domain {:?}: {message}", key.1, device.domain.name);
                let report = device.nodes.report(&self.store, &message);
                self.refuse(key)?;
                report
            }
        }
    }

    /// Stops serving an interface; it stays attached.
    pub(super) fn disconnect(&mut self, key: (DomainId, u32)) {
        let Some(device) = self.devices.get_mut(&key) else { return };
        if let Some(port) = device.stage.port() {
            if let Some(counters) = self.data.disconnect(port) {
                device.last_counters = counters;
            }
            tracing::info!("disconnected vif {} of domain {:?} ({})", key.1, device.domain.name, key.0);
        }
        device.rings = Rings::New;
        device.stage = match device.stage {
            Stage::Closing { until_ns, .. } => Stage::Closing { port: None, until_ns },
            _ => Stage::Waiting,
        };
    }

    /// Ends an interface that broke the protocol.
    pub(super) fn refuse(&mut self, key: (DomainId, u32)) -> Result<(), StoreError> {
        self.disconnect(key);
        if let Some(device) = self.devices.get_mut(&key) {
            device.stage = Stage::Refused;
        }
        self.set_state(key, State::Closing)
    }

    /// Asks the frontend to close, or ends the interface at once if it never came up.
    pub(super) fn close(&mut self, key: (DomainId, u32), now_ns: u64) -> Result<(), StoreError> {
        let Some(device) = self.devices.get_mut(&key) else { return Ok(()) };
        let state = device.nodes.frontend_state(&self.store)?;
        let up = matches!(
            state,
            Some(State::Initialised | State::Connected | State::Closing | State::Reconfiguring)
        );
        if !up {
            self.drop_device(key);
            return Ok(());
        }
        if !matches!(device.stage, Stage::Closing { .. }) {
            let port = device.stage.port();
            device.stage = Stage::Closing { port, until_ns: now_ns + CLOSE_PATIENCE_NS };
        }
        if device.nodes.keeper() == super::nodes::Keeper::Us {
            device.nodes.set(&self.store, keys::ONLINE, "0")?;
        }
        device.nodes.set_state(&self.store, State::Closing)
    }

    /// Ends an interface whose guest is gone.
    pub(super) fn lose(&mut self, key: (DomainId, u32), now_ns: u64) -> Result<(), StoreError> {
        if let Some(device) = self.devices.get(&key) {
            let uuid = &device.attachment.uuid;
            for remembered in &mut self.remembered {
                if remembered.attachment.uuid == *uuid && remembered.attachment.vif == key.1 {
                    remembered.gone_since_ns = Some(now_ns);
                }
            }
        }
        self.drop_device(key);
        // The guest may have come back as another domain before its old one was missed.
        self.welcome(now_ns)
    }

    /// Ends an interface: data path, watch and nodes. What cannot be removed is logged; it is gone for us.
    pub(super) fn drop_device(&mut self, key: (DomainId, u32)) {
        self.disconnect(key);
        let Some(device) = self.devices.remove(&key) else { return };
        let closed = device.nodes.set_state(&self.store, State::Closed);
        let unwatched = self.store.unwatch(&device.watched(), &device.token());
        let removed = device.nodes.remove(&self.store);
        for result in [closed, unwatched, removed] {
            if let Err(error) = result {
                tracing::warn!("removing vif {} of domain {}: {error}", key.1, key.0);
            }
        }
        tracing::info!("removed vif {} of domain {:?} ({})", key.1, device.domain.name, key.0);
        self.close_unused_uplinks();
    }
}
