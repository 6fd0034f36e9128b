//! Scenarios of a guest's life that need no backend of ours: how it starts, idles and ends. Knows
//! nothing of packets.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::Scenario;
use super::bench::{Bench, CONSOLE, mode_name};
use crate::demo::guests::ours;
use crate::dom0::{Mode, Start};

/// Last line of a guest that ended as it should.
const VERDICT: &str = "drayage-guest: exit ok";

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario { name: "xen::life::pv_shutdown_is_clean", run: |bench| shutdown(bench, Mode::Pv) },
        Scenario { name: "xen::life::pvh_shutdown_is_clean", run: |bench| shutdown(bench, Mode::Pvh) },
        Scenario { name: "xen::life::pv_reboot_comes_back", run: |bench| reboot(bench, Mode::Pv) },
        Scenario { name: "xen::life::pvh_reboot_comes_back", run: |bench| reboot(bench, Mode::Pvh) },
        Scenario { name: "xen::life::pv_memory_is_all_heap", run: |bench| memory(bench, Mode::Pv) },
        Scenario { name: "xen::life::pvh_memory_is_all_heap", run: |bench| memory(bench, Mode::Pvh) },
        Scenario {
            name: "xen::life::pv_takes_no_more_than_its_target",
            run: |bench| target(bench, Mode::Pv),
        },
        Scenario {
            name: "xen::life::pvh_takes_no_more_than_its_target",
            run: |bench| target(bench, Mode::Pvh),
        },
        Scenario { name: "xen::life::pv_idle_guest_uses_no_cpu", run: |bench| idle(bench, Mode::Pv) },
        Scenario { name: "xen::life::pvh_idle_guest_uses_no_cpu", run: |bench| idle(bench, Mode::Pvh) },
        Scenario { name: "xen::life::a_wrong_setting_ends_the_guest", run: wrong_setting },
        Scenario { name: "xen::life::two_boots_have_two_seeds", run: seeds },
        Scenario { name: "xen::life::a_suspend_is_declined", run: suspend },
    ]
}

fn shutdown(bench: &mut Bench, mode: Mode) -> Result<()> {
    let name = "shutdown";
    bench.dom0.create(&ours(name, mode, "app=echo ip=none"), Start::Running)?;
    bench.await_console(name, "command line:")?;
    bench.dom0.shell(&format!("xl shutdown {name}"))?;
    bench.await_console(name, VERDICT)?;
    bench.await_gone(name)
}

fn reboot(bench: &mut Bench, mode: Mode) -> Result<()> {
    let name = "reboot";
    bench.dom0.create(&ours(name, mode, "app=echo ip=none"), Start::Running)?;
    let first = bench.dom0.domain_id(name)?;
    bench.await_console(name, "command line:")?;
    bench.dom0.shell(&format!("xl reboot {name}"))?;
    bench.await_console(name, VERDICT)?;
    // The console's file goes on, so the next boot's line is one behind the verdict.
    let at = bench.dom0.console(name)?.find(VERDICT).unwrap_or_default() as u64;
    bench.dom0.await_console(name, at, &["command line:"], CONSOLE)?;
    let second = bench.dom0.domain_id(name)?;
    ensure!(second != first, "domain {first} is still the one of before");
    Ok(())
}

/// The boot line tells how much memory there is; nearly all of it must be usable.
fn memory(bench: &mut Bench, mode: Mode) -> Result<()> {
    for memory_mib in [8, 16, 64] {
        let name = format!("memory{memory_mib}");
        let mut guest = ours(&name, mode, "app=echo ip=none");
        guest.memory_mib = memory_mib;
        bench.dom0.create(&guest, Start::Running)?;
        let line = bench.await_console(&name, "memory:")?;
        let (given, usable) = given_and_usable_kib(&line)?;
        ensure!(
            given.abs_diff(u64::from(memory_mib) * 1024) <= 1024,
            "{memory_mib} MiB were given: {line:?}"
        );
        // The image, page tables, and what the domain builder keeps.
        ensure!(usable + 2048 >= given, "{} guest: more than 2 MiB are no heap: {line:?}", mode_name(mode));
        bench.dom0.destroy(&name)?;
    }
    Ok(())
}

