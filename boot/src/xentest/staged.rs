//! Scenarios of staged grants: pages that a backend maps once, maps again after its end, and by which no domain is
//! held when it is gone. Knows the daemon and the guests by their commands and counters only.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use drayage_peer::query::word;
use serde_json::Value;

use super::Scenario;
use super::bench::{Bench, CONSOLE};
use super::restart::Traffic;
use crate::backend::{self, Daemon};
use crate::demo::guests::{GUEST_IP, GUEST_MAC, HOST_IP, ours, stock_vif};
use crate::dom0::{Mode, Start};

/// The daemon's TAP in dom0.
const TAP: &str = "dry0";

/// Pages of both pools of an interface.
const PAGES: usize = 512;

/// The port on which `app=sink` tells its counters.
const COUNTERS: u16 = 10;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario { name: "xen::staged::no_grant_copy_and_mapped_again_after_a_kill", run: echo },
        Scenario { name: "xen::staged::no_revoke_and_no_zombie_after_destroy", run: sink },
        Scenario { name: "xen::staged::stock_netback_supports_it_not", run: stock },
    ]
}

fn attach(bench: &mut Bench, name: &str, options: &str) -> Result<()> {
    backend::attach(bench.dom0, name, GUEST_MAC, &format!("{options} --port tap:{TAP}"))?;
    let up = format!(
        "ip link set {TAP} up; ip addr show dev {TAP} | grep -q {HOST_IP} || ip addr add {HOST_IP}/24 dev {TAP}"
    );
    bench.dom0.shell(&up).map(drop)
}

fn create(bench: &mut Bench, name: &str, mode: Mode, app: &str, options: &str) -> Result<()> {
    let settings = format!("app={app} ip={GUEST_IP}/24 staged=on");
    bench.dom0.create(&ours(name, mode, &settings), Start::Paused)?;
    attach(bench, name, options)?;
    bench.dom0.unpause(name)?;
    bench.await_answer(GUEST_IP)
}

/// Waits until the daemon has mapped both pools of the only guest, and returns its counters.
fn await_mapped(bench: &mut Bench) -> Result<Value> {
    bench.dom0.shell(&format!(
        "for n in $(seq 100); do drayage stats --json | grep -qE '\"pages\": *{PAGES}' && exit 0; usleep 50000; done; \
         drayage stats; exit 1"
    ))?;
    backend::stats(bench.dom0)
}

/// Returns a number of the only interface.
fn number(stats: &Value, path: &str) -> Result<u64> {
    let value = stats["interfaces"][0].pointer(path).and_then(Value::as_u64);
    value.with_context(|| format!("no {path} in {stats}"))
}

/// Fails unless containers were moved between two looks, in both directions or one, and no page of theirs cost dom0 a
/// grant operation.
fn no_grant_operation(before: &Value, after: &Value, directions: &[&str]) -> Result<()> {
    let grown = |path: &str| -> Result<u64> { Ok(number(after, path)? - number(before, path)?) };
    for direction in directions {
        let of = |what: &str| grown(&format!("/{direction}/{what}"));
        ensure!(of("grant_ops")? == 0, "grant copies of {direction}: {before}\n{after}");
        let (containers, mapped, slots) = (of("containers")?, of("mapped_ops")?, of("slots")?);
        ensure!(containers > 0 && mapped == slots, "of {direction}: {before}\n{after}");
    }
    // Events are all that is left of hypercalls.
    ensure!(grown("/hypercalls")? == grown("/events_out")?, "hypercalls: {before}\n{after}");
    Ok(())
}

/// Everything arrives, also over a daemon that is killed and the one after it, and no container costs a grant copy where
/// pages are mapped. A backend that is not to be trusted maps them too. Shutting down waits for no page.
fn echo(bench: &mut Bench) -> Result<()> {
    let daemon = Daemon::start(bench.dom0)?;
    create(bench, "staged", Mode::Pvh, "echo", "--staged on")?;
    bench.await_console("staged", "staged rx=in-place tx=on")?;
    let before = await_mapped(bench)?;
    bench.compare_echoes(GUEST_IP)?;
    no_grant_operation(&before, &backend::stats(bench.dom0)?, &["rx", "tx"])?;
    let list = bench.dom0.shell("drayage list")?;
    ensure!(list.contains(&format!("staged ({PAGES} pages)")), "the mode is not shown:\n{list}");
    let traffic = Traffic::start(bench)?;
    traffic.check(bench)?;
    daemon.kill(bench.dom0)?;
    let daemon = Daemon::start(bench.dom0)?;
    let before = await_mapped(bench)?;
    traffic.check(bench)?;
    no_grant_operation(&before, &backend::stats(bench.dom0)?, &["rx", "tx"])?;
    traffic.end(bench)?;
    let at = bench.dom0.console_len("staged")?;
    backend::detach(bench.dom0, "staged")?;
    attach(bench, "staged", "--staged on --trusted off")?;
    bench.dom0.await_console("staged", at, &["staged rx=copied tx=on"], CONSOLE)?;
    bench.await_answer(GUEST_IP)?;
    bench.compare_echoes(GUEST_IP)?;
    bench.dom0.shell("xl shutdown staged")?;
    bench.await_console("staged", "drayage-guest: exit ok")?;
    bench.await_gone("staged")?;
    daemon.stop(bench.dom0)
}

