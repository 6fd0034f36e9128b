//! Scenarios on when containers go out: the fixed policy's reasons, and the classes that do not wait. Knows the daemon by
//! its commands and its counters only.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use drayage_peer::report::PingReport;
use serde_json::Value;

use super::Scenario;
use super::bench::Bench;
use super::ours::attach_with;
use crate::backend::{self, Daemon};
use crate::demo::guests::{GUEST_IP, GUEST_MAC, ours};
use crate::dom0::{Mode, Start};

/// The guest of these scenarios.
const NAME: &str = "held";

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario { name: "xen::policy::fixed_goes_by_size_and_timeout", run: fixed },
        Scenario { name: "xen::policy::urgent_classes_do_not_wait", run: urgent },
    ]
}

/// Attaches a sink with some options.
fn create(bench: &mut Bench, options: &str) -> Result<()> {
    bench.dom0.create(&ours(NAME, Mode::Pvh, &format!("app=sink ip={GUEST_IP}/24")), Start::Paused)?;
    attach_with(bench, NAME, GUEST_MAC, options)?;
    bench.dom0.unpause(NAME)?;
    bench.await_answer(GUEST_IP)
}

/// Sends frames out of the daemon's own generator.
fn generate(bench: &mut Bench, count: u64, rate: Option<u64>) -> Result<Value> {
    let rate = rate.map_or(String::new(), |rate| format!("--rate {rate}"));
    let command = format!("drayage generate --to {NAME} --ip {GUEST_IP} --count {count} {rate} --json");
    let report: Value = bench.dom0.json(&command, Duration::from_secs(60))?;
    ensure!(report["sent"].as_u64() == Some(count), "of {count} frames: {report}");
    Ok(report)
}

/// Returns what the daemon counted of the guest's interface.
pub(super) fn counted(bench: &mut Bench) -> Result<Value> {
    Ok(backend::stats(bench.dom0)?["interfaces"][0].clone())
}

/// Returns the number at a path of what was counted.
pub(super) fn number(value: &Value, path: &str) -> Result<u64> {
    value.pointer(path).and_then(Value::as_u64).with_context(|| format!("no number {path} in {value}"))
}

/// Returns by how much a number grew.
pub(super) fn grown(before: &Value, after: &Value, path: &str) -> Result<u64> {
    Ok(number(after, path)? - number(before, path)?)
}

fn fixed(bench: &mut Bench) -> Result<()> {
    let daemon = Daemon::start(bench.dom0)?;
    create(bench, "--policy fixed:size=4096,timeout=5000 --urgent none")?;
    let start = counted(bench)?;
    ensure!(number(&start, "/flushes/idle")? == 0, "an idle guest flushes nothing: {start}");
    // Two packets in each timeout: none is ever full.
    generate(bench, 400, Some(400))?;
    let slow = counted(bench)?;
    let deadlines = grown(&start, &slow, "/flushes/deadline")?;
    ensure!((100..=400).contains(&deadlines), "{deadlines} timeouts for 400 packets a second: {slow}");
    // A wake-up that comes very late finds the table of a container full that expects few packets.
    let full = grown(&start, &slow, "/flushes/full")?;
    ensure!(full * 10 <= deadlines, "{full} were full, {deadlines} had a timeout: {slow}");
    // And as fast as it takes them: a page holds 60 at most.
    generate(bench, 50_000, None)?;
    let fast = counted(bench)?;
    let full = grown(&slow, &fast, "/flushes/full")? + grown(&slow, &fast, "/flushes/ring_end")?;
    ensure!(full >= 50_000 / 64, "{full} were full: {fast}");
    ensure!(number(&fast, "/flushes/class")? == 0, "nothing is urgent: {fast}");
    bench.dom0.destroy(NAME)?;
    daemon.stop(bench.dom0)
}

fn urgent(bench: &mut Bench) -> Result<()> {
    let daemon = Daemon::start(bench.dom0)?;
    // With a timeout of a second, nothing would answer in time that had to wait for it.
    create(bench, "--policy fixed:size=65536,timeout=1000000")?;
    let ping: PingReport =
        bench.dom0.json(&format!("peer ping {GUEST_IP} --interval-ms 900"), Duration::from_secs(30))?;
    ensure!(ping.answered == ping.sent && ping.mismatched == 0, "{ping:?}");
    let stats = counted(bench)?;
    ensure!(number(&stats, "/flushes/class")? >= 6, "an ARP answer or request, and pings: {stats}");
    let (class, containers) = (number(&stats, "/flushes/class")?, number(&stats, "/rx/containers")?);
    ensure!(class + 3 >= containers, "{class} of {containers} containers went for their class: {stats}");
    bench.dom0.destroy(NAME)?;
    daemon.stop(bench.dom0)
}
