//! From one guest's mapped pages straight into another's: one copy, and what was decided on is what arrives, whatever
//! the sender makes of its pages between any two steps.

use drayage::aggregate::Wrap;
use drayage::rules::Rules;
use drayage::vif::{Connection, rx, tx};
use drayage_tests::fleet::{Fleet, frame, own};
use drayage_tests::hand;
use drayage_tests::rawfront::RawFront;
use drayage_tests::stage::{lie_after, staged_guest};
use drayage_wire::container::{HEADER_BYTES, Manifest};
use proptest::prelude::*;

const STRANGER: [u8; 6] = [2, 9, 9, 9, 9, 9];
const RECEIVERS: [u16; 2] = [6, 7];

fn containers(connection: &mut Connection) {
    connection.tx_format = tx::Format::Containers { size: 65_535 };
    connection.rx_format = rx::Format::Containers { size: 65_536, wrap: Wrap::Allowed };
}

/// A locked guest that sends, and two that receive, all with their pages mapped.
struct Scene {
    fleet: Fleet,
    sender: RawFront,
    receivers: [RawFront; 2],
}

fn scene() -> Scene {
    let mut fleet = Fleet::new(1);
    let sender = staged_guest(&mut fleet, 5, |connection| {
        containers(connection);
        connection.rules = Rules { locked_mac: true, isolated: false };
    });
    let receivers = RECEIVERS.map(|id| {
        let mut front = staged_guest(&mut fleet, id, containers);
        front.post_pages(0, 64);
        front
    });
    let mut scene = Scene { fleet, sender, receivers };
    // From now on it is known where the guest sends.
    scene.sends(&container(6, own(5), 1, 60, 0));
    scene.take();
    scene
}

fn container(to: u16, from: [u8; 6], count: usize, len: usize, byte: u8) -> Vec<u8> {
    let mut one = frame(own(to), from, byte);
    one.resize(len, byte ^ 0x5a);
    hand::container(&vec![one.as_slice(); count], 0)
}

impl Scene {
    fn sends(&mut self, bytes: &[u8]) {
        self.sender.send_bytes(100, bytes);
        self.fleet.passes();
        self.sender.answers();
    }

    /// Takes what came, by receiver. All of it is addressed to whom it came to, and from whom the sender may be.
    fn take(&mut self) -> [Vec<Vec<u8>>; 2] {
        let mut manifest = Manifest::new();
        let mut index = 0;
        self.receivers.each_mut().map(|front| {
            let id = RECEIVERS[index];
            index += 1;
            let mut frames = Vec::new();
            for container in front.take_frames() {
                manifest.read(&container).expect("a good container");
                for packet in manifest.packets() {
                    let frame = &container[packet.range()];
                    assert_eq!(
                        (&frame[..6], &frame[6..12]),
                        (&own(id)[..], &own(5)[..]),
                        "decided on others"
                    );
                    frames.push(frame.to_vec());
                }
            }
            frames
        })
    }

    /// Returns how many bytes were read of the sender's pages, written into the first receiver's, and moved in between.
    fn copied(&self) -> [u64; 3] {
        let tx = self.fleet.counters(0, &self.sender).tx;
        let rx = self.fleet.counters(0, &self.receivers[0]).rx;
        assert_eq!((tx.grant_ops, rx.grant_ops), (0, 0));
        assert_eq!(tx.mapped_ops, tx.slots);
        // What is gathered takes a copy for each piece.
        assert!(rx.mapped_ops >= rx.slots);
        [tx.mapped_bytes, rx.mapped_bytes, rx.moved_bytes]
    }
}

#[test]
fn a_byte_is_copied_once_and_what_is_decided_on_twice() {
    for (len, count) in [(60, 100), (1514, 40)] {
        let mut scene = scene();
        let bytes = container(6, own(5), count, len, 1);
        let before = scene.copied();
        scene.sends(&bytes);
        let [came, others] = scene.take();
        assert!(came.len() == count && others.is_empty());
        assert!(came.iter().all(|frame| frame.len() == len
            && frame[12..14] == [1, 1]
            && frame[len - 1] == came[0][len - 1]));
        let [read, written, moved] = std::array::from_fn(|n| scene.copied()[n] - before[n]);
        assert_eq!(read as usize, HEADER_BYTES + (8 + 14) * count, "header, table and where each goes");
        assert_eq!((written as usize, moved), (bytes.len(), 0));
        scene.fleet.hv.assert_clean();
    }
}

