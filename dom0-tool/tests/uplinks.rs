//! Uplinks on real devices of Linux's, in network namespaces of the tests' own: frames in and out, compared.
//!
//! Each test runs itself once more under `unshare`, and says so when the system does not allow that.
#![forbid(unsafe_code)]

use std::net::UdpSocket;
use std::process::Command;
use std::time::{Duration, Instant};

use drayage::port::packet::Packet;
use drayage::port::spec::{PacketSpec, RingFormat, XdpMode, XdpSpec};
use drayage::port::xdp::Xdp;
use drayage::port::{Budget, By, Sent, Uplink, mtu_of};
use drayage::scattered::{MOST_PARTS, Scattered};
use drayage_wire::checksum;
use drayage_wire::container::{Checksum, Gso, GsoKind, Meta};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Set in a namespace.
const INSIDE: &str = "DRAYAGE_TEST_NAMESPACE";
/// Both formats of a packet socket's ring: what is true of one is of the other.
const RINGS: [RingFormat; 2] = [RingFormat::Slots, RingFormat::BLOCKS];
const PLAIN: Meta = Meta { checksum: Checksum::Unverified, gso: None };

/// Runs a test inside a network namespace of its own, with a veth pair `near` and `far`.
fn in_namespace(test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        for command in [
            "link add near type veth peer name far",
            "link set near address 02:00:00:00:00:0a",
            "link set far address 02:00:00:00:00:0b",
            "link set lo up",
        ] {
            ip(command);
        }
        // Router solicitations and their like would be counted among the frames.
        for device in ["near", "far"] {
            let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6"), "1");
        }
        body();
        return;
    }
    let root = rustix::process::geteuid().is_root();
    let mut unshare = Command::new("unshare");
    unshare.arg(if root { "-n" } else { "-rn" });
    let probe = Command::new("unshare").args([if root { "-n" } else { "-rn" }, "ip", "link"]).output();
    if !probe.as_ref().is_ok_and(|out| out.status.success()) {
        eprintln!("SKIPPED {test}: no network namespace can be made here: {probe:?}");
        return;
    }
    let this = std::env::current_exe().expect("a path");
    let run = unshare
        .arg(this)
        .args(["--exact", test, "--nocapture", "--include-ignored"])
        .env(INSIDE, "1")
        .status();
    assert!(run.expect("unshare ran a moment ago").success(), "{test} in its namespace");
}

