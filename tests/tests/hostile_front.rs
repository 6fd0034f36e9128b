//! The real worker against frontends played by hand: full rings, lies, and a neighbour that must not notice.

use drayage::vif::{rx, tx};
use drayage::worker::{Settings, Worker};
use drayage_tests::back::Back;
use drayage_tests::cable::{End, cable};
use drayage_tests::hand::container;
use drayage_tests::rawfront::{RawFront, mac};
use drayage_tests::uplink::{Arriving, CableUplink};
use drayage_tests::world::{LAN, WorldClock};
use drayage_wire::netif::{TxRequest, status, tx_flags};
use memxen::{DomainId, Hypervisor};

const LIAR: DomainId = DomainId(6);
const NEIGHBOUR: DomainId = DomainId(7);
const CONTAINERS: tx::Format = tx::Format::Containers { size: 65_535 };

struct Bench {
    hv: Hypervisor,
    worker: Worker<Back, WorldClock>,
    far: End,
}

impl Bench {
    fn new() -> Self {
        let hv = Hypervisor::new();
        let settings = Settings { holdoff_us: 0, ..Settings::default() };
        let mut worker = Worker::new(Back::new(&hv), WorldClock::default(), settings);
        let (end, far) = cable();
        worker
            .add_uplink(LAN, Box::new(CableUplink { end, arriving: Arriving::Filled, super_frames: true }))
            .expect("room");
        Self { hv, worker, far }
    }

    fn front(&mut self, guest: DomainId, format: tx::Format) -> RawFront {
        RawFront::connect(&self.hv, &mut self.worker, guest, format, rx::Format::Plain)
    }

    fn arrived(&self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.far.take()).collect()
    }

    /// Passes until the worker has nothing to do, a bounded number of times.
    fn passes(&mut self) {
        for _ in 0..64 {
            self.worker.pass();
        }
    }
}

fn frame(from: DomainId, number: u32) -> Vec<u8> {
    let mut frame = vec![0; 60];
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    frame[6..12].copy_from_slice(&mac(from));
    frame[14..18].copy_from_slice(&number.to_le_bytes());
    frame
}

fn request(front: &RawFront, page: usize, flags: u16, size: usize) -> TxRequest {
    TxRequest { gref: front.grant(page), offset: 0, flags, id: page as u16, size: size as u16 }
}

/// A neighbour sends one frame, and it arrives.
fn assert_served(bench: &mut Bench, neighbour: &mut RawFront) {
    bench.arrived();
    neighbour.write(0, &frame(NEIGHBOUR, 77));
    let honest = request(neighbour, 0, 0, 60);
    assert!(neighbour.send(honest));
    neighbour.publish();
    bench.passes();
    assert_eq!(bench.arrived(), [frame(NEIGHBOUR, 77)]);
    assert_eq!(neighbour.answers().iter().map(|a| a.status).collect::<Vec<_>>(), [status::OKAY]);
}

#[test]
fn a_ring_that_is_full_to_the_last_slot_is_sent_once() {
    let mut bench = Bench::new();
    let mut front = bench.front(LIAR, tx::Format::Plain);
    for round in 0..3u32 {
        for n in 0..256 {
            front.write(n, &frame(LIAR, round << 16 | n as u32));
            assert!(front.send(request(&front, n, 0, 60)));
        }
        front.publish();
        bench.passes();
        let number = |frame: &Vec<u8>| u32::from_le_bytes([frame[14], frame[15], frame[16], frame[17]]);
        let arrived: Vec<u32> = bench.arrived().iter().map(number).collect();
        let expected: Vec<u32> = (0..256).map(|n| round << 16 | n).collect();
        assert_eq!(arrived, expected, "each once, in order");
        let answers = front.answers();
        assert!(answers.len() == 256 && answers.iter().zip(0..).all(|(a, id)| (a.id, a.status) == (id, 0)));
    }
    bench.hv.assert_clean();
}

