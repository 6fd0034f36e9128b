//! Scenarios on our backend: who is served, and what a guest's coming and going does to the others.
//! Knows the daemon by its commands only.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use drayage_peer::report::RecvReport;

use super::Scenario;
use super::bench::{Bench, CONSOLE};
use crate::backend::{self, Daemon};
use crate::demo::guests::{GUEST_IP, GUEST_MAC, HOST_IP, linux, ours, stock_vif};
use crate::dom0::{Guest, Mode, Start, parse_last_line};

/// The daemon's TAP in dom0.
const TAP: &str = "dry0";

/// A second guest beside the one of [`GUEST_IP`].
const OTHER_IP: &str = "10.0.0.3";
const OTHER_MAC: &str = "00:16:3e:00:00:03";

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario { name: "xen::drayage::pv_guest_answers", run: |bench| answers(bench, Mode::Pv) },
        Scenario { name: "xen::drayage::pvh_guest_answers", run: |bench| answers(bench, Mode::Pvh) },
        Scenario { name: "xen::drayage::linux_pv_netfront", run: |bench| linux_netfront(bench, Mode::Pv) },
        Scenario { name: "xen::drayage::linux_pvh_netfront", run: |bench| linux_netfront(bench, Mode::Pvh) },
        Scenario { name: "xen::drayage::attach_to_a_running_guest", run: attach_running },
        Scenario { name: "xen::drayage::beside_netback", run: beside_netback },
        Scenario { name: "xen::drayage::two_guests_at_once", run: two_guests },
        Scenario { name: "xen::drayage::second_vif_by_hotplug", run: second_vif },
        Scenario { name: "xen::drayage::detach_and_attach_under_traffic", run: detach_under_traffic },
        Scenario {
            name: "xen::drayage::shutdown_in_mid_traffic",
            run: |bench| end_under_traffic(bench, "xl shutdown"),
        },
        Scenario {
            name: "xen::drayage::destroy_in_mid_traffic",
            run: |bench| end_under_traffic(bench, "xl destroy"),
        },
        Scenario { name: "xen::drayage::reboot_is_remembered", run: reboot },
        Scenario { name: "xen::drayage::daemon_exit_closes_the_vif", run: daemon_exit },
        Scenario { name: "xen::drayage::every_packet_of_a_source_arrives", run: source },
        Scenario { name: "xen::drayage::idle_daemon_uses_no_cpu", run: idle },
        Scenario { name: "xen::drayage::uplinks_on_a_veth_and_a_capture", run: uplinks },
    ]
}

fn echo_guest(name: &str, mode: Mode, ip: &str) -> Guest {
    ours(name, mode, &format!("app=echo ip={ip}/24"))
}

/// Creates a paused guest, attaches it to the daemon's TAP, and lets it run.
fn create_attached(bench: &mut Bench, guest: &Guest, mac: &str) -> Result<()> {
    bench.dom0.create(guest, Start::Paused)?;
    attach(bench, &guest.name, mac)?;
    bench.dom0.unpause(&guest.name)
}

fn attach(bench: &mut Bench, name: &str, mac: &str) -> Result<()> {
    attach_with(bench, name, mac, "")
}

/// Attaches a domain to the daemon's TAP, with further options, and gives dom0 its address there.
pub(super) fn attach_with(bench: &mut Bench, name: &str, mac: &str, options: &str) -> Result<()> {
    backend::attach(bench.dom0, name, mac, &format!("--port tap:{TAP} {options}"))?;
    let up = format!(
        "ip link set {TAP} up; ip addr show dev {TAP} | grep -q {HOST_IP} || ip addr add {HOST_IP}/24 dev {TAP}"
    );
    bench.dom0.shell(&up).map(drop)
}

fn answers(bench: &mut Bench, mode: Mode) -> Result<()> {
    let daemon = Daemon::start(bench.dom0)?;
    create_attached(bench, &echo_guest("echo", mode, GUEST_IP), GUEST_MAC)?;
    bench.await_answer(GUEST_IP)?;
    bench.compare_echoes(GUEST_IP)?;
    let stats = backend::stats(bench.dom0)?;
    for direction in ["rx", "tx"] {
        let containers = stats["interfaces"][0][direction]["containers"].as_u64();
        ensure!(containers.is_some_and(|count| count > 0), "no {direction} containers: {stats}");
    }
    bench.dom0.shell("xl shutdown echo")?;
    bench.await_console("echo", "drayage-guest: exit ok")?;
    bench.await_gone("echo")?;
    let left =
        bench.dom0.attempt("xenstore-ls -f /local/domain/0/backend | grep -v '/vif/' | grep frontend-id")?;
    ensure!(left.output.trim().is_empty(), "nodes of a guest that is gone:\n{}", left.output);
    daemon.stop(bench.dom0)
}