fn ip(arguments: &str) {
    let out = Command::new("ip").args(arguments.split(' ')).output().expect("ip is installed");
    assert!(out.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Opens queue 0 of a device by AF_XDP, or says why that cannot be tried here.
fn open_xdp(device: &str, mode: XdpMode) -> Option<Xdp> {
    match Xdp::open(&XdpSpec { device: device.into(), queue: 0, mode }) {
        Ok((xdp, mtu)) => {
            assert_eq!(mtu, 1500);
            Some(xdp)
        }
        Err(error) => {
            let text = error.to_string();
            let lacking = ["CONFIG_XDP_SOCKETS", "run as root", "loading its program"];
            assert!(lacking.iter().any(|why| text.contains(why)), "{text}");
            eprintln!("SKIPPED: {text}");
            None
        }
    }
}

fn open(device: &str) -> Packet {
    open_ring(device, RingFormat::Slots)
}

fn open_ring(device: &str, ring: RingFormat) -> Packet {
    let spec = PacketSpec { device: device.into(), ring };
    let (packet, mtu) = Packet::open(&spec).expect("a device that is there");
    assert_eq!(mtu, 1500);
    let by = if ring == RingFormat::Slots { By::TpacketV2 } else { By::TpacketV3 };
    assert_eq!(packet.by(), by);
    packet
}

/// Runs something with both ends of the pair opened, once for each format of rings.
fn with_each_ring(body: impl Fn(&mut Packet, &mut Packet)) {
    for ring in RINGS {
        eprintln!("{ring:?}");
        body(&mut open_ring("near", ring), &mut open_ring("far", ring));
    }
}

/// A frame of an experimental ethertype whose bytes depend on its number.
fn numbered(number: u8, len: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 0x0b, 2, 0, 0, 0, 0, 0x0a, 0x88, 0xb5];
    frame.extend((14..len).map(|at| number.wrapping_mul(31).wrapping_add(at as u8)));
    frame
}

/// Takes frames until there are as many as wanted, or nothing came for a second.
fn take(from: &mut dyn Uplink, wanted: usize) -> Vec<(Vec<u8>, Meta)> {
    let mut taken = Vec::new();
    loop {
        from.receive(&mut Budget::new(), &mut |frame, meta| taken.push((frame.to_vec(), meta)));
        if taken.len() >= wanted {
            return taken;
        }
        let mut list = [PollFd::from_borrowed_fd(from.descriptor().expect("it has one"), PollFlags::IN)];
        let patience = Timespec { tv_sec: 1, tv_nsec: 0 };
        if poll(&mut list, Some(&patience)) == Ok(0) {
            return taken;
        }
    }
}

/// Sends frames, flushing now and then, and checks that they arrive as they are.
fn pass(from: &mut dyn Uplink, to: &mut dyn Uplink) {
    let frames: Vec<Vec<u8>> =
        (0..200u8).map(|n| numbered(n, 60 + usize::from(n) * 7 + usize::from(n / 199) * 61)).collect();
    let (mut sent, mut sent_bytes) = (0, 0);
    for burst in frames.chunks(64) {
        for frame in burst {
            assert_ne!(from.send(frame, PLAIN), Sent::No);
        }
        let flushed = from.flush();
        assert_eq!(flushed.drops, 0);
        (sent, sent_bytes) = (sent + flushed.sent, sent_bytes + flushed.sent_bytes);
    }
    assert_eq!(sent, 200);
    assert_eq!(sent_bytes, frames.iter().map(|f| f.len() as u64).sum::<u64>());
    let taken = take(to, 200);
    assert_eq!(taken.len(), 200);
    for ((got, meta), frame) in taken.iter().zip(&frames) {
        assert_eq!((got, meta.gso), (frame, None));
    }
    assert_eq!(to.receive_drops(), 0);
    assert_eq!(take_now(from), 0, "what it sent does not come back");
}

fn take_now(from: &mut dyn Uplink) -> usize {
    let mut count = 0;
    from.receive(&mut Budget::new(), &mut |_, _| count += 1);
    count
}

#[test]
fn packet_frames_arrive_as_they_were_sent() {
    in_namespace("packet_frames_arrive_as_they_were_sent", || {
        with_each_ring(|near, far| {
            pass(near, far);
            pass(far, near);
        });
    });
}

#[test]
fn the_mtu_is_that_of_now() {
    in_namespace("the_mtu_is_that_of_now", || {
        assert_eq!(mtu_of("far").expect("a device"), 1500);
        let _open = open("far");
        ip("link set far mtu 9000");
        assert_eq!(mtu_of("far").expect("a device"), 9000);
        assert!(mtu_of("nowhere").is_err());
    });
}

#[test]
fn packet_budget_bounds_what_is_taken_at_once() {
    in_namespace("packet_budget_bounds_what_is_taken_at_once", || {
        with_each_ring(|near, far| {
            for _ in 0..4 {
                for n in 0..100 {
                    near.send(&numbered(n, 1514), PLAIN);
                }
                near.flush();
            }
            let first = take_now(far);
            assert!(first > 10 && first * 1514 <= 130 * 1024 + 1514, "{first}");
            assert_eq!(first + take(far, 400 - first).len(), 400);
        });
    });
}

/// A tag that the kernel takes out on the way is there again.
#[test]
fn packet_vlan_tags_survive() {
    in_namespace("packet_vlan_tags_survive", || {
        with_each_ring(|near, far| {
            for tag in [[0x81, 0x00, 0x20, 0x07], [0x88, 0xa8, 0x00, 0x09]] {
                let mut frame = numbered(1, 80);
                frame.splice(12..12, tag);
                assert_eq!(near.send(&frame, PLAIN), Sent::Queued);
                assert_eq!(near.flush().sent, 1);
                let taken = take(far, 1);
                assert_eq!(taken.len(), 1);
                assert_eq!(taken[0].0, frame);
            }
        });
    });
}

/// A TCP segment of `payload` bytes with a blank checksum.
fn tcp(payload: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 0x0b, 2, 0, 0, 0, 0, 0x0a, 8, 0];
    frame.extend([0x45, 0]);
    frame.extend(((40 + payload) as u16).to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2]);
    let sum = !checksum::sum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame.extend([0x10, 0, 0x20, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    frame.extend((0..payload).map(|at| (at * 7) as u8));
    let pseudo = checksum::locate(&frame).expect("tcp").pseudo;
    frame[50..52].copy_from_slice(&pseudo.to_be_bytes());
    frame
}

/// The same over IPv6.
fn tcp6(payload: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 0x0b, 2, 0, 0, 0, 0, 0x0a, 0x86, 0xdd, 0x60, 0, 0, 0];
    frame.extend(((20 + payload) as u16).to_be_bytes());
    frame.extend([6, 64]);
    for host in [1, 2] {
        frame.extend([0xfd, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]);
    }
    let v4 = tcp(payload);
    frame.extend([&v4[34..50], &[0; 4], &v4[54..]].concat());
    let pseudo = checksum::locate(&frame).expect("tcp").pseudo;
    frame[70..72].copy_from_slice(&pseudo.to_be_bytes());
    frame
}

