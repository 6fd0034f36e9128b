//! The worker against a frontend that does what the fuzzer's bytes say: requests with any words, containers that are
//! right, mutated or cut, indices that cannot be true, buffers that are not granted.
//!
//! Whatever it does, the worker does not panic, passes stay bounded, only whole frames come out, and a neighbour is
//! served as before.
//!
//! What a script does is its bytes, in the order in which [`act`] takes them. Those that are kept beside this reach every
//! refusal that a frontend can bring about, which is looked at; a crash that is found is kept in the same place.

use std::collections::BTreeMap;
use std::path::Path;

use bolero::check;
use drayage::aggregate::Wrap;
use drayage::rules::Rules;
use drayage::switch::PortId;
use drayage::vif::multicast::Groups;
use drayage::vif::{Counters, Fault, rx, tx};
use drayage::worker::{Settings, Worker};
use drayage_tests::back::Back;
use drayage_tests::cable::cable;
use drayage_tests::hand::container;
use drayage_tests::rawfront::{PAGES, RawFront, mac};
use drayage_tests::uplink::{Arriving, CableUplink};
use drayage_tests::world::{LAN, WorldClock};
use drayage_wire::netif::{RxRequest, TxRequest};
use drayage_wire::ring::Slot as _;
use memxen::{DomainId, Hypervisor};

use crate::input::Input;

const LIAR: DomainId = DomainId(6);
const NEIGHBOUR: DomainId = DomainId(7);

fn frame(to: [u8; 6], from: [u8; 6], fill: u8, len: usize) -> Vec<u8> {
    let mut frame = vec![fill; len.max(14)];
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    frame
}

/// The liar does what the bytes say.
fn act(liar: &mut RawFront, input: &mut Input<'_>) {
    match input.byte() % 12 {
        0..=2 => {
            for _ in 0..input.byte() % 20 {
                let mut request = TxRequest::from_words([input.word(), input.word(), input.word(), 0]);
                if !input.byte().is_multiple_of(4) {
                    request.gref = liar.grant(usize::from(input.byte()));
                    request.flags &= 0xf;
                }
                if input.byte().is_multiple_of(2) {
                    (request.offset, request.size) = (0, request.size % 4097);
                }
                liar.send(request);
            }
            liar.publish();
        }
        3..=6 => {
            let packets: Vec<Vec<u8>> = (0..1 + input.byte() % 40)
                .map(|_| frame([2, 0, 0, 0, 0, 1], mac(LIAR), input.byte(), input.half() as usize % 1514))
                .collect();
            let packets: Vec<&[u8]> = packets.iter().map(Vec::as_slice).collect();
            let mut bytes = container(&packets, input.word());
            for _ in 0..input.byte() % 3 {
                let at = input.half() as usize % (16 + 8 * packets.len());
                bytes[at] ^= input.byte();
            }
            bytes.truncate(65_535);
            let first = usize::from(input.byte());
            let chunks = bytes.chunks(4096);
            let count = chunks.len();
            for (i, chunk) in chunks.enumerate() {
                liar.write(first + i, chunk);
                let size = if i == 0 { bytes.len() } else { chunk.len() } as u16;
                let flags = if i + 1 < count { drayage_wire::netif::tx_flags::MORE_DATA } else { 0 };
                let gref = liar.grant(first + i);
                liar.send(TxRequest { gref, offset: 0, flags, id: i as u16, size });
            }
            liar.publish();
        }
        7..=9 => {
            for n in 0..input.byte() {
                let page = usize::from(n) % PAGES;
                let gref = if input.byte().is_multiple_of(16) { input.word() } else { liar.grant(page) };
                liar.post(RxRequest { id: input.half(), gref });
            }
            liar.publish();
        }
        10 => {
            liar.answers();
            liar.received();
        }
        // Seldom, for it ends the connection.
        _ if input.byte().is_multiple_of(16) => {
            let word = input.word();
            if word.is_multiple_of(2) { liar.publish_nonsense(word) } else { liar.publish_rx_nonsense(word) }
        }
        _ => {}
    }
}

