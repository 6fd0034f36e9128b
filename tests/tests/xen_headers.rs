//! The wire crate against Xen's own headers: a compiled C program prints sizes, offsets and constants, and
//! another replays ring operations with Xen's macros on a page of its own, which must end up as ours does.

use core::cell::Cell;
use core::sync::atomic::Ordering;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use drayage_tests::probe::{Probe, XEN};
use drayage_wire::PAGE_SIZE;
use drayage_wire::control::{self, Control, Gref, Request, Response};
use drayage_wire::keys::State;
use drayage_wire::netif::{self, ExtraInfo, ExtraKind, Rx, RxRequest, RxResponse, Tx, TxRequest, TxResponse};
use drayage_wire::ring::{BackRing, FrontRing, Index, RingKind, SharedWords, Slot, Words};
use drayage_wire::xs;

/// A page for one thread.
struct Page([Cell<u32>; PAGE_SIZE / 4]);

impl Page {
    fn new() -> Self {
        Self([const { Cell::new(0) }; PAGE_SIZE / 4])
    }

    /// FNV-1a, as ring.c computes it.
    fn hash(&self) -> u64 {
        let bytes = self.0.iter().flat_map(|word| word.get().to_le_bytes());
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        })
    }
}

impl SharedWords for &Page {
    fn load(&self, word: usize, _: Ordering) -> u32 {
        self.0[word].get()
    }
    fn store(&self, word: usize, value: u32, _: Ordering) {
        self.0[word].set(value);
    }
    fn full_fence(&self) {}
}

/// Finds where a field lies: packs a message with only that field's bits set, and returns `offset+size` as
/// the probe prints it.
fn place(slot: impl Slot) -> String {
    let bytes: Vec<u8> = slot.to_words().iter().flat_map(|word| word.to_le_bytes()).collect();
    let first = bytes.iter().position(|b| *b == 0xff).expect("the field is packed somewhere");
    let size = bytes.iter().filter(|b| **b == 0xff).count();
    assert!(bytes[first..first + size].iter().all(|b| *b == 0xff), "the field is in one place");
    format!("{first}+{size}")
}

/// As [`place`], for a field after the type byte.
fn place_in_extra(kind: ExtraKind, unused: usize) -> String {
    let mut words = ExtraInfo { kind, more: false }.to_words();
    words[0] &= !0xff;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let first = bytes.iter().position(|b| *b == 0xff).expect("the field is packed somewhere");
    let size = bytes.iter().filter(|b| **b == 0xff).count() - unused;
    format!("{first}+{size}")
}

