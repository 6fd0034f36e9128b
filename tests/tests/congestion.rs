//! Who does not read, reads slowly or floods, loses packets of its own: queues are bounded, and nobody waits behind
//! another's.

use std::os::fd::BorrowedFd;

use drayage::aggregate::Wrap;
use drayage::port::{Budget, Sent, Uplink};
use drayage::vif::rx::Wish;
use drayage::vif::{Connection, rx, tx};
use drayage_tests::fleet::{Fleet, frame, own};
use drayage_tests::hand;
use drayage_tests::rawfront::{PAGES, RawFront};
use drayage_tests::world::LAN;
use drayage_wire::container::Meta;
use drayage_wire::netif::TxRequest;

const BROADCAST: [u8; 6] = [0xff; 6];
const FAR: [u8; 6] = [2, 0, 0, 0, 0, 1];

fn numbered(to: [u8; 6], from: [u8; 6], number: u32) -> Vec<u8> {
    let mut frame = frame(to, from, 0);
    frame[14..18].copy_from_slice(&number.to_le_bytes());
    frame
}

fn number(frame: &[u8]) -> u32 {
    u32::from_le_bytes([frame[14], frame[15], frame[16], frame[17]])
}

fn containers(connection: &mut Connection) {
    connection.rx_format = rx::Format::Containers { size: 16_384, wrap: Wrap::Allowed };
}

/// Takes what came to a guest that speaks plain netif, and posts as many buffers again.
fn take(front: &mut RawFront) -> Vec<u32> {
    let received = front.received();
    let numbers = received.iter().map(|a| number(&front.read(usize::from(a.id), 18))).collect();
    for answer in &received {
        front.post_pages(usize::from(answer.id), 1);
    }
    numbers
}

#[test]
fn a_guest_that_does_not_read_holds_up_nobody() {
    for format in [(|_| ()) as fn(&mut Connection), containers] {
        let mut fleet = Fleet::new(1);
        let far = fleet.uplink(0, LAN);
        let stuck = fleet.guest(0, 5, format);
        let mut neighbour = fleet.guest(0, 6, |_| ());
        let mut came = Vec::new();
        const COUNT: u32 = 20_000;
        for n in 0..COUNT {
            far.send(numbered(own(5), FAR, n));
            far.send(numbered(own(6), FAR, n));
            if n % 16 == 15 {
                fleet.workers[0].pass();
                came.extend(take(&mut neighbour));
            }
        }
        fleet.passes();
        came.extend(take(&mut neighbour));
        assert!(came.iter().copied().eq(0..COUNT), "every one, in order: {} came", came.len());
        let (stuck, other) = (fleet.counters(0, &stuck), fleet.counters(0, &neighbour));
        assert_eq!((other.drops.total(), stuck.drops.total()), (0, stuck.drops.queue_full));
        assert_eq!(stuck.rx.packets + stuck.drops.queue_full, u64::from(COUNT));
        assert!(
            (1000..12_000).contains(&stuck.rx.packets),
            "what was taken is bounded: {}",
            stuck.rx.packets
        );
        fleet.hv.assert_clean();
    }
}

#[test]
fn a_slow_guest_gets_what_its_queue_held_in_order() {
    let mut fleet = Fleet::new(1);
    let far = fleet.uplink(0, LAN);
    let (mut slow, mut quick) = (fleet.guest(0, 5, |_| ()), fleet.guest(0, 6, |_| ()));
    let (mut slowly, mut quickly) = (Vec::new(), Vec::new());
    const COUNT: u32 = 8000;
    for n in 0..COUNT {
        far.send(numbered(own(5), FAR, n));
        far.send(numbered(own(6), FAR, n));
        if n % 16 == 15 {
            fleet.workers[0].pass();
            quickly.extend(take(&mut quick));
        }
        if n % 640 == 639 {
            slowly.extend(take(&mut slow));
        }
    }
    for _ in 0..100 {
        fleet.passes();
        quickly.extend(take(&mut quick));
        slowly.extend(take(&mut slow));
    }
    assert!(quickly.iter().copied().eq(0..COUNT));
    assert!(slowly.windows(2).all(|two| two[0] < two[1]), "in order, and none twice");
    let lost = fleet.counters(0, &slow).drops.queue_full;
    assert_eq!(slowly.len() as u64 + lost, u64::from(COUNT));
    assert!(lost > 1000 && slowly.len() > 1000, "{lost} lost");
    fleet.hv.assert_clean();
}

