//! What each command does: asks the daemon, and prints what it says.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use drayage::capture::file::count;
use drayage::control::attachment::Attachment;
use drayage::control::details::{Containers, Staged, Trusted};
use drayage::control::elsewhere;
use drayage::control::error::{Failure, FailureKind};
use drayage::control::views::Interface;
use drayage::daemon::{self, Config, Start};
use drayage::doctor::{Verdict, examine};
use drayage::ipc::{Generated, Request, Stats, ask, open_stream};
use drayage::rules::Rules;
use drayage::table;
use serde::Serialize;

use crate::cli::{
    AttachArgs, AutoOnOff, CaptureArgs, Cli, Command, DoctorArgs, GenerateArgs, OnOff, Output, RunArgs,
};

/// Does what the command line says.
pub(crate) fn run(cli: Cli) -> Result<ExitCode, Failure> {
    let socket = cli.socket();
    match cli.command {
        Command::Run(RunArgs { config: Some(config), check: true, .. }) => {
            let guests = Config::read(&config)?.guests()?.len();
            let text = format!("{} is good, with {guests} interfaces of guests", config.display());
            show(&Output { json: false }, &text, String::clone)?;
        }
        Command::Run(args) => run_daemon(args, cli.socket)?,
        Command::Attach(args) => attach(&socket, args)?,
        Command::Detach { domain, vif, backend: None } => {
            ask::<()>(&socket, &Request::Detach { domain, vif })?;
        }
        Command::Detach { domain, vif, backend: Some(backend) } => {
            let (tell, notices) = std::sync::mpsc::channel();
            let store = daemon::connect_store(move |notice| drop(tell.send(notice)))?;
            elsewhere::detach(&store, store.own_domain()?, (&domain, vif), &backend, &notices)?;
        }
        Command::Reload => ask::<()>(&socket, &Request::Reload)?,
        Command::List(output) => {
            let list: Vec<Interface> = ask(&socket, &Request::List)?;
            show(&output, &list, |list| table::interfaces(list))?;
        }
        Command::Stats { watch, output } => loop {
            let stats: Stats = ask(&socket, &Request::Stats)?;
            show(&output, &stats, table::stats)?;
            if !watch {
                break;
            }
            std::thread::sleep(Duration::from_secs(1));
        },
        Command::Top { interval } => crate::top::show(&socket, Duration::from_secs_f64(interval))?,
        Command::Generate(args) => generate(&socket, args)?,
        Command::Capture(args) => capture(&socket, args)?,
        Command::Doctor(DoctorArgs { cores: true, output }) => {
            show(&output, &drayage::cores::examine(), table::cores)?;
        }
        Command::Doctor(DoctorArgs { output, .. }) => {
            let checks = examine(&socket);
            show(&output, &checks, |checks| table::checks(checks))?;
            if checks.iter().any(|check| check.verdict == Verdict::Bad) {
                return Ok(ExitCode::from(FailureKind::Other.exit_code()));
            }
        }
        Command::Completions { shell } => {
            crate::manual::completions(shell, &mut io::stdout()).or_else(printing)?;
        }
        Command::Man { folder } => crate::manual::pages(&folder).map_err(|error| {
            let message = format!("writing manual pages to {}: {error}", folder.display());
            Failure::new(FailureKind::Other, message)
        })?,
    }
    Ok(ExitCode::SUCCESS)
}

fn run_daemon(args: RunArgs, socket: Option<std::path::PathBuf>) -> Result<(), Failure> {
    tracing_subscriber::fmt().with_writer(io::stderr).with_target(false).init();
    let mut config = args.config.as_deref().map(Config::read).transpose()?.unwrap_or_default();
    if socket.is_some() {
        config.socket = socket;
    }
    config.realtime |= args.realtime;
    config.metrics.listen = args.metrics.or(config.metrics.listen);
    config.metrics.public |= args.metrics_public;
    config.no_sandbox |= args.no_sandbox;
    let start = if args.takeover { Start::TakeOver } else { Start::Alone };
    daemon::run(&config, start)
}

