//! Staged grants with the real driver and the real backend: a container costs no grant operation at either end,
//! whoever of two guests has its pages mapped; and frontends that ask for nonsense over the control ring.

use std::panic::{AssertUnwindSafe, catch_unwind};

use drayage::control::attachment::Memory;
use drayage::control::details::{Containers, Mapping};
use drayage::vif::staging::MAX_STAGED;
use drayage::vif::{ControlRing, Fault, rx, tx};
use drayage::worker::{Settings, Worker};
use drayage::xen;
use drayage_netfront::{Options, Reading, Stage, Staged};
use drayage_tests::back::{Back, Died};
use drayage_tests::hand::DOM0;
use drayage_tests::host::{TcpSink, TcpSource};
use drayage_tests::rawfront::RawFront;
use drayage_tests::world::{ControlPath, Shape, World, WorldClock};
use drayage_wire::control::{Control, GREF_READONLY, Gref, Request, Response, kind, status};
use drayage_wire::netif::RxRequest;
use drayage_wire::ring::{FrontRing, SharedWords as _};
use memxen::raw::RawPage;
use memxen::{Access, DomainId, Hypervisor, Port};
use smoltcp::wire::{IpAddress, IpEndpoint};

const SECOND_NS: u64 = 1_000_000_000;
const BYTES: u64 = 3_000_000;

/// Moves a stream from guest `a` to guest `b`.
fn move_stream(world: &mut World, a: usize, b: usize, port: u16) {
    let id = world.guests[b].id.0 as u8;
    let to = IpEndpoint::new(IpAddress::v4(10, 0, 0, id), port);
    let from = world.guests[a].stack.as_mut().expect("up").connect(to, 50_000 + port);
    let at = world.guests[b].stack.as_mut().expect("up").listen(port);
    world.guests[a].tasks.tcp_sources.push(TcpSource::new(from, 3, BYTES));
    world.guests[b].tasks.tcp_sinks.push((TcpSink::new(at, 3), usize::MAX));
    let (sink, source) =
        (world.guests[b].tasks.tcp_sinks.len() - 1, world.guests[a].tasks.tcp_sources.len() - 1);
    world.wake(a);
    world.run(60 * SECOND_NS, |world| world.guests[b].tasks.tcp_sinks[sink].0.got() == BYTES);
    let (sink, source) =
        (&world.guests[b].tasks.tcp_sinks[sink].0, &world.guests[a].tasks.tcp_sources[source]);
    assert_eq!((sink.wrong, sink.hash()), (0, source.hash()));
}

