//! What becomes of a running daemon, its guests and its files when its package is upgraded, removed, installed again and
//! purged, by Debian's own dpkg and systemd. Knows the package by its paths, and guests by their answers.

use anyhow::{Result, ensure};

use super::bench::Bench;
use super::package;
use super::service::{DAEMON, INSIDE, TAP, shown, systemctl};
use crate::backend;
use crate::demo::guests::{GUEST_IP, GUEST_MAC, HOST_IP};
use crate::package::installed;

/// Where dom0's files of the name are: all but the test bed's own, and a folder of others'.
const NAMED: &str = "find / \\( -path /proc -o -path /sys -o -path /drayage -o -path /var/log -o -path /run/drayage-daemon.pid \
                     \\) -prune -o -name '*drayage*' -print | sort";
/// What a line that the operator adds to the configuration says.
const OWN: &str = "# the operator's own";

/// Takes the package away from under a daemon that is stopped so far, and remembers a guest whose interface is on [`TAP`].
pub(super) fn run(bench: &mut Bench, guest: &str) -> Result<()> {
    systemctl(bench, "enable drayage")?;
    bench.dom0.shell(&format!("echo \"{OWN}\" >> {}", installed::CONFIGURATION))?;
    serve(bench)?;
    upgraded(bench)?;
    removed(bench, guest)?;
    // Nothing is started unasked; what was attached is so again.
    package::install(bench, INSIDE)?;
    let state = shown(bench, "ActiveState,UnitFileState")?;
    ensure!(state.contains("ActiveState=inactive") && state.contains("UnitFileState=enabled"), "{state}");
    bench.dom0.shell(&format!("grep -q \"{OWN}\" {}", installed::CONFIGURATION))?;
    serve(bench)?;
    purged(bench, guest)?;
    // As on a host that never had it.
    package::install(bench, INSIDE)?;
    let state = shown(bench, "ActiveState,UnitFileState")?;
    ensure!(state.contains("ActiveState=inactive") && state.contains("UnitFileState=disabled"), "{state}");
    systemctl(bench, "start drayage")?;
    backend::attach(bench.dom0, guest, GUEST_MAC, &format!("--port tap:{TAP}"))?;
    answers(bench)?;
    systemctl(bench, "stop drayage")?;
    package::remove(bench, INSIDE, "-P").map(drop)
}

/// Starts the daemon, to which the guest comes back by itself.
fn serve(bench: &mut Bench) -> Result<()> {
    systemctl(bench, "start drayage")?;
    answers(bench)
}

fn answers(bench: &mut Bench) -> Result<()> {
    bench.dom0.shell(&format!("ip addr add {HOST_IP}/24 dev {TAP}"))?;
    bench.await_answer(GUEST_IP)?;
    bench.compare_echoes(GUEST_IP)
}

/// An upgrade leaves the daemon alone that runs.
fn upgraded(bench: &mut Bench) -> Result<()> {
    let process = bench.dom0.shell(&format!("echo {DAEMON}"))?;
    package::install(bench, INSIDE)?;
    let state = shown(bench, "ActiveState,NRestarts")?;
    ensure!(state.contains("ActiveState=active") && state.contains("NRestarts=0"), "{state}");
    let after = bench.dom0.shell(&format!("echo {DAEMON}"))?;
    ensure!(process == after, "the daemon was {process}, and is {after}");
    bench.compare_echoes(GUEST_IP)
}

/// Removal ends the daemon in order, and forgets nothing.
fn removed(bench: &mut Bench, guest: &str) -> Result<()> {
    package::remove(bench, INSIDE, "-r")?;
    ended(bench, guest)?;
    let left = bench.dom0.shell(NAMED)?;
    for kept in [
        installed::CONFIGURATION,
        "/etc/systemd/system/multi-user.target.wants/drayage.service",
        "/run/drayage",
    ] {
        ensure!(left.lines().any(|path| path == kept), "{kept} is not kept: {left}");
    }
    let manual = left.lines().find(|path| path.starts_with("/usr/share") || path.starts_with("/usr/lib"));
    ensure!(manual.is_none(), "{manual:?} is left");
    Ok(())
}

/// Purging a package whose daemon runs does the same, and leaves nothing.
fn purged(bench: &mut Bench, guest: &str) -> Result<()> {
    package::remove(bench, INSIDE, "-P")?;
    ended(bench, guest)?;
    let left = bench.dom0.shell(NAMED)?;
    // Both are put back for other scenarios.
    let expected = [installed::VIF_SCRIPT, installed::PROGRAM];
    ensure!(left.lines().eq(expected), "left behind: {left}");
    let known = bench.dom0.attempt("dpkg-query -W drayage")?;
    ensure!(known.code != 0, "dpkg knows it still: {known:?}");
    Ok(())
}

/// Fails unless the daemon ended as it does when it is asked to: no process, no device and no node of its own is left. The
/// guest goes on without a network.
fn ended(bench: &mut Bench, guest: &str) -> Result<()> {
    let state = shown(bench, "LoadState,ActiveState")?;
    ensure!(state.contains("LoadState=not-found") && state.contains("ActiveState=inactive"), "{state}");
    let process = bench.dom0.shell(&format!("echo {DAEMON}"))?;
    ensure!(process.trim().is_empty(), "the daemon goes on: {process}");
    let device = bench.dom0.attempt(&format!("ls /sys/class/net/{TAP}"))?;
    ensure!(device.code != 0, "{TAP} is left");
    let nodes = bench.dom0.attempt("xenstore-ls /local/domain/0/backend/drayage")?;
    ensure!(nodes.code != 0 || nodes.output.trim().is_empty(), "nodes are left: {}", nodes.output);
    let domain = bench.dom0.domain_id(guest)?;
    let frontend = bench.dom0.attempt(&format!("xenstore-ls /local/domain/{domain}/device/vif"))?;
    ensure!(!frontend.output.contains("backend"), "the guest has an interface: {}", frontend.output);
    Ok(())
}
