//! Scenarios of stock Linux netfronts on our backend: what a frontend can do with its offloads, its MTU and its
//! own life, and every kind of guest with every other. Knows the daemon by its commands only.

use anyhow::{Context as _, Result, ensure};
use drayage_peer::report::{EchoReport, RecvReport};
use serde_json::Value;

use super::Scenario;
use super::bench::{Bench, CONSOLE};
use crate::backend::{self, Daemon};
use crate::demo::guests::{GUEST_IP, GUEST_MAC, HOST_IP, linux, ours};
use crate::dom0::{Guest, Mode, Start, parse_last_line};

/// The daemon's TAP in dom0.
const TAP: &str = "dry0";

/// What a Linux guest prints when it has given an interface its address.
const PLUGGED: &str = "plugged eth0";

const OTHER_IP: &str = "10.0.0.3";
const OTHER_MAC: &str = "00:16:3e:00:00:03";
const THIRD_IP: &str = "10.0.0.4";
const THIRD_MAC: &str = "00:16:3e:00:00:04";
const FOURTH_IP: &str = "10.0.0.5";
const FOURTH_MAC: &str = "00:16:3e:00:00:05";

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario { name: "xen::netfront::offloads_mtu_and_a_life", run: one_life },
        Scenario { name: "xen::netfront::every_guest_with_every_other", run: matrix },
    ]
}

/// Returns a Linux guest that keeps its address on whatever interface comes, and takes commands.
fn plugged(name: &str, mode: Mode, ip: &str) -> Guest {
    let script = format!(
        "echo {ip} > /run/address; uevent /bin/plug & SUBSYSTEM=net ACTION=add INTERFACE=eth0 /bin/plug; \
         peer serve-remote & peer serve-echo"
    );
    linux(name, mode, &script)
}

/// Makes the daemon's TAP, which it finds, with dom0's address on it. The shell's own `ip` knows no TAPs.
fn make_tap(bench: &mut Bench, mtu: u32) -> Result<()> {
    bench
        .dom0
        .shell(&format!(
            "/usr/sbin/ip tuntap del dev {TAP} mode tap; /usr/sbin/ip tuntap add dev {TAP} mode tap vnet_hdr && ip link set {TAP} mtu {mtu} up && \
             ip addr add {HOST_IP}/24 dev {TAP}"
        ))
        .map(drop)
}

fn remove_tap(bench: &mut Bench) -> Result<()> {
    bench.dom0.shell(&format!("/usr/sbin/ip tuntap del dev {TAP} mode tap")).map(drop)
}

fn create_attached(bench: &mut Bench, guest: &Guest, mac: &str) -> Result<()> {
    bench.dom0.create(guest, Start::Paused)?;
    backend::attach(bench.dom0, &guest.name, mac, &format!("--port tap:{TAP}"))?;
    bench.dom0.unpause(&guest.name)
}

/// Runs a shell command in a Linux guest, which must succeed, and returns what it printed.
fn in_guest(bench: &mut Bench, ip: &str, command: &str) -> Result<String> {
    bench
        .dom0
        .shell(&format!("peer remote {ip} '{command}'"))
        .with_context(|| format!("in the guest at {ip}"))
}

/// Returns a counter of the vif of a guest.
fn counter(bench: &mut Bench, guest: &str, path: &str) -> Result<u64> {
    let stats = backend::stats(bench.dom0)?;
    let vifs = stats["interfaces"].as_array().cloned().unwrap_or_default();
    let vif = vifs.iter().find(|vif| vif["name"] == guest).with_context(|| format!("no {guest}: {stats}"))?;
    vif.pointer(path).and_then(Value::as_u64).with_context(|| format!("no counter {path} in {vif}"))
}

/// Returns the TCP super-frames to a guest and from it.
fn super_frames(bench: &mut Bench, guest: &str) -> Result<[u64; 2]> {
    Ok([counter(bench, guest, "/rx/super_frames")?, counter(bench, guest, "/tx/super_frames")?])
}

/// Sends a stream through an echo service and back, and compares every byte.
fn stream_from_dom0(bench: &mut Bench, ip: &str, bytes: u64) -> Result<()> {
    let report: EchoReport = bench.dom0.json(&format!("peer tcp-echo {ip} --bytes {bytes}"), CONSOLE)?;
    ensure_same(&report)
}

fn ensure_same(report: &EchoReport) -> Result<()> {
    ensure!(report.mismatched == 0 && report.received_bytes == report.sent_bytes, "{report:?}");
    Ok(())
}