fn ours() -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut say = |name: &str, value: String| {
        assert!(all.insert(name.to_owned(), value).is_none(), "{name} is said twice");
    };
    let tx = TxRequest::default();
    say("netif_tx_request.gref", place(TxRequest { gref: !0, ..tx }));
    say("netif_tx_request.offset", place(TxRequest { offset: !0, ..tx }));
    say("netif_tx_request.flags", place(TxRequest { flags: !0, ..tx }));
    say("netif_tx_request.id", place(TxRequest { id: !0, ..tx }));
    say("netif_tx_request.size", place(TxRequest { size: !0, ..tx }));
    let rsp = TxResponse::default();
    say("netif_tx_response.id", place(TxResponse { id: !0, ..rsp }));
    say("netif_tx_response.status", place(TxResponse { status: -1, ..rsp }));
    let rx = RxRequest::default();
    say("netif_rx_request.id", place(RxRequest { id: !0, ..rx }));
    say("netif_rx_request.gref", place(RxRequest { gref: !0, ..rx }));
    let rsp = RxResponse::default();
    say("netif_rx_response.id", place(RxResponse { id: !0, ..rsp }));
    say("netif_rx_response.offset", place(RxResponse { offset: !0, ..rsp }));
    say("netif_rx_response.flags", place(RxResponse { flags: !0, ..rsp }));
    say("netif_rx_response.status", place(RxResponse { status: -1, ..rsp }));
    say("netif_extra_info.type", place(ExtraInfo { kind: ExtraKind::Other(0xff), more: false }));
    let gso = |size, gso_type| ExtraKind::Gso { size, gso_type };
    say("netif_extra_info.u.gso.size", place_in_extra(gso(!0, 0), 0));
    say("netif_extra_info.u.gso.type", place_in_extra(gso(0, !0), 0));
    say("netif_extra_info.u.mcast.addr", place_in_extra(ExtraKind::McastAdd([0xff; 6]), 0));
    let more = ExtraInfo { kind: ExtraKind::Other(0), more: true }.to_words();
    let flag = more[0].to_le_bytes().iter().position(|b| *b != 0).expect("a flag is set");
    say("netif_extra_info.flags", format!("{flag}+1"));
    say("XEN_NETIF_EXTRA_FLAG_MORE", more[0].to_le_bytes()[flag].to_string());
    let number = |kind| ExtraInfo { kind, more: false }.to_words()[0].to_le_bytes()[0].to_string();
    say("XEN_NETIF_EXTRA_TYPE_GSO", number(gso(0, 0)));
    say("XEN_NETIF_EXTRA_TYPE_MCAST_ADD", number(ExtraKind::McastAdd([0; 6])));
    say("XEN_NETIF_EXTRA_TYPE_MCAST_DEL", number(ExtraKind::McastDel([0; 6])));
    say("XEN_NETIF_GSO_TYPE_TCPV4", netif::GSO_TCPV4.to_string());
    say("XEN_NETIF_GSO_TYPE_TCPV6", netif::GSO_TCPV6.to_string());

    // Sizes: a request fills its slot, a response of TX one word, an extra segment two.
    say("sizeof netif_tx_request", (Tx::SLOT_WORDS * 4).to_string());
    say("sizeof netif_rx_request", (Rx::SLOT_WORDS * 4).to_string());
    say("sizeof netif_rx_response", (Rx::SLOT_WORDS * 4).to_string());
    say("sizeof netif_tx_response", "4".to_owned());
    say("sizeof netif_extra_info", "8".to_owned());
    say("tx slot bytes", (Tx::SLOT_WORDS * 4).to_string());
    say("rx slot bytes", (Rx::SLOT_WORDS * 4).to_string());
    say("tx slots", netif::RING_SLOTS.to_string());
    say("rx slots", netif::RING_SLOTS.to_string());
    let full = TxRequest { gref: !0, offset: !0, flags: !0, id: !0, size: !0 };
    say("tx first slot", first_slot::<Tx>(full).to_string());
    say("rx first slot", first_slot::<Rx>(full).to_string());

    say("NETTXF_csum_blank", netif::tx_flags::CSUM_BLANK.to_string());
    say("NETTXF_data_validated", netif::tx_flags::DATA_VALIDATED.to_string());
    say("NETTXF_more_data", netif::tx_flags::MORE_DATA.to_string());
    say("NETTXF_extra_info", netif::tx_flags::EXTRA_INFO.to_string());
    say("NETRXF_data_validated", netif::rx_flags::DATA_VALIDATED.to_string());
    say("NETRXF_csum_blank", netif::rx_flags::CSUM_BLANK.to_string());
    say("NETRXF_more_data", netif::rx_flags::MORE_DATA.to_string());
    say("NETRXF_extra_info", netif::rx_flags::EXTRA_INFO.to_string());
    say("NETRXF_gso_prefix", netif::rx_flags::GSO_PREFIX.to_string());
    say("XEN_NETIF_MAX_TX_SIZE", netif::MAX_TX_BYTES.to_string());
    say("XEN_NETIF_NR_SLOTS_MIN", netif::MAX_TX_SLOTS.to_string());
    say("NETIF_RSP_DROPPED", netif::status::DROPPED.to_string());
    say("NETIF_RSP_ERROR", netif::status::ERROR.to_string());
    say("NETIF_RSP_OKAY", netif::status::OKAY.to_string());
    say("NETIF_RSP_NULL", netif::status::NULL.to_string());

    let request = Request::default();
    say("xen_netif_ctrl_request.id", place(Request { id: !0, ..request }));
    say("xen_netif_ctrl_request.type", place(Request { kind: !0, ..request }));
    say("xen_netif_ctrl_request.data", place(Request { data: [!0; 3], ..request }));
    let response = Response::default();
    say("xen_netif_ctrl_response.id", place(Response { id: !0, ..response }));
    say("xen_netif_ctrl_response.type", place(Response { kind: !0, ..response }));
    say("xen_netif_ctrl_response.status", place(Response { status: !0, ..response }));
    say("xen_netif_ctrl_response.data", place(Response { data: !0, ..response }));
    let entry = |gref: Gref| {
        let [a, b] = gref.to_words();
        place(Raw([a, b, 0, 0]))
    };
    let gref = Gref::default();
    say("xen_netif_gref.ref", entry(Gref { gref: !0, ..gref }));
    say("xen_netif_gref.flags", entry(Gref { flags: !0, ..gref }));
    say("xen_netif_gref.status", entry(Gref { status: !0, ..gref }));
    say("sizeof xen_netif_ctrl_request", (Control::SLOT_WORDS * 4).to_string());
    say("sizeof xen_netif_ctrl_response", "12".to_owned());
    say("sizeof xen_netif_gref", (Gref::WORDS * 4).to_string());
    say("gref list entries", control::MAX_LIST_ENTRIES.to_string());
    say("ctrl slots", Control::SLOTS.to_string());
    say("ctrl slot bytes", (Control::SLOT_WORDS * 4).to_string());
    say("ctrl first slot", first_slot::<Control>(Request { id: !0, kind: !0, data: [!0; 3] }).to_string());
    say("XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE", control::kind::GET_GREF_MAPPING_SIZE.to_string());
    say("XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING", control::kind::ADD_GREF_MAPPING.to_string());
    say("XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING", control::kind::DEL_GREF_MAPPING.to_string());
    say("XEN_NETIF_CTRL_STATUS_SUCCESS", control::status::SUCCESS.to_string());
    say("XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED", control::status::NOT_SUPPORTED.to_string());
    say("XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER", control::status::INVALID_PARAMETER.to_string());
    say("XEN_NETIF_CTRL_STATUS_BUFFER_OVERFLOW", control::status::BUFFER_OVERFLOW.to_string());
    say("XEN_NETIF_CTRLF_GREF_readonly", control::GREF_READONLY.to_string());

    for state in [
        State::Unknown,
        State::Initialising,
        State::InitWait,
        State::Initialised,
        State::Connected,
        State::Closing,
        State::Closed,
        State::Reconfiguring,
        State::Reconfigured,
    ] {
        say(&format!("XenbusState{state}"), state.value().to_owned());
    }

    let header = xs::Header { kind: 0, request: 0, transaction: 0, len_bytes: 0 };
    let word = |header: xs::Header| {
        let at = header.to_bytes().iter().position(|b| *b == 0xff);
        format!("{}+4", at.expect("the field is packed somewhere"))
    };
    say("sizeof xsd_sockmsg", xs::HEADER_BYTES.to_string());
    say("xsd_sockmsg.type", word(xs::Header { kind: !0, ..header }));
    say("xsd_sockmsg.req_id", word(xs::Header { request: !0, ..header }));
    say("xsd_sockmsg.tx_id", word(xs::Header { transaction: !0, ..header }));
    say("xsd_sockmsg.len", word(xs::Header { len_bytes: !0, ..header }));
    say("XENSTORE_PAYLOAD_MAX", xs::MAX_PAYLOAD_BYTES.to_string());
    say("XENSTORE_ABS_PATH_MAX", xs::MAX_PATH_BYTES.to_string());
    say("XENSTORE_RING_SIZE", xs::RING_BYTES.to_string());
    for (name, kind) in [
        ("DIRECTORY", xs::Kind::Directory),
        ("READ", xs::Kind::Read),
        ("GET_PERMS", xs::Kind::GetPerms),
        ("WATCH", xs::Kind::Watch),
        ("UNWATCH", xs::Kind::Unwatch),
        ("TRANSACTION_START", xs::Kind::TransactionStart),
        ("TRANSACTION_END", xs::Kind::TransactionEnd),
        ("GET_DOMAIN_PATH", xs::Kind::GetDomainPath),
        ("WRITE", xs::Kind::Write),
        ("MKDIR", xs::Kind::Mkdir),
        ("RM", xs::Kind::Rm),
        ("SET_PERMS", xs::Kind::SetPerms),
        ("WATCH_EVENT", xs::Kind::WatchEvent),
        ("ERROR", xs::Kind::Error),
    ] {
        say(&format!("XS_{name}"), (kind as u32).to_string());
    }
    all
}

