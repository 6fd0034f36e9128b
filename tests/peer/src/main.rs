//! The command line of the test bed's tool.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use drayage_peer::frame::{UdpFlow, parse_mac};
use drayage_peer::ping::{Pace, PingOptions, Stop};
use drayage_peer::recv::RecvOptions;
use drayage_peer::send::SendOptions;
use drayage_peer::{
    agent, echo, init, keep, offload, orders, ping, query, recv, registers, remote, send, spin, stream, sys,
};
use serde::Serialize;

/// Traffic and control inside the test bed's machines.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves the launcher's requests on a serial line.
    Agent {
        /// Serial line.
        #[arg(long)]
        tty: PathBuf,
    },
    /// Serves the same requests over TCP, for `remote`.
    ServeRemote {
        /// Port.
        #[arg(long, default_value_t = remote::PORT)]
        port: u16,
    },
    /// Runs a shell command on a machine that serves them, and ends with its exit code.
    Remote {
        /// Address of the machine.
        to: IpAddr,
        /// The command.
        command: String,
        /// Port.
        #[arg(long, default_value_t = remote::PORT)]
        port: u16,
        /// Longest wait for the command's end.
        #[arg(long, default_value_t = 50_000)]
        timeout_ms: u64,
    },
    /// Sets offloads of a network device, each NAME=on or NAME=off.
    Offload {
        /// The device.
        device: String,
        /// sg, tso, gso, gro or tx.
        #[arg(required = true, value_parser = parse_offload)]
        settings: Vec<(String, offload::Switch)>,
    },
    /// Looks whether vector registers keep their values, and prints a report.
    Registers {
        /// For how long.
        #[arg(long, default_value_t = 5)]
        seconds: u64,
    },
    /// Runs as the first process of a Linux guest.
    Init,
    /// Inserts kernel modules in the given order.
    Insmod {
        /// Uncompressed modules.
        modules: Vec<PathBuf>,
    },
    /// Sends UDP frames out of a device and prints a report.
    Send(SendArgs),
    /// Counts UDP datagrams and prints a report for every stream.
    Recv(RecvArgs),
    /// Sends ICMP echo requests and prints a report.
    Ping(PingArgs),
    /// Sends datagrams to an echo service and compares what comes back.
    UdpEcho {
        /// Address of the service.
        to: IpAddr,
        /// Port of the service.
        #[arg(long, default_value_t = echo::PORT)]
        port: u16,
        /// Datagrams.
        #[arg(long, default_value_t = 100)]
        count: u64,
        /// Payload of each.
        #[arg(long, default_value_t = 512)]
        bytes: usize,
    },
    /// Sends a stream to an echo service and compares what comes back.
    TcpEcho {
        /// Address of the service.
        to: IpAddr,
        /// Port of the service.
        #[arg(long, default_value_t = echo::PORT)]
        port: u16,
        /// Length of the stream.
        #[arg(long, default_value_t = 1 << 20)]
        bytes: u64,
        /// Makes it as long as it takes until this file is gone, instead.
        #[arg(long = "while", value_name = "FILE", conflicts_with = "bytes")]
        file: Option<PathBuf>,
        /// Seed of the stream.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Longest silence.
        #[arg(long, default_value_t = 20_000)]
        timeout_ms: u64,
    },
    /// Asks a service for a line of text until one word of the answer stands still, and prints it.
    Query {
        /// Address of the service.
        to: Ipv4Addr,
        /// UDP port of the service.
        #[arg(long)]
        port: u16,
        /// The question.
        #[arg(long, default_value = "stats")]
        text: String,
        /// Word whose value must be the same in two answers (`KEY=value`); one answer is enough when
        /// absent.
        #[arg(long)]
        still: Option<String>,
        /// Time between two questions.
        #[arg(long, default_value_t = 50)]
        interval_ms: u64,
    },
    /// Copies a JSON document from standard input without the members, at any depth, that have none of some keys.
    Keep {
        /// The keys.
        keys: Vec<String>,
    },
    /// Sends what datagrams to a port order, and tells them how far it is.
    ServeSend {
        /// UDP port for orders.
        #[arg(long, default_value_t = 11)]
        orders: u16,
        #[command(flatten)]
        send: SendArgs,
    },
    /// Serves UDP and TCP echo.
    ServeEcho {
        /// Port.
        #[arg(long, default_value_t = echo::PORT)]
        port: u16,
    },
    /// Takes TCP streams on one port and sends endless ones on another.
    ServeStreams {
        /// Port of streams that are taken.
        #[arg(long, default_value_t = stream::TAKEN)]
        taken: u16,
        /// Port of streams that are sent.
        #[arg(long, default_value_t = stream::SENT)]
        sent: u16,
    },
    /// Sends a TCP stream to a service that throws it away, and waits until it has all.
    TcpPush(StreamArgs),
    /// Reads a TCP stream from a service that sends an endless one.
    TcpPull(StreamArgs),
    /// Reads the clock without a pause, and tells for how long it was kept from that: the machine's own jitter.
    Spin {
        /// For so long.
        #[arg(long, default_value_t = 1000)]
        ms: u64,
    },
}

