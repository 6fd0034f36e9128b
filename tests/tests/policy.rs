//! When containers go out, on virtual time, with the real driver at the other end: each policy's reasons, the classes
//! that do not wait, the bound on delay at every rate, and what is counted when it cannot be kept.

use std::net::Ipv4Addr;
use std::sync::mpsc::channel;

use drayage::aggregate::Wrap;
use drayage::class::Classes;
use drayage::policy::Policy;
use drayage::port::generator::{Stream, Template};
use drayage::switch::Mac;
use drayage::vif::holds::HoldTimes;
use drayage::vif::{Counters, rx};
use drayage::worker::{Settings, Target, Worker};
use drayage_netfront::Options;
use drayage_tests::back::Back;
use drayage_tests::cable::cable;
use drayage_tests::inhabitants::Pace;
use drayage_tests::rawfront::RawFront;
use drayage_tests::uplink::{Arriving, CableUplink};
use drayage_tests::world::{LAN, Shape, World, WorldClock};
use memxen::{DomainId, Hypervisor};
use proptest::prelude::*;

const SECOND_NS: u64 = 1_000_000_000;
/// What a round of the world takes: nobody runs more exactly than that.
const ROUND_NS: u64 = 1000;
const GUEST: u16 = 5;
const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 1, 5];
const FAR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

fn stream(count: u64, rate: Option<u64>) -> Stream {
    Stream {
        src_mac: Mac(FAR_MAC),
        dst_mac: Mac(GUEST_MAC),
        src_ip: Ipv4Addr::new(10, 0, 0, 1),
        dst_ip: Ipv4Addr::new(10, 0, 0, 5),
        src_port: 4000,
        dst_port: 9,
        frame_bytes: 60,
        count,
        rate,
    }
}

/// A world with one guest whose data path alone is of interest.
struct Bed {
    world: World,
    template: Template,
    sent: u64,
}

impl Bed {
    fn new(policy: &str, urgent: &str) -> Self {
        let policy: Policy = policy.parse().expect("a policy");
        let urgent: Classes = urgent.parse().expect("classes");
        let mut world = World::new(Shape { policy, urgent, ..Shape::default() });
        world.add_guest(GUEST);
        world.settle();
        // A socket that nobody reads: what it cannot hold is dropped in the guest, and answered by nobody.
        world.guests[0].stack.as_mut().expect("the vif is up").udp(9, 4);
        Self { world, template: Template::new(&stream(1, None)), sent: 0 }
    }

    /// Lets frames of data arrive at the uplink, all at once.
    fn burst(&mut self, frames: usize) {
        for _ in 0..frames {
            let mut frame = vec![0; self.template.len()];
            self.template.write(self.sent, &mut frame);
            self.sent += 1;
            self.world.far.end.send(frame);
        }
    }

    fn frame(&mut self, frame: &[u8]) {
        self.world.far.end.send(frame.to_vec());
    }

    fn wait(&mut self, ns: u64) {
        let then_ns = self.world.now_ns() + ns;
        self.world.idle_until(then_ns);
    }

    fn counters(&mut self) -> Counters {
        self.world.back_counters(self.world.guests[0].id).expect("it is connected")
    }

    fn holds(&self) -> HoldTimes {
        let port = self.world.connector.find(self.world.guests[0].id).expect("it is connected");
        self.world.worker.0.borrow().holds(port).expect("it is connected")
    }

    /// Asserts that every packet was handed over, and counted as often as it should.
    fn assert_all_handed_over(&mut self) {
        let (counters, holds) = (self.counters(), self.holds());
        assert_eq!(counters.drops.total(), 0, "{counters:?}");
        assert_eq!(holds.packets, counters.rx.packets);
        assert_eq!(holds.buckets.iter().map(|bucket| bucket.packets).sum::<u64>(), holds.packets);
        let flushes = counters.flushes;
        let reasons = flushes.full + flushes.target + flushes.class + flushes.idle + flushes.deadline;
        assert_eq!(reasons + flushes.ring_end, counters.rx.containers, "each went out for one reason");
    }
}

