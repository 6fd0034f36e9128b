//! The daemon: the data path's threads, the control side on the main thread, and a thread for each connection
//! of the command line's.
//!
//! It starts and ends things, and knows none of them from within.

mod asked;
mod capture;
mod config;
mod data;
mod lock;
mod notify;
mod realtime;
mod scrape;
mod server;
mod threads;

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR2};

use crate::clock::{Clock, Monotonic};
use crate::control::attachment::Memory;
use crate::control::error::{Failure, FailureKind};
use crate::control::{Detached, Manager};
use crate::ipc::{DEFAULT_SOCKET, Generated, Reply, Request, Stats, ask, hand_over};
use crate::port::generator::{MAX_FRAME_BYTES, MIN_FRAME_BYTES, Stream};
use crate::sandbox::{self, Needs};
use crate::store::client::{Client, Notice};
use crate::switch::Mac;
use crate::worker::{Target, WorkerCounters};
use crate::xen::kept::KeptPages;
use crate::xen::{DomainId, OpenError};
pub use asked::attach_request;
pub use config::{Config, Defaults};
use data::Scheduling;
use lock::Lock;
pub use scrape::Metrics;
use threads::DataThreads;
pub use threads::Workers;

/// Where attachments are remembered unless the configuration says otherwise. Not over a reboot of the host:
/// its guests do not survive that either.
const DEFAULT_MEMORY: &str = "/run/drayage/attachments.json";
/// The generator's own address.
const GENERATOR_MAC: Mac = Mac([0x02, 0, 0, 0, 0, 0x01]);

/// Something that the main thread is to handle.
enum Event {
    Store(Notice),
    Request(Request, Sender<Reply>),
    Capture(Request, UnixStream),
    Fault,
    Stop(i32),
    Leave,
    Reload,
}

/// What to do about a daemon that runs already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Nothing: this one does not start.
    Alone,
    /// It leaves, and this one goes on with what it served.
    TakeOver,
}

/// How the daemon ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// With no interface left.
    Closed,
    /// With its interfaces connected, for the next daemon.
    Left,
}

type DaemonManager = Manager<Client, DataThreads>;

struct Daemon {
    manager: DaemonManager,
    clock: Monotonic,
    /// Requests to detach that wait for the frontend.
    detaching: Vec<((DomainId, u32), Sender<Reply>)>,
    /// Whether the next daemon is to go on from here.
    leaving: bool,
    /// Whether all interfaces are being closed.
    stopping: bool,
    config: Config,
}

/// Runs the daemon in the foreground until it is told to stop.
///
/// # Errors
/// [`Failure`], when it cannot start or loses xenstore.
pub fn run(config: &Config, start: Start) -> Result<(), Failure> {
    let socket = config.socket.clone().unwrap_or_else(|| DEFAULT_SOCKET.into());
    if start == Start::TakeOver {
        hand_over(&socket)?;
    }
    let _lock = Lock::take(&socket, || ask::<String>(&socket, &Request::Hello).is_ok())?;
    let listener = server::listen(&socket)?;
    let result = serve(config, &socket, listener);
    // Nobody is to find a socket that nobody listens on, however we ended.
    let _ = std::fs::remove_file(&socket);
    result
}