/// What another stack left to be done is neither done twice nor forgotten: a super-frame, larger than any slot of
/// the ring, and a blank checksum.
#[test]
fn packet_offloads_pass_both_ways() {
    in_namespace("packet_offloads_pass_both_ways", || {
        with_each_ring(|near, far| {
            let gso = Some(Gso { kind: GsoKind::TcpV4, size: 1448 });
            let gso6 = Some(Gso { kind: GsoKind::TcpV6, size: 1428 });
            let sent = [
                (tcp(100), Meta { checksum: Checksum::Blank, gso: None }),
                (tcp(60_000), Meta { checksum: Checksum::Blank, gso }),
                (tcp6(60_000), Meta { checksum: Checksum::Blank, gso: gso6 }),
                (numbered(3, 60), PLAIN),
                (tcp(30_000), Meta { checksum: Checksum::Blank, gso }),
            ];
            for (frame, meta) in &sent {
                assert_eq!(near.send(frame, *meta), Sent::Queued);
            }
            assert_eq!(near.flush().sent, 5);
            let taken = take(far, 5);
            assert_eq!(taken.len(), 5, "{} lost", far.receive_drops());
            for ((frame, meta), (got, got_meta)) in sent.iter().zip(&taken) {
                assert!(frame == got, "{} bytes and {}", frame.len(), got.len());
                assert_eq!(meta, got_meta);
            }
        });
    });
}

/// Super-frames that Linux reads by itself arrive whole, however much of them it is asked to keep in one piece; what it refuses
/// is not sent.
#[test]
fn packet_scattered_frames_arrive_whole() {
    in_namespace("packet_scattered_frames_arrive_whole", || {
        let (mut near, mut far) = (open("near"), open("far"));
        let meta = |kind| Meta { checksum: Checksum::Blank, gso: Some(Gso { kind, size: 1428 }) };
        let frames =
            [(tcp(2000), GsoKind::TcpV4), (tcp(65_400), GsoKind::TcpV4), (tcp6(60_000), GsoKind::TcpV6)];
        for (frame, kind) in &frames {
            let scattered = Scattered { frame, known: frame.len(), rest: [None; MOST_PARTS] };
            assert_eq!(near.send_scattered(&scattered, meta(*kind)), Sent::Yes);
        }
        assert!(!near.is_behind(), "not yet");
        assert_eq!(near.flush().sent, 0, "they were counted");
        assert!(near.is_behind());
        near.flush();
        assert!(!near.is_behind(), "nothing was sent since");
        let taken = take(&mut far, 3);
        assert!(taken.iter().map(|(frame, _)| frame).eq(frames.iter().map(|(frame, _)| frame)));
        assert!(taken.iter().map(|(_, meta)| *meta).eq(frames.iter().map(|(_, kind)| meta(*kind))));
        // Longer than the device's MTU, and no super-frame.
        let long = numbered(1, 9000);
        let scattered = Scattered { frame: &long, known: 9000, rest: [None; MOST_PARTS] };
        assert_eq!(near.send_scattered(&scattered, PLAIN), Sent::No);
    });
}