#[test]
fn a_container_costs_no_grant_operation_where_pages_are_mapped() {
    let always = Options { staged: Stage::Always, ..Options::default() };
    let never = Options { staged: Stage::Never, ..Options::default() };
    for (name, trusted, options) in [
        ("both, in place", true, [Options::default(), Options::default()]),
        ("both, copied first", false, [always, always]),
        ("the sender", true, [always, never]),
        ("the receiver", true, [never, always]),
        ("neither", true, [never, never]),
    ] {
        let mut shape = Shape { control: ControlPath::Real(Containers::On), ..Shape::default() };
        shape.mapping = Mapping { staged: true, trusted };
        let mut world = World::new(shape);
        let guests = [world.add_guest_as(5, options[0]), world.add_guest_as(6, options[1])];
        world.settle();
        // The stacks learn each other's addresses.
        move_stream(&mut world, guests[0], guests[1], 3000);
        world.settle();
        let ids = guests.map(|index| world.guests[index].id);
        let staged = guests.map(|index| world.guests[index].vif().staged());
        let reading = if trusted { Reading::InPlace } else { Reading::Copied };
        for (staged, options) in staged.iter().zip(options) {
            let expected = match options.staged {
                Stage::Never => Staged::default(),
                _ => Staged { rx: Some(reading), tx: true, refused: None },
            };
            assert_eq!(*staged, expected, "{name}");
        }
        let before = ids.map(|id| world.back_counters(id).expect("connected"));
        let revokes = ids.map(|id| world.hv.operations(id).revokes);
        let calls = world.hv.operations(DOM0).copy_calls;
        move_stream(&mut world, guests[0], guests[1], 3001);
        world.settle();
        for (n, options) in options.iter().enumerate() {
            let after = world.back_counters(ids[n]).expect("connected");
            assert!(
                after.rx.containers > before[n].rx.containers
                    && after.tx.containers > before[n].tx.containers
            );
            let granted =
                (after.rx.grant_ops - before[n].rx.grant_ops, after.tx.grant_ops - before[n].tx.grant_ops);
            let mapped = (
                after.rx.mapped_ops - before[n].rx.mapped_ops,
                after.tx.mapped_ops - before[n].tx.mapped_ops,
            );
            let slots = (after.rx.slots - before[n].rx.slots, after.tx.slots - before[n].tx.slots);
            let revoked = world.hv.operations(ids[n]).revokes - revokes[n];
            if options.staged == Stage::Never {
                assert_eq!((granted.1, mapped), (slots.1, (0, 0)), "{name}, guest {n}");
                // What is gathered takes a copy for each piece.
                assert!(granted.0 >= slots.0, "{name}, guest {n}");
                assert_eq!((after.staging.pages, revoked), (0, slots.0));
            } else {
                assert_eq!((granted, mapped.1), ((0, 0), slots.1), "{name}, guest {n}");
                assert!(mapped.0 >= slots.0, "{name}, guest {n}");
                assert_eq!((after.staging.pages, revoked), (MAX_STAGED as u64, 0));
                // No grant call in it: events are all that is left.
                assert_eq!(after.hypercalls - before[n].hypercalls, after.events_out - before[n].events_out);
            }
        }
        let none = options.iter().all(|options| options.staged != Stage::Never);
        assert_eq!(world.hv.operations(DOM0).copy_calls == calls, none, "{name}");
        world.end();
    }
}

#[test]
fn a_guest_that_is_destroyed_while_its_pages_are_mapped_leaves_nothing() {
    let mapping = Mapping { staged: true, trusted: true };
    let mut world =
        World::new(Shape { control: ControlPath::Real(Containers::On), mapping, ..Shape::default() });
    let (a, b) = (world.add_guest(5), world.add_guest(6));
    world.settle();
    move_stream(&mut world, a, b, 3000);
    assert!(world.hv.live_mappings(DOM0) > 2 * MAX_STAGED);
    world.destroy(b);
    world.settle();
    assert!(world.hv.live_mappings(DOM0) < MAX_STAGED + 10, "only the first guest's pages are mapped");
    world.end();
}

/// A frontend with a control ring that is played by hand.
struct Liar {
    hv: Hypervisor,
    worker: Worker<Back, WorldClock>,
    front: RawFront,
    ring: FrontRing<Control, RawPage>,
    page: RawPage,
    list: RawPage,
    list_ref: u32,
    readonly: u32,
    port: Port,
}

const LIAR: DomainId = DomainId(6);

impl Liar {
    fn new() -> Self {
        let hv = Hypervisor::new();
        let settings = Settings { holdoff_us: 0, ..Settings::default() };
        let mut worker = Worker::new(Back::new(&hv), WorldClock::default(), settings);
        hv.create_domain(LIAR);
        let mut pages = hv.raw_pages(LIAR, 3).expect("memory");
        let mut grant = |access| {
            let page = pages.pop().expect("three");
            let grant = hv.grant(LIAR, DOM0, page.address(), access).expect("a grant");
            (page, grant.0)
        };
        let (page, ring_ref) = grant(Access::ReadWrite);
        let (list, list_ref) = grant(Access::ReadWrite);
        let (_, readonly) = grant(Access::ReadOnly);
        let ring = FrontRing::new(page.clone());
        let port = hv.alloc_unbound(LIAR, DOM0).expect("a port");
        let control = ControlRing { ring: xen::GrantRef(ring_ref), event: xen::EventPort(port.0) };
        let front = RawFront::connect_made(&hv, &mut worker, LIAR, |connection| {
            connection.tx_format = tx::Format::Containers { size: 65_535 };
            connection.rx_format = rx::Format::Plain;
            connection.control = Some(control);
        });
        Self { hv, worker, front, ring, page, list, list_ref, readonly, port }
    }

