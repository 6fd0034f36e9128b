//! From a guest's mapped pages straight into the memory in which an uplink keeps frames, or by the system's own hand: one copy of
//! each byte, judged where it lies, and gone where it was decided to go, whatever the sender makes of its pages meanwhile.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use drayage::aggregate::Wrap;
use drayage::port::{Budget, Flushed, Sent, Uplink};
use drayage::rules::Rules;
use drayage::scattered::Scattered;
use drayage::switch::PortId;
use drayage::vif::rx::Wish;
use drayage::vif::{Connection, rx, tx};
use drayage::worker::{Next, Settings, Uplinks, Worker};
use drayage_tests::back::Back;
use drayage_tests::fleet::{Fleet, own};
use drayage_tests::hand;
use drayage_tests::rawfront::RawFront;
use drayage_tests::stage::{lie_after, staged_guest};
use drayage_tests::world::{LAN, WorldClock};
use drayage_wire::container::{Checksum, Gso, GsoKind, HEADER_BYTES, Meta, Writer};
use memxen::Hypervisor;

const FAR: [u8; 6] = [2, 0, 0, 0, 0, 1];
const NEIGHBOUR: u16 = 6;
/// Longer than from where on frames are read into their places.
const LEN: usize = 20_000;

/// What an uplink got.
#[derive(Debug, Default)]
struct Log {
    /// Each frame, and whether it was written in its place.
    frames: Vec<(bool, Vec<u8>)>,
    /// Places that it still has.
    places: usize,
    /// Frames sent with their checksum left blank.
    blank: usize,
    /// Whether it says that it is behind.
    behind: bool,
    /// Whether it reads frames where they are.
    scatters: bool,
}

/// An uplink with places for frames, from which the far end has spoken.
struct Berth {
    log: Arc<Mutex<Log>>,
    spoken: bool,
    place: Vec<u8>,
    waiting: Flushed,
}

impl Berth {
    fn note(&mut self, placed: bool, frame: Vec<u8>, meta: Meta) {
        self.waiting.sent += 1;
        self.waiting.sent_bytes += frame.len() as u64;
        let mut log = self.log.lock().unwrap();
        log.blank += usize::from(meta.checksum == Checksum::Blank);
        log.frames.push((placed, frame));
    }
}

impl Uplink for Berth {
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn receive(&mut self, budget: &mut Budget, each: &mut dyn FnMut(&[u8], Meta)) {
        if !std::mem::replace(&mut self.spoken, true) {
            let mut frame = vec![0; 60];
            frame[..6].fill(0xff);
            frame[6..12].copy_from_slice(&FAR);
            budget.spend(frame.len());
            each(&frame, Meta::default());
        }
    }

    fn send(&mut self, frame: &[u8], meta: Meta) -> Sent {
        self.note(false, frame.to_vec(), meta);
        Sent::Queued
    }

    fn is_behind(&mut self) -> bool {
        self.log.lock().unwrap().behind
    }

    fn has_places(&self) -> bool {
        true
    }

    fn takes_scattered(&self) -> bool {
        self.log.lock().unwrap().scatters
    }

    /// Reads what is not known, as the system does.
    fn send_scattered(&mut self, frame: &Scattered<'_>, meta: Meta) -> Sent {
        let mut bytes = frame.head().to_vec();
        for span in frame.rest() {
            let start = bytes.len();
            bytes.resize(start + span.len(), 0xee);
            span.copy_out(&mut bytes[start..]).expect("they are there");
        }
        assert_eq!(bytes.len(), frame.frame.len());
        self.note(true, bytes, meta);
        Sent::Queued
    }

    fn place(&mut self, frame_bytes: usize) -> Option<&mut [u8]> {
        let mut log = self.log.lock().unwrap();
        log.places = log.places.checked_sub(1)?;
        // What was here before is somebody else's.
        self.place = vec![0xee; frame_bytes];
        Some(&mut self.place)
    }

    fn send_placed(&mut self, meta: Meta) -> Sent {
        let frame = std::mem::take(&mut self.place);
        self.note(true, frame, meta);
        Sent::Queued
    }

    fn flush(&mut self) -> Flushed {
        std::mem::take(&mut self.waiting)
    }
}

/// A locked guest with its pages mapped, and the uplink to which it has sent a long frame already.
struct Scene {
    fleet: Fleet,
    sender: RawFront,
    neighbour: RawFront,
    log: Arc<Mutex<Log>>,
    uplink: PortId,
}

fn containers(connection: &mut Connection) {
    connection.tx_format = tx::Format::Containers { size: 65_535 };
    connection.rx_format = rx::Format::Containers { size: 65_536, wrap: Wrap::Allowed };
}

fn long_frame(to: [u8; 6], from: [u8; 6], byte: u8) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..LEN).map(|at| byte ^ (at / 7) as u8).collect();
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    // Of no protocol that anybody looks into.
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

fn container(frames: &[Vec<u8>]) -> Vec<u8> {
    let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
    hand::container(&frames, 0)
}

