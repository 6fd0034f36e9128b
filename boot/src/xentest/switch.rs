//! Scenarios on the switch inside our backend: two guests that only have each other, on two workers, and a guest
//! that is held to its rules. Knows the daemon by its commands only.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::Scenario;
use super::bench::Bench;
use crate::backend::{self, Daemon};
use crate::demo::guests::{GUEST_IP, GUEST_MAC, linux, ours};
use crate::dom0::{Mode, Start};

const SOURCE_IP: &str = "10.0.0.3";
const SOURCE_MAC: &str = "00:16:3e:00:00:03";
const HELD_IP: &str = "10.0.0.4";
const HELD_MAC: &str = "00:16:3e:00:00:04";

/// Datagrams from one guest to the other.
const COUNT: u64 = 20_000;

/// Frames that a guest sends although it may not.
const TRIES: u64 = 20;

/// Patience with what is sent.
const PATIENCE: Duration = Duration::from_secs(60);

/// The configuration of a daemon with two workers.
const TWO_WORKERS: &str = "/run/two-workers.toml";

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario { name: "xen::switch::guest_to_guest", run: guest_to_guest }]
}

/// A source sends to a sink through two workers and no uplink; then a Linux guest tries what it may not.
fn guest_to_guest(bench: &mut Bench) -> Result<()> {
    bench.dom0.shell(&format!("printf '[worker]\\nthreads = 2\\n' > {TWO_WORKERS}"))?;
    let daemon = Daemon::start_with(bench.dom0, &format!("--config {TWO_WORKERS}"))?;
    bench.dom0.create(&ours("sink", Mode::Pvh, &format!("app=sink ip={GUEST_IP}/24")), Start::Paused)?;
    backend::attach(bench.dom0, "sink", GUEST_MAC, "--isolated")?;
    let settings = format!("app=source ip={SOURCE_IP}/24 to={GUEST_IP}:9 size=252 rate=5000 count={COUNT}");
    bench.dom0.create(&ours("source", Mode::Pv, &settings), Start::Paused)?;
    backend::attach(bench.dom0, "source", SOURCE_MAC, "--locked-mac")?;
    bench.dom0.unpause("sink")?;
    bench.await_console("sink", "sink: ")?;
    bench.dom0.unpause("source")?;
    bench.dom0.await_console("source", 0, &[&format!("source: packets={COUNT} ")], PATIENCE)?;
    bench.dom0.await_console("sink", 0, &[&format!("packets={COUNT} ")], PATIENCE)?;
    let stats = backend::stats(bench.dom0)?;
    let crossed = trunks(&stats, "received");
    ensure!(crossed >= COUNT, "{crossed} frames went from one worker to the other: {stats}");
    bench.await_gone("source")?;
    rules(bench)?;
    bench.dom0.destroy("sink")?;
    daemon.stop(bench.dom0)
}

/// A stock guest that is isolated as the sink is does not reach it, and nobody in another's name.
fn rules(bench: &mut Bench) -> Result<()> {
    let send = |from: &str| {
        format!(
            "peer send --dev eth0 --dst-mac {GUEST_MAC} --src-mac {from} --dst-ip {GUEST_IP} \
             --src-ip {HELD_IP} --rate 200 --count {TRIES}"
        )
    };
    let script = format!(
        "ip link set eth0 up; ip addr add {HELD_IP}/24 dev eth0; {} && {} && echo tried; sleep 600",
        send(HELD_MAC),
        send("02:00:00:00:00:99")
    );
    bench.dom0.create(&linux("held", Mode::Pvh, &script), Start::Paused)?;
    backend::attach(bench.dom0, "held", HELD_MAC, "--locked-mac --isolated")?;
    let list: serde_json::Value = serde_json::from_str(&bench.dom0.shell("drayage list --json")?)?;
    let held = list.as_array().and_then(|all| all.iter().find(|one| one["name"] == "held"));
    let shown = held.is_some_and(|one| one["locked_mac"] == true && one["isolated"] == true);
    ensure!(shown, "its rules are not in the list: {list}");
    let before = rx_packets(&backend::stats(bench.dom0)?, "sink");
    bench.dom0.unpause("held")?;
    bench.dom0.await_console("held", 0, &["tried"], PATIENCE)?;
    let stats = backend::stats(bench.dom0)?;
    let drops = |reason: &str| interface(&stats, "held")["drops"][reason].as_u64().unwrap_or_default();
    // If the two are on different workers, the sink's is the one that drops what comes from an isolated guest.
    let elsewhere: u64 = trunks(&stats, "isolated");
    ensure!(drops("isolated") + elsewhere >= TRIES, "what it sent to the sink was not dropped: {stats}");
    ensure!(drops("wrong_source") >= TRIES, "what it sent from another address was not dropped: {stats}");
    ensure!(rx_packets(&stats, "sink") == before, "the sink got some of it: {before} before, {stats}");
    bench.dom0.destroy("held")
}

/// Returns the sum of what all workers counted on their trunks.
fn trunks(stats: &serde_json::Value, what: &str) -> u64 {
    let workers = stats["workers"].as_array();
    workers.map_or(0, |all| all.iter().filter_map(|worker| worker["trunks"][what].as_u64()).sum())
}

fn interface<'a>(stats: &'a serde_json::Value, name: &str) -> &'a serde_json::Value {
    let all = stats["interfaces"].as_array();
    all.and_then(|all| all.iter().find(|one| one["name"] == name)).unwrap_or(&serde_json::Value::Null)
}

fn rx_packets(stats: &serde_json::Value, name: &str) -> u64 {
    interface(stats, name)["rx"]["packets"].as_u64().unwrap_or_default()
}