fn attach(socket: &Path, args: AttachArgs) -> Result<(), Failure> {
    let request = Request::Attach {
        domain: args.domain,
        vif: args.vif,
        mac: args.mac,
        port: args.port,
        policy: args.policy,
        urgent: args.urgent,
        size_bytes: args.size,
        containers: match args.containers {
            OnOff::On => Containers::On,
            OnOff::Off => Containers::Off,
        },
        rules: Rules { locked_mac: args.locked_mac, isolated: args.isolated },
        staged: args.staged.map(|staged| match staged {
            AutoOnOff::Auto => Staged::Auto,
            AutoOnOff::On => Staged::On,
            AutoOnOff::Off => Staged::Off,
        }),
        trusted: match args.trusted {
            OnOff::On => Trusted::On,
            OnOff::Off => Trusted::Off,
        },
    };
    let made: Attachment = match args.backend {
        None => ask(socket, &request)?,
        Some(backend) => {
            let store = daemon::connect_store(|_| ())?;
            let request = daemon::attach_request(request, Default::default())?;
            elsewhere::attach(&store, store.own_domain()?, &request, &backend)?
        }
    };
    show(&args.output, &made, |made| {
        let port = made.port.as_ref().map_or("other guests only".into(), ToString::to_string);
        format!("attached {} as vif {}, mac {}, to {port}", made.name, made.vif, made.mac)
    })
}

fn capture(socket: &Path, args: CaptureArgs) -> Result<(), Failure> {
    let request =
        Request::Capture { port: args.port, snap_bytes: args.snap, count: args.count, seconds: args.seconds };
    let mut stream = open_stream(socket, &request)?;
    let shown = args.write.display();
    let failed = |error: io::Error| Failure::new(FailureKind::Other, format!("writing {shown}: {error}"));
    if args.write.as_os_str() == "-" {
        return io::copy(&mut stream, &mut io::stdout().lock()).map(drop).map_err(failed);
    }
    let mut file = std::fs::File::create(&args.write).map_err(failed)?;
    io::copy(&mut stream, &mut file).map_err(failed)?;
    let (packets, lost) =
        std::fs::File::open(&args.write).and_then(|file| count(io::BufReader::new(file))).map_err(failed)?;
    eprintln!("{packets} packets in {shown}, {lost} lost to the capture");
    Ok(())
}

fn generate(socket: &Path, args: GenerateArgs) -> Result<(), Failure> {
    let request = Request::Generate {
        to: args.to,
        vif: args.vif,
        ip: args.ip,
        source_ip: args.source_ip,
        port: args.port,
        frame_bytes: args.frame_bytes,
        count: args.count,
        rate: args.rate,
    };
    let done: Generated = ask(socket, &request)?;
    show(&args.output, &done, |done| {
        let report = &done.report;
        let seconds = report.elapsed_ns as f64 / 1e9;
        let rate = if seconds > 0.0 { report.sent as f64 / seconds } else { 0.0 };
        let stalls = report.stalls;
        format!("sent {} frames in {seconds:.3} s ({rate:.0} a second), stalled {stalls} times", report.sent)
    })?;
    if done.report.cut_short {
        return Err(Failure::new(FailureKind::Other, "the receiver went away before all was sent"));
    }
    Ok(())
}

fn show<T: Serialize>(output: &Output, value: &T, table: impl FnOnce(&T) -> String) -> Result<(), Failure> {
    let text = if output.json {
        serde_json::to_string(value).map_err(|error| Failure::new(FailureKind::Other, error.to_string()))?
    } else {
        table(value)
    };
    writeln!(io::stdout(), "{text}").or_else(printing)
}

/// Judges what went wrong while something was printed.
fn printing(error: io::Error) -> Result<(), Failure> {
    if error.kind() == io::ErrorKind::BrokenPipe {
        // Whoever reads has had enough.
        std::process::exit(0);
    }
    Err(Failure::new(FailureKind::Other, format!("printing: {error}")))
}
