//! Scenarios of staged grants: pages that a backend maps once, maps again after its end, and by which no domain is
//! held when it is gone. Knows the daemon by its commands only.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::Scenario;
use super::bench::{Bench, CONSOLE};
use super::restart::Traffic;
use crate::backend::{self, Daemon};
use crate::demo::guests::{GUEST_IP, GUEST_MAC, HOST_IP, ours, stock_vif};
use crate::dom0::{Mode, Start};

/// The daemon's TAP in dom0.
const TAP: &str = "dry0";

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario { name: "xen::staged::pv_guest_costs_no_grant_copy", run: |bench| answers(bench, Mode::Pv) },
        Scenario {
            name: "xen::staged::pvh_guest_costs_no_grant_copy",
            run: |bench| answers(bench, Mode::Pvh),
        },
        Scenario { name: "xen::staged::a_killed_daemons_successor_maps_again", run: killed },
        Scenario { name: "xen::staged::no_zombie_after_destroy", run: destroy },
        Scenario { name: "xen::staged::stock_netback_supports_it_not", run: stock },
    ]
}

fn attach(bench: &mut Bench, name: &str, options: &str) -> Result<()> {
    backend::attach(bench.dom0, name, GUEST_MAC, &format!("--staged on {options} --port tap:{TAP}"))?;
    let up = format!(
        "ip link set {TAP} up; ip addr show dev {TAP} | grep -q {HOST_IP} || ip addr add {HOST_IP}/24 dev {TAP}"
    );
    bench.dom0.shell(&up).map(drop)
}

fn create(bench: &mut Bench, name: &str, mode: Mode, options: &str) -> Result<()> {
    bench.dom0.create(&ours(name, mode, &format!("app=echo ip={GUEST_IP}/24 staged=on")), Start::Paused)?;
    attach(bench, name, options)?;
    bench.dom0.unpause(name)?;
    bench.await_answer(GUEST_IP)
}

/// Waits until the daemon has mapped both pools of the only guest.
fn await_mapped(bench: &mut Bench) -> Result<Value> {
    bench.dom0.shell(
        "for n in $(seq 100); do drayage stats --json | grep -qE '\"pages\": *512' && exit 0; usleep 50000; done; \
         drayage stats; exit 1",
    )?;
    backend::stats(bench.dom0)
}

/// Returns a number of the only interface.
fn number(stats: &Value, path: &str) -> Result<u64> {
    let value = stats["interfaces"][0].pointer(path).and_then(Value::as_u64);
    value.ok_or_else(|| anyhow::anyhow!("no {path} in {stats}"))
}

/// Everything arrives, no container costs a grant copy, and detaching and shutting down wait for no page.
fn answers(bench: &mut Bench, mode: Mode) -> Result<()> {
    let daemon = Daemon::start(bench.dom0)?;
    create(bench, "staged", mode, "")?;
    bench.await_console("staged", "staged rx=in-place tx=on")?;
    let before = await_mapped(bench)?;
    bench.compare_echoes(GUEST_IP)?;
    let after = backend::stats(bench.dom0)?;
    let list = bench.dom0.shell("drayage list")?;
    ensure!(
        list.lines().any(|line| line.contains("staged") && line.contains("512")),
        "the mode is not shown:\n{list}"
    );
    for direction in ["rx", "tx"] {
        let grown = |what: &str| -> Result<u64> {
            let path = format!("/{direction}/{what}");
            Ok(number(&after, &path)? - number(&before, &path)?)
        };
        ensure!(grown("grant_ops")? == 0, "grant copies of {direction}: {before}\n{after}");
        let (containers, mapped, slots) = (grown("containers")?, grown("mapped_ops")?, grown("slots")?);
        ensure!(containers > 0 && mapped == slots, "of {direction}: {before}\n{after}");
    }
    // Attached again, by a backend that is not to be trusted.
    let at = bench.dom0.console_len("staged")?;
    backend::detach(bench.dom0, "staged")?;
    attach(bench, "staged", "--trusted off")?;
    bench.dom0.await_console("staged", at, &["staged rx=copied tx=on"], CONSOLE)?;
    bench.await_answer(GUEST_IP)?;
    bench.compare_echoes(GUEST_IP)?;
    bench.dom0.shell("xl shutdown staged")?;
    bench.await_console("staged", "drayage-guest: exit ok")?;
    bench.await_gone("staged")?;
    ensure!(!bench.dom0.console("staged")?.contains("did not let go"), "pages came back late");
    daemon.stop(bench.dom0)
}

