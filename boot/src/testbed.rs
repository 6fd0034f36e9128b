//! Boots Xen with a Linux dom0 in QEMU, and explains a failure with what the machine printed. Knows
//! nothing of what is then done in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Error, Result};

use crate::agent::Agent;
use crate::dom0::Dom0;
use crate::images::{self, Programs};
use crate::progress::{Step, Verbosity, last_lines};
use crate::qemu::{Clock, Machine, XenMachine, xen_command};
use crate::setup::Provisions;
use crate::workspace::Workspace;

/// Lines of a console that a failure shows.
const SHOWN_LINES: usize = 15;

/// Lines of xenstore that a failure shows.
const XENSTORE_LINES: usize = 60;

/// A running machine with Xen and dom0.
#[derive(Debug)]
pub struct Testbed {
    /// The domain to which commands go.
    pub dom0: Dom0,
    machine: Machine,
    console: PathBuf,
}

impl Testbed {
    /// Boots the machine and waits for dom0; it is ended by force after `limit`.
    pub fn boot(
        workspace: &Workspace,
        provisions: &Provisions,
        programs: &Programs,
        clock: Clock,
        limit: Duration,
        verbosity: Verbosity,
    ) -> Result<Self> {
        let images = images::make(workspace, provisions, programs)?;
        let folder = workspace.data("logs")?.join(images::unique());
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let console = folder.join("console.log");
        let step = Step::begin(match clock {
            Clock::Wall | Clock::WallOfTwoForDom0 => "booting Xen and dom0",
            Clock::Instructions => "booting Xen and dom0, in instruction time",
            Clock::InstructionsOfOneCpu => "booting Xen and dom0 on one CPU, in instruction time",
        });
        let command = xen_command(
            &provisions.emulator,
            &XenMachine {
                xen: &images.xen,
                kernel: &images.linux,
                initramfs: &images.dom0,
                clock,
                console: &console,
            },
        );
        let (machine, line) = Machine::start(command, limit, &folder, verbosity)?;
        let connected = Agent::connect(line, machine.deadline());
        // QEMU has read it by now, or never will.
        fs::remove_file(&images.dom0).ok();
        match connected {
            Ok(agent) => {
                step.done("dom0 is up");
                Ok(Testbed { dom0: Dom0::new(agent, clock.last_cpu(), verbosity), machine, console })
            }
            Err(error) => Err(error.context(Failure { text: boot_failure(&machine, &console) })),
        }
    }

    /// Returns the host's CPU time that the machine has used.
    pub fn cpu_time(&self) -> Duration {
        self.machine.cpu_time().unwrap_or_default()
    }

    /// Adds to an error what the machine printed last, and what to try.
    pub fn explain(&mut self, error: Error) -> Error {
        let mut text = boot_failure(&self.machine, &self.console);
        for guest in self.dom0.guests().to_vec() {
            match self.dom0.console(&guest) {
                Ok(console) => section(&mut text, &format!("guest {guest:?} printed last"), &console),
                // The agent is gone too, and dom0's own lines say more.
                Err(_) => break,
            }
        }
        // Who ran, or waited, when it failed.
        self.dom0.agent().watch(None);
        if let Ok(listing) = self.dom0.attempt("xl list; top -b -n 1 | head -n 12") {
            section_of(&mut text, "domains, and dom0's tasks", &listing.output, XENSTORE_LINES);
        }
        // Where a guest has no network, the reason is in what the two ends wrote for each other.
        let vifs = "xenstore-ls -f /local/domain | grep -E '/(device|backend)/' | grep -v '/backend-id '";
        if let Ok(listing) = self.dom0.attempt(vifs) {
            section_of(&mut text, "interfaces in xenstore", &listing.output, XENSTORE_LINES);
        }
        error.context(Failure { text })
    }

    /// Powers the machine off.
    pub fn power_off(mut self) -> Result<()> {
        self.dom0.agent().await_end("poweroff -f", Duration::from_secs(30))?;
        if let Some(folder) = self.console.parent() {
            fs::remove_dir_all(folder).ok();
        }
        Ok(())
    }
}

/// What the machine printed, as the outermost part of an error.
#[derive(Debug)]
struct Failure {
    text: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        formatter.write_str(&self.text)
    }
}

fn boot_failure(machine: &Machine, console: &Path) -> String {
    let mut text = String::from("something in the machine failed");
    let printed = fs::read(console).unwrap_or_default();
    let printed = String::from_utf8_lossy(&printed);
    let (xen, dom0): (Vec<&str>, Vec<&str>) = printed.lines().partition(|line| line.starts_with("(XEN)"));
    section(&mut text, "QEMU printed last", &machine.errors());
    section(&mut text, "Xen printed last", &xen.join("\n"));
    section(&mut text, "dom0 printed last", &dom0.join("\n"));
    text.push_str("\n--- what to try ---\n");
    text.push_str(&format!(
        "* the whole console is in {}\n\
         * -v shows QEMU's command line\n\
         * the machine needs 3 GiB of memory; another QEMU at work makes it slow\n\
         * remove target/drayage to fetch and make everything again\n---",
        console.display()
    ));
    text
}

fn section(text: &mut String, title: &str, lines: &str) {
    section_of(text, title, lines, SHOWN_LINES);
}

fn section_of(text: &mut String, title: &str, lines: &str, most: usize) {
    text.push_str(&format!("\n--- {title} ---\n{}", last_lines(lines.trim_end(), most)));
}