#[derive(Debug, Args)]
struct StreamArgs {
    /// Address of the service.
    to: IpAddr,
    /// Port of the service.
    #[arg(long)]
    port: u16,
    /// Length of the stream.
    #[arg(long, default_value_t = 8 << 20)]
    bytes: u64,
    /// Longest silence.
    #[arg(long, default_value_t = 20_000)]
    timeout_ms: u64,
}

impl StreamArgs {
    fn stream(&self) -> stream::Stream {
        stream::Stream {
            to: self.to,
            port: self.port,
            bytes: self.bytes,
            timeout: Duration::from_millis(self.timeout_ms),
        }
    }
}

#[derive(Debug, Args)]
struct SendArgs {
    /// Device to send out of.
    #[arg(long)]
    dev: String,
    /// Destination MAC.
    #[arg(long, value_parser = parse_mac)]
    dst_mac: MacBytes,
    /// Source MAC.
    #[arg(long, value_parser = parse_mac, default_value = "02:00:00:00:00:01")]
    src_mac: MacBytes,
    /// Destination address.
    #[arg(long)]
    dst_ip: Ipv4Addr,
    /// Source address.
    #[arg(long)]
    src_ip: Ipv4Addr,
    /// Destination port.
    #[arg(long, default_value_t = 9)]
    dst_port: u16,
    /// Source port.
    #[arg(long, default_value_t = 4000)]
    src_port: u16,
    /// Bytes of a frame without its FCS.
    #[arg(long, default_value_t = 60)]
    frame: usize,
    /// Frames.
    #[arg(long, default_value_t = 10_000)]
    count: u64,
    /// Frames a second; as many as the socket buffer lets through when absent.
    #[arg(long)]
    rate: Option<u64>,
    /// Frames handed over in one system call.
    #[arg(long, default_value_t = 64)]
    batch: usize,
    /// Socket buffer in bytes.
    #[arg(long)]
    sndbuf: Option<usize>,
    /// CLOCK_MONOTONIC's nanoseconds at which the first frame leaves; at once when absent.
    #[arg(long)]
    at_ns: Option<u64>,
}

/// Named so that clap does not take the array for a list.
type MacBytes = [u8; 6];

