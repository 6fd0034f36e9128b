//! One virtual network interface: what it is, what others may ask it, and what the loop asks of it in each
//! round. How it connects and closes is `xenbus`. It knows nothing of rings (that is `link`) or of the network
//! stack (that is `device`).

mod xenbus;

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;

use drayage_wire::PAGE_SIZE;
use drayage_wire::keys::{self, State};

use crate::counters::Counters;
use crate::features::{Agreed, Options};
use crate::link::{Link, Readiness, Remains};
use crate::platform::{DomainId, Platform, Port, Refused, StoreError};
use crate::pool::Reading;
use crate::rx::Broken;

/// Bytes of an Ethernet header.
pub(crate) const ETHERNET_HEADER_BYTES: usize = 14;

/// Why a vif does not work, until the toolstack makes it anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The backend does not copy received frames (`feature-rx-copy`).
    NoCopy,
    /// The platform could not give what a connection takes.
    Refused(Refused),
    /// xenstore failed.
    Store(StoreError),
    /// The backend broke the connection.
    Broken(Broken),
}

impl core::fmt::Display for Problem {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NoCopy => write!(f, "backend does not offer {}=1", keys::FEATURE_RX_COPY),
            Self::Refused(refused) => refused.fmt(f),
            Self::Store(error) => error.fmt(f),
            Self::Broken(broken) => broken.fmt(f),
        }
    }
}

impl core::error::Error for Problem {}

/// What happened to a vif.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Packets flow. Address and MTU may be new.
    Up,
    /// It is settled which pages the backend maps: see [`Vif::staged`].
    Staged,
    /// Packets do not flow any more.
    Down,
    /// The vif is gone.
    Removed,
    /// The vif does not work.
    Failed(Problem),
}

/// What happened, and to which vif.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The vif's number.
    pub handle: u32,
    /// What happened.
    pub event: Event,
}

/// What the control path leaves for others to see to.
#[derive(Debug)]
pub(crate) struct Aftermath<P> {
    pub(crate) changes: VecDeque<Change>,
    pub(crate) remains: Vec<Box<Remains<P>>>,
}

/// Where a vif stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// For the backend to be in InitWait.
    Waiting,
    /// Our details are written; the backend is to become Connected.
    Connecting,
    /// Packets flow.
    Connected,
    /// The backend is to unmap our pages; then we close.
    Releasing(Closer),
    /// We want to close; the backend is to follow.
    Closing,
    /// Closed.
    Closed,
}

/// Who closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closer {
    /// We do: the backend is to follow.
    Us,
    /// The backend does.
    Backend,
}

/// Which pages a backend maps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Staged {
    /// How received pages are read meanwhile; `None` when they are not mapped.
    pub rx: Option<Reading>,
    /// Whether those are mapped that are sent from.
    pub tx: bool,
    /// What the backend answered to the first request that it did not do (`drayage_wire::control::status`); `None`
    /// when it did all of them, or was asked for nothing.
    pub refused: Option<u32>,
}

/// Whether a vif still exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It does.
    Stays,
    /// Its directory is gone.
    Gone,
}

/// A virtual network interface.
#[derive(Debug)]
pub struct Vif<P> {
    platform: P,
    options: Options,
    handle: u32,
    /// Our directory.
    dir: String,
    /// The backend's directory.
    backend: String,
    peer: DomainId,
    mac: [u8; 6],
    /// What the toolstack wants it to be; a backend may take less.
    configured_mtu: usize,
    phase: Phase,
    /// What we wrote last as our state.
    state: State,
    problem: Option<Problem>,
    /// Whether the guest ends: a backend that starts over finds nobody any more.
    ending: bool,
    pub(crate) link: Option<Link<P>>,
    pub(crate) counters: Counters,
    /// Set by the data path, and acted upon by the control path.
    pub(crate) broken: Option<Broken>,
    /// Where frames go that cannot be sent.
    pub(crate) spare: Box<[u8]>,
}

impl<P> Vif<P> {
    /// Returns the vif's number.
    pub fn handle(&self) -> u32 {
        self.handle
    }

    /// Returns the guest's address on it.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Returns the backend's domain.
    pub fn peer(&self) -> DomainId {
        self.peer
    }

    /// Returns whether packets flow.
    pub fn is_up(&self) -> bool {
        self.phase == Phase::Connected && self.broken.is_none()
    }

