//! Scenarios in which `xl create` is all that an operator does: guests that the daemon's configuration names, and
//! interfaces of plain `vif` lines. Knows the daemon by its commands only.

use anyhow::{Result, ensure};

use super::Scenario;
use super::bench::Bench;
use crate::backend::Daemon;
use crate::demo::guests::{GUEST_IP, GUEST_MAC, HOST_IP, ours};
use crate::dom0::{Mode, Start};

/// The daemon's configuration.
const CONFIG: &str = "/run/drayage.toml";

/// Whether the kernel looks for a driver for each new backend device.
const AUTOPROBE: &str = "/sys/bus/xen-backend/drivers_autoprobe";

const HANGUP: i32 = 1;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario { name: "xen::by_xl::configured_guest_is_attached", run: configured },
        Scenario { name: "xen::by_xl::plain_vif_line", run: vif_line },
    ]
}

/// Makes a bridge with dom0's address.
fn bridge(bench: &mut Bench) -> Result<()> {
    let make = format!(
        "[ -e /sys/class/net/br0 ] || ip link add br0 type bridge; ip link set br0 up; \
         ip addr show dev br0 | grep -q {HOST_IP} || ip addr add {HOST_IP}/24 dev br0"
    );
    bench.dom0.shell(&make).map(drop)
}

fn configured(bench: &mut Bench) -> Result<()> {
    bridge(bench)?;
    let guest = |more: &str| {
        format!("[[guest]]\nname = \"named\"\nmac = \"{GUEST_MAC}\"\nport = \"tap:dry0,bridge=br0\"\n{more}")
    };
    bench.dom0.agent().write(CONFIG, &guest(""))?;
    bench.dom0.shell(&format!("drayage run --check --config {CONFIG}"))?;
    let daemon = Daemon::start_with(bench.dom0, &format!("--config {CONFIG}"))?;
    bench.dom0.create(&ours("named", Mode::Pvh, &format!("app=echo ip={GUEST_IP}/24")), Start::Running)?;
    bench.await_answer(GUEST_IP)?;
    bench.compare_echoes(GUEST_IP)?;
    // A mistake changes nothing.
    bench.dom0.agent().write(CONFIG, &guest("speed = 9\n"))?;
    let refused = bench.dom0.attempt("drayage reload")?;
    ensure!(refused.code == 2 && refused.output.contains("\"speed\""), "{refused:?}");
    bench.compare_echoes(GUEST_IP)?;
    // A change is not noticed by the guest: its address stays up.
    bench.dom0.agent().write(CONFIG, &guest("policy = \"fixed:size=8192,timeout=100\"\n"))?;
    let from = bench.dom0.console_len("named")?;
    daemon.signal(bench.dom0, HANGUP)?;
    bench.dom0.shell("until drayage list --json | grep -q 'fixed:size=8192'; do :; done")?;
    bench.compare_echoes(GUEST_IP)?;
    let printed = bench.dom0.console_len("named")? - from;
    ensure!(printed == 0, "the guest noticed: {}", bench.dom0.console("named")?);
    bench.dom0.agent().write(CONFIG, "")?;
    bench.dom0.shell("drayage reload; until [ \"$(drayage list --json)\" = '[]' ]; do :; done")?;
    bench.dom0.destroy("named")?;
    daemon.stop(bench.dom0)
}

fn vif_line(bench: &mut Bench) -> Result<()> {
    bridge(bench)?;
    let mut guest = ours("line", Mode::Pvh, &format!("app=echo ip={GUEST_IP}/24"));
    guest.vifs = vec![format!("mac={GUEST_MAC},bridge=br0,script=vif-drayage")];
    let daemon = Daemon::start(bench.dom0)?;
    // The kernel's netback would take it: xl is told, and no half of a guest remains.
    let refused = bench.dom0.create(&guest, Start::Running);
    let refused = refused.err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(refused.contains("drivers_autoprobe"), "xl create beside netback: {refused:?}");
    bench.dom0.forget("line");
    bench.dom0.shell(&format!("echo 0 > {AUTOPROBE}"))?;
    let result = served(bench, &guest, daemon);
    bench.dom0.shell(&format!("echo 1 > {AUTOPROBE}"))?;
    result
}

fn served(bench: &mut Bench, guest: &crate::dom0::Guest, daemon: Daemon) -> Result<()> {
    bench.dom0.create(guest, Start::Running)?;
    bench.await_answer(GUEST_IP)?;
    bench.compare_echoes(GUEST_IP)?;
    let id = bench.dom0.domain_id("line")?;
    let list = bench.dom0.shell("xl network-list line")?;
    ensure!(list.contains(GUEST_MAC) && list.contains("backend/vif"), "{list}");
    let ours = bench.dom0.shell("drayage list --json")?;
    ensure!(ours.contains("dry-br0") && ours.contains("connected"), "{ours}");
    daemon.kill(bench.dom0)?;
    let daemon = Daemon::start(bench.dom0)?;
    bench.compare_echoes(GUEST_IP)?;
    bench.dom0.destroy("line")?;
    bench.dom0.shell("[ \"$(drayage list --json)\" = '[]' ]")?;
    let left = bench.dom0.attempt(&format!("xenstore-ls /local/domain/0/backend/vif/{id}; xl list line"))?;
    ensure!(left.code != 0 && !left.output.contains("frontend"), "left behind:\n{}", left.output);
    daemon.stop(bench.dom0)
}
