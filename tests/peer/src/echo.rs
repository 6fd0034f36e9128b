//! Echo clients that compare every byte that comes back, and the server for a Linux guest. Knows
//! nothing of the machine that it runs on.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use crate::report::EchoReport;
use crate::sys;

/// The echo service's port (RFC 862).
pub const PORT: u16 = 7;

/// Bytes of a stream that are written and compared at a time.
const CHUNK: usize = 64 << 10;

/// Attempts for one datagram.
const ATTEMPTS: u64 = 5;
/// How long each lasts.
const PATIENCE: Duration = Duration::from_secs(1);

/// Fills a buffer with bytes that depend on a seed (xorshift64*).
pub fn fill_pseudo_random(buffer: &mut [u8], seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for chunk in buffer.chunks_mut(8) {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let word = state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
}

/// Sends datagrams one by one and compares the answers.
pub fn udp_client(to: IpAddr, port: u16, count: u64, len_bytes: usize) -> Result<EchoReport> {
    let local: SocketAddr = match to {
        IpAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(local).context("opening a UDP socket")?;
    socket.connect((to, port)).with_context(|| format!("UDP to {to} port {port}"))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut report = new_report("udp");
    let started_ns = sys::monotonic_ns();
    for at in 0..count {
        let mut payload = vec![0; len_bytes];
        fill_pseudo_random(&mut payload, at + 1);
        report.sent_bytes += payload.len() as u64;
        match exchange(&socket, &payload, &mut report.retries)? {
            Some(answer) => {
                report.received_bytes += answer.len() as u64;
                report.mismatched += u64::from(answer != payload);
            }
            None => report.mismatched += 1,
        }
    }
    report.elapsed_ns = sys::monotonic_ns() - started_ns;
    Ok(report)
}

/// Sends a datagram until something comes back. An attempt that is refused at once lasts as long as any other: a guest
/// answers pings before the service that is meant listens.
fn exchange(socket: &UdpSocket, payload: &[u8], retries: &mut u64) -> Result<Option<Vec<u8>>> {
    let mut answer = vec![0; payload.len() + 64];
    for attempt in 0..ATTEMPTS {
        *retries += u64::from(attempt > 0);
        let began_ns = sys::monotonic_ns();
        let result = socket.send(payload).and_then(|_| socket.recv(&mut answer));
        match result {
            Ok(len) => {
                answer.truncate(len);
                return Ok(Some(answer));
            }
            Err(error) if is_transient(&error) => sys::sleep_until(began_ns + PATIENCE.as_nanos() as u64),
            Err(error) => return Err(error).context("UDP echo"),
        }
    }
    Ok(None)
}

fn is_transient(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionRefused, HostUnreachable, Interrupted, NetworkUnreachable, TimedOut, WouldBlock,
    };
    matches!(
        error.kind(),
        WouldBlock | TimedOut | Interrupted | ConnectionRefused | HostUnreachable | NetworkUnreachable
    )
}

/// How long a stream is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extent {
    /// So many bytes.
    Bytes(u64),
    /// For as long as a file exists: for what must last while something else happens, however fast the stream is.
    While(PathBuf),
}

impl Extent {
    /// Returns how many bytes, at most `CHUNK`, come after so many.
    fn next(&self, at: u64) -> usize {
        match self {
            Extent::Bytes(bytes) => (bytes - at).min(CHUNK as u64) as usize,
            Extent::While(path) if path.exists() => CHUNK,
            Extent::While(_) => 0,
        }
    }
}

/// Sends a stream while it reads it back, and compares.
pub fn tcp_client(to: IpAddr, port: u16, extent: Extent, seed: u64, timeout: Duration) -> Result<EchoReport> {
    let address = SocketAddr::new(to, port);
    let started_ns = sys::monotonic_ns();
    let stream =
        TcpStream::connect_timeout(&address, timeout).with_context(|| format!("TCP to {to} port {port}"))?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    let writing = stream.try_clone()?;
    let writer = thread::spawn(move || write_stream(&writing, &extent, seed));
    let mut report = new_report("tcp");
    let read = compare_stream(&stream, seed, &mut report)
        .with_context(|| format!("TCP echo from {to}: after {} bytes", report.received_bytes));
    if read.is_err() {
        // Else the writer would wait for its time-out in a connection that nobody reads.
        stream.shutdown(Shutdown::Both).ok();
    }
    let written = writer.join().map_err(|_| anyhow!("the writing thread panicked"))?;
    read?;
    report.sent_bytes = written.context("writing the TCP echo")?;
    report.elapsed_ns = sys::monotonic_ns() - started_ns;
    Ok(report)
}

/// The bytes of a stream: each chunk is a part of one pseudo-random text, from a place that depends on where in the stream
/// the chunk is. So it costs next to nothing to make them, and a chunk that is missing or comes twice is seen all the same.
struct Text {
    bytes: Vec<u8>,
    seed: u64,
}

impl Text {
    fn new(seed: u64) -> Self {
        let mut bytes = vec![0; 2 * CHUNK];
        fill_pseudo_random(&mut bytes, seed);
        Text { bytes, seed }
    }

    /// Returns the chunk that comes after so many bytes.
    fn chunk(&self, at: u64) -> &[u8] {
        let mut place = [0; 8];
        fill_pseudo_random(&mut place, self.seed ^ at);
        let start = (u64::from_le_bytes(place) % CHUNK as u64) as usize;
        &self.bytes[start..start + CHUNK]
    }
}

