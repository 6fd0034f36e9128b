//! The control agent: reads requests from a serial line, one JSON document a line, performs them one
//! after another, replies. Knows nothing of who asks or why.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::processes::{Processes, Waited};
use crate::protocol::{Message, Op, Outcome, Request, VERSION};
use crate::sys;
use crate::watchfile::await_line;

/// Where the output of started processes is kept.
const OUTPUT_DIRECTORY: &str = "/run/peer";

/// Serves requests on a terminal until it hangs up.
pub fn serve_tty(path: &Path) -> Result<()> {
    let tty = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))?;
    sys::make_raw(&tty).with_context(|| format!("raw mode of {}", path.display()))?;
    serve(BufReader::new(tty.try_clone()?), tty, Path::new(OUTPUT_DIRECTORY))
}

/// Serves requests until the input ends.
pub fn serve(input: impl BufRead, mut output: impl Write, directory: &Path) -> Result<()> {
    let mut processes = Processes::new(directory)?;
    say(&mut output, &Message::Ready { version: VERSION })?;
    for line in input.lines() {
        let line = line.context("reading a request")?;
        // Noise on a line that is just being opened is not worth an end.
        let Ok(request) = serde_json::from_str::<Request>(&line) else { continue };
        let result =
            perform(&mut processes, request.op).unwrap_or_else(|error| Outcome::Failed(format!("{error:#}")));
        say(&mut output, &Message::Reply { id: request.id, result })?;
    }
    Ok(())
}

fn say(output: &mut impl Write, message: &Message) -> Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    output.write_all(&line).context("writing a reply")?;
    output.flush().context("writing a reply")
}

fn perform(processes: &mut Processes, op: Op) -> Result<Outcome> {
    Ok(match op {
        Op::Spawn { command } => Outcome::Spawned(processes.spawn(&command)?),
        Op::Wait { process, timeout_ms } => {
            match processes.wait(process, Duration::from_millis(timeout_ms))? {
                Waited::Exited(code, output) => Outcome::Exited { code, output },
                Waited::StillRunning(output) => Outcome::StillRunning { output },
            }
        }
        Op::Kill { process, signal } => {
            processes.kill(process, signal)?;
            Outcome::Done
        }
        Op::Read { path, offset, limit } => read(&path, offset, limit)?,
        Op::Write { path, contents } => {
            fs::write(&path, contents).with_context(|| format!("writing {path:?}"))?;
            Outcome::Done
        }
        Op::AwaitLine { path, offset, any_of, timeout_ms } => {
            let timeout = Duration::from_millis(timeout_ms);
            match await_line(Path::new(&path), offset, &any_of, timeout)? {
                Some(found) => Outcome::Line { line: found.line, next: found.next },
                None => Outcome::NoLine,
            }
        }
        Op::Clock => Outcome::Time { monotonic_ns: sys::monotonic_ns() },
    })
}

fn read(path: &str, offset: u64, limit: u64) -> Result<Outcome> {
    let open = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        // Files of /proc and /sys cannot always seek, and need not at 0.
        if offset > 0 {
            file.seek(SeekFrom::Start(offset))?;
        }
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = open().with_context(|| format!("reading {path:?}"))?;
    let next = offset + bytes.len() as u64;
    Ok(Outcome::Data { text: String::from_utf8_lossy(&bytes).into_owned(), next })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the agent over text and returns what it said.
    fn converse(requests: &str, name: &str) -> Vec<Message> {
        let directory = std::env::temp_dir().join(format!("peer-agent-{name}-{}", std::process::id()));
        let mut output = Vec::new();
        serve(requests.as_bytes(), &mut output, &directory).unwrap();
        fs::remove_dir_all(&directory).ok();
        String::from_utf8(output).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn spawn_wait_and_noise() {
        let said = converse(
            "garbage\n{\"id\":4,\"op\":\"spawn\",\"command\":\"echo hi\"}\n\
             {\"id\":5,\"op\":\"wait\",\"process\":1,\"timeout_ms\":10000}\n",
            "spawn",
        );
        assert_eq!(
            said,
            [
                Message::Ready { version: VERSION },
                Message::Reply { id: 4, result: Outcome::Spawned(1) },
                Message::Reply { id: 5, result: Outcome::Exited { code: 0, output: "hi\n".into() } },
            ]
        );
    }

    #[test]
    fn errors_name_the_thing_and_do_not_end_the_agent() {
        let said = converse(
            "{\"id\":1,\"op\":\"read\",\"path\":\"/nowhere\",\"offset\":0,\"limit\":9}\n{\"id\":2,\"op\":\"clock\"}\n",
            "errors",
        );
        let Message::Reply { id: 1, result: Outcome::Failed(text) } = &said[1] else { panic!("{said:?}") };
        assert!(text.contains("/nowhere"), "{text}");
        assert!(matches!(said[2], Message::Reply { id: 2, result: Outcome::Time { .. } }));
    }
}