/// What cannot go straight through goes by private memory, in order, and is copied twice.
#[test]
fn what_waits_is_not_overtaken() {
    let mut scene = scene();
    let before = scene.copied();
    let mut number = 0;
    // Of 15 pages each: the receiver has posted 64.
    for _ in 0..6 {
        number += 1;
        scene.sends(&container(6, own(5), 40, 1514, number));
    }
    // There are buffers left for this one, and not for those before it.
    scene.sends(&container(6, own(5), 7, 1514, 7));
    let [came, _] = scene.take();
    assert_eq!(came.len(), 160);
    scene.fleet.passes();
    let [rest, _] = scene.take();
    let numbers: Vec<_> = came.iter().chain(&rest).map(|frame| frame[12]).collect();
    assert!(numbers.iter().copied().eq((1..=6).flat_map(|n| [n; 40]).chain([7; 7])), "in order: {numbers:?}");
    let [read, written, moved] = std::array::from_fn(|n| scene.copied()[n] - before[n]);
    assert!(moved == 0 && read < written / 2 && read > 2 * 60_000, "two of six waited: {read} of {written}");
    // Nor is what was gathered a moment ago.
    scene.sender.send_bytes(150, &container(6, own(5), 1, 60, 8));
    scene.sends(&container(6, own(5), 40, 1514, 9));
    let [came, _] = scene.take();
    assert!(came.iter().map(|frame| frame[12]).eq([8].into_iter().chain([9; 40])), "in order");
    // And afterwards straight through again.
    let before = scene.copied();
    scene.sends(&container(6, own(5), 40, 1514, 10));
    assert!(scene.copied()[0] - before[0] < 1000);
    scene.fleet.hv.assert_clean();
}

#[test]
fn what_is_rewritten_in_mid_copy_arrives_where_it_was_decided_to() {
    let mut scene = scene();
    let (count, len) = (40, 1514);
    let bytes = container(6, own(5), count, len, 1);
    // At once after the decision's bytes were read, all says something else: other addresses, another table, rubbish.
    let decided = 1 + 1 + count + 12;
    let lies = [container(7, STRANGER, count, len, 2), container(6, own(5), 20, 3000, 3), vec![0xff; 65_535]];
    for lie in lies {
        lie_after(&scene.fleet, &scene.sender, 100, decided, &lie);
        let before = scene.copied();
        scene.sends(&bytes);
        scene.fleet.workers[0].xen().meddle_with(|_| ());
        let [came, others] = scene.take();
        assert_eq!((came.len(), others.len()), (count, 0));
        assert!(
            came.iter().all(|frame| frame.len() == len && frame[12..14] == [1, 1]),
            "as it was decided on"
        );
        assert!(
            came.iter().any(|frame| frame[20..] != came[0][20..] || frame[20] != 1),
            "the lie was told in time"
        );
        assert!(scene.copied()[0] - before[0] < 1000, "it went straight through");
        let drops = scene.fleet.counters(0, &scene.sender).drops;
        assert_eq!(drops.total(), 0);
    }
    scene.fleet.hv.assert_clean();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Whatever the sender makes of its pages, whenever: what arrives is for whom it arrives at, from whom the sender may
    /// be, in whole containers (which `take` looks at), and gaps have nothing in them.
    #[test]
    fn no_moment_is_a_good_one_for_a_lie(
        acts in prop::collection::vec((0usize..6, any::<u16>()), 1..300),
        len in prop::sample::select(vec![60usize, 61, 1514]),
    ) {
        let mut scene = scene();
        let count = if len < 100 { 100 } else { 20 };
        let choices: Vec<Vec<u8>> = [(6, own(5)), (7, own(5)), (6, STRANGER)]
            .into_iter()
            .enumerate()
            .map(|(n, (to, from))| container(to, from, count, len, n as u8 + 1))
            .collect();
        let targets: Vec<_> = (0..8).map(|page| scene.sender.page(100 + page)).collect();
        let (lies, mut at) = (choices.clone(), 0);
        scene.fleet.workers[0].xen().meddle_with(move |_| {
            at = (at + 1) % acts.len();
            let (what, value) = acts[at];
            if let Some(lie) = lies.get(what) {
                let page = usize::from(value) % targets.len();
                if let Some(piece) = lie.chunks(4096).nth(page) {
                    targets[page].write(0, piece);
                }
            }
        });
        for round in 0..12 {
            scene.sends(&choices[round % 3]);
            scene.take();
        }
        scene.fleet.hv.assert_clean();
    }
}
