//! Staged grants: a backend maps the guest's pages once, and the driver revokes nothing from then on.

use drayage_netfront::platform::{Access, GrantRef, Port};
use drayage_netfront::{Broken, Event, Options, Problem, Readiness, Reading, Stage, Staged};
use drayage_shared::{SharedBytes, SharedPage};
use drayage_wire::PAGE_SIZE;
use drayage_wire::container::Meta;
use drayage_wire::control::{Control, GREF_READONLY, Gref, Request, Response, kind, status};
use drayage_wire::keys::{self, State};
use drayage_wire::ring::{BackRing, SharedWords as _};
use memxen::Hypervisor;
use memxen::grants::Mapping;
use smoltcp::phy::{Device, RxToken};
use smoltcp::time::Instant;

use crate::guest::{GUEST, Guest};
use crate::peer::{BACKEND, CONTAINERS, Peer, STOCK, frame, pack, unpack};

/// The backend's end of a control ring.
struct Mapper {
    hv: Hypervisor,
    ring: BackRing<Control, SharedPage>,
    ring_mapping: Mapping,
    port: Port,
    /// What is mapped, with the grant.
    mapped: Vec<(GrantRef, Mapping)>,
}

impl Mapper {
    /// Takes the control ring that the frontend wrote of.
    fn attach(peer: &Peer) -> Self {
        let (page, ring_mapping) = peer.map_ring(keys::CTRL_RING_REF);
        let remote = Port(peer.number(keys::EVENT_CHANNEL_CTRL).expect("the frontend names a channel"));
        let port = peer.hv.bind_interdomain(BACKEND, GUEST, remote).unwrap();
        let hv = peer.hv.clone();
        Self { hv, ring: BackRing::attach(page), ring_mapping, port, mapped: Vec::new() }
    }

    /// Takes the request that is there, if one is.
    fn take(&mut self) -> Option<Request> {
        if self.ring.available().unwrap() == 0 {
            return None;
        }
        let request = self.ring.peek(0);
        self.ring.advance(1);
        let _ = self.ring.rearm();
        Some(request)
    }

    fn expect(&mut self, wanted: u16) -> Request {
        let request = self.take().expect("a request is there");
        assert_eq!((request.kind, request.data[0]), (wanted, 0));
        assert!(self.take().is_none(), "one at a time");
        request
    }

    fn answer(&mut self, request: Request, status: u32, data: u32) {
        let response = Response { id: request.id, kind: request.kind, status, data };
        self.ring.respond(response).unwrap();
        assert!(self.ring.publish(), "an answer is always awaited");
        self.hv.notify(BACKEND, self.port);
    }

    /// Returns the list that a request names.
    fn list(&self, request: Request) -> Vec<Gref> {
        let list = self.hv.map(BACKEND, &[(GUEST, GrantRef(request.data[1]))], Access::ReadWrite).unwrap();
        // SAFETY: the page stays mapped until the end of this function.
        let page = unsafe { SharedPage::new(list.base) };
        let entry = |n: u32| {
            let word =
                |at: usize| page.load(n as usize * Gref::WORDS + at, std::sync::atomic::Ordering::Relaxed);
            Gref::from_words([word(0), word(1)])
        };
        let entries = (0..request.data[2]).map(entry).collect();
        self.hv.unmap(BACKEND, list.handle);
        entries
    }

    /// Maps what a request asks for.
    fn map(&mut self, request: Request) {
        for entry in self.list(request) {
            let access = if entry.flags & GREF_READONLY != 0 { Access::ReadOnly } else { Access::ReadWrite };
            let grant = GrantRef(entry.gref);
            let mapping = self.hv.map(BACKEND, &[(GUEST, grant)], access).unwrap();
            self.mapped.push((grant, mapping));
        }
        self.answer(request, status::SUCCESS, 0);
    }