/// Runs the daemon on its socket.
fn serve(config: &Config, socket: &Path, listener: UnixListener) -> Result<(), Failure> {
    let scraped = scrape::listen(&config.metrics)?;
    let memory_file = config.memory.clone().unwrap_or_else(|| DEFAULT_MEMORY.into());
    enter_sandbox(config, socket, &memory_file)?;
    let (tell, events) = channel();
    let kept = KeptPages::in_folder(memory_file.with_file_name("rings"));
    let to_main = tell.clone();
    let scheduling = if config.realtime { Scheduling::Realtime } else { Scheduling::Ordinary };
    let data = threads::start(&config.worker, scheduling, &kept, move || drop(to_main.send(Event::Fault)))?;
    if config.realtime {
        realtime::warn(config.worker.threads);
    }
    let to_main = tell.clone();
    let store = connect_store(move |notice| drop(to_main.send(Event::Store(notice))))?;
    let own = store.own_domain()?;
    let manager = Manager::new(store, data, own, Memory::in_file(memory_file))?;
    let config = config.clone();
    let guests = config.guests()?;
    let clock = Monotonic;
    let mut daemon =
        Daemon { manager, clock, detaching: Vec::new(), leaving: false, stopping: false, config };
    daemon.apply_defaults();
    daemon.manager.recall(Monotonic.now_ns())?;
    daemon.manager.configure(guests, Monotonic.now_ns())?;
    kept.sweep(|domain| daemon.manager.serves(domain));
    stop_on_signals(tell.clone())?;
    if let Some(listener) = scraped {
        let tell = tell.clone();
        scrape::serve(listener, move || read_stats(&tell))?;
    }
    server::serve(listener, tell);
    notify::ready();
    tracing::info!("ready: serving as domain {own}, listening on {}", socket.display());
    let result = daemon.work(&events);
    match result {
        Ok(Ending::Closed) => daemon.manager.end(),
        Ok(Ending::Left) => tracing::info!("leaving with all interfaces connected, for the next daemon"),
        Err(_) => {}
    }
    result.map(drop)
}

/// Connects to xenstore.
///
/// # Errors
/// [`Failure`], with what to do.
pub fn connect_store(notice: impl FnMut(Notice) + Send + 'static) -> Result<Client, Failure> {
    Client::connect(notice).map_err(|error| {
        let denied = error.socket.kind() == std::io::ErrorKind::PermissionDenied;
        let kind = if denied { FailureKind::Denied } else { FailureKind::NoXen };
        Failure::new(kind, format!("{error}; start xenstored, and run as root in dom0 or in a driver domain"))
    })
}

/// Gives up what the daemon does not need, before there are other threads. Devices are opened in the sandbox.
fn enter_sandbox(config: &Config, socket: &Path, memory: &Path) -> Result<(), Failure> {
    if config.no_sandbox {
        tracing::warn!("running without the sandbox, with all rights of its user");
        return Ok(());
    }
    let mut folders = Vec::new();
    for folder in [socket.parent(), memory.parent()].into_iter().flatten() {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        // Only what is there can be kept writable.
        std::fs::create_dir_all(folder).map_err(|error| {
            Failure::new(FailureKind::Other, format!("making {}: {error}", folder.display()))
        })?;
        folders.push(folder.to_owned());
    }
    sandbox::enter(&Needs { folders, realtime: config.realtime })
}

/// Asks the main thread for the counters, as Prometheus reads them.
fn read_stats(tell: &Sender<Event>) -> Option<String> {
    let (answer, answered) = channel();
    tell.send(Event::Request(Request::Stats, answer)).ok()?;
    match answered.recv().ok()? {
        Reply::Ok(stats) => Some(crate::metrics::text(&stats)),
        Reply::Error(_) => None,
    }
}

fn not_xen(error: OpenError) -> Failure {
    let message = error.to_string();
    match error.source.kind() {
        std::io::ErrorKind::PermissionDenied => {
            Failure::new(FailureKind::Denied, format!("{message}; run as root"))
        }
        _ => Failure::new(
            FailureKind::NoXen,
            format!(
                "{message}; is this a Xen host, and are xen-gntdev and xen-evtchn loaded? (`drayage doctor`)"
            ),
        ),
    }
}

fn stop_on_signals(tell: Sender<Event>) -> Result<(), Failure> {
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGUSR2, SIGHUP])
        .map_err(|error| Failure::new(FailureKind::Other, format!("catching signals: {error}")))?;
    std::thread::spawn(move || {
        for signal in signals.forever() {
            let event = match signal {
                SIGUSR2 => Event::Leave,
                SIGHUP => Event::Reload,
                _ => Event::Stop(signal),
            };
            if tell.send(event).is_err() {
                return;
            }
        }
    });
    Ok(())
}