#[test]
fn the_papers_policy_goes_by_size_and_timeout_alone() {
    let mut bed = Bed::new("fixed:size=4096,timeout=200", "all");
    let before = bed.counters().flushes;
    // One page holds 56 at most, with a table of the right size; the last ones wait for the timeout.
    bed.burst(300);
    bed.wait(150_000);
    let full = bed.counters().flushes.full - before.full;
    assert!((5..10).contains(&full), "{full} were full");
    assert_eq!(bed.counters().flushes.deadline, before.deadline, "the last one waits");
    bed.wait(100_000);
    let after = bed.counters().flushes;
    assert_eq!((after.deadline - before.deadline, after.idle), (1, 0), "an idle guest changes nothing");
    let holds = bed.holds();
    assert!((200_000..200_000 + 2 * ROUND_NS).contains(&holds.max_ns), "{holds:?}");
    // A lone packet waits for the whole of it, however idle the guest is.
    bed.burst(1);
    bed.wait(199_000);
    assert_eq!(bed.counters().flushes, after);
    bed.wait(5000);
    assert_eq!(bed.counters().flushes.deadline, after.deadline + 1);
    bed.assert_all_handed_over();
    bed.world.end();
}

#[test]
fn what_is_urgent_takes_along_what_waits() {
    let arp = [&[0xff; 6][..], &FAR_MAC, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2], &[0; 40]].concat();
    let tagged = [&arp[..12], &[0x81, 0, 0, 5], &arp[12..]].concat();
    for frame in [&arp, &tagged] {
        let mut bed = Bed::new("fixed:size=65536,timeout=1000000", "arp");
        bed.burst(10);
        bed.wait(10_000_000);
        let before = bed.counters();
        assert_eq!(before.flushes.class, 0);
        bed.frame(frame);
        bed.wait(3 * ROUND_NS);
        let after = bed.counters();
        assert_eq!(after.flushes.class, 1, "at once");
        assert_eq!(after.rx.containers, before.rx.containers + 1, "and with all that waited");
        let holds = bed.holds();
        assert!((10_000_000..10_200_000).contains(&holds.max_ns), "{holds:?}");
        assert!(
            holds.buckets.iter().any(|bucket| bucket.below_ns < 5000),
            "the urgent one itself did not wait"
        );
        // The next ones wait again.
        bed.burst(10);
        bed.wait(10_000_000);
        assert_eq!(bed.counters().flushes, after.flushes);
        bed.wait(SECOND_NS);
        bed.assert_all_handed_over();
        bed.world.end();
    }
    let mut bed = Bed::new("fixed:size=65536,timeout=1000000", "none");
    bed.frame(&arp);
    bed.wait(SECOND_NS / 2);
    assert_eq!(bed.counters().flushes.class, 0, "nothing is urgent where nobody said so");
    bed.wait(SECOND_NS);
    bed.world.end();
}

#[test]
fn a_busy_guest_waits_for_data_and_not_for_what_is_urgent() {
    let expedited = |bed: &mut Bed| {
        let mut frame = vec![0; bed.template.len()];
        bed.template.write(bed.sent, &mut frame);
        frame[15] = 46 << 2;
        bed.frame(&frame);
    };
    for (urgent, most_ns) in [("ef", 10_000), ("none", u64::MAX)] {
        let mut bed = Bed::new("opportunistic:deadline=50000", urgent);
        // It has a container half read, and rests.
        bed.world.guests[0].pace = Pace::Slow { frames: 4, rest_ns: 20_000_000 };
        bed.burst(20);
        bed.wait(5_000_000);
        let before = bed.counters().flushes;
        bed.burst(5);
        bed.wait(5_000_000);
        assert_eq!(bed.counters().flushes, before, "data waits until it has caught up");
        let sent_ns = bed.world.now_ns();
        expedited(&mut bed);
        let class = before.class + 1;
        while bed.counters().flushes == before {
            bed.wait(ROUND_NS);
        }
        let took_ns = bed.world.now_ns() - sent_ns;
        if urgent == "ef" {
            assert_eq!(bed.counters().flushes.class, class);
            assert!(took_ns <= most_ns, "{took_ns} ns");
        } else {
            assert_eq!(bed.counters().flushes.class, before.class);
            assert!(took_ns > 1_000_000, "{took_ns} ns");
        }
        bed.world.end();
    }
}