/// One guest sends to everybody as fast as its ring goes, and nobody reads as fast as that. What two others say to
/// each other arrives all the same: what goes to everybody may fill half of a guest's queue only.
#[test]
fn a_broadcast_storm_leaves_room_for_what_is_meant_for_somebody() {
    for workers in [1, 2] {
        let mut fleet = Fleet::new(workers);
        let mut storm = fleet.guest(0, 5, |_| ());
        let (mut speaker, mut hearer) = (fleet.guest(0, 6, |_| ()), fleet.guest(workers - 1, 7, |_| ()));
        let (mut said, mut heard) = (0u32, Vec::new());
        for round in 0..400u32 {
            for page in 0..200 {
                storm.write(page, &numbered(BROADCAST, own(5), 1_000_000));
                let gref = storm.grant(page);
                storm.send(TxRequest { gref, offset: 0, flags: 0, id: 0, size: 60 });
            }
            storm.publish();
            if round % 4 == 3 {
                speaker.send_frame(250, &numbered(own(7), own(6), said));
                said += 1;
            }
            for worker in &mut fleet.workers {
                worker.pass();
            }
            storm.answers();
            speaker.answers();
            // It reads 64 in four rounds, where 800 come.
            if round % 4 == 3 {
                heard.extend(take(&mut hearer).into_iter().filter(|n| *n < 1_000_000));
            }
        }
        for _ in 0..64 {
            fleet.passes();
            heard.extend(take(&mut hearer).into_iter().filter(|n| *n < 1_000_000));
        }
        assert!(heard.iter().copied().eq(0..said), "{} of {said} with {workers} workers", heard.len());
        let counters = fleet.counters(workers - 1, &hearer);
        assert!(counters.drops.queue_full > 10_000, "{:?}", counters.drops);
        assert_eq!(counters.drops.total(), counters.drops.queue_full);
        fleet.hv.assert_clean();
    }
}

/// Puts as many frames into a guest's TX ring as it takes, of so many bytes. Returns the next frame's number.
fn fill_ring(front: &mut RawFront, to: [u8; 6], from: [u8; 6], mut next: u32, bytes: usize) -> u32 {
    front.answers();
    loop {
        let page = next as usize % PAGES;
        let mut frame = numbered(to, from, next);
        frame.resize(bytes, 0);
        let gref = front.grant(page);
        if !front.send(TxRequest { gref, offset: 0, flags: 0, id: page as u16, size: bytes as u16 }) {
            break;
        }
        front.write(page, &frame);
        next += 1;
    }
    front.publish();
    next
}

#[test]
fn a_sender_is_as_slow_as_the_guest_that_it_sends_to() {
    for (format, bytes) in [((|_| ()) as fn(&mut Connection), 60), (|_| (), 4000), (containers, 4000)] {
        let mut fleet = Fleet::new(1);
        let (mut sender, mut other) = (fleet.guest(0, 5, |_| ()), fleet.guest(0, 7, |_| ()));
        let mut receiver = fleet.guest(0, 6, format);
        let (mut sent, mut also) = (0, 0);
        let mut came = 0;
        for _ in 0..200 {
            sent = fill_ring(&mut sender, own(6), own(5), sent, bytes);
            also = fill_ring(&mut other, own(6), own(7), also, bytes);
            fleet.workers[0].pass();
            fleet.clock.advance(50_000);
            let received = receiver.received();
            came += received.len() as u64;
            // It gives back what it got, a few buffers in each round.
            for answer in received {
                receiver.post_pages(usize::from(answer.id), 1);
            }
        }
        let counters = fleet.counters(0, &receiver);
        assert_eq!(counters.drops.total(), 0, "{bytes} bytes: {:?}", counters.drops);
        assert!(came > 5000 && counters.rx.packets > 2000, "{came} slots came");
        let (one, two) = (fleet.counters(0, &sender).tx.packets, fleet.counters(0, &other).tx.packets);
        assert!(one.abs_diff(two) < (one + two) / 5, "one of two has more: {one} and {two}");
        fleet.hv.assert_clean();
    }
}

/// For how long a sender waits for a guest that takes nothing.
const PATIENCE_NS: u64 = 30_000_000;

