//! TCP super-frames between the real driver and the real backend, in containers and in plain chains: they pass whole
//! where both ends take them, and are cut where one does not. And frames of a larger MTU.

use drayage_netfront::{Counters, Options, Use};
use drayage_tests::connector::{Offers, Takes};
use drayage_tests::host::{TcpSink, TcpSource};
use drayage_tests::inhabitants::Pace;
use drayage_tests::transfers::{at, datagrams_both_ways, streams_both_ways};
use drayage_tests::uplink::Arriving;
use drayage_tests::world::{Shape, World};

const SECOND_NS: u64 = 1_000_000_000;

/// How chains look, in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Plain,
    Containers(usize),
}

const FORMATS: [Format; 3] = [Format::Plain, Format::Containers(4096), Format::Containers(65_536)];

fn shape(format: Format) -> Shape {
    let plain = Shape::default();
    match format {
        Format::Plain => {
            Shape { offers: Offers { rx_containers: false, tx_containers: false, ..plain.offers }, ..plain }
        }
        Format::Containers(bytes) => Shape {
            offers: Offers { tx_max_bytes: bytes.min(65_535), ..plain.offers },
            options: Options { rx_container_max_bytes: bytes, ..plain.options },
            ..plain
        },
    }
}

/// Every way in which the ends can differ in what they take.
fn cases() -> impl Iterator<Item = (Format, Shape, Takes)> {
    FORMATS.into_iter().flat_map(|format| {
        [false, true].into_iter().flat_map(move |from_guest| {
            [(false, Takes::All), (true, Takes::All), (true, Takes::Complete)].map(|(towards, takes)| {
                let mut shape = shape(format);
                shape.offers.super_frames = from_guest;
                shape.super_frames = towards;
                shape.arriving = if towards { Arriving::Blank } else { Arriving::Filled };
                println!(
                    "{format:?}, super-frames from the guest {from_guest}, to it {towards}, takes {takes:?}"
                );
                (format, shape, takes)
            })
        })
    })
}

fn world(shape: Shape, takes: Takes) -> World {
    let mut world = World::new(shape);
    world.connector.takes = takes;
    world.add_guest(5);
    world
}

fn counters(world: &mut World, index: usize) -> (Counters, drayage::vif::Counters) {
    world.settle();
    let id = world.guests[index].id;
    let back = world.back_counters(id).expect("the guest is connected");
    (*world.guests[index].vif().counters(), back)
}

#[test]
fn super_frames_pass_whole_where_they_can_and_are_cut_where_not() {
    for (format, shape, takes) in cases() {
        let mut world = world(shape, takes);
        streams_both_ways(&mut world, 600_000, usize::MAX);
        let (front, back) = counters(&mut world, 0);
        assert_eq!(front.tx.super_frames > 0, shape.offers.super_frames);
        assert_eq!(
            (back.tx.super_frames, back.rx.super_frames),
            (front.tx.super_frames, front.rx.super_frames)
        );
        // Those that are longer than a page's container, and all for who takes none.
        let cut = takes == Takes::Complete || format == Format::Containers(4096);
        assert_eq!(back.segmented > 0, shape.super_frames && cut, "{}", back.segmented);
        let whole = front.rx.super_frames;
        match (shape.super_frames, takes, format) {
            (true, Takes::All, Format::Containers(4096)) => {
                assert!(whole < back.segmented, "{whole}: only those of two segments fit");
            }
            _ => assert_eq!(whole > 5, shape.super_frames && !cut, "{whole}"),
        }
        assert_eq!(back.checksums_filled > 0, takes == Takes::Complete);
        assert_eq!((back.drops.total(), back.guest_errors, front.rx.dropped.total()), (0, 0, 0));
        assert_eq!((front.tx.errors, front.tx.bad_responses, front.tx.dropped_full), (0, 0, 0));
        if shape.offers.super_frames && format != Format::Containers(4096) {
            let mean = front.tx.bytes / front.tx.packets;
            assert!(mean > 3000, "{mean} bytes in a packet, acknowledgements included");
        }
        world.end();
    }
}