    /// Unmaps what a request asks for.
    fn unmap(&mut self, request: Request) {
        let mut count = 0;
        for entry in self.list(request) {
            let at = self.mapped.iter().position(|(grant, _)| grant.0 == entry.gref).expect("it is mapped");
            self.hv.unmap(BACKEND, self.mapped.swap_remove(at).1.handle);
            count += 1;
        }
        self.answer(request, status::SUCCESS, count);
    }

    /// Has both pools mapped.
    fn stage(&mut self, guest: &mut Guest) {
        let request = self.expect(kind::GET_GREF_MAPPING_SIZE);
        assert_eq!(request.data, [0; 3]);
        self.answer(request, status::SUCCESS, 512);
        guest.pump();
        let request = self.expect(kind::ADD_GREF_MAPPING);
        let list = self.list(request);
        assert!(list.len() == 256 && list.iter().all(|entry| entry.flags == 0), "{list:?}");
        self.map(request);
        guest.pump();
        let request = self.expect(kind::ADD_GREF_MAPPING);
        let list = self.list(request);
        assert!(list.len() == 256 && list.iter().all(|entry| entry.flags == GREF_READONLY), "{list:?}");
        self.map(request);
        guest.pump();
        assert!(self.take().is_none());
    }

    /// Returns the bytes of a mapped page.
    fn bytes(&self, gref: u32) -> SharedBytes {
        let (_, mapping) = self.mapped.iter().find(|(grant, _)| grant.0 == gref).expect("it is mapped");
        // SAFETY: the page stays mapped for the test's life, which ends before it is unmapped.
        unsafe { SharedBytes::new(mapping.base, PAGE_SIZE) }
    }

    /// Lets go of everything.
    fn let_go(&mut self) {
        for (_, mapping) in self.mapped.drain(..) {
            self.hv.unmap(BACKEND, mapping.handle);
        }
        self.hv.close(BACKEND, self.port);
        self.hv.unmap(BACKEND, self.ring_mapping.handle);
    }
}

/// Returns what a guest wants that has its pages mapped by whoever can.
fn insists() -> Options {
    Options { staged: Stage::Always, ..Options::default() }
}

/// Returns a guest whose backend has a control ring, before anything was answered on it.
fn connected(options: Options, trusted: Option<&str>, features: &[(&str, &str)]) -> (Guest, Peer, Mapper) {
    let hv = Hypervisor::new();
    hv.create_domain(GUEST);
    hv.create_domain(BACKEND);
    let mut guest = Guest::on(&hv, options);
    let mut peer = Peer::plug(&hv, 0);
    if let Some(trusted) = trusted {
        peer.write_front(keys::TRUSTED, trusted);
    }
    peer.write(keys::FEATURE_CTRL_RING, "1");
    peer.offer(features);
    guest.pump();
    peer.attach();
    let mapper = Mapper::attach(&peer);
    peer.set_state(State::Connected);
    guest.pump();
    assert!(guest.vif(0).is_up(), "{:?}", guest.changes);
    (guest, peer, mapper)
}

fn frames(count: u32) -> Vec<(Vec<u8>, Meta)> {
    (0..count).map(|n| (frame(100, n), Meta::default())).collect()
}

fn bare(packets: &[(Vec<u8>, Meta)]) -> Vec<Vec<u8>> {
    packets.iter().map(|(p, _)| p.clone()).collect()
}

/// Sends containers both ways, and asserts that they arrive.
fn exchange(guest: &mut Guest, peer: &mut Peer, sequence: &mut u32) {
    let packets = frames(300);
    peer.give(&pack(&packets, *sequence), 0);
    *sequence += 1;
    assert!(guest.receive(0) == bare(&packets));
    for (packet, _) in &packets[..20] {
        assert!(guest.send(0, packet));
    }
    guest.vif(0).flush();
    let sent: Vec<_> =
        peer.take_sent(0).iter().flat_map(|sent| unpack(&sent.bytes)).map(|(p, _)| p).collect();
    assert!(sent == bare(&packets[..20]));
}

