//! The backend's control path, done by hand: offers, the frontend's answer, the connection to the worker.
//!
//! It knows xenstore and the worker's terms, and neither rings nor packets.

use drayage::aggregate::Wrap;
use drayage::class::Classes;
use drayage::clock::Clock;
use drayage::policy::Policy;
use drayage::switch::{Mac, PortId};
use drayage::vif::rx::{self, Accepts};
use drayage::vif::{Connection, ControlRing, RemoteEvents, Rings, tx};
use drayage::worker::{ConnectError, Worker};
use drayage::xen;
use drayage_netfront::platform::DomainId;
use drayage_wire::container::{MAX_RX_BYTES, MAX_TX_BYTES, MIN_SIZE_BYTES};
use drayage_wire::keys::{self, State};
use memxen::Hypervisor;

use crate::back::Back;
use crate::hand::{self, Hand};
use crate::inhabitants::HANDLE;
use crate::world::LAN;

/// What the backend offers.
#[derive(Clone, Copy, Debug)]
pub struct Offers {
    /// Containers towards the guest.
    pub rx_containers: bool,
    /// Containers from the guest.
    pub tx_containers: bool,
    /// The largest container from the guest, in bytes.
    pub tx_max_bytes: usize,
    /// An event channel for each ring.
    pub split: bool,
    /// TCP super-frames from the guest.
    pub super_frames: bool,
    /// The MTU that the toolstack names, if it names one.
    pub mtu: Option<usize>,
    /// A control ring, for static grants.
    pub control: bool,
}

impl Default for Offers {
    fn default() -> Self {
        Self {
            rx_containers: true,
            tx_containers: true,
            tx_max_bytes: MAX_TX_BYTES,
            split: true,
            super_frames: true,
            mtu: None,
            control: false,
        }
    }
}

/// What a guest is held to be able to take, beside what its driver says of itself: a driver of less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// All that the driver says.
    All,
    /// Frames that are complete: neither super-frames nor blank checksums.
    Complete,
}

/// The control path.
#[derive(Debug)]
pub struct Connector {
    hv: Hypervisor,
    offers: Offers,
    policy: Policy,
    /// Packets that do not wait.
    pub urgent: Classes,
    /// What the guests take that are connected from now on.
    pub takes: Takes,
    vifs: Vec<(DomainId, Hand, Option<PortId>)>,
}

impl Connector {
    /// Returns a control path without vifs.
    pub fn new(hv: &Hypervisor, offers: Offers, policy: Policy) -> Self {
        let (urgent, takes) = (Classes::default(), Takes::All);
        Self { hv: hv.clone(), offers, policy, urgent, takes, vifs: Vec::new() }
    }

    /// Makes the nodes of a vif and waits for its frontend.
    pub fn plug(&mut self, guest: DomainId, mac: [u8; 6]) {
        let flag = |on: bool| if on { "1" } else { "0" };
        let max_bytes = self.offers.tx_max_bytes.to_string();
        let offers = [
            (keys::FEATURE_RX_COPY, "1"),
            (keys::FEATURE_SG, "1"),
            (keys::FEATURE_GSO_TCPV4, flag(self.offers.super_frames)),
            (keys::FEATURE_GSO_TCPV6, "1"),
            (keys::FEATURE_IPV6_CSUM_OFFLOAD, "1"),
            (keys::FEATURE_SPLIT_EVENT_CHANNELS, flag(self.offers.split)),
            (keys::FEATURE_CTRL_RING, flag(self.offers.control)),
            (keys::FEATURE_RX_CONTAINERS, flag(self.offers.rx_containers)),
            (keys::FEATURE_TX_CONTAINERS, flag(self.offers.tx_containers)),
            (keys::TX_CONTAINER_MAX_BYTES, &max_bytes),
        ];
        hand::plug(&self.hv, guest, HANDLE, mac, &offers);
        if let Some(mtu) = self.offers.mtu {
            hand::write_front(&self.hv, guest, HANDLE, keys::MTU, &mtu.to_string());
        }
        let hand = Hand::new(&self.hv, guest, HANDLE);
        self.vifs.retain(|(id, ..)| *id != guest);
        self.vifs.push((guest, hand, None));
    }

