//! One virtual network interface, from its appearance in xenstore to its end: xenbus's state machine, as the
//! frontend runs it.
//!
//! It waits for the backend where that is due: it writes its details only once the backend is in InitWait, and
//! lets packets flow only once it is Connected. It knows nothing of rings (that is `link`) or of the network
//! stack (that is `device`).

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use drayage_wire::PAGE_SIZE;
use drayage_wire::keys::{self, State};

use crate::counters::Counters;
use crate::features::{Agreed, Details, Options, agree, join, number};
use crate::link::{Failed, Link, Readiness, Remains};
use crate::platform::{DomainId, End, Platform, Port, Refused, Store, StoreError, Transaction};
use crate::pool::Reading;
use crate::rx::Broken;
use crate::staging::Progress;

/// Bytes of an Ethernet header.
pub(crate) const ETHERNET_HEADER_BYTES: usize = 14;
/// The MTU where the toolstack names none.
const DEFAULT_MTU: usize = 1500;
/// What a `mtu` key may say: IPv4's least, and the most that netif carries.
const MTU_RANGE: core::ops::RangeInclusive<usize> = 68..=65_521;
/// Attempts at a transaction that meets others.
const TRANSACTION_ATTEMPTS: usize = 64;
/// Connections' worth of pages that backends may keep from us before we connect no more: a backend that never
/// lets go costs a bounded amount of memory.
const MOST_REMAINS: usize = 4;

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

/// What the toolstack wrote about a vif.
struct Identity {
    backend: String,
    peer: DomainId,
    mac: [u8; 6],
    mtu: usize,
}

impl Identity {
    /// Reads it; `None` while it is not complete.
    fn read(store: &impl Store, dir: &str) -> Option<Self> {
        let text = |key| store.read(Transaction::NONE, &join(dir, key)).ok();
        let backend = String::from_utf8(text(keys::BACKEND)?).ok()?;
        let peer = number(store, dir, keys::BACKEND_ID)?;
        let mac = keys::parse_mac(&text(keys::MAC)?)?;
        let mtu = number(store, dir, keys::MTU).map(|mtu| mtu as usize);
        let mtu = mtu.filter(|mtu| MTU_RANGE.contains(mtu)).unwrap_or(DEFAULT_MTU);
        Some(Self { backend, peer: DomainId(peer.try_into().ok()?), mac, mtu })
    }
}