    /// Makes a request and returns the answer.
    fn ask(&mut self, kind: u16, data: [u32; 3]) -> Response {
        self.ring.push(Request { id: 77, kind, data }).expect("room");
        let _ = self.ring.publish();
        self.hv.notify(LIAR, self.port);
        for _ in 0..200 {
            self.worker.pass();
        }
        assert_eq!(self.ring.available(), Ok(1), "an answer for {kind} {data:?}");
        let answer: Response = self.ring.peek(0);
        self.ring.advance(1);
        assert_eq!((answer.id, answer.kind), (77, kind));
        answer
    }

    fn ask_list(&mut self, kind: u16, entries: &[(u32, u16)]) -> Response {
        for (at, (gref, flags)) in entries.iter().enumerate() {
            let entry = Gref { gref: *gref, flags: *flags, status: 0xffff };
            self.list.write(at * 8, &entry.to_bytes());
        }
        self.ask(kind, [0, self.list_ref, entries.len() as u32])
    }

    fn statuses(&self, count: usize) -> Vec<u16> {
        let entry = |at: usize| {
            let mut bytes = [0; 8];
            self.list.read(at * 8, &mut bytes);
            Gref::from_bytes(bytes).status
        };
        (0..count).map(entry).collect()
    }

    fn mapped(&self) -> u64 {
        self.worker.counters(self.front.id).expect("it is served").staging.pages
    }
}

#[test]
fn requests_are_answered_by_the_letter_of_the_header() {
    let mut liar = Liar::new();
    let size = liar.ask(kind::GET_GREF_MAPPING_SIZE, [0; 3]);
    assert_eq!((size.status, size.data), (status::SUCCESS, MAX_STAGED as u32));
    assert_eq!(
        liar.ask(kind::GET_GREF_MAPPING_SIZE, [1, 0, 0]).status,
        status::INVALID_PARAMETER,
        "one queue"
    );
    for unknown in (0..8).chain([11, 0xffff]) {
        assert_eq!(liar.ask(unknown, [0; 3]).status, status::NOT_SUPPORTED);
    }
    let rings = liar.hv.live_mappings(DOM0);
    let pages: Vec<(u32, u16)> = (0..100).map(|page| (liar.front.grant(page), 0)).collect();
    assert_eq!(liar.ask_list(kind::ADD_GREF_MAPPING, &pages).status, status::SUCCESS);
    assert_eq!((liar.mapped(), liar.hv.live_mappings(DOM0)), (100, rings + 100));
    // Twice is no new one; an entry that fails undoes its list, and only that.
    let fresh = (liar.front.grant(150), 0);
    for bad in [
        pages[3],
        (u32::MAX, 0),
        (70_000, 0),
        (9999, 0),
        (liar.front.grant(151), 2),
        (liar.readonly, 0),
        fresh,
    ] {
        let list = [fresh, (liar.front.grant(152), GREF_READONLY), bad, (liar.front.grant(153), 0)];
        assert_eq!(liar.ask_list(kind::ADD_GREF_MAPPING, &list).status, status::INVALID_PARAMETER, "{bad:?}");
        assert_eq!((liar.mapped(), liar.hv.live_mappings(DOM0)), (100, rings + 100), "{bad:?}");
    }
    assert_eq!(
        liar.ask_list(kind::ADD_GREF_MAPPING, &[(liar.readonly, GREF_READONLY)]).status,
        status::SUCCESS
    );
    // What is unmapped is said entry by entry.
    let some = [pages[0], fresh, pages[1], pages[0], (u32::MAX, 0)];
    let answer = liar.ask_list(kind::DEL_GREF_MAPPING, &some);
    assert_eq!((answer.status, answer.data), (status::SUCCESS, 2));
    assert_eq!(liar.statuses(5), [0, 2, 0, 2, 2]);
    assert_eq!(liar.mapped(), 99);
    liar.hv.assert_clean();
}

