//! What an operator meets in dom0: a bridge, both versions of IP, the checks of `doctor`, and messages that say what
//! is wrong. Knows the commands, and nothing of what is behind them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use drayage_peer::report::{EchoReport, PingReport};
use serde_json::Value;

use super::Scenario;
use super::bench::Bench;
use crate::backend::{self, Daemon};
use crate::demo::guests::{GUEST_MAC, ours};
use crate::dom0::{Mode, Start};

const NAME: &str = "bridged";
const BRIDGE: &str = "br7";
const TAP: &str = "dry7";
const HOST: [&str; 2] = ["10.7.0.1/24", "fd07::1/64"];
const GUEST: [&str; 2] = ["10.7.0.2", "fd07::2"];

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario { name: "xen::operator::doctor_finds_what_is_missing", run: doctor },
        Scenario { name: "xen::operator::bridge_and_both_ips_and_messages", run: bridge },
    ]
}

fn doctor(bench: &mut Bench) -> Result<()> {
    let daemon = Daemon::start(bench.dom0)?;
    let checks: Value = bench.dom0.json("drayage doctor --json", Duration::from_secs(20))?;
    let all = checks.as_array().map(Vec::as_slice).unwrap_or_default();
    ensure!(all.iter().all(|check| check["verdict"] != "bad"), "a check of a good dom0 is bad: {checks}");
    for name in [
        "xen",
        "/dev/xen/gntdev",
        "/dev/xen/evtchn",
        "/dev/net/tun",
        "/dev/vhost-net",
        "xenstore",
        "xen-netback",
        "daemon",
        "landlock",
    ] {
        let good = all.iter().any(|check| check["name"] == name && check["verdict"] == "ok");
        ensure!(good, "{name} is not good: {checks}");
    }
    // Which CPU is whose: both of the machine's are found, and dom0 has the first.
    let cores: Value = bench.dom0.json("drayage doctor --cores --json", Duration::from_secs(20))?;
    let of_first = cores["uses"][0]["runs"][0].as_str().unwrap_or_default();
    let found = cores["host"]["cpus"].as_array().map_or(0, Vec::len);
    ensure!(found == 2 && of_first == "Domain-0 vCPU 0: interrupts and worker 0", "{cores}");
    // One made bad: it is named, and what to do about it; the others stay good.
    bench.dom0.shell("mv /dev/net/tun /dev/net/tun.away")?;
    let found = bench.dom0.attempt("drayage doctor");
    bench.dom0.shell("mv /dev/net/tun.away /dev/net/tun")?;
    let found = found?;
    ensure!(found.code == 1, "exit code {} of:\n{}", found.code, found.output);
    let bad: Vec<&str> = found.output.lines().filter(|line| line.contains("BAD")).collect();
    ensure!(
        bad.len() == 1 && bad[0].contains("/dev/net/tun") && bad[0].contains("modprobe tun"),
        "{}",
        found.output
    );
    daemon.stop(bench.dom0)
}

fn bridge(bench: &mut Bench) -> Result<()> {
    let daemon = Daemon::start(bench.dom0)?;
    // A bridge without the delay of spanning trees, with dom0's own addresses, as a host's is.
    let [v4, v6] = HOST;
    bench.dom0.shell(&format!(
        "/usr/sbin/ip link del {BRIDGE} 2>/dev/null; /usr/sbin/ip link add {BRIDGE} type bridge forward_delay 0 && \
         echo 0 > /proc/sys/net/ipv6/conf/{BRIDGE}/accept_dad && ip link set {BRIDGE} up && \
         ip addr add {v4} dev {BRIDGE} && ip addr add {v6} dev {BRIDGE}"
    ))?;
    let settings = format!("app=echo ip={}/24,{}/64", GUEST[0], GUEST[1]);
    bench.dom0.create(&ours(NAME, Mode::Pvh, &settings), Start::Paused)?;
    backend::attach(bench.dom0, NAME, GUEST_MAC, &format!("--port tap:{TAP},bridge={BRIDGE}"))?;
    let master = bench.dom0.shell(&format!("/usr/sbin/ip -o link show dev {TAP}"))?;
    ensure!(master.contains(&format!("master {BRIDGE}")), "the TAP is on no bridge: {master}");
    let said = backend::log(bench.dom0)?;
    ensure!(said.contains("frames go to it by /dev/vhost-net"), "frames go to the TAP one by one:\n{said}");
    let list: Value = bench.dom0.json("drayage list --json", Duration::from_secs(20))?;
    ensure!(list[0]["port_by"] == "vhost", "{list}");
    let table = bench.dom0.shell("drayage list")?;
    ensure!(table.contains(&format!("tap:{TAP},bridge={BRIDGE} (vhost)")), "{table}");
    bench.dom0.unpause(NAME)?;
    for ip in GUEST {
        bench.await_answer(ip)?;
        let ping: PingReport =
            bench.dom0.json(&format!("peer ping {ip} --bytes 1400"), Duration::from_secs(30))?;
        ensure!(ping.answered == ping.sent && ping.mismatched == 0, "{ip}: {ping:?}");
        for command in ["udp-echo", "tcp-echo"] {
            let report: EchoReport =
                bench.dom0.json(&format!("peer {command} {ip}"), Duration::from_secs(60))?;
            let same = report.mismatched == 0 && report.received_bytes == report.sent_bytes;
            ensure!(same && report.sent_bytes > 0, "{ip}: {report:?}");
        }
    }
    whole_over_v6(bench)?;
    messages(bench)?;
    bench.dom0.destroy(NAME)?;
    daemon.stop(bench.dom0)?;
    bench.dom0.shell(&format!("/usr/sbin/ip link del {BRIDGE}")).map(drop)
}

