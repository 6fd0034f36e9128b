//! Whole transfers between the far host and a guest, both ways at once, waited for and judged.
//!
//! It knows worlds and sockets, and nothing of how a world is made.

use smoltcp::wire::{IpAddress, IpEndpoint};

use crate::host::{TcpSink, TcpSource, UdpSink, UdpSource};
use crate::world::World;

const SECOND_NS: u64 = 1_000_000_000;

/// Returns an endpoint of the host with this number: 1 is the far host, others are guests.
pub fn at(id: u8, port: u16) -> IpEndpoint {
    IpEndpoint::new(IpAddress::v4(10, 0, 0, id), port)
}

/// Sends datagrams both ways between the far host and guest 0, and waits until they have come.
///
/// # Panics
/// When anything is wrong with them.
pub fn datagrams_both_ways(world: &mut World, count: u32, sizes: fn(u32) -> usize) {
    let id = world.guests[0].id.0 as u8;
    world.settle();
    let guest = &mut world.guests[0];
    let stack = guest.stack.as_mut().expect("the vif is up");
    let there = stack.udp(9, 256);
    guest.tasks.udp_sinks.push(UdpSink::new(there, 1, count, sizes));
    guest.tasks.udp_sources.push(UdpSource::new(there, at(1, 9), 2, count, sizes));
    let here = world.far.stack.udp(9, 256);
    world.far.tasks.udp_sinks.push(UdpSink::new(here, 2, count, sizes));
    world.far.tasks.udp_sources.push(UdpSource::new(here, at(id, 9), 1, count, sizes));
    // The guest has no event of its own that says that it has an application now.
    world.wake(0);
    world.run(60 * SECOND_NS, |world| {
        world.guests[0].tasks.udp_sinks[0].got() == count && world.far.tasks.udp_sinks[0].got() == count
    });
    world.guests[0].tasks.udp_sinks[0].assert_right();
    world.far.tasks.udp_sinks[0].assert_right();
}

/// Moves a stream each way between the far host and guest 0; `most` is what the guest reads at a time.
///
/// # Panics
/// When anything is wrong with them.
pub fn streams_both_ways(world: &mut World, bytes: u64, most: usize) {
    let id = world.guests[0].id.0 as u8;
    world.settle();
    let guest = &mut world.guests[0];
    let stack = guest.stack.as_mut().expect("the vif is up");
    let (listens, connects) = (stack.listen(7), stack.connect(at(1, 7), 40_000));
    guest.tasks.tcp_sinks.push((TcpSink::new(listens, 3), most));
    guest.tasks.tcp_sources.push(TcpSource::new(connects, 4, bytes));
    let (listens, connects) = (world.far.stack.listen(7), world.far.stack.connect(at(id, 7), 40_001));
    world.far.tasks.tcp_sinks.push((TcpSink::new(listens, 4), usize::MAX));
    world.far.tasks.tcp_sources.push(TcpSource::new(connects, 3, bytes));
    world.wake(0);
    world.run(600 * SECOND_NS, |world| {
        world.guests[0].tasks.tcp_sinks[0].0.got() == bytes && world.far.tasks.tcp_sinks[0].0.got() == bytes
    });
    let (inward, outward) = (&world.guests[0].tasks.tcp_sinks[0].0, &world.far.tasks.tcp_sinks[0].0);
    assert_eq!((inward.wrong, outward.wrong), (0, 0));
    assert_eq!(inward.hash(), world.far.tasks.tcp_sources[0].hash());
    assert_eq!(outward.hash(), world.guests[0].tasks.tcp_sources[0].hash());
}