/// Writes a pseudo-random stream, and returns its length.
fn write_stream(mut to: &TcpStream, extent: &Extent, seed: u64) -> io::Result<u64> {
    let text = Text::new(seed);
    let mut at = 0;
    loop {
        let len = extent.next(at);
        if len == 0 {
            to.shutdown(Shutdown::Write)?;
            return Ok(at);
        }
        to.write_all(&text.chunk(at)[..len])?;
        at += len as u64;
    }
}

/// Reads a stream to its end, and compares it with what [`write_stream`] makes.
fn compare_stream(mut from: &TcpStream, seed: u64, report: &mut EchoReport) -> io::Result<()> {
    let text = Text::new(seed);
    let mut got = vec![0; CHUNK];
    loop {
        let expected = text.chunk(report.received_bytes);
        let mut len = 0;
        while len < CHUNK {
            match from.read(&mut got[len..])? {
                0 => break,
                more => len += more,
            }
        }
        // Byte by byte only where they differ: that takes a hundred times as long.
        if got[..len] != expected[..len] {
            let pairs = got[..len].iter().zip(expected);
            report.mismatched += pairs.filter(|(got, expected)| got != expected).count() as u64;
        }
        report.received_bytes += len as u64;
        if len < CHUNK {
            return Ok(());
        }
    }
}

/// Serves UDP and TCP echo until the process ends.
pub fn serve(port: u16) -> Result<()> {
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let listener = TcpListener::bind(address).with_context(|| format!("TCP port {port}"))?;
    let socket = UdpSocket::bind(address).with_context(|| format!("UDP port {port}"))?;
    thread::spawn(move || serve_tcp(&listener));
    serve_udp(&socket)
}

fn serve_udp(socket: &UdpSocket) -> Result<()> {
    let mut buffer = vec![0; 65_536];
    loop {
        let (len, from) = socket.recv_from(&mut buffer).context("reading UDP")?;
        // A peer that went away must not end the service.
        if let Err(error) = socket.send_to(&buffer[..len], from) {
            eprintln!("echo to {from}: {error}");
        }
    }
}

fn serve_tcp(listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        thread::spawn(move || {
            let (mut reading, mut writing) = (&stream, &stream);
            if let Err(error) = io::copy(&mut reading, &mut writing) {
                eprintln!("TCP echo: {error}");
            }
        });
    }
}

fn new_report(protocol: &str) -> EchoReport {
    EchoReport {
        protocol: protocol.to_owned(),
        sent_bytes: 0,
        received_bytes: 0,
        mismatched: 0,
        retries: 0,
        elapsed_ns: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Serves one connection: changes one byte, and tells how many have come.
    fn local_server(corrupt: Option<u64>, mut came: impl FnMut(u64) + Send + 'static) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut at = 0;
            let mut buffer = [0; 4096];
            loop {
                let len = (&stream).read(&mut buffer).unwrap();
                if len == 0 {
                    break;
                }
                if let Some(bad) = corrupt.filter(|bad| (at..at + len as u64).contains(bad)) {
                    buffer[(bad - at) as usize] ^= 1;
                }
                at += len as u64;
                came(at);
                (&stream).write_all(&buffer[..len]).unwrap();
            }
        });
        port
    }

    fn echoed(port: u16, extent: Extent) -> EchoReport {
        tcp_client([127, 0, 0, 1].into(), port, extent, 5, Duration::from_secs(5)).unwrap()
    }

    #[test]
    fn tcp_echo_comes_back_whole() {
        let port = local_server(None, |_| {});
        let report = echoed(port, Extent::Bytes(100_001));
        assert_eq!((report.received_bytes, report.mismatched), (100_001, 0));
    }

    #[test]
    fn one_wrong_byte_is_seen() {
        let port = local_server(Some(77_777), |_| {});
        let report = echoed(port, Extent::Bytes(100_001));
        assert_eq!((report.received_bytes, report.mismatched), (100_001, 1));
    }

    #[test]
    fn chunks_differ_by_their_place() {
        let text = Text::new(5);
        let at = |n: u64| text.chunk(n * CHUNK as u64);
        assert_eq!(at(3), Text::new(5).chunk(3 * CHUNK as u64));
        assert!((1..100).all(|n| at(n)[..64] != at(0)[..64]));
    }

    #[test]
    fn a_stream_lasts_for_as_long_as_its_file() {
        let path = std::env::temp_dir().join(format!("drayage-peer-stream-{}", std::process::id()));
        std::fs::write(&path, "").unwrap();
        let file = path.clone();
        let port = local_server(None, move |bytes| {
            if bytes > 1_000_000 {
                std::fs::remove_file(&file).ok();
            }
        });
        let report = echoed(port, Extent::While(path));
        assert!(report.sent_bytes > 1_000_000, "{report:?}");
        assert_eq!((report.received_bytes, report.mismatched), (report.sent_bytes, 0));
    }

    #[test]
    fn seeds_make_different_bytes() {
        let (mut one, mut two) = ([0; 20], [0; 20]);
        fill_pseudo_random(&mut one, 1);
        fill_pseudo_random(&mut two, 2);
        assert_ne!(one, two);
        assert_ne!(one[..8], one[8..16]);
    }

    #[test]
    fn a_service_may_listen_a_little_after_it_is_first_asked() {
        let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let service = thread::spawn(move || {
            thread::sleep(PATIENCE / 4);
            let socket = UdpSocket::bind(("127.0.0.1", port)).unwrap();
            let mut buffer = [0; 64];
            let (len, from) = socket.recv_from(&mut buffer).unwrap();
            socket.send_to(&buffer[..len], from).unwrap();
        });
        let report = udp_client([127, 0, 0, 1].into(), port, 1, 32).unwrap();
        assert_eq!((report.mismatched, report.received_bytes), (0, 32), "{report:?}");
        assert!(report.retries > 0, "it was refused at first");
        service.join().unwrap();
    }
}
