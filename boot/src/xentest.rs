//! The tests under a real Xen: one function per scenario, all on one machine where possible. Knows
//! how scenarios are run and judged, not what they do.

mod across;
mod bench;
mod by_xl;
mod driver_domain;
mod forward;
mod life;
mod netfront;
mod operator;
mod ours;
mod package;
mod plain;
mod policy;
mod removal;
mod restart;
mod service;
mod slo;
mod staged;
mod stock;
mod switch;

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::commands::{Context, describe};
use crate::products;
use crate::qemu::Clock;
use crate::setup::{Placement, provide};
use crate::testbed::Testbed;
use crate::testing::Counts;

use bench::Bench;

/// Time after which a machine is ended by force.
const LIMIT: Duration = Duration::from_secs(20 * 60);

/// A test under Xen.
struct Scenario {
    name: &'static str,
    run: fn(&mut Bench) -> Result<()>,
}

/// A test that has a machine of its own.
type Alone = fn(&Context) -> Result<()>;

/// Returns the tests that have a machine of their own.
fn alone() -> impl Iterator<Item = (&'static str, Alone)> {
    plain::scenarios().into_iter().chain(slo::alone())
}

/// Returns every other scenario, in the order in which they run.
fn scenarios() -> Vec<Scenario> {
    [
        stock::scenarios(),
        life::scenarios(),
        ours::scenarios(),
        policy::scenarios(),
        slo::scenarios(),
        operator::scenarios(),
        netfront::scenarios(),
        restart::scenarios(),
        staged::scenarios(),
        across::scenarios(),
        by_xl::scenarios(),
        driver_domain::scenarios(),
        switch::scenarios(),
        forward::scenarios(),
        package::scenarios(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Returns whether a pattern is how a scenario's name begins, and more than its first word, which is also a
/// module's name elsewhere.
pub fn is_scenario(pattern: &str) -> bool {
    let mut names =
        scenarios().into_iter().map(|scenario| scenario.name).chain(alone().map(|(name, _)| name));
    names.any(|name| name.starts_with(pattern)) && !"xen::".starts_with(pattern)
}

/// Runs the scenarios whose name contains a pattern.
pub fn run(context: &Context, pattern: Option<&str>) -> Result<Counts> {
    let wanted = |name: &str| pattern.is_none_or(|pattern| name.contains(pattern));
    let mut tally = Tally::default();
    for (name, scenario) in alone() {
        if wanted(name) {
            let started = Instant::now();
            tally.note(name, started, scenario(context));
        }
    }
    let mut wanted: Vec<Scenario> =
        scenarios().into_iter().filter(|scenario| wanted(scenario.name)).collect();
    let packaged = wanted.iter().any(|scenario| scenario.name.starts_with("xen::package::"));
    let mut bed: Option<Testbed> = None;
    for scenario in wanted.drain(..) {
        let mut machine = match bed.take() {
            Some(machine) => machine,
            None => boot(context, Clock::Wall, packaged, LIMIT)?,
        };
        let started = Instant::now();
        let result = (scenario.run)(&mut Bench::new(&mut machine.dom0));
        let failed = result.is_err();
        tally.note(scenario.name, started, result.map_err(|error| machine.explain(error)));
        // A machine that cannot be tidied up is of no use to the next scenario.
        match Bench::new(&mut machine.dom0).tidy() {
            Ok(()) => bed = Some(machine),
            Err(error) if failed => eprintln!("a new machine is needed: {}", describe(&error)),
            Err(error) => tally.note("tidying up", started, Err(error)),
        }
    }
    if let Some(machine) = bed {
        machine.power_off()?;
    }
    if !tally.causes.is_empty() {
        eprintln!("\nwhat failed:\n{}", tally.causes);
    }
    Ok(tally.counts)
}

fn boot(context: &Context, clock: Clock, packaged: bool, limit: Duration) -> Result<Testbed> {
    let provisions = provide(&context.workspace, Placement::Installed, context.verbosity)?;
    let mut programs = products::programs(&context.workspace, context.verbosity)?;
    if packaged {
        programs.package = Some(crate::package::pack(context, &programs, None)?);
    }
    Testbed::boot(&context.workspace, &provisions, &programs, clock, limit, context.verbosity)
}

/// What has been judged so far.
#[derive(Default)]
struct Tally {
    counts: Counts,
    /// Why scenarios failed, without what the machines printed: said again at the end, where it is found.
    causes: String,
}

impl Tally {
    fn note(&mut self, name: &str, started: Instant, result: Result<()>) {
        let took_s = started.elapsed().as_secs_f64();
        match result {
            Ok(()) => {
                self.counts.passed += 1;
                eprintln!("PASS {name} ({took_s:.1} s)");
            }
            Err(error) => {
                self.counts.failed += 1;
                eprintln!("FAIL {name} ({took_s:.1} s)\n{}", describe(&error));
                self.causes.push_str(&format!("{name}: {}\n", error.root_cause()));
            }
        }
    }
}
