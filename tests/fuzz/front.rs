//! The driver against a backend that does what the fuzzer's bytes say: responses with any words, chains and
//! containers that are right, mutated or cut, indices that cannot be true, answers to what was never sent.
//!
//! Whatever it does, the driver does not panic, misuses no grant, lends only frames of a possible length, and
//! gives every page back in the end.

use std::sync::atomic::{AtomicU64, Ordering};

use bolero::{check, produce};
use drayage_netfront::platform::{DomainId, Platform, Port};
use drayage_netfront::{Netfront, Options, Readiness, Use};
use drayage_tests::hand::{self, Hand};
use drayage_wire::container::MAX_RX_BYTES;
use drayage_wire::keys::{self, State};
use drayage_wire::netif::{MAX_TX_SLOTS, RxResponse};
use drayage_wire::ring::Slot as _;
use memxen::Hypervisor;
use memxen::front::Front;
use smoltcp::phy::{Device as _, RxToken as _, TxToken as _};
use smoltcp::time::Instant;

use crate::input::Input;

const GUEST: DomainId = DomainId(5);
const HANDLE: u32 = 0;
/// The longest plain frame: every slot that the driver takes, full.
const MAX_FRAME_BYTES: usize = (MAX_TX_SLOTS + 1) * 4096;

const OFFERS: &[(&str, &str)] = &[
    (keys::FEATURE_RX_COPY, "1"),
    (keys::FEATURE_SG, "1"),
    (keys::FEATURE_RX_CONTAINERS, "1"),
    (keys::FEATURE_TX_CONTAINERS, "1"),
    (keys::TX_CONTAINER_MAX_BYTES, "65535"),
];

/// The guest, its driver, and the backend's hand.
struct Play {
    hv: Hypervisor,
    guest: Front,
    driver: Netfront<Front>,
    hand: Hand,
    frames: u64,
}

impl Play {
    fn begin(options: Options, mirrored: bool) -> Self {
        let hv = Hypervisor::new();
        hv.create_domain(GUEST);
        if !mirrored {
            hv.forbid_mirroring(GUEST);
        }
        hand::plug(&hv, GUEST, HANDLE, [2, 0, 0, 0, 0, 5], OFFERS);
        let hand = Hand::new(&hv, GUEST, HANDLE);
        let guest = Front::new(&hv, GUEST);
        let driver = Netfront::new(guest.clone(), options).expect("xenstore works");
        let mut play = Self { hv, guest, driver, hand, frames: 0 };
        play.pump();
        play.hand.connect();
        play.pump();
        assert!(play.driver.vif_mut(HANDLE).is_some_and(|vif| vif.is_up()));
        play
    }

    fn pump(&mut self) {
        while let Some(event) = self.guest.next_event() {
            self.driver.watch_fired(&event.path, &event.token);
        }
        self.driver.service();
        while self.driver.next_change().is_some() {}
    }