fn one_life(bench: &mut Bench) -> Result<()> {
    // Before the daemon, which opens the TAPs that it remembers.
    make_tap(bench, 9000)?;
    let daemon = Daemon::start(bench.dom0)?;
    let name = "linux";
    create_attached(bench, &plugged(name, Mode::Pvh, GUEST_IP), GUEST_MAC)?;
    bench.await_console(name, PLUGGED)?;
    bench.await_answer(GUEST_IP)?;
    bench.compare_echoes(GUEST_IP)?;
    segmentation_by_either_end(bench, name)?;
    jumbo_frames(bench, name)?;
    multicast(bench)?;
    comes_back(bench, name)?;
    daemon.check(bench.dom0)?;
    bench.dom0.destroy(name)?;
    jumbo_frames_to_ours(bench)?;
    daemon.stop(bench.dom0)?;
    remove_tap(bench)
}

/// TCP with the kernel's super-frames and without, in each direction apart.
fn segmentation_by_either_end(bench: &mut Bench, name: &str) -> Result<()> {
    for (towards, from) in [("on", "on"), ("off", "on"), ("on", "off"), ("off", "off")] {
        bench.dom0.shell(&format!("peer offload {TAP} tso={towards}"))?;
        in_guest(bench, GUEST_IP, &format!("peer offload eth0 tso={from}"))?;
        let before = super_frames(bench, name)?;
        stream_from_dom0(bench, GUEST_IP, 1 << 20)?;
        let after = super_frames(bench, name)?;
        for (direction, at, setting) in [("to", 0, towards), ("from", 1, from)] {
            let count = after[at] - before[at];
            let expected = if setting == "on" { count > 10 } else { count == 0 };
            ensure!(expected, "{count} super-frames {direction} the guest with tso={towards} and {from}");
        }
    }
    bench.dom0.shell(&format!("peer offload {TAP} tso=on"))?;
    in_guest(bench, GUEST_IP, "peer offload eth0 tso=on")?;
    Ok(())
}

/// Frames of an MTU of 9000 are sent in one piece, with super-frames of their segments and without.
fn jumbo_frames(bench: &mut Bench, name: &str) -> Result<()> {
    in_guest(bench, GUEST_IP, "ip link set eth0 mtu 9000")?;
    whole_datagrams(bench, name, GUEST_IP)?;
    for switch in ["on", "off"] {
        bench.dom0.shell(&format!("peer offload {TAP} tso={switch}"))?;
        in_guest(bench, GUEST_IP, &format!("peer offload eth0 tso={switch}"))?;
        let before = [counter(bench, name, "/rx/packets")?, counter(bench, name, "/tx/packets")?];
        stream_from_dom0(bench, GUEST_IP, 1 << 20)?;
        let after = [counter(bench, name, "/rx/packets")?, counter(bench, name, "/tx/packets")?];
        // As many bytes in packets of 1500 would be 724.
        for (before, after) in before.iter().zip(after) {
            ensure!(after - before < 500, "{} packets for 1 MiB, with tso={switch}", after - before);
        }
    }
    bench.dom0.shell(&format!("peer offload {TAP} tso=on"))?;
    in_guest(bench, GUEST_IP, "peer offload eth0 tso=on && ip link set eth0 mtu 1500")?;
    Ok(())
}

/// Sends datagrams that just fit an MTU of 9000 and compares what comes back, and that each was one packet.
fn whole_datagrams(bench: &mut Bench, name: &str, ip: &str) -> Result<()> {
    const COUNT: u64 = 100;
    let before = [counter(bench, name, "/rx/packets")?, counter(bench, name, "/tx/packets")?];
    let report: EchoReport =
        bench.dom0.json(&format!("peer udp-echo {ip} --count {COUNT} --bytes 8972"), CONSOLE)?;
    ensure_same(&report)?;
    let after = [counter(bench, name, "/rx/packets")?, counter(bench, name, "/tx/packets")?];
    for (before, after) in before.iter().zip(after) {
        ensure!(after - before < 2 * COUNT, "{} packets for {COUNT} datagrams", after - before);
    }
    Ok(())
}

/// Our own guest learns of the MTU by itself.
fn jumbo_frames_to_ours(bench: &mut Bench) -> Result<()> {
    create_attached(bench, &ours("jumbo", Mode::Pvh, &format!("app=echo ip={OTHER_IP}/24")), OTHER_MAC)?;
    bench.await_answer(OTHER_IP)?;
    bench.compare_echoes(OTHER_IP)?;
    whole_datagrams(bench, "jumbo", OTHER_IP)?;
    bench.dom0.destroy("jumbo")
}

