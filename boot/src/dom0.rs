//! dom0 as the launcher sees it: commands, files, and guests made with xl. Knows nothing of QEMU and
//! of what is measured.

use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;

use crate::agent::{Agent, Finished, Process};
use crate::progress::Verbosity;

/// Patience with ordinary commands, in the machine's time.
pub const COMMAND: Duration = Duration::from_secs(60);

/// A running dom0.
#[derive(Debug)]
pub struct Dom0 {
    agent: Agent,
    guests: Vec<String>,
    guest_cpu: u8,
    verbosity: Verbosity,
}

/// How a guest is virtualised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Paravirtualised.
    Pv,
    /// In hardware's help, without emulated devices.
    Pvh,
}

impl Mode {
    /// Both, in the order in which they are shown.
    pub const ALL: [Mode; 2] = [Mode::Pv, Mode::Pvh];

    /// Returns xl's name of the mode.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Pv => "pv",
            Mode::Pvh => "pvh",
        }
    }
}

/// A guest to be.
#[derive(Debug, Clone)]
pub struct Guest {
    /// Name, also of its console's file.
    pub name: String,
    /// How it is virtualised.
    pub mode: Mode,
    /// Kernel inside dom0.
    pub kernel: String,
    /// First file system inside dom0.
    pub ramdisk: Option<String>,
    /// Kernel command line.
    pub arguments: String,
    /// Memory.
    pub memory_mib: u32,
    /// Network interfaces that libxl makes (for the stock backend).
    pub vifs: Vec<String>,
    /// Further lines of the guest's configuration.
    pub extra_lines: Vec<String>,
}

/// Whether a new guest runs at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// It runs.
    Running,
    /// It is paused until `unpause`.
    Paused,
}

impl Guest {
    /// Returns the configuration file's text for a guest on a CPU.
    fn config(&self, cpu: u8) -> String {
        let mut text = format!(
            "name = {:?}\ntype = {:?}\nkernel = {:?}\nmemory = {}\nvcpus = 1\ncpus = \"{cpu}\"\nextra = {:?}\n",
            self.name,
            self.mode.name(),
            self.kernel,
            self.memory_mib,
            self.arguments
        );
        if let Some(ramdisk) = &self.ramdisk {
            let _ = writeln!(text, "ramdisk = {ramdisk:?}");
        }
        let vifs: Vec<_> = self.vifs.iter().map(|vif| format!("{vif:?}")).collect();
        let _ = writeln!(text, "vif = [{}]", vifs.join(", "));
        for line in &self.extra_lines {
            let _ = writeln!(text, "{line}");
        }
        text
    }
}

impl Dom0 {
    /// Takes the connection to dom0's agent, and the number of the CPU for guests.
    pub fn new(agent: Agent, guest_cpu: u8, verbosity: Verbosity) -> Self {
        Dom0 { agent, guests: Vec::new(), guest_cpu, verbosity }
    }

    /// Runs a shell command that must succeed, and returns what it printed.
    pub fn shell(&mut self, command: &str) -> Result<String> {
        self.shell_within(command, COMMAND)
    }

    /// Runs a shell command that must succeed within some time, and returns what it printed.
    pub fn shell_within(&mut self, command: &str, timeout: Duration) -> Result<String> {
        let Finished { code, output } = self.run(command, timeout)?;
        if code != 0 {
            bail!("in dom0, {command:?} ended with {code}:\n{output}");
        }
        Ok(output)
    }

    /// Runs a shell command, and returns its code with what it printed.
    pub fn attempt(&mut self, command: &str) -> Result<Finished> {
        self.run(command, COMMAND)
    }

    fn run(&mut self, command: &str, timeout: Duration) -> Result<Finished> {
        if self.verbosity == Verbosity::Verbose {
            eprintln!("dom0# {command}");
        }
        self.agent.shell(command, timeout)
    }

    /// Runs a command whose last line of output is a JSON document.
    pub fn json<T: DeserializeOwned>(&mut self, command: &str, timeout: Duration) -> Result<T> {
        let output = self.shell_within(command, timeout)?;
        parse_last_line(&output).with_context(|| format!("the output of {command:?}:\n{output}"))
    }

    /// Returns the agent, for processes in the background and for files.
    pub fn agent(&mut self) -> &mut Agent {
        &mut self.agent
    }

    /// Starts a process in the background.
    pub fn spawn(&mut self, command: &str) -> Result<Process> {
        self.agent.spawn(command)
    }

