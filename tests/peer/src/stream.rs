//! TCP streams in one direction, for goodput: a client that pushes or pulls, and the services at the other end in a Linux
//! guest. What is in them is not looked at; `echo` compares bytes.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::report::StreamReport;
use crate::sys;

/// Port on which streams are taken (RFC 863).
pub const TAKEN: u16 = 9;

/// Port on which streams are sent (RFC 864).
pub const SENT: u16 = 19;

/// Time until a service that refused a connection is asked again.
const REFUSED_NS: u64 = 20_000_000;

/// Bytes of one call.
const CHUNK: usize = 64 << 10;

/// A stream to push or pull.
#[derive(Debug, Clone)]
pub struct Stream {
    /// Address of the service.
    pub to: IpAddr,
    /// Its port.
    pub port: u16,
    /// Length.
    pub bytes: u64,
    /// Longest silence.
    pub timeout: Duration,
}

impl Stream {
    fn connect(&self) -> Result<TcpStream> {
        let address = SocketAddr::new(self.to, self.port);
        let until_ns = sys::monotonic_ns() + self.timeout.as_nanos() as u64;
        let stream = loop {
            match TcpStream::connect_timeout(&address, self.timeout) {
                // A system answers pings before its service is there.
                Err(error)
                    if error.kind() == io::ErrorKind::ConnectionRefused && sys::monotonic_ns() < until_ns =>
                {
                    sys::sleep_until(sys::monotonic_ns() + REFUSED_NS);
                }
                connected => break connected,
            }
        };
        let stream = stream.with_context(|| format!("TCP to {} port {}", self.to, self.port))?;
        stream.set_read_timeout(Some(self.timeout))?;
        stream.set_write_timeout(Some(self.timeout))?;
        Ok(stream)
    }
}

/// Sends a stream, and waits for the other end to close: then it has read all.
pub fn push(options: &Stream) -> Result<StreamReport> {
    let mut stream = options.connect()?;
    let started_ns = sys::monotonic_ns();
    let chunk = [0x5a; CHUNK];
    let mut sent = 0;
    while sent < options.bytes {
        let len = (options.bytes - sent).min(CHUNK as u64) as usize;
        stream.write_all(&chunk[..len]).with_context(|| format!("after {sent} bytes"))?;
        sent += len as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut rest = [0; 1];
    let answered = stream.read(&mut rest).context("waiting for the other end to close")?;
    ensure!(answered == 0, "the service answered, and should only take");
    Ok(StreamReport { bytes: sent, elapsed_ns: sys::monotonic_ns() - started_ns })
}

/// Reads so much of a stream.
pub fn pull(options: &Stream) -> Result<StreamReport> {
    let mut stream = options.connect()?;
    let started_ns = sys::monotonic_ns();
    let mut chunk = vec![0; CHUNK];
    let mut bytes = 0;
    while bytes < options.bytes {
        let len = stream.read(&mut chunk).with_context(|| format!("after {bytes} bytes"))?;
        ensure!(len > 0, "the stream ended after {bytes} bytes");
        bytes += len as u64;
    }
    Ok(StreamReport { bytes, elapsed_ns: sys::monotonic_ns() - started_ns })
}

/// Serves both ends until the process ends.
pub fn serve(taken: u16, sent: u16) -> Result<()> {
    let sink = listen(taken)?;
    let source = listen(sent)?;
    thread::spawn(move || each(&sink, |mut stream| io::copy(&mut stream, &mut io::sink()).map(drop)));
    each(&source, |mut stream| {
        let chunk = [0x5a; CHUNK];
        loop {
            stream.write_all(&chunk)?;
        }
    });
    Ok(())
}

fn listen(port: u16) -> Result<TcpListener> {
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    TcpListener::bind(address).with_context(|| format!("TCP port {port}"))
}

/// Serves every connection by a thread; how one ends, by a reset as a rule, does not matter.
fn each(listener: &TcpListener, serve: impl Fn(TcpStream) -> io::Result<()> + Copy + Send + 'static) {
    for stream in listener.incoming().flatten() {
        thread::spawn(move || serve(stream));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_comes_later_is_waited_for() {
        let port = listen(0).unwrap().local_addr().unwrap().port();
        let stream = Stream { to: [127, 0, 0, 1].into(), port, bytes: 1000, timeout: Duration::from_secs(5) };
        let pushed = thread::spawn(move || push(&stream));
        // It is refused at least once, and the service comes all the same.
        thread::sleep(Duration::from_millis(30));
        let sink = listen(port).unwrap();
        thread::spawn(move || each(&sink, |mut stream| io::copy(&mut stream, &mut io::sink()).map(drop)));
        assert_eq!(pushed.join().unwrap().unwrap().bytes, 1000);
    }

    #[test]
    fn streams_are_pushed_and_pulled() {
        let (sink, source) = (listen(0).unwrap(), listen(0).unwrap());
        let (taken, sent) = (sink.local_addr().unwrap().port(), source.local_addr().unwrap().port());
        thread::spawn(move || each(&sink, |mut stream| io::copy(&mut stream, &mut io::sink()).map(drop)));
        thread::spawn(move || each(&source, |mut stream| stream.write_all(&[1; 200_000])));
        let stream =
            |port, bytes| Stream { to: [127, 0, 0, 1].into(), port, bytes, timeout: Duration::from_secs(5) };
        assert_eq!(push(&stream(taken, 100_001)).unwrap().bytes, 100_001);
        assert!(pull(&stream(sent, 100_001)).unwrap().bytes >= 100_001);
        let error = pull(&stream(sent, 200_001)).unwrap_err().to_string();
        assert!(error.contains("ended after 200000 bytes"), "{error}");
    }
}
