//! The xenstore client: blocking requests over the ring page (public/io/xs_wire.h), watches, transactions. It
//! waits by polling its port, for a bounded time. Only the control path uses it.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering, fence};

use drayage_entry::Channel;
use drayage_kernel::store_stream::{Incoming, Message};
use drayage_kernel::watch_events::{WatchEvent, WatchEvents};
use drayage_wire::xs::{self, HEADER_BYTES, Header, Kind, MAX_PAYLOAD_BYTES, RING_BYTES};
use spin::Mutex;

use crate::events::{self, Port};
use crate::{hypercall, time};

/// How long an answer may take. A dom0 under emulation, busy with something else, may need seconds.
const ANSWER_NS: u64 = 60_000_000_000;

/// Why xenstore did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StoreError {
    /// There is no xenstore.
    NoStore,
    /// It refused, with the name of an errno.
    Refused(String),
    /// The request is longer than the protocol allows.
    TooLong,
    /// No answer came in time.
    NoAnswer,
    /// What came was no answer; the connection is given up.
    OutOfStep,
}

impl StoreError {
    /// Tells whether the node does not exist.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, Self::Refused(errno) if errno == "ENOENT")
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoStore => f.write_str("there is no xenstore"),
            Self::Refused(errno) => write!(f, "xenstore refused: {errno}"),
            Self::TooLong => write!(f, "a xenstore request is longer than {MAX_PAYLOAD_BYTES} bytes"),
            Self::NoAnswer => write!(f, "xenstore did not answer for {} s", ANSWER_NS / 1_000_000_000),
            Self::OutOfStep => f.write_str("xenstore answered nonsense"),
        }
    }
}

/// A transaction, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Transaction(pub(crate) u32);

/// Outside of any transaction.
pub(crate) const NO_TRANSACTION: Transaction = Transaction(0);

/// `struct xenstore_domain_interface`.
#[repr(C)]
struct Ring {
    requests: [AtomicU8; RING_BYTES],
    responses: [AtomicU8; RING_BYTES],
    request_consumer: AtomicU32,
    request_producer: AtomicU32,
    response_consumer: AtomicU32,
    response_producer: AtomicU32,
}

const _: () = assert!(core::mem::offset_of!(Ring, response_producer) == 2060);

struct Client {
    ring: &'static Ring,
    port: Port,
    next_request: u32,
    incoming: Incoming,
    /// Paths and tokens.
    watches: Vec<(String, String)>,
    events: WatchEvents,
    is_out_of_step: bool,
}

static CLIENT: Mutex<Option<Client>> = Mutex::new(None);
/// The port, readable while the client is in use; 0 is none (port 0 is never given to a guest).
static PORT: AtomicU32 = AtomicU32::new(0);

/// Connects to xenstore.
///
/// # Safety
/// The channel must be xenstore's, as the boot information has it, with its page mapped for good.
pub(crate) unsafe fn start(channel: Channel) {
    let page = core::ptr::with_exposed_provenance::<Ring>(channel.page as usize);
    // SAFETY: our caller vouches for the page; all fields are atomics, so the other end may write at any time.
    let ring = unsafe { &*page };
    // Whatever an earlier owner of the page left unread is not for us.
    ring.response_consumer.store(ring.response_producer.load(Ordering::Acquire), Ordering::Release);
    *CLIENT.lock() = Some(Client {
        ring,
        port: Port(channel.port),
        next_request: 1,
        incoming: Incoming::new(),
        watches: Vec::new(),
        events: WatchEvents::new(),
        is_out_of_step: false,
    });
    PORT.store(channel.port, Ordering::Relaxed);
}

/// Returns the port that becomes pending when xenstore has something to say.
pub(crate) fn port() -> Option<Port> {
    let port = PORT.load(Ordering::Relaxed);
    (port != 0).then_some(Port(port))
}

/// Returns a node's value as text; what is not UTF-8 is replaced.
pub(crate) fn read(path: &str) -> Result<String, StoreError> {
    read_bytes(NO_TRANSACTION, path).map(|value| String::from_utf8_lossy(&value).into_owned())
}

/// Returns a node's value.
pub(crate) fn read_bytes(within: Transaction, path: &str) -> Result<Vec<u8>, StoreError> {
    ask(Kind::Read, within, &[path.as_bytes(), b"\0"])
}