impl Daemon {
    /// Handles events until the end.
    fn work(&mut self, events: &Receiver<Event>) -> Result<Ending, Failure> {
        loop {
            let event = match self.manager.next_deadline_ns() {
                None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at_ns) => {
                    let left = at_ns.saturating_sub(self.clock.now_ns());
                    events.recv_timeout(Duration::from_nanos(left))
                }
            };
            let now_ns = self.clock.now_ns();
            match event {
                Ok(Event::Store(Notice::Watch(event))) => self.manager.on_watch(&event, now_ns)?,
                Ok(Event::Store(Notice::Broken(why))) => {
                    return Err(Failure::new(FailureKind::Other, format!("xenstore went away: {why}")));
                }
                Ok(Event::Fault) => self.manager.on_faults()?,
                Ok(Event::Leave) => self.leaving = true,
                Ok(Event::Reload) => {
                    if let Err(failure) = self.reload(now_ns) {
                        tracing::error!("{failure}; everything stays as it was");
                    }
                }
                Ok(Event::Request(request, reply)) => self.request(request, reply, now_ns),
                Ok(Event::Capture(request, stream)) => self.capture(request, stream),
                Ok(Event::Stop(_)) if self.stopping => return Ok(Ending::Left),
                Ok(Event::Stop(signal)) => {
                    tracing::info!(
                        "closing all interfaces after signal {signal}; once more to leave at once"
                    );
                    self.stopping = true;
                    notify::stopping();
                    self.manager.close_all(now_ns);
                }
                Err(RecvTimeoutError::Timeout) => self.manager.on_time(now_ns),
                Err(RecvTimeoutError::Disconnected) => return Ok(Ending::Left),
            }
            self.report_detached();
            if self.leaving {
                return Ok(Ending::Left);
            }
            if self.stopping && self.manager.is_empty() {
                return Ok(Ending::Closed);
            }
        }
    }

    fn report_detached(&mut self) {
        let manager = &self.manager;
        self.detaching.retain(|(key, reply)| {
            if manager.is_attached(*key) {
                return true;
            }
            let _ = reply.send(Reply::Ok(serde_json::Value::Null));
            false
        });
    }

    fn request(&mut self, request: Request, reply: Sender<Reply>, now_ns: u64) {
        let answer = match request {
            Request::Hello => to_reply(env!("CARGO_PKG_VERSION")),
            Request::Reload => match self.reload(now_ns) {
                Ok(()) => Reply::Ok(serde_json::Value::Null),
                Err(failure) => Reply::Error(failure),
            },
            Request::HandOver => {
                self.leaving = true;
                Reply::Ok(serde_json::Value::Null)
            }
            Request::List => to_reply(self.manager.list()),
            Request::Stats => self.stats(),
            Request::Attach { .. } => match attach_request(request, self.config.attach) {
                Ok(wanted) => match self.manager.attach(&wanted) {
                    Ok(attachment) => to_reply(attachment),
                    Err(failure) => Reply::Error(failure),
                },
                Err(failure) => Reply::Error(failure),
            },
            Request::Detach { domain, vif } => match self.manager.detach(&domain, vif, now_ns) {
                Ok((key, Detached::Closing)) => {
                    self.detaching.push((key, reply));
                    return;
                }
                Ok((_, Detached::Done)) => Reply::Ok(serde_json::Value::Null),
                Err(failure) => Reply::Error(failure),
            },
            // The server hands these over with their connection.
            Request::Capture { .. } => return,
            Request::Generate { .. } => match self.generate(request, &reply) {
                Ok(()) => return,
                Err(failure) => Reply::Error(failure),
            },
        };
        // The asker may have gone away.
        let _ = reply.send(answer);
    }

    fn apply_defaults(&mut self) {
        let Defaults { policy, urgent, staged } = self.config.attach;
        self.manager.set_defaults(policy, urgent, staged);
    }

    /// Reads the configuration again. What is wrong with it changes nothing.
    fn reload(&mut self, now_ns: u64) -> Result<(), Failure> {
        let Some(path) = self.config.path.clone() else {
            let message =
                "this daemon was started without a configuration file (`drayage run --config FILE`)";
            return Err(Failure::new(FailureKind::NotFound, message));
        };
        if self.stopping {
            return Err(Failure::new(FailureKind::Other, "the daemon is closing all interfaces"));
        }
        let mut config = Config::read(&path)?;
        let guests = config.guests()?;
        // The command line's word goes before the file's, as at the start.
        config.socket.clone_from(&self.config.socket);
        let fixed = |c: &Config| (c.memory.clone(), c.worker.clone(), c.realtime);
        config.realtime |= self.config.realtime;
        if fixed(&config) != fixed(&self.config) {
            tracing::warn!("{}: memory, realtime and [worker] count from the next start on", path.display());
        }
        self.config = config;
        self.apply_defaults();
        self.manager.configure(guests, now_ns)?;
        tracing::info!("read {} again", path.display());
        Ok(())
    }

    fn stats(&mut self) -> Reply {
        let interfaces = self.manager.stats();
        let uplinks = self.manager.uplinks();
        let workers = self.manager.data().stats();
        let mut worker = WorkerCounters::default();
        for one in &workers {
            worker += one.counters;
        }
        to_reply(Stats { interfaces, uplinks, worker, workers })
    }

    /// Starts a stream; the reply is sent when it ends.
    fn generate(&mut self, request: Request, reply: &Sender<Reply>) -> Result<(), Failure> {
        let Request::Generate { to, vif, ip, source_ip, port, frame_bytes, count, rate } = request else {
            return Ok(());
        };
        let bad = |message: String| Err(Failure::new(FailureKind::BadValue, message));
        if !(MIN_FRAME_BYTES..=MAX_FRAME_BYTES).contains(&frame_bytes) {
            return bad(format!(
                "bad frame size {frame_bytes}: it can be {MIN_FRAME_BYTES} to {MAX_FRAME_BYTES} bytes"
            ));
        }
        if count == 0 || rate == Some(0) {
            return bad("a count or rate of 0 generates nothing".into());
        }
        let (target, dst_mac) = if to == "sink" {
            (Target::Sink, Mac([0x02, 0, 0, 0, 0, 0x02]))
        } else {
            let (port, mac) = match self.manager.connected(&to, vif) {
                Some(found) => found,
                None => {
                    self.manager.find(&to)?;
                    let message = format!("domain {to:?} has no connected interface; see `drayage list`");
                    return Err(Failure::new(FailureKind::NotFound, message));
                }
            };
            (Target::Guest(port), mac)
        };
        let stream = Stream {
            src_mac: GENERATOR_MAC,
            dst_mac,
            src_ip: source_ip,
            dst_ip: ip,
            src_port: 4000,
            dst_port: port,
            frame_bytes,
            count,
            rate,
        };
        let (tell, done) = channel();
        if !self.manager.data().start_stream(stream, target, tell) {
            let message = "the generator is at work already; wait until it has finished";
            return Err(Failure::new(FailureKind::Taken, message));
        }
        let reply = reply.clone();
        std::thread::spawn(move || {
            let answer = match done.recv() {
                Ok((report, sink)) => to_reply(Generated { report, sink }),
                Err(_) => Reply::Error(Failure::new(FailureKind::Other, "the data path went away")),
            };
            let _ = reply.send(answer);
        });
        Ok(())
    }
}

fn to_reply(value: impl serde::Serialize) -> Reply {
    match serde_json::to_value(value) {
        Ok(value) => Reply::Ok(value),
        Err(error) => Reply::Error(Failure::new(FailureKind::Other, error.to_string())),
    }
}