#[test]
fn super_frames_survive_a_bad_cable_and_a_slow_reader() {
    for (_, shape, takes) in cases() {
        let mut world = world(shape, takes);
        // There are few frames on the cable where all of them are large.
        let every = if shape.super_frames { 11 } else { 97 };
        world.far.end.lose_every(every);
        world.far.end.lose_departing_every(every - 4);
        world.guests[0].pace = Pace::Slow { frames: 7, rest_ns: 300_000 };
        streams_both_ways(&mut world, 300_000, 2000);
        assert!(world.far.end.lost() > 0);
        world.end();
    }
}

#[test]
fn super_frames_go_from_guest_to_guest_whole_or_cut() {
    for format in FORMATS {
        for takes in [Takes::All, Takes::Complete] {
            println!("{format:?}, {takes:?}");
            let mut world = world(shape(format), Takes::All);
            world.connector.takes = takes;
            world.add_guest(6);
            world.settle();
            let from = world.guests[0].stack.as_mut().expect("up").connect(at(6, 3000), 50_000);
            world.guests[0].tasks.tcp_sources.push(TcpSource::new(from, 3, 600_000));
            let to = world.guests[1].stack.as_mut().expect("up").listen(3000);
            world.guests[1].tasks.tcp_sinks.push((TcpSink::new(to, 3), usize::MAX));
            world.wake(0);
            world.run(60 * SECOND_NS, |world| world.guests[1].tasks.tcp_sinks[0].0.got() == 600_000);
            let (sink, source) =
                (&world.guests[1].tasks.tcp_sinks[0].0, &world.guests[0].tasks.tcp_sources[0]);
            assert_eq!((sink.wrong, sink.hash()), (0, source.hash()));
            let (sender, _) = counters(&mut world, 0);
            let (receiver, back) = counters(&mut world, 1);
            assert!(sender.tx.super_frames > 0);
            if takes == Takes::All {
                assert_eq!((receiver.rx.super_frames, back.segmented), (sender.tx.super_frames, 0));
            } else {
                assert_eq!((receiver.rx.super_frames, back.segmented), (0, sender.tx.super_frames));
            }
            assert_eq!(back.drops.total(), 0);
            world.end();
        }
    }
}

#[test]
fn a_guest_that_wants_none_sends_none() {
    let mut shape = shape(Format::Containers(65_536));
    shape.options.tcp_segmentation = Use::Never;
    let mut world = world(shape, Takes::All);
    streams_both_ways(&mut world, 100_000, usize::MAX);
    assert_eq!(counters(&mut world, 0).0.tx.super_frames, 0);
    world.end();
}

#[test]
fn frames_of_a_larger_mtu_pass_in_one_piece() {
    fn sizes(n: u32) -> usize {
        8 + (n as usize * 1031) % 8965
    }
    for format in FORMATS {
        for super_frames in [false, true] {
            println!("{format:?}, super-frames {super_frames}");
            let mut shape = shape(format);
            (shape.offers.mtu, shape.offers.super_frames, shape.super_frames) =
                (Some(9000), super_frames, super_frames);
            let mut world = world(shape, Takes::All);
            // A container of a page holds no frame of that length, so the guest's MTU is what it holds.
            let mtu = if format == Format::Containers(4096) { 4056 } else { 9000 };
            assert_eq!(world.guests[0].vif().mtu(), mtu);
            if mtu == 9000 {
                datagrams_both_ways(&mut world, 1000, sizes);
            }
            streams_both_ways(&mut world, 600_000, usize::MAX);
            let (front, back) = counters(&mut world, 0);
            assert_eq!((back.drops.total(), front.rx.dropped.total(), front.tx.dropped_long), (0, 0, 0));
            world.end();
        }
    }
}