/// Sets a node's value, making it and its parents where they are missing.
pub(crate) fn write(within: Transaction, path: &str, value: &[u8]) -> Result<(), StoreError> {
    ask(Kind::Write, within, &[path.as_bytes(), b"\0", value]).map(drop)
}

/// Removes a node and all below it.
pub(crate) fn remove(within: Transaction, path: &str) -> Result<(), StoreError> {
    ask(Kind::Rm, within, &[path.as_bytes(), b"\0"]).map(drop)
}

/// Returns the names of a node's children.
pub(crate) fn directory(within: Transaction, path: &str) -> Result<Vec<String>, StoreError> {
    let payload = ask(Kind::Directory, within, &[path.as_bytes(), b"\0"])?;
    Ok(xs::strings(&payload).map(|name| String::from_utf8_lossy(name).into_owned()).collect())
}

/// Watches a node and all below it. The watch fires once at once.
pub(crate) fn watch(path: &str, token: &str) -> Result<(), StoreError> {
    // Known before it is asked for: the first event may overtake the answer.
    if let Some(client) = &mut *CLIENT.lock() {
        client.watches.push((path.to_string(), token.to_string()));
    }
    let result = ask(Kind::Watch, NO_TRANSACTION, &[path.as_bytes(), b"\0", token.as_bytes(), b"\0"]);
    if result.is_err() {
        forget_watch(path, token);
    }
    result.map(drop)
}

/// Ends a watch, and forgets its events.
pub(crate) fn unwatch(path: &str, token: &str) -> Result<(), StoreError> {
    let result = ask(Kind::Unwatch, NO_TRANSACTION, &[path.as_bytes(), b"\0", token.as_bytes(), b"\0"]);
    forget_watch(path, token);
    result.map(drop)
}

/// Opens a transaction.
pub(crate) fn begin() -> Result<Transaction, StoreError> {
    let payload = ask(Kind::TransactionStart, NO_TRANSACTION, &[b"\0"])?;
    let text = payload.split(|byte| *byte == 0).next().unwrap_or_default();
    let id = core::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    id.filter(|id| *id != 0).map(Transaction).ok_or(StoreError::OutOfStep)
}

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// What was written becomes visible.
    Commit,
    /// What was written is forgotten.
    Abort,
}

/// Ends a transaction.
pub(crate) fn end(transaction: Transaction, end: End) -> Result<(), StoreError> {
    let word: &[u8] = if end == End::Commit { b"T\0" } else { b"F\0" };
    ask(Kind::TransactionEnd, transaction, &[word]).map(drop)
}

/// Takes the oldest watch event, fetching what the ring holds first. Never blocks.
pub(crate) fn take_event() -> Option<WatchEvent> {
    let mut client = CLIENT.lock();
    let client = client.as_mut()?;
    // Looked at whether the port is pending or not: an event that came with the answer to a request has had
    // its pending bit cleared while that was waited for.
    events::take_pending(client.port);
    while let Ok(Some(message)) = client.receive() {
        client.take_message(message);
    }
    client.events.take()
}

fn forget_watch(path: &str, token: &str) {
    if let Some(client) = &mut *CLIENT.lock() {
        client.watches.retain(|(other_path, other_token)| other_path != path || other_token != token);
        client.events.forget(token);
    }
}

fn ask(kind: Kind, within: Transaction, parts: &[&[u8]]) -> Result<Vec<u8>, StoreError> {
    CLIENT.lock().as_mut().ok_or(StoreError::NoStore)?.ask(kind, within, parts)
}