/// Linux' own stack at the other end sends a blank checksum, and takes one.
#[test]
fn packet_meets_linux_own_stack() {
    in_namespace("packet_meets_linux_own_stack", || {
        let mut near = open("near");
        ip("link set far up");
        ip("addr add 10.9.0.2/24 dev far");
        ip("neigh add 10.9.0.1 lladdr 02:00:00:00:00:0a dev far");
        let socket = UdpSocket::bind("10.9.0.2:7").expect("an address of ours");
        socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a time");
        socket.send_to(b"from linux", "10.9.0.1:8192").expect("sent");
        let udp = |frame: &[u8]| frame.len() > 42 && frame[23] == 17;
        let mut taken = take(&mut near, 1);
        taken.retain(|(frame, _)| udp(frame));
        let (frame, meta) = &taken[0];
        assert_eq!(&frame[42..52], b"from linux");
        assert_eq!(meta.checksum, Checksum::Blank);
        // The same back, addresses and ports exchanged: all sums stay what they are.
        let mut back = frame[6..12].to_vec();
        back.extend(&frame[..6]);
        back.extend(&frame[12..26]);
        back.extend([&frame[30..34], &frame[26..30], &frame[36..38], &frame[34..36]].concat());
        back.extend(&frame[38..]);
        assert_eq!(near.send(&back, *meta), Sent::Queued);
        assert_eq!(near.flush().sent, 1);
        let mut bytes = [0; 64];
        assert_eq!(socket.recv(&mut bytes).expect("an answer"), 10);
        assert_eq!(&bytes[..10], b"from linux");
    });
}

#[test]
fn packet_losses_are_counted() {
    in_namespace("packet_losses_are_counted", || {
        // Slots hold a frame each, blocks as many as fit with their headers until their time is over.
        let long = RingFormat::Blocks { retire_ms: 1000 };
        for (ring, holds, sends) in [(RingFormat::Slots, 4096..6000, 6000), (long, 50_000..58_000, 60_000)] {
            let (mut near, mut far) = (open("near"), open_ring("far", ring));
            let mut sent = 0;
            for n in 0..sends {
                near.send(&numbered(n as u8, 60), PLAIN);
                if n % 100 == 99 {
                    sent += near.flush().sent;
                }
            }
            assert_eq!(sent, sends);
            let taken = take(&mut far, sends as usize).len() as u64;
            assert!(holds.contains(&taken), "{ring:?} holds {taken}");
            assert_eq!(taken + far.receive_drops(), sends);
            near.send(&numbered(9, 60), PLAIN);
            near.flush();
            assert_eq!(take(&mut far, 1), [(numbered(9, 60), PLAIN)], "{ring:?} goes on");
        }
    });
}

/// One end of a sleep serves all frames of a block, which comes when its time is over at the latest; super-frames of
/// all sizes are among them, up to the largest that a veth takes.
#[test]
fn packet_blocks_wake_once_for_many() {
    in_namespace("packet_blocks_wake_once_for_many", || {
        let (mut near, mut far) = (open("near"), open_ring("far", RingFormat::Blocks { retire_ms: 20 }));
        let gso = Some(Gso { kind: GsoKind::TcpV4, size: 1448 });
        let blank = |gso| Meta { checksum: Checksum::Blank, gso };
        let mut sent: Vec<(Vec<u8>, Meta)> =
            (0..100).map(|n| (numbered(n, 60 + usize::from(n)), PLAIN)).collect();
        for payload in [65_481, 1449, 40_000, 65_481, 65_000, 20_000] {
            sent.push((tcp(payload), blank(gso)));
            sent.push((tcp(100), blank(None)));
        }
        for (frame, meta) in &sent {
            assert_ne!(near.send(frame, *meta), Sent::No);
        }
        near.flush();
        let (mut taken, mut sleeps) = (Vec::new(), 0);
        while taken.len() < sent.len() {
            let mut list = [PollFd::from_borrowed_fd(far.descriptor().expect("it has one"), PollFlags::IN)];
            assert_eq!(
                poll(&mut list, Some(&Timespec { tv_sec: 1, tv_nsec: 0 })),
                Ok(1),
                "{} frames",
                taken.len()
            );
            sleeps += 1;
            // Until there is nothing, as far as the budget of a pass goes.
            let mut before = usize::MAX;
            while before != taken.len() {
                before = taken.len();
                far.receive(&mut Budget::new(), &mut |frame, meta| taken.push((frame.to_vec(), meta)));
            }
        }
        assert!(sleeps <= 6, "{sleeps} sleeps");
        for (n, (got, sent)) in taken.iter().zip(&sent).enumerate() {
            assert!(
                got == sent,
                "frame {n}: {} bytes and {}, {:?} and {:?}",
                sent.0.len(),
                got.0.len(),
                sent.1,
                got.1
            );
        }
        assert_eq!(far.receive_drops(), 0);
    });
}

