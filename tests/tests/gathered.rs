//! Packets of staged guests that are gathered into the open container of another one: each goes straight to its place in
//! pages that are posted, in one copy, and what was decided on is what arrives, whatever either end makes of its memory.

use std::sync::atomic::Ordering;

use drayage::aggregate::Wrap;
use drayage::capture::{Item, Way, capture};
use drayage::policy::Policy;
use drayage::rules::Rules;
use drayage::vif::{Connection, Counters, rx, tx};
use drayage_tests::fleet::{Fleet, frame, own};
use drayage_tests::hand;
use drayage_tests::rawfront::RawFront;
use drayage_tests::stage::{lie_after, staged_guest, staged_guest_with_control};
use drayage_wire::container::{Checksum, Gso, GsoKind, Meta, Writer};
use drayage_wire::control::kind;
use drayage_wire::netif::RxRequest;
use drayage_wire::ring::SharedWords as _;
use proptest::prelude::*;

const STRANGER: [u8; 6] = [2, 9, 9, 9, 9, 9];
const RECEIVERS: [u16; 2] = [6, 7];
/// So much of a packet is looked at, and goes by private memory.
const HEAD_BYTES: u64 = 144;

fn shape(connection: &mut Connection, policy: Policy, wrap: Wrap) {
    connection.tx_format = tx::Format::Containers { size: 65_535 };
    connection.rx_format = rx::Format::Containers { size: 65_536, wrap };
    connection.policy = policy;
}

/// A frame whose bytes depend on a number.
fn numbered(to: u16, from: [u8; 6], number: u32, len: usize) -> Vec<u8> {
    let mut bytes = frame(own(to), from, number as u8);
    bytes.resize(len, number as u8 ^ 0x5a);
    bytes[14..18].copy_from_slice(&number.to_le_bytes());
    bytes
}

fn container(frames: &[Vec<u8>]) -> Vec<u8> {
    hand::container(&frames.iter().map(Vec::as_slice).collect::<Vec<_>>(), 0)
}

/// A locked guest that sends, and two that receive, all with their pages mapped.
struct Scene {
    fleet: Fleet,
    sender: RawFront,
    receivers: [RawFront; 2],
    next: u32,
}

fn scene(policy: Policy, wrap: Wrap, posted: usize) -> Scene {
    let mut fleet = Fleet::new(1);
    let sender = staged_guest(&mut fleet, 5, |connection| {
        shape(connection, Policy::default(), Wrap::Allowed);
        connection.rules = Rules { locked_mac: true, isolated: false };
    });
    let receivers = RECEIVERS.map(|id| {
        let mut front = staged_guest(&mut fleet, id, |connection| shape(connection, policy, wrap));
        front.post_pages(0, posted);
        front
    });
    let mut scene = Scene { fleet, sender, receivers, next: 0 };
    // From now on it is known that the guest sends to both, and how much.
    let frames = scene.frames(4, 1514);
    scene.sends(&container(&frames));
    scene.later();
    assert!(scene.take() == split(&frames));
    scene
}

fn split(frames: &[Vec<u8>]) -> [Vec<Vec<u8>>; 2] {
    RECEIVERS.map(|id| frames.iter().filter(|frame| frame[..6] == own(id)).cloned().collect())
}

impl Scene {
    /// Makes frames for both, three by three.
    fn frames(&mut self, count: u32, len: usize) -> Vec<Vec<u8>> {
        let first = self.next;
        self.next += count;
        (first..self.next).map(|n| numbered(RECEIVERS[n as usize / 3 % 2], own(5), n, len)).collect()
    }

    fn sends(&mut self, bytes: &[u8]) {
        self.sender.send_bytes(100, bytes);
        self.fleet.passes();
        self.sender.answers();
    }

    /// All that is held for a while goes out.
    fn later(&mut self) {
        self.fleet.clock.advance(10_000_000);
        self.fleet.passes();
    }

    /// Takes what came, by receiver.
    fn take(&mut self) -> [Vec<Vec<u8>>; 2] {
        self.receivers.each_mut().map(RawFront::take_packets)
    }

    fn counters(&self) -> [Counters; 3] {
        let [a, b] = &self.receivers;
        [&self.sender, a, b].map(|front| self.fleet.counters(0, front))
    }