#[test]
fn a_frame_that_makes_no_sense_is_refused_and_the_next_is_sent() {
    let mut bench = Bench::new();
    let mut front = bench.front(LIAR, tx::Format::Plain);
    let more = tx_flags::MORE_DATA;
    let plain = |page: usize, flags, size| (page, 0u16, flags, size);
    // Each chain as (page, offset, flags, size).
    let lies: [&[(usize, u16, u16, usize)]; 7] = [
        &[plain(0, 0, 13)],
        &[plain(0, 0, 0)],
        &[(0, 4090, 0, 60)],
        &[(0, u16::MAX, 0, 60)],
        &[plain(0, more, 60), plain(1, 0, 60)],
        &[plain(0, more, 120), plain(1, 0, 0)],
        &[plain(0, more, 9000), plain(1, more, 100), (2, 1, 0, 4096)],
    ];
    for lie in lies {
        for (page, offset, flags, size) in lie.iter().copied() {
            let request = TxRequest { offset, ..request(&front, page, flags, size) };
            assert!(front.send(request));
        }
        front.write(9, &frame(LIAR, 1));
        assert!(front.send(request(&front, 9, 0, 60)));
        front.publish();
        bench.passes();
        assert_eq!(bench.arrived(), [frame(LIAR, 1)], "after {lie:?}");
        let statuses: Vec<i16> = front.answers().iter().map(|answer| answer.status).collect();
        assert!(statuses[..lie.len()].iter().all(|status| *status == status::ERROR), "{lie:?}: {statuses:?}");
        assert_eq!(statuses[lie.len()..], [status::OKAY]);
    }
    let counters = bench.worker.counters(front.id).expect("it is still served");
    assert_eq!((counters.drops.malformed, counters.guest_errors), (lies.len() as u64, lies.len() as u64));
    bench.hv.assert_clean();
}

#[test]
fn a_page_that_is_not_granted_costs_its_frame() {
    let mut bench = Bench::new();
    let mut front = bench.front(LIAR, tx::Format::Plain);
    for gref in [0, 7, 100_000, u32::MAX] {
        assert!(front.send(TxRequest { gref, ..request(&front, 0, 0, 60) }));
    }
    front.write(1, &frame(LIAR, 5));
    assert!(front.send(request(&front, 1, 0, 60)));
    front.publish();
    bench.passes();
    assert_eq!(bench.arrived(), [frame(LIAR, 5)]);
    let statuses: Vec<i16> = front.answers().iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [-1, -1, -1, -1, 0]);
    assert_eq!(bench.worker.counters(front.id).expect("served").drops.unreadable, 4);
}

#[test]
fn a_container_is_taken_whole_or_not_at_all() {
    let mut bench = Bench::new();
    let mut front = bench.front(LIAR, CONTAINERS);
    let frames: Vec<Vec<u8>> = (0..90).map(|n| frame(LIAR, n)).collect();
    let packets: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
    let good = container(&packets, 0);
    assert_eq!(good.len().div_ceil(4096), 2);
    // What is done to the container, to its chain's second slot, and whether it is then still one.
    type Lie = (fn(&mut Vec<u8>), fn(&mut TxRequest), bool);
    let lies: [Lie; 8] = [
        (|_| (), |_| (), true),
        (|bytes| bytes[0] = 2, |_| (), false),
        (|bytes| bytes[2] += 1, |_| (), false),
        (|bytes| bytes[4] += 1, |_| (), false),
        (|bytes| bytes[16 + 8 * 89 + 1] = 0xff, |_| (), false),
        (|_| (), |second| second.offset = 4, false),
        (|_| (), |second| second.size -= 4, false),
        (|_| (), |second| second.flags |= tx_flags::EXTRA_INFO, false),
    ];
    for (at, (change, bend, whole)) in lies.into_iter().enumerate() {
        let mut bytes = good.clone();
        change(&mut bytes);
        front.write(0, &bytes[..4096]);
        front.write(1, &bytes[4096..]);
        let first = request(&front, 0, tx_flags::MORE_DATA, bytes.len());
        let mut second = request(&front, 1, 0, bytes.len() - 4096);
        bend(&mut second);
        assert!(front.send(first) && front.send(second));
        front.publish();
        bench.passes();
        let expected: &[Vec<u8>] = if whole { &frames } else { &[] };
        assert_eq!(bench.arrived(), expected, "lie {at}");
        let answer = if whole { status::OKAY } else { status::ERROR };
        let statuses: Vec<i16> = front.answers().iter().map(|answer| answer.status).collect();
        assert_eq!(statuses, [answer; 2], "lie {at}");
    }
    bench.hv.assert_clean();
}

