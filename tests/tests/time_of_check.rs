//! What a decision was taken on is what is delivered: a guest that rewrites its frames, its containers and its ring
//! between any two steps of the backend gains nothing by it.
//!
//! The guest is called back after every load of a ring's word and before and after every grant copy, which is more
//! often than any real guest could choose to write.

use drayage::rules::Rules;
use drayage::vif::tx;
use drayage_tests::back::Moment;
use drayage_tests::fleet::{Fleet, frame, own};
use drayage_tests::hand::container;
use drayage_tests::rawfront::RawFront;
use drayage_wire::netif::{TxRequest, tx_flags};
use drayage_wire::ring::SharedWords as _;
use proptest::prelude::*;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::Ordering;

const LOCKED: Rules = Rules { locked_mac: true, isolated: false };
/// The first word of a ring's slots, and the words of a TX slot.
const SLOTS: usize = 16;
const SLOT_WORDS: usize = 3;

/// A locked liar on a fleet of one worker, and two guests to tell lies to.
struct Scene {
    fleet: Fleet,
    liar: RawFront,
    others: [RawFront; 2],
}

fn scene(format: tx::Format) -> Scene {
    let mut fleet = Fleet::new(1);
    let liar = fleet.guest(0, 5, |connection| {
        connection.rules = LOCKED;
        connection.tx_format = format;
    });
    let others = [6, 7].map(|id| fleet.guest(0, id, |_| ()));
    Scene { fleet, liar, others }
}

impl Scene {
    fn meddle_with(&self, meddler: impl FnMut(Moment) + 'static) {
        self.fleet.workers[0].xen().meddle_with(meddler);
    }

    /// Takes what the others got. Each frame must be for whoever got it, and from the liar as whom it may send.
    fn delivered(&mut self) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        for (front, id) in self.others.iter_mut().zip([6, 7]) {
            for frame in front.frames() {
                assert_eq!(
                    (&frame[..6], &frame[6..12]),
                    (&own(id)[..], &own(5)[..]),
                    "decided on other bytes"
                );
                all.push(frame);
            }
        }
        all
    }
}

#[test]
fn a_frame_that_is_rewritten_once_it_was_copied_arrives_as_it_was_judged() {
    for late in [true, false] {
        let mut scene = scene(tx::Format::Plain);
        let page = scene.liar.page(200);
        let lies = Rc::new(Cell::new(0));
        let told = lies.clone();
        scene.meddle_with(move |moment| {
            if moment == if late { Moment::Copied } else { Moment::Copying } {
                page.write(0, &frame(own(7), [2, 9, 9, 9, 9, 9], 66));
                told.set(told.get() + 1);
            }
        });
        scene.liar.send_frame(200, &frame(own(6), own(5), 1));
        scene.fleet.workers[0].pass();
        let expected = if late { vec![frame(own(6), own(5), 1)] } else { vec![] };
        assert_eq!(scene.delivered(), expected);
        let wrong = scene.fleet.counters(0, &scene.liar).drops.wrong_source;
        assert_eq!(wrong, u64::from(!late), "what was copied was judged");
        assert!(lies.get() > 0);
    }
}

/// Puts a container of two pages into pages `page` and `page + 1`, and sends it.
fn send_container(front: &mut RawFront, page: usize, bytes: &[u8]) {
    let (head, tail) = bytes.split_at(4096);
    front.write(page, head);
    front.write(page + 1, tail);
    let (first, second) = (front.grant(page), front.grant(page + 1));
    let more = tx_flags::MORE_DATA;
    assert!(front.send(TxRequest { gref: first, offset: 0, flags: more, id: 0, size: bytes.len() as u16 }));
    assert!(front.send(TxRequest { gref: second, offset: 0, flags: 0, id: 1, size: tail.len() as u16 }));
    front.publish();
}

