//! A scenario on the systemd unit: Debian's systemd runs it in dom0, as the first process of namespaces of its own,
//! since dom0's init is the test bed's. Knows the unit by what `systemctl` says of it.

use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::bench::Bench;
use super::package;
use super::removal;
use super::restart::Traffic;
use crate::agent::Process;
use crate::backend;
use crate::demo::guests::{GUEST_IP, GUEST_MAC, HOST_IP, ours};
use crate::dom0::{Mode, Start};
use crate::package::installed;

/// The daemon's TAP in dom0.
pub(super) const TAP: &str = "dry0";
/// Where its control groups are.
const GROUPS: &str = "/sys/fs/cgroup/manager";
/// The daemon's process, as dom0 numbers it.
pub(super) const DAEMON: &str = "$(for pid in $(pidof drayage); do [ -e /proc/$pid/exe ] && echo $pid; done)";

/// Goes before what talks to systemd, which answers only who is in its namespaces.
pub(super) const INSIDE: &str = "nsenter -t $(pidof systemd) -m -p";

/// systemd, running.
struct Manager(Process);

impl Manager {
    /// Starts it with nothing to do, and waits until it takes commands. It shares dom0's files and network.
    fn start(bench: &mut Bench) -> Result<Self> {
        bench.dom0.shell(&format!(
            "touch /etc/machine-id && mount -t cgroup2 cgroup2 /sys/fs/cgroup && mkdir {GROUPS}"
        ))?;
        let first = bench.dom0.spawn(&format!(
            "exec unshare -m -p -u -f sh -c 'mount -t proc proc /proc && echo 0 > {GROUPS}/cgroup.procs && \
             exec env -i container=testbed PATH=$PATH /lib/systemd/systemd --system --unit=basic.target \
             --log-target=kmsg --show-status=no'"
        ))?;
        let said = bench.dom0.attempt(&format!(
            "for n in $(seq 20); do [ \"$({INSIDE} systemctl is-active basic.target)\" = active ] && exit 0; \
             sleep 0.2; done; ps; exit 1"
        ))?;
        if said.code != 0 {
            let messages = bench.dom0.attempt("dmesg | tail -n 40")?.output;
            bail!("systemd does not start:\n{}\n{messages}", said.output);
        }
        Ok(Self(first))
    }

    /// Ends it with all that it runs.
    fn end(self, bench: &mut Bench) -> Result<()> {
        bench.dom0.shell("killall -9 systemd")?;
        bench.dom0.agent().wait(&self.0, Duration::from_secs(20))?;
        bench.dom0.shell(&format!(
            "find {GROUPS} -depth -type d -exec rmdir {{}} \\; && umount /sys/fs/cgroup && \
             rm -rf /etc/machine-id /run/systemd"
        ))?;
        Ok(())
    }
}

/// Returns what systemd says of the unit, one `Name=value` a line.
pub(super) fn shown(bench: &mut Bench, names: &str) -> Result<String> {
    bench.dom0.shell(&format!("{INSIDE} systemctl show -p {names} drayage"))
}

/// Runs a command of systemctl's that must succeed.
pub(super) fn systemctl(bench: &mut Bench, command: &str) -> Result<()> {
    let said = bench.dom0.attempt(&format!("{INSIDE} systemctl {command} 2>&1"))?;
    if said.code == 0 {
        return Ok(());
    }
    let state =
        bench.dom0.attempt(&format!("{INSIDE} systemctl -l status drayage 2>&1; dmesg | tail -n 30"))?;
    bail!("systemctl {command} ended with {}:\n{}\n{}", said.code, said.output, state.output)
}

/// Waits until a property of the unit's has a value.
fn await_value(bench: &mut Bench, name: &str, value: &str) -> Result<()> {
    let is = format!("$({INSIDE} systemctl show -p {name} --value drayage)");
    bench.dom0.shell(&format!("until [ \"{is}\" = {value} ]; do sleep 0.1; done")).map(drop)
}

