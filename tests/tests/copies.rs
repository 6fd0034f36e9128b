//! How often a byte is copied on its way from guest to guest, by the product's own counters, and that nothing which waits
//! where it was copied to is overwritten by what others send.

use drayage::aggregate::Wrap;
use drayage::vif::counters::Direction;
use drayage::vif::{Connection, rx, tx};
use drayage_tests::fleet::{Fleet, frame, own};
use drayage_tests::hand;
use drayage_tests::rawfront::RawFront;
use drayage_wire::container::Manifest;
use memxen::DomainId;

/// How a guest sends and receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Plain,
    Containers,
}

use Shape::{Containers, Plain};

impl Shape {
    fn apply(self, connection: &mut Connection) {
        if self == Containers {
            connection.tx_format = tx::Format::Containers { size: 65_535 };
            connection.rx_format = rx::Format::Containers { size: 65_536, wrap: Wrap::Allowed };
        }
    }
}

fn pairs() -> impl Iterator<Item = (Shape, Shape)> {
    [Plain, Containers].into_iter().flat_map(|from| [Plain, Containers].map(|to| (from, to)))
}

/// A frame whose bytes depend on a number.
fn numbered(to: u16, number: u32, len: usize) -> Vec<u8> {
    let mut bytes = frame(own(to), own(5), number as u8);
    bytes.resize(len, number as u8 ^ 0x5a);
    bytes[14..18].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// Sends frames as the guest does it, from pages `page` on. Returns in how many bytes.
fn send(front: &mut RawFront, shape: Shape, page: usize, frames: &[Vec<u8>]) -> usize {
    if shape == Plain {
        frames.iter().zip(page..).for_each(|(frame, page)| front.send_frame(page, frame));
        return frames.iter().map(Vec::len).sum();
    }
    let bytes = hand::container(&frames.iter().map(Vec::as_slice).collect::<Vec<_>>(), 0);
    front.send_bytes(page, &bytes);
    bytes.len()
}

/// Takes the frames that came to a guest.
fn taken(front: &mut RawFront, shape: Shape) -> Vec<Vec<u8>> {
    if shape == Plain {
        return front.take_frames();
    }
    let mut manifest = Manifest::new();
    let mut frames = Vec::new();
    for container in front.take_frames() {
        manifest.read(&container).expect("a good container");
        frames.extend(manifest.packets().iter().map(|packet| container[packet.range()].to_vec()));
    }
    frames
}

/// Passes until all that a guest sent was taken: for a while it is kept waiting where it sends to one that is slow.
fn all_is_taken(fleet: &mut Fleet, sender: &mut RawFront) {
    for _ in 0..3 {
        fleet.workers[0].pass();
        fleet.clock.advance(30_000_000);
    }
    sender.answers();
    assert_eq!(sender.tx.in_flight(), 0);
}

fn copied(direction: &Direction) -> u64 {
    direction.copied_bytes + direction.mapped_bytes + direction.moved_bytes
}

#[test]
fn a_byte_is_copied_in_and_out_and_nowhere_between() {
    for (from, to) in pairs() {
        for len in [60, 1514, 4000] {
            let mut fleet = Fleet::new(1);
            let (mut sender, mut receiver) =
                (fleet.guest(0, 5, |c| from.apply(c)), fleet.guest(0, 6, |c| to.apply(c)));
            let frames: Vec<_> = (0..(12_000 / len as u32).min(50)).map(|n| numbered(6, n, len)).collect();
            let sent = send(&mut sender, from, 100, &frames) as u64;
            fleet.passes();
            assert!(taken(&mut receiver, to) == frames, "{from:?} to {to:?}, {len} bytes");
            let (tx, rx) = (fleet.counters(0, &sender).tx, fleet.counters(0, &receiver).rx);
            assert_eq!((tx.copies, tx.copied_bytes, tx.mapped_bytes), (0, sent, 0));
            // Frames that came alone are gathered for whoever takes containers.
            let gathered = from == Plain && to == Containers;
            assert_eq!(rx.moved_bytes, if gathered { rx.bytes } else { 0 }, "{len} bytes");
            if !gathered {
                assert!(copied(&tx) + copied(&rx) <= 2 * sent, "{tx:?} {rx:?}");
            }
            fleet.hv.assert_clean();
        }
    }
}

/// A guest takes nothing for a while, another one takes everything; what waits for the first is what was sent to it.
#[test]
fn what_waits_stays_as_it_was_sent() {
    for (from, to) in pairs() {
        for len in [60, 1514] {
            let mut fleet = Fleet::new(1);
            let mut sender = fleet.guest(0, 5, |c| from.apply(c));
            let mut slow =
                RawFront::connect_as(&fleet.hv, &mut fleet.workers[0], DomainId(6), |c| to.apply(c));
            let mut quick = fleet.guest(0, 7, |c| to.apply(c));
            let (mut sent, mut quickly) = (Vec::new(), 0);
            let mut next = 0;
            // More than may wait: what finds no room is lost, and counted.
            for _ in 0..60 {
                for id in [6, 7, 7] {
                    let frames: Vec<_> = (next..next + 30).map(|n| numbered(id, n, len)).collect();
                    next += 30;
                    send(&mut sender, from, 100, &frames);
                    all_is_taken(&mut fleet, &mut sender);
                    if id == 6 {
                        sent.extend(frames);
                    } else {
                        let came = taken(&mut quick, to);
                        assert!(came == frames, "{from:?} to {to:?}: {} came", came.len());
                        quickly += came.len();
                    }
                }
            }
            assert_eq!(quickly, 60 * 60);
            let lost = fleet.counters(0, &slow).drops.queue_full as usize;
            assert!(lost > 0 && lost < sent.len() * 9 / 10 || len == 60, "{lost} of {}", sent.len());
            let mut came = Vec::new();
            slow.post_pages(0, 20);
            for _ in 0..200 {
                fleet.passes();
                came.extend(taken(&mut slow, to));
            }
            assert_eq!(came.len(), sent.len() - lost);
            let mut rest = sent.iter();
            assert!(came.iter().all(|frame| rest.any(|sent| sent == frame)), "as they were sent, in order");
            fleet.passes();
            assert!(fleet.workers[0].blocks_in_use() <= 1, "nothing is referred to any more");
            // And again, but the guest goes away.
            let frames: Vec<_> = (0..30).map(|n| numbered(6, n, len)).collect();
            for _ in 0..40 {
                send(&mut sender, from, 100, &frames);
                all_is_taken(&mut fleet, &mut sender);
            }
            fleet.disconnect(0, 6, &slow);
            fleet.passes();
            send(&mut sender, from, 100, &[numbered(7, 1, len)]);
            fleet.passes();
            assert!(fleet.workers[0].blocks_in_use() <= 1, "nor then");
            fleet.hv.assert_clean();
        }
    }
}