#[test]
fn a_bound_is_used_where_it_brings_something() {
    let mut bed = Bed::new("slo:delay=1000", "all");
    // A thousand a second: a second one is not to be expected in time, so nobody waits.
    for _ in 0..200 {
        bed.burst(1);
        bed.wait(1_000_000);
    }
    let holds = bed.holds();
    assert!(holds.max_ns <= 2 * ROUND_NS, "{holds:?}");
    let slow = bed.counters();
    assert_eq!(slow.rx.containers, slow.rx.packets);
    // A hundred thousand: most of the bound is used.
    for _ in 0..20_000 {
        bed.burst(1);
        bed.wait(10_000);
    }
    let fast = bed.counters();
    let mean = (fast.rx.packets - slow.rx.packets) as f64 / (fast.rx.containers - slow.rx.containers) as f64;
    assert!((32.0..80.0).contains(&mean), "{mean} packets in a container");
    assert!(fast.flushes.target > 200, "{:?}", fast.flushes);
    // The last ones go when their time has come, before the bound.
    bed.burst(3);
    bed.wait(SECOND_NS);
    assert!(bed.counters().flushes.deadline > fast.flushes.deadline);
    let holds = bed.holds();
    assert!(holds.max_ns > 300_000 && holds.max_ns <= 1_000_000, "{holds:?}");
    assert!(holds.jitter_ns > 0 && holds.p50_ns < holds.p99_ns && holds.p99_ns <= holds.max_ns, "{holds:?}");
    bed.assert_all_handed_over();
    bed.world.end();
}

/// Part of a source's life: so many bursts, so far apart, and a silence after them.
#[derive(Clone, Debug)]
struct Spell {
    bursts: usize,
    frames: usize,
    gap_ns: u64,
    silence_ns: u64,
}

