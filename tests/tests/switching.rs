//! Who hears whom: the real worker between guests played by hand, under the rules of an operator and under netif's
//! own multicast control.

use drayage::aggregate::Wrap;
use drayage::rules::Rules;
use drayage::vif::multicast::{Groups, MAX_GROUPS};
use drayage::vif::{Connection, Rings, rx, tx};
use drayage::worker::{Settings, Worker};
use drayage_tests::back::{Back, Life, Shelf};
use drayage_tests::cable::{End, cable};
use drayage_tests::hand;
use drayage_tests::rawfront::{RawFront, mac};
use drayage_tests::uplink::{Arriving, CableUplink};
use drayage_tests::world::{LAN, WorldClock};
use drayage_wire::container::Manifest;
use drayage_wire::netif::{ExtraInfo, ExtraKind, TxRequest, status, tx_flags};
use memxen::{DomainId, Hypervisor};

const LOCKED: Rules = Rules { locked_mac: true, isolated: false };
const ISOLATED: Rules = Rules { locked_mac: false, isolated: true };
const BROADCAST: [u8; 6] = [0xff; 6];
/// The host beyond the uplink.
const FAR: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// A domain that no guest is.
const STRANGER: [u8; 6] = [2, 9, 9, 9, 9, 9];

struct Bench {
    hv: Hypervisor,
    worker: Worker<Back, WorldClock>,
    far: End,
}

impl Bench {
    fn new() -> Self {
        let hv = Hypervisor::new();
        let settings = Settings { holdoff_us: 0, ..Settings::default() };
        let worker = Worker::new(Back::new(&hv), WorldClock::default(), settings);
        Self::around(hv, worker)
    }

    fn around(hv: Hypervisor, mut worker: Worker<Back, WorldClock>) -> Self {
        let (end, far) = cable();
        worker
            .add_uplink(LAN, Box::new(CableUplink { end, arriving: Arriving::Filled, super_frames: false }))
            .expect("room");
        Self { hv, worker, far }
    }

    /// Connects a guest with 64 posted buffers.
    fn guest(&mut self, id: u16, shape: impl FnOnce(&mut Connection)) -> RawFront {
        let mut front = RawFront::connect_as(&self.hv, &mut self.worker, DomainId(id), shape);
        front.post_pages(0, 64);
        front
    }

    fn ruled(&mut self, id: u16, rules: Rules) -> RawFront {
        self.guest(id, |connection| connection.rules = rules)
    }

    fn passes(&mut self) {
        for _ in 0..16 {
            self.worker.pass();
        }
    }

    fn sends(&mut self, front: &mut RawFront, frame: &[u8]) {
        front.send_frame(200, frame);
        self.passes();
    }

    fn arrived(&self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.far.take()).collect()
    }

    fn counters(&self, front: &RawFront) -> drayage::vif::Counters {
        self.worker.counters(front.id).expect("it is served")
    }
}

fn frame(to: [u8; 6], from: [u8; 6], byte: u8) -> Vec<u8> {
    let mut frame = vec![byte; 60];
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    frame
}

fn own(id: u16) -> [u8; 6] {
    mac(DomainId(id))
}

