//! Our backend in dom0, driven by its own command line as an operator would. Knows the commands, not
//! what is done with them.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::agent::Process;
use crate::dom0::Dom0;

/// What the daemon prints goes here.
const LOG: &str = "/var/log/drayage.log";

/// The daemon's process id: its name would also find one that was killed and not yet waited for.
const PID: &str = "/run/drayage-daemon.pid";

/// Patience with the daemon's start.
const START: Duration = Duration::from_secs(20);

/// The text on the line that tells that the daemon takes commands.
const READY: &str = "ready: ";

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    process: Process,
}

impl Daemon {
    /// Starts the daemon and waits until it takes commands.
    pub fn start(dom0: &mut Dom0) -> Result<Self> {
        Self::start_with(dom0, "")
    }

    /// As [`start`](Self::start), with options.
    pub fn start_with(dom0: &mut Dom0, options: &str) -> Result<Self> {
        dom0.shell(&format!("rm -f {LOG}; mkdir -p /var/log"))?;
        let process = dom0.spawn(&format!("echo $$ > {PID}; exec drayage run {options} > {LOG} 2>&1"))?;
        if dom0.agent().await_line(LOG, 0, &[READY], START)?.is_none() {
            bail!("drayage run did not get ready; it printed:\n{}", log(dom0)?);
        }
        Ok(Daemon { process })
    }

    /// Ends the daemon as an operator would, and fails unless it ended well.
    pub fn stop(self, dom0: &mut Dom0) -> Result<()> {
        const TERM: i32 = 15;
        dom0.agent().kill(&self.process, TERM)?;
        match dom0.agent().wait(&self.process, START)? {
            Some(finished) if finished.code == 0 => refused_nothing(dom0),
            Some(finished) => bail!("drayage run ended with {}:\n{}", finished.code, log(dom0)?),
            None => bail!("drayage run goes on after SIGTERM:\n{}", log(dom0)?),
        }
    }

    /// Ends the daemon in a way that nothing in it can notice.
    pub fn kill(self, dom0: &mut Dom0) -> Result<()> {
        const KILL: i32 = 9;
        dom0.agent().kill(&self.process, KILL)?;
        match dom0.agent().wait(&self.process, START)? {
            Some(_) => Ok(()),
            None => bail!("drayage run goes on after SIGKILL"),
        }
    }

    /// Sends the daemon a signal.
    pub fn signal(&self, dom0: &mut Dom0, signal: i32) -> Result<()> {
        dom0.agent().kill(&self.process, signal)
    }

    /// Waits for a daemon that another one took over from; it must have ended well.
    pub fn left(self, dom0: &mut Dom0) -> Result<()> {
        match dom0.agent().wait(&self.process, START)? {
            Some(finished) if finished.code == 0 => Ok(()),
            other => bail!("drayage run did not leave in order: {other:?}"),
        }
    }

    /// Fails when the daemon has ended.
    pub fn check(&self, dom0: &mut Dom0) -> Result<()> {
        match dom0.agent().wait(&self.process, Duration::ZERO)? {
            None => refused_nothing(dom0),
            Some(finished) => bail!("drayage run has ended with {}:\n{}", finished.code, log(dom0)?),
        }
    }

    /// Returns how many mappings of guests' grants the daemon has.
    pub fn mapped_grants(&self, dom0: &mut Dom0) -> Result<usize> {
        let text = dom0.shell(&format!("grep -c /dev/xen/gntdev /proc/$(cat {PID})/maps; true"))?;
        text.trim().parse().with_context(|| format!("mappings of the daemon: {text:?}"))
    }

    /// Returns the CPU time that the daemon has used, in milliseconds.
    pub fn cpu_ms(&self, dom0: &mut Dom0) -> Result<u64> {
        let text = dom0.shell(&format!("awk '{{ print $14 + $15 }}' /proc/$(cat {PID})/stat"))?;
        let ticks: u64 = text.trim().parse().with_context(|| format!("CPU time of the daemon: {text:?}"))?;
        // USER_HZ is 100 on every Linux that this runs on.
        Ok(ticks * 10)
    }
}

/// Fails when the daemon made a system call that its sandbox does not allow.
fn refused_nothing(dom0: &mut Dom0) -> Result<()> {
    let refused = dom0.attempt(&format!("grep -F 'the sandbox refused system call' {LOG}"))?;
    if refused.code == 0 {
        bail!("a system call is missing in dom0-tool/src/sandbox/calls.rs:\n{}", refused.output);
    }
    Ok(())
}

/// Gives a domain an interface on the daemon.
pub fn attach(dom0: &mut Dom0, domain: &str, mac: &str, options: &str) -> Result<()> {
    dom0.shell(&format!("drayage attach {domain} --mac {mac} {options}")).map(drop)
}

/// Takes a domain's interface away.
pub fn detach(dom0: &mut Dom0, domain: &str) -> Result<()> {
    dom0.shell(&format!("drayage detach {domain}")).map(drop)
}

/// Returns `drayage stats --json`.
pub fn stats(dom0: &mut Dom0) -> Result<Value> {
    let text = dom0.shell("drayage stats --json")?;
    serde_json::from_str(&text).with_context(|| format!("drayage stats --json printed {text:?}"))
}

/// Returns of the same document what has some keys, on every level: the rest costs the machine more than a short stream
/// of packets does, on its way here.
pub fn stats_of(dom0: &mut Dom0, keys: &str) -> Result<Value> {
    let text = dom0.shell(&stats_command(keys))?;
    serde_json::from_str(&text).with_context(|| format!("drayage stats --json printed {text:?}"))
}

/// Returns the command that prints it, in one line.
pub fn stats_command(keys: &str) -> String {
    // A pipe's end has the code of its last command, which fails without a document.
    format!("drayage stats --json | peer keep {keys}")
}

/// Returns what the daemon printed.
pub fn log(dom0: &mut Dom0) -> Result<String> {
    Ok(dom0.attempt(&format!("tail -n 40 {LOG}"))?.output)
}
