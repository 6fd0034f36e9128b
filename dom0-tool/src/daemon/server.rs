//! The daemon's socket: a thread for each connection, which hands requests to the main thread one by one.
//!
//! It knows lines and messages only.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{Sender, channel};

use super::Event;
use crate::control::error::{Failure, FailureKind};
use crate::ipc::{Reply, Request};

/// The longest request, in bytes.
const MAX_LINE_BYTES: u64 = 65_536;

/// Opens the socket, for its owner alone.
pub(super) fn listen(path: &Path) -> Result<UnixListener, Failure> {
    let shown = path.display();
    if UnixStream::connect(path).is_ok() {
        let message = format!("a daemon listens on {shown} already; stop it, or name another --socket");
        return Err(Failure::new(FailureKind::Taken, message));
    }
    let failed = |error: std::io::Error| {
        let kind = match error.kind() {
            ErrorKind::PermissionDenied => FailureKind::Denied,
            _ => FailureKind::Other,
        };
        Failure::new(kind, format!("listening on {shown}: {error}; run as root, or name another --socket"))
    };
    // What an earlier daemon left may be removed, and nothing else.
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            let message = format!("{shown} is there already and is no socket; name another --socket");
            return Err(Failure::new(FailureKind::Taken, message));
        }
        Ok(_) => std::fs::remove_file(path).map_err(failed)?,
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

/// Accepts connections for as long as the process lives.
pub(super) fn serve(listener: UnixListener, tell: Sender<Event>) {
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let tell = tell.clone();
            std::thread::spawn(move || converse(stream, &tell));
        }
    });
}

fn converse(stream: UnixStream, tell: &Sender<Event>) {
    let Ok(mut writer) = stream.try_clone() else { return };
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        match reader.by_ref().take(MAX_LINE_BYTES).read_line(&mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let reply = match serde_json::from_str(&line) {
            Ok(request @ Request::Capture { .. }) => {
                // The file follows the reply, so the connection is the capture's from now on.
                let _ = tell.send(Event::Capture(request, writer));
                return;
            }
            Ok(request) => {
                let (answer, answered) = channel();
                if tell.send(Event::Request(request, answer)).is_err() {
                    return;
                }
                let Ok(reply) = answered.recv() else { return };
                reply
            }
            Err(error) => Reply::Error(Failure::new(
                FailureKind::BadValue,
                format!("a request that makes no sense: {error}"),
            )),
        };
        let Ok(mut text) = serde_json::to_string(&reply) else { return };
        text.push('\n');
        if writer.write_all(text.as_bytes()).is_err() {
            return;
        }
    }
}