#[test]
fn lists_that_make_no_sense_are_refused() {
    let mut liar = Liar::new();
    for data in [
        [1, liar.list_ref, 1],
        [0, liar.list_ref, 0],
        [0, liar.list_ref, 513],
        [0, liar.list_ref, u32::MAX],
        [0, 9999, 1],
        [0, u32::MAX, 1],
    ] {
        for wanted in [kind::ADD_GREF_MAPPING, kind::DEL_GREF_MAPPING] {
            assert_eq!(liar.ask(wanted, data).status, status::INVALID_PARAMETER, "{data:?}");
        }
    }
    // A list that can be read and not be written is worked off nevertheless.
    let answer = liar.ask(kind::DEL_GREF_MAPPING, [0, liar.readonly, 1]);
    assert_eq!((answer.status, answer.data), (status::SUCCESS, 0));
    // More pages than there is room for: all of the list is undone.
    let pages: Vec<(u32, u16)> = (0..256).map(|page| (liar.front.grant(page), 0)).collect();
    assert_eq!(liar.ask_list(kind::ADD_GREF_MAPPING, &pages).status, status::SUCCESS);
    let more: Vec<_> = liar.hv.raw_pages(LIAR, 257).expect("memory");
    let grants: Vec<(u32, u16)> = more
        .iter()
        .map(|page| (liar.hv.grant(LIAR, DOM0, page.address(), Access::ReadWrite).expect("a grant").0, 0))
        .collect();
    assert_eq!(liar.ask_list(kind::ADD_GREF_MAPPING, &grants).status, status::INVALID_PARAMETER);
    assert_eq!(liar.mapped(), 256);
    assert_eq!(liar.ask_list(kind::ADD_GREF_MAPPING, &grants[..256]).status, status::SUCCESS);
    assert_eq!(liar.mapped(), 512);
    // A page that is mapped cannot be taken back by its owner, and can be once it is not.
    let grant = memxen::GrantRef(grants[0].0);
    assert!(liar.hv.revoke(LIAR, grant).is_err());
    assert_eq!(liar.ask_list(kind::DEL_GREF_MAPPING, &grants[..1]).data, 1);
    assert!(liar.hv.revoke(LIAR, grant).is_ok());
    let id = liar.front.id;
    liar.worker.disconnect(id);
    assert_eq!((liar.hv.live_mappings(DOM0), liar.hv.open_ports(DOM0)), (0, 0));
    liar.hv.assert_clean();
}

#[test]
fn a_control_ring_whose_index_cannot_be_true_ends_the_vif() {
    let mut liar = Liar::new();
    liar.page.store(0, 200, std::sync::atomic::Ordering::Release);
    liar.hv.notify(LIAR, liar.port);
    liar.worker.pass();
    let faults = liar.worker.take_faults();
    assert!(matches!(faults[..], [(id, Fault::Control(_))] if id == liar.front.id), "{faults:?}");
}

