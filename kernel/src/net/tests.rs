//! The loop, the links and the apps against a second stack at the other end of a wire.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::RefCell;

use smoltcp::socket::{tcp, udp};
use smoltcp::wire::IpAddress;

use super::fake::{FakeMachine, FakeNic, Host, wire};
use super::link::{Link, Turn};
use super::run::{Change, Ended, Machine, run};
use crate::control::Request;
use crate::seed::{Seed, SeedSource};
use crate::settings::Settings;

const SEED: Seed = Seed { value: 42, source: SeedSource::Jitter };
const MS: u64 = 1_000_000;

/// The guest under test, its host, and a clock.
struct Bench {
    link: Link,
    nic: FakeNic,
    host: Host,
    now_ns: u64,
    console: String,
}

impl Bench {
    fn new(line: &str) -> Self {
        Self::with(&Settings::parse(line).unwrap())
    }

    fn with(settings: &Settings) -> Self {
        let (mut nic, peer) = wire();
        let mut console = String::new();
        let mut link = Link::new(0, "vif", &mut nic, settings.addressing(0), 1, MS).unwrap();
        link.start(&settings.start, MS, &mut console);
        let host = Host::new(peer, &["10.0.0.1/24", "fd00::1/64"]);
        Self { link, nic, host, now_ns: MS, console }
    }

    /// Runs both ends for a while, a round each millisecond.
    fn run(&mut self, rounds: usize) {
        for _ in 0..rounds {
            self.host.poll(self.now_ns);
            while self.link.turn(&mut self.nic, None, self.now_ns, &mut self.console) == Turn::Busy {}
            self.now_ns += MS;
        }
    }

    fn until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        for _ in 0..20_000 {
            if done(self) {
                return;
            }
            self.run(1);
        }
        panic!("it never happened; console:\n{}", self.console);
    }
}

const STATIC: &str = "ip=10.0.0.2/24,fd00::2/64";

fn v4() -> IpAddress {
    IpAddress::v4(10, 0, 0, 2)
}

fn v6() -> IpAddress {
    IpAddress::v6(0xfd00, 0, 0, 0, 0, 0, 0, 2)
}

#[test]
fn echo_answers_datagrams_of_both_families() {
    for address in [v4(), v6()] {
        let mut bench = Bench::new(STATIC);
        let socket = bench.host.udp(5000);
        for size in [0_usize, 1, 100, 1400] {
            let text: Vec<u8> = (0..size).map(|at| (at * 7 + size) as u8).collect();
            let peer = bench.host.sockets.get_mut::<udp::Socket>(socket);
            peer.send_slice(&text, (address, 7)).unwrap();
            bench.until(|bench| bench.host.sockets.get_mut::<udp::Socket>(socket).can_recv());
            let peer = bench.host.sockets.get_mut::<udp::Socket>(socket);
            let (bytes, from) = peer.recv().unwrap();
            assert_eq!(bytes, text);
            assert_eq!(from.endpoint, (address, 7).into());
        }
    }
}

#[test]
fn echo_answers_a_datagram_in_fragments() {
    let mut bench = Bench::new(STATIC);
    let socket = bench.host.udp(5000);
    let text: Vec<u8> = (0..6000_u32).map(|at| at as u8).collect();
    bench.host.sockets.get_mut::<udp::Socket>(socket).send_slice(&text, (v4(), 7)).unwrap();
    bench.until(|bench| bench.host.sockets.get_mut::<udp::Socket>(socket).can_recv());
    assert_eq!(bench.host.sockets.get_mut::<udp::Socket>(socket).recv().unwrap().0, text);
}

#[test]
fn two_echo_services_do_not_play_ball() {
    let mut bench = Bench::new(STATIC);
    let socket = bench.host.udp(7);
    bench.host.sockets.get_mut::<udp::Socket>(socket).send_slice(b"ball", (v4(), 7)).unwrap();
    bench.run(50);
    assert!(!bench.host.sockets.get_mut::<udp::Socket>(socket).can_recv());
}

