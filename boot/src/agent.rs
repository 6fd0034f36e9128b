//! The launcher's end of the line to the agent in dom0. Knows nothing of Xen.

use std::io::{BufRead, BufReader, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use drayage_peer::protocol::{Message, Op, Outcome, Request, VERSION};

use crate::qemu::Line;

/// Time that a reply may take beyond what its request itself allows.
const SLACK: Duration = Duration::from_secs(60);

/// How much slower than the host's the machine's clock may be, so that a timeout in its time is not
/// cut short here (instruction time takes four seconds for one of its own).
const SLOWNESS: u32 = 8;

/// Longest wait that is left to the agent at once, in the machine's time: it hears nothing else meanwhile. What is
/// measured takes less.
const SLICE: Duration = Duration::from_secs(2);

/// A connection to an agent.
#[derive(Debug)]
pub struct Agent {
    line: std::process::ChildStdin,
    messages: Receiver<Message>,
    next_id: u64,
    deadline: Instant,
    watch: Option<Watch>,
}

/// Keeps a longer piece of work from going on for ever, or without a word.
#[derive(Debug, Clone)]
pub struct Watch {
    what: String,
    began: Instant,
    allowed: Duration,
    said: Duration,
}

impl Watch {
    /// Time between two lines about work that goes on.
    const PERIOD: Duration = Duration::from_secs(60);

    /// Begins to watch work for which some of the host's time is allowed.
    pub fn begin(what: impl Into<String>, allowed: Duration) -> Self {
        Watch { what: what.into(), began: Instant::now(), allowed, said: Duration::ZERO }
    }

    /// Says that a command is still waited for, once in a while; fails when the time is up.
    fn look(&mut self, command: &str) -> Result<()> {
        let took = self.began.elapsed();
        if took > self.allowed {
            bail!(
                "{} took over {} s, which is all that it may; it waited for {command:?}",
                self.what,
                self.allowed.as_secs()
            );
        }
        if took > self.said + Self::PERIOD {
            self.said = took;
            eprintln!("  {}: {} s so far, now waiting for {command}", self.what, took.as_secs());
        }
        Ok(())
    }
}

/// How a process in the machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// Exit code, or 128 plus a signal.
    pub code: i32,
    /// What it printed.
    pub output: String,
}

/// A process in the machine.
#[derive(Debug, PartialEq, Eq)]
pub struct Process(u64);

impl Agent {
    /// Waits for the agent's greeting, until the machine's deadline.
    pub fn connect(line: Line, deadline: Instant) -> Result<Self> {
        let (sender, messages) = channel();
        let output = BufReader::new(line.output);
        thread::spawn(move || {
            for text in output.lines().map_while(Result::ok) {
                // The line carries noise while the machine boots.
                if let Ok(message) = serde_json::from_str(&text)
                    && sender.send(message).is_err()
                {
                    return;
                }
            }
        });
        let mut agent = Agent { line: line.input, messages, next_id: 1, deadline, watch: None };
        match agent.receive(deadline)? {
            Message::Ready { version: VERSION } => Ok(agent),
            other => bail!("the agent greeted with {other:?}, version {VERSION} was expected"),
        }
    }

    /// Has what follows watched, until there is another watch or none.
    pub fn watch(&mut self, watch: Option<Watch>) {
        self.watch = watch;
    }

    /// Runs a shell command to its end.
    pub fn shell(&mut self, command: &str, timeout: Duration) -> Result<Finished> {
        let process = self.spawn(command)?;
        let why = match self.wait_watched(&process, timeout, command) {
            Ok(Some(finished)) => return Ok(finished),
            Ok(None) => anyhow!("{command:?} did not end within {} s", timeout.as_secs()),
            Err(error) => error,
        };
        self.kill(&process, 9).ok();
        let output = match self.wait_once(&process, Duration::from_secs(5)) {
            Ok(Some(finished)) => finished.output,
            _ => String::new(),
        };
        bail!("{why:#}; it printed:\n{output}")
    }

    /// Starts a shell command.
    pub fn spawn(&mut self, command: &str) -> Result<Process> {
        match self.ask(Op::Spawn { command: command.to_owned() }, Duration::ZERO)? {
            Outcome::Spawned(number) => Ok(Process(number)),
            other => unexpected("spawn", &other),
        }
    }

    /// Waits for a process to end; `None` when it still runs.
    pub fn wait(&mut self, process: &Process, timeout: Duration) -> Result<Option<Finished>> {
        self.wait_watched(process, timeout, "a process in the background")
    }

    fn wait_watched(
        &mut self,
        process: &Process,
        timeout: Duration,
        command: &str,
    ) -> Result<Option<Finished>> {
        let mut left = timeout;
        loop {
            let slice = left.min(SLICE);
            if let Some(finished) = self.wait_once(process, slice)? {
                return Ok(Some(finished));
            }
            left -= slice;
            if left.is_zero() {
                return Ok(None);
            }
            if let Some(watch) = &mut self.watch {
                watch.look(command)?;
            }
        }
    }