/// Closes in order, as the guest does at its end.
fn close(mut guest: Guest, mut peer: Peer, mut mapper: Mapper) {
    guest.net.close();
    assert_eq!(guest.events(0).last(), Some(&Event::Down));
    assert_eq!(peer.front_state(), State::Connected, "pages first");
    let request = mapper.expect(kind::DEL_GREF_MAPPING);
    mapper.unmap(request);
    assert!(guest.is_woken(0), "an answer wakes the guest");
    assert_eq!(guest.vif(0).rearm(), Readiness::Busy);
    guest.pump();
    assert_eq!(guest.vif(0).rearm(), Readiness::SendBlocked, "and does so once");
    let request = mapper.expect(kind::DEL_GREF_MAPPING);
    mapper.unmap(request);
    guest.pump();
    assert_eq!(peer.front_state(), State::Closing);
    mapper.let_go();
    peer.let_go();
    peer.set_state(State::Closed);
    guest.pump();
    assert!(guest.net.is_closed());
    assert_eq!(guest.hv.operations(GUEST).revokes_refused, 0);
    guest.assert_nothing_left();
}

#[test]
fn pages_of_a_trusted_backend_are_read_in_place_and_never_revoked() {
    let (mut guest, mut peer, mut mapper) = connected(Options::default(), Some("1"), CONTAINERS);
    let mut sequence = 0;
    exchange(&mut guest, &mut peer, &mut sequence);
    let before = guest.counters(0).rx;
    assert!(before.revokes > 0 && before.unrevoked == 0, "as ever until the backend answers");
    assert_eq!(guest.vif(0).staged(), Staged::default());
    mapper.stage(&mut guest);
    assert_eq!(guest.events(0), [Event::Up, Event::Staged]);
    assert_eq!(guest.vif(0).staged(), Staged { rx: Some(Reading::InPlace), tx: true, refused: None });
    for _ in 0..60 {
        exchange(&mut guest, &mut peer, &mut sequence);
    }
    let rx = guest.counters(0).rx;
    assert_eq!((rx.revokes, rx.regrants), (before.revokes, before.revokes), "none since");
    assert!(rx.unrevoked >= 480 && rx.private_copies == 0 && rx.dropped.total() == 0, "{rx:?}");
    close(guest, peer, mapper);
}

#[test]
fn what_a_backend_sends_that_is_not_trusted_is_copied_before_it_is_looked_at() {
    for features in [CONTAINERS, STOCK] {
        let (mut guest, mut peer, mut mapper) = connected(insists(), Some("0"), features);
        mapper.stage(&mut guest);
        assert_eq!(guest.vif(0).staged(), Staged { rx: Some(Reading::Copied), tx: true, refused: None });
        let buffer = peer.take_buffer();
        let bytes = if features == CONTAINERS { pack(&frames(3), 0) } else { frame(100, 0) };
        assert_eq!(peer.fill(buffer, 0, &bytes), 0);
        let status = bytes.len() as i16;
        peer.respond(drayage_wire::netif::RxResponse { id: buffer.id, offset: 0, flags: 0, status });
        peer.publish();
        let (token, _) = guest.vif(0).receive(Instant::ZERO).expect("a frame");
        token.consume(|lent| {
            assert!(lent == frame(100, 0));
            // The backend scribbles over the page while the frame is lent.
            mapper.bytes(buffer.gref).copy_in(0, &[0xee; PAGE_SIZE]).unwrap();
            assert!(lent == frame(100, 0));
        });
        let rest = guest.receive(0);
        assert!(rest.is_empty() || rest == [frame(100, 1), frame(100, 2)]);
        let rx = guest.counters(0).rx;
        assert_eq!((rx.revokes, rx.unrevoked, rx.private_copies), (0, 1, 1));
        close(guest, peer, mapper);
    }
}

