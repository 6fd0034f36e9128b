//! Proof that the loop, the links and the apps allocate nothing once they are set up.

use alloc::string::String;
use alloc::vec::Vec;

use drayage_netfront::datagram::Template;
use smoltcp::phy::{self, Checksum, Device, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

use super::nic::{Counters, Nic, Rearmed, send_by_token};
use super::run::{Change, Ended, Machine, run};
use crate::app::Role;
use crate::control::Request;
use crate::seed::{Seed, SeedSource};
use crate::settings::Settings;

/// A NIC on which the same frames arrive again and again, and where sending is free.
struct Tape {
    frames: Vec<Vec<u8>>,
    at: usize,
    left: usize,
    scratch: [u8; 2048],
    counters: Counters,
    /// Datagrams that did not come from the stack.
    short: u64,
}

struct Frame<'a>(&'a [u8]);
struct Room<'a>(&'a mut [u8; 2048], &'a mut Counters);

impl phy::RxToken for Frame<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl phy::TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        self.1.tx_frames += 1;
        f(&mut self.0[..len])
    }
}

impl Device for Tape {
    type RxToken<'a> = Frame<'a>;
    type TxToken<'a> = Room<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Frame<'_>, Room<'_>)> {
        self.left = self.left.checked_sub(1)?;
        self.at = (self.at + 1) % self.frames.len();
        self.counters.rx_frames += 1;
        Some((Frame(&self.frames[self.at]), Room(&mut self.scratch, &mut self.counters)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Room<'_>> {
        Some(Room(&mut self.scratch, &mut self.counters))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities.checksum.udp = Checksum::None;
        capabilities
    }
}

impl Nic for Tape {
    fn mac(&self) -> [u8; 6] {
        [2, 0, 0, 0, 0, 1]
    }
    fn flush(&mut self) {}
    fn rearm(&mut self) -> Rearmed {
        Rearmed::Armed
    }
    fn drain(&mut self) -> bool {
        true
    }
    fn counters(&self) -> Counters {
        self.counters
    }
    fn send_datagram(
        &mut self,
        template: &mut Template,
        bytes: usize,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> bool {
        self.short += 1;
        send_by_token(self, template, bytes, fill)
    }
}

/// A machine on which a burst arrives in every sleep.
struct Deck {
    tape: Tape,
    /// Where a neighbour looks for the guest.
    other: Tape,
    now_ns: u64,
    bursts: usize,
    /// Interfaces that are up.
    up: u32,
    interfaces: u32,
}

impl Machine for Deck {
    type Nic = Tape;
    const PREFIX: &'static str = "vif";

    fn now_ns(&self) -> u64 {
        self.now_ns
    }

    fn cpu_ns(&self) -> Option<u64> {
        None
    }

    fn next_change(&mut self) -> Option<Change> {
        if self.up < self.interfaces {
            self.up += 1;
            return Some(Change::Up(self.up - 1));
        }
        (self.bursts == 0 && self.tape.left == 0).then_some(Change::Stop(Request::PowerOff))
    }

    fn nic(&mut self, number: u32) -> Option<&mut Tape> {
        [&mut self.tape, &mut self.other].into_iter().nth(number as usize)
    }

    fn nics(&mut self, numbers: [u32; 2]) -> [Option<&mut Tape>; 2] {
        match numbers {
            [0, _] => [Some(&mut self.tape), Some(&mut self.other)],
            _ => [Some(&mut self.other), Some(&mut self.tape)],
        }
    }

    fn sleep(&mut self, _: Option<u64>) {
        // Long enough for timers to run out and for the counters to be printed.
        self.now_ns += 1_500_000_000;
        (self.tape.left, self.other.left) = (1000, 1);
        self.bursts -= 1;
    }
}

/// Returns the frame of a datagram from 10.0.0.1 to 10.0.0.2.
pub(super) fn datagram(port: u16, len: usize) -> Vec<u8> {
    let mut frame = alloc::vec![0; len];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]);
    let ip = (len - 14) as u16;
    frame[14..34].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame[16..18].copy_from_slice(&ip.to_be_bytes());
    let sum: u32 =
        frame[14..34].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    frame[24..26].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
    frame[34..36].copy_from_slice(&4000_u16.to_be_bytes());
    frame[36..38].copy_from_slice(&port.to_be_bytes());
    frame[38..40].copy_from_slice(&(ip - 20).to_be_bytes());
    frame
}