    /// Returns how many bytes were read of the sender's pages, and written into those of both receivers.
    fn copied(&self) -> [u64; 2] {
        let [sender, a, b] = self.counters();
        assert_eq!((sender.tx.grant_ops, a.rx.grant_ops, b.rx.grant_ops), (0, 0, 0));
        assert_eq!((a.rx.moved_bytes, b.rx.moved_bytes), (0, 0));
        [sender.tx.mapped_bytes, a.rx.mapped_bytes + b.rx.mapped_bytes]
    }
}

const POLICIES: [Policy; 3] = [
    Policy::Opportunistic { deadline_us: 500 },
    Policy::Fixed { size_bytes: 20_000, timeout_us: 500 },
    Policy::Slo { delay_us: 1000 },
];

#[test]
fn each_byte_is_copied_once_but_for_what_is_looked_at() {
    for policy in POLICIES {
        for len in [1000, 1514, 4000, 9000] {
            let mut scene = scene(policy, Wrap::Allowed, 64);
            let [read, written] = scene.copied();
            let mut expected = [vec![], vec![]];
            let (mut packets, mut bytes) = (0, 0);
            for _ in 0..3 {
                let frames = scene.frames(36_000 / len as u32, len);
                packets += frames.len() as u64;
                bytes += (frames.len() * len) as u64;
                scene.sends(&container(&frames));
                for (all, these) in expected.iter_mut().zip(split(&frames)) {
                    all.extend(these);
                }
            }
            scene.later();
            assert!(scene.take() == expected, "{policy}, {len} bytes");
            let [read, written] = [scene.copied()[0] - read, scene.copied()[1] - written];
            let tables = 3 * 16 + 8 * packets;
            assert!(read <= HEAD_BYTES * packets + tables, "{policy}, {len} bytes: {read} were read");
            let [_, a, b] = scene.counters();
            let around = (a.rx.containers + b.rx.containers) * (16 + 8 * 64 + 2) + 11 * packets;
            assert!(written <= bytes + around, "{policy}, {len} bytes: {written} of {bytes} were written");
            assert_eq!(scene.fleet.workers[0].blocks_in_use(), 1, "nothing is referred to");
            scene.fleet.hv.assert_clean();
        }
    }
}

/// Where there is no place yet, a packet goes by private memory, and overtakes nothing.
#[test]
fn what_finds_no_posted_page_waits_in_order() {
    for policy in POLICIES {
        let mut scene = scene(policy, Wrap::Allowed, 18);
        let mut expected = [vec![], vec![]];
        for _ in 0..3 {
            let frames = scene.frames(36, 1514);
            scene.sends(&container(&frames));
            for (all, these) in expected.iter_mut().zip(split(&frames)) {
                all.extend(these);
            }
        }
        let mut came = [vec![], vec![]];
        for _ in 0..40 {
            scene.later();
            for (all, these) in came.iter_mut().zip(scene.take()) {
                all.extend(these);
            }
        }
        assert!(came == expected, "{policy}");
        let [_, a, b] = scene.counters();
        assert_eq!((a.drops.total(), b.drops.total()), (0, 0));
        scene.fleet.hv.assert_clean();
    }
}

/// Many times round the ring, in containers that may not cross its end, with long and short packets in one.
#[test]
fn places_are_right_all_around_the_ring() {
    for wrap in [Wrap::Allowed, Wrap::Forbidden] {
        let mut scene = scene(Policy::Slo { delay_us: 1000 }, wrap, 61);
        for round in 0..120u32 {
            let lens = [1514, 60, 600, 9000, 145, 4096, 144, 2000];
            let mut frames = Vec::new();
            for n in 0..8 {
                frames.extend(scene.frames(1, lens[((n + round) * 5 % 8) as usize]));
            }
            scene.sends(&container(&frames));
            scene.later();
            assert!(scene.take() == split(&frames), "{wrap:?}, round {round}");
        }
        scene.fleet.hv.assert_clean();
    }
}

