//! One guest interface's data path: its two rings, its event channels and its counters.
//!
//! It knows how the two sides share event channels, and neither where packets come from and go to nor how the
//! two ends found each other.

pub mod across;
pub mod counters;
pub mod floods;
pub mod holds;
pub mod multicast;
pub mod plain;
pub mod rx;
pub mod scratch;
pub mod staging;
pub mod tx;

use drayage_wire::container::Packet;
use drayage_wire::ring::Overrun;

use crate::class::Classes;
use crate::policy::Policy;
use crate::rules::Rules;
use crate::switch::{Mac, PortId};
use crate::xen::{DomainId, EventPort, GrantRef, PageAccess};
pub use counters::Counters;
use multicast::{Groups, Subscriptions};

/// What a frontend said when it connected, validated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The guest.
    pub domain: DomainId,
    /// Its address.
    pub mac: Mac,
    /// The page of its TX ring.
    pub tx_ring: GrantRef,
    /// The page of its RX ring.
    pub rx_ring: GrantRef,
    /// Its event channels.
    pub events: RemoteEvents,
    /// Its control ring, if it has one.
    pub control: Option<ControlRing>,
    /// How TX chains look.
    pub tx_format: tx::Format,
    /// How RX chains look.
    pub rx_format: rx::Format,
    /// What it takes.
    pub accepts: rx::Accepts,
    /// When containers go out to it.
    pub policy: Policy,
    /// Packets that do not wait.
    pub urgent: Classes,
    /// What its operator holds it to.
    pub rules: Rules,
    /// Which groups it hears.
    pub groups: Groups,
    /// Who had the rings before.
    pub rings: Rings,
}

/// Who had a frontend's rings before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Rings {
    /// Nobody: the frontend has just made them.
    #[default]
    New,
    /// An earlier backend, which the frontend does not know to be gone.
    TakenOver,
}

/// A frontend's control ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlRing {
    /// Its page.
    pub ring: GrantRef,
    /// Its event channel.
    pub event: EventPort,
}

/// A frontend's event channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteEvents {
    /// One for both rings.
    Shared(EventPort),
    /// One for each.
    Split {
        /// For the TX ring.
        tx: EventPort,
        /// For the RX ring.
        rx: EventPort,
    },
}

/// Our ends of the event channels; the same twice where they are shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalEvents {
    /// For the TX ring.
    pub tx: EventPort,
    /// For the RX ring.
    pub rx: EventPort,
}

/// The guest broke the protocol, and its interface is not served any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// On its RX ring.
    #[error("rx ring: {0}")]
    Rx(#[from] Overrun),
    /// On its TX ring.
    #[error("tx ring: {0}")]
    Tx(#[from] tx::Fatal),
    /// On its control ring.
    #[error("control ring: {0}")]
    Control(Overrun),
}

/// Where frames went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Aim {
    /// There were none.
    #[default]
    Nothing,
    /// All to this port.
    One(PortId),
    /// To several ports, or to everybody.
    Many,
}

impl Aim {
    /// Notes a frame that goes to one port.
    #[inline]
    pub fn note(&mut self, to: PortId) {
        *self = match *self {
            Self::Nothing => Self::One(to),
            Self::One(before) if before == to => return,
            _ => Self::Many,
        };
    }
}

/// Requests that are left in a TX ring for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Since when.
    pub since_ns: u64,
    /// Bytes of the first.
    pub bytes: usize,
}

impl<P: PageAccess> Vif<P> {
    /// As [`rx::Rx::accept_container`].
    pub fn accept_container(
        &mut self,
        region: &mut [u8],
        now_ns: u64,
        whole: &mut across::Whole<'_, P>,
        leases: &mut scratch::Leases,
    ) -> tx::Taken {
        let staged = self.staging.as_ref().map(|staging| &staging.table);
        self.rx.accept_container(region, now_ns, whole, (staged, leases), &mut self.counters)
    }

    /// As [`rx::Rx::accept_packet`].
    pub fn accept_packet(
        &mut self,
        region: &mut [u8],
        now_ns: u64,
        packet: (&mut across::Whole<'_, P>, &Packet),
    ) -> tx::Taken {
        let Some(staging) = &self.staging else { return tx::Taken::No };
        self.rx.accept_packet(region, now_ns, packet, &staging.table, &mut self.counters)
    }
}

/// A connected interface.
#[derive(Debug)]
pub struct Vif<P> {
    /// The guest.
    pub domain: DomainId,
    /// From the guest.
    pub tx: tx::Tx<P>,
    /// Towards the guest.
    pub rx: rx::Rx<P>,
    /// Its control ring, and its pages that are mapped.
    pub staging: Option<Box<staging::Staging<P>>>,
    /// The groups that it hears.
    pub subscriptions: Subscriptions<P>,
    /// Event channels.
    pub events: LocalEvents,
    /// The names under which its rings' ledgers are kept.
    pub ledgers: [String; 4],
    /// What it did.
    pub counters: Counters,
    /// Whether its TX ring is to be read in the next pass.
    pub tx_ready: bool,
    /// Whether the running pass has emptied its TX ring.
    pub tx_drained: bool,
    /// Where what was found in its TX ring last went to.
    pub aim: Aim,
    /// Bytes of a frame of those, on average.
    pub frame_bytes: usize,
    /// What waits in its TX ring until there is room where it goes.
    pub held: Option<Held>,
    /// Bytes that the running pass has taken from others for this one.
    pub promised_bytes: usize,
    /// Whether the running pass has work for it.
    pub woken: bool,
    /// Events to be sent at the end of the pass.
    pub notify_tx: bool,
    /// As above.
    pub notify_rx: bool,
    /// Why it is not served any more.
    pub fault: Option<Fault>,
}