#[test]
fn a_locked_guest_sends_as_itself_and_nobody_else() {
    let mut bench = Bench::new();
    let (mut locked, mut free) = (bench.ruled(5, LOCKED), bench.ruled(6, Rules::default()));
    for as_whom in [STRANGER, own(6), FAR] {
        for to in [FAR, own(6), BROADCAST] {
            bench.sends(&mut locked, &frame(to, as_whom, 1));
        }
    }
    assert_eq!((bench.arrived(), free.frames()), (vec![], vec![]));
    assert_eq!(bench.counters(&locked).drops.wrong_source, 9);
    // Nothing was learned from them: the far host is still sought everywhere, and then found where it is.
    bench.sends(&mut free, &frame(FAR, own(6), 2));
    assert_eq!(locked.frames(), bench.arrived());
    assert!(locked.answers().iter().all(|answer| answer.status == status::OKAY), "a drop is no fault");
    bench.sends(&mut locked, &frame(own(6), own(5), 3));
    assert_eq!(free.frames(), [frame(own(6), own(5), 3)]);
    // One that is not locked may have machines of its own behind it.
    bench.sends(&mut free, &frame(FAR, STRANGER, 4));
    assert_eq!(bench.arrived(), [frame(FAR, STRANGER, 4)]);
    bench.far.send(frame(STRANGER, FAR, 5));
    bench.passes();
    assert_eq!(free.frames(), [frame(STRANGER, FAR, 5)]);
    assert_eq!(bench.counters(&locked).drops.total(), 9);
    bench.hv.assert_clean();
}

/// Takes the packets out of the containers that came to a guest.
fn unpacked(front: &mut RawFront) -> Vec<Vec<u8>> {
    let mut manifest = Manifest::new();
    let mut packets = Vec::new();
    for container in front.frames() {
        manifest.read(&container).expect("a good container");
        packets.extend(manifest.packets().iter().map(|packet| container[packet.range()].to_vec()));
    }
    packets
}

#[test]
fn a_container_is_handed_on_whole_only_where_all_of_it_may_go_there() {
    const COUNT: usize = 48;
    let containers = |connection: &mut Connection| {
        connection.rx_format = rx::Format::Containers { size: 16_384, wrap: Wrap::Allowed };
    };
    let honest = |to| (0..COUNT).map(|n| frame(to, own(5), n as u8)).collect::<Vec<_>>();
    let among = |other: Vec<u8>| {
        let mut frames = honest(own(6));
        frames[COUNT / 2] = other;
        frames
    };
    let cases = [
        ("all for one", honest(own(6)), 0),
        ("one for another guest", among(frame(own(7), own(5), 0xaa)), COUNT),
        ("one as somebody else", among(frame(own(6), STRANGER, 0xbb)), COUNT),
        ("one for everybody", among(frame(BROADCAST, own(5), 0xcc)), COUNT),
        ("to one whom it may not reach", honest(own(8)), 0),
    ];
    for (case, sent, most_copies) in cases {
        let mut bench = Bench::new();
        let mut sender = bench.guest(5, |connection| {
            connection.rules = Rules { locked_mac: true, isolated: true };
            connection.tx_format = tx::Format::Containers { size: 65_535 };
        });
        let mut others = [6, 7].map(|id| bench.guest(id, containers));
        let mut isolated = bench.guest(8, |connection| {
            containers(connection);
            connection.rules = ISOLATED;
        });
        let bytes = hand::container(&sent.iter().map(Vec::as_slice).collect::<Vec<_>>(), 0);
        bench.sends(&mut sender, &bytes);
        for (other, id) in others.iter_mut().zip([6, 7]) {
            let mine = |f: &&Vec<u8>| (f[..6] == own(id) || f[..6] == BROADCAST) && f[6..12] == own(5);
            assert!(unpacked(other).iter().eq(sent.iter().filter(mine)), "{case}: guest {id}");
        }
        assert_eq!(isolated.frames().len(), 0, "{case}");
        let counters = bench.counters(&others[0]);
        let (copies, whole) = (counters.rx.copies as usize, counters.flushes.whole);
        assert!(copies <= most_copies && (case == "all for one") == (whole == 1), "{case}: {copies} copies");
        let drops = bench.counters(&sender).drops;
        let spoofed = sent.iter().filter(|f| f[6..12] != own(5)).count() as u64;
        let forbidden = sent.iter().filter(|f| f[..6] == own(8)).count() as u64;
        assert_eq!((drops.wrong_source, drops.isolated), (spoofed, forbidden), "{case}");
        bench.hv.assert_clean();
    }
}

