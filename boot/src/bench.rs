//! The paper's evaluation, repeated against the stock path on one machine: suites, each of which comes to rows, a
//! table and plots. Knows which suites there are, not how each of them measures.

pub mod breakdown;
pub mod cost;
pub mod delay;
pub mod flow;
pub mod guests;
pub mod lab;
pub mod page;
pub mod plot;
pub mod row;
pub mod rx;
pub mod staged;
pub mod table;
pub mod tcp;
pub mod wall;

use std::fs;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::backend::Daemon;
use crate::cli::{BenchArgs, SuiteName};
use crate::commands::{Context, describe};
use crate::demo::report::Generator;
use crate::dom0::Dom0;
use crate::images::Programs;
use crate::products;
use crate::qemu::Clock;
use crate::setup::{Placement, Provisions, provide};
use crate::testbed::Testbed;

use lab::{Effort, Lab};
use row::{Row, Time, compare};

/// Time after which a machine is ended by force.
const LIMIT: Duration = Duration::from_secs(60 * 60);

/// Something that is measured on a machine.
pub struct Suite {
    /// Its name on the command line.
    pub name: SuiteName,
    /// Its name in rows.
    pub key: &'static str,
    /// What a second is.
    time: Time,
    run: fn(&mut Lab<'_>) -> Result<()>,
}

impl Suite {
    /// Returns how the clocks of its machine advance.
    fn clock(&self) -> Clock {
        match (self.time, self.name) {
            // It measures the CPU time of a domain.
            (Time::Instructions, SuiteName::Boot) => Clock::InstructionsOfOneCpu,
            (Time::Instructions, _) => Clock::Instructions,
            // It places the backend's threads, too.
            (Time::Wall, SuiteName::Cores) => Clock::WallOfTwoForDom0,
            (Time::Wall, _) => Clock::Wall,
        }
    }
}

const SUITES: [Suite; 17] = [
    Suite { name: SuiteName::Rx, key: "rx", time: Time::Instructions, run: rx::rx },
    Suite { name: SuiteName::Tx, key: "tx", time: Time::Instructions, run: flow::tx },
    Suite { name: SuiteName::Forward, key: "forward", time: Time::Instructions, run: flow::forward },
    Suite { name: SuiteName::Intervm, key: "intervm", time: Time::Instructions, run: flow::intervm },
    Suite { name: SuiteName::Guests, key: "guests", time: Time::Instructions, run: guests::guests },
    Suite { name: SuiteName::Containers, key: "containers", time: Time::Instructions, run: rx::containers },
    Suite { name: SuiteName::Cost, key: "cost", time: Time::Instructions, run: cost::cost },
    Suite { name: SuiteName::Tcp, key: "tcp", time: Time::Instructions, run: tcp::tcp },
    Suite { name: SuiteName::Staged, key: "staged", time: Time::Instructions, run: staged::staged },
    Suite { name: SuiteName::Latency, key: "latency", time: Time::Instructions, run: delay::latency },
    Suite { name: SuiteName::Boot, key: "boot", time: Time::Instructions, run: delay::boot },
    Suite { name: SuiteName::Rx, key: "rx", time: Time::Wall, run: wall::rx },
    Suite { name: SuiteName::Tx, key: "tx", time: Time::Wall, run: wall::tx },
    Suite { name: SuiteName::Forward, key: "forward", time: Time::Wall, run: wall::forward },
    Suite { name: SuiteName::Intervm, key: "intervm", time: Time::Wall, run: wall::intervm },
    Suite { name: SuiteName::Latency, key: "latency", time: Time::Wall, run: wall::latency },
    Suite { name: SuiteName::Cores, key: "cores", time: Time::Wall, run: wall::cores },
];

/// What a run came to.
#[derive(Debug)]
struct Outcome {
    started: Instant,
    rows: Vec<Row>,
    generators: Vec<Generator>,
    failures: Vec<String>,
}

/// Runs suites; the exit code says whether all was well.
pub fn bench(context: &Context, args: &BenchArgs) -> Result<ExitCode> {
    let (rows, generators, failures) = Default::default();
    let mut outcome = Outcome { started: Instant::now(), rows, generators, failures };
    let provisions = provide(&context.workspace, Placement::Installed, context.verbosity)?;
    let programs = products::programs(&context.workspace, context.verbosity)?;
    let mut result = Ok(());
    for clock in [Clock::Instructions, Clock::InstructionsOfOneCpu, Clock::Wall, Clock::WallOfTwoForDom0] {
        let wanted =
            |suite: &&Suite| args.suite.contains(&SuiteName::All) || args.suite.contains(&suite.name);
        let timed = |suite: &&Suite| args.time.is_none_or(|time| time == suite.time);
        let suites: Vec<&Suite> =
            SUITES.iter().filter(|suite| suite.clock() == clock).filter(wanted).filter(timed).collect();
        if !suites.is_empty() && result.is_ok() {
            result = measure(context, &provisions, &programs, clock, &suites, args, &mut outcome);
        }
    }
    // What was found out before a failure is shown and written all the same.
    compare(&mut outcome.rows);
    print!("{}", table::tables(&outcome.rows, &outcome.generators));
    write(args, &outcome)?;
    if let Some(folder) = &args.out {
        println!("plots and report: {}", folder.join("index.html").display());
    }
    result?;
    for failure in &outcome.failures {
        eprintln!("FAILED: {failure}");
    }
    Ok(if outcome.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Writes the rows and the report, as far as there are any: after every suite, so that what a run was cut off from is all
/// that is lost.
fn write(args: &BenchArgs, outcome: &Outcome) -> Result<()> {
    let mut rows = outcome.rows.clone();
    compare(&mut rows);
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&rows)? + "\n";
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    if let Some(folder) = &args.out {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        page::write(folder, &rows, &outcome.generators, outcome.started.elapsed())?;
    }
    Ok(())
}

/// Boots a machine for the suites of one clock and runs them.
fn measure(
    context: &Context,
    provisions: &Provisions,
    programs: &Programs,
    clock: Clock,
    suites: &[&Suite],
    args: &BenchArgs,
    outcome: &mut Outcome,
) -> Result<()> {
    let boot = || Testbed::boot(&context.workspace, provisions, programs, clock, LIMIT, context.verbosity);
    let mut machine: Option<(Testbed, Daemon)> = None;
    for suite in suites {
        let (mut bed, daemon) = match machine.take() {
            Some(machine) => machine,
            None => begin(boot()?)?,
        };
        let (started, cpu) = (Instant::now(), bed.cpu_time());
        match run_suite(context, &mut bed.dom0, suite, args, outcome) {
            Ok(()) => {
                println!(
                    "suite {} took {:.0} s, and {:.0} s of the machine's CPU time",
                    suite.key,
                    started.elapsed().as_secs_f64(),
                    (bed.cpu_time() - cpu).as_secs_f64()
                );
                machine = Some((bed, daemon));
            }
            // The other suites have a machine of their own then: who knows what is left on this one.
            Err(error) => {
                let error = bed.explain(error).context(format!("suite {}", suite.key));
                let text = describe(&error);
                eprintln!("FAILED: {text}");
                outcome.failures.push(text);
            }
        }
        write(args, outcome)?;
    }
    if let Some((mut bed, daemon)) = machine {
        daemon.stop(&mut bed.dom0)?;
        bed.power_off()?;
    }
    Ok(())
}

/// Makes a machine ready for suites.
fn begin(mut bed: Testbed) -> Result<(Testbed, Daemon)> {
    // Neighbour discovery and its like would be counted among the packets that are measured.
    bed.dom0.shell("echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6")?;
    let daemon = Daemon::start(&mut bed.dom0)?;
    Ok((bed, daemon))
}

fn run_suite(
    context: &Context,
    dom0: &mut Dom0,
    suite: &Suite,
    args: &BenchArgs,
    outcome: &mut Outcome,
) -> Result<()> {
    let effort = match args.quick {
        true => Effort::Quick,
        false if args.suite.len() > 1 || args.suite.contains(&SuiteName::All) => Effort::Usual,
        false => Effort::Thorough,
    };
    let mut lab = Lab {
        context,
        dom0,
        time: suite.time,
        seconds: args.seconds,
        effort,
        only: &args.peer,
        last: None,
        rows: &mut outcome.rows,
        generators: &mut outcome.generators,
        failures: &mut outcome.failures,
    };
    lab.watch(format!("suite {}", suite.key));
    (suite.run)(&mut lab)
}