    /// Returns whether the vif is closed, or cannot be.
    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed | Phase::Waiting)
    }

    /// Returns why the vif does not work, if it does not.
    pub fn problem(&self) -> Option<Problem> {
        self.problem
    }

    /// Returns what was counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}

impl<P: Platform> Vif<P> {
    /// Returns what was agreed with the backend, while there is a connection.
    pub fn agreed(&self) -> Option<&Agreed> {
        self.link.as_ref().map(Link::agreed)
    }

    /// Returns the MTU in bytes, without the Ethernet header. It may change whenever the vif comes up.
    pub fn mtu(&self) -> usize {
        let most = self.link.as_ref().map_or(PAGE_SIZE, |link| link.tx.max_frame_bytes());
        self.configured_mtu.min(most - ETHERNET_HEADER_BYTES)
    }

    /// Returns the longest TCP super-frame over IPv4 that can be sent, where that is longer than any other frame.
    pub(crate) fn super_frame_bytes(&self) -> Option<usize> {
        let most = self.link.as_ref()?.tx.max_super_frame_bytes()?;
        (most > self.mtu() + ETHERNET_HEADER_BYTES).then_some(most)
    }

    /// Returns the longest frame that the stack may send.
    pub(crate) fn longest_frame_bytes(&self) -> usize {
        self.super_frame_bytes().unwrap_or_else(|| self.mtu() + ETHERNET_HEADER_BYTES)
    }

    /// Returns the connection, if packets flow.
    pub(crate) fn active(&mut self) -> Option<&mut Link<P>> {
        if self.is_up() { self.link.as_mut() } else { None }
    }

    /// Returns which pages the backend maps.
    pub fn staged(&self) -> Staged {
        let link = self.link.as_ref();
        Staged {
            rx: link.and_then(Link::staged_rx),
            tx: link.is_some_and(Link::staged_tx),
            refused: link.and_then(Link::staging_refused),
        }
    }

    /// Returns the event channels to sleep on. None before the backend is connected: an event that comes
    /// earlier is nobody's to clear yet, and a sleep on its channel would end at once, again and again. Only
    /// that of the control ring while the backend is to unmap pages. That of the transmit ring only where
    /// [`rearm`](Self::rearm) or [`drain`](Self::drain) asked for its event.
    pub fn ports(&self) -> impl Iterator<Item = Port> + use<P> {
        let link = if self.is_up() { self.link.as_ref() } else { None };
        let control = match (self.phase, &self.link) {
            (Phase::Releasing(_), Some(link)) => link.control_port(),
            _ => None,
        };
        link.map(Link::awaited_ports).into_iter().flatten().chain(control)
    }

    /// Ends a round of work: hands what was sent and what was used up to the backend, and notifies it at most
    /// once for each ring. To be called after each pass of egress.
    pub fn flush(&mut self) {
        if !self.is_up() {
            return;
        }
        if let Some(link) = &mut self.link
            && let Err(broken) = link.flush(&mut self.counters)
        {
            self.broken = Some(broken);
        }
    }

    /// Hands over what is left to be sent, before the guest ends, and returns whether the backend has answered
    /// everything. Where it has not, an event comes when it has.
    pub fn drain(&mut self) -> bool {
        if !self.is_up() {
            return true;
        }
        let Some(link) = &mut self.link else { return true };
        link.drain(&mut self.counters).unwrap_or_else(|broken| {
            self.broken = Some(broken);
            true
        })
    }

    /// Returns whether there is something to receive. Asks for no event.
    pub fn has_work(&mut self) -> bool {
        self.active().is_some_and(|link| link.rx.has_work())
    }

    /// Prepares for sleep: asks the backend for events, and says whether there is reason to wait for one.
    pub fn rearm(&mut self) -> Readiness {
        let longest = self.longest_frame_bytes();
        let (up, phase) = (self.is_up(), self.phase);
        let Some(link) = &mut self.link else { return Readiness::SendBlocked };
        if !up {
            let answered = matches!(phase, Phase::Releasing(_)) && link.has_control_answer();
            return if answered { Readiness::Busy } else { Readiness::SendBlocked };
        }
        match link.rearm(longest, &mut self.counters) {
            Ok(readiness) => readiness,
            Err(broken) => {
                self.broken = Some(broken);
                // The control path has something to do.
                Readiness::Busy
            }
        }
    }
}