/// Returns the byte of a page at which a ring's first slot starts, seen from outside: where the first
/// request's first set bit lands.
fn first_slot<K: RingKind>(full: impl Slot) -> usize {
    let page = Page::new();
    let mut front = FrontRing::<K, _>::new(&page);
    front.push(full);
    page.0.iter().position(|word| word.get() == !0).expect("the request is in the page") * 4
}

#[test]
fn sizes_offsets_and_constants_are_those_of_xens_headers() {
    let Some(probe) = Probe::compile("xen_abi", &[XEN]) else { return };
    let theirs: BTreeMap<String, String> = probe
        .run(&[], String::new())
        .iter()
        .map(|line| line.rsplit_once(' ').expect("a name and a value"))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let ours = ours();
    for (name, value) in &theirs {
        assert_eq!(ours.get(name), Some(value), "{name} in Xen's headers, and here");
    }
    assert_eq!(ours.len(), theirs.len(), "everything is compared");
}

/// One line of a replay: what an operation is, and its numbers.
#[derive(Clone, Copy, Debug)]
struct Step {
    op: &'static str,
    gref: u32,
    /// offset, flags, id, size or status.
    small: [u16; 4],
}

/// Returns the steps of a long and lively replay: bursts of each operation, of both ends, in any order.
fn script(mut seed: u64) -> Vec<Step> {
    let mut random = move || {
        // xorshift64: the same script everywhere.
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed >> 16
    };
    let ops = ["push", "requests", "respond", "responses", "taker", "takes", "armr", "arms", "free", "lier"];
    let mut steps = Vec::new();
    while steps.len() < 40_000 {
        let op = ops[random() as usize % ops.len()];
        let burst = match op {
            // Single steps too: they hit the event index exactly.
            "push" | "respond" | "taker" | "takes" if random() % 2 == 0 => random() % 90,
            _ => 1,
        };
        for _ in 0..burst {
            let small = [random() as u16, random() as u16, random() as u16, random() as u16];
            steps.push(Step { op, gref: random() as u32, small });
        }
    }
    steps
}