#[test]
fn echo_answers_several_streams_at_once_and_again() {
    for round in 0..3_u16 {
        let mut bench = Bench::new(STATIC);
        let mut streams: Vec<_> = (0..8)
            .map(|at| {
                let address = if at % 2 == 0 { v4() } else { v6() };
                (bench.host.connect(address, 7, 6000 + 100 * round + at), Vec::new(), 0)
            })
            .collect();
        let text: Vec<u8> = (0..200_000_u32).map(|at| (at ^ (at >> 9)) as u8).collect();
        bench.until(|bench| {
            for (handle, got, sent) in &mut streams {
                let socket = bench.host.sockets.get_mut::<tcp::Socket>(*handle);
                if socket.can_send() {
                    *sent += socket.send_slice(&text[*sent..]).unwrap();
                }
                if *sent == text.len() {
                    socket.close();
                }
                while socket.can_recv() {
                    socket.recv(|data| (data.len(), got.extend_from_slice(data))).unwrap();
                }
            }
            streams.iter().all(|(_, got, _)| got.len() == text.len())
        });
        for (_, got, _) in &streams {
            assert!(*got == text);
        }
        // Every place is free again: a ninth stream is answered.
        bench.run(50);
        let ninth = bench.host.connect(v4(), 7, 7000);
        bench.until(|bench| {
            let socket = bench.host.sockets.get_mut::<tcp::Socket>(ninth);
            if socket.can_send() && socket.send_queue() == 0 {
                socket.send_slice(b"x").unwrap();
            }
            socket.can_recv()
        });
    }
}

fn counter(line: &str, key: &str) -> u64 {
    let word = line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    word.unwrap_or_else(|| panic!("no {key} in {line:?}")).parse().unwrap()
}

fn ask(bench: &mut Bench, question: &[u8]) -> String {
    let socket = bench.host.udp(5001);
    bench.host.sockets.get_mut::<udp::Socket>(socket).send_slice(question, (v4(), 10)).unwrap();
    bench.until(|bench| bench.host.sockets.get_mut::<udp::Socket>(socket).can_recv());
    let answer = bench.host.sockets.get_mut::<udp::Socket>(socket).recv().unwrap().0.to_vec();
    bench.host.sockets.remove(socket);
    String::from_utf8(answer).unwrap()
}

#[test]
fn sink_counts_loses_nothing_and_resets() {
    let mut bench = Bench::new("app=sink ip=10.0.0.2/24");
    let socket = bench.host.udp(5000);
    for size in [0, 18, 1472] {
        for _ in 0..1000 {
            bench.host.sockets.get_mut::<udp::Socket>(socket).send(size, (v4(), 9)).unwrap();
            // Bursts of 1000 meet a guest that is polled once in a while.
            if size == 1472 && bench.host.sockets.get_mut::<udp::Socket>(socket).send_queue() > 900_000 {
                bench.run(1);
            }
        }
        bench.run(1);
    }
    bench.until(|bench| bench.host.sockets.get_mut::<udp::Socket>(socket).send_queue() == 0);
    bench.run(10);
    let line = ask(&mut bench, b"report");
    assert_eq!(counter(&line, "packets"), 3000, "{line}");
    assert_eq!(counter(&line, "bytes"), 1000 * (18 + 1472));
    assert_eq!(counter(&line, "dropped"), 0);
    assert!(line.contains("packets_per_container=1.00"), "{line}");
    assert!(counter(&line, "last_ns") >= counter(&line, "first_ns"));
    let line = ask(&mut bench, b"reset\n");
    assert_eq!(counter(&line, "packets"), 3000, "the last counters come with the answer");
    let line = ask(&mut bench, b"");
    assert_eq!(counter(&line, "packets"), 0);
    assert_eq!(counter(&line, "first_ns"), 0);
}