/// With `maxmem` above `memory` the guest may ask for more than it is meant to have, and must not.
fn target(bench: &mut Bench, mode: Mode) -> Result<()> {
    let name = "target";
    let mut guest = ours(name, mode, "app=echo ip=none");
    guest.memory_mib = 32;
    guest.extra_lines = vec!["maxmem = 64".into()];
    bench.dom0.create(&guest, Start::Running)?;
    let line = bench.await_console(name, "memory:")?;
    let (_, usable) = given_and_usable_kib(&line)?;
    ensure!(usable <= 32 * 1024, "more than memory=32 allows: {line:?}");
    ensure!(usable >= 29 * 1024, "much less than memory=32 allows: {line:?}");
    let state = bench.dom0.shell(&format!("xl list {name}"))?;
    let used: u64 = state
        .lines()
        .last()
        .and_then(|line| line.split_whitespace().nth(2))
        .and_then(|field| field.parse().ok())
        .with_context(|| format!("xl list: {state:?}"))?;
    ensure!(used <= 33, "xl list says {used} MiB, 32 were asked for");
    Ok(())
}

/// Returns the numbers of "memory: N KiB given, M KiB usable as heap, …".
fn given_and_usable_kib(line: &str) -> Result<(u64, u64)> {
    let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [given, usable, ..] = numbers[..] else { anyhow::bail!("two numbers are missing in {line:?}") };
    Ok((given, usable))
}

fn idle(bench: &mut Bench, mode: Mode) -> Result<()> {
    let name = "idle";
    bench.dom0.create(&ours(name, mode, "app=echo ip=none"), Start::Running)?;
    bench.await_console(name, "command line:")?;
    let before = bench.cpu_seconds(name)?;
    bench.dom0.shell_within("sleep 5", Duration::from_secs(20))?;
    let used = bench.cpu_seconds(name)? - before;
    ensure!(used <= 0.1, "an idle guest used {used:.1} s of CPU time in 5 s");
    Ok(())
}

fn wrong_setting(bench: &mut Bench) -> Result<()> {
    let name = "wrong";
    let mut guest = ours(name, Mode::Pvh, "app=echo ip=10.0.0.300/24");
    // So that the reason remains to be seen.
    guest.extra_lines = vec!["on_crash = \"preserve\"".into(), "on_poweroff = \"preserve\"".into()];
    bench.dom0.create(&guest, Start::Running)?;
    let line = bench.await_console(name, "exit FAILED")?;
    ensure!(line.contains("10.0.0.300"), "the verdict does not name the value: {line:?}");
    let list = bench.dom0.shell(&format!("xl list {name}"))?;
    let state = list.lines().last().and_then(|line| line.split_whitespace().nth(4)).unwrap_or_default();
    ensure!(state.contains('c'), "xl does not see a crash but {state:?}:\n{list}");
    Ok(())
}

fn seeds(bench: &mut Bench) -> Result<()> {
    let mut lines = Vec::new();
    for name in ["seed1", "seed2"] {
        bench.dom0.create(&ours(name, Mode::Pvh, "app=echo ip=none"), Start::Running)?;
        lines.push(bench.await_console(name, "seed:")?);
        bench.dom0.destroy(name)?;
    }
    ensure!(lines[0] != lines[1], "two boots, one seed: {:?}", lines[0]);
    Ok(())
}

/// A guest that cannot be saved says so, and goes on.
fn suspend(bench: &mut Bench) -> Result<()> {
    let name = "stays";
    bench.dom0.create(&ours(name, Mode::Pv, "app=echo ip=none"), Start::Running)?;
    bench.await_console(name, "command line:")?;
    let id = bench.dom0.domain_id(name)?;
    let node = format!("/local/domain/{id}/control/shutdown");
    bench.dom0.shell(&format!("xenstore-write {node} suspend"))?;
    bench.await_console(name, "suspend declined")?;
    let left = bench.dom0.shell(&format!("xenstore-read {node}"))?;
    ensure!(left.trim().is_empty(), "the request was not acknowledged: {left:?}");
    bench.dom0.shell(&format!("xl shutdown {name}"))?;
    bench.await_console(name, VERDICT)?;
    bench.await_gone(name)
}