/// Sends frames to the guest, and returns how many containers it then had counted, and pages that it revoked.
fn counted(bench: &mut Bench) -> Result<(u64, u64)> {
    let ask = |text: &str| format!("peer query {GUEST_IP} --port {COUNTERS} --text {text}");
    bench.dom0.shell(&ask("reset"))?;
    bench
        .dom0
        .shell(&format!("drayage generate --to held --ip {GUEST_IP} --count 5000 --rate 5000 --json"))?;
    let line = bench.dom0.shell(&(ask("stats") + " --still packets"))?;
    let number = |key: &str| -> Result<u64> {
        let text = word(&line, key).with_context(|| format!("no {key} in {line:?}"))?;
        text.parse().with_context(|| format!("{key} in {line:?}"))
    };
    Ok((number("containers")?, number("revokes")?))
}

/// The same guest in copy mode and in staged mode: a revoke for each page, and none. Then it is destroyed, with the daemon
/// alive and with it dead: nobody holds it any more.
fn sink(bench: &mut Bench) -> Result<()> {
    let daemon = Daemon::start(bench.dom0)?;
    create(bench, "held", Mode::Pv, "sink", "--staged off")?;
    let (containers, revokes) = counted(bench)?;
    ensure!(containers > 0 && revokes >= containers, "{revokes} revokes of {containers} containers");
    ensure!(number(&backend::stats(bench.dom0)?, "/rx/grant_ops")? > 0, "copy mode copies");
    let rings = daemon.mapped_grants(bench.dom0)?;
    let at = bench.dom0.console_len("held")?;
    backend::detach(bench.dom0, "held")?;
    attach(bench, "held", "--staged on")?;
    bench.dom0.await_console("held", at, &["staged rx=in-place tx=on"], CONSOLE)?;
    bench.await_answer(GUEST_IP)?;
    let before = await_mapped(bench)?;
    let (containers, revokes) = counted(bench)?;
    ensure!(containers > 0 && revokes == 0, "{revokes} revokes of {containers} containers");
    no_grant_operation(&before, &backend::stats(bench.dom0)?, &["rx", "tx"])?;
    let mapped = daemon.mapped_grants(bench.dom0)?;
    ensure!(rings > 0 && mapped > rings + PAGES, "{mapped} grants are mapped, {rings} without their pages");
    let traffic = bench.dom0.spawn(&format!(
        "peer send --dev {TAP} --dst-mac {GUEST_MAC} --dst-ip {GUEST_IP} --src-ip {HOST_IP} --dst-port 9 \
         --frame 252 --rate 5000 --count 100000000"
    ))?;
    let early = bench.dom0.agent().wait(&traffic, Duration::from_millis(500))?;
    ensure!(early.is_none(), "the sender ended at once: {early:?}");
    bench.dom0.destroy("held")?;
    nobody_holds_it(bench)?;
    let mapped = daemon.mapped_grants(bench.dom0)?;
    ensure!(mapped == 0, "{mapped} grants of a domain that is gone are mapped");
    bench.dom0.agent().kill(&traffic, 9)?;
    bench.dom0.agent().wait(&traffic, CONSOLE)?;
    daemon.check(bench.dom0)?;
    create(bench, "orphan", Mode::Pvh, "sink", "--staged on")?;
    await_mapped(bench)?;
    daemon.kill(bench.dom0)?;
    bench.dom0.destroy("orphan")?;
    nobody_holds_it(bench)
}

/// Waits until no domain is left but dom0: what is mapped of a domain keeps it in the list, as a zombie.
fn nobody_holds_it(bench: &mut Bench) -> Result<()> {
    let left = bench.dom0.shell(
        "for n in $(seq 50); do xl list | tail -n +3 | grep -q . || exit 0; usleep 100000; done; xl list | tail -n +3",
    )?;
    ensure!(left.trim().is_empty(), "a domain is held by somebody:\n{left}");
    Ok(())
}

/// Stock netback has the control ring, and answers `NOT_SUPPORTED` to these requests: the guest goes on without.
fn stock(bench: &mut Bench) -> Result<()> {
    let mut guest = ours("plain", Mode::Pvh, &format!("app=echo ip={GUEST_IP}/24 staged=on"));
    guest.vifs = vec![stock_vif(GUEST_MAC)];
    bench.create_on_stock(&guest, HOST_IP)?;
    let id = bench.dom0.domain_id("plain")?;
    let offer =
        bench.dom0.shell(&format!("xenstore-read /local/domain/0/backend/vif/{id}/0/feature-ctrl-ring"))?;
    ensure!(offer.trim() == "1", "this netback offers no control ring: {offer:?}");
    bench.await_console("plain", "staged rx=off tx=off: not supported by the backend")?;
    bench.await_answer(GUEST_IP)?;
    bench.compare_echoes(GUEST_IP)
}