#[test]
fn a_guest_whose_processor_another_has_for_a_while_loses_nothing() {
    for format in [(|_| ()) as fn(&mut Connection), containers] {
        let mut fleet = Fleet::new(1);
        let (mut sender, mut receiver) = (fleet.guest(0, 5, |_| ()), fleet.guest(0, 6, format));
        let mut sent = 0;
        for _ in 0..20 {
            // The sender runs, as long as its ring has room; then the receiver does.
            for _ in 0..15 {
                sent = fill_ring(&mut sender, own(6), own(5), sent, 1514);
                fleet.passes();
                fleet.clock.advance(1_000_000);
            }
            // What it gives back is filled again with what waits for it.
            while !take(&mut receiver).is_empty() {
                fleet.passes();
            }
        }
        let counters = fleet.counters(0, &receiver);
        assert_eq!(counters.drops.total(), 0, "{:?}", counters.drops);
        assert!(counters.rx.packets > 5000, "{} packets", counters.rx.packets);
        fleet.hv.assert_clean();
    }
}

#[test]
fn a_word_to_somebody_else_before_a_stream_makes_nobody_lose_it() {
    for format in [(|_| ()) as fn(&mut Connection), containers] {
        let mut fleet = Fleet::new(1);
        let (mut sender, mut neighbour) = (fleet.guest(0, 5, |_| ()), fleet.guest(0, 7, |_| ()));
        let slow = fleet.guest(0, 6, format);
        // Both in one pass, then nothing but the stream.
        sender.send_frame(0, &numbered(own(7), own(5), 0));
        sender.send_frame(1, &numbered(own(6), own(5), 0));
        fleet.workers[0].pass();
        let sent = fill_ring(&mut sender, own(6), own(5), 2, 4000);
        fleet.passes();
        assert!(!take(&mut neighbour).is_empty());
        let counters = fleet.counters(0, &slow);
        assert_eq!(counters.drops.total(), 0, "{:?}", counters.drops);
        assert!(sent > 200 && fleet.counters(0, &sender).tx.packets > 100, "{sent} in the ring");
        fleet.hv.assert_clean();
    }
}

/// A guest that sends containers, and so many of one page, filled by half, that its ring is full of them: the `n`th goes to
/// `to(n)`. `before` is called with each while it is alone in the ring.
fn half_empty_containers(
    fleet: &mut Fleet,
    to: impl Fn(u32) -> [u8; 6],
    mut before: impl FnMut(&mut Fleet, u32),
) -> RawFront {
    let mut sender = fleet.guest(0, 5, |connection| {
        connection.tx_format = tx::Format::Containers { size: 65_535 };
    });
    for n in 0..200 {
        let mut frame = numbered(to(n), own(5), n);
        frame.resize(1700, 0);
        sender.send_bytes(n as usize, &hand::container(&[&frame, &frame], n));
        before(fleet, n);
    }
    sender
}

fn large_containers(connection: &mut Connection) {
    connection.rx_format = rx::Format::Containers { size: 65_536, wrap: Wrap::Allowed };
}

/// A container that is handed on whole takes a place in the queue, of which there are few, however little is in it: where
/// it is known where they go, where it is not, and where what came before went to an uplink.
#[test]
fn half_empty_containers_count_by_the_places_that_they_take() {
    for first_to in [Some(own(6)), None, Some(FAR)] {
        let mut fleet = Fleet::new(1);
        let far = fleet.uplink(0, LAN);
        far.send(frame(own(5), FAR, 0));
        fleet.passes();
        let slow = fleet.guest(0, 6, large_containers);
        let to = |n| first_to.filter(|_| n == 0).unwrap_or(own(6));
        // One that goes ahead says where the others are taken to go.
        let ahead = first_to.is_some();
        half_empty_containers(&mut fleet, to, |fleet, n| {
            if n == 0 && ahead {
                fleet.workers[0].pass();
            }
        });
        for _ in 0..20 {
            fleet.workers[0].pass();
            fleet.clock.advance(PATIENCE_NS / 30);
        }
        let counters = fleet.counters(0, &slow);
        assert_eq!(counters.drops.total(), 0, "{first_to:?} first: {:?}", counters.drops);
        assert!(counters.rx.packets > 64, "{} packets", counters.rx.packets);
        fleet.hv.assert_clean();
    }
}

