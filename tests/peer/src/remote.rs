//! Commands for a machine that has no serial line to us: the agent served over TCP, and a client that runs one
//! command there. Knows nothing of what is run.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::agent;
use crate::protocol::{Message, Op, Outcome, Request};

/// The agent's port.
pub const PORT: u16 = 10;

/// Where the output of started processes is kept, in a folder for each connection.
const OUTPUT_DIRECTORY: &str = "/run/remote";

/// Serves every connection until the process ends.
pub fn serve(port: u16) -> Result<()> {
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let listener = TcpListener::bind(address).with_context(|| format!("TCP port {port}"))?;
    for (number, stream) in listener.incoming().flatten().enumerate() {
        let directory = Path::new(OUTPUT_DIRECTORY).join(number.to_string());
        thread::spawn(move || {
            if let Err(error) = serve_one(&stream, &directory) {
                eprintln!("remote: {error:#}");
            }
        });
    }
    Ok(())
}

fn serve_one(stream: &TcpStream, directory: &Path) -> Result<()> {
    std::fs::create_dir_all(directory)?;
    agent::serve(BufReader::new(stream), stream, directory)
}

/// Runs a shell command on another machine, prints what it printed, and returns its exit code.
pub fn run(to: IpAddr, port: u16, command: &str, timeout: Duration) -> Result<i32> {
    let address = SocketAddr::new(to, port);
    let stream =
        TcpStream::connect_timeout(&address, timeout).with_context(|| format!("TCP to {to} port {port}"))?;
    // The other end's patience is the shorter one.
    stream.set_read_timeout(Some(timeout + Duration::from_secs(5)))?;
    let mut lines = BufReader::new(&stream).lines();
    let mut ask = |op: Option<Op>| -> Result<Message> {
        if let Some(op) = op {
            let mut line = serde_json::to_vec(&Request { id: 1, op })?;
            line.push(b'\n');
            (&stream).write_all(&line).context("writing a request")?;
        }
        let line = lines.next().context("the agent hung up")?.context("reading a reply")?;
        serde_json::from_str(&line).with_context(|| format!("a reply of {line:?}"))
    };
    let Message::Ready { .. } = ask(None)? else { bail!("{to} port {port} is no agent") };
    let spawned = ask(Some(Op::Spawn { command: command.to_owned() }))?;
    let Message::Reply { result: Outcome::Spawned(process), .. } = spawned else {
        bail!("starting {command:?} on {to}: {spawned:?}")
    };
    let timeout_ms = timeout.as_millis().try_into().unwrap_or(u64::MAX);
    match ask(Some(Op::Wait { process, timeout_ms }))? {
        Message::Reply { result: Outcome::Exited { code, output }, .. } => {
            std::io::stdout().write_all(output.as_bytes())?;
            Ok(code)
        }
        Message::Reply { result: Outcome::StillRunning { output }, .. } => {
            bail!("{command:?} on {to} has not ended; so far:\n{output}")
        }
        other => bail!("waiting for {command:?} on {to}: {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_runs_there_and_its_code_comes_back() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let directory = std::env::temp_dir().join(format!("peer-remote-{}", std::process::id()));
        let folder = directory.clone();
        let server = thread::spawn(move || serve_one(&listener.accept().unwrap().0, &folder));
        let code = run([127, 0, 0, 1].into(), port, "exit 3", Duration::from_secs(10)).unwrap();
        assert_eq!(code, 3);
        server.join().unwrap().unwrap();
        std::fs::remove_dir_all(directory).ok();
    }
}
