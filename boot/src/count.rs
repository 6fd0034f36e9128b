//! Counts what a packet costs in one process, with valgrind: instructions, reads, writes and cache misses of the
//! program `channel` of the tests. Knows how counts are taken and compared, not what the program does.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail, ensure};
use comfy_table::Table;
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use serde::{Deserialize, Serialize};

use crate::cli::CountArgs;
use crate::commands::Context;
use crate::progress::{Step, Verbosity, command_line, ensure_success, run};
use crate::setup::{Valgrind, provide_valgrind};
use crate::workspace::Workspace;

/// The counts that a change is held against, in the workspace.
const BASELINE: &str = "tests/channel.baseline.json";

/// How much more a packet may cost than the baseline says.
const TOLERATED: f64 = 0.05;

/// What is counted: ways of the program, by frame size.
const CASES: [(&str, usize); 14] = [
    ("alone", 60),
    ("channel", 60),
    ("switched", 60),
    ("plain", 60),
    ("sent-alone", 60),
    ("sent", 60),
    ("between", 60),
    ("routed", 60),
    ("alone", 1514),
    ("channel", 1514),
    ("switched", 1514),
    ("sent", 1514),
    ("between", 1514),
    ("routed", 1514),
];

/// Packets of the two runs whose difference is counted: what it takes to begin and to end is in both.
const PACKETS: [u64; 2] = [5_000, 15_000];

/// The same where cache misses matter: all pages have been there once before, at 58 packets of 60 bytes each.
const WARM_PACKETS: [u64; 2] = [40_000, 50_000];

/// Instructions per packet, with what they depend on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Baseline {
    /// What compiled the program.
    rustc: String,
    /// By way and frame size, such as "channel 60".
    instructions_per_packet: BTreeMap<String, f64>,
}

/// Events of one packet, by callgrind's names.
pub type Events = BTreeMap<String, f64>;

/// Whether caches are simulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caches {
    /// They are, which takes longer.
    Simulated,
    /// Instructions alone are counted.
    Left,
}

/// The program and what counts it.
#[derive(Debug)]
pub struct Counter {
    program: PathBuf,
    valgrind: Valgrind,
    folder: PathBuf,
    verbosity: Verbosity,
}

impl Counter {
    /// Builds the program, and finds or fetches valgrind.
    pub fn new(workspace: &Workspace, verbosity: Verbosity) -> Result<Self> {
        let valgrind = provide_valgrind(workspace, verbosity)?;
        let step = Step::begin("building the channel in one process");
        let mut cargo = workspace.cargo();
        cargo.args(["build", "--profile", "counted", "-p", "drayage-tests", "--bin", "channel"]);
        let output = cargo.output().with_context(|| command_line(&cargo))?;
        ensure_success(&cargo, output.status, &String::from_utf8_lossy(&output.stderr))?;
        step.done("");
        let program = workspace.profile_binary("counted", "channel");
        Ok(Counter { program, valgrind, folder: workspace.data("counts")?, verbosity })
    }

    /// Returns what one packet of a way comes to.
    pub fn per_packet(&self, way: &str, frame_bytes: usize, caches: Caches) -> Result<Events> {
        let [few, many] = if caches == Caches::Simulated { WARM_PACKETS } else { PACKETS };
        let before = self.totals(way, frame_bytes, few, caches)?;
        let after = self.totals(way, frame_bytes, many, caches)?;
        let each = |(name, total): (&String, &u64)| {
            let grown = *total as f64 - before.get(name).copied().unwrap_or_default() as f64;
            (name.clone(), grown / (many - few) as f64)
        };
        Ok(after.iter().map(each).collect())
    }

    fn totals(
        &self,
        way: &str,
        frame_bytes: usize,
        packets: u64,
        caches: Caches,
    ) -> Result<BTreeMap<String, u64>> {
        let file = self.folder.join(format!("{way}-{frame_bytes}-{packets}.callgrind"));
        let mut command = self.valgrind.command();
        command.arg("--tool=callgrind").arg(format!("--callgrind-out-file={}", file.display()));
        if caches == Caches::Simulated {
            // One and the same cache whatever the host has: 32 KiB, 8 ways; and 8 MiB, 16 ways.
            command.args(["--cache-sim=yes", "--I1=32768,8,64", "--D1=32768,8,64", "--LL=8388608,16,64"]);
        }
        command.arg(&self.program).args([way.to_owned(), frame_bytes.to_string(), packets.to_string()]);
        // The C library copies memory as on the oldest of these processors, whatever the host's can do.
        command.env("GLIBC_TUNABLES", "glibc.cpu.hwcaps=-AVX2,-AVX512F,-AVX512VL,-ERMS,-FSRM");
        run(&mut command, self.verbosity)?;
        let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        fs::remove_file(&file).ok();
        totals(&text).with_context(|| format!("{} has no totals", file.display()))
    }
}