/// What may come of a script, and whether it did.
type Outcomes = [(&'static str, bool); 11];

/// Plays a script. Returns what came of it.
fn play(bytes: &[u8]) -> Outcomes {
    let mut input = Input::new(bytes);
    let shape = input.byte();
    let hv = Hypervisor::new();
    let settings = Settings { holdoff_us: 0, ..Settings::default() };
    let mut worker = Worker::new(Back::new(&hv), WorldClock::default(), settings);
    let (end, far) = cable();
    worker
        .add_uplink(LAN, Box::new(CableUplink { end, arriving: Arriving::Filled, super_frames: true }))
        .expect("room");
    let tx = if shape & 1 == 0 { tx::Format::Plain } else { tx::Format::Containers { size: 65_535 } };
    let wrap = if shape & 4 == 0 { Wrap::Allowed } else { Wrap::Forbidden };
    let size = if shape & 8 == 0 { 65_536 } else { 4096 };
    let rx = if shape & 2 == 0 { rx::Format::Plain } else { rx::Format::Containers { size, wrap } };
    let rules = Rules { locked_mac: shape & 16 != 0, isolated: shape & 32 != 0 };
    let mut liar = RawFront::connect_as(&hv, &mut worker, LIAR, |connection| {
        (connection.tx_format, connection.rx_format, connection.rules) = (tx, rx, rules);
        connection.groups = if shape & 64 == 0 { Groups::All } else { Groups::Subscribed };
    });
    let mut neighbour = RawFront::connect(&hv, &mut worker, NEIGHBOUR, tx::Format::Plain, rx::Format::Plain);
    while !input.is_empty() {
        act(&mut liar, &mut input);
        for _ in 0..input.byte() % 32 {
            far.send(frame(mac(LIAR), [2, 0, 0, 0, 0, 1], 3, input.half() as usize % 1514));
        }
        for _ in 0..input.byte() % 4 {
            worker.pass();
        }
        while let Some(frame) = far.take() {
            assert!((14..=65_535).contains(&frame.len()), "{} bytes", frame.len());
            assert!(!rules.locked_mac || frame[6..12] == mac(LIAR), "as somebody else: {frame:?}");
        }
    }
    let broken = worker.take_faults();
    assert!(broken.iter().all(|(id, _)| *id == liar.id), "only the liar is at fault");
    for _ in 0..8 {
        worker.pass();
    }
    // The liar may have spoken in the far host's name, which is nobody's but the last who used it.
    far.send(frame([0xff; 6], [2, 0, 0, 0, 0, 1], 4, 60));
    worker.pass();
    while far.take().is_some() {}
    let sent = frame([2, 0, 0, 0, 0, 1], mac(NEIGHBOUR), 1, 60);
    neighbour.write(0, &sent);
    let gref = neighbour.grant(0);
    neighbour.send(TxRequest { gref, offset: 0, flags: 0, id: 0, size: 60 });
    neighbour.publish();
    for _ in 0..8 {
        worker.pass();
    }
    let arrived = std::iter::from_fn(|| far.take()).any(|frame| frame == sent);
    assert!(arrived, "the neighbour is served");
    let reached = reached(&worker.counters(liar.id).expect("it is connected"), &broken);
    worker.disconnect(liar.id);
    worker.disconnect(neighbour.id);
    drop((liar, neighbour));
    hv.assert_clean();
    reached
}

/// Names what came of a script, by the counters of the liar's interface.
fn reached(counters: &Counters, broken: &[(PortId, Fault)]) -> Outcomes {
    let Counters { rx, tx, drops, .. } = counters;
    let plain = tx.packets > 0 && tx.containers == 0;
    let fault = |wanted: fn(&Fault) -> bool| broken.iter().any(|(_, fault)| wanted(fault));
    [
        ("a frame is sent", plain),
        ("a container is sent", tx.containers > 0),
        ("packets are received", rx.packets > 0),
        ("a container is received", rx.containers > 0),
        ("the queue is full", drops.queue_full > 0),
        ("a buffer is not granted", drops.bad_buffer > 0),
        ("what is sent makes no sense", drops.malformed > 0),
        ("what is sent is not granted", drops.unreadable > 0),
        ("the source is another's", drops.wrong_source > 0),
        ("the tx index is impossible", fault(|fault| matches!(fault, Fault::Tx(_)))),
        ("the rx index is impossible", fault(|fault| matches!(fault, Fault::Rx(_)))),
    ]
}

#[test]
fn a_hostile_frontend_costs_the_backend_nothing_but_the_vif() {
    check!().with_iterations(300).with_max_len(4096).for_each(|bytes: &[u8]| {
        play(bytes);
    });
}

/// The scripts that are kept are played again, and together reach whatever a frontend can bring about.
#[test]
fn what_is_kept_reaches_every_refusal() {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/__fuzz__/back__a_hostile_frontend_costs_the_backend_nothing_but_the_vif/corpus");
    let mut seen = BTreeMap::new();
    for file in std::fs::read_dir(&kept).expect("there is a folder") {
        let path = file.expect("it can be read").path();
        let outcomes = play(&std::fs::read(&path).expect("it can be read"));
        println!("{}: {outcomes:?}", path.display());
        outcomes.into_iter().for_each(|(name, reached)| *seen.entry(name).or_default() |= reached);
    }
    let missing: Vec<_> = seen.iter().filter(|(_, reached): &(_, &bool)| !**reached).collect();
    assert!(!seen.is_empty() && missing.is_empty(), "no script reaches {missing:?}");
}