    /// One round of a poll loop: what came is looked at, byte by byte, and something is sent.
    fn guest_round(&mut self, most: usize, send: usize) {
        let now = Instant::ZERO;
        if let Some(vif) = self.driver.vif_mut(HANDLE) {
            for _ in 0..most {
                let Some((frame, reply)) = vif.receive(now) else { break };
                let (len, sum) = frame.consume(|bytes| {
                    (bytes.len(), bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)))
                });
                assert!((14..=MAX_FRAME_BYTES.max(MAX_RX_BYTES)).contains(&len), "a frame of {len} bytes");
                self.frames += 1;
                if sum.is_multiple_of(7) {
                    reply.consume(60, |bytes| bytes.fill(sum));
                }
            }
            for _ in 0..send {
                let Some(room) = vif.transmit(now) else { break };
                room.consume(600, |bytes| bytes.fill(0x5a));
            }
            vif.flush();
            let _: Readiness = vif.rearm();
            let ports: Vec<Port> = vif.ports().collect();
            for port in ports {
                self.guest.take_pending(port);
            }
        }
        self.pump();
    }

    fn is_up(&mut self) -> bool {
        self.driver.vif_mut(HANDLE).is_some_and(|vif| vif.is_up())
    }

    /// The backend does what the bytes say.
    fn act(&mut self, input: &mut Input<'_>) {
        let hand = &mut self.hand;
        match input.byte() % 16 {
            // Any words in the place of responses, with the right id now and then.
            0..=3 => {
                for _ in 0..input.byte() % 20 {
                    let Some(buffer) = hand.take_buffer() else { break };
                    let words = [input.word(), input.word(), 0, 0];
                    let mut response = RxResponse::from_words(words);
                    if !input.byte().is_multiple_of(8) {
                        response.id = buffer.id;
                    }
                    if input.byte().is_multiple_of(2) {
                        response.status %= 4100;
                        response.flags &= 0xf;
                    }
                    hand.answer(response);
                }
                hand.publish();
            }
            // A chain of any bytes.
            4..=6 => {
                let len = 1 + input.half() as usize % 20_000;
                let bytes: Vec<u8> = (0..len).map(|i| input.peek(i)).collect();
                let flags = u16::from(input.byte() & 0x1b);
                hand.send(&bytes, flags);
            }
            // A container, mutated or not.
            7..=11 => {
                let packets: Vec<Vec<u8>> = (0..1 + input.byte() % 40)
                    .map(|_| vec![input.byte(); 14 + input.half() as usize % 1500])
                    .collect();
                let packets: Vec<&[u8]> = packets.iter().map(Vec::as_slice).collect();
                let mut bytes = hand::container(&packets, input.word());
                for _ in 0..input.byte() % 3 {
                    let at = input.half() as usize % (16 + 8 * packets.len());
                    bytes[at] ^= input.byte();
                }
                if input.byte().is_multiple_of(8) {
                    bytes.truncate(1 + input.half() as usize % bytes.len());
                }
                hand.send(&bytes, 0);
            }
            12 if hand.buffers() > 0 => hand.skip(),
            13 => while hand.take_sent(i16::from(input.byte() as i8)).is_some() {},
            14 => hand.kick(),
            // Seldom, for it ends the connection.
            _ if input.byte().is_multiple_of(16) => {
                let word = input.word();
                if word.is_multiple_of(2) {
                    hand.publish_nonsense(word)
                } else {
                    hand.publish_tx_nonsense(word)
                }
            }
            _ => {}
        }
    }

    fn end(mut self) -> u64 {
        self.driver.close();
        self.hand.disconnect();
        self.hand.set_state(State::Closed);
        for _ in 0..4 {
            self.pump();
        }
        assert!(self.driver.is_closed());
        assert_eq!(self.hv.claimed_grants(GUEST), 0, "every grant is given back");
        assert_eq!(self.hv.live_pools(GUEST), 0, "and every page");
        self.hv.assert_clean();
        self.frames
    }
}

#[test]
fn a_hostile_backend_costs_the_driver_nothing_but_the_vif() {
    let frames = AtomicU64::new(0);
    let scripts = produce::<Vec<u8>>().with().len(0usize..4096);
    check!().with_iterations(1000).with_generator(scripts).for_each(|bytes: &Vec<u8>| {
        let mut input = Input::new(bytes);
        let shape = input.byte();
        let rx_containers = if shape & 1 == 0 { Use::Offered } else { Use::Never };
        let rx_container_max_bytes = if shape & 2 == 0 { 65_536 } else { 8192 };
        let options = Options { rx_containers, rx_container_max_bytes, ..Options::default() };
        let mut play = Play::begin(options, shape & 4 == 0);
        while !input.is_empty() && play.is_up() {
            play.act(&mut input);
            let (most, send) = (usize::from(input.byte() % 64), usize::from(input.byte() % 8));
            play.guest_round(most, send);
        }
        frames.fetch_add(play.end(), Ordering::Relaxed);
    });
    let frames = frames.into_inner();
    assert!(frames > 5_000, "a run that gets nothing through tests nothing: {frames} frames");
}
