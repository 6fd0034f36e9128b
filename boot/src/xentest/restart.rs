//! Scenarios of a backend that ends while its guests run: killed, replaced, and what is left of it. Knows the daemon
//! by its commands only.

use std::time::Duration;

use anyhow::{Result, ensure};
use drayage_peer::report::{EchoReport, PingReport};

use super::Scenario;
use super::bench::Bench;
use crate::agent::Process;
use crate::backend::{self, Daemon};
use crate::demo::guests::{GUEST_IP, GUEST_MAC, HOST_IP, linux, linux_reader_script, ours};
use crate::dom0::{Guest, Mode, Start, parse_last_line};

/// The daemon's TAP in dom0.
const TAP: &str = "dry0";

/// In dom0: the stream goes on for as long as this exists.
const STREAMING: &str = "/run/streaming";

/// How long the end of a transfer may take.
const TRANSFER: Duration = Duration::from_secs(90);

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "xen::restart::pvh_guest_does_not_notice",
            run: |bench| killed(bench, &ours("stays", Mode::Pvh, &format!("app=echo ip={GUEST_IP}/24"))),
        },
        Scenario {
            name: "xen::restart::pv_guest_does_not_notice",
            run: |bench| killed(bench, &ours("stays", Mode::Pv, &format!("app=echo ip={GUEST_IP}/24"))),
        },
        Scenario {
            name: "xen::restart::linux_netfront_does_not_notice",
            run: |bench| killed(bench, &linux("stays", Mode::Pvh, &linux_reader_script())),
        },
    ]
}

/// A TCP stream with an echo of every byte, and pings beside it.
pub(super) struct Traffic {
    tcp: Process,
    pings: Process,
}

impl Traffic {
    /// Starts it. The stream lasts for as long as backends come and go.
    pub(super) fn start(bench: &mut Bench) -> Result<Self> {
        bench.dom0.shell(&format!("touch {STREAMING}"))?;
        let tcp =
            bench.dom0.spawn(&format!("peer tcp-echo {GUEST_IP} --while {STREAMING} --timeout-ms 30000"))?;
        let pings = bench.dom0.spawn(&format!("peer ping {GUEST_IP} --count 100000 --interval-ms 200"))?;
        Ok(Self { tcp, pings })
    }

    /// Fails when there is no traffic any more.
    pub(super) fn check(&self, bench: &mut Bench) -> Result<()> {
        let early = bench.dom0.agent().wait(&self.tcp, Duration::from_millis(700))?;
        ensure!(early.is_none(), "the transfer has ended: {early:?}");
        Ok(())
    }

    /// Ends the stream, and judges it.
    pub(super) fn end(self, bench: &mut Bench) -> Result<()> {
        bench.dom0.shell(&format!("rm {STREAMING}"))?;
        let Some(finished) = bench.dom0.agent().wait(&self.tcp, TRANSFER)? else {
            anyhow::bail!("the transfer does not end:\n{}", backend::log(bench.dom0)?)
        };
        ensure!(finished.code == 0, "the connection did not survive: {finished:?}");
        let report: EchoReport = parse_last_line(&finished.output)?;
        ensure!(report.mismatched == 0 && report.received_bytes == report.sent_bytes, "{report:?}");
        bench.dom0.agent().kill(&self.pings, 9)?;
        bench.dom0.agent().wait(&self.pings, TRANSFER)?;
        let ping: PingReport = bench.dom0.json(&format!("peer ping {GUEST_IP} --bytes 1400"), TRANSFER)?;
        ensure!(ping.answered == ping.sent && ping.mismatched == 0, "{ping:?}");
        Ok(())
    }
}