/// A device that goes down and comes back is heard again, and reports its error once.
#[test]
fn packet_survives_a_device_that_goes_down() {
    in_namespace("packet_survives_a_device_that_goes_down", || {
        with_each_ring(|near, far| {
            ip("link set far down");
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            let errors = |of: &Packet| {
                let mut list = [PollFd::from_borrowed_fd(of.descriptor().expect("one"), PollFlags::IN)];
                poll(&mut list, Some(&now)).expect("poll");
                list[0].revents().contains(PollFlags::ERR)
            };
            assert!(errors(far));
            far.clear_error();
            assert!(!errors(far));
            ip("link set far up");
            let deadline = Instant::now() + Duration::from_secs(5);
            while take_now(far) == 0 {
                near.send(&numbered(1, 60), PLAIN);
                near.flush();
                assert!(Instant::now() < deadline, "nothing is heard again");
            }
        });
    });
}

fn xdp_passes(mode: XdpMode) {
    let Some(mut far) = open_xdp("far", mode) else { return };
    assert_eq!(far.is_native(), mode != XdpMode::Generic);
    let mut near = open("near");
    pass(&mut near, &mut far);
    pass(&mut far, &mut near);
    // Several times around the rings.
    for _ in 0..30 {
        pass(&mut near, &mut far);
        pass(&mut far, &mut near);
    }
    drop(far);
    // The program is gone with its link: Linux hears the device again, and so may others.
    let mut far = open("far");
    pass(&mut near, &mut far);
}

#[test]
fn xdp_native_frames_arrive_as_they_were_sent() {
    in_namespace("xdp_native_frames_arrive_as_they_were_sent", || xdp_passes(XdpMode::Auto));
}

#[test]
fn xdp_generic_frames_arrive_as_they_were_sent() {
    in_namespace("xdp_generic_frames_arrive_as_they_were_sent", || xdp_passes(XdpMode::Generic));
}

/// There are no offloads: what a guest left to be done is done before it goes out, and what Linux left is seen.
#[test]
fn xdp_does_what_offloads_would() {
    in_namespace("xdp_does_what_offloads_would", || {
        let Some(mut far) = open_xdp("far", XdpMode::Auto) else { return };
        let mut near = open("near");
        let blank = Meta { checksum: Checksum::Blank, gso: None };
        assert_eq!(far.send(&tcp(100), blank), Sent::Queued);
        let gso = Some(Gso { kind: GsoKind::TcpV4, size: 1448 });
        assert_eq!(far.send(&tcp(10_000), Meta { checksum: Checksum::Blank, gso }), Sent::Queued);
        let flushed = far.flush();
        assert_eq!((flushed.sent, flushed.drops), (8, 0));
        let taken = take(&mut near, 8);
        assert_eq!(taken.len(), 8);
        let mut payload: Vec<u8> = Vec::new();
        for (frame, _) in &taken[1..] {
            assert_eq!(checksum::verify(frame), checksum::Verdict::Good);
            payload.extend(&frame[54..]);
        }
        assert!(payload == tcp(10_000)[54..]);
        near.send(&tcp(200), blank);
        near.flush();
        let taken = take(&mut far, 1);
        assert_eq!((&taken[0].0, taken[0].1), (&tcp(200), blank));
    });
}

