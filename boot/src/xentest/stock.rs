//! Scenarios on Xen's stock backend. Knows nothing of our backend.

use anyhow::{Result, ensure};
use drayage_peer::report::RegistersReport;

use super::Scenario;
use super::bench::{Bench, CONSOLE};
use crate::demo::guests::{GUEST_IP, GUEST_MAC, HOST_IP, linux, linux_reader_script, ours, stock_vif};
use crate::dom0::{Mode, Start};

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario { name: "xen::stock::pv_guests_keep_vector_registers", run: vector_registers },
        Scenario { name: "xen::stock::linux_pv_guest_answers", run: |bench| linux_answers(bench, Mode::Pv) },
        Scenario { name: "xen::stock::pv_guest_answers", run: |bench| ours_answers(bench, Mode::Pv) },
        Scenario { name: "xen::stock::pvh_guest_answers", run: |bench| ours_answers(bench, Mode::Pvh) },
        Scenario { name: "xen::stock::dhcp_lease", run: dhcp_lease },
        Scenario { name: "xen::stock::answers_again_after_a_reboot", run: reboot },
    ]
}

/// The test bed itself: two PV guests on one processor, without any network. Where Linux switches processes right
/// after Xen has switched guests, one guest's registers must not end up in a process of the other.
fn vector_registers(bench: &mut Bench) -> Result<()> {
    // Two processes each, so that Linux has something to switch between.
    let beside = "peer registers --seconds 600 & peer registers --seconds 600";
    let watched = "ip link set lo up; peer registers --seconds 4 > /run/report & peer registers --seconds 4; wait; \
                   cat /run/report; echo both reported; peer serve-echo";
    bench.dom0.create(&linux("beside", Mode::Pv, beside), Start::Running)?;
    bench.dom0.create(&linux("watched", Mode::Pv, watched), Start::Running)?;
    bench.await_console("watched", "both reported")?;
    let console = bench.dom0.console("watched")?;
    let reports: Vec<RegistersReport> =
        console.lines().filter_map(|line| serde_json::from_str(line.trim()).ok()).collect();
    ensure!(reports.len() == 2 && reports.iter().all(|report| report.looks > 100), "{console}");
    ensure!(reports.iter().all(|report| report.lost == 0), "registers were lost: {reports:?}");
    for name in ["beside", "watched"] {
        bench.dom0.destroy(name)?;
    }
    Ok(())
}

/// The test bed itself: where Linux does not answer, nothing else need be looked at.
fn linux_answers(bench: &mut Bench, mode: Mode) -> Result<()> {
    let mut guest = linux("linux", mode, &linux_reader_script());
    guest.vifs = vec![stock_vif(GUEST_MAC)];
    bench.create_on_stock(&guest, HOST_IP)?;
    bench.await_answer(GUEST_IP)?;
    bench.compare_echoes(GUEST_IP)
}

fn ours_answers(bench: &mut Bench, mode: Mode) -> Result<()> {
    let mut guest = ours("echo", mode, &format!("app=echo ip={GUEST_IP}/24"));
    guest.vifs = vec![stock_vif(GUEST_MAC)];
    bench.create_on_stock(&guest, HOST_IP)?;
    bench.await_answer(GUEST_IP)?;
    bench.compare_echoes(GUEST_IP)
}

/// Without a setting the guest asks a DHCP server.
fn dhcp_lease(bench: &mut Bench) -> Result<()> {
    let mut guest = ours("lease", Mode::Pvh, "app=echo");
    guest.vifs = vec![stock_vif(GUEST_MAC)];
    bench.create_on_stock(&guest, HOST_IP)?;
    let vif = format!("vif{}.0", bench.dom0.domain_id("lease")?);
    crate::run::serve_dhcp(bench.dom0, &vif)?;
    let line = bench.await_console("lease", "dhcp lease")?;
    let ip = line.split_whitespace().find_map(|word| word.strip_suffix("/24,").or(word.strip_suffix("/24")));
    ensure!(ip.is_some_and(|ip| ip.starts_with("10.0.0.")), "no address in {line:?}");
    bench.compare_echoes(ip.unwrap_or_default())
}

/// After `xl reboot` the new domain's vif is a new one of netback's, and is connected like the first.
fn reboot(bench: &mut Bench) -> Result<()> {
    let mut guest = ours("reboots", Mode::Pvh, &format!("app=echo ip={GUEST_IP}/24"));
    guest.vifs = vec![stock_vif(GUEST_MAC)];
    bench.create_on_stock(&guest, HOST_IP)?;
    bench.await_answer(GUEST_IP)?;
    let first = bench.dom0.domain_id("reboots")?;
    bench.dom0.shell("xl reboot reboots")?;
    let at = bench.dom0.await_console("reboots", 0, &["drayage-guest: exit ok"], CONSOLE)?.1;
    bench.dom0.await_console("reboots", at, &["command line:"], CONSOLE)?;
    bench.address_stock_vif("reboots", HOST_IP)?;
    bench.await_answer(GUEST_IP)?;
    bench.compare_echoes(GUEST_IP)?;
    ensure!(bench.dom0.domain_id("reboots")? != first, "the domain has not been rebooted");
    Ok(())
}
