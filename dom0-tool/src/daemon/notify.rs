//! Tells the service manager that started the daemon how it is (sd_notify(3)), where there is one.
//!
//! It knows the protocol, a datagram to a socket, and nothing of the daemon.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Names the manager's socket.
const VARIABLE: &str = "NOTIFY_SOCKET";

/// Says that commands are taken.
pub(super) fn ready() {
    say("READY=1");
}

/// Says that interfaces are being closed.
pub(super) fn stopping() {
    say("STOPPING=1");
}

fn say(text: &str) {
    let Some(socket) = std::env::var_os(VARIABLE) else { return };
    if let Err(error) = send(&socket, text) {
        tracing::warn!("telling the service manager {text} at {}: {error}", socket.display());
    }
}

fn send(socket: &OsStr, text: &str) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(text.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_socket_are_told() {
        let name = format!("drayage-notify-{}", std::process::id());
        let path = std::env::temp_dir().join(&name);
        let plain = UnixDatagram::bind(&path).unwrap();
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let hidden = UnixDatagram::bind_addr(&address).unwrap();
        send(path.as_os_str(), "READY=1").unwrap();
        send(format!("@{name}").as_ref(), "STOPPING=1").unwrap();
        let mut got = [0; 64];
        let len = plain.recv(&mut got).unwrap();
        assert_eq!(&got[..len], b"READY=1");
        let len = hidden.recv(&mut got).unwrap();
        assert_eq!(&got[..len], b"STOPPING=1");
        std::fs::remove_file(&path).unwrap();
        assert!(send(path.as_os_str(), "READY=1").is_err());
    }
}