#[test]
fn half_empty_containers_for_several_who_read_find_room() {
    let mut fleet = Fleet::new(1);
    let readers = [6, 7].map(|id| fleet.guest(0, id, large_containers));
    // In each hundred, all but the first go to one of the two, who has pages for 64.
    let to = |n| own(if n % 100 == 0 { 7 } else { 6 });
    let mut sender = half_empty_containers(&mut fleet, to, |_, _| ());
    let mut readers = readers.map(|reader| (reader, 0));
    for _ in 0..200 {
        fleet.workers[0].pass();
        sender.answers();
        for (reader, came) in &mut readers {
            *came += reader.take_frames().len();
        }
    }
    for ((reader, came), containers) in readers.iter().zip([198, 2]) {
        let counters = fleet.counters(0, reader);
        assert_eq!(counters.drops.total(), 0, "{:?}", counters.drops);
        assert_eq!((*came, counters.rx.packets), (containers, 2 * containers as u64));
    }
    fleet.hv.assert_clean();
}

/// An uplink behind which somebody says a word, and takes what is sent to him.
struct Asker(Option<Vec<u8>>);

impl Uplink for Asker {
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn receive(&mut self, budget: &mut Budget, each: &mut dyn FnMut(&[u8], Meta)) {
        if let Some(frame) = self.0.take() {
            budget.spend(frame.len());
            each(&frame, Meta::default());
        }
    }

    fn send(&mut self, _: &[u8], _: Meta) -> Sent {
        Sent::Yes
    }
}

#[test]
fn an_answer_beyond_the_uplink_before_a_stream_makes_nobody_lose_it() {
    for format in [(|_| ()) as fn(&mut Connection), containers] {
        let mut fleet = Fleet::new(1);
        let mut sender = fleet.guest(0, 5, |_| ());
        let slow = fleet.guest(0, 6, format);
        let asker = Asker(Some(frame(own(5), FAR, 0)));
        fleet.workers[0].add_uplink(LAN, Box::new(asker)).expect("there is room");
        fleet.passes();
        sender.send_frame(0, &numbered(FAR, own(5), 0));
        fleet.workers[0].pass();
        let sent = fill_ring(&mut sender, own(6), own(5), 1, 4000);
        fleet.passes();
        let counters = fleet.counters(0, &slow);
        assert_eq!(counters.drops.total(), 0, "{:?}", counters.drops);
        assert!(sent > 200 && fleet.counters(0, &sender).tx.packets > 50, "{sent} in the ring");
        fleet.hv.assert_clean();
    }
}

#[test]
fn a_sender_waits_for_a_guest_that_does_not_read_once_and_briefly() {
    for format in [(|_| ()) as fn(&mut Connection), containers] {
        let mut fleet = Fleet::new(1);
        let mut sender = fleet.guest(0, 5, |_| ());
        let stuck = fleet.guest(0, 6, format);
        let mut neighbour = fleet.guest(0, 7, |_| ());
        // All goes to the one that does not read, until the sender's ring is full.
        let mut sent = 0;
        while fleet.counters(0, &sender).tx.packets == u64::from(sent) {
            sent = fill_ring(&mut sender, own(6), own(5), sent, 1514);
            fleet.passes();
        }
        assert_eq!(fleet.counters(0, &stuck).drops.total(), 0, "it is held back before anything is lost");
        for _ in 0..100 {
            fleet.workers[0].pass();
        }
        assert!(fleet.counters(0, &sender).tx.packets < u64::from(sent), "and it is still");
        let asked = fleet.workers[0].pass().when;
        assert!(matches!(asked, Wish::At(at) if at <= PATIENCE_NS), "{asked:?}");
        fleet.clock.advance(PATIENCE_NS);
        fleet.passes();
        assert_eq!(fleet.counters(0, &sender).tx.packets, u64::from(sent), "it waited long enough");
        // From now on it is not slowed down by that one, whether it sends to others or not.
        let mut said = 0;
        let mut heard = Vec::new();
        for round in 0..60 {
            if round % 2 == 0 {
                sent = fill_ring(&mut sender, own(6), own(5), sent, 1514);
            } else {
                sender.answers();
                sender.send_frame(said as usize % PAGES, &numbered(own(7), own(5), said));
                said += 1;
            }
            fleet.passes();
            heard.extend(take(&mut neighbour));
        }
        assert!(heard.iter().copied().eq(0..said), "{} of {said}", heard.len());
        let (drops, sender) = (fleet.counters(0, &stuck).drops, fleet.counters(0, &sender));
        assert_eq!(sender.tx.packets, u64::from(sent + said));
        assert!(drops.queue_full > 5000 && drops.total() == drops.queue_full, "{drops:?}");
        fleet.hv.assert_clean();
    }
}