/// A stock Linux netfront gets an address by DHCP, pings, and passes TCP through our backend.
fn linux_netfront(bench: &mut Bench, mode: Mode) -> Result<()> {
    let daemon = Daemon::start(bench.dom0)?;
    let script =
        "ip link set lo up; ip link set eth0 up; udhcpc -i eth0 -f -q -s /bin/lease; peer serve-echo";
    create_attached(bench, &linux("linux", mode, script), GUEST_MAC)?;
    crate::run::serve_dhcp(bench.dom0, TAP)?;
    let line = bench.await_console("linux", "leased")?;
    let ip = line.split_whitespace().last().unwrap_or_default().to_owned();
    bench.await_answer(&ip)?;
    bench.compare_echoes(&ip)?;
    bench.dom0.destroy("linux")?;
    daemon.stop(bench.dom0)
}

fn attach_running(bench: &mut Bench) -> Result<()> {
    let daemon = Daemon::start(bench.dom0)?;
    bench.dom0.create(&echo_guest("late", Mode::Pvh, GUEST_IP), Start::Running)?;
    bench.await_console("late", "command line:")?;
    attach(bench, "late", GUEST_MAC)?;
    bench.await_answer(GUEST_IP)?;
    bench.compare_echoes(GUEST_IP)?;
    bench.dom0.destroy("late")?;
    daemon.stop(bench.dom0)
}

/// A dom0 with xen-netback loaded keeps serving its other guests.
fn beside_netback(bench: &mut Bench) -> Result<()> {
    let daemon = Daemon::start(bench.dom0)?;
    create_attached(bench, &echo_guest("ours", Mode::Pvh, GUEST_IP), GUEST_MAC)?;
    let mut stock = ours("stock", Mode::Pv, "app=echo ip=10.1.0.2/24");
    stock.vifs = vec![stock_vif(OTHER_MAC)];
    bench.create_on_stock(&stock, "10.1.0.1")?;
    for ip in [GUEST_IP, "10.1.0.2"] {
        bench.await_answer(ip)?;
        bench.compare_echoes(ip)?;
    }
    bench.dom0.destroy("ours")?;
    bench.compare_echoes("10.1.0.2")?;
    bench.dom0.destroy("stock")?;
    daemon.stop(bench.dom0)
}

fn two_guests(bench: &mut Bench) -> Result<()> {
    let daemon = Daemon::start(bench.dom0)?;
    create_attached(bench, &echo_guest("one", Mode::Pv, GUEST_IP), GUEST_MAC)?;
    create_attached(bench, &echo_guest("two", Mode::Pvh, OTHER_IP), OTHER_MAC)?;
    bench.await_answer(GUEST_IP)?;
    bench.await_answer(OTHER_IP)?;
    // At the same time: one in the background, the other here.
    let process = bench.dom0.spawn(&format!("peer tcp-echo {GUEST_IP} --bytes 4000000"))?;
    bench.compare_echoes(OTHER_IP)?;
    let finished = bench.dom0.agent().wait(&process, CONSOLE)?;
    ensure!(
        finished
            .as_ref()
            .is_some_and(|finished| finished.code == 0 && finished.output.contains("\"mismatched\":0")),
        "TCP to the first guest meanwhile: {finished:?}"
    );
    bench.dom0.destroy("one")?;
    bench.dom0.destroy("two")?;
    daemon.stop(bench.dom0)
}

/// A second interface that comes while the guest runs has settings of its own.
fn second_vif(bench: &mut Bench) -> Result<()> {
    let daemon = Daemon::start(bench.dom0)?;
    let guest = ours("hotplug", Mode::Pvh, &format!("app=echo ip={GUEST_IP}/24 ip1={OTHER_IP}/24"));
    create_attached(bench, &guest, GUEST_MAC)?;
    bench.await_answer(GUEST_IP)?;
    attach(bench, "hotplug", OTHER_MAC)?;
    bench.await_answer(OTHER_IP)?;
    bench.compare_echoes(OTHER_IP)?;
    bench.compare_echoes(GUEST_IP)?;
    bench.dom0.destroy("hotplug")?;
    daemon.stop(bench.dom0)
}