/// Returns the answer to the guest's question for the address of 10.0.0.1.
fn arp_reply() -> Vec<u8> {
    let mut frame = Vec::from([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
    frame.extend([2, 0, 0, 0, 0, 2, 10, 0, 0, 1, 2, 0, 0, 0, 0, 1, 10, 0, 0, 2]);
    frame
}

/// Returns the question of 10.0.1.2 for the address of 10.0.1.1.
fn arp_request() -> Vec<u8> {
    let mut frame = Vec::from([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 3]);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 3, 10, 0, 1, 2]);
    frame.extend([0, 0, 0, 0, 0, 0, 10, 0, 1, 1]);
    frame
}

/// Runs an app over a number of bursts; returns the allocations, what was sent, how much of it past the stack, and the
/// console.
fn measure(line: &str, bursts: usize, frames: Vec<Vec<u8>>) -> (u64, u64, u64, String) {
    let settings = Settings::parse(line).unwrap();
    let interfaces = if settings.app.role == Role::Router { 2 } else { 1 };
    let tape =
        |frames| Tape { frames, at: 0, left: 0, scratch: [0; 2048], counters: Counters::default(), short: 0 };
    let (tape, other) = (tape(frames), tape(Vec::from([arp_request()])));
    let mut deck = Deck { tape, other, now_ns: 1, bursts, up: 0, interfaces };
    let mut console = String::with_capacity(1 << 20);
    let seed = Seed { value: 1, source: SeedSource::Jitter };
    let used = allocation_counter::measure(|| {
        assert_eq!(run(&mut deck, &mut console, &settings, seed), Ended::Asked(Request::PowerOff));
    });
    let sent = deck.tape.counters.tx_frames + deck.other.counters.tx_frames;
    (used.count_total, sent, deck.tape.short, console)
}

#[test]
fn a_hundred_times_the_packets_take_no_more_allocations() {
    let frames =
        |port| Vec::from([arp_reply(), datagram(port, 60), datagram(port, 1514), datagram(port + 1, 60)]);
    for (line, port, answers, past) in [
        ("app=sink ip=10.0.0.2/24", 9, 250, 0),
        ("app=echo ip=10.0.0.2/24", 7, 500, 0),
        ("app=source ip=10.0.0.2/24 to=10.0.0.1:9 rate=1000", 4000, 1000, 700),
    ] {
        let (few, ..) = measure(line, 3, frames(port));
        let (many, sent, short, console) = measure(line, 300, frames(port));
        assert_eq!(many, few, "{line}\n{console}");
        assert!(sent >= 200 * answers, "{line}: only {sent} frames were sent\n{console}");
        assert!(short >= 200 * past, "{line}: only {short} of {sent} frames went past the stack\n{console}");
    }
}

#[test]
fn a_router_allocates_nothing_for_what_it_passes_on() {
    let line = "app=forward ip=10.0.0.9/24 ip1=10.0.1.1/24";
    let frames = || {
        let mut frame = datagram(9, 60);
        frame[32] = 1;
        // The third byte of the address is one more, and so the sum one less.
        let check = u16::from_be_bytes([frame[24], frame[25]]) - 0x100;
        frame[24..26].copy_from_slice(&check.to_be_bytes());
        Vec::from([frame, datagram(9, 60)])
    };
    let (few, ..) = measure(line, 3, frames());
    let (many, sent, _, console) = measure(line, 300, frames());
    assert_eq!(many, few, "{console}");
    assert!(sent > 140_000, "only {sent} frames were sent\n{console}");
}