/// Linux's super-frames over IPv6 reach our guest whole; what it sends back goes by the segment.
fn whole_over_v6(bench: &mut Bench) -> Result<()> {
    let count = |bench: &mut Bench, way: &str| -> Result<u64> {
        let stats = backend::stats(bench.dom0)?;
        stats["interfaces"][0][way]["super_frames"].as_u64().with_context(|| stats.to_string())
    };
    let before = [count(bench, "rx")?, count(bench, "tx")?];
    let command = format!("peer tcp-echo {} --bytes 1000000", GUEST[1]);
    let report: EchoReport = bench.dom0.json(&command, Duration::from_secs(60))?;
    ensure!(report.mismatched == 0 && report.received_bytes == 1_000_000, "{report:?}");
    let (whole, sent) = (count(bench, "rx")? - before[0], count(bench, "tx")? - before[1]);
    ensure!(whole > 10 && sent == 0, "{whole} super-frames over IPv6 to the guest, {sent} from it");
    Ok(())
}

/// Every error names the thing, and has the exit code that `--help` promises. The guest goes on.
fn messages(bench: &mut Bench) -> Result<()> {
    bench.dom0.shell("/usr/sbin/ip link del taken0 2>/dev/null; /usr/sbin/ip link add taken0 type dummy")?;
    for (command, code, named) in [
        ("attach nobody", 3, &["no domain \"nobody\"", NAME, "xl list"][..]),
        ("detach nobody", 3, &["nobody"]),
        (&format!("attach {NAME}"), 4, &[NAME, "attached already", "drayage detach"]),
        (&format!("attach {NAME} --vif 1 --port tap:taken0"), 4, &["taken0"]),
        (&format!("attach {NAME} --vif 1 --port tap:dry8,bridge=nowhere"), 3, &["nowhere"]),
        (
            &format!("attach {NAME} --vif 1 --port tap:dry8,vhost=yes"),
            2,
            &["\"yes\" is none of auto, on, off"],
        ),
        (&format!("attach {NAME} --vif 1 --policy soon"), 2, &["bad policy \"soon\"", "slo:delay=US"]),
        (&format!("attach {NAME} --vif 1 --policy slo:delay=1"), 2, &["delay 1 is not between"]),
        (&format!("attach {NAME} --vif 1 --urgent udp"), 2, &["\"udp\"", "tcp-ack"]),
        (&format!("attach {NAME} --vif 1 --mac 01:00:00:00:00:01"), 2, &["bad mac"]),
        ("attach Domain-0", 2, &["Domain-0", "runs in"]),
        ("run", 4, &["a daemon runs already"]),
        ("--socket /run/other.sock list", 7, &["/run/other.sock", "drayage run"]),
    ] {
        let said = bench.dom0.attempt(&format!("drayage {command}"))?;
        ensure!(said.code == code, "drayage {command}: exit code {} of:\n{}", said.code, said.output);
        let all = named.iter().all(|part| said.output.contains(part));
        ensure!(all && said.output.starts_with("drayage: "), "drayage {command}:\n{}", said.output);
    }
    bench.dom0.shell("/usr/sbin/ip link del taken0")?;
    let list: Value = bench.dom0.json("drayage list --json", Duration::from_secs(20))?;
    ensure!(list.as_array().is_some_and(|list| list.len() == 1), "what was refused left something: {list}");
    bench.await_answer(GUEST[0])
}
