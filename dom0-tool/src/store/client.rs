//! The real xenstore, over its daemon's socket or the kernel's device.
//!
//! One thread reads: replies go to the caller that waits, watch events to a function given at the start. It
//! knows message framing, and nothing of what nodes mean.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use drayage_wire::xs::{HEADER_BYTES, Header, Kind, MAX_PAYLOAD_BYTES, strings, watch_event};

use super::{End, Permission, Store, StoreError, Transaction, WatchEvent};
use crate::xen::DomainId;

/// Where the daemon listens, in the domain where it runs.
pub const SOCKET: &str = "/run/xenstored/socket";
/// The kernel's way, in every domain.
pub const DEVICE: &str = "/dev/xen/xenbus";

/// What the reader tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A watch fired.
    Watch(WatchEvent),
    /// The connection is gone, and every later request will fail.
    Broken(String),
}

/// A connection could not be made.
#[derive(Debug, thiserror::Error)]
#[error("connecting to xenstore: {SOCKET}: {socket}; {DEVICE}: {device}")]
pub struct Unreachable {
    /// What came of trying the socket.
    pub socket: io::Error,
    /// What came of trying the device.
    pub device: io::Error,
}

struct Reply {
    header: Header,
    payload: Vec<u8>,
}

struct Channel {
    writer: Box<dyn Write + Send>,
    replies: Receiver<Reply>,
    next_request: u32,
}

/// A connection to the real xenstore.
pub struct Client {
    channel: Mutex<Channel>,
    relative: bool,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("relative", &self.relative).finish_non_exhaustive()
    }
}

impl Client {
    /// Connects by socket, or else by device. `notice` is called on a thread of its own.
    ///
    /// # Errors
    /// [`Unreachable`].
    pub fn connect(notice: impl FnMut(Notice) + Send + 'static) -> Result<Self, Unreachable> {
        match UnixStream::connect(Path::new(SOCKET)).and_then(|s| Ok((s.try_clone()?, s))) {
            Ok((reader, writer)) => Ok(Self::over(reader, writer, false, notice)),
            Err(socket) => {
                let open = || -> io::Result<(File, File)> {
                    let file = OpenOptions::new().read(true).write(true).open(DEVICE)?;
                    Ok((file.try_clone()?, file))
                };
                let (reader, writer) = open().map_err(|device| Unreachable { socket, device })?;
                Ok(Self::over(reader, writer, true, notice))
            }
        }
    }

    /// Speaks over any two ends. `relative` says whether the other end knows who we are, and takes paths
    /// relative to our home.
    pub fn over(
        reader: impl Read + Send + 'static,
        writer: impl Write + Send + 'static,
        relative: bool,
        notice: impl FnMut(Notice) + Send + 'static,
    ) -> Self {
        let (tell, replies) = channel();
        thread::spawn(move || read_all(reader, &tell, notice));
        let channel = Channel { writer: Box::new(writer), replies, next_request: 1 };
        Self { channel: Mutex::new(channel), relative }
    }

    /// Returns the number of the domain that we are in.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn own_domain(&self) -> Result<DomainId, StoreError> {
        // The socket exists only where xenstored runs, which makes no difference between us and dom0.
        if !self.relative {
            return Ok(DomainId(0));
        }
        let value = self.read(Transaction::NONE, "domid")?;
        let number = drayage_wire::keys::parse_number(&value).and_then(|n| u16::try_from(n).ok());
        number.map(DomainId).ok_or_else(|| StoreError::Broken("our own domid is no number".into()))
    }

    fn request(&self, kind: Kind, within: Transaction, parts: &[&[u8]]) -> Result<Vec<u8>, StoreError> {
        let path = || String::from_utf8_lossy(parts.first().copied().unwrap_or_default()).into_owned();
        let len: usize = parts.iter().map(|p| p.len()).sum();
        if len > MAX_PAYLOAD_BYTES {
            return Err(StoreError::Refused { path: path(), name: "E2BIG".into() });
        }
        let broken = |error: String| StoreError::Broken(error);
        let mut channel = self.channel.lock().map_err(|_| broken("a request failed midway".into()))?;
        let request = channel.next_request;
        channel.next_request = request.wrapping_add(1);
        let header = Header { kind: kind as u32, request, transaction: within.0, len_bytes: len as u32 };
        let mut message = Vec::with_capacity(HEADER_BYTES + len);
        message.extend(header.to_bytes());
        parts.iter().for_each(|part| message.extend(*part));
        channel.writer.write_all(&message).map_err(|error| broken(error.to_string()))?;
        loop {
            let reply = channel.replies.recv().map_err(|_| broken("it was closed".into()))?;
            if reply.header.request != request {
                continue;
            }
            return match Kind::from_number(reply.header.kind) {
                Some(Kind::Error) => Err(named(&reply.payload, path())),
                Some(got) if got == kind => Ok(reply.payload),
                _ => Err(broken(format!("a reply of kind {} to {kind:?}", reply.header.kind))),
            };
        }
    }
}

