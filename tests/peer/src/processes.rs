//! Processes that the agent starts: each in a group of its own, its output in a file, its end seen
//! through a pidfd. Knows nothing of the agent's messages.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::sys::{self, Readiness};

/// Most of a process's output that is returned: its end, where errors are.
const OUTPUT_LIMIT: u64 = 256 * 1024;

/// The processes started and not yet waited for.
#[derive(Debug)]
pub struct Processes {
    directory: PathBuf,
    next: u64,
    running: HashMap<u64, Running>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    ended: OwnedFd,
    log: PathBuf,
}

/// How a wait ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Waited {
    /// The process ended with this code; the output is complete.
    Exited(i32, String),
    /// The process still runs; the output so far.
    StillRunning(String),
}

impl Processes {
    /// Keeps the output files in a directory.
    pub fn new(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
        Ok(Processes { directory: directory.to_owned(), next: 1, running: HashMap::new() })
    }

    /// Starts a shell command and returns its number.
    pub fn spawn(&mut self, command: &str) -> Result<u64> {
        let number = self.next;
        self.next += 1;
        let log = self.directory.join(format!("{number}.log"));
        let output = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let child = Command::new("sh")
            .args(["-c", command])
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .spawn()
            .context("starting sh")?;
        let ended = sys::process_descriptor(child.id()).context("pidfd_open")?;
        self.running.insert(number, Running { child, ended, log });
        Ok(number)
    }

    /// Waits for a process; one that ended is forgotten and its output file removed.
    pub fn wait(&mut self, number: u64, timeout: Duration) -> Result<Waited> {
        let running = self.get(number)?;
        if sys::wait_readable(&running.ended, timeout)? == Readiness::TimedOut {
            return Ok(Waited::StillRunning(tail(&running.log)?));
        }
        let status = running.child.wait().context("waiting for a process")?;
        let output = tail(&running.log)?;
        fs::remove_file(&running.log).ok();
        self.running.remove(&number);
        Ok(Waited::Exited(exit_code(status), output))
    }

    /// Sends a signal to a process and to its children.
    pub fn kill(&mut self, number: u64, signal: i32) -> Result<()> {
        let running = self.get(number)?;
        sys::signal_group(running.child.id(), signal).with_context(|| format!("signal {signal}"))
    }

    fn get(&mut self, number: u64) -> Result<&mut Running> {
        self.running.get_mut(&number).with_context(|| format!("process {number} is not known here"))
    }
}

fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

fn tail(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(OUTPUT_LIMIT)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processes(name: &str) -> Processes {
        Processes::new(&std::env::temp_dir().join(format!("peer-{name}-{}", std::process::id()))).unwrap()
    }

    #[test]
    fn code_and_both_outputs_come_back() {
        let mut processes = processes("code");
        let number = processes.spawn("echo out; echo err >&2; exit 3").unwrap();
        let waited = processes.wait(number, Duration::from_secs(10)).unwrap();
        assert_eq!(waited, Waited::Exited(3, "out\nerr\n".into()));
        assert!(processes.wait(number, Duration::ZERO).is_err(), "forgotten after its end");
    }

    #[test]
    fn a_timeout_leaves_it_running_and_a_signal_ends_the_group() {
        let mut processes = processes("kill");
        let number = processes.spawn("echo started; sleep 1000 & wait").unwrap();
        let waited = processes.wait(number, Duration::from_millis(300)).unwrap();
        assert_eq!(waited, Waited::StillRunning("started\n".into()));
        processes.kill(number, libc::SIGKILL).unwrap();
        let waited = processes.wait(number, Duration::from_secs(10)).unwrap();
        assert_eq!(waited, Waited::Exited(137, "started\n".into()));
    }
}