pub(super) fn run(bench: &mut Bench) -> Result<()> {
    let manager = Manager::start(bench)?;
    package::install(bench, INSIDE)?;
    systemctl(bench, "start drayage")?;
    // It is ready when systemd says so: commands are taken at once.
    bench.dom0.shell("drayage list")?;
    let state = shown(bench, "ActiveState,SubState,Type")?;
    ensure!(state.contains("ActiveState=active") && state.contains("Type=notify"), "{state}");

    bench.dom0.create(&ours("managed", Mode::Pvh, &format!("app=echo ip={GUEST_IP}/24")), Start::Paused)?;
    backend::attach(bench.dom0, "managed", GUEST_MAC, &format!("--port tap:{TAP}"))?;
    bench.dom0.shell(&format!("ip addr add {HOST_IP}/24 dev {TAP}"))?;
    bench.dom0.unpause("managed")?;
    bench.await_answer(GUEST_IP)?;
    confined(bench)?;
    reloaded(bench)?;

    // Killed, it is started again by systemd; ended for an upgrade, by whoever upgrades. Neither is noticed.
    let traffic = Traffic::start(bench)?;
    traffic.check(bench)?;
    bench.dom0.shell(&format!("kill -9 {DAEMON}"))?;
    await_value(bench, "NRestarts", "1")?;
    await_value(bench, "ActiveState", "active")?;
    traffic.check(bench)?;
    systemctl(bench, "kill --kill-who=main -s USR2 drayage")?;
    await_value(bench, "ActiveState", "inactive")?;
    systemctl(bench, "start drayage")?;
    traffic.check(bench)?;
    traffic.end(bench)?;
    bench.compare_echoes(GUEST_IP)?;
    let vhost = bench.dom0.shell("drayage list --json")?;
    ensure!(vhost.contains("\"port_by\":\"vhost\""), "{vhost}");

    systemctl(bench, "stop drayage")?;
    // It would have failed, had it not ended well and in time.
    let state = shown(bench, "ActiveState")?;
    ensure!(state.contains("ActiveState=inactive"), "{state}");
    ensure!(bench.dom0.attempt(&format!("ls /sys/class/net/{TAP}"))?.code != 0, "the TAP is left");
    removal::run(bench, "managed")?;
    bench.dom0.destroy("managed")?;
    manager.end(bench)
}

/// What the unit says of rights holds, and leaves what is needed.
fn confined(bench: &mut Bench) -> Result<()> {
    let status = bench.dom0.shell(&format!("cat /proc/{DAEMON}/status"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        line.unwrap_or_default().trim().to_owned()
    };
    // CAP_NET_ADMIN 12, CAP_NET_RAW 13, CAP_IPC_LOCK 14, CAP_SYS_NICE 23, CAP_BPF 39.
    let allowed = 1u64 << 12 | 1 << 13 | 1 << 14 | 1 << 23 | 1 << 39;
    for name in ["CapEff", "CapBnd", "CapPrm"] {
        let held = u64::from_str_radix(&field(name), 16)?;
        ensure!(held & !allowed == 0, "{name} is {held:x}");
        ensure!(held & 1 << 12 != 0, "{name} lacks CAP_NET_ADMIN: {held:x}");
    }
    ensure!(field("NoNewPrivs") == "1" && field("Seccomp") == "2", "{status}");
    // Whoever is in its mount namespace writes below /run only, and sees nobody's home.
    let inside = format!("nsenter -t {DAEMON} -m /bin/busybox");
    for refused in ["touch /usr/sbin/x", "touch /etc/x", "touch /root/x", "touch /sys/x", "touch /proc/sys/x"]
    {
        ensure!(bench.dom0.attempt(&format!("{inside} {refused} 2>&1"))?.code != 0, "it may {refused}");
    }
    bench.dom0.shell(&format!("{inside} touch /run/x && rm /run/x"))?;
    // And whoever is in its control group opens its devices only.
    let group = format!("{GROUPS}/system.slice/drayage.service/cgroup.procs");
    let opens = |device: &str| format!("sh -c 'echo 0 > {group} && exec 3<>{device}' 2>&1");
    for device in ["/dev/xen/gntdev", "/dev/xen/evtchn", "/dev/net/tun", "/dev/vhost-net", "/dev/null"] {
        bench.dom0.shell(&opens(device))?;
    }
    for device in ["/dev/xen/privcmd", "/dev/kmsg", "/dev/mem"] {
        let said = bench.dom0.attempt(&opens(device))?;
        ensure!(said.code != 0 && said.output.contains("not permitted"), "{device}: {said:?}");
    }
    package::sandboxed(bench)
}

/// A new configuration is in force when `systemctl reload` ends; one with a mistake changes nothing, and is an error.
fn reloaded(bench: &mut Bench) -> Result<()> {
    let file = installed::CONFIGURATION;
    bench.dom0.shell(&format!(
        "cp -p {file} /run/kept.toml; printf '[[guest]]\\nname = \"managed\"\\nmac = \"{GUEST_MAC}\"\\n\
         port = \"tap:{TAP}\"\\npolicy = \"fixed:size=8192,timeout=300\"\\n' >> {file}"
    ))?;
    systemctl(bench, "reload drayage")?;
    let list = bench.dom0.shell("drayage list --json")?;
    ensure!(list.contains("fixed:size=8192,timeout=300"), "the new policy is not in force: {list}");
    bench.dom0.shell(&format!("echo 'nonsense = 1' >> {file}"))?;
    let said = bench.dom0.attempt(&format!("{INSIDE} systemctl reload drayage 2>&1"))?;
    ensure!(said.code != 0, "a mistake was taken: {said:?}");
    let state = shown(bench, "ActiveState,NRestarts")?;
    ensure!(state.contains("ActiveState=active") && state.contains("NRestarts=0"), "{state}");
    bench.await_answer(GUEST_IP)?;
    bench.dom0.shell(&format!("sed -i '/nonsense/d' {file}")).map(drop)
}