fn scene() -> Scene {
    let mut fleet = Fleet::new(1);
    let log = Arc::new(Mutex::new(Log { places: usize::MAX, ..Log::default() }));
    let berth = Berth { log: log.clone(), spoken: false, place: Vec::new(), waiting: Flushed::default() };
    let uplink = fleet.workers[0].add_uplink(LAN, Box::new(berth)).expect("there is room");
    let sender = staged_guest(&mut fleet, 5, |connection| {
        containers(connection);
        connection.rules = Rules { locked_mac: true, isolated: false };
    });
    let mut neighbour = staged_guest(&mut fleet, NEIGHBOUR, containers);
    neighbour.post_pages(0, 64);
    let mut scene = Scene { fleet, sender, neighbour, log, uplink };
    scene.fleet.passes();
    // From now on it is known where the guest sends, and how long its frames are.
    scene.sends(&container(&[long_frame(FAR, own(5), 0)]));
    assert_eq!(scene.take().len(), 1);
    scene
}

impl Scene {
    fn sends(&mut self, bytes: &[u8]) {
        self.sender.send_bytes(100, bytes);
        self.fleet.passes();
        self.sender.answers();
    }

    fn take(&mut self) -> Vec<(bool, Vec<u8>)> {
        std::mem::take(&mut self.log.lock().unwrap().frames)
    }

    /// Returns how many bytes were read of the sender's pages.
    fn read(&self) -> u64 {
        let tx = self.fleet.counters(0, &self.sender).tx;
        assert_eq!(tx.grant_ops, 0);
        tx.mapped_bytes
    }
}

#[test]
fn each_byte_is_read_once_and_written_where_it_goes_out() {
    let mut scene = scene();
    for count in 1..=3 {
        let frames: Vec<_> = (0..count).map(|n| long_frame(FAR, own(5), n as u8)).collect();
        let before = scene.read();
        scene.sends(&container(&frames));
        let came = scene.take();
        assert!(came.iter().all(|(placed, _)| *placed), "none by another copy");
        assert!(came.iter().map(|(_, frame)| frame).eq(&frames), "as they were, in order");
        assert_eq!((scene.read() - before) as usize, HEADER_BYTES + (8 + LEN) * count);
    }
    let uplink = scene.fleet.workers[0].uplink_counters(scene.uplink).expect("it is there");
    assert_eq!((uplink.sent, uplink.sent_bytes, uplink.send_drops), (7, 7 * LEN as u64, 0));
    scene.fleet.hv.assert_clean();
}

#[test]
fn without_a_place_a_frame_goes_by_another_copy_and_overtakes_nothing() {
    let mut scene = scene();
    let frames: Vec<_> = (0..3).map(|n| long_frame(FAR, own(5), n as u8)).collect();
    scene.log.lock().unwrap().places = 1;
    scene.sends(&container(&frames));
    let came = scene.take();
    assert_eq!(came.iter().map(|(placed, _)| *placed).collect::<Vec<_>>(), [true, false, false]);
    assert!(came.iter().map(|(_, frame)| frame).eq(&frames));
    scene.fleet.hv.assert_clean();
}

#[test]
fn what_is_for_several_or_for_a_neighbour_goes_there_in_order() {
    let mut scene = scene();
    let mixed = [(FAR, 1), (own(NEIGHBOUR), 2), (FAR, 3)].map(|(to, byte)| long_frame(to, own(5), byte));
    scene.sends(&container(&mixed));
    let came = scene.take();
    assert!(came.iter().map(|(_, frame)| frame).eq([&mixed[0], &mixed[2]]));
    assert_eq!(scene.neighbour.take_frames().len(), 1);
    // A sender that is held to its address has none of another go out.
    for count in 1..=2 {
        scene.sends(&container(&[long_frame(FAR, own(5), 0)]));
        scene.take();
        scene.sends(&container(&vec![long_frame(FAR, own(NEIGHBOUR), 9); count]));
        assert!(scene.take().is_empty());
    }
    assert_eq!(scene.fleet.counters(0, &scene.sender).drops.wrong_source, 3);
    scene.fleet.hv.assert_clean();
}

#[test]
fn answers_are_not_looked_for_while_what_they_answer_to_waits() {
    for holdoff_us in [100, 0] {
        let log = Arc::new(Mutex::new(Log { behind: true, ..Log::default() }));
        let clock = WorldClock::default();
        let settings = Settings { holdoff_us, ..Settings::default() };
        let mut worker = Worker::new(Back::new(&Hypervisor::new()), clock.clone(), settings);
        let berth = Berth { log: log.clone(), spoken: false, place: Vec::new(), waiting: Flushed::default() };
        worker.add_uplink(LAN, Box::new(berth)).expect("there is room");
        let now_ns = worker.now_ns();
        let next = worker.pass();
        if holdoff_us == 0 {
            assert_eq!(next, Next { when: Wish::Event, uplinks: Uplinks::Awaited }, "never is never");
            continue;
        }
        assert_eq!(next, Next { when: Wish::At(now_ns + 100_000), uplinks: Uplinks::PutOff });
        log.lock().unwrap().behind = false;
        clock.advance(100_000);
        assert_eq!(worker.pass(), Next { when: Wish::Event, uplinks: Uplinks::Awaited });
        assert_eq!(worker.worker_counters().put_off, 1);
    }
}