    fn vif(&mut self, guest: DomainId) -> &mut (DomainId, Hand, Option<PortId>) {
        self.vifs.iter_mut().find(|(id, ..)| *id == guest).expect("the guest was plugged")
    }

    /// Connects a guest whose frontend has told its details.
    ///
    /// # Errors
    /// What the worker says.
    ///
    /// # Panics
    /// When the frontend has told nothing.
    pub fn connect<C: Clock>(
        &mut self,
        worker: &mut Worker<Back, C>,
        guest: DomainId,
        mac: Mac,
    ) -> Result<PortId, ConnectError> {
        let (offers, policy, urgent) = (self.offers, self.policy, self.urgent);
        let all = self.takes == Takes::All;
        let (_, hand, port) = self.vif(guest);
        assert_eq!(hand.front_state(), State::Connected);
        let number = |key| hand.told(key).and_then(|value| keys::parse_number(value.as_bytes()));
        let flag = |key| number(key) == Some(1);
        let wanted = |key| number(key).expect("the frontend tells it");
        let events = if offers.split {
            let (tx, rx) = (wanted(keys::EVENT_CHANNEL_TX), wanted(keys::EVENT_CHANNEL_RX));
            RemoteEvents::Split { tx: xen::EventPort(tx), rx: xen::EventPort(rx) }
        } else {
            RemoteEvents::Shared(xen::EventPort(wanted(keys::EVENT_CHANNEL)))
        };
        let rx_format = if flag(keys::REQUEST_RX_CONTAINERS) {
            let size = number(keys::RX_CONTAINER_MAX_BYTES).map_or(MIN_SIZE_BYTES, |bytes| bytes as usize);
            let wrap = if flag(keys::FEATURE_RX_CONTAINER_WRAP) { Wrap::Allowed } else { Wrap::Forbidden };
            rx::Format::Containers { size: size.min(MAX_RX_BYTES), wrap }
        } else {
            rx::Format::Plain
        };
        let tx_format = if flag(keys::REQUEST_TX_CONTAINERS) {
            tx::Format::Containers { size: offers.tx_max_bytes }
        } else {
            tx::Format::Plain
        };
        let control = number(keys::CTRL_RING_REF).map(|ring| ControlRing {
            ring: xen::GrantRef(ring),
            event: xen::EventPort(wanted(keys::EVENT_CHANNEL_CTRL)),
        });
        let connection = Connection {
            control,
            domain: xen::DomainId(guest.0),
            mac,
            tx_ring: xen::GrantRef(wanted(keys::TX_RING_REF)),
            rx_ring: xen::GrantRef(wanted(keys::RX_RING_REF)),
            events,
            tx_format,
            rx_format,
            accepts: Accepts {
                scatter: flag(keys::FEATURE_SG),
                gso_v4: all && flag(keys::FEATURE_GSO_TCPV4),
                gso_v6: all && flag(keys::FEATURE_GSO_TCPV6),
                blank_v4: all && !flag(keys::FEATURE_NO_CSUM_OFFLOAD),
                blank_v6: all && flag(keys::FEATURE_IPV6_CSUM_OFFLOAD),
            },
            policy,
            urgent,
            rules: Default::default(),
            groups: Default::default(),
            rings: Rings::New,
        };
        let id = worker.connect(LAN, &connection)?;
        *port = Some(id);
        hand.set_state(State::Connected);
        Ok(id)
    }

    /// Returns a guest's port.
    ///
    /// # Panics
    /// When it is not connected.
    pub fn port(&mut self, guest: DomainId) -> PortId {
        self.vif(guest).2.expect("the guest is connected")
    }

    /// Returns a guest's port, if it is connected.
    pub fn find(&self, guest: DomainId) -> Option<PortId> {
        self.vifs.iter().find(|(id, ..)| *id == guest).and_then(|(.., port)| *port)
    }

    /// Disconnects a guest: the worker lets go, and the backend is Closed.
    pub fn close<C: Clock>(&mut self, worker: &mut Worker<Back, C>, guest: DomainId) {
        let (_, hand, port) = self.vif(guest);
        if let Some(port) = port.take() {
            worker.disconnect(port);
        }
        hand.set_state(State::Closed);
    }

    /// Removes the nodes of a vif.
    pub fn unplug(&mut self, guest: DomainId) {
        self.vif(guest).1.unplug();
    }
}