/// Which messages a ring carries, by the numbers of a [`Step`].
trait Messages: RingKind {
    fn request(gref: u32, small: [u16; 4]) -> impl Slot;
    fn response(small: [u16; 4]) -> impl Slot;
    fn show_request(words: Words) -> String;
    fn show_response(words: Words) -> String;
}

impl Messages for Tx {
    fn request(gref: u32, [offset, flags, id, size]: [u16; 4]) -> impl Slot {
        TxRequest { gref, offset, flags, id, size }
    }
    fn response([_, _, id, status]: [u16; 4]) -> impl Slot {
        TxResponse { id, status: status as i16 }
    }
    fn show_request(words: Words) -> String {
        let m = TxRequest::from_words(words);
        format!("{} {} {} {} {}: ", m.gref, m.offset, m.flags, m.id, m.size)
    }
    fn show_response(words: Words) -> String {
        let m = TxResponse::from_words(words);
        format!("0 0 0 {} {}: ", m.id, m.status as u16)
    }
}

impl Messages for Rx {
    fn request(gref: u32, [_, _, id, _]: [u16; 4]) -> impl Slot {
        RxRequest { id, gref }
    }
    fn response([offset, flags, id, status]: [u16; 4]) -> impl Slot {
        RxResponse { id, offset, flags, status: status as i16 }
    }
    fn show_request(words: Words) -> String {
        let m = RxRequest::from_words(words);
        format!("{} 0 0 {} 0: ", m.gref, m.id)
    }
    fn show_response(words: Words) -> String {
        let m = RxResponse::from_words(words);
        format!("0 {} {} {} {}: ", m.offset, m.flags, m.id, m.status as u16)
    }
}