    fn wait_once(&mut self, process: &Process, timeout: Duration) -> Result<Option<Finished>> {
        let op = Op::Wait { process: process.0, timeout_ms: timeout.as_millis() as u64 };
        match self.ask(op, timeout)? {
            Outcome::Exited { code, output } => Ok(Some(Finished { code, output })),
            Outcome::StillRunning { .. } => Ok(None),
            other => unexpected("wait", &other),
        }
    }

    /// Sends a signal to a process and to all that it started.
    pub fn kill(&mut self, process: &Process, signal: i32) -> Result<()> {
        match self.ask(Op::Kill { process: process.0, signal }, Duration::ZERO)? {
            Outcome::Done => Ok(()),
            other => unexpected("kill", &other),
        }
    }

    /// Reads a file from an offset and returns the text with the offset behind it.
    pub fn read(&mut self, path: &str, offset: u64) -> Result<(String, u64)> {
        let op = Op::Read { path: path.to_owned(), offset, limit: 128 * 1024 };
        match self.ask(op, Duration::ZERO)? {
            Outcome::Data { text, next } => Ok((text, next)),
            other => unexpected("read", &other),
        }
    }

    /// Writes a whole file.
    pub fn write(&mut self, path: &str, contents: &str) -> Result<()> {
        let op = Op::Write { path: path.to_owned(), contents: contents.to_owned() };
        match self.ask(op, Duration::ZERO)? {
            Outcome::Done => Ok(()),
            other => unexpected("write", &other),
        }
    }

    /// Waits for a line of a growing file that contains one of some texts, and returns it with the
    /// offset behind it; `None` when the timeout passes first.
    pub fn await_line(
        &mut self,
        path: &str,
        offset: u64,
        any_of: &[&str],
        timeout: Duration,
    ) -> Result<Option<(String, u64)>> {
        let wanted: Vec<String> = any_of.iter().map(ToString::to_string).collect();
        let mut left = timeout;
        loop {
            let slice = left.min(SLICE);
            let (path, any_of, timeout_ms) = (path.to_owned(), wanted.clone(), slice.as_millis() as u64);
            match self.ask(Op::AwaitLine { path: path.clone(), offset, any_of, timeout_ms }, slice)? {
                Outcome::Line { line, next } => return Ok(Some((line, next))),
                Outcome::NoLine => left -= slice,
                other => return unexpected("await_line", &other),
            }
            if left.is_zero() {
                return Ok(None);
            }
            if let Some(watch) = &mut self.watch {
                watch.look(&format!("a line in {path}"))?;
            }
        }
    }

    /// Returns the machine's CLOCK_MONOTONIC.
    pub fn clock_ns(&mut self) -> Result<u64> {
        match self.ask(Op::Clock, Duration::ZERO)? {
            Outcome::Time { monotonic_ns } => Ok(monotonic_ns),
            other => unexpected("clock", &other),
        }
    }

    /// Starts a command that ends the machine, and waits for that end.
    pub fn await_end(&mut self, command: &str, patience: Duration) -> Result<()> {
        self.spawn(command)?;
        let until = self.deadline.min(Instant::now() + patience);
        loop {
            match self.messages.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => bail!("the machine did not power off"),
            }
        }
    }

    fn ask(&mut self, op: Op, patience: Duration) -> Result<Outcome> {
        let id = self.next_id;
        self.next_id += 1;
        let mut line = serde_json::to_vec(&Request { id, op })?;
        line.push(b'\n');
        self.line.write_all(&line).context("writing to the agent (did the machine end?)")?;
        self.line.flush().context("writing to the agent")?;
        let until = self.deadline.min(Instant::now() + patience * SLOWNESS + SLACK);
        loop {
            match self.receive(until)? {
                Message::Reply { id: of, result } if of == id => {
                    return match result {
                        Outcome::Failed(why) => bail!("in the machine: {why}"),
                        other => Ok(other),
                    };
                }
                // The late reply to a request that was given up.
                Message::Reply { .. } => {}
                Message::Ready { .. } => bail!("the agent started a second time: dom0 has rebooted"),
            }
        }
    }

    fn receive(&mut self, until: Instant) -> Result<Message> {
        match self.messages.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(message) => Ok(message),
            Err(RecvTimeoutError::Timeout) if until >= self.deadline => {
                bail!("the time allowed for the whole machine is up")
            }
            Err(RecvTimeoutError::Timeout) => bail!("the agent in dom0 does not answer"),
            Err(RecvTimeoutError::Disconnected) => bail!("the machine has ended"),
        }
    }
}

fn unexpected<T>(op: &str, outcome: &Outcome) -> Result<T> {
    bail!("the agent answered {op} with {outcome:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_takes_too_long_is_ended_with_its_name() {
        let mut watch = Watch::begin("row rx d", Duration::from_secs(600));
        watch.look("sleep").unwrap();
        watch.allowed = Duration::ZERO;
        let error = watch.look("sleep 1000").unwrap_err().to_string();
        assert!(error.contains("row rx d") && error.contains("sleep 1000"), "{error}");
    }
}