fn spells() -> impl Strategy<Value = Vec<Spell>> {
    // From one packet in ten milliseconds to ten million a second.
    let gap_ns = prop_oneof![100..2000u64, 2000..100_000u64, 100_000..10_000_000u64];
    let frames = prop_oneof![4 => Just(1usize), 1 => 1..200usize];
    let silence_ns = prop_oneof![Just(0), 0..20_000_000u64];
    let spell = (1..150usize, frames, gap_ns, silence_ns)
        .prop_map(|(bursts, frames, gap_ns, silence_ns)| Spell { bursts, frames, gap_ns, silence_ns });
    proptest::collection::vec(spell, 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever comes, and however it comes: no packet is held for longer than the bound, and none is lost for it.
    #[test]
    fn the_bound_holds_at_every_rate(
        delay_us in prop_oneof![10..50u64, 50..1000u64, 1000..20_000u64],
        spells in spells(),
    ) {
        let mut bed = Bed::new(&format!("slo:delay={delay_us}"), "all");
        for spell in &spells {
            for _ in 0..spell.bursts {
                bed.burst(spell.frames);
                bed.wait(spell.gap_ns);
            }
            bed.wait(spell.silence_ns);
        }
        bed.wait(SECOND_NS);
        let (counters, holds) = (bed.counters(), bed.holds());
        prop_assert!(holds.packets >= bed.sent);
        prop_assert!(holds.max_ns <= delay_us * 1000, "{:?} {:?}", holds, counters);
        prop_assert_eq!(counters.late.containers, 0);
        bed.assert_all_handed_over();
        bed.world.end();
    }
}

/// The same with rates that are even, which chance seldom brings: a source for each, for long enough to be learned.
#[test]
fn the_bound_holds_at_even_rates() {
    for delay_us in [50, 500, 5000] {
        for rate in [100, 1000, 10_000, 30_000, 100_000, 300_000, 1_000_000] {
            let mut bed = Bed::new(&format!("slo:delay={delay_us}"), "all");
            for _ in 0..(rate / 10).max(100) {
                bed.burst(1);
                bed.wait(SECOND_NS / rate);
            }
            bed.wait(SECOND_NS);
            let (counters, holds) = (bed.counters(), bed.holds());
            println!("slo:delay={delay_us} at {rate} a second: {counters:?} {holds:?}");
            assert!(holds.max_ns <= delay_us * 1000, "slo:delay={delay_us} at {rate}: {holds:?}");
            assert_eq!(counters.late.containers, 0);
            bed.assert_all_handed_over();
            bed.world.end();
        }
    }
}

#[test]
fn what_a_guest_that_does_not_read_makes_late_is_counted() {
    let mut bed = Bed::new("fixed:size=4096,timeout=100", "none");
    bed.world.guests[0].pace = Pace::Slow { frames: 200, rest_ns: 10_000_000 };
    let before = bed.counters();
    // More than its ring's slots take at a time, and less than what may wait for it.
    for _ in 0..50 {
        bed.burst(300);
        bed.wait(200_000);
    }
    bed.wait(SECOND_NS);
    let (counters, holds) = (bed.counters(), bed.holds());
    let late = counters.late;
    assert!(late.containers > before.late.containers, "{late:?}");
    assert_eq!(late.max_ns, holds.max_ns - 100_000, "the latest");
    assert!(late.sum_ns >= late.max_ns && late.sum_ns <= late.max_ns * late.containers, "{late:?}");
    assert_eq!(counters.longest_hold_ns, holds.max_ns);
    bed.world.end();
}

/// The generator writes whenever there is room, to guests that take packets at their own speed: the queue before them
/// becomes as short as the bound wants it, and 99 packets of 100 are within it.
#[test]
fn a_bound_holds_at_saturation() {
    for (frames, rest_ns) in [(32, 100_000), (128, 100_000), (200, 1_000_000)] {
        let page = Options { rx_container_max_bytes: 16_384, ..Options::default() };
        let policy = Policy::Slo { delay_us: 5000 };
        let mut world = World::new(Shape { policy, options: page, ..Shape::default() });
        world.add_guest(GUEST);
        world.settle();
        world.guests[0].stack.as_mut().expect("the vif is up").udp(9, 4);
        world.guests[0].pace = Pace::Slow { frames, rest_ns };
        let mut bed = Bed { world, template: Template::new(&stream(1, None)), sent: 0 };
        let port = bed.world.connector.find(bed.world.guests[0].id).expect("it is connected");
        let (tell, done) = channel();
        assert!(bed.world.worker.0.borrow_mut().start_stream(
            &stream(400_000, None),
            Target::Guest(port),
            tell
        ));
        // A frame wakes the worker.
        bed.burst(1);
        bed.world.run(100 * SECOND_NS, |_| done.try_recv().is_ok());
        bed.world.settle();
        let (counters, holds) = (bed.counters(), bed.holds());
        println!("{frames} frames in {rest_ns} ns: {holds:?} {counters:?}");
        assert!(holds.packets > 400_000);
        assert!(counters.events_in > 10, "the guest was what everybody waited for");
        assert!(holds.p99_ns <= 5_000_000, "{holds:?}");
        bed.world.end();
    }
}

/// Looks at an uplink every 100 us, where the next look may be put off for 400. Returns how many looks found nothing although
/// frames had come.
fn looks_put_off(policy: &str) -> usize {
    const LOOKS: usize = 40;
    let (hv, clock) = (Hypervisor::new(), WorldClock::default());
    let mut worker = Worker::new(Back::new(&hv), clock.clone(), Settings::default());
    let (end, far) = cable();
    let link = CableUplink { end, arriving: Arriving::Filled, super_frames: false };
    let uplink = worker.add_uplink(LAN, Box::new(link)).expect("room");
    let mut front = RawFront::connect_as(&hv, &mut worker, DomainId(GUEST), |connection| {
        connection.policy = policy.parse().expect("a policy");
        connection.rx_format = rx::Format::Containers { size: 16_384, wrap: Wrap::Allowed };
    });
    front.post_pages(0, 64);
    let mut missed = 0;
    for _ in 0..LOOKS {
        (0..60).for_each(|_| far.send([&GUEST_MAC[..], &FAR_MAC, &[0; 48]].concat()));
        let before = worker.uplink_counters(uplink).expect("it is there").received;
        clock.advance(100_000);
        worker.pass();
        missed += usize::from(worker.uplink_counters(uplink).expect("it is there").received == before);
        front.take_frames();
    }
    missed
}

#[test]
fn a_look_is_put_off_for_long_only_where_no_guest_has_a_bound() {
    assert!(looks_put_off("opportunistic") > 10);
    assert_eq!(looks_put_off("slo:delay=500"), 0);
}
