//! The main job under a real Xen: guests boot, answer, and take small packets through the stock path
//! and through ours; what it costs is compared. Knows how a demonstration goes, not how each part of
//! it is done.

pub mod drops;
pub mod greeting;
pub mod guests;
pub mod path;
pub mod reader;
pub mod report;
pub mod rows;
pub mod search;
pub mod sender;
pub mod show;

use std::fs;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::cli::DemoArgs;
use crate::commands::Context;
use crate::products;
use crate::qemu::Clock;
use crate::setup::{Placement, provide};
use crate::testbed::Testbed;

use report::Report;
use rows::Plan;

/// Time after which the machine is ended by force.
const LIMIT: Duration = Duration::from_secs(20 * 60);

/// Runs the demo; the exit code says whether all was well.
pub fn demo(context: &Context, args: &DemoArgs) -> Result<ExitCode> {
    let provisions = provide(&context.workspace, Placement::Installed, context.verbosity)?;
    let programs = products::programs(&context.workspace, context.verbosity)?;
    let mut plan = match (args.quick, args.brief) {
        (true, _) => Plan::quick(),
        (_, true) => Plan::brief(),
        _ => Plan::full(),
    };
    if !args.source.is_empty() {
        plan = plan.with_sources(&args.source);
    }
    let (workspace, verbosity) = (&context.workspace, context.verbosity);
    let mut bed = Testbed::boot(workspace, &provisions, &programs, Clock::Instructions, LIMIT, verbosity)?;
    let mut outcome = rows::Outcome::default();
    let result = rows::measure(&mut bed.dom0, &plan, &mut outcome);
    outcome.report.compute_ratios();
    // What was found out before a failure is shown and written all the same.
    print!("{}", show::tables(&outcome.report));
    if let Some(path) = &args.json {
        write_json(&outcome.report, path)?;
    }
    result.map_err(|error| bed.explain(error))?;
    bed.power_off()?;
    for failure in &outcome.failures {
        eprintln!("FAILED: {failure}");
    }
    Ok(if outcome.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn write_json(report: &Report, path: &std::path::Path) -> Result<()> {
    let text = serde_json::to_string_pretty(report)?;
    fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))
}
