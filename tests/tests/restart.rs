//! A backend that is killed in mid-traffic, wherever it stands, and another one that goes on: the guests do not
//! notice, every byte arrives, and nothing is left behind.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use drayage::control::attachment::Memory;
use drayage::control::details::Containers;
use drayage_tests::back::Died;
use drayage_tests::hand::DOM0;
use drayage_tests::host::{TcpSink, TcpSource};
use drayage_tests::world::{ControlPath, Shape, World, name_of};
use proptest::prelude::*;
use smoltcp::wire::{IpAddress, IpEndpoint};

const SECOND_NS: u64 = 1_000_000_000;

/// A file of one test's own.
struct MemoryFile(PathBuf);

impl MemoryFile {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("drayage-restart-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        Self(folder)
    }

    fn memory(&self) -> Memory {
        Memory::in_file(self.0.join("attachments.json"))
    }
}

impl Drop for MemoryFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn world(containers: Containers, file: &MemoryFile) -> World {
    let shape = Shape { control: ControlPath::Real(containers), ..Shape::default() };
    World::remembering(shape, file.memory())
}

/// Starts a stream from the far host to a guest, one back, and returns their length.
fn streams(world: &mut World, index: usize, bytes: u64) {
    let guest = &mut world.guests[index];
    let id = guest.id.0 as u8;
    let stack = guest.stack.as_mut().expect("the vif was up");
    let at = stack.listen(3000);
    guest.tasks.tcp_sinks.push((TcpSink::new(at, 1), usize::MAX));
    let back = stack.connect(IpEndpoint::new(IpAddress::v4(10, 0, 0, 1), 4000 + u16::from(id)), 50_001);
    guest.tasks.tcp_sources.push(TcpSource::new(back, 2, bytes));
    let far = &mut world.far;
    let to = far.stack.connect(IpEndpoint::new(IpAddress::v4(10, 0, 0, id), 3000), 50_000 + u16::from(id));
    far.tasks.tcp_sources.push(TcpSource::new(to, 1, bytes));
    let from = far.stack.listen(4000 + u16::from(id));
    far.tasks.tcp_sinks.push((TcpSink::new(from, 2), usize::MAX));
    world.wake(index);
}

/// Runs a world with two guests through streams in both directions, and kills the backend after each of so many of
/// its operations.
fn survive(containers: Containers, file: &MemoryFile, lives: &[u64], bytes: u64) {
    let mut world = world(containers, file);
    let indices = [world.add_guest(5), world.add_guest(6)];
    world.settle();
    let held = |world: &World| {
        let guests = indices.map(|index| {
            let id = world.guests[index].id;
            (world.hv.open_ports(id), world.hv.live_pools(id))
        });
        (world.hv.open_ports(DOM0), world.hv.live_mappings(DOM0), world.shelf.count(), guests)
    };
    let before = held(&world);
    for index in indices {
        streams(&mut world, index, bytes);
    }
    let done = |world: &mut World| {
        let far = world.far.tasks.tcp_sinks.iter().all(|(sink, _)| sink.got() == bytes);
        far && indices.iter().all(|index| world.guests[*index].tasks.tcp_sinks[0].0.got() == bytes)
    };
    let mut deaths = 0;
    for life in lives {
        world.life.set(*life);
        match catch_unwind(AssertUnwindSafe(|| world.run(600 * SECOND_NS, done))) {
            Ok(()) => break,
            Err(cause) if cause.is::<Died>() => deaths += 1,
            Err(cause) => std::panic::resume_unwind(cause),
        }
        world.restart();
        assert_eq!(held(&world), before, "after {deaths} deaths");
    }
    world.life.set(u64::MAX);
    world.run(600 * SECOND_NS, done);
    for (at, index) in indices.into_iter().enumerate() {
        let guest = &world.guests[index];
        let (down, up) = (&world.far.tasks.tcp_sources[at], &guest.tasks.tcp_sources[0]);
        let (arrived, returned) = (&guest.tasks.tcp_sinks[0].0, &world.far.tasks.tcp_sinks[at].0);
        assert_eq!((arrived.wrong, arrived.hash()), (0, down.hash()));
        assert_eq!((returned.wrong, returned.hash()), (0, up.hash()));
        let front = *world.guests[index].vif().counters();
        assert_eq!(front.rx.sequence_gaps, 0, "containers are numbered on: {front:?}");
        let id = world.guests[index].id;
        let control = world.control.as_ref().expect("one");
        assert!(control.manager.connected(&name_of(id), None).is_some());
    }
    assert_eq!(held(&world), before);
    let shelf = world.shelf.clone();
    world.end();
    assert_eq!(shelf.count(), 0, "no ledger is left");
}

#[test]
fn an_orderly_change_of_backends_is_not_noticed() {
    for containers in [Containers::On, Containers::Off] {
        let file = MemoryFile::new("orderly");
        let mut world = world(containers, &file);
        let a = world.add_guest(5);
        world.settle();
        streams(&mut world, a, 2_000_000);
        for part in 1..8 {
            world.run(60 * SECOND_NS, |world| world.guests[a].tasks.tcp_sinks[0].0.got() >= part * 250_000);
            world.restart();
            assert_eq!(world.control.as_mut().expect("one").manager.list().len(), 1);
        }
        world.run(60 * SECOND_NS, |world| {
            let far = world.far.tasks.tcp_sinks[0].0.got();
            far == 2_000_000 && world.guests[a].tasks.tcp_sinks[0].0.got() == 2_000_000
        });
        assert_eq!(world.guests[a].tasks.tcp_sinks[0].0.hash(), world.far.tasks.tcp_sources[0].hash());
        world.end();
    }
}

#[test]
fn a_guest_that_died_while_there_was_no_backend_is_cleaned_up_after() {
    let file = MemoryFile::new("meanwhile");
    let mut world = world(Containers::On, &file);
    let (a, b) = (world.add_guest(5), world.add_guest(6));
    world.settle();
    let dead = world.guests[a].id;
    // The backend's end: nobody looks at the events of the domain's end.
    drop(world.control.take());
    world.destroy(a);
    world.restart();
    let b = b - 1;
    streams(&mut world, b, 100_000);
    world.run(60 * SECOND_NS, |world| world.guests[b].tasks.tcp_sinks[0].0.got() == 100_000);
    let store = world.hv.connect_store(DOM0);
    let nodes = format!("/local/domain/0/backend/{}/{}", drayage_wire::keys::BACKEND_TYPE, dead.0);
    assert!(store.directory(memxen::store::NO_TRANSACTION, &nodes).is_err(), "its nodes are gone");
    world.end();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn wherever_it_dies_every_byte_arrives_and_nothing_is_left(
        with_containers: bool,
        lives in prop::collection::vec(0u64..6000, 1..8),
    ) {
        let containers = if with_containers { Containers::On } else { Containers::Off };
        survive(containers, &MemoryFile::new("wherever"), &lives, 300_000);
    }
}

#[test]
fn it_may_die_at_every_single_step() {
    // A life of a few hundred operations is about a pass: start, first batches, events.
    for containers in [Containers::On, Containers::Off] {
        for first in (0..240).step_by(4) {
            let lives: Vec<u64> = (0..3).map(|more| 700 + first + more).collect();
            survive(containers, &MemoryFile::new("single"), &lives, 40_000);
        }
    }
}
