//! What scenarios have in common: guests on a backend, and questions to them. Knows nothing of what
//! a scenario is after.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use drayage_peer::report::{EchoReport, PingReport};

use crate::dom0::{Dom0, Guest, Mode, Start, await_gone};

/// Patience with a guest's first answer.
const GREETING: Duration = Duration::from_secs(60);

/// Patience with what a guest prints.
pub(super) const CONSOLE: Duration = Duration::from_secs(90);

/// A machine on which one scenario runs.
pub(super) struct Bench<'a> {
    /// dom0 of the machine.
    pub(super) dom0: &'a mut Dom0,
}

impl<'a> Bench<'a> {
    /// Takes a machine.
    pub(super) fn new(dom0: &'a mut Dom0) -> Self {
        Bench { dom0 }
    }

    /// Ends everything that a scenario left behind.
    pub(super) fn tidy(&mut self) -> Result<()> {
        for name in self.dom0.guests().to_vec() {
            self.dom0.shell(&format!("xl destroy {name} 2>&1 || ! xl domid {name} 2>/dev/null"))?;
            self.dom0.forget(&name);
        }
        self.dom0.shell(
            "killall -9 systemd drayage udhcpd xenstore-watch; for pid in $(pidof peer); do \
             tr '\\0' ' ' < /proc/$pid/cmdline | grep -qE '^peer (send|ping|udp-echo|tcp-echo)' && kill -9 $pid; \
             done; true",
        )?;
        // What a daemon that was killed wanted to find again, and bridges: dom0's address must be on one device only.
        self.dom0.shell(
            "rm -rf /run/drayage /run/drayage.toml; for dev in /sys/class/net/*/tun_flags /sys/class/net/*/bridge; do \
             [ -e $dev ] || continue; dev=${dev%/*}; ip link del ${dev##*/}; done",
        )?;
        let left = self.dom0.shell("xl list | tail -n +3")?;
        ensure!(left.trim().is_empty(), "domains that do not go away:\n{left}");
        Ok(())
    }

    /// Creates a guest on the stock backend, with dom0's address on its vif.
    pub(super) fn create_on_stock(&mut self, guest: &Guest, host_ip: &str) -> Result<()> {
        self.dom0.create(guest, Start::Running)?;
        self.address_stock_vif(&guest.name, host_ip)
    }

    /// Brings a guest's vif of the stock backend up, with an address of dom0's on it.
    pub(super) fn address_stock_vif(&mut self, name: &str, host_ip: &str) -> Result<()> {
        let vif = format!("vif{}.0", self.dom0.domain_id(name)?);
        self.dom0.shell(&format!("ip link set {vif} up && ip addr add {host_ip}/24 dev {vif}"))?;
        Ok(())
    }

    /// Waits for an address to answer a ping.
    pub(super) fn await_answer(&mut self, ip: &str) -> Result<()> {
        let report: PingReport = self
            .dom0
            .json(&format!("peer ping {ip} --until-answered --interval-ms 100 --count 300"), GREETING)?;
        ensure!(report.answered > 0, "{ip} answered none of {} pings", report.sent);
        Ok(())
    }

    /// Pings and sends UDP and TCP through an echo service, and compares every byte.
    pub(super) fn compare_echoes(&mut self, ip: &str) -> Result<()> {
        let ping: PingReport = self.dom0.json(&format!("peer ping {ip} --bytes 1400"), GREETING)?;
        ensure!(ping.answered == ping.sent && ping.mismatched == 0, "{ping:?}");
        for command in ["udp-echo", "tcp-echo"] {
            let report: EchoReport = self.dom0.json(&format!("peer {command} {ip}"), GREETING)?;
            let same = report.mismatched == 0 && report.received_bytes == report.sent_bytes;
            ensure!(same, "{report:?}");
        }
        Ok(())
    }

    /// Waits for a line of a guest's console from its beginning.
    pub(super) fn await_console(&mut self, name: &str, text: &str) -> Result<String> {
        Ok(self.dom0.await_console(name, 0, &[text], CONSOLE)?.0)
    }

    /// Waits until a guest's domain is gone.
    pub(super) fn await_gone(&mut self, name: &str) -> Result<()> {
        self.dom0.shell_within(&await_gone(name), CONSOLE)?;
        self.dom0.forget(name);
        Ok(())
    }

    /// Returns the seconds of CPU time that a domain has used.
    pub(super) fn cpu_seconds(&mut self, name: &str) -> Result<f64> {
        let text = self.dom0.shell(&format!("xl list {name}"))?;
        let Some(seconds) = text.lines().last().and_then(|line| line.split_whitespace().last()) else {
            bail!("xl list {name}: {text:?}")
        };
        Ok(seconds.parse()?)
    }
}

/// Returns a mode's name for messages.
pub(super) fn mode_name(mode: Mode) -> &'static str {
    mode.name()
}