fn named(payload: &[u8], path: String) -> StoreError {
    let path = path.trim_end_matches('\0').to_owned();
    match payload.strip_suffix(&[0]).unwrap_or(payload) {
        b"ENOENT" => StoreError::Missing(path),
        b"EAGAIN" => StoreError::Again,
        b"EACCES" | b"EPERM" => StoreError::Denied(path),
        name => StoreError::Refused { path, name: String::from_utf8_lossy(name).into_owned() },
    }
}

fn read_all(mut reader: impl Read, replies: &Sender<Reply>, mut notice: impl FnMut(Notice)) {
    let error = loop {
        match read_one(&mut reader) {
            Ok(Reply { header, payload }) if header.kind == Kind::WatchEvent as u32 => {
                if let Some((path, token)) = watch_event(&payload) {
                    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                    notice(Notice::Watch(WatchEvent { path: text(path), token: text(token) }));
                }
            }
            Ok(reply) => {
                if replies.send(reply).is_err() {
                    return;
                }
            }
            Err(error) => break error,
        }
    };
    notice(Notice::Broken(error.to_string()));
}

fn read_one(reader: &mut impl Read) -> io::Result<Reply> {
    let mut head = [0; HEADER_BYTES];
    reader.read_exact(&mut head)?;
    let header = Header::from_bytes(head);
    let len = header.len_bytes as usize;
    if len > MAX_PAYLOAD_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message of {len} bytes")));
    }
    let mut payload = vec![0; len];
    reader.read_exact(&mut payload)?;
    Ok(Reply { header, payload })
}

impl Store for Client {
    fn read(&self, within: Transaction, path: &str) -> Result<Vec<u8>, StoreError> {
        self.request(Kind::Read, within, &[path.as_bytes(), b"\0"])
    }

    fn write(&self, within: Transaction, path: &str, value: &str) -> Result<(), StoreError> {
        self.request(Kind::Write, within, &[path.as_bytes(), b"\0", value.as_bytes()]).map(drop)
    }

    fn make(&self, within: Transaction, path: &str) -> Result<(), StoreError> {
        self.request(Kind::Mkdir, within, &[path.as_bytes(), b"\0"]).map(drop)
    }