/// Any message, unread.
#[derive(Clone, Copy)]
struct Raw(Words);

impl Slot for Raw {
    fn to_words(self) -> Words {
        self.0
    }
    fn from_words(words: Words) -> Self {
        Self(words)
    }
}

/// Replays the steps with our halves, and prints what ring.c prints.
fn replay<K: Messages>(start: u32, steps: &[Step]) -> Vec<String> {
    const REQ_PROD: usize = 0;
    let page = Page::new();
    let mut front = FrontRing::<K, _>::starting_at(&page, Index(start));
    let mut back = BackRing::<K, _>::attach(&page);
    let mut lines = Vec::with_capacity(steps.len());
    for Step { op, gref, small } in steps.iter().copied() {
        let mut shown = String::new();
        let value = match op {
            "push" => u32::from(front.push(K::request(gref, small)).is_some()),
            "requests" => u32::from(front.publish()),
            "respond" => u32::from(back.respond(K::response(small)).is_some()),
            "responses" => u32::from(back.publish()),
            "taker" => {
                let there = back.available().expect("nobody lies here");
                if there > 0 {
                    shown = K::show_request(back.peek::<Raw>(0).0);
                    back.advance(1);
                }
                there
            }
            "takes" => {
                let there = front.available().expect("nobody lies here");
                if there > 0 {
                    shown = K::show_response(front.peek::<Raw>(0).0);
                    front.advance(1);
                }
                there
            }
            // Xen's macros leave the event index alone when there is work at once; ours sets it, which only
            // asks for an event that nobody needs. Where there is none, both do the same.
            "armr" => u32::from(back.available().expect("nobody lies here") > 0 || back.rearm()),
            "arms" => u32::from(front.available().expect("nobody lies here") > 0 || front.rearm()),
            "free" => front.free_slots(),
            "lier" => {
                // The index that a frontend would publish if it lied by so many.
                let honest = page.0[REQ_PROD].get();
                page.0[REQ_PROD].set(honest.wrapping_add(gref));
                let refused = back.available().is_err();
                page.0[REQ_PROD].set(honest);
                u32::from(refused)
            }
            other => unreachable!("{other}"),
        };
        lines.push(format!("{shown}{value} {:016x}", page.hash()));
    }
    lines
}

fn compare_replays<K: Messages>(kind: &str, probe: &Probe) {
    for (start, seed) in [(0u32, 1u64), (u32::MAX - 700, 2), (0x7fff_ff00, 3)] {
        let mut steps = script(seed);
        // Ours also refuses a producer that went behind what was taken, where Xen's macro cannot tell.
        steps.iter_mut().filter(|step| step.op == "lier").for_each(|step| step.gref %= 400);
        let mut input = String::new();
        for Step { op, gref, small: [a, b, c, d] } in &steps {
            writeln!(input, "{op} {gref} {a} {b} {c} {d}").expect("strings grow");
        }
        let theirs = probe.run(&[kind, &start.to_string()], input);
        let ours = replay::<K>(start, &steps);
        assert_eq!(theirs.len(), ours.len());
        for (i, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
            assert_eq!(ours, theirs, "{kind} from {start}, step {i}: {:?}", steps[i]);
        }
        let count = |op: &str, value: &str| {
            let pairs = steps.iter().zip(&theirs);
            pairs.filter(|(step, line)| step.op == op && line.starts_with(value)).count()
        };
        assert!(count("requests", "1") > 9 && count("requests", "0") > 9, "both answers were met");
        assert!(count("responses", "1") > 9 && count("responses", "0") > 9, "both answers were met");
        assert!(count("push", "0") > 9 && count("lier", "1") > 9, "the ring was full at times");
    }
}

#[test]
fn a_tx_ring_does_what_xens_macros_do() {
    if let Some(probe) = Probe::compile("ring", &[XEN]) {
        compare_replays::<Tx>("tx", &probe);
    }
}

#[test]
fn an_rx_ring_does_what_xens_macros_do() {
    if let Some(probe) = Probe::compile("ring", &[XEN]) {
        compare_replays::<Rx>("rx", &probe);
    }
}