#[test]
fn a_guest_that_broke_the_protocol_takes_nothing_any_more() {
    let mut bench = Bench::new();
    let mut sender = bench.guest(5, |connection| {
        connection.tx_format = tx::Format::Containers { size: 65_535 };
    });
    let mut broken = bench.guest(6, |connection| {
        connection.rx_format = rx::Format::Containers { size: 16_384, wrap: Wrap::Allowed };
    });
    let sent: Vec<_> = (0..48).map(|n| frame(own(6), own(5), n)).collect();
    let whole = hand::container(&sent.iter().map(Vec::as_slice).collect::<Vec<_>>(), 0);
    bench.sends(&mut sender, &whole);
    assert_eq!(bench.counters(&broken).rx.packets, 48);
    broken.publish_rx_nonsense(10_000);
    for _ in 0..3 {
        bench.sends(&mut sender, &whole);
        bench.sends(&mut sender, &hand::container(&[&sent[0]], 0));
    }
    let before = bench.counters(&broken);
    assert_eq!(bench.worker.take_faults().len(), 1);
    bench.sends(&mut sender, &whole);
    assert_eq!(bench.counters(&broken).rx.packets, before.rx.packets);
    assert!(bench.counters(&sender).drops.no_destination >= 48, "{:?}", bench.counters(&sender).drops);
}

#[test]
fn what_lies_between_the_packets_of_a_container_reaches_nobody() {
    let mut bench = Bench::new();
    let mut sender = bench.guest(5, |connection| {
        connection.tx_format = tx::Format::Containers { size: 65_535 };
    });
    let mut receiver = bench.guest(6, |connection| {
        connection.rx_format = rx::Format::Containers { size: 16_384, wrap: Wrap::Allowed };
    });
    // Of a length after which the next packet does not begin at once.
    let sent: Vec<_> = (0..48).map(|n| [frame(own(6), own(5), n), vec![n]].concat()).collect();
    let mut bytes = hand::container(&sent.iter().map(Vec::as_slice).collect::<Vec<_>>(), 0);
    let mut manifest = Manifest::new();
    let gaps = |manifest: &Manifest| {
        let ends = manifest.packets().iter().map(|packet| packet.range().end);
        ends.zip(manifest.packets().iter().skip(1).map(|packet| packet.range().start)).collect::<Vec<_>>()
    };
    manifest.read(&bytes).expect("a good container");
    for (end, start) in gaps(&manifest) {
        assert!(end < start);
        bytes[end..start].fill(0xee);
    }
    bench.sends(&mut sender, &bytes);
    let [arrived] = receiver.frames().try_into().expect("one container");
    manifest.read(&arrived).expect("a good container");
    assert_eq!(bench.counters(&receiver).flushes.whole, 1, "it went whole");
    for (end, start) in gaps(&manifest) {
        assert!(arrived[end..start].iter().all(|byte| *byte == 0), "{end}..{start}");
    }
    bench.hv.assert_clean();
}

#[test]
fn isolated_guests_reach_uplinks_and_others_but_not_each_other() {
    let mut bench = Bench::new();
    let (mut a, mut b) = (bench.ruled(5, ISOLATED), bench.ruled(6, ISOLATED));
    let mut shared = bench.ruled(7, Rules::default());
    for (to, byte) in [(own(6), 1), (own(7), 2), (FAR, 3), (BROADCAST, 4)] {
        bench.sends(&mut a, &frame(to, own(5), byte));
    }
    assert_eq!(b.frames(), [] as [Vec<u8>; 0]);
    assert_eq!(
        shared.frames(),
        [2, 3, 4].map(|byte| frame([own(7), FAR, BROADCAST][byte - 2], own(5), byte as u8))
    );
    assert_eq!(bench.arrived(), [frame(FAR, own(5), 3), frame(BROADCAST, own(5), 4)]);
    assert_eq!((bench.counters(&a).drops.isolated, bench.counters(&a).drops.total()), (1, 1));
    // And back: from the uplink and from one that is not isolated, by name and to everybody.
    bench.far.send(frame(own(5), FAR, 5));
    bench.far.send(frame(BROADCAST, FAR, 6));
    bench.passes();
    bench.sends(&mut shared, &frame(own(5), own(7), 7));
    assert_eq!(a.frames(), [frame(own(5), FAR, 5), frame(BROADCAST, FAR, 6), frame(own(5), own(7), 7)]);
    assert_eq!(b.frames(), [frame(BROADCAST, FAR, 6)]);
    bench.hv.assert_clean();
}

