//! The whole channel's data path allocates nothing: neither the worker's passes, nor the guests' turns with driver,
//! stack and sockets, in either direction, with containers and without.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use drayage::control::details::Containers;
use drayage_tests::fleet::{Fleet, frame, own};
use drayage_tests::host::{UdpSink, UdpSource};
use drayage_tests::world::{ControlPath, Shape, World};
use drayage_wire::netif::TxRequest;
use smoltcp::wire::{IpAddress, IpEndpoint};

/// The system's allocator, which counts for each thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is handed to the system's allocator as it is; the counter allocates nothing, for it is
// initialised by a constant and needs no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is the same, and `at` came from the system's allocator.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}

fn sizes(n: u32) -> usize {
    8 + (n as usize * 131) % 1465
}

/// Between two guests, so that the harness's own uplink has no part in it, and from outside into one of them.
#[test]
fn neither_the_worker_nor_a_guest_allocates_for_a_packet() {
    const COUNT: u32 = 20_000;
    for containers in [Containers::On, Containers::Off] {
        let mut world = World::new(Shape { control: ControlPath::Real(containers), ..Shape::default() });
        let (a, b) = (world.add_guest(5), world.add_guest(6));
        world.settle();
        let at = world.guests[b].stack.as_mut().expect("up").udp(9, 256);
        world.guests[b].tasks.udp_sinks.push(UdpSink::new(at, 1, COUNT, sizes));
        let from = world.far.stack.udp(9, 256);
        let to = IpEndpoint::new(IpAddress::v4(10, 0, 0, 6), 9);
        world.far.tasks.udp_sources.push(UdpSource::new(from, to, 1, COUNT, sizes));
        // The other guest sends to nobody's port: what is lost on the way is of no interest here.
        let from = world.guests[a].stack.as_mut().expect("up").udp(10, 256);
        let to = IpEndpoint::new(IpAddress::v4(10, 0, 0, 6), 9);
        world.guests[a].tasks.udp_sources.push(UdpSource::new(from, to, 2, 500, sizes));
        world.wake(a);
        // Addresses are resolved, tables have their sizes.
        world.run(60_000_000_000, |world| world.guests[b].tasks.udp_sinks[0].got() >= 2000);
        world.guests[a].tasks.udp_sources.push(UdpSource::new(from, to, 3, 5000, sizes));
        world.wake(a);
        let sent = world.guests[a].vif().counters().tx.packets;
        let received = world.guests[b].vif().counters().rx.packets;
        world.meter = Some(allocations);
        world.run(60_000_000_000, |world| world.far.tasks.udp_sources[0].sent() == COUNT);
        world.settle();
        let moved = world.guests[b].vif().counters().rx.packets - received;
        let sent = world.guests[a].vif().counters().tx.packets - sent;
        assert!(moved > 10_000 && sent >= 5000, "only {moved} and {sent} packets");
        assert_eq!(world.worker_allocations, 0, "for {moved} packets, {containers:?}");
        assert_eq!(world.guest_allocations, 0, "for {moved} packets, {containers:?}");
        world.meter = None;
        world.end();
    }
}

/// The same for what crosses from one worker to another.
#[test]
fn a_trunk_allocates_nothing() {
    let mut fleet = Fleet::new(2);
    let (mut a, mut b) = (fleet.guest(0, 5, |_| ()), fleet.guest(1, 6, |_| ()));
    let mut moved = 0;
    for round in 0..100 {
        for page in 0..50 {
            a.write(page, &frame(own(6), own(5), page as u8));
            let gref = a.grant(page);
            assert!(a.send(TxRequest { gref, offset: 0, flags: 0, id: 0, size: 60 }));
        }
        a.publish();
        let before = allocations();
        for worker in &mut fleet.workers {
            worker.pass();
        }
        assert!(round == 0 || allocations() == before, "in round {round}");
        a.answers();
        moved += b.frames().len();
        b.post_pages(0, 50);
    }
    assert_eq!(moved, 5000);
    assert_eq!(fleet.workers[1].trunk_counters().received, 5000);
}

#[test]
fn the_meter_counts() {
    let before = allocations();
    drop(std::hint::black_box(vec![1u8; 100]));
    assert!(allocations() > before);
}