/// A stream goes on over a daemon that is killed, and what the next one maps again costs no grant copy.
fn killed(bench: &mut Bench) -> Result<()> {
    let daemon = Daemon::start(bench.dom0)?;
    create(bench, "stays", Mode::Pvh, "")?;
    await_mapped(bench)?;
    let traffic = Traffic::start(bench)?;
    traffic.check(bench)?;
    daemon.kill(bench.dom0)?;
    let daemon = Daemon::start(bench.dom0)?;
    let before = await_mapped(bench)?;
    traffic.check(bench)?;
    let after = backend::stats(bench.dom0)?;
    for direction in ["rx", "tx"] {
        let path = format!("/{direction}/grant_ops");
        let (mapped, copied) = (format!("/{direction}/mapped_ops"), number(&after, &path)?);
        ensure!(
            copied == number(&before, &path)?,
            "grant copies after the pages were mapped: {before}\n{after}"
        );
        ensure!(number(&after, &mapped)? > number(&before, &mapped)?, "{before}\n{after}");
    }
    traffic.end(bench)?;
    ensure!(!bench.dom0.console("stays")?.contains("panic"), "the guest noticed");
    bench.dom0.destroy("stays")?;
    no_zombies(bench)?;
    daemon.stop(bench.dom0)
}

/// Neither a daemon that serves on nor one that was killed holds a domain that is gone.
fn destroy(bench: &mut Bench) -> Result<()> {
    let daemon = Daemon::start(bench.dom0)?;
    create(bench, "ends", Mode::Pvh, "")?;
    bench.await_console("ends", "staged rx=in-place tx=on")?;
    let traffic = bench.dom0.spawn(&format!(
        "peer send --dev {TAP} --dst-mac {GUEST_MAC} --dst-ip {GUEST_IP} --src-ip {HOST_IP} --dst-port 7 \
         --frame 252 --rate 5000 --count 100000000"
    ))?;
    let early = bench.dom0.agent().wait(&traffic, Duration::from_millis(500))?;
    ensure!(early.is_none(), "the sender ended at once: {early:?}");
    bench.dom0.destroy("ends")?;
    no_zombies(bench)?;
    bench.dom0.agent().kill(&traffic, 9)?;
    bench.dom0.agent().wait(&traffic, CONSOLE)?;
    daemon.check(bench.dom0)?;
    create(bench, "orphan", Mode::Pv, "")?;
    bench.await_console("orphan", "staged rx=in-place tx=on")?;
    daemon.kill(bench.dom0)?;
    bench.dom0.destroy("orphan")?;
    no_zombies(bench)
}

/// Waits until no domain is left but dom0: what is mapped of a domain keeps it in the list.
fn no_zombies(bench: &mut Bench) -> Result<()> {
    let left = bench.dom0.shell(
        "for n in $(seq 50); do xl list | tail -n +3 | grep -q . || exit 0; usleep 100000; done; xl list | tail -n +3",
    )?;
    ensure!(left.trim().is_empty(), "a domain is held by somebody:\n{left}");
    Ok(())
}

/// Stock netback has the control ring and none of these requests.
fn stock(bench: &mut Bench) -> Result<()> {
    let mut guest = ours("plain", Mode::Pvh, &format!("app=echo ip={GUEST_IP}/24 staged=on"));
    guest.vifs = vec![stock_vif(GUEST_MAC)];
    bench.create_on_stock(&guest, HOST_IP)?;
    bench.await_console("plain", "staged rx=off tx=off")?;
    bench.await_answer(GUEST_IP)?;
    bench.compare_echoes(GUEST_IP)
}