#[test]
fn tagged_frames_pass_as_they_are() {
    let mut bench = Bench::new();
    let (mut a, mut b) = (bench.ruled(5, LOCKED), bench.ruled(6, Rules::default()));
    let tagged = |to, from| {
        let mut frame = frame(to, from, 8);
        // 802.1Q, priority 5, VLAN 42, with another tag of a provider's around it.
        frame[12..20].copy_from_slice(&[0x88, 0xa8, 0, 7, 0x81, 0, 0xa0, 42]);
        frame
    };
    bench.sends(&mut a, &tagged(BROADCAST, own(5)));
    assert_eq!(
        (b.frames(), bench.arrived()),
        (vec![tagged(BROADCAST, own(5))], vec![tagged(BROADCAST, own(5))])
    );
    bench.sends(&mut b, &tagged(own(5), own(6)));
    assert_eq!((a.frames(), bench.arrived()), (vec![tagged(own(5), own(6))], vec![]));
    bench.far.send(tagged(own(6), FAR));
    bench.passes();
    assert_eq!(b.frames(), [tagged(own(6), FAR)]);
    bench.sends(&mut a, &tagged(FAR, STRANGER));
    assert_eq!(bench.counters(&a).drops.wrong_source, 1, "a tag is no disguise");
}

fn group(n: u8) -> [u8; 6] {
    [1, 0, 0x5e, 0, 0, n]
}

/// Sends extra segments as a frontend does: a dummy request in front. Returns how the dummy was answered.
fn control(bench: &mut Bench, front: &mut RawFront, kinds: &[ExtraKind]) -> i16 {
    front.answers();
    let dummy = TxRequest { gref: 0, offset: 0, flags: tx_flags::EXTRA_INFO, id: 77, size: 14 };
    assert!(front.send(dummy));
    for (at, kind) in kinds.iter().enumerate() {
        front.tx.push(ExtraInfo { kind: *kind, more: at + 1 < kinds.len() }).expect("the ring has room");
    }
    front.publish();
    bench.passes();
    let answers = front.answers();
    assert_eq!(answers.len(), 1 + kinds.len());
    assert!(answers[1..].iter().all(|answer| answer.status == status::NULL), "{answers:?}");
    answers[0].status
}

#[test]
fn a_frontend_that_asked_gets_its_groups_and_no_others() {
    let mut bench = Bench::new();
    let mut choosy = bench.guest(5, |connection| connection.groups = Groups::Subscribed);
    let mut stock = bench.guest(6, |_| ());
    let mut everything = |bench: &mut Bench| {
        for to in [group(1), group(2), BROADCAST, own(5), [0x33, 0x33, 0, 0, 0, 1]] {
            bench.far.send(frame(to, FAR, 0));
        }
        bench.passes();
        assert_eq!(stock.frames().len(), 4, "who did not ask gets all of it");
        stock.post_pages(0, 4);
    };
    let to = |frames: Vec<Vec<u8>>| {
        frames.iter().map(|f| *f.first_chunk::<6>().expect("a frame")).collect::<Vec<_>>()
    };
    everything(&mut bench);
    assert_eq!(to(choosy.frames()), [BROADCAST, own(5)]);
    assert_eq!(bench.counters(&choosy).filtered, 3);
    assert_eq!(control(&mut bench, &mut choosy, &[ExtraKind::McastAdd(group(2))]), status::OKAY);
    everything(&mut bench);
    assert_eq!(to(choosy.frames()), [group(2), BROADCAST, own(5)]);
    assert_eq!(control(&mut bench, &mut choosy, &[ExtraKind::McastDel(group(2))]), status::OKAY);
    everything(&mut bench);
    assert_eq!(to(choosy.frames()), [BROADCAST, own(5)]);
    // One that did not ask may fill its list too, and is not filtered.
    assert_eq!(control(&mut bench, &mut stock, &[ExtraKind::McastAdd(group(9))]), status::OKAY);
    bench.far.send(frame(group(1), FAR, 1));
    bench.passes();
    assert_eq!(stock.frames().len(), 1);
    assert_eq!(bench.counters(&choosy).drops.total() + bench.counters(&stock).drops.total(), 0);
    bench.hv.assert_clean();
}