/// Returns the token of the watch on a vif's backend.
fn token(handle: u32) -> String {
    format!("{}{handle}", crate::frontend::BACKEND_TOKEN)
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
    /// that of the control ring while the backend is to unmap pages.
    pub fn ports(&self) -> impl Iterator<Item = Port> + use<P> {
        let link = if self.is_up() { self.link.as_ref() } else { None };
        let control = match (self.phase, &self.link) {
            (Phase::Releasing(_), Some(link)) => link.control_port(),
            _ => None,
        };
        link.map(Link::ports).into_iter().flatten().chain(control)
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

impl<P: Platform + Store + Clone> Vif<P> {
    /// Takes up a vif whose directory is there, or returns `None` while the toolstack is still writing it.
    pub(crate) fn appear(platform: &P, options: Options, handle: u32, dir: String) -> Option<Self> {
        let identity = Identity::read(platform, &dir)?;
        let mut vif = Self {
            platform: platform.clone(),
            options,
            handle,
            dir,
            backend: String::new(),
            peer: identity.peer,
            mac: identity.mac,
            configured_mtu: DEFAULT_MTU,
            phase: Phase::Closed,
            state: State::Unknown,
            problem: None,
            ending: false,
            link: None,
            counters: Counters::default(),
            broken: None,
            spare: Box::default(),
        };
        vif.begin(identity);
        Some(vif)
    }

    /// Starts from the beginning with what the toolstack wrote. The watch on the backend, which fires at once,
    /// sets everything else in motion.
    fn begin(&mut self, identity: Identity) {
        let Identity { backend, peer, mac, mtu } = identity;
        (self.peer, self.mac, self.configured_mtu) = (peer, mac, mtu);
        (self.problem, self.broken) = (None, None);
        self.grow_spare(mtu + ETHERNET_HEADER_BYTES);
        self.phase = Phase::Waiting;
        if self.own_state() != State::Initialising {
            self.set_state(State::Initialising);
        }
        self.state = State::Initialising;
        self.unwatch();
        self.backend = backend;
        if let Err(error) = self.platform.watch(&join(&self.backend, keys::STATE), &token(self.handle)) {
            self.problem = Some(Problem::Store(error));
        }
    }

    fn grow_spare(&mut self, bytes: usize) {
        if self.spare.len() < bytes {
            self.spare = vec![0; bytes].into_boxed_slice();
        }
    }

    fn unwatch(&mut self) {
        if !self.backend.is_empty() {
            let _ = self.platform.unwatch(&join(&self.backend, keys::STATE), &token(self.handle));
        }
    }

    fn state_of(&self, dir: &str) -> State {
        match self.platform.read(Transaction::NONE, &join(dir, keys::STATE)) {
            Ok(value) => State::parse(&value),
            Err(_) => State::Unknown,
        }
    }

    fn own_state(&self) -> State {
        self.state_of(&self.dir)
    }

    fn set_state(&mut self, state: State) {
        self.state = state;
        // A directory that is gone is found out by its own watch.
        let path = join(&self.dir, keys::STATE);
        let _ = self.platform.write(Transaction::NONE, &path, state.value().as_bytes());
    }

    /// Looks at our own directory, which the toolstack may have removed or written anew.
    pub(crate) fn directory_changed(&mut self, after: &mut Aftermath<P>) -> Fate {
        match self.platform.read(Transaction::NONE, &join(&self.dir, keys::BACKEND)) {
            Ok(backend) => {
                let moved = backend != self.backend.as_bytes();
                let anew = self.state != State::Initialising && self.own_state() == State::Initialising;
                if (moved || anew)
                    && !self.ending
                    && let Some(identity) = Identity::read(&self.platform, &self.dir)
                {
                    self.disconnect(after);
                    self.begin(identity);
                }
                Fate::Stays
            }
            Err(StoreError::Missing) => {
                self.disconnect(after);
                self.unwatch();
                after.changes.push_back(Change { handle: self.handle, event: Event::Removed });
                Fate::Gone
            }
            Err(_) => Fate::Stays,
        }
    }

    /// Looks at the backend's state and follows it.
    pub(crate) fn backend_changed(&mut self, after: &mut Aftermath<P>) {
        let backend = self.state_of(&self.backend);
        match (self.phase, backend) {
            (Phase::Waiting, State::InitWait) => self.connect(after),
            (Phase::Waiting, State::Closing) => self.closed(after),
            (Phase::Waiting, _) => {}

            (Phase::Connecting, State::Connected) => self.up(after),
            (Phase::Connecting, State::InitWait | State::Initialised) => {}
            (Phase::Connected, State::Connected) => {}
            // The backend has started anew without closing first.
            (Phase::Connected, State::InitWait)
            | (Phase::Connecting | Phase::Connected, State::Initialising) => {
                self.disconnect(after);
                self.restart(backend, after);
            }
            // The backend waits for us to be closed, and answers until then.
            (Phase::Connected, State::Closing) if self.release(Closer::Backend, after) => {}
            (Phase::Connecting | Phase::Connected, _) => {
                self.closed(after);
                self.follow_closed(backend, after);
            }

            (Phase::Releasing(_), State::Connected | State::Reconfigured) => {}
            (Phase::Releasing(_), State::Closing) => self.phase = Phase::Releasing(Closer::Backend),
            (Phase::Releasing(_), _) => {
                self.closed(after);
                self.follow_closed(backend, after);
            }

            (Phase::Closing, State::Connected | State::Initialised | State::Reconfigured) => {}
            (Phase::Closing, _) => self.closed(after),
            (Phase::Closed, _) => self.follow_closed(backend, after),
        }
    }

    /// Starts over where the backend is ready for that, or would be if we were.
    fn follow_closed(&mut self, backend: State, after: &mut Aftermath<P>) {
        if self.problem.is_some() || self.ending {
            return;
        }
        let online = || number(&self.platform, &self.backend, keys::ONLINE) == Some(1);
        match backend {
            State::InitWait | State::Initialising => self.restart(backend, after),
            // Linux's netback returns to InitWait when it sees us initialising.
            State::Closed if online() => self.restart(backend, after),
            _ => {}
        }
    }

    fn restart(&mut self, backend: State, after: &mut Aftermath<P>) {
        self.phase = Phase::Waiting;
        self.set_state(State::Initialising);
        if backend == State::InitWait {
            self.connect(after);
        }
    }

    fn up(&mut self, after: &mut Aftermath<P>) {
        self.phase = Phase::Connected;
        self.counters.connects += 1;
        if let Some(link) = &mut self.link {
            link.kick();
        }
        after.changes.push_back(Change { handle: self.handle, event: Event::Up });
    }

    fn closed(&mut self, after: &mut Aftermath<P>) {
        self.disconnect(after);
        self.phase = Phase::Closed;
        self.set_state(State::Closed);
    }

    /// Drops the connection, if there is one.
    fn disconnect(&mut self, after: &mut Aftermath<P>) {
        if self.phase == Phase::Connected {
            after.changes.push_back(Change { handle: self.handle, event: Event::Down });
        }
        self.phase = Phase::Closed;
        self.broken = None;
        after.remains.extend(self.link.take().and_then(Link::close));
    }

    fn fail(&mut self, problem: Problem, after: &mut Aftermath<P>) {
        self.problem = Some(problem);
        after.changes.push_back(Change { handle: self.handle, event: Event::Failed(problem) });
    }

    /// Connects to a backend that is in InitWait.
    fn connect(&mut self, after: &mut Aftermath<P>) {
        if let Err(problem) = self.try_connect(after) {
            self.closed(after);
            self.fail(problem, after);
        }
    }

    fn try_connect(&mut self, after: &mut Aftermath<P>) -> Result<(), Problem> {
        if after.remains.len() >= MOST_REMAINS {
            return Err(Problem::Refused(Refused::NoMemory));
        }
        let agreed = agree(&self.platform, &self.dir, &self.backend, self.options).ok_or(Problem::NoCopy)?;
        let opened = Link::open(&self.platform, self.peer, agreed);
        let (link, details) = opened.map_err(|Failed { why, remains }| {
            after.remains.extend(remains);
            Problem::Refused(why)
        })?;
        self.link = Some(link);
        self.grow_spare(self.longest_frame_bytes());
        self.tell(&details).map_err(Problem::Store)?;
        (self.phase, self.state) = (Phase::Connecting, State::Connected);
        Ok(())
    }

    /// Writes our details and our state, all or nothing.
    fn tell(&self, details: &Details) -> Result<(), StoreError> {
        for _ in 0..TRANSACTION_ATTEMPTS {
            let transaction = self.platform.begin()?;
            let written = self.write_details(transaction, details);
            let end = if written.is_ok() { End::Commit } else { End::Abort };
            let ended = self.platform.end(transaction, end);
            match written.and(ended) {
                Err(StoreError::Again) => {}
                result => return result,
            }
        }
        Err(StoreError::Again)
    }

    fn write_details(&self, within: Transaction, details: &Details) -> Result<(), StoreError> {
        for (key, value) in details {
            let path = join(&self.dir, key);
            match value {
                Some(value) => self.platform.write(within, &path, value.as_bytes())?,
                None => match self.platform.remove(within, &path) {
                    Ok(()) | Err(StoreError::Missing) => {}
                    Err(error) => return Err(error),
                },
            }
        }
        let state = State::Connected.value().as_bytes();
        self.platform.write(within, &join(&self.dir, keys::STATE), state)
    }

    /// Closes the vif for good.
    pub(crate) fn end(&mut self, after: &mut Aftermath<P>) {
        self.ending = true;
        self.close(after);
    }

    /// Closes the vif in order: the backend is told, and lets go first.
    pub(crate) fn close(&mut self, after: &mut Aftermath<P>) {
        if self.phase == Phase::Connected && self.release(Closer::Us, after) {
            return;
        }
        match self.phase {
            Phase::Connecting | Phase::Connected => {
                if self.phase == Phase::Connected {
                    after.changes.push_back(Change { handle: self.handle, event: Event::Down });
                }
                self.phase = Phase::Closing;
                self.set_state(State::Closing);
            }
            Phase::Waiting => self.closed(after),
            Phase::Releasing(_) | Phase::Closing | Phase::Closed => {}
        }
    }

    /// Asks a backend that maps pages of ours to unmap them, before we close. Returns whether there is an answer
    /// to wait for; there is none of a backend that broke the connection.
    fn release(&mut self, closer: Closer, after: &mut Aftermath<P>) -> bool {
        let wait = self.broken.is_none() && self.link.as_mut().is_some_and(Link::release);
        if wait {
            after.changes.push_back(Change { handle: self.handle, event: Event::Down });
            self.phase = Phase::Releasing(closer);
        }
        wait
    }

    /// Goes on to close, once the backend has unmapped what it mapped, or made clear that it will not.
    fn released(&mut self, after: &mut Aftermath<P>) {
        match self.phase {
            Phase::Releasing(Closer::Us) => {
                self.phase = Phase::Closing;
                self.set_state(State::Closing);
            }
            Phase::Releasing(Closer::Backend) => {
                self.closed(after);
                let backend = self.state_of(&self.backend);
                self.follow_closed(backend, after);
            }
            _ => {}
        }
    }

    /// Acts on what the data path found, and on what the backend says over the control ring.
    pub(crate) fn service(&mut self, after: &mut Aftermath<P>) {
        if let Some(link) = &mut self.link
            && matches!(self.phase, Phase::Connected | Phase::Releasing(_))
        {
            match link.service(&mut self.counters) {
                Ok(Progress::None) => {}
                Ok(Progress::Settled) => {
                    after.changes.push_back(Change { handle: self.handle, event: Event::Staged });
                }
                Ok(Progress::Released) => self.released(after),
                Err(broken) => {
                    self.broken = Some(broken);
                    // One that was asked to let go has shown that it will not.
                    self.released(after);
                }
            }
        }
        if let Some(broken) = self.broken
            && matches!(self.phase, Phase::Connecting | Phase::Connected)
        {
            self.close(after);
            self.fail(Problem::Broken(broken), after);
        }
    }
}