#[test]
fn it_is_only_asked_for_where_the_backend_can_and_is_trusted_or_the_guest_insists() {
    let offered = |options, trusted: Option<&str>, ring: &str| {
        let hv = Hypervisor::new();
        hv.create_domain(GUEST);
        hv.create_domain(BACKEND);
        let mut guest = Guest::on(&hv, options);
        let peer = Peer::plug(&hv, 0);
        if let Some(trusted) = trusted {
            peer.write_front(keys::TRUSTED, trusted);
        }
        peer.write_front(keys::CTRL_RING_REF, "77");
        peer.write(keys::FEATURE_CTRL_RING, ring);
        peer.offer(CONTAINERS);
        guest.pump();
        peer.read(keys::CTRL_RING_REF).is_some_and(|reference| reference != "77")
    };
    let never = Options { staged: Stage::Never, ..insists() };
    assert!(offered(Options::default(), Some("1"), "1"));
    assert!(!offered(Options::default(), Some("0"), "1"));
    assert!(!offered(Options::default(), None, "1"), "nobody says that the backend is trusted");
    assert!(!offered(Options::default(), Some("1"), "0"));
    assert!(offered(insists(), None, "1"));
    assert!(!offered(insists(), None, "0"));
    assert!(!offered(never, Some("1"), "1"));
}

#[test]
fn a_backend_that_knows_no_such_requests_is_served_as_ever() {
    let (mut guest, mut peer, mut mapper) = connected(Options::default(), Some("1"), STOCK);
    let request = mapper.expect(kind::GET_GREF_MAPPING_SIZE);
    mapper.answer(request, status::NOT_SUPPORTED, 0);
    assert_eq!(guest.events(0), [Event::Up, Event::Staged]);
    let refused = Some(status::NOT_SUPPORTED);
    assert_eq!(guest.vif(0).staged(), Staged { refused, ..Staged::default() });
    assert!(mapper.take().is_none(), "nothing more is asked for");
    peer.give(&frame(60, 1), 0);
    assert!(guest.receive(0) == [frame(60, 1)]);
    assert_eq!(guest.counters(0).rx.revokes, 1);
    guest.net.close();
    guest.pump();
    assert_eq!(peer.front_state(), State::Closing, "there is nothing to be unmapped");
    mapper.let_go();
    peer.let_go();
    peer.set_state(State::Closed);
    guest.pump();
    guest.assert_nothing_left();
}

#[test]
fn a_list_that_fails_is_not_staged_and_the_other_may_be() {
    let (mut guest, mut peer, mut mapper) = connected(insists(), Some("1"), CONTAINERS);
    let request = mapper.expect(kind::GET_GREF_MAPPING_SIZE);
    mapper.answer(request, status::SUCCESS, 4096);
    guest.pump();
    let request = mapper.expect(kind::ADD_GREF_MAPPING);
    // What is sent meanwhile is read without a revoke: the backend may have mapped the page by now.
    peer.give(&pack(&frames(3), 0), 0);
    assert!(guest.receive(0) == bare(&frames(3)));
    assert_eq!(guest.counters(0).rx.revokes, 0);
    mapper.answer(request, status::INVALID_PARAMETER, 0);
    guest.pump();
    let request = mapper.expect(kind::ADD_GREF_MAPPING);
    mapper.map(request);
    guest.pump();
    let refused = Some(status::INVALID_PARAMETER);
    assert_eq!(guest.vif(0).staged(), Staged { rx: None, tx: true, refused });
    let mut sequence = 1;
    exchange(&mut guest, &mut peer, &mut sequence);
    assert!(guest.counters(0).rx.revokes > 0, "received pages are revoked again");
    // The backend closes first, and unmaps when it is asked to.
    peer.set_state(State::Closing);
    guest.pump();
    let request = mapper.expect(kind::DEL_GREF_MAPPING);
    mapper.unmap(request);
    guest.pump();
    assert_eq!(peer.front_state(), State::Closed);
    mapper.let_go();
    peer.let_go();
    guest.pump();
    guest.let_reclaim();
    guest.assert_nothing_left();
}