#[test]
fn the_next_backend_knows_the_groups() {
    let hv = Hypervisor::new();
    let (life, shelf) = (Life::default(), Shelf::default());
    let born = || {
        let settings = Settings { holdoff_us: 0, ..Settings::default() };
        let worker = Worker::new(Back::mortal(&hv, &life, &shelf), WorldClock::default(), settings);
        Bench::around(hv.clone(), worker)
    };
    let mut bench = born();
    let mut made = None;
    let mut front = bench.guest(5, |connection| {
        connection.groups = Groups::Subscribed;
        made = Some(connection.clone());
    });
    assert_eq!(control(&mut bench, &mut front, &[ExtraKind::McastAdd(group(2))]), status::OKAY);
    for _ in 0..2 {
        // It ends with everything connected, as by a signal that nothing can catch.
        drop(bench);
        bench = born();
        let mut connection = made.clone().expect("it was connected");
        connection.rings = Rings::TakenOver;
        front.id = bench.worker.connect(LAN, &connection).expect("it connects");
        for n in [1, 2] {
            bench.far.send(frame(group(n), FAR, n));
        }
        bench.passes();
        assert_eq!(front.frames(), [frame(group(2), FAR, 2)]);
    }
    assert_eq!(control(&mut bench, &mut front, &[ExtraKind::McastDel(group(2))]), status::OKAY);
    bench.far.send(frame(group(2), FAR, 3));
    bench.passes();
    assert_eq!(front.frames().len(), 0);
    bench.worker.disconnect(front.id);
    assert_eq!(shelf.count(), 0, "nothing is kept");
    hv.assert_clean();
}

#[test]
fn a_full_list_and_rubbish_in_it_cost_an_error_and_nothing_else() {
    let mut bench = Bench::new();
    let mut front = bench.guest(5, |connection| connection.groups = Groups::Subscribed);
    for n in 0..=255 {
        let expected = if usize::from(n) < MAX_GROUPS { status::OKAY } else { status::ERROR };
        assert_eq!(control(&mut bench, &mut front, &[ExtraKind::McastAdd(group(n))]), expected, "group {n}");
    }
    let refused = 256 - MAX_GROUPS as u64;
    assert_eq!(bench.counters(&front).guest_errors, refused);
    for kind in [ExtraKind::McastAdd(own(6)), ExtraKind::McastAdd([0; 6]), ExtraKind::Other(9)] {
        assert_eq!(control(&mut bench, &mut front, &[kind]), status::ERROR);
    }
    assert_eq!(control(&mut bench, &mut front, &[ExtraKind::McastDel(STRANGER)]), status::OKAY);
    for n in [0, 63, 64] {
        bench.far.send(frame(group(n), FAR, n));
    }
    bench.passes();
    assert_eq!(front.frames().len(), 2, "the first 64 stand");
    bench.sends(&mut front, &frame(FAR, own(5), 1));
    assert_eq!(bench.arrived(), [frame(FAR, own(5), 1)]);
    bench.hv.assert_clean();
}
