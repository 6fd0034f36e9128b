//! Runs every test and adds up: cargo's own for the host crates, the kernel's in an invocation of
//! their own (ARCHITECTURE.md, "Two builds"), then those under Xen. Knows how test programs print
//! their counts, not what they test.

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::thread;

use anyhow::{Context as _, Result};

use crate::apt::exists;
use crate::cli::TestArgs;
use crate::commands::Context;
use crate::progress::{Verbosity, command_line};
use crate::xentest;

/// How many tests came to which end.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Tests that held.
    pub passed: u64,
    /// Tests that did not.
    pub failed: u64,
    /// Tests that could not run here, each of which said why.
    pub skipped: u64,
}

impl Counts {
    /// Adds another part's counts.
    pub fn add(&mut self, other: Counts) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(formatter, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(formatter, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

/// Packages whose tests need an invocation of their own, apart from the host crates.
const KERNEL_PACKAGES: [&str; 4] = ["-p", "drayage-kernel", "-p", "drayage-entry"];

/// Runs all tests, or those whose name contains a pattern.
pub fn test(context: &Context, args: &TestArgs) -> Result<ExitCode> {
    let pattern = args.only.as_deref();
    let mut total = Counts::default();
    // Nothing is built for a pattern that means scenarios alone.
    let parts = if pattern.is_some_and(xentest::is_scenario) { Vec::new() } else { parts(pattern) };
    for part in parts {
        eprintln!("\n== {} ==", part.title);
        let mut cargo = context.workspace.cargo();
        cargo.args(&part.args);
        total.add(run_part(cargo, context.verbosity)?);
    }
    eprintln!("\n== under Xen, and in plain QEMU ==");
    total.add(xentest::run(context, pattern)?);
    println!("{total}");
    Ok(if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A part of the tests that cargo runs.
struct Part {
    title: &'static str,
    args: Vec<String>,
}

fn parts(pattern: Option<&str>) -> Vec<Part> {
    let nextest = exists("cargo-nextest");
    let part = |title, packages: &[&str]| {
        let mut args: Vec<&str> = if nextest {
            vec![
                "nextest",
                "run",
                "--cargo-profile=host",
                "--no-tests=pass",
                "--no-fail-fast",
                "--status-level=fail",
            ]
        } else {
            vec!["test", "--profile=host", "--quiet", "--no-fail-fast"]
        };
        args.extend(packages);
        args.extend(pattern);
        Part { title, args: args.into_iter().map(str::to_owned).collect() }
    };
    let mut parts = vec![part("host crates", &[])];
    if nextest {
        // nextest leaves the documentation's examples out, `cargo test` has run them.
        let args = ["test", "--profile=host", "--doc", "--quiet"]
            .into_iter()
            .chain(pattern)
            .map(str::to_owned)
            .collect();
        parts.push(Part { title: "documentation", args });
    }
    let mut kernel = KERNEL_PACKAGES.to_vec();
    kernel.push("--lib");
    parts.push(part("kernel", &kernel));
    parts
}

/// Runs a part, shows what it prints, and counts.
fn run_part(mut command: Command, verbosity: Verbosity) -> Result<Counts> {
    if verbosity == Verbosity::Verbose {
        eprintln!("+ {}", command_line(&command));
    }
    // A backtrace of every failed assertion buries the assertions.
    command.env_remove("RUST_BACKTRACE").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| command_line(&command))?;
    let errors = child.stderr.take().context("a child without its standard error")?;
    // Two pipes need two readers: with one full, neither side would move.
    let reader = thread::spawn(move || count_lines(errors));
    let output = child.stdout.take().context("a child without its standard output")?;
    let mut counts = count_lines(output);
    counts.add(reader.join().unwrap_or_default());
    let status = child.wait().context("waiting for the tests")?;
    Ok(judge(counts, status))
}

/// Counts a part that ended badly without a failed test as one failure: it did not build, or a test
/// took the whole program down.
fn judge(mut counts: Counts, status: ExitStatus) -> Counts {
    if !status.success() && counts.failed == 0 {
        eprintln!("the tests ended with {status}");
        counts.failed += 1;
    }
    counts
}

fn count_lines(from: impl std::io::Read) -> Counts {
    let mut counts = Counts::default();
    for line in BufReader::new(from).lines().map_while(Result::ok) {
        eprintln!("{line}");
        counts.add(counts_in(&line).unwrap_or_default());
    }
    counts
}

/// Returns the counts in a summary line of nextest or of libtest.
fn counts_in(line: &str) -> Option<Counts> {
    let line = line.trim();
    let rest = match line.strip_prefix("test result: ") {
        Some(rest) => rest.split_once(". ")?.1,
        None => line.strip_prefix("Summary [")?.split_once("run: ")?.1,
    };
    let mut counts = Counts::default();
    for part in rest.split([',', ';']) {
        let mut words = part.split_whitespace();
        let (Some(number), Some(what)) = (words.next(), words.next()) else { continue };
        let Ok(number) = number.parse::<u64>() else { continue };
        match what {
            "passed" => counts.passed += number,
            "failed" | "timed" | "exec" => counts.failed += number,
            "ignored" => counts.skipped += number,
            // "skipped" and "filtered out": not asked for, by --only.
            _ => {}
        }
    }
    Some(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(passed: u64, failed: u64, skipped: u64) -> Option<Counts> {
        Some(Counts { passed, failed, skipped })
    }

    #[test]
    fn summaries_of_both_test_runners() {
        let nextest = "     Summary [   0.361s] 13/20 tests run: 12 passed (1 slow), 1 failed, 3 skipped";
        assert_eq!(counts_in(nextest), counts(12, 1, 0));
        let libtest = "test result: FAILED. 5 passed; 2 failed; 1 ignored; 0 measured; 9 filtered out; finished in 0.1s";
        assert_eq!(counts_in(libtest), counts(5, 2, 1));
        assert_eq!(counts_in("test frame::tests::rfc ... ok"), None);
        assert_eq!(
            counts_in("     Summary [   2.0s] 2 tests run: 1 passed, 1 timed out, 0 skipped"),
            counts(1, 1, 0)
        );
    }

    #[test]
    fn the_closing_line() {
        let all = Counts { passed: 3, failed: 0, skipped: 0 };
        assert_eq!(all.to_string(), "3 passed, 0 failed");
        assert_eq!(Counts { skipped: 2, ..all }.to_string(), "3 passed, 0 failed, 2 skipped");
    }

    #[test]
    fn a_part_that_does_not_even_start_counts_as_failed() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo error: no >&2; exit 101"]);
        let counts = run_part(command, Verbosity::Normal).unwrap();
        assert_eq!(counts, Counts { failed: 1, ..Counts::default() });
    }
}