    fn remove(&self, within: Transaction, path: &str) -> Result<(), StoreError> {
        match self.request(Kind::Rm, within, &[path.as_bytes(), b"\0"]) {
            Ok(_) | Err(StoreError::Missing(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn permit(
        &self,
        within: Transaction,
        path: &str,
        permissions: &[(DomainId, Permission)],
    ) -> Result<(), StoreError> {
        let mut payload = format!("{path}\0");
        for (domain, permission) in permissions {
            let letter = match permission {
                Permission::None => 'n',
                Permission::Read => 'r',
            };
            payload.push_str(&format!("{letter}{domain}\0"));
        }
        self.request(Kind::SetPerms, within, &[payload.as_bytes()]).map(drop)
    }

    fn directory(&self, within: Transaction, path: &str) -> Result<Vec<String>, StoreError> {
        let payload = self.request(Kind::Directory, within, &[path.as_bytes(), b"\0"])?;
        Ok(strings(&payload).map(|name| String::from_utf8_lossy(name).into_owned()).collect())
    }

    fn watch(&self, path: &str, token: &str) -> Result<(), StoreError> {
        let parts: [&[u8]; 4] = [path.as_bytes(), b"\0", token.as_bytes(), b"\0"];
        self.request(Kind::Watch, Transaction::NONE, &parts).map(drop)
    }

    fn unwatch(&self, path: &str, token: &str) -> Result<(), StoreError> {
        let parts: [&[u8]; 4] = [path.as_bytes(), b"\0", token.as_bytes(), b"\0"];
        self.request(Kind::Unwatch, Transaction::NONE, &parts).map(drop)
    }

    fn begin(&self) -> Result<Transaction, StoreError> {
        let payload = self.request(Kind::TransactionStart, Transaction::NONE, &[b"\0"])?;
        let digits = payload.strip_suffix(&[0]).unwrap_or(&payload);
        let id = drayage_wire::keys::parse_number(digits).filter(|id| *id != 0);
        id.map(Transaction).ok_or_else(|| StoreError::Broken("a transaction without number".into()))
    }

    fn end(&self, transaction: Transaction, end: End) -> Result<(), StoreError> {
        let verdict: &[u8] = match end {
            End::Commit => b"T\0",
            End::Abort => b"F\0",
        };
        self.request(Kind::TransactionEnd, transaction, &[verdict]).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    fn answer(to: &mut UnixStream, kind: u32, request: u32, payload: &[u8]) {
        let header = Header { kind, request, transaction: 0, len_bytes: payload.len() as u32 };
        to.write_all(&header.to_bytes()).unwrap();
        to.write_all(payload).unwrap();
    }

    /// Plays a xenstored that answers each request with what is given.
    fn play(answers: Vec<(u32, Vec<u8>)>) -> (Client, thread::JoinHandle<Vec<Vec<u8>>>, Receiver<Notice>) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (tell, notices) = channel();
        let client = Client::over(ours.try_clone().unwrap(), ours, false, move |n| tell.send(n).unwrap());
        let server = thread::spawn(move || {
            let mut seen = Vec::new();
            for (kind, payload) in answers {
                let mut head = [0; HEADER_BYTES];
                theirs.read_exact(&mut head).unwrap();
                let header = Header::from_bytes(head);
                let mut body = vec![0; header.len_bytes as usize];
                theirs.read_exact(&mut body).unwrap();
                seen.push(body);
                answer(&mut theirs, Kind::WatchEvent as u32, 0, b"/a\0tok\0");
                answer(&mut theirs, kind, header.request, &payload);
            }
            seen
        });
        (client, server, notices)
    }

    #[test]
    fn requests_get_their_replies_and_events_go_elsewhere() {
        let (client, server, notices) = play(vec![
            (Kind::Read as u32, b"4".to_vec()),
            (Kind::Error as u32, b"ENOENT\0".to_vec()),
            (Kind::Error as u32, b"EACCES\0".to_vec()),
            (Kind::Error as u32, b"EQUOTA\0".to_vec()),
            (Kind::Directory as u32, b"0\x001\0".to_vec()),
            (Kind::SetPerms as u32, b"OK\0".to_vec()),
            (Kind::TransactionStart as u32, b"7\0".to_vec()),
            (Kind::Error as u32, b"EAGAIN\0".to_vec()),
        ]);
        let none = Transaction::NONE;
        assert_eq!(client.read(none, "/s"), Ok(b"4".to_vec()));
        assert_eq!(client.read(none, "/s"), Err(StoreError::Missing("/s".into())));
        assert_eq!(client.write(none, "/s", "x"), Err(StoreError::Denied("/s".into())));
        let refused = StoreError::Refused { path: "/s".into(), name: "EQUOTA".into() };
        assert_eq!(client.write(none, "/s", "x"), Err(refused));
        assert_eq!(client.directory(none, "/s"), Ok(vec!["0".into(), "1".into()]));
        let permissions = [(DomainId(3), Permission::None), (DomainId(0), Permission::Read)];
        assert_eq!(client.permit(none, "/s", &permissions), Ok(()));
        let transaction = client.begin().unwrap();
        assert_eq!(transaction, Transaction(7));
        assert_eq!(client.end(transaction, End::Commit), Err(StoreError::Again));
        let seen = server.join().unwrap();
        assert_eq!(seen[0], b"/s\0");
        assert_eq!(seen[2], b"/s\0x");
        assert_eq!(seen[5], b"/s\0n3\0r0\0");
        assert_eq!(seen[7], b"T\0");
        for _ in 0..8 {
            let event = WatchEvent { path: "/a".into(), token: "tok".into() };
            assert_eq!(notices.recv().unwrap(), Notice::Watch(event));
        }
        assert!(matches!(notices.recv().unwrap(), Notice::Broken(_)), "the other end went away");
        assert!(matches!(client.read(none, "/s"), Err(StoreError::Broken(_))));
    }

    #[test]
    fn an_endless_message_breaks_the_connection() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (tell, notices) = channel();
        let _client = Client::over(ours.try_clone().unwrap(), ours, false, move |n| tell.send(n).unwrap());
        let header = Header { kind: 2, request: 1, transaction: 0, len_bytes: 4097 };
        theirs.write_all(&header.to_bytes()).unwrap();
        assert!(matches!(notices.recv().unwrap(), Notice::Broken(why) if why.contains("4097")));
    }
}