/// Reads the totals of a callgrind profile.
fn totals(profile: &str) -> Option<BTreeMap<String, u64>> {
    let line = |key| profile.lines().rev().find_map(|line: &str| line.strip_prefix(key));
    let (names, values) = (line("events: ")?, line("totals: ")?);
    let value = |(name, value): (&str, &str)| Some((name.to_owned(), value.parse().ok()?));
    names.split_whitespace().zip(values.split_whitespace()).map(value).collect()
}

/// Runs `cargo boot count`: the exit code says whether packets cost as little as before.
pub fn count(context: &Context, args: &CountArgs) -> Result<ExitCode> {
    let counter = Counter::new(&context.workspace, context.verbosity)?;
    let path = context.workspace.root().join(BASELINE);
    let mut found = BTreeMap::new();
    for (way, frame_bytes) in CASES {
        let events = counter.per_packet(way, frame_bytes, Caches::Left)?;
        let instructions = events.get("Ir").copied().context("callgrind counted no instructions")?;
        ensure!(instructions > 0.0, "callgrind counted nothing for {way}, {frame_bytes} bytes");
        found.insert(format!("{way} {frame_bytes}"), (instructions * 10.0).round() / 10.0);
    }
    let found = Baseline { rustc: rustc()?, instructions_per_packet: found };
    if args.renew {
        fs::write(&path, serde_json::to_string_pretty(&found)? + "\n")
            .with_context(|| format!("writing {}", path.display()))?;
        println!("{}\n{BASELINE} is renewed", table(&found, None));
        return Ok(ExitCode::SUCCESS);
    }
    let baseline = read(&path)?;
    println!("{}", table(&found, Some(&baseline)));
    let grown = grown(&baseline, &found);
    if grown.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let text = grown.join("; ");
    if baseline.rustc != found.rustc {
        println!(
            "not held against {}: {} compiled now ({text}); renew the baseline with cargo boot count --renew",
            baseline.rustc, found.rustc
        );
        return Ok(ExitCode::SUCCESS);
    }
    bail!(
        "a packet costs over {} % more instructions than {BASELINE} says: {text}\n\
         if that is meant, run cargo boot count --renew and commit the file with the reason",
        100.0 * TOLERATED
    )
}

fn read(path: &Path) -> Result<Baseline> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("reading {}; cargo boot count --renew writes it", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no baseline", path.display()))
}

/// Returns the cases that cost too much more than they did, or that the baseline does not know.
fn grown(baseline: &Baseline, found: &Baseline) -> Vec<String> {
    let judge = |(case, now): (&String, &f64)| match baseline.instructions_per_packet.get(case) {
        None => Some(format!("{case} bytes is not in the baseline")),
        Some(before) if *now > before * (1.0 + TOLERATED) => {
            Some(format!("{case} bytes: {now:.0} instead of {before:.0}"))
        }
        Some(_) => None,
    };
    found.instructions_per_packet.iter().filter_map(judge).collect()
}

fn table(found: &Baseline, baseline: Option<&Baseline>) -> String {
    let mut table = Table::new();
    table.load_preset(UTF8_HORIZONTAL_ONLY).set_header([
        "way and frame in bytes",
        "instructions per packet",
        "baseline",
        "change",
    ]);
    for (case, now) in &found.instructions_per_packet {
        let before = baseline.and_then(|baseline| baseline.instructions_per_packet.get(case));
        let change = before.map(|before| format!("{:+.1} %", 100.0 * (now / before - 1.0)));
        let before = before.map(|before| format!("{before:.0}")).unwrap_or_default();
        table.add_row([case.clone(), format!("{now:.0}"), before, change.unwrap_or_default()]);
    }
    table.to_string()
}

fn rustc() -> Result<String> {
    let program = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = run(Command::new(program).arg("--version"), Verbosity::Normal)?;
    Ok(version.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn baseline(values: &[(&str, f64)]) -> Baseline {
        let values = values.iter().map(|(case, value)| ((*case).to_owned(), *value));
        Baseline { rustc: "rustc 1".into(), instructions_per_packet: values.collect() }
    }

    #[test]
    fn totals_are_read_by_name() {
        let profile = "events: Ir Dr Dw\nfn=(1) main\n1 5 2 1\ntotals: 500 20 10\n";
        let expected = [("Dr", 20), ("Dw", 10), ("Ir", 500)].map(|(name, at)| (name.to_owned(), at));
        assert_eq!(totals(profile), Some(expected.into()));
        assert_eq!(totals("events: Ir\n"), None);
        assert_eq!(totals("events: Ir\ntotals: many\n"), None);
    }

    #[test]
    fn six_per_cent_more_is_too_much_and_five_is_not() {
        let before = baseline(&[("channel 60", 1000.0), ("alone 60", 800.0)]);
        assert!(grown(&before, &baseline(&[("channel 60", 1049.0), ("alone 60", 400.0)])).is_empty());
        let found = grown(&before, &baseline(&[("channel 60", 1060.0), ("alone 60", 800.0)]));
        assert_eq!(found, ["channel 60 bytes: 1060 instead of 1000"]);
        assert_eq!(
            grown(&before, &baseline(&[("new 60", 1.0)])).len(),
            1,
            "what is not known is not passed over"
        );
    }
}
