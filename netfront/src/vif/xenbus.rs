//! The life of an interface, from its appearance in xenstore to its end: xenbus's state machine, as the frontend
//! runs it.
//!
//! It waits for the backend where that is due: it writes its details only once the backend is in InitWait, and
//! lets packets flow only once it is Connected. It knows nothing of what flows.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec;

use drayage_wire::keys::{self, State};

use super::{Aftermath, Change, Closer, ETHERNET_HEADER_BYTES, Event, Fate, Phase, Problem, Vif};
use crate::counters::Counters;
use crate::features::{Details, Options, agree, join, number};
use crate::link::{Failed, Link};
use crate::platform::{DomainId, End, Platform, Refused, Store, StoreError, Transaction};
use crate::staging::Progress;

/// The MTU where the toolstack names none.
const DEFAULT_MTU: usize = 1500;
/// What a `mtu` key may say: IPv4's least, and the most that netif carries.
const MTU_RANGE: core::ops::RangeInclusive<usize> = 68..=65_521;
/// Attempts at a transaction that meets others.
const TRANSACTION_ATTEMPTS: usize = 64;
/// Connections' worth of pages that backends may keep from us before we connect no more: a backend that never
/// lets go costs a bounded amount of memory.
const MOST_REMAINS: usize = 4;

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