    /// Creates a guest with xl.
    pub fn create(&mut self, guest: &Guest, start: Start) -> Result<()> {
        let path = format!("/run/{}.cfg", guest.name);
        self.agent.write(&path, &guest.config(self.guest_cpu))?;
        let log = console_file(&guest.name);
        // What an earlier guest of this name printed must not be taken for this one's.
        self.shell(&format!("rm -f {log}"))?;
        if !self.guests.contains(&guest.name) {
            self.guests.push(guest.name.clone());
        }
        let pause = if start == Start::Paused { "-p " } else { "" };
        self.shell_within(&format!("xl create {pause}{path}"), 2 * COMMAND)
            .with_context(|| format!("creating {} guest {:?}", guest.mode.name(), guest.name))
            .map(drop)
    }

    /// Lets a paused guest run.
    pub fn unpause(&mut self, name: &str) -> Result<()> {
        self.shell(&format!("xl unpause {name}")).map(drop)
    }

    /// Returns a guest's domain id.
    pub fn domain_id(&mut self, name: &str) -> Result<u32> {
        let text = self.shell(&format!("xl domid {name}"))?;
        text.trim().parse().with_context(|| format!("domain id of {name:?}: {text:?}"))
    }

    /// Ends a guest at once, and waits until it is gone.
    pub fn destroy(&mut self, name: &str) -> Result<()> {
        self.shell(&format!("xl destroy {name}"))?;
        self.forget(name);
        Ok(())
    }

    /// Waits for a line on a guest's console that contains one of some texts, from an offset of its
    /// file; returns the line and the offset behind it.
    pub fn await_console(
        &mut self,
        name: &str,
        from: u64,
        any_of: &[&str],
        timeout: Duration,
    ) -> Result<(String, u64)> {
        let found = self.agent.await_line(&console_file(name), from, any_of, timeout)?;
        found.with_context(|| {
            format!("guest {name:?} did not print any of {any_of:?} within {} s", timeout.as_secs())
        })
    }

    /// Returns all that a guest has printed.
    pub fn console(&mut self, name: &str) -> Result<String> {
        let mut text = String::new();
        let mut at = 0;
        loop {
            let (part, next) = self.agent.read(&console_file(name), at)?;
            if next == at {
                return Ok(text);
            }
            text.push_str(&part);
            at = next;
        }
    }

    /// Returns how much a guest has printed, as an offset to wait from.
    pub fn console_len(&mut self, name: &str) -> Result<u64> {
        let text = self.shell(&format!("stat -c %s {} 2>/dev/null || echo 0", console_file(name)))?;
        text.trim().parse().with_context(|| format!("length of a console: {text:?}"))
    }

    /// Forgets a guest that ended by itself.
    pub fn forget(&mut self, name: &str) {
        self.guests.retain(|known| known != name);
    }

    /// Returns the names of the guests that were created and not destroyed.
    pub fn guests(&self) -> &[String] {
        &self.guests
    }
}

/// Returns the file to which xenconsoled writes what a guest prints.
pub fn console_file(guest: &str) -> String {
    format!("/var/log/xen/guest-{guest}.log")
}

/// Returns a shell command that ends once a domain is gone. The watch fires once when it is set, so
/// that an end before it is not missed.
pub fn await_gone(name: &str) -> String {
    format!(
        "mkfifo /run/gone.$$; xenstore-watch @releaseDomain > /run/gone.$$ & watch=$!; \
         while read -r _; do xl domid {name} >/dev/null 2>&1 || break; done < /run/gone.$$; \
         kill $watch; rm /run/gone.$$"
    )
}

/// Returns the JSON document in the last line of a text.
pub fn parse_last_line<T: DeserializeOwned>(text: &str) -> Result<T> {
    let line = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    serde_json::from_str(line.trim()).with_context(|| format!("not the JSON that was expected: {line:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_of_a_guest() {
        let guest = Guest {
            name: "one".into(),
            mode: Mode::Pvh,
            kernel: "/k".into(),
            ramdisk: None,
            arguments: "app=echo ip=10.0.0.2/24".into(),
            memory_mib: 16,
            vifs: vec!["mac=00:16:3e:00:00:01,script=/bin/true".into()],
            extra_lines: vec!["maxmem = 32".into()],
        };
        assert_eq!(
            guest.config(1),
            "name = \"one\"\ntype = \"pvh\"\nkernel = \"/k\"\nmemory = 16\nvcpus = 1\ncpus = \"1\"\n\
             extra = \"app=echo ip=10.0.0.2/24\"\nvif = [\"mac=00:16:3e:00:00:01,script=/bin/true\"]\n\
             maxmem = 32\n"
        );
    }

    #[test]
    fn the_last_line_is_the_report() {
        let number: u32 = parse_last_line("noise\n42\n\n").unwrap();
        assert_eq!(number, 42);
        assert!(parse_last_line::<u32>("noise").unwrap_err().to_string().contains("noise"));
    }
}