#[test]
fn sink_compares_what_is_in_datagrams_where_it_is_told_to() {
    for (setting, wrong) in [("", 0), (" verify=on", 3)] {
        let mut bench = Bench::new(&alloc::format!("app=sink ip=10.0.0.2/24{setting}"));
        let socket = bench.host.udp(5000);
        let good: [&[u8]; 3] = [&[0; 8], &[0, 0, 0, 0, 0, 0, 2, 7, 7, 7], &[0xff; 20]];
        let bad: [&[u8]; 3] = [b"short", &[0, 0, 0, 0, 0, 0, 2, 7, 7, 2], &[0, 0, 0, 0, 0, 0, 0, 1, 0]];
        for bytes in good.into_iter().chain(bad) {
            bench.host.sockets.get_mut::<udp::Socket>(socket).send_slice(bytes, (v4(), 9)).unwrap();
        }
        bench.run(20);
        let line = ask(&mut bench, b"report");
        assert_eq!((counter(&line, "packets"), counter(&line, "wrong")), (6, wrong), "{line}");
    }
}

#[test]
fn what_the_stack_drops_is_counted() {
    let mut bench = Bench::new("app=sink ip=10.0.0.2/24");
    let socket = bench.host.udp(5000);
    bench.host.sockets.get_mut::<udp::Socket>(socket).send_slice(b"good", (v4(), 9)).unwrap();
    bench.run(20);
    // The same with a wrong UDP checksum, and to an address that is not ours.
    let mut frame = alloc::vec![0; 60];
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[14..34].copy_from_slice(&[0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    let sum = (0..10)
        .map(|at| u32::from(u16::from_be_bytes([frame[14 + 2 * at], frame[15 + 2 * at]])))
        .sum::<u32>();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame[34..42].copy_from_slice(&[0x10, 0, 0, 9, 0, 12, 0xde, 0xad]);
    bench.nic.arrive(frame.clone());
    frame[24..26].copy_from_slice(&[0, 0]);
    bench.nic.arrive(frame);
    bench.run(2);
    let line = ask(&mut bench, b"report");
    assert_eq!((counter(&line, "packets"), counter(&line, "dropped")), (1, 2), "{line}");
}

#[test]
fn a_rogue_router_does_not_end_the_guest() {
    let mut bench = Bench::new("");
    let mut frame: Vec<u8> = Vec::new();
    frame.extend([0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd]);
    frame.extend([0x60, 0, 0, 0, 0, 48, 58, 255]);
    let source = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 0, 0, 2];
    let all_nodes = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    frame.extend(source);
    frame.extend(all_nodes);
    frame.extend([134, 0, 0, 0, 64, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    frame.extend([3, 4, 64, 0xc0, 0, 0, 1, 0, 0, 0, 0, 100, 0, 0, 0, 0]);
    let prefix_at = frame.len();
    frame.extend([0xff, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let send = |bench: &mut Bench, prefix: u8| {
        let mut frame = frame.clone();
        frame[prefix_at] = prefix;
        let mut sum = 58_u32 + 48;
        for pair in frame[22..].chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
        }
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        frame[56..58].copy_from_slice(&sum.to_be_bytes());
        bench.nic.arrive(frame);
        bench.run(3);
    };
    send(&mut bench, 0xff);
    assert!(!bench.console.contains("ff05:"), "{}", bench.console);
    // The same with a sane prefix is believed, which shows that the frame is a good one.
    send(&mut bench, 0x20);
    assert!(bench.console.contains(" 2005::ff:fe00:1/64"), "{}", bench.console);
}

#[test]
fn a_full_ring_sleeps_instead_of_spinning() {
    let mut bench = Bench::new(STATIC);
    let room = Rc::clone(&bench.nic.room);
    let socket = bench.host.udp(5000);
    bench.host.sockets.get_mut::<udp::Socket>(socket).send_slice(b"1", (v4(), 7)).unwrap();
    bench.until(|bench| bench.host.sockets.get_mut::<udp::Socket>(socket).can_recv());
    room.set(0);
    bench.host.sockets.get_mut::<udp::Socket>(socket).send_slice(b"2", (v4(), 7)).unwrap();
    bench.run(5);
    let now_ns = bench.now_ns;
    let deadline = bench.link.deadline_ns(now_ns);
    assert!(deadline.is_none_or(|at| at > now_ns), "{deadline:?} at {now_ns}");
    room.set(10);
    bench.run(5);
    let peer = bench.host.sockets.get_mut::<udp::Socket>(socket);
    assert_eq!(peer.recv().unwrap().0, b"1");
    assert_eq!(peer.recv().unwrap().0, b"2");
}

#[test]
fn source_finds_its_neighbour_keeps_its_rate_and_ends() {
    let settings =
        Settings::parse("app=source ip=10.0.0.2/24 to=10.0.0.1:9 size=100 rate=10000 count=500").unwrap();
    let (guest, peer) = wire();
    let mut host = Host::new(peer, &["10.0.0.1/24"]);
    let socket = host.udp(9);
    let mut seen = Vec::new();
    let mut console = String::new();
    let mut machine = FakeMachine {
        now_ns: 5 * MS,
        nics: Vec::from([(0, guest)]),
        changes: VecDeque::from([Change::Up(0)]),
        slept: Vec::new(),
        world: Box::new(|now_ns, _| {
            host.poll(now_ns);
            let socket = host.sockets.get_mut::<udp::Socket>(socket);
            while let Ok((bytes, _)) = socket.recv() {
                assert_eq!(bytes.len(), 100 - 42);
                seen.push(u64::from_be_bytes(bytes[..8].try_into().unwrap()));
            }
            Some(now_ns + MS)
        }),
    };
    assert_eq!(run(&mut machine, &mut console, &settings, SEED), Ended::Finished);
    let (line, end_ns) = (console, machine.now_ns);
    drop(machine);
    host.poll(end_ns);
    while let Ok((bytes, _)) = host.sockets.get_mut::<udp::Socket>(socket).recv() {
        seen.push(u64::from_be_bytes(bytes[..8].try_into().unwrap()));
    }
    assert!(seen.iter().copied().eq(0..500), "{seen:?}");
    let line = line.lines().find(|line| line.starts_with("source: packets=")).unwrap();
    assert_eq!(counter(line, "packets"), 500);
    let pps = counter(line, "pps");
    assert!((9000..=10_500).contains(&pps), "{line}");
}

#[test]
fn source_takes_orders_one_after_another() {
    let mut bench = Bench::new("app=source ip=10.0.0.2/24 control=11");
    let (control, data) = (bench.host.udp(5000), bench.host.udp(9));
    let ask = |bench: &mut Bench, text: &str| {
        bench.host.sockets.get_mut::<udp::Socket>(control).send_slice(text.as_bytes(), (v4(), 11)).unwrap();
        bench.until(|bench| bench.host.sockets.get_mut::<udp::Socket>(control).can_recv());
        let (bytes, _) = bench.host.sockets.get_mut::<udp::Socket>(control).recv().unwrap();
        String::from_utf8(bytes.to_vec()).unwrap()
    };
    assert_eq!(ask(&mut bench, "stats"), "sent=0 done=1 elapsed_ns=0");
    for bad in
        ["send size=60", "send to=10.0.0.1:9 size=49", "send to=10.0.0.1:9 speed=3", "send to=10.0.0.1:0"]
    {
        assert_eq!(ask(&mut bench, bad), "not understood", "{bad}");
    }
    for size in [60, 1514] {
        assert_eq!(
            ask(&mut bench, &alloc::format!("send to=10.0.0.1:9 size={size} count=300 rate=0\n")),
            "started"
        );
        bench.run(50);
        let progress = ask(&mut bench, "stats");
        assert!(progress.starts_with("sent=300 done=1 elapsed_ns="), "{progress}");
        let mut seen = 0;
        while let Ok((bytes, _)) = bench.host.sockets.get_mut::<udp::Socket>(data).recv() {
            assert_eq!(bytes.len(), size - 42);
            assert_eq!(u64::from_be_bytes(bytes[..8].try_into().unwrap()), seen);
            seen += 1;
        }
        assert_eq!(seen, 300);
    }
    assert_eq!(ask(&mut bench, "send to=10.0.0.1:9 size=60 count=100000 rate=1000"), "started");
    assert_eq!(ask(&mut bench, "send to=10.0.0.1:9"), "busy");
}

#[test]
fn source_sends_bytes_to_who_reads_and_to_the_next_one() {
    let mut bench = Bench::new("app=source ip=10.0.0.2/24 control=11");
    for local_port in [6000, 6001] {
        let stream = bench.host.connect(v4(), 11, local_port);
        let mut got = 0;
        bench.until(|bench| {
            let socket = bench.host.sockets.get_mut::<tcp::Socket>(stream);
            while socket.can_recv() {
                got += socket.recv(|data| (data.len(), data.len())).unwrap();
            }
            got > 1_000_000
        });
        bench.host.sockets.get_mut::<tcp::Socket>(stream).close();
        bench.run(100);
    }
}

#[test]
fn an_idle_guest_sleeps_without_end_and_stops_when_asked() {
    let settings = Settings::parse("app=sink ip=10.0.0.2/24,fd00::2/64").unwrap();
    let (guest, peer) = wire();
    let mut host = Host::new(peer, &["10.0.0.1/24"]);
    let armed = Rc::clone(&guest.armed);
    let mut console = String::new();
    let mut machine = FakeMachine {
        now_ns: MS,
        nics: Vec::from([(0, guest)]),
        changes: VecDeque::from([Change::Up(0)]),
        slept: Vec::new(),
        world: Box::new(|now_ns, changes| {
            host.poll(now_ns);
            if now_ns > 60_000 * MS {
                changes.push_back(Change::Stop(Request::PowerOff));
            }
            Some(now_ns + 5000 * MS)
        }),
    };
    assert_eq!(run(&mut machine, &mut console, &settings, SEED), Ended::Asked(Request::PowerOff));
    assert_eq!(machine.slept.last(), Some(&None), "nothing is due on an idle guest: {:?}", machine.slept);
    assert!(machine.slept.len() < 30);
    assert!(armed.get() >= machine.slept.len(), "armed before every sleep");
    assert_eq!(console.lines().filter(|line| line.starts_with("sink: packets=0 ")).count(), 1);
}

#[test]
fn interfaces_come_and_go() {
    let settings = Settings::parse("ip=10.0.0.2/24 ip1=10.1.0.2/24").unwrap();
    let (first, first_peer) = wire();
    let (second, second_peer) = wire();
    let mut hosts = [Host::new(first_peer, &["10.0.0.1/24"]), Host::new(second_peer, &["10.1.0.1/24"])];
    let sockets = [hosts[0].udp(5000), hosts[1].udp(5000)];
    let answers = RefCell::new([0, 0]);
    let mut script = [
        (100, Change::Up(1)),
        (200, Change::Down(1)),
        (250, Change::Up(1)),
        (300, Change::Gone(1)),
        (500, Change::Stop(Request::Reboot)),
    ]
    .into_iter()
    .peekable();
    let mut console = String::new();
    let mut machine = FakeMachine {
        now_ns: MS,
        nics: Vec::from([(0, first), (1, second)]),
        changes: VecDeque::from([Change::Up(0)]),
        slept: Vec::new(),
        world: Box::new(|now_ns, changes| {
            for (at, host) in hosts.iter_mut().enumerate() {
                let socket = host.sockets.get_mut::<udp::Socket>(sockets[at]);
                while socket.recv().is_ok() {
                    answers.borrow_mut()[at] += 1;
                }
                socket.send_slice(b"hi", (IpAddress::v4(10, at as u8, 0, 2), 7)).unwrap();
                host.poll(now_ns);
            }
            changes.extend(script.next_if(|(at_ms, _)| *at_ms <= now_ns / MS).map(|(_, change)| change));
            Some(now_ns + MS)
        }),
    };
    assert_eq!(run(&mut machine, &mut console, &settings, SEED), Ended::Asked(Request::Reboot));
    let answers = answers.borrow();
    assert!(answers[0] > 400, "{answers:?}");
    assert!(answers[1] > 150 && answers[1] < 320, "{answers:?}");
    for line in ["net: vif1: down", "net: vif1: gone"] {
        assert!(console.contains(line), "{console}");
    }
}

#[test]
fn a_stream_survives_a_new_backend_with_another_mtu() {
    let mut bench = Bench::new(STATIC);
    let stream = bench.host.connect(v4(), 7, 6000);
    let talk = |bench: &mut Bench, text: &[u8]| {
        let handle = stream;
        bench.until(|bench| bench.host.sockets.get_mut::<tcp::Socket>(handle).can_send());
        bench.host.sockets.get_mut::<tcp::Socket>(handle).send_slice(text).unwrap();
        bench.until(|bench| bench.host.sockets.get_mut::<tcp::Socket>(handle).recv_queue() == text.len());
        let mut got = [0; 16];
        let len = bench.host.sockets.get_mut::<tcp::Socket>(handle).recv_slice(&mut got).unwrap();
        assert_eq!(&got[..len], text);
    };
    talk(&mut bench, b"before");
    bench.nic.frame_bytes = 9014;
    bench.link.revive(&mut bench.nic, bench.now_ns).unwrap();
    talk(&mut bench, b"after");
}

#[test]
fn a_mac_of_many_is_refused() {
    let settings = Settings::parse("").unwrap();
    for mac in [[1, 0, 0, 0, 0, 1], [0xff; 6], [0; 6]] {
        let (mut nic, _) = wire();
        nic.mac = mac;
        assert!(Link::new(0, "vif", &mut nic, settings.addressing(0), 1, 0).is_err());
    }
}

#[test]
fn check_compares_every_byte_that_comes_back() {
    for (flip, verdict, sum) in [(0, " same\n", "check: 1 of 1"), (1, " DIFFERENT\n", "check: 0 of 1")] {
        let mut bench = Bench::new("app=check ip=10.0.0.2/24 to=10.0.0.1:7 bytes=200000");
        let socket = bench.host.listen(7);
        let mut buffer = alloc::vec![0; 65_535];
        let mut echoed = 0;
        bench.until(|bench| {
            let peer = bench.host.sockets.get_mut::<tcp::Socket>(socket);
            if peer.can_recv() && peer.send_queue() == 0 {
                let len = peer.recv_slice(&mut buffer).unwrap();
                if (echoed..echoed + len).contains(&77_777) {
                    buffer[77_777 - echoed] ^= flip;
                }
                peer.send_slice(&buffer[..len]).unwrap();
                echoed += len;
            }
            if peer.state() == tcp::State::CloseWait && !peer.can_recv() {
                peer.close();
            }
            bench.console.contains(verdict)
        });
        assert!(bench.console.contains("10.0.0.1:7 sent=200000"), "{}", bench.console);
        assert!(bench.console.contains("received=200000"), "{}", bench.console);
        bench.link.finish(bench.now_ns, &mut bench.console);
        assert!(bench.console.contains(sum), "{}", bench.console);
    }
}

#[test]
fn check_says_so_where_nobody_listens() {
    let mut bench = Bench::new("app=check ip=10.0.0.2/24 to=10.0.0.1:7");
    bench.until(|bench| bench.console.contains("received=0"));
    bench.run(50);
    assert_eq!(bench.link.turn(&mut bench.nic, None, bench.now_ns, &mut bench.console), Turn::Done);
}

/// The README's example: an app of a user's own, with a setting of its own.
mod own_app {
    use alloc::string::ToString;

    use super::*;
    use crate::app::{App, AppKind, Next, Role, Spread};
    use crate::net::{Net, UdpHandle};
    use crate::settings::Key;

    const PORT: Key = Key { name: "port", form: "a UDP port, 1 to 65535" };

    static KINDS: &[AppKind] = &[AppKind {
        name: "shout",
        keys: &[PORT],
        spread: Spread::EveryInterface,
        role: Role::Host,
        configure: |words| {
            let port = words.port(&PORT)?.unwrap_or(4000);
            Ok(Box::new(move |net| Box::new(Shout { udp: net.open_udp(port), buffer: [0; 1500] })))
        },
    }];

    struct Shout {
        udp: UdpHandle,
        buffer: [u8; 1500],
    }

    impl App for Shout {
        fn poll(&mut self, net: &mut Net<'_>) -> Next {
            let mut udp = net.udp(self.udp);
            while let Some(datagram) = udp.receive() {
                let (len, answer) = (datagram.bytes.len(), datagram.answer());
                let Some(copy) = self.buffer.get_mut(..len) else { continue };
                copy.copy_from_slice(datagram.bytes);
                copy.make_ascii_uppercase();
                let _ = udp.send(copy, answer);
            }
            Next::OnTraffic
        }
    }

    #[test]
    fn is_configured_started_and_run() {
        let settings = Settings::parse_with("app=shout port=4001 ip=10.0.0.2/24", KINDS).unwrap();
        let mut bench = Bench::with(&settings);
        let socket = bench.host.udp(5000);
        bench.host.sockets.get_mut::<udp::Socket>(socket).send_slice(b"hello", (v4(), 4001)).unwrap();
        bench.until(|bench| bench.host.sockets.get_mut::<udp::Socket>(socket).can_recv());
        assert_eq!(bench.host.sockets.get_mut::<udp::Socket>(socket).recv().unwrap().0, b"HELLO");
        let error = Settings::parse_with("app=echo", KINDS).unwrap_err();
        assert_eq!(error.to_string(), "app=echo: expected shout");
    }
}

/// A machine that counts looks at its clock.
struct Watched<'a> {
    machine: FakeMachine<'a>,
    looks: core::cell::Cell<usize>,
}

impl Machine for Watched<'_> {
    type Nic = FakeNic;
    const PREFIX: &'static str = "vif";

    fn now_ns(&self) -> u64 {
        self.looks.set(self.looks.get() + 1);
        self.machine.now_ns()
    }
    fn cpu_ns(&self) -> Option<u64> {
        None
    }
    fn sleep(&mut self, until_ns: Option<u64>) {
        self.machine.sleep(until_ns);
    }
    fn next_change(&mut self) -> Option<Change> {
        self.machine.next_change()
    }
    fn nics(&mut self, numbers: [u32; 2]) -> [Option<&mut FakeNic>; 2] {
        self.machine.nics(numbers)
    }
    fn nic(&mut self, number: u32) -> Option<&mut FakeNic> {
        self.machine.nic(number)
    }
}

#[test]
fn a_lone_frame_is_answered_with_one_look_at_the_clock() {
    let settings = Settings::parse("app=sink ip=10.0.0.2/24").unwrap();
    let (guest, peer) = wire();
    let mut host = Host::new(peer, &["10.0.0.1/24"]);
    let socket = host.udp(5000);
    let (mut asked, mut answered) = (0, 0);
    let machine = FakeMachine {
        now_ns: 5 * MS,
        nics: Vec::from([(0, guest)]),
        changes: VecDeque::from([Change::Up(0)]),
        slept: Vec::new(),
        world: Box::new(|now_ns, changes| {
            host.poll(now_ns);
            let udp = host.sockets.get_mut::<udp::Socket>(socket);
            while udp.recv().is_ok() {
                answered += 1;
            }
            if answered == 50 {
                changes.push_back(Change::Stop(Request::PowerOff));
            } else if asked == answered {
                asked += 1;
                udp.send_slice(b"stats", (v4(), 10)).unwrap();
                host.poll(now_ns);
            }
            Some(now_ns + MS)
        }),
    };
    let mut machine = Watched { machine, looks: core::cell::Cell::new(0) };
    run(&mut machine, &mut String::new(), &settings, SEED);
    let (looks, slept) = (machine.looks.get(), machine.machine.slept.len());
    drop(machine);
    assert_eq!(answered, 50);
    assert!(looks < slept + 10, "{looks} looks in {slept} sleeps");
}