#[test]
fn xdp_too_long_a_frame_is_dropped_and_counted() {
    in_namespace("xdp_too_long_a_frame_is_dropped_and_counted", || {
        let Some(mut far) = open_xdp("far", XdpMode::Generic) else { return };
        let mut near = open("near");
        let gso = Some(Gso { kind: GsoKind::TcpV4, size: 1448 });
        near.send(&tcp(20_000), Meta { checksum: Checksum::Blank, gso });
        near.send(&numbered(1, 60), PLAIN);
        near.flush();
        let taken = take(&mut far, 1);
        assert_eq!((taken.len(), &taken[0].0), (1, &numbered(1, 60)));
        assert_eq!(far.receive_drops(), 1);
        assert_eq!(far.send(&numbered(1, 5000), PLAIN), Sent::No);
    });
}

#[test]
fn xdp_a_queue_belongs_to_one() {
    in_namespace("xdp_a_queue_belongs_to_one", || {
        let Some(_far) = open_xdp("far", XdpMode::Auto) else { return };
        let refused = |queue, mode| {
            let spec = XdpSpec { device: "far".into(), queue, mode };
            Xdp::open(&spec).map(drop).expect_err("it is taken").to_string()
        };
        let text = refused(0, XdpMode::Auto);
        assert!(text.contains("xdp:far") && text.contains("packet:far works beside it"), "{text}");
        let text = Xdp::open(&XdpSpec { device: "near".into(), queue: 9, mode: XdpMode::Auto })
            .map(drop)
            .expect_err("there is no such queue")
            .to_string();
        assert!(text.contains("/sys/class/net/near/queues"), "{text}");
    });
}

#[test]
fn what_cannot_be_opened_is_named() {
    in_namespace("what_cannot_be_opened_is_named", || {
        let refused = |device: &str| {
            let spec = PacketSpec { device: device.into(), ring: RingFormat::Slots };
            Packet::open(&spec).expect_err("it is not there").to_string()
        };
        assert!(refused("nowhere0").contains("no network device \"nowhere0\""));
        assert!(refused("lo").contains("\"lo\" is no ethernet device"));
    });
}

/// What the two formats of rings cost, and how long a lone frame takes: no test, but how the default was chosen.
#[test]
#[ignore = "it measures: run it with --run-ignored all --no-capture"]
fn packet_rings_measured() {
    in_namespace("packet_rings_measured", || {
        let cpu_ns = || {
            let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
        };
        for len in [60, 1514] {
            let frame = numbered(1, len);
            for round in 0..6 {
                let ring = RINGS[round % 2];
                let (mut near, mut far) = (open("near"), open_ring("far", ring));
                let (mut taken, before) = (0, cpu_ns());
                for _ in 0..4000 {
                    for _ in 0..64 {
                        near.send(&frame, PLAIN);
                    }
                    near.flush();
                    taken += take_now(&mut far);
                }
                let spent = cpu_ns() - before;
                let lost = far.receive_drops();
                eprintln!(
                    "{len} bytes, {ring:?}: {} ns a frame, sender and kernel included; {lost} lost",
                    spent / taken as u64
                );
            }
        }
        for retire_ms in [None, Some(1), Some(4)] {
            let ring = retire_ms.map_or(RingFormat::Slots, |retire_ms| RingFormat::Blocks { retire_ms });
            let (mut near, mut far) = (open("near"), open_ring("far", ring));
            let mut waits_us: Vec<u64> = (0..300)
                .map(|n| {
                    std::thread::sleep(Duration::from_micros(7_000 + 37 * n));
                    let start = Instant::now();
                    near.send(&numbered(1, 60), PLAIN);
                    near.flush();
                    assert_eq!(take(&mut far, 1).len(), 1);
                    start.elapsed().as_micros() as u64
                })
                .collect();
            waits_us.sort_unstable();
            eprintln!(
                "a lone frame, {ring:?}: half within {} us, all within {} us",
                waits_us[150], waits_us[299]
            );
        }
    });
}
