//! `app=check`: sends a stream to echo services, one after the other, and compares every byte that comes back.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::net::SocketAddr;

use smoltcp::socket::tcp;
use smoltcp::time::Duration;
use smoltcp::wire::IpEndpoint;

use super::{App, Next, Starter};
use crate::net::{Net, TCP_BYTES, TcpHandle};
use crate::settings::{Key, SettingError, Words};

pub(super) const TO: Key = Key {
    name: "to",
    form: "the ADDRESS:PORT of a TCP echo service, [ADDRESS]:PORT for IPv6; several of them separated by commas",
};
pub(super) const BYTES: Key = Key { name: "bytes", form: "the bytes of a stream, 1 to 10000000000" };

/// The port of the first connection; the others come from those above.
const LOCAL_PORT: u16 = 50_000;
/// A service that says nothing for so long has failed.
const TIMEOUT: Duration = Duration::from_secs(20);
/// How long a connection that is over is kept, so that its last word leaves.
const LINGER_NS: u64 = 10_000_000;

pub(super) fn configure(words: &Words<'_>) -> Result<Starter, SettingError> {
    let list = words.get(&TO).ok_or(SettingError::Missing { app: "check", key: TO.name, form: TO.form })?;
    let parsed: Option<Vec<SocketAddr>> = list.split(',').map(|text| text.parse().ok()).collect();
    let usable = |to: &SocketAddr| to.port() != 0 && !to.ip().is_unspecified();
    let services = parsed.filter(|list| list.iter().all(usable)).ok_or_else(|| words.wrong(&TO))?;
    let bytes = words.number(&BYTES, 1..=10_000_000_000)?.unwrap_or(1 << 20);
    Ok(Box::new(move |net| {
        let services = services.iter().map(|to| IpEndpoint::from(*to)).collect();
        let tcp = net.open_tcp(TCP_BYTES, TCP_BYTES);
        Box::new(Check { services, bytes, tcp, at: 0, good: 0, state: State::Waiting })
    }))
}

struct Check {
    services: Vec<IpEndpoint>,
    bytes: u64,
    tcp: TcpHandle,
    /// The service that is being asked, and how many of those before it answered well.
    at: usize,
    good: usize,
    state: State,
}

#[derive(Clone, Copy)]
enum State {
    /// For an address of our own.
    Waiting,
    /// The stream goes there and comes back.
    Asking(Progress),
    /// Until the last word has left.
    Lingering { until_ns: u64 },
}

#[derive(Clone, Copy)]
struct Progress {
    since_ns: u64,
    sent: Part,
    received: Part,
}

/// What went by in one direction: how much, and its hash (FNV-1a).
#[derive(Clone, Copy, PartialEq, Eq)]
struct Part {
    bytes: u64,
    hash: u64,
}

impl Part {
    const NONE: Self = Self { bytes: 0, hash: 0xcbf2_9ce4_8422_2325 };

    fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        for byte in bytes {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}

impl App for Check {
    fn poll(&mut self, net: &mut Net<'_>) -> Next {
        let now_ns = net.now_ns();
        match self.state {
            State::Waiting => self.ask(net),
            State::Asking(mut progress) => {
                let ended = self.exchange(net.tcp(self.tcp), &mut progress);
                self.state = State::Asking(progress);
                if ended {
                    self.judge(net, progress);
                    self.state = State::Lingering { until_ns: now_ns + LINGER_NS };
                    return Next::At(now_ns + LINGER_NS);
                }
                Next::OnTraffic
            }
            State::Lingering { until_ns } if now_ns < until_ns => Next::At(until_ns),
            State::Lingering { .. } => {
                net.tcp(self.tcp).abort();
                self.at += 1;
                self.state = State::Waiting;
                self.ask(net)
            }
        }
    }

    fn finish(&mut self, net: &mut Net<'_>) {
        net.print(format_args!(
            "check: {} of {} services sent back what they got",
            self.good,
            self.services.len()
        ));
    }
}

impl Check {
    /// Connects to the next service.
    fn ask(&mut self, net: &mut Net<'_>) -> Next {
        let Some(to) = self.services.get(self.at).copied() else { return Next::Done };
        if net.source_address(to.addr).is_none() {
            return Next::OnTraffic;
        }
        net.tcp(self.tcp).set_timeout(Some(TIMEOUT));
        if net.connect(self.tcp, to, LOCAL_PORT + self.at as u16).is_ok() {
            let since_ns = net.now_ns();
            self.state = State::Asking(Progress { since_ns, sent: Part::NONE, received: Part::NONE });
        }
        Next::OnTraffic
    }

    /// Sends and receives what there is. Returns whether the connection is over.
    fn exchange(&self, socket: &mut tcp::Socket<'_>, progress: &mut Progress) -> bool {
        let Progress { sent, received, .. } = progress;
        while sent.bytes < self.bytes && socket.can_send() {
            let (first, left) = (sent.bytes, self.bytes - sent.bytes);
            let taken = socket.send(|room| {
                let len = room.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                for (at, byte) in (first..).zip(&mut room[..len]) {
                    *byte = byte_at(at);
                }
                sent.add(&room[..len]);
                (len, ())
            });
            if taken.is_err() {
                break;
            }
        }
        if sent.bytes == self.bytes && socket.may_send() {
            socket.close();
        }
        while socket.can_recv() {
            let taken = socket.recv(|bytes| {
                received.add(bytes);
                (bytes.len(), ())
            });
            if taken.is_err() {
                break;
            }
        }
        matches!(socket.state(), tcp::State::TimeWait | tcp::State::Closed)
    }

    fn judge(&mut self, net: &mut Net<'_>, progress: Progress) {
        let Progress { since_ns, sent, received } = progress;
        let good = sent.bytes == self.bytes && sent == received;
        self.good += usize::from(good);
        net.print(format_args!(
            "check: {} sent={} hash={:016x} received={} hash={:016x} elapsed_ns={} {}",
            self.services[self.at],
            sent.bytes,
            sent.hash,
            received.bytes,
            received.hash,
            net.now_ns() - since_ns,
            if good { "same" } else { "DIFFERENT" }
        ));
    }
}

/// The byte at a place of the stream: cheap, and without a short period.
fn byte_at(at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}
