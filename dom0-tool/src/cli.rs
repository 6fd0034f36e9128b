//! The command line, and nothing else.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use drayage::ipc::DEFAULT_SOCKET;

const EXIT_CODES: &str = "Exit codes:
  0  done
  1  failed for a reason without a code of its own; doctor: a check is bad
  2  the command line or a value in it makes no sense
  3  no such domain, interface or bridge
  4  already attached, or the name of a device or socket is taken
  5  no permission
  6  not a Xen host, or Xen's devices or xenstore are missing
  7  the daemon does not run";

/// A network backend for Xen guests that hands packets over in containers.
#[derive(Debug, Parser)]
#[command(version, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    /// The daemon's socket.
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Cli {
    /// Returns the socket to use.
    pub(crate) fn socket(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| DEFAULT_SOCKET.into())
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs the daemon in the foreground. SIGTERM closes all interfaces; SIGUSR2 ends it with all of them connected,
    /// so that the next daemon goes on with them, as it does after one that was killed.
    Run(RunArgs),
    /// Gives a guest, paused or running, an interface.
    Attach(AttachArgs),
    /// Takes an interface away, in order; also forgets a guest that is gone.
    Detach {
        /// Name or id.
        domain: String,
        /// Interface number, where there are several.
        #[arg(long)]
        vif: Option<u32>,
        /// The driver domain whose interface it is.
        #[arg(long, value_name = "DOMAIN")]
        backend: Option<String>,
    },
    /// Has the daemon read its configuration file again; if there is a mistake in it, nothing changes.
    Reload,
    /// Lists interfaces.
    List(Output),
    /// Shows counters.
    Stats {
        /// Shows them again every second.
        #[arg(long)]
        watch: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Shows interfaces, rates, packets per container, hold times and drops, live in a terminal.
    ///
    /// Keys: s and left or right choose by what rows are ordered, up and down choose a row, q ends.
    Top {
        /// Seconds between two readings.
        #[arg(long, default_value_t = 1.0, value_parser = interval, value_name = "SECONDS")]
        interval: f64,
    },
    /// Sends UDP frames to a guest as fast as it takes them, or into a sink.
    Generate(GenerateArgs),
    /// Copies the frames that pass a port into a file that Wireshark opens, with a comment on each that names its
    /// container.
    Capture(CaptureArgs),
    /// Checks what the daemon needs of this host.
    Doctor(DoctorArgs),
    /// Prints the completions of a shell, to be put where it looks for them.
    Completions {
        /// Shell.
        shell: Shell,
    },
    /// Writes manual pages into a folder.
    Man {
        /// Folder; made when it is missing.
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// TOML file: socket, memory, realtime, no_sandbox, [worker] threads, pin, busy_frames, holdoff_us, holdoff_most_us and busy_poll_us,
    /// [attach] policy and urgent, [metrics] listen and public, and a [[guest]] table with name or uuid and the options
    /// of attach for each interface that is attached when its guest appears. SIGHUP reads it again.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Only judges the file.
    #[arg(long, requires = "config")]
    pub(crate) check: bool,
    /// Has a daemon that runs already leave, and goes on with what it served; guests do not notice.
    #[arg(long)]
    pub(crate) takeover: bool,
    /// Runs the data path under SCHED_FIFO, ahead of all ordinary processes.
    #[arg(long)]
    pub(crate) realtime: bool,
    /// Serves counters for Prometheus at http://ADDR/metrics, as in 127.0.0.1:9481.
    #[arg(long, value_name = "ADDR")]
    pub(crate) metrics: Option<SocketAddr>,
    /// Allows an address for the counters that others than this host reach.
    #[arg(long)]
    pub(crate) metrics_public: bool,
    /// Keeps all rights that the daemon was started with.
    #[arg(long)]
    pub(crate) no_sandbox: bool,
}

/// Judges how often `top` reads.
fn interval(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("it can be 0.1 to 3600".into()),
    }
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Proposes which CPU does what instead: this domain, its interrupts, the workers, the guests.
    #[arg(long)]
    pub(crate) cores: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Output {
    /// Prints JSON instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnOff {
    On,
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AutoOnOff {
    Auto,
    On,
    Off,
}

#[derive(Debug, Args)]
pub(crate) struct AttachArgs {
    /// Name or id.
    pub(crate) domain: String,
    /// Interface number; the lowest free one when absent.
    #[arg(long)]
    pub(crate) vif: Option<u32>,
    /// Address; derived from the guest's UUID when absent.
    #[arg(long)]
    pub(crate) mac: Option<String>,
    /// Uplink, as tap:NAME[,bridge=BRIDGE][,vhost=auto|on|off], packet:DEVICE[,ring=v2|v3][,retire_ms=N] or
    /// xdp:DEVICE[,queue=N][,mode=MODE];
    /// guests without one hear each other only. TAPs take frames by /dev/vhost-net where there is one.
    #[arg(long)]
    pub(crate) port: Option<String>,
    /// When containers go out: opportunistic[:deadline=US], fixed:size=BYTES,timeout=US or slo:delay=US.
    #[arg(long)]
    pub(crate) policy: Option<String>,
    /// Driver domain in which a daemon serves it, by name or id; none need run here then.
    #[arg(long, value_name = "DOMAIN")]
    pub(crate) backend: Option<String>,
    /// Packets that do not wait: all (the default), none, or some of arp,nd,icmp,tcp-ack,ef.
    #[arg(long, value_name = "CLASSES")]
    pub(crate) urgent: Option<String>,
    /// Largest container in bytes, 4096 to 65536.
    #[arg(long, value_name = "BYTES")]
    pub(crate) size: Option<u32>,
    /// Whether containers are offered to the guest.
    #[arg(long, value_enum, default_value = "on")]
    pub(crate) containers: OnOff,
    /// Whether the guest may have its pages mapped here, so that packets cost no grant operation. With auto, the
    /// default, it may where the backend is domain 0, containers are on, and the guest is told to trust it.
    #[arg(long, value_enum)]
    pub(crate) staged: Option<AutoOnOff>,
    /// Whether the guest is told to trust this backend; one that is not told copies what it receives through
    /// mapped pages before it looks.
    #[arg(long, value_enum, default_value = "on")]
    pub(crate) trusted: OnOff,
    /// Drops what the guest sends from another address than its own.
    #[arg(long)]
    pub(crate) locked_mac: bool,
    /// Keeps the guest from other isolated guests; it reaches uplinks and guests that are not isolated.
    #[arg(long)]
    pub(crate) isolated: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// Name or id of a guest, or `sink`.
    #[arg(long)]
    pub(crate) to: String,
    /// Interface number, where there are several.
    #[arg(long)]
    pub(crate) vif: Option<u32>,
    /// Destination address.
    #[arg(long, default_value = "10.0.0.2")]
    pub(crate) ip: Ipv4Addr,
    /// Source address.
    #[arg(long, default_value = "10.0.0.1")]
    pub(crate) source_ip: Ipv4Addr,
    /// Destination port.
    #[arg(long, default_value_t = 9)]
    pub(crate) port: u16,
    /// Bytes of each frame, without its FCS.
    #[arg(long, default_value_t = 60)]
    pub(crate) frame_bytes: usize,
    /// Frames.
    #[arg(long, default_value_t = 10_000)]
    pub(crate) count: u64,
    /// Frames a second; as fast as there is room when absent.
    #[arg(long)]
    pub(crate) rate: Option<u64>,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct CaptureArgs {
    /// An uplink (as in `drayage stats`, or its device), or a guest's interface: DOMAIN, or DOMAIN/VIF.
    #[arg(long)]
    pub(crate) port: String,
    /// Where the pcapng file goes; - for standard output.
    #[arg(long, value_name = "FILE")]
    pub(crate) write: PathBuf,
    /// Ends after so many frames.
    #[arg(long)]
    pub(crate) count: Option<u64>,
    /// Ends after so many seconds.
    #[arg(long)]
    pub(crate) seconds: Option<f64>,
    /// The most bytes of each frame.
    #[arg(long, value_name = "BYTES", default_value_t = 2048)]
    pub(crate) snap: usize,
}
