//! How often a byte is copied on its way from guest to guest, by the product's own counters, and that nothing which waits
//! where it was copied to is overwritten by what others send.

use drayage::aggregate::Wrap;
use drayage::policy::Policy;
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
    if shape == Plain { front.take_frames() } else { front.take_packets() }
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
            assert_eq!((rx.copies, rx.moved_bytes), (0, 0), "{len} bytes");
            let table = if from == Plain && to == Containers { table_bytes(&rx) } else { 0 };
            assert!(copied(&tx) + copied(&rx) <= 2 * sent + table, "{tx:?} {rx:?}");
            fleet.hv.assert_clean();
        }
    }
}

/// At most the bytes of a guest's containers that belong to no packet.
fn table_bytes(rx: &Direction) -> u64 {
    rx.containers * (16 + 8 * 64 + 2) + rx.packets * (8 + 3)
}

/// What is gathered from containers with several destinations, from sparse ones, and for guests whose policy has a say in
/// sizes goes out from where it was copied to; what lies together there is one copy for each page or two.
#[test]
fn what_is_gathered_is_not_copied_between_either() {
    let policies = [
        Policy::default(),
        Policy::Fixed { size_bytes: 8192, timeout_us: 500 },
        Policy::Slo { delay_us: 1000 },
    ];
    for (from, policy, mixed) in [Plain, Containers].into_iter().flat_map(|from| {
        policies.map(|policy| [(from, policy, false), (from, policy, true)]).into_iter().flatten()
    }) {
        for len in [59, 60, 61, 1514, 4000] {
            let mut fleet = Fleet::new(1);
            let mut sender = fleet.guest(0, 5, |c| from.apply(c));
            let mut receivers = [6, 7].map(|id| {
                fleet.guest(0, id, |c| {
                    Containers.apply(c);
                    c.policy = policy;
                })
            });
            let (mut sent, mut expected) = (0, [vec![], vec![]]);
            for round in 0..3 {
                let frames: Vec<_> = (0..(12_000 / len as u32).min(50))
                    .map(|n| numbered(if mixed { 6 + (n / 3 % 2) as u16 } else { 6 }, 100 * round + n, len))
                    .collect();
                sent += send(&mut sender, from, 100, &frames) as u64;
                all_is_taken(&mut fleet, &mut sender);
                for frame in frames {
                    expected[usize::from(frame[5] == own(7)[5])].push(frame);
                }
            }
            fleet.clock.advance(10_000_000);
            fleet.passes();
            let (mut out, mut ops, mut packets) = (0, 0, 0);
            for (receiver, expected) in receivers.iter_mut().zip(&expected) {
                let came = taken(receiver, Containers);
                assert!(came == *expected, "{from:?} {policy:?}, {len} bytes: {} came", came.len());
                let rx = fleet.counters(0, receiver).rx;
                assert_eq!((rx.copies, rx.moved_bytes), (0, 0), "{from:?} {policy:?}, {len} bytes");
                out += copied(&rx) - table_bytes(&rx).min(copied(&rx));
                ops += rx.grant_ops;
                packets += rx.packets;
            }
            let tx = fleet.counters(0, &sender).tx;
            assert!(copied(&tx) + out <= 2 * sent, "{from:?} {policy:?}, {len} bytes");
            if len < 100 && !mixed {
                assert!(ops < packets / 4, "{ops} for {packets} packets: a run is one copy");
            }
            assert!(fleet.workers[0].blocks_in_use() <= 1, "nothing is referred to any more");
            fleet.hv.assert_clean();
        }
    }
}

/// Bytes between the packets of a run are nobody's: they are cleared before they go out, whoever left them there.
#[test]
fn what_lay_between_packets_does_not_go_along() {
    let mut fleet = Fleet::new(1);
    let mut secret = fleet.guest(0, 4, |_| ());
    let mut sender = fleet.guest(0, 5, |_| ());
    let mut receiver = fleet.guest(0, 6, |c| Containers.apply(c));
    let mut writer = fleet.guest(0, 7, |c| Containers.apply(c));
    // Another guest's bytes are where the next ones will lie.
    for page in 0..64 {
        receiver.write(page, &[0x11; 4096]);
    }
    secret.send_frame(200, &[own(5).to_vec(), [0xee; 3800].to_vec()].concat());
    all_is_taken(&mut fleet, &mut secret);
    for n in 0..40 {
        sender.send_frame(100 + n, &numbered(6, n as u32, 59));
    }
    fleet.passes();
    let mut bytes = hand::container(&[numbered(6, 50, 59).as_slice(), &numbered(6, 51, 59)], 0);
    let hole = 16 + 16 + 2 + 59;
    bytes[hole] = 0xee;
    writer.send_bytes(100, &bytes);
    fleet.passes();
    let mut whole = receiver.take_frames();
    fleet.clock.advance(10_000_000);
    fleet.passes();
    whole.extend(receiver.take_frames());
    assert!(whole.len() >= 2, "several containers");
    let mut manifest = Manifest::new();
    let mut packets = 0;
    for container in whole {
        manifest.read(&container).expect("a good container");
        let mut end = None;
        for packet in manifest.packets() {
            if let Some(end) = end {
                let gap = &container[end..packet.range().start];
                assert!(gap.iter().all(|byte| [0, 0x11].contains(byte)), "{gap:x?}");
            }
            end = Some(packet.range().end);
            packets += 1;
        }
    }
    assert_eq!(packets, 42);
    fleet.hv.assert_clean();
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