#[test]
fn what_is_rewritten_in_mid_copy_arrives_where_it_was_decided_to() {
    let mut scene = scene(Policy::default(), Wrap::Allowed, 64);
    let frames = scene.frames(6, 4000);
    // At once after the header, the table, where each packet goes, and the first one's headers were read.
    let decided = 2 + frames.len() + 1;
    let lies = [
        container(&vec![numbered(7, STRANGER, 99, 4000); 6]),
        container(&vec![numbered(6, STRANGER, 99, 1000); 20]),
        vec![0xff; 65_535],
    ];
    for lie in lies {
        lie_after(&scene.fleet, &scene.sender, 100, decided, &lie);
        let before = scene.copied()[0];
        scene.sends(&container(&frames));
        scene.fleet.workers[0].xen().meddle_with(|_| ());
        scene.later();
        let came = scene.take();
        for (came, sent) in came.iter().zip(split(&frames)) {
            let addresses = |frames: &[Vec<u8>]| frames.iter().map(|f| f[..14].to_vec()).collect::<Vec<_>>();
            assert_eq!(addresses(came), addresses(&sent), "as it was decided on");
        }
        let first = &came[1][0];
        assert!(
            first[..144] == frames[0][..144] && *first != frames[0],
            "the lie was told in time, and no sooner"
        );
        assert!(scene.copied()[0] - before < 2000, "they went straight through");
        assert_eq!(scene.counters()[0].drops.total(), 0);
    }
    scene.fleet.hv.assert_clean();
}

/// A receiver may name other pages once something is in those that it named first.
#[test]
fn a_receiver_that_changes_its_mind_harms_itself_alone() {
    let mut scene = scene(Policy::Fixed { size_bytes: 65_536, timeout_us: 500 }, Wrap::Allowed, 64);
    let frames = scene.frames(12, 1514);
    scene.sends(&container(&frames));
    // Its requests now name page 200, from which nothing was read by then.
    let page = scene.receivers[0].rx_page();
    let other = scene.receivers[0].grant(200);
    for slot in 0..256 {
        // The header of a ring has 64 bytes, and a request 8, the second half of which is its reference.
        page.store(16 + 2 * slot + 1, other, Ordering::Relaxed);
    }
    scene.later();
    assert!(scene.take() == split(&frames), "each request was read once");
    assert!(scene.receivers[0].read(200, 4096) == vec![0; 4096]);
    scene.fleet.hv.assert_clean();
}

/// A receiver may have a page unmapped once something is in it: the rest goes there by grant copies.
#[test]
fn what_is_placed_stays_where_it_is_when_its_page_is_unmapped() {
    let mut fleet = Fleet::new(1);
    let policy = Policy::Fixed { size_bytes: 65_536, timeout_us: 500 };
    let mut sender = staged_guest(&mut fleet, 5, |c| shape(c, Policy::default(), Wrap::Allowed));
    let (mut receiver, mut control) =
        staged_guest_with_control(&mut fleet, 6, |c| shape(c, policy, Wrap::Allowed));
    receiver.post_pages(0, 64);
    let mut expected = Vec::new();
    for round in 0..3 {
        let frames: Vec<_> = (0..9).map(|n| numbered(6, own(5), 10 * round + n, 1514)).collect();
        sender.send_bytes(100, &container(&frames));
        fleet.passes();
        sender.answers();
        expected.extend(frames);
        if round == 1 {
            let placed = fleet.counters(0, &receiver).rx;
            assert!(placed.mapped_bytes >= 9 * 1514 && placed.containers == 0, "it is open");
            control.ask(&mut fleet, &receiver, kind::DEL_GREF_MAPPING, 0, 64);
        }
    }
    fleet.clock.advance(10_000_000);
    fleet.passes();
    assert!(receiver.take_packets() == expected);
    assert!(fleet.counters(0, &receiver).rx.grant_ops > 0);
    fleet.hv.assert_clean();
}

fn tcp_frame(to: u16, payload: usize) -> Vec<u8> {
    let total = (40 + payload) as u16;
    let mut frame = vec![0x33; 54 + payload];
    frame[..6].copy_from_slice(&own(to));
    frame[6..12].copy_from_slice(&own(5));
    frame[12..15].copy_from_slice(&[8, 0, 0x45]);
    frame[15] = 0;
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    frame[20..24].copy_from_slice(&[0x40, 0, 64, 6]);
    frame[46] = 0x50;
    frame
}