/// A datagram to a group reaches a guest that has joined it.
fn multicast(bench: &mut Bench) -> Result<()> {
    let sender = bench.dom0.spawn(&format!(
        "peer send --dev {TAP} --dst-mac 01:00:5e:01:02:03 --dst-ip 239.1.2.3 --src-ip {HOST_IP} --dst-port 5000 \
         --rate 200 --count 1000000"
    ))?;
    let printed = in_guest(
        bench,
        GUEST_IP,
        "peer recv --port 5000 --join 239.1.2.3 --dev eth0 --count 50 --timeout-ms 20000 --idle-ms 2000",
    );
    bench.dom0.agent().kill(&sender, 9)?;
    bench.dom0.agent().wait(&sender, CONSOLE)?;
    let report: RecvReport = parse_last_line(&printed?)?;
    ensure!(report.packets >= 50, "{report:?}");
    Ok(())
}

/// Detached and attached again, and with its driver unloaded and loaded again, the guest goes on.
fn comes_back(bench: &mut Bench, name: &str) -> Result<()> {
    let at = bench.dom0.console_len(name)?;
    backend::detach(bench.dom0, name)?;
    backend::attach(bench.dom0, name, GUEST_MAC, &format!("--port tap:{TAP}"))?;
    bench.dom0.await_console(name, at, &[PLUGGED], CONSOLE)?;
    bench.await_answer(GUEST_IP)?;
    bench.compare_echoes(GUEST_IP).context("after it was attached again")?;

    let at = bench.dom0.console_len(name)?;
    // xenbus holds the module while a device is bound to it. The answer is lost with the interface.
    let command = "(echo vif-0 > /sys/bus/xen/drivers/vif/unbind && rmmod xen_netfront && \
                   insmod /modules/xen_netfront.ko) </dev/null >/dev/console 2>&1 &";
    let asking = bench.dom0.spawn(&format!("peer remote {GUEST_IP} '{command}'"))?;
    bench.dom0.await_console(name, at, &[PLUGGED], CONSOLE).context("after its driver was loaded again")?;
    bench.dom0.agent().kill(&asking, 9).ok();
    bench.dom0.agent().wait(&asking, CONSOLE)?;
    bench.await_answer(GUEST_IP)?;
    bench.compare_echoes(GUEST_IP).context("after its driver was loaded again")
}

/// Streams between two of ours, two Linux guests, and dom0 behind the uplink, both ways of each pair.
fn matrix(bench: &mut Bench) -> Result<()> {
    make_tap(bench, 1500)?;
    let daemon = Daemon::start(bench.dom0)?;
    // One of ours takes no super-frame whole.
    let small = format!("app=echo ip={FOURTH_IP}/24 container-bytes=4096");
    create_attached(bench, &plugged("linux1", Mode::Pv, GUEST_IP), GUEST_MAC)?;
    create_attached(bench, &plugged("linux2", Mode::Pv, OTHER_IP), OTHER_MAC)?;
    create_attached(bench, &ours("small", Mode::Pvh, &small), FOURTH_MAC)?;
    for guest in ["linux1", "linux2"] {
        bench.await_console(guest, PLUGGED)?;
    }
    let server = bench.dom0.spawn("peer serve-echo")?;
    for ip in [GUEST_IP, OTHER_IP, FOURTH_IP] {
        bench.await_answer(ip)?;
    }
    stream_from_dom0(bench, FOURTH_IP, 1 << 20).context("dom0 to ours with small containers")?;
    for to in [HOST_IP, OTHER_IP, FOURTH_IP] {
        let printed = in_guest(bench, GUEST_IP, &format!("peer tcp-echo {to} --bytes 1000000"));
        let report = parse_last_line(&printed?)?;
        ensure_same(&report).with_context(|| format!("Linux to {to}"))?;
    }
    let cut = counter(bench, "small", "/segmented")?;
    ensure!(cut > 20, "{cut} super-frames were cut for a guest with small containers");

    let services = [HOST_IP, GUEST_IP, FOURTH_IP].map(|ip| format!("{ip}:7")).join(",");
    let check = format!("app=check ip={THIRD_IP}/24 to={services} bytes=1000000");
    create_attached(bench, &ours("check", Mode::Pv, &check), THIRD_MAC)?;
    let line = bench.await_console("check", "services sent back")?;
    ensure!(line.contains("check: 3 of 3"), "{}", bench.dom0.console("check")?);
    bench.await_console("check", "drayage-guest: exit ok")?;
    bench.await_gone("check")?;
    bench.dom0.agent().kill(&server, 9)?;
    bench.dom0.agent().wait(&server, CONSOLE)?;
    for guest in ["linux1", "linux2", "small"] {
        bench.dom0.destroy(guest)?;
    }
    daemon.stop(bench.dom0)?;
    remove_tap(bench)
}