impl Client {
    /// Sends a request and waits for its answer.
    fn ask(&mut self, kind: Kind, within: Transaction, parts: &[&[u8]]) -> Result<Vec<u8>, StoreError> {
        if self.is_out_of_step {
            return Err(StoreError::OutOfStep);
        }
        let len_bytes: usize = parts.iter().map(|part| part.len()).sum();
        if len_bytes > MAX_PAYLOAD_BYTES {
            return Err(StoreError::TooLong);
        }
        let request = self.next_request;
        self.next_request = self.next_request.wrapping_add(1).max(1);
        let header =
            Header { kind: kind as u32, request, transaction: within.0, len_bytes: len_bytes as u32 };
        let give_up_ns = time::now_ns() + ANSWER_NS;
        self.send(&header.to_bytes(), give_up_ns)?;
        parts.iter().try_for_each(|part| self.send(part, give_up_ns))?;
        events::notify(self.port);
        loop {
            events::take_pending(self.port);
            let Some(message) = self.receive()? else {
                self.wait(give_up_ns)?;
                continue;
            };
            if message.header.kind == Kind::WatchEvent as u32 || message.header.request != request {
                self.take_message(message);
            } else if message.header.kind == Kind::Error as u32 {
                let errno = xs::strings(&message.payload).next().unwrap_or_default();
                return Err(StoreError::Refused(String::from_utf8_lossy(errno).into_owned()));
            } else if message.header.kind == kind as u32 {
                return Ok(message.payload);
            } else {
                return Err(self.give_up());
            }
        }
    }

    /// Puts bytes into the request ring, waiting for room.
    fn send(&mut self, bytes: &[u8], give_up_ns: u64) -> Result<(), StoreError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            events::take_pending(self.port);
            let mut producer = self.ring.request_producer.load(Ordering::Relaxed);
            let used = producer.wrapping_sub(self.ring.request_consumer.load(Ordering::Acquire)) as usize;
            let room = RING_BYTES.checked_sub(used).ok_or_else(|| self.give_up())?;
            let (now, later) = rest.split_at(room.min(rest.len()));
            for byte in now {
                self.ring.requests[producer as usize % RING_BYTES].store(*byte, Ordering::Relaxed);
                producer = producer.wrapping_add(1);
            }
            self.ring.request_producer.store(producer, Ordering::Release);
            rest = later;
            if !rest.is_empty() {
                events::notify(self.port);
                self.wait(give_up_ns)?;
            }
        }
        Ok(())
    }

    /// Takes bytes from the response ring until a message is whole; `None` when the ring is empty before.
    fn receive(&mut self) -> Result<Option<Message>, StoreError> {
        loop {
            let wanted = self.incoming.wanted_bytes().map_err(|_| self.give_up())?;
            let before = self.ring.response_consumer.load(Ordering::Relaxed);
            let mut consumer = before;
            let filled = self.ring.response_producer.load(Ordering::Acquire).wrapping_sub(consumer) as usize;
            if filled > RING_BYTES {
                return Err(self.give_up());
            }
            let mut piece = [0; HEADER_BYTES * 4];
            let take = wanted.min(filled).min(piece.len());
            for byte in &mut piece[..take] {
                *byte = self.ring.responses[consumer as usize % RING_BYTES].load(Ordering::Relaxed);
                consumer = consumer.wrapping_add(1);
            }
            self.ring.response_consumer.store(consumer, Ordering::Release);
            self.incoming.push(&piece[..take]);
            // The other end waits for room where it has found none, which it may have done until it saw the store
            // above: its index is read again behind that. Otherwise it need not be woken.
            fence(Ordering::SeqCst);
            let producer = self.ring.response_producer.load(Ordering::Relaxed);
            if take > 0 && producer.wrapping_sub(before) as usize >= RING_BYTES {
                events::notify(self.port);
            }
            if let Some(message) = self.incoming.take() {
                return Ok(Some(message));
            }
            if take == 0 {
                return Ok(None);
            }
        }
    }

    /// Keeps a watch event; drops the late answer to a request that was given up.
    fn take_message(&mut self, message: Message) {
        if message.header.kind != Kind::WatchEvent as u32 {
            return;
        }
        let Some((path, token)) = xs::watch_event(&message.payload) else { return };
        let (path, token) = (String::from_utf8_lossy(path), String::from_utf8_lossy(token));
        let watched =
            self.watches.iter().find(|(_, known)| *known == token).map(|(watched, _)| watched.clone());
        if let Some(watched) = watched {
            let event = WatchEvent { path: path.into_owned(), token: token.into_owned() };
            self.events.add(event, &watched);
        }
    }

    fn wait(&self, give_up_ns: u64) -> Result<(), StoreError> {
        if time::now_ns() >= give_up_ns {
            return Err(StoreError::NoAnswer);
        }
        hypercall::poll([self.port.0].into_iter(), give_up_ns);
        Ok(())
    }

    fn give_up(&mut self) -> StoreError {
        self.is_out_of_step = true;
        StoreError::OutOfStep
    }
}