fn detach_under_traffic(bench: &mut Bench) -> Result<()> {
    let daemon = Daemon::start(bench.dom0)?;
    create_attached(bench, &echo_guest("again", Mode::Pvh, GUEST_IP), GUEST_MAC)?;
    bench.await_answer(GUEST_IP)?;
    for _ in 0..3 {
        let traffic = start_traffic(bench, GUEST_IP)?;
        backend::detach(bench.dom0, "again")?;
        bench.dom0.agent().kill(&traffic, 9)?;
        bench.dom0.agent().wait(&traffic, CONSOLE)?;
        daemon.check(bench.dom0)?;
        attach(bench, "again", GUEST_MAC)?;
        bench.await_answer(GUEST_IP)?;
        bench.compare_echoes(GUEST_IP)?;
    }
    bench.dom0.destroy("again")?;
    daemon.stop(bench.dom0)
}

/// A guest that ends in mid-traffic costs the other guest nothing.
fn end_under_traffic(bench: &mut Bench, command: &str) -> Result<()> {
    let daemon = Daemon::start(bench.dom0)?;
    create_attached(bench, &echo_guest("ends", Mode::Pvh, GUEST_IP), GUEST_MAC)?;
    create_attached(bench, &echo_guest("stays", Mode::Pv, OTHER_IP), OTHER_MAC)?;
    bench.await_answer(GUEST_IP)?;
    bench.await_answer(OTHER_IP)?;
    let traffic = start_traffic(bench, GUEST_IP)?;
    bench.dom0.shell(&format!("{command} ends"))?;
    bench.await_gone("ends")?;
    daemon.check(bench.dom0)?;
    bench.compare_echoes(OTHER_IP)?;
    bench.dom0.agent().kill(&traffic, 9)?;
    bench.dom0.agent().wait(&traffic, CONSOLE)?;
    let zombies = bench.dom0.shell("xl list | tail -n +3 | grep -v stays | cat")?;
    ensure!(zombies.trim().is_empty(), "a domain is held by somebody:\n{zombies}");
    bench.dom0.destroy("stays")?;
    daemon.stop(bench.dom0)
}

/// Starts frames towards an address that go on until they are stopped.
fn start_traffic(bench: &mut Bench, ip: &str) -> Result<crate::agent::Process> {
    let process = bench.dom0.spawn(&format!(
        "peer send --dev {TAP} --dst-mac {GUEST_MAC} --dst-ip {ip} --src-ip {HOST_IP} --dst-port 7 \
         --frame 252 --rate 1000 --count 100000000"
    ))?;
    let early = bench.dom0.agent().wait(&process, Duration::from_millis(500))?;
    ensure!(early.is_none(), "the sender ended at once: {early:?}");
    Ok(process)
}

/// An attachment is remembered for the domain's UUID.
fn reboot(bench: &mut Bench) -> Result<()> {
    let daemon = Daemon::start(bench.dom0)?;
    create_attached(bench, &echo_guest("reboots", Mode::Pvh, GUEST_IP), GUEST_MAC)?;
    bench.await_answer(GUEST_IP)?;
    let first = bench.dom0.domain_id("reboots")?;
    bench.dom0.shell("xl reboot reboots")?;
    bench.dom0.await_console("reboots", 0, &["drayage-guest: exit ok"], CONSOLE)?;
    let at = bench.dom0.console("reboots")?.find("exit ok").unwrap_or_default() as u64;
    bench.dom0.await_console("reboots", at, &["command line:"], CONSOLE)?;
    bench.await_answer(GUEST_IP)?;
    bench.compare_echoes(GUEST_IP)?;
    ensure!(bench.dom0.domain_id("reboots")? != first, "the domain has not been rebooted");
    bench.dom0.destroy("reboots")?;
    daemon.stop(bench.dom0)
}

/// The daemon closes its vifs in order, and the guest lives on without them.
fn daemon_exit(bench: &mut Bench) -> Result<()> {
    let daemon = Daemon::start(bench.dom0)?;
    create_attached(bench, &echo_guest("lives", Mode::Pvh, GUEST_IP), GUEST_MAC)?;
    bench.await_answer(GUEST_IP)?;
    daemon.stop(bench.dom0)?;
    let left = bench.dom0.shell("cat /sys/class/net/dry0/operstate 2>/dev/null; true")?;
    ensure!(!left.contains("up"), "the TAP still has a carrier");
    bench.dom0.shell("xl shutdown lives")?;
    bench.await_console("lives", "drayage-guest: exit ok")?;
    bench.await_gone("lives")
}