#[derive(Debug, Args)]
struct RecvArgs {
    /// UDP port.
    #[arg(long, default_value_t = 9)]
    port: u16,
    /// Ends after this many datagrams.
    #[arg(long)]
    count: Option<u64>,
    /// Silence that ends a stream.
    #[arg(long, default_value_t = 300)]
    idle_ms: u64,
    /// Longest wait for the first datagram.
    #[arg(long)]
    timeout_ms: Option<u64>,
    /// Multicast group to join; needs a device.
    #[arg(long, requires = "dev")]
    join: Option<Ipv4Addr>,
    /// Device on which the group is joined.
    #[arg(long)]
    dev: Option<String>,
    /// Where the reports go instead of standard output.
    #[arg(long)]
    output: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct PingArgs {
    /// Whom to ask.
    to: IpAddr,
    /// Requests.
    #[arg(long, default_value_t = 5)]
    count: u64,
    /// Payload of each.
    #[arg(long, default_value_t = 56)]
    bytes: usize,
    /// Longest wait for each answer.
    #[arg(long, default_value_t = 1000)]
    interval_ms: u64,
    /// Stops at the first answer.
    #[arg(long)]
    until_answered: bool,
    /// Waits out the interval after an answer, too.
    #[arg(long)]
    spaced: bool,
}

/// Reads NAME=on or NAME=off.
fn parse_offload(text: &str) -> Result<(String, offload::Switch), String> {
    let (name, to) = text.split_once('=').ok_or("expected NAME=on or NAME=off")?;
    Ok((name.to_owned(), <offload::Switch as clap::ValueEnum>::from_str(to, false)?))
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    if let Command::Remote { to, command, port, timeout_ms } = &command {
        return match remote::run(*to, *port, command, Duration::from_millis(*timeout_ms)) {
            Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
            Err(error) => {
                eprintln!("peer: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    match run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peer: {error:#}");
            if std::process::id() == 1 {
                eprintln!("peer: {}", sys::power_off());
            }
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Agent { tty } => agent::serve_tty(&tty),
        Command::ServeRemote { port } => remote::serve(port),
        Command::Remote { .. } => unreachable!("taken before, for its exit code"),
        Command::Offload { device, settings } => {
            settings.iter().try_for_each(|(name, to)| offload::set(&device, name, *to))
        }
        Command::Registers { seconds } => print(&registers::watch(seconds)),
        Command::Init => init::run(),
        Command::Insmod { modules } => modules.iter().try_for_each(|path| init::insert(path)),
        Command::Send(args) => print(&send::send(&send_options(args))?),
        Command::Recv(args) => {
            let options = RecvOptions {
                port: args.port,
                count: args.count,
                idle_ms: args.idle_ms,
                timeout_ms: args.timeout_ms,
                join: args.join.zip(args.dev),
            };
            match args.output {
                Some(path) => recv::recv(
                    options,
                    &mut std::fs::OpenOptions::new().append(true).create(true).open(path)?,
                ),
                None => recv::recv(options, &mut io::stdout()),
            }
        }
        Command::Ping(args) => print(&ping::ping(&PingOptions {
            to: args.to,
            count: args.count,
            payload_bytes: args.bytes,
            interval_ms: args.interval_ms,
            stop: if args.until_answered { Stop::AtFirstAnswer } else { Stop::AfterAll },
            pace: if args.spaced { Pace::Spaced } else { Pace::AtOnce },
        })?),
        Command::UdpEcho { to, port, count, bytes } => print(&echo::udp_client(to, port, count, bytes)?),
        Command::TcpEcho { to, port, bytes, file, seed, timeout_ms } => {
            let extent = file.map_or(echo::Extent::Bytes(bytes), echo::Extent::While);
            print(&echo::tcp_client(to, port, extent, seed, Duration::from_millis(timeout_ms))?)
        }
        Command::Query { to, port, text, still, interval_ms } => {
            let question = query::Question { to, port, text, still, interval_ms };
            writeln!(io::stdout(), "{}", query::ask(&question)?)?;
            Ok(())
        }
        Command::Keep { keys } => {
            let mut document = serde_json::from_reader(io::stdin())?;
            keep::keep(&mut document, &keys);
            print(&document)
        }
        Command::ServeSend { orders, send } => orders::serve(orders, &send_options(send)),
        Command::ServeEcho { port } => echo::serve(port),
        Command::ServeStreams { taken, sent } => stream::serve(taken, sent),
        Command::TcpPush(args) => print(&stream::push(&args.stream())?),
        Command::TcpPull(args) => print(&stream::pull(&args.stream())?),
        Command::Spin { ms } => print(&spin::spin(Duration::from_millis(ms))),
    }
}

fn send_options(args: SendArgs) -> SendOptions {
    SendOptions {
        device: args.dev,
        flow: UdpFlow {
            src_mac: args.src_mac,
            dst_mac: args.dst_mac,
            src_ip: args.src_ip,
            dst_ip: args.dst_ip,
            src_port: args.src_port,
            dst_port: args.dst_port,
        },
        frame_bytes: args.frame,
        count: args.count,
        rate: args.rate,
        batch: args.batch,
        buffer_bytes: args.sndbuf,
        at_ns: args.at_ns,
    }
}

fn print(report: &impl Serialize) -> Result<()> {
    writeln!(io::stdout(), "{}", serde_json::to_string(report)?)?;
    Ok(())
}