/// Returns all that is held for a guest: nodes, grants with how often they are mapped, event channels, the TAP with
/// its address, and the ledgers of its rings.
fn held(bench: &mut Bench, name: &str) -> Result<String> {
    let id = bench.dom0.domain_id(name)?;
    let nodes = bench.dom0.shell(&format!(
        "xenstore-ls -f /local/domain/0/backend/drayage; xenstore-ls -f /local/domain/{id}/device/vif"
    ))?;
    let grants =
        bench.dom0.shell("xl dmesg -c > /dev/null; xl debug-keys g; xl dmesg | grep -F '[0x'; true")?;
    let events = bench.dom0.shell(&format!(
        "xl dmesg -c > /dev/null; xl debug-keys e; xl dmesg | grep 's=3' | grep -c 'd={id} '; true"
    ))?;
    let tap = bench.dom0.shell(&format!("cat /sys/class/net/{TAP}/ifindex; ip -o addr show dev {TAP}"))?;
    let rings = bench.dom0.shell("ls /run/drayage/rings")?;
    ensure!(grants.lines().count() >= 2, "no mapped grant is seen: {grants:?}");
    Ok(format!("{nodes}{grants}{events}{tap}{rings}"))
}

/// Returns the lines that only one of two texts has.
fn differing(before: &str, after: &str) -> String {
    let only = |one: &str, other: &str, sign: &str| -> String {
        let missing = one.lines().filter(|line| !other.lines().any(|known| known == *line));
        missing.map(|line| format!("{sign} {line}\n")).collect()
    };
    only(before, after, "-") + &only(after, before, "+")
}

/// The backend is killed, killed again, and replaced in order, under traffic.
fn killed(bench: &mut Bench, guest: &Guest) -> Result<()> {
    let mut daemon = Daemon::start(bench.dom0)?;
    bench.dom0.create(guest, Start::Paused)?;
    backend::attach(bench.dom0, &guest.name, GUEST_MAC, &format!("--port tap:{TAP}"))?;
    bench.dom0.shell(&format!("ip addr add {HOST_IP}/24 dev {TAP}"))?;
    bench.dom0.unpause(&guest.name)?;
    bench.await_answer(GUEST_IP)?;
    let id = bench.dom0.domain_id(&guest.name)?;
    bench.dom0.spawn(&format!(
        "xenstore-watch /local/domain/0/backend/drayage/{id}/0/state /local/domain/{id}/device/vif/0/state \
         > /run/states.log"
    ))?;
    let before = held(bench, &guest.name)?;
    let traffic = Traffic::start(bench)?;
    for _ in 0..3 {
        traffic.check(bench)?;
        daemon.kill(bench.dom0)?;
        daemon = Daemon::start(bench.dom0)?;
    }
    // The same in order: another one takes over, and the first ends well.
    traffic.check(bench)?;
    let next = Daemon::start_with(bench.dom0, "--takeover")?;
    daemon.left(bench.dom0)?;
    traffic.check(bench)?;
    // And by the signal that a service manager sends for it.
    next.signal(bench.dom0, 12)?;
    next.left(bench.dom0)?;
    let daemon = Daemon::start(bench.dom0)?;
    let second = bench.dom0.attempt("drayage run")?;
    ensure!(second.code == 4 && second.output.contains("already"), "a second daemon: {second:?}");
    traffic.end(bench)?;
    let after = held(bench, &guest.name)?;
    ensure!(before == after, "not held as before:\n{}", differing(&before, &after));
    let states = bench.dom0.shell("killall xenstore-watch; cat /run/states.log")?;
    ensure!(states.lines().count() == 2, "a state was written:\n{states}");
    let list = bench.dom0.shell("drayage list --json")?;
    ensure!(list.contains("\"connected\""), "{list}");
    daemon.stop(bench.dom0)?;
    let left = bench.dom0.attempt(&format!("ls /sys/class/net/{TAP} /run/drayage/rings/*"))?;
    ensure!(
        left.code != 0 && !left.output.contains("ifindex"),
        "left after an orderly end:\n{}",
        left.output
    );
    bench.dom0.destroy(&guest.name)
}