#[test]
fn a_container_that_is_rewritten_in_mid_copy_is_judged_by_what_was_copied() {
    let frames = |to| (0..90).map(|n| frame(to, own(5), n)).collect::<Vec<_>>();
    let whole = |frames: &[Vec<u8>]| container(&frames.iter().map(Vec::as_slice).collect::<Vec<_>>(), 0);
    let (sent, others) = (frames(own(6)), frames(own(7)));
    let (bytes, other) = (whole(&sent), whole(&others));
    assert!((4097..8192).contains(&bytes.len()));
    let mut scene = scene(tx::Format::Containers { size: 65_535 });
    let pages = [scene.liar.page(100), scene.liar.page(101)];
    let mut copied = 0;
    scene.meddle_with(move |moment| {
        if moment == Moment::Copied {
            copied += 1;
            // What was copied is overwritten with rubbish; what was not yet, with the end of another container.
            pages[0].write(0, &[0xff; 4096]);
            pages[1].write(0, if copied == 1 { &other[4096..] } else { &[0xff; 4096] });
        }
    });
    send_container(&mut scene.liar, 100, &bytes);
    scene.fleet.workers[0].pass();
    let delivered = scene.delivered();
    // One frame lies across the two pages: its addresses are of one container, its end is of the other.
    let (to_6, to_7) = delivered.iter().partition::<Vec<_>, _>(|f| f[..6] == own(6));
    assert_eq!(to_6.len() + to_7.len(), 90);
    assert!(to_6.len() > 10 && to_7.len() > 10, "{} and {}", to_6.len(), to_7.len());
    assert!(to_6.iter().zip(&sent).all(|(got, sent)| *got == sent));
    assert!(to_7.iter().zip(&others[to_6.len()..]).all(|(got, other)| *got == other));
    assert_eq!(scene.fleet.counters(0, &scene.liar).drops.total(), 0);
}

#[test]
fn a_request_is_read_once() {
    let mut scene = scene(tx::Format::Plain);
    scene.liar.write(200, &frame(own(6), own(5), 1));
    let honest = TxRequest { gref: scene.liar.grant(200), offset: 0, flags: 0, id: 7, size: 60 };
    assert!(scene.liar.send(honest));
    scene.liar.publish();
    let ring = scene.liar.tx_page();
    let other = scene.liar.grant(201);
    scene.liar.write(201, &[0xee; 4096]);
    let mut loads = 0;
    scene.meddle_with(move |moment| {
        if moment == Moment::Loaded {
            loads += 1;
            // The indices first, then the slot: as soon as all of it was loaded it says something else.
            if loads > SLOT_WORDS {
                for (word, value) in [other, 0xffff_0fff, 0xffff_0000].into_iter().enumerate() {
                    ring.store(SLOTS + word, value, Ordering::Relaxed);
                }
            }
        }
    });
    scene.fleet.workers[0].pass();
    assert_eq!(scene.delivered(), [frame(own(6), own(5), 1)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever is rewritten whenever: nothing is delivered to whom it does not name, or from whom the guest may not
    /// send, or in part; the other guests are served, and nobody misuses the hypervisor.
    #[test]
    fn no_moment_is_a_good_one_for_a_lie(
        acts in prop::collection::vec((0u8..12, any::<u32>()), 1..400),
        containers in any::<bool>(),
    ) {
        let format = if containers { tx::Format::Containers { size: 65_535 } } else { tx::Format::Plain };
        let mut scene = scene(format);
        let honest = [frame(own(6), own(5), 1), frame(own(7), own(5), 2)];
        let lie = frame(own(6), [2, 9, 9, 9, 9, 9], 3);
        let choices: Vec<Vec<u8>> = if containers {
            [&honest[0], &honest[1], &lie].map(|f| container(&[f.as_slice()], 0)).to_vec()
        } else {
            vec![honest[0].clone(), honest[1].clone(), lie]
        };
        let len = choices[0].len();
        let pages: Vec<_> = (200..210).map(|page| scene.liar.page(page)).collect();
        let ring = scene.liar.tx_page();
        let mut at = 0;
        let others = choices.clone();
        scene.meddle_with(move |_| {
            at = (at + 1) % acts.len();
            let (what, value) = acts[at];
            let page = &pages[value as usize % pages.len()];
            match what {
                0..9 => page.write(0, &others[usize::from(what) % 3]),
                // Seldom anything but the size, offset and flags of a slot: a page that is not granted is dull.
                9 => ring.store(SLOTS + (value as usize >> 8) % 768, value, Ordering::Relaxed),
                _ => {}
            }
        });
        for round in 0..8usize {
            for n in 0..10 {
                let page = 200 + n;
                scene.liar.write(page, &choices[(n + round) % 3]);
                let gref = scene.liar.grant(page);
                scene.liar.send(TxRequest { gref, offset: 0, flags: 0, id: 0, size: len as u16 });
            }
            scene.liar.publish();
            scene.fleet.workers[0].pass();
            for frame in scene.delivered() {
                // The guest may have changed a slot in time: then it sent more, or less.
                let alike = |h: &Vec<u8>| h.iter().zip(&frame).all(|(a, b)| a == b);
                prop_assert!(honest.iter().any(alike), "never sent: {:?}", frame);
            }
            scene.liar.answers();
        }
        // Its neighbours hear each other as before.
        let [a, b] = &mut scene.others;
        scene.fleet.sends(a, &frame(own(7), own(6), 9));
        prop_assert!(b.frames().contains(&frame(own(7), own(6), 9)));
        scene.fleet.hv.assert_clean();
    }
}