#[test]
fn a_liar_loses_its_own_interface_and_its_neighbour_notices_nothing() {
    for lie in 0..4 {
        let mut bench = Bench::new();
        let mut liar = bench.front(LIAR, tx::Format::Plain);
        let mut neighbour = bench.front(NEIGHBOUR, tx::Format::Plain);
        assert_served(&mut bench, &mut neighbour);
        match lie {
            0 => liar.publish_nonsense(257),
            1 => liar.publish_nonsense(u32::MAX),
            2 => {
                // A chain that never ends.
                assert!(liar.send(request(&liar, 0, tx_flags::MORE_DATA, 60)));
                liar.publish();
            }
            _ => {
                // Extra segments without end: each says that another follows.
                for _ in 0..6 {
                    assert!(
                        liar.send(TxRequest { gref: 0x0101, ..request(&liar, 0, tx_flags::EXTRA_INFO, 60) })
                    );
                }
                liar.publish();
            }
        }
        bench.passes();
        let faults = bench.worker.take_faults();
        assert_eq!(faults.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [liar.id], "lie {lie}");
        assert_served(&mut bench, &mut neighbour);
        assert!(bench.worker.disconnect(liar.id).is_some());
        assert_served(&mut bench, &mut neighbour);
        bench.hv.assert_clean();
    }
}

#[test]
fn rubbish_buffers_cost_their_own_packets() {
    let mut bench = Bench::new();
    let mut front = bench.front(LIAR, tx::Format::Plain);
    for n in 0..200usize {
        // Every other page is not granted.
        let gref = if n % 2 == 0 { 1_000_000 } else { front.grant(n) };
        assert!(front.post(drayage_wire::netif::RxRequest { id: n as u16, gref }));
    }
    front.publish();
    bench.passes();
    for n in 0..100u32 {
        let mut bytes = frame(NEIGHBOUR, n);
        bytes[..6].copy_from_slice(&mac(LIAR));
        bench.far.send(bytes);
    }
    bench.passes();
    let received = front.received();
    assert_eq!(received.len(), 100);
    for (answer, n) in received.iter().zip(0u16..) {
        assert_eq!((answer.id, answer.offset, answer.flags), (n, 0, 0));
        assert_eq!(answer.status, if n % 2 == 0 { status::ERROR } else { 60 });
    }
    assert_eq!(bench.worker.counters(front.id).expect("served").drops.bad_buffer, 50);
    // An index that cannot be true is found when there is something to hand over.
    front.publish_rx_nonsense(5000);
    bench.far.send({
        let mut bytes = frame(NEIGHBOUR, 0);
        bytes[..6].copy_from_slice(&mac(LIAR));
        bytes
    });
    bench.passes();
    assert_eq!(bench.worker.take_faults().len(), 1);
    bench.hv.assert_clean();
}

#[test]
fn a_neighbours_address_cannot_be_stolen() {
    let mut bench = Bench::new();
    let mut thief = bench.front(LIAR, tx::Format::Plain);
    let mut neighbour = bench.front(NEIGHBOUR, tx::Format::Plain);
    for front in [&mut thief, &mut neighbour] {
        for n in 0..8 {
            let gref = front.grant(n);
            assert!(front.post(drayage_wire::netif::RxRequest { id: n as u16, gref }));
        }
        front.publish();
    }
    // It sends as its neighbour, to make the switch learn that the neighbour is behind its own port.
    thief.write(9, &frame(NEIGHBOUR, 1));
    assert!(thief.send(request(&thief, 9, 0, 60)));
    thief.publish();
    bench.passes();
    // That frame went everywhere, for nobody knew where its destination is.
    neighbour.received();
    let mut secret = frame(LIAR, 2);
    secret[..6].copy_from_slice(&mac(NEIGHBOUR));
    secret[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    bench.far.send(secret);
    bench.passes();
    assert_eq!(neighbour.received().iter().filter(|answer| answer.status == 60).count(), 1);
    assert_eq!(thief.received().len(), 0, "it hears nothing of it");
}