/// What our guest sends is counted by a socket of dom0's Linux.
fn source(bench: &mut Bench) -> Result<()> {
    const COUNT: u64 = 20_000;
    let daemon = Daemon::start(bench.dom0)?;
    let reader =
        bench.dom0.spawn(&format!("peer recv --port 9 --count {COUNT} --idle-ms 3000 --timeout-ms 30000"))?;
    let settings = format!("app=source ip={GUEST_IP}/24 to={HOST_IP}:9 size=252 rate=5000 count={COUNT}");
    create_attached(bench, &ours("source", Mode::Pvh, &settings), GUEST_MAC)?;
    let Some(finished) = bench.dom0.agent().wait(&reader, 2 * CONSOLE)? else {
        bail!("the reader got neither all packets nor silence")
    };
    let report: RecvReport = parse_last_line(&finished.output)?;
    ensure!(report.packets == COUNT && report.out_of_order == 0, "of {COUNT} packets: {report:?}");
    bench.dom0.shell("xl destroy source || ! xl domid source")?;
    bench.await_gone("source")?;
    daemon.stop(bench.dom0)
}

fn idle(bench: &mut Bench) -> Result<()> {
    let daemon = Daemon::start(bench.dom0)?;
    create_attached(bench, &echo_guest("quiet", Mode::Pvh, GUEST_IP), GUEST_MAC)?;
    bench.await_answer(GUEST_IP)?;
    // IPv6 announcements of the new device are over after this.
    bench.dom0.shell_within("sleep 5", Duration::from_secs(20))?;
    let (before, guest_before) = (daemon.cpu_ms(bench.dom0)?, bench.cpu_seconds("quiet")?);
    bench.dom0.shell_within("sleep 5", Duration::from_secs(20))?;
    let used_ms = daemon.cpu_ms(bench.dom0)? - before;
    let guest_used = bench.cpu_seconds("quiet")? - guest_before;
    ensure!(used_ms <= 30, "an idle daemon used {used_ms} ms of CPU time in 5 s");
    ensure!(guest_used <= 0.1, "an idle guest used {guest_used:.1} s of CPU time in 5 s");
    bench.dom0.destroy("quiet")?;
    daemon.stop(bench.dom0)
}

/// The guest is behind one end of a veth, by packet socket with either ring and then by AF_XDP; dom0's own stack is at the other.
fn uplinks(bench: &mut Bench) -> Result<()> {
    const NEAR: &str = "dry-near";
    const FAR: &str = "dry-far";
    const FILE: &str = "/tmp/uplink.pcapng";
    let daemon = Daemon::start(bench.dom0)?;
    bench.dom0.shell(&format!(
        "/usr/sbin/ip link add {NEAR} type veth peer name {FAR} && ip link set {NEAR} up && \
         ip addr add {HOST_IP}/24 dev {NEAR}"
    ))?;
    bench.dom0.create(&echo_guest("uplink", Mode::Pvh, GUEST_IP), Start::Paused)?;
    let ports = [format!("packet:{FAR}"), format!("packet:{FAR},ring=v3"), format!("xdp:{FAR}")];
    for (at, port) in ports.iter().enumerate() {
        backend::attach(bench.dom0, "uplink", GUEST_MAC, &format!("--port {port}"))?;
        if at == 0 {
            bench.dom0.unpause("uplink")?;
        }
        bench.await_answer(GUEST_IP)?;
        let capture =
            bench.dom0.spawn(&format!("drayage capture --port {port} --write {FILE} --count 50"))?;
        bench.compare_echoes(GUEST_IP)?;
        let finished = bench.dom0.agent().wait(&capture, CONSOLE)?;
        ensure!(
            finished.as_ref().is_some_and(|finished| finished.output.contains("50 packets in")),
            "the capture of {port}: {finished:?}"
        );
        let text = bench.dom0.shell(&format!("strings {FILE} 2>/dev/null || cat {FILE}"))?;
        ensure!(text.contains("in container") && text.contains("held"), "no container is named in {FILE}");
        let stats = backend::stats(bench.dom0)?;
        let uplink = &stats["uplinks"][0];
        let count = |name: &str| uplink[name].as_u64().unwrap_or_default();
        ensure!(uplink["port"] == port.as_str() && count("wakeups") > 0, "the uplink's counters: {uplink}");
        ensure!(count("send_drops") + count("receive_drops") == 0, "losses without need: {uplink}");
        backend::detach(bench.dom0, "uplink")?;
        let left = bench.dom0.shell(&format!("/usr/sbin/ip link show {FAR}"))?;
        ensure!(!left.contains("xdp") && !left.contains("PROMISC"), "{FAR} is not as it was: {left}");
    }
    bench.dom0.destroy("uplink")?;
    bench.dom0.shell(&format!("/usr/sbin/ip link del {NEAR}"))?;
    daemon.stop(bench.dom0)
}
