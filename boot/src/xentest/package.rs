//! Scenarios on the Debian package: it is installed in dom0, its files are used where they were put, and it goes again.
//! Knows the package by its paths only.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Scenario;
use super::bench::Bench;
use super::service;
use crate::backend::{self, Daemon};
use crate::demo::guests::{GUEST_IP, GUEST_MAC, HOST_IP, ours};
use crate::dom0::{Mode, Start};
use crate::images::inside;
use crate::package::installed;

/// The daemon's TAP in dom0.
const TAP: &str = "dry0";

/// Where its counters are served.
const METRICS: &str = "127.0.0.1:9481";

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario { name: "xen::package::installed_in_dom0_it_serves_a_guest", run: serve },
        Scenario { name: "xen::package::systemd_runs_its_unit", run: service::run },
    ]
}

/// dpkg, by its path because the shell has one built in. It misses `ldconfig`, which it does not run for us.
pub(super) const DPKG: &str = "/usr/bin/dpkg --force-bad-path";

/// Installs the package, or puts it in its own place as an upgrade does; `through` goes before the command.
pub(super) fn install(bench: &mut Bench, through: &str) -> Result<()> {
    let package = inside::PACKAGE;
    let done = bench.dom0.shell(&format!(
        "{through} {DPKG} -i {package} 2>&1 && cd / && md5sum -c /var/lib/dpkg/info/drayage.md5sums"
    ));
    done.map(drop)
}

/// Removes the package (`-r`) or purges it (`-P`), and returns what dpkg printed; `through` goes before the command. The
/// program and the hotplug script stay for the other scenarios, as what belongs to no package.
pub(super) fn remove(bench: &mut Bench, through: &str, how: &str) -> Result<String> {
    let (program, guest, script) = (installed::PROGRAM, installed::GUEST, installed::VIF_SCRIPT);
    bench.dom0.shell(&format!(
        "mkdir -p /drayage/kept && cp -p {program} {script} /drayage/kept && {through} {DPKG} {how} drayage 2>&1; code=$?; \
         test ! -e {program} -a ! -e {guest}; gone=$?; cd /drayage/kept && cp -p drayage {program} && \
         cp -p vif-drayage {script}; exit $((code + gone))"
    ))
}

fn serve(bench: &mut Bench) -> Result<()> {
    install(bench, "")?;
    let config = installed::CONFIGURATION;
    bench.dom0.shell(&format!(
        "grep -q '^{config}$' /var/lib/dpkg/info/drayage.conffiles && test -f {config} && \
         test ! -e /etc/systemd/system/multi-user.target.wants && \
         zcat /usr/share/man/man8/drayage-attach.8.gz | grep -q locked && \
         grep -q attach /usr/share/bash-completion/completions/drayage"
    ))?;
    bench.dom0.shell("drayage doctor")?;

    let program = installed::PROGRAM;
    ensure!(bench.dom0.shell("command -v drayage")?.trim() == program, "another drayage is found first");
    let daemon = Daemon::start_with(bench.dom0, &format!("--config {config} --metrics {METRICS}"))?;
    let mut guest = ours("packaged", Mode::Pvh, &format!("app=echo ip={GUEST_IP}/24"));
    guest.kernel = installed::GUEST.into();
    bench.dom0.create(&guest, Start::Paused)?;
    backend::attach(bench.dom0, "packaged", GUEST_MAC, &format!("--port tap:{TAP}"))?;
    bench.dom0.shell(&format!(
        "ip link set {TAP} up; ip addr show dev {TAP} | grep -q {HOST_IP} || ip addr add {HOST_IP}/24 dev {TAP}"
    ))?;
    bench.dom0.unpause("packaged")?;
    bench.await_answer(GUEST_IP)?;
    bench.compare_echoes(GUEST_IP)?;
    sandboxed(bench)?;
    scraped(bench)?;
    bench.dom0.destroy("packaged")?;
    daemon.stop(bench.dom0)?;
    remove(bench, "", "-r").map(drop)
}

/// The daemon has what it needs, and no more.
pub(super) fn sandboxed(bench: &mut Bench) -> Result<()> {
    let checks: Vec<Value> = serde_json::from_str(&bench.dom0.shell("drayage doctor --json")?)?;
    let check = checks.iter().find(|check| check["name"] == "sandbox").context("no check of the sandbox")?;
    let found = check["found"].as_str().unwrap_or_default();
    let filtered = check["verdict"] == "ok" && found.contains("CAP_NET_ADMIN") && found.contains("filtered");
    ensure!(filtered && !found.contains("CAP_SYS_ADMIN"), "the sandbox is not in force: {check}");
    Ok(())
}

/// What Prometheus gets is what the command line shows: counters only grow, so a scrape between two readings is
/// between them.
fn scraped(bench: &mut Bench) -> Result<()> {
    let before = backend::stats(bench.dom0)?;
    let text = bench.dom0.shell(&format!("wget -q -O - http://{METRICS}/metrics"))?;
    let after = backend::stats(bench.dom0)?;
    ensure!(text.trim_end().ends_with("# EOF"), "not the whole text:\n{text}");
    let vif = "name=\"packaged\",domain=";
    for (metric, label, path) in [
        ("drayage_vif_packets_total", "direction=\"rx\"", "/interfaces/0/rx/packets"),
        ("drayage_vif_packets_total", "direction=\"tx\"", "/interfaces/0/tx/packets"),
        ("drayage_vif_bytes_total", "direction=\"rx\"", "/interfaces/0/rx/bytes"),
        ("drayage_vif_containers_total", "direction=\"tx\"", "/interfaces/0/tx/containers"),
        ("drayage_vif_flushes_total", "reason=\"idle\"", "/interfaces/0/flushes/idle"),
        ("drayage_vif_hypercalls_total", "", "/interfaces/0/hypercalls"),
        ("drayage_vif_hold_seconds_count", "", "/interfaces/0/hold/packets"),
    ] {
        let line = text.lines().find(|line| {
            line.starts_with(&format!("{metric}{{")) && line.contains(vif) && line.contains(label)
        });
        let value = line.and_then(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok());
        let value = value.with_context(|| format!("no {metric} with {label}:\n{text}"))?;
        let bound = |stats: &Value| stats.pointer(path).and_then(Value::as_u64);
        let (low, high) = (bound(&before), bound(&after));
        let between = low.is_some_and(|low| low <= value) && high.is_some_and(|high| value <= high);
        ensure!(between, "{metric} {label} is {value}, and {path} was {low:?} and then {high:?}");
    }
    Ok(())
}
