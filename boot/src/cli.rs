//! The launcher's command line, and nothing else.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Builds, boots, demonstrates and tests Drayage.
///
/// Exit codes: 0 all is well; 1 something failed, and the message says what; 2 the command line was
/// not understood.
#[derive(Debug, Parser)]
#[command(name = "cargo boot", bin_name = "cargo boot", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Shows the command lines of QEMU, of the package tools, and of what is run in dom0.
    #[arg(short, long, global = true)]
    pub verbose: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Installs or downloads what is missing; every other command does this by itself.
    Setup(SetupArgs),
    /// Builds the guest image and the static backend.
    Build(BuildArgs),
    /// Builds the Debian package of the guest image and the backend, and prints its path.
    Package(PackageArgs),
    /// Boots one guest and shows its console.
    Run(RunArgs),
    /// Shows under a real Xen what containers bring over the stock path.
    Demo(DemoArgs),
    /// Repeats the paper's evaluation: tables, plots and a report.
    Bench(BenchArgs),
    /// Counts the instructions of a packet in one process, and fails when there are over 5 % more than before.
    Count(CountArgs),
    /// Runs every test, those under Xen included.
    Test(TestArgs),
}

/// Options of `setup`.
#[derive(Debug, Args)]
pub struct SetupArgs {
    /// Installs nothing: QEMU too is downloaded and unpacked under target/.
    #[arg(long)]
    pub unpack: bool,
}

/// Options of `build`.
#[derive(Debug, Args)]
pub struct BuildArgs {
    /// Prints the paths of what was built as JSON, alone on standard output.
    #[arg(long)]
    pub json: bool,
}

/// Options of `package`.
#[derive(Debug, Args)]
pub struct PackageArgs {
    /// Folder for the package; one under target/ when absent.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// Options of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Application of the guest image.
    #[arg(long, default_value = "echo")]
    pub app: String,
    /// Kind of machine.
    #[arg(long, value_enum, default_value_t = MachineKind::Pvh)]
    pub mode: MachineKind,
    /// Seconds after which the machine is ended by force.
    #[arg(long, default_value_t = 3600)]
    pub timeout: u64,
    /// Settings for the guest.
    #[arg(last = true, value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
}

/// Kinds of machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MachineKind {
    /// A paravirtualised Xen guest.
    Pv,
    /// A Xen guest in hardware's help, without emulated devices.
    Pvh,
    /// QEMU's own machine, without Xen.
    Qemu,
}

/// Options of `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Writes the results as JSON, too.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Measures less: 60-byte frames, rows a and d, one guest mode.
    #[arg(long)]
    pub quick: bool,
    /// Measures packets from these sources only, in place of direct and linux.
    #[arg(long, value_name = "SOURCE", value_delimiter = ',')]
    pub source: Vec<crate::demo::report::Source>,
    /// Measures rows a and d in one guest mode only, with frames of all sizes.
    #[arg(long, conflicts_with = "quick")]
    pub brief: bool,
}

/// Options of `bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// What is measured; several suites are separated by commas.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "all")]
    pub suite: Vec<SuiteName>,
    /// Writes the rows as JSON, too.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Writes plots into this folder, and a report (index.html).
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Measures each point for as many of the machine's seconds, where that is longer than usual.
    #[arg(long, value_name = "N")]
    pub seconds: Option<f64>,
    /// Measures less: frames of 60 and 1514 bytes, one kind of guest.
    #[arg(long)]
    pub quick: bool,
    /// Measures these guests only (a, b, c, d); several are separated by commas. What has no a is not compared with it.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub peer: Vec<crate::bench::row::Peer>,
    /// Machines that measure in instruction time at once; two where there are as many CPUs, of 3 GiB each.
    #[arg(long, value_name = "N")]
    pub machines: Option<std::num::NonZero<usize>>,
    /// Measures by this clock only, where a suite has rows by both.
    #[arg(long, value_enum)]
    pub time: Option<crate::bench::row::Time>,
}

/// The suites of `bench`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SuiteName {
    /// Every one; meant to end within 45 minutes on two quiet cores.
    All,
    /// Reception by frame size.
    Rx,
    /// Transmission by frame size.
    Tx,
    /// Routing through a guest, by frame size.
    Forward,
    /// Guest to guest, by frame size.
    Intervm,
    /// Reception by one to six guests at once.
    Guests,
    /// Reception by size and policy of containers.
    Containers,
    /// Round trips, jitter, and how long containers are held open.
    Latency,
    /// Reception by placement on cores, in wall time.
    Cores,
    /// Operations per packet and per byte.
    Cost,
    /// TCP streams into a guest, out of it, and echoed.
    Tcp,
    /// Staged grants against grant copies, in both directions.
    Staged,
    /// From creation to the first answer.
    Boot,
}

/// Options of `count`.
#[derive(Debug, Args)]
pub struct CountArgs {
    /// Writes what is counted into tests/channel.baseline.json, which later counts are held against.
    #[arg(long)]
    pub renew: bool,
}

/// Options of `test`.
#[derive(Debug, Args)]
pub struct TestArgs {
    /// Runs the tests whose name contains this.
    #[arg(long, value_name = "PATTERN")]
    pub only: Option<String>,
}