#[test]
fn a_flood_of_requests_costs_a_bounded_part_of_each_pass() {
    let mut liar = Liar::new();
    let list: Vec<(u32, u16)> = (0..256).map(|page| (liar.front.grant(page), 0)).collect();
    for (at, (gref, flags)) in list.iter().enumerate() {
        liar.list.write(at * 8, &Gref { gref: *gref, flags: *flags, status: 0 }.to_bytes());
    }
    for n in 0..128 {
        let kind = if n % 2 == 0 { kind::ADD_GREF_MAPPING } else { kind::DEL_GREF_MAPPING };
        liar.ring.push(Request { id: n, kind, data: [0, liar.list_ref, 256] }).expect("room");
    }
    let _ = liar.ring.publish();
    liar.hv.notify(LIAR, liar.port);
    for _ in 0..100 {
        let maps = liar.hv.operations(DOM0).maps;
        // The vif's packets go on meanwhile.
        liar.front.post(RxRequest { id: 1, gref: list[0].0 });
        liar.front.publish();
        liar.worker.pass();
        assert!(liar.hv.operations(DOM0).maps - maps <= 16, "entries of one pass");
    }
    assert!(liar.ring.available().expect("an honest backend") > 0);
}

/// Returns a guest's counters, and how many grant operations it was served with.
fn counted(world: &mut World, guest: usize) -> (drayage::vif::Counters, u64) {
    let counters = world.back_counters(world.guests[guest].id).expect("connected");
    (counters, counters.rx.grant_ops + counters.tx.grant_ops)
}

#[test]
fn the_next_backend_maps_what_the_last_one_had_mapped() {
    // Wherever it is killed: while pages are mapped, in mid-traffic, and while the next one maps them again.
    for lives in [[100, 300], [700, 2500], [3000, 5000], [6000, 900]] {
        let mapping = Mapping { staged: true, trusted: true };
        let shape = Shape { control: ControlPath::Real(Containers::On), mapping, ..Shape::default() };
        let file = std::env::temp_dir().join(format!("drayage-staged-{}-{}", lives[0], std::process::id()));
        let mut world = World::remembering(shape, Memory::in_file(file.clone()));
        let guests = [world.add_guest(5), world.add_guest(6)];
        world.settle();
        let id = world.guests[guests[1]].id.0 as u8;
        let to = IpEndpoint::new(IpAddress::v4(10, 0, 0, id), 3000);
        let from = world.guests[guests[0]].stack.as_mut().expect("up").connect(to, 50_000);
        let at = world.guests[guests[1]].stack.as_mut().expect("up").listen(3000);
        world.guests[guests[0]].tasks.tcp_sources.push(TcpSource::new(from, 3, BYTES));
        world.guests[guests[1]].tasks.tcp_sinks.push((TcpSink::new(at, 3), usize::MAX));
        world.wake(guests[0]);
        let got = |world: &World| world.guests[guests[1]].tasks.tcp_sinks[0].0.got();
        for life in lives {
            world.life.set(life);
            let run = AssertUnwindSafe(|| world.run(600 * SECOND_NS, |world| got(world) == BYTES));
            match catch_unwind(run) {
                Ok(()) => panic!("{life} operations were enough"),
                Err(cause) if cause.is::<Died>() => world.restart(),
                Err(cause) => std::panic::resume_unwind(cause),
            }
        }
        world.run(600 * SECOND_NS, |world| {
            guests.iter().all(|guest| counted(world, *guest).0.staging.pages == MAX_STAGED as u64)
        });
        assert!(got(&world) < BYTES, "the stream lasts longer");
        let before = guests.map(|guest| counted(&mut world, guest));
        world.run(600 * SECOND_NS, |world| got(world) == BYTES);
        world.settle();
        for (guest, (before, granted)) in guests.into_iter().zip(before) {
            let (after, granted_after) = counted(&mut world, guest);
            assert!(after.tx.packets > before.tx.packets);
            assert_eq!(after.staging.pages, MAX_STAGED as u64, "after {lives:?}");
            assert_eq!(granted_after, granted, "after {lives:?}");
        }
        let sink = &world.guests[guests[1]].tasks.tcp_sinks[0].0;
        assert_eq!((sink.wrong, sink.hash()), (0, world.guests[guests[0]].tasks.tcp_sources[0].hash()));
        let shelf = world.shelf.clone();
        world.end();
        assert_eq!(shelf.count(), 0, "no ledger is left");
        let _ = std::fs::remove_file(file);
    }
}