#[test]
fn a_backend_with_room_for_one_pool_gets_the_receive_pages() {
    for (room, rx) in [(511, true), (256, true), (255, false), (0, false)] {
        let (mut guest, _peer, mut mapper) = connected(insists(), None, CONTAINERS);
        let request = mapper.expect(kind::GET_GREF_MAPPING_SIZE);
        mapper.answer(request, status::SUCCESS, room);
        guest.pump();
        if rx {
            let request = mapper.expect(kind::ADD_GREF_MAPPING);
            mapper.map(request);
            guest.pump();
        }
        assert!(mapper.take().is_none());
        assert_eq!(guest.events(0), [Event::Up, Event::Staged]);
        assert_eq!(guest.vif(0).staged(), Staged { rx: rx.then_some(Reading::Copied), ..Staged::default() });
    }
}

#[test]
fn a_backend_that_answers_what_was_not_asked_loses_the_vif() {
    for lie in 0..3 {
        let (mut guest, mut peer, mut mapper) = connected(insists(), None, CONTAINERS);
        let mut request = mapper.expect(kind::GET_GREF_MAPPING_SIZE);
        match lie {
            0 => request.id = request.id.wrapping_add(1),
            1 => request.kind = kind::DEL_GREF_MAPPING,
            _ => {
                mapper.answer(request, status::SUCCESS, 512);
                guest.pump();
                // The index of responses runs ahead of what was asked.
                let _ = mapper.expect(kind::ADD_GREF_MAPPING);
                let page = mapper
                    .hv
                    .map(
                        BACKEND,
                        &[(GUEST, GrantRef(peer.number(keys::CTRL_RING_REF).unwrap()))],
                        Access::ReadWrite,
                    )
                    .unwrap();
                // SAFETY: the page stays mapped until the end of this block.
                unsafe { SharedPage::new(page.base) }.store(2, 99, std::sync::atomic::Ordering::Release);
                mapper.hv.unmap(BACKEND, page.handle);
            }
        }
        if lie < 2 {
            mapper.answer(request, status::SUCCESS, 512);
        }
        let failed = guest.events(0).pop();
        match lie {
            0 | 1 => assert_eq!(failed, Some(Event::Failed(Problem::Broken(Broken::WrongAnswer)))),
            _ => assert!(matches!(failed, Some(Event::Failed(Problem::Broken(Broken::Overrun(_)))))),
        }
        assert_eq!(peer.front_state(), State::Closing);
        mapper.let_go();
        peer.let_go();
        peer.set_state(State::Closed);
        guest.pump();
        guest.assert_nothing_left();
    }
}

#[test]
fn pages_of_a_backend_that_never_lets_go_are_kept_until_it_does() {
    let (mut guest, mut peer, mut mapper) = connected(insists(), None, CONTAINERS);
    mapper.stage(&mut guest);
    peer.set_state(State::Closing);
    guest.pump();
    let _ = mapper.expect(kind::DEL_GREF_MAPPING);
    assert_eq!(peer.front_state(), State::Connected, "it waits");
    // The backend gives up on the guest, and still maps everything.
    peer.let_go();
    peer.set_state(State::Closed);
    guest.pump();
    assert!(guest.hv.operations(GUEST).revokes_refused > 0);
    assert_eq!(guest.hv.claimed_grants(GUEST), 512 + 3, "both pools, and the three rings");
    mapper.let_go();
    guest.let_reclaim();
    peer.unplug();
    guest.pump();
    guest.assert_nothing_left();
}

#[test]
fn a_backend_that_lies_about_unmapping_gains_nothing() {
    let (mut guest, mut peer, mut mapper) = connected(insists(), Some("1"), CONTAINERS);
    mapper.stage(&mut guest);
    guest.net.close();
    guest.pump();
    for _ in 0..2 {
        let request = mapper.expect(kind::DEL_GREF_MAPPING);
        mapper.answer(request, status::SUCCESS, 256);
        guest.pump();
    }
    assert_eq!(peer.front_state(), State::Closing);
    peer.let_go();
    peer.set_state(State::Closed);
    guest.pump();
    assert!(!guest.net.is_closed(), "its pages are still mapped: they are not used for anything else");
    mapper.let_go();
    guest.let_reclaim();
    assert!(guest.net.is_closed());
    guest.assert_nothing_left();
}
