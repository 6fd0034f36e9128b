//! What the command line and the daemon say to each other: one JSON document a line over a Unix socket, a
//! request one way, a reply the other.
//!
//! It knows the messages and the socket, and nothing of how a request is done.

use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::control::details::{Containers, Staged, Trusted};
use crate::control::error::{Failure, FailureKind};
use crate::control::views::{InterfaceStats, UplinkStats};
use crate::port::generator::Report;
use crate::port::sink::SinkCounters;
use crate::rules::Rules;
use crate::trunk::TrunkCounters;
use crate::worker::WorkerCounters;

/// Where the daemon listens unless it is told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/drayage.sock";

/// A request. Texts are judged by the daemon: whoever writes to the socket may be anybody who may open it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Attaches a guest; the reply is an [`Attachment`](crate::control::attachment::Attachment).
    Attach {
        /// Name or number.
        domain: String,
        /// Interface number.
        vif: Option<u32>,
        /// Address.
        mac: Option<String>,
        /// Port.
        port: Option<String>,
        /// Policy.
        policy: Option<String>,
        /// Classes of packets that do not wait.
        #[serde(default)]
        urgent: Option<String>,
        /// Largest container.
        size_bytes: Option<u32>,
        /// Whether containers are offered.
        containers: Containers,
        /// What the guest is held to.
        #[serde(flatten)]
        rules: Rules,
        /// Whether the guest may have its pages mapped.
        #[serde(default)]
        staged: Option<Staged>,
        /// Whether the guest is told to trust its backend.
        #[serde(default)]
        trusted: Trusted,
    },
    /// Detaches a guest; the reply comes when it is done.
    Detach {
        /// Name or number.
        domain: String,
        /// Interface number.
        vif: Option<u32>,
    },
    /// Lists interfaces; the reply is a list of [`Interface`](crate::control::views::Interface)s.
    List,
    /// Shows counters; the reply is a [`Stats`].
    Stats,
    /// Generates traffic; the reply, a [`Generated`], comes when it is done.
    Generate {
        /// Name or number of a guest, or `sink`.
        to: String,
        /// Interface number.
        vif: Option<u32>,
        /// Destination address of the packets.
        ip: Ipv4Addr,
        /// Source address of the packets.
        source_ip: Ipv4Addr,
        /// Destination port.
        port: u16,
        /// Bytes of each frame.
        frame_bytes: usize,
        /// Frames.
        count: u64,
        /// Frames a second.
        rate: Option<u64>,
    },
    /// Copies the frames that pass a port; the reply is empty, and after it comes a pcapng file, whose end is the
    /// connection's.
    Capture {
        /// An uplink, or a guest's interface.
        port: String,
        /// The most bytes of each frame.
        snap_bytes: usize,
        /// Frames.
        count: Option<u64>,
        /// Seconds.
        seconds: Option<f64>,
    },
    /// Asks whether somebody is there; the reply is the version.
    Hello,
    /// Has the daemon read its configuration again.
    Reload,
    /// Has the daemon end with all interfaces connected, for another one to go on with them.
    HandOver,
}

/// All counters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Of each interface.
    pub interfaces: Vec<InterfaceStats>,
    /// Of each uplink.
    pub uplinks: Vec<UplinkStats>,
    /// Of all workers together.
    pub worker: WorkerCounters,
    /// Of each worker.
    pub workers: Vec<WorkerStats>,
}

/// A worker in `stats`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStats {
    /// The processor that it is held to.
    pub cpu: Option<usize>,
    /// The guests that it serves.
    pub guests: usize,
    /// The uplinks that it has.
    pub uplinks: usize,
    /// What it did.
    #[serde(flatten)]
    pub counters: WorkerCounters,
    /// What went between it and the others.
    pub trunks: TrunkCounters,
}

/// What was generated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generated {
    /// What was sent.
    #[serde(flatten)]
    pub report: Report,
    /// What the sink took, if that is where it went.
    pub sink: Option<SinkCounters>,
}

/// A reply.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// It is done, with this to show for it.
    Ok(serde_json::Value),
    /// It is not.
    Error(Failure),
}

/// Asks the daemon, and waits for its reply.
///
/// # Errors
/// [`Failure`]: the daemon's, or one of reaching it.
pub fn ask<T: DeserializeOwned>(socket: &Path, request: &Request) -> Result<T, Failure> {
    converse(socket, request).map(|(value, _)| value)
}

/// Asks the daemon for something that follows its reply. Returns where to read it.
///
/// # Errors
/// As for [`ask`].
pub fn open_stream(socket: &Path, request: &Request) -> Result<impl BufRead, Failure> {
    converse::<()>(socket, request).map(|(_, stream)| stream)
}

fn converse<T: DeserializeOwned>(
    socket: &Path,
    request: &Request,
) -> Result<(T, BufReader<UnixStream>), Failure> {
    let shown = socket.display();
    let other = |error: String| Failure::new(FailureKind::Other, format!("{shown}: {error}"));
    let mut stream = UnixStream::connect(socket).map_err(|error| match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            let message = format!("no permission to use {shown}: run as root");
            Failure::new(FailureKind::Denied, message)
        }
        std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
            let message = format!(
                "the daemon does not run (nobody listens on {shown}): start it with `drayage run`, or name \
                 its socket with --socket"
            );
            Failure::new(FailureKind::NoDaemon, message)
        }
        _ => Failure::new(FailureKind::NoDaemon, format!("connecting to {shown}: {error}")),
    })?;
    let mut line = serde_json::to_string(request).map_err(|error| other(error.to_string()))?;
    line.push('\n');
    let gone = |why: String| Failure::new(FailureKind::Gone, format!("{shown}: {why}"));
    stream.write_all(line.as_bytes()).map_err(|error| gone(error.to_string()))?;
    let mut answer = String::new();
    let mut stream = BufReader::new(stream);
    stream.read_line(&mut answer).map_err(|error| gone(error.to_string()))?;
    if answer.is_empty() {
        return Err(gone("the daemon went away before it answered".into()));
    }
    let reply: Reply = serde_json::from_str(&answer)
        .map_err(|error| other(format!("an answer that makes no sense: {error}")))?;
    match reply {
        Reply::Ok(value) => {
            let value = serde_json::from_value(value)
                .map_err(|error| other(format!("an unexpected answer: {error}")))?;
            Ok((value, stream))
        }
        Reply::Error(failure) => Err(failure),
    }
}

/// Has the daemon, if there is one, leave to the caller what it serves.
///
/// # Errors
/// [`Failure`], when it refuses or does not understand.
pub fn hand_over(socket: &Path) -> Result<(), Failure> {
    match ask::<()>(socket, &Request::HandOver) {
        // It may end faster than it answers; the lock is waited for in any case.
        Err(failure) if matches!(failure.kind, FailureKind::NoDaemon | FailureKind::Gone) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_their_line() {
        let request = Request::Detach { domain: "a\nb".into(), vif: Some(1) };
        let line = serde_json::to_string(&request).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), request);
        let reply = Reply::Error(Failure::new(FailureKind::NotFound, "no domain"));
        let line = serde_json::to_string(&reply).unwrap();
        assert_eq!(line, r#"{"error":{"kind":"not_found","message":"no domain"}}"#);
    }

    #[test]
    fn a_daemon_that_does_not_run_is_said_so() {
        let failure = ask::<String>(Path::new("/nowhere/drayage.sock"), &Request::Hello).unwrap_err();
        assert_eq!(failure.kind, FailureKind::NoDaemon);
        assert!(failure.message.contains("/nowhere/drayage.sock") && failure.message.contains("drayage run"));
    }
}