#[test]
fn a_super_frame_is_judged_where_it_was_written() {
    let mut scene = scene();
    let gso = Some(Gso { kind: GsoKind::TcpV4, size: 1448 });
    let write = |frame: &[u8]| {
        let mut bytes = vec![0; 65_535];
        let mut writer = Writer::new(bytes.len(), 1);
        let meta = Meta { checksum: Checksum::Blank, gso };
        writer
            .push_with(&mut bytes, frame.len(), meta, |place| place.copy_from_slice(frame))
            .expect("it fits");
        let len = writer.finish(&mut bytes, 0, 0);
        bytes.truncate(len);
        bytes
    };
    let mut sound = long_frame(FAR, own(5), 1);
    let ip_len = (LEN - 14) as u16;
    sound[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
    sound[16..18].copy_from_slice(&ip_len.to_be_bytes());
    sound[18..26].copy_from_slice(&[0, 0, 0x40, 0, 64, 6, 0, 0]);
    sound[46..48].copy_from_slice(&[0x50, 0x10]);
    let mut bad = sound.clone();
    // A datagram is none.
    bad[23] = 17;
    let before = scene.fleet.counters(0, &scene.sender);
    scene.sends(&write(&sound));
    scene.sends(&write(&bad));
    scene.sends(&write(&sound));
    let came = scene.take();
    assert!(
        came.iter().all(|(placed, frame)| *placed && *frame == sound) && came.len() == 2,
        "{}",
        came.len()
    );
    assert_eq!(scene.log.lock().unwrap().blank, 2);
    let counters = scene.fleet.counters(0, &scene.sender);
    assert_eq!(counters.drops.malformed - before.drops.malformed, 1);
    assert_eq!(counters.tx.super_frames - before.tx.super_frames, 2);
    scene.fleet.hv.assert_clean();
}

#[test]
fn what_is_rewritten_in_mid_copy_goes_where_it_was_decided_to() {
    let mut scene = scene();
    let frames = vec![long_frame(FAR, own(5), 1); 2];
    let bytes = container(&frames);
    // The header, the table, and the first bytes of both.
    let decided = 2 + frames.len();
    let lies = [
        container(&vec![long_frame(own(NEIGHBOUR), own(NEIGHBOUR), 2); 2]),
        container(&[vec![3; 5000], vec![4; 100], vec![5; 35_000]]),
        vec![0xff; 65_535],
    ];
    for lie in lies {
        lie_after(&scene.fleet, &scene.sender, 100, decided, &lie);
        scene.sends(&bytes);
        scene.fleet.workers[0].xen().meddle_with(|_| ());
        let came = scene.take();
        assert_eq!(came.len(), 2);
        for (placed, frame) in came {
            assert!(placed && frame.len() == LEN && frame[..14] == frames[0][..14], "as it was decided on");
            assert_ne!(frame, frames[0], "the lie was told in time");
        }
        assert!(scene.neighbour.take_frames().is_empty());
    }
    scene.fleet.hv.assert_clean();
}

/// What the system reads by itself is what was decided on, and the rest of it whatever it is by then.
#[test]
fn what_the_system_reads_goes_where_it_was_decided_to() {
    let mut scene = scene();
    scene.log.lock().unwrap().scatters = true;
    for count in 1..=3 {
        let frames: Vec<_> = (0..count).map(|n| long_frame(FAR, own(5), n as u8)).collect();
        let before = scene.read();
        scene.sends(&container(&frames));
        let came = scene.take();
        assert!(came.iter().map(|(_, frame)| frame).eq(&frames), "as they were, in order");
        assert_eq!((scene.read() - before) as usize, HEADER_BYTES + (8 + LEN) * count, "each byte once");
    }
    let frames = vec![long_frame(FAR, own(5), 1); 2];
    // The header, the table, the addresses of both, and the headers of the first.
    let decided = 2 + frames.len() + 1;
    let lie = container(&vec![long_frame(own(NEIGHBOUR), own(NEIGHBOUR), 2); 2]);
    lie_after(&scene.fleet, &scene.sender, 100, decided, &lie);
    scene.sends(&container(&frames));
    scene.fleet.workers[0].xen().meddle_with(|_| ());
    let came = scene.take();
    assert_eq!(came.len(), 2);
    assert!(came[0].1[..144] == frames[0][..144] && came[0].1 != frames[0], "the lie was told in time");
    assert!(came[1].1[..14] == frames[1][..14]);
    assert!(scene.neighbour.take_frames().is_empty());
    let uplink = scene.fleet.workers[0].uplink_counters(scene.uplink).expect("it is there");
    assert_eq!((uplink.sent, uplink.send_drops), (9, 0));
    scene.fleet.hv.assert_clean();
}