#[test]
fn a_super_frame_is_judged_by_its_headers_and_goes_straight_through() {
    let mut scene = scene(Policy::default(), Wrap::Allowed, 64);
    let gso = Meta { checksum: Checksum::Blank, gso: Some(Gso { kind: GsoKind::TcpV4, size: 1448 }) };
    let send = |scene: &mut Scene, frame: &[u8]| {
        let mut buffer = vec![0; 65_536];
        let mut writer = Writer::new(buffer.len(), 1);
        writer.push_with(&mut buffer, frame.len(), gso, |bytes| bytes.copy_from_slice(frame)).expect("room");
        let total = writer.finish(&mut buffer, 0, 0);
        scene.sends(&buffer[..total]);
        scene.later();
    };
    let frame = tcp_frame(6, 30_000);
    let before = scene.copied()[0];
    send(&mut scene, &frame);
    assert!(scene.take() == [vec![frame.clone()], vec![]]);
    assert!(scene.copied()[0] - before <= HEAD_BYTES + 24, "one copy");
    let [sender, receiver, _] = scene.counters();
    assert_eq!((sender.tx.super_frames, receiver.rx.super_frames), (1, 1));
    // It says that it is longer than it is.
    let mut lie = frame;
    lie[16..18].copy_from_slice(&40_000u16.to_be_bytes());
    send(&mut scene, &lie);
    assert!(scene.take().iter().all(Vec::is_empty));
    assert_eq!(scene.counters()[0].drops.malformed, 1);
    scene.fleet.hv.assert_clean();
}

/// What is in the guest's pages when a capture begins is not shown, and all that comes then is.
#[test]
fn a_capture_shows_what_comes_after_its_beginning() {
    let mut scene = scene(Policy::Fixed { size_bytes: 65_536, timeout_us: 500 }, Wrap::Allowed, 64);
    let before = scene.frames(6, 1514);
    scene.sends(&container(&before));
    let (ours, source) = capture(scene.receivers[0].id, 4096);
    assert!(scene.fleet.workers[0].start_capture(ours));
    let after = scene.frames(6, 1514);
    scene.sends(&container(&after));
    scene.later();
    let [came, _] = scene.take();
    assert!(came == [split(&before)[0].clone(), split(&after)[0].clone()].concat());
    let mut shown = Vec::new();
    while let Ok(item) = source.full.try_recv() {
        if let Item::Frame(record) = item
            && record.way == Way::Out
        {
            shown.push(record.bytes);
        }
    }
    assert!(shown == split(&after)[0]);
    scene.fleet.hv.assert_clean();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Whatever both ends make of their memory, whenever: what arrives is for whom it arrives at, and from whom the sender may
    /// be, in whole containers (which `take` looks at).
    #[test]
    fn no_moment_is_a_good_one_for_a_lie(
        acts in prop::collection::vec((0usize..7, any::<u16>()), 1..300),
        len in prop::sample::select(vec![600usize, 1514, 5000]),
        policy in prop::sample::select(POLICIES.to_vec()),
    ) {
        let mut scene = scene(policy, Wrap::Allowed, 64);
        let choices = [[6, 7], [7, 7], [6, 6]].map(|to| {
            let one = |n: u32| numbered(to[n as usize % 2], if n == 5 { STRANGER } else { own(5) }, n, len);
            container(&(0..6).map(one).collect::<Vec<_>>())
        });
        let targets: Vec<_> = (0..8).map(|page| scene.sender.page(100 + page)).collect();
        let (requests, pages) = (scene.receivers[0].rx_page(), [3, 200].map(|n| scene.receivers[0].grant(n)));
        let (lies, mut at) = (choices.clone(), 0);
        scene.fleet.workers[0].xen().meddle_with(move |_| {
            at = (at + 1) % acts.len();
            let (what, value) = acts[at];
            if let Some(lie) = lies.get(what) {
                let page = usize::from(value) % targets.len();
                if let Some(piece) = lie.chunks(4096).nth(page) {
                    targets[page].write(0, piece);
                }
            } else if what == 3 {
                let slot = usize::from(value >> 1) % 256;
                requests.store(16 + 2 * slot + 1, pages[usize::from(value & 1)], Ordering::Relaxed);
            }
        });
        for round in 0..12 {
            scene.sends(&choices[round % 3]);
            scene.later();
            let came = scene.receivers[1].take_packets();
            // The first one's pages are whatever it made of them.
            let received = scene.receivers[0].received();
            for answer in received {
                let gref = scene.receivers[0].grant(usize::from(answer.id));
                scene.receivers[0].post(RxRequest { id: answer.id, gref });
            }
            scene.receivers[0].publish();
            for frame in came {
                prop_assert_eq!((&frame[..6], &frame[6..12]), (&own(7)[..], &own(5)[..]));
            }
        }
        scene.fleet.hv.assert_clean();
    }
}
