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

use std::collections::VecDeque;
use std::fs;
use std::num::NonZero;
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};

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
const LIMIT: Duration = Duration::from_secs(3 * 60 * 60);

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

/// All of them, in the order of the report.
static SUITES: [Suite; 17] = [
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
#[derive(Debug, Default)]
struct Outcome {
    rows: Vec<Row>,
    generators: Vec<Generator>,
    failures: Vec<String>,
}

/// Runs suites; the exit code says whether all was well.
pub fn bench(context: &Context, args: &BenchArgs) -> Result<ExitCode> {
    let started = Instant::now();
    let provisions = provide(&context.workspace, Placement::Installed, context.verbosity)?;
    let programs = products::programs(&context.workspace, context.verbosity)?;
    let run = Run { context, provisions: &provisions, programs: &programs, args, started };
    let outcome = Mutex::new(Outcome::default());
    let mut result = Ok(());
    // Wall time is nobody else's; machines in instruction time do not notice each other.
    for (time, machines) in [(Time::Instructions, machines(args)), (Time::Wall, 1)] {
        let wanted =
            |suite: &&Suite| args.suite.contains(&SuiteName::All) || args.suite.contains(&suite.name);
        let asked = args.time.is_none_or(|asked| asked == time);
        let suites = SUITES.iter().filter(|suite| asked && suite.time == time).filter(wanted);
        if result.is_ok() {
            result = run.measure(&Mutex::new(suites.collect()), machines, &outcome);
        }
    }
    // What was found out before a failure is shown and written all the same.
    let mut outcome = outcome.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcome.rows.sort_by_key(place);
    compare(&mut outcome.rows);
    print!("{}", table::tables(&outcome.rows, &outcome.generators));
    run.write(&outcome)?;
    if let Some(folder) = &args.out {
        println!("plots and report: {}", folder.join("index.html").display());
    }
    result?;
    for failure in &outcome.failures {
        eprintln!("FAILED: {failure}");
    }
    Ok(if outcome.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Returns where a row's suite is among all.
fn place(row: &Row) -> usize {
    let same = |suite: &Suite| suite.key == row.suite && suite.time == row.time;
    SUITES.iter().position(same).unwrap_or(SUITES.len())
}

/// Returns how many machines run at once in instruction time: each keeps one CPU busy, and has 3 GiB of memory.
fn machines(args: &BenchArgs) -> usize {
    let cpus = thread::available_parallelism().map_or(1, NonZero::get);
    args.machines.map_or(cpus.min(2), NonZero::get)
}

/// What a run needs to know.
struct Run<'a> {
    context: &'a Context,
    provisions: &'a Provisions,
    programs: &'a Programs,
    args: &'a BenchArgs,
    started: Instant,
}

/// A machine with its daemon running.
struct Ready {
    clock: Clock,
    bed: Testbed,
    daemon: Daemon,
}

impl Ready {
    /// Makes a machine ready for suites.
    fn begin(mut bed: Testbed, clock: Clock) -> Result<Self> {
        // Neighbour discovery and its like would be counted among the packets that are measured.
        bed.dom0.shell("echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6")?;
        let daemon = Daemon::start(&mut bed.dom0)?;
        Ok(Ready { clock, bed, daemon })
    }

    fn end(mut self) -> Result<()> {
        self.daemon.stop(&mut self.bed.dom0)?;
        self.bed.power_off()
    }
}

impl Run<'_> {
    /// Runs suites on some machines at once, each of which takes the next suite as soon as it has done one.
    fn measure(&self, suites: &Suites, machines: usize, outcome: &Mutex<Outcome>) -> Result<()> {
        let machines = machines.min(lock(suites).len());
        thread::scope(|scope| {
            let workers: Vec<_> = (0..machines).map(|_| scope.spawn(|| self.work(suites, outcome))).collect();
            let joined = workers.into_iter().map(|worker| match worker.join() {
                Ok(result) => result,
                Err(_) => Err(anyhow!("a thread that measures has panicked")),
            });
            // All of them are waited for before the first error counts.
            joined.collect::<Vec<_>>().into_iter().collect()
        })
    }

    /// Takes suites as long as there are any. A machine serves as many as have its clock.
    fn work(&self, suites: &Suites, outcome: &Mutex<Outcome>) -> Result<()> {
        let mut machine: Option<Ready> = None;
        let mut generators = Vec::new();
        loop {
            let Some(suite) = lock(suites).pop_front() else { break };
            if let Some(other) = machine.take_if(|machine| machine.clock != suite.clock()) {
                other.end()?;
            }
            let mut ready = match machine.take() {
                Some(ready) => ready,
                None => self.boot(suite.clock()).inspect_err(|error| {
                    // The other machines go on for long before this counts.
                    eprintln!("FAILED: suite {}: {}", suite.key, describe(error));
                })?,
            };
            let (started, cpu) = (Instant::now(), ready.bed.cpu_time());
            let mut own = Outcome { generators: std::mem::take(&mut generators), ..Outcome::default() };
            match self.run_suite(&mut ready.bed.dom0, suite, &mut own) {
                Ok(()) => {
                    println!(
                        "suite {} took {:.0} s, and {:.0} s of the machine's CPU time",
                        suite.key,
                        started.elapsed().as_secs_f64(),
                        (ready.bed.cpu_time() - cpu).as_secs_f64()
                    );
                    machine = Some(ready);
                }
                // The other suites have a machine of their own then: who knows what is left on this one.
                Err(error) => {
                    let error = ready.bed.explain(error).context(format!("suite {}", suite.key));
                    let text = describe(&error);
                    eprintln!("FAILED: {text}");
                    own.failures.push(text);
                }
            }
            generators.clone_from(&own.generators);
            let mut outcome = lock(outcome);
            outcome.add(own);
            self.write(&outcome)?;
        }
        machine.map_or(Ok(()), Ready::end)
    }

    fn boot(&self, clock: Clock) -> Result<Ready> {
        let Context { workspace, verbosity } = self.context;
        let bed = Testbed::boot(workspace, self.provisions, self.programs, clock, LIMIT, *verbosity)?;
        Ready::begin(bed, clock)
    }

    /// Writes the rows and the report, as far as there are any: after every suite, so that what a run was cut off from is
    /// all that is lost.
    fn write(&self, outcome: &Outcome) -> Result<()> {
        let args = self.args;
        let mut rows = outcome.rows.clone();
        rows.sort_by_key(place);
        compare(&mut rows);
        if let Some(path) = &args.json {
            let text = serde_json::to_string_pretty(&rows)? + "\n";
            fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
        }
        if let Some(folder) = &args.out {
            fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
            page::write(folder, &rows, &outcome.generators, self.started.elapsed())?;
        }
        Ok(())
    }

    fn run_suite(&self, dom0: &mut Dom0, suite: &Suite, outcome: &mut Outcome) -> Result<()> {
        let args = self.args;
        let effort = match args.quick {
            true => Effort::Quick,
            false if args.suite.len() > 1 || args.suite.contains(&SuiteName::All) => Effort::Usual,
            false => Effort::Thorough,
        };
        let mut lab = Lab {
            context: self.context,
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
}

impl Outcome {
    /// Adds what a suite came to.
    fn add(&mut self, other: Outcome) {
        self.rows.extend(other.rows);
        self.failures.extend(other.failures);
        for generator in other.generators {
            let same = |known: &Generator| {
                (&known.name, known.frame_bytes) == (&generator.name, generator.frame_bytes)
            };
            if !self.generators.iter().any(same) {
                self.generators.push(generator);
            }
        }
    }
}

/// Suites that nobody has begun yet.
type Suites = Mutex<VecDeque<&'static Suite>>;

/// Returns what is behind a lock: a thread that panicked has left nothing half done there.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::row::{Label, Peer, THROUGHPUT};
    use crate::dom0::Mode;

    #[test]
    fn what_machines_found_at_once_is_put_together_in_order() {
        let row = |suite, time| {
            let label = Label {
                suite,
                peer: Peer::D,
                mode: Mode::Pvh,
                case: "x".into(),
                frame_bytes: None,
                varied: None,
            };
            Row::new(&label, time, THROUGHPUT, "packets", 1.0)
        };
        let generator =
            Generator { name: "sendmmsg".into(), frame_bytes: 60, instructions_per_packet: 3000.0 };
        let mut all = Outcome::default();
        for (suite, time) in [("tcp", Time::Instructions), ("rx", Time::Wall), ("rx", Time::Instructions)] {
            let generators = vec![generator.clone()];
            all.add(Outcome { rows: vec![row(suite, time)], generators, failures: Vec::new() });
        }
        all.rows.sort_by_key(place);
        let order: Vec<_> = all.rows.iter().map(|row| (row.suite.as_str(), row.time)).collect();
        assert_eq!(order, [("rx", Time::Instructions), ("tcp", Time::Instructions), ("rx", Time::Wall)]);
        assert_eq!(all.generators.len(), 1);
    }
}
