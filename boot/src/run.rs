//! Boots one guest and shows its console until it ends. Knows nothing of what the guest's app does.

use std::net::{TcpListener, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::backend::{self, Daemon};
use crate::cli::{MachineKind, RunArgs};
use crate::commands::Context;
use crate::demo::guests::{GUEST_MAC, HOST_IP};
use crate::dom0::{Dom0, Guest, Mode, Start, await_gone, console_file};
use crate::images::inside;
use crate::products;
use crate::qemu::{Clock, Forward, Machine, plain_command, show};
use crate::setup::{Placement, provide, provide_qemu};
use crate::testbed::Testbed;

/// The echo service's port (RFC 862).
const ECHO_PORT: u16 = 7;

/// The backend's TAP in dom0.
const TAP: &str = "dry0";

/// What is put behind the last line of a guest's console.
const ENDED: &str = "test bed: the domain is gone";

/// Patience with one line of the console.
const QUIET: Duration = Duration::from_secs(3600);

/// Boots a guest as the arguments say.
pub fn run(context: &Context, args: &RunArgs) -> Result<()> {
    let mut settings = vec![format!("app={}", args.app)];
    settings.extend(args.settings.iter().cloned());
    let settings = settings.join(" ");
    let limit = Duration::from_secs(args.timeout);
    match args.mode {
        MachineKind::Pv => run_under_xen(context, Mode::Pv, &settings, limit),
        MachineKind::Pvh => run_under_xen(context, Mode::Pvh, &settings, limit),
        MachineKind::Qemu => run_plain(context, &settings, limit),
    }
}

fn run_plain(context: &Context, settings: &str, limit: Duration) -> Result<()> {
    let emulator = provide_qemu(&context.workspace, context.verbosity)?;
    let kernel = products::guest_image(&context.workspace, context.verbosity)?;
    let forwards = free_ports()?;
    for forward in &forwards {
        eprintln!(
            "{} echo: 127.0.0.1 port {} leads to the guest's port {}",
            forward.protocol, forward.host_port, forward.guest_port
        );
    }
    eprintln!("Ctrl-C ends the machine");
    let command = plain_command(&emulator, &kernel, settings, &forwards);
    let folder = context.workspace.data("logs")?;
    let (machine, line) = Machine::start(command, limit, &folder, context.verbosity)?;
    show(line, std::io::stdout())?;
    let errors = machine.errors();
    if !errors.is_empty() {
        eprintln!("QEMU said:\n{errors}");
    }
    Ok(())
}

/// Returns forwards from ports of loopback that nobody uses now.
pub(crate) fn free_ports() -> Result<[Forward; 2]> {
    let udp = UdpSocket::bind("127.0.0.1:0").context("finding a free UDP port")?;
    let tcp = TcpListener::bind("127.0.0.1:0").context("finding a free TCP port")?;
    let forward = |protocol, host_port| Forward { protocol, host_port, guest_port: ECHO_PORT };
    Ok([forward("udp", udp.local_addr()?.port()), forward("tcp", tcp.local_addr()?.port())])
}

fn run_under_xen(context: &Context, mode: Mode, settings: &str, limit: Duration) -> Result<()> {
    let provisions = provide(&context.workspace, Placement::Installed, context.verbosity)?;
    let programs = products::programs(&context.workspace, context.verbosity)?;
    let mut bed =
        Testbed::boot(&context.workspace, &provisions, &programs, Clock::Wall, limit, context.verbosity)?;
    eprintln!(
        "the guest is on drayage's tap {TAP}, 10.0.0.0/24; dom0 is {HOST_IP} and serves DHCP; Ctrl-C ends the machine"
    );
    let result = show_guest(&mut bed.dom0, mode, settings);
    result.map_err(|error| bed.explain(error))?;
    bed.power_off()
}

fn show_guest(dom0: &mut Dom0, mode: Mode, settings: &str) -> Result<()> {
    let name = "guest";
    let guest = Guest {
        name: name.into(),
        mode,
        kernel: inside::KERNEL.into(),
        ramdisk: None,
        arguments: settings.to_owned(),
        memory_mib: 32,
        vifs: Vec::new(),
        extra_lines: vec!["on_crash = \"destroy\"".into()],
    };
    dom0.create(&guest, Start::Paused)?;
    let _daemon = Daemon::start(dom0)?;
    backend::attach(dom0, name, GUEST_MAC, &format!("--port tap:{TAP}"))?;
    dom0.shell(&format!("ip addr add {HOST_IP}/24 dev {TAP} && ip link set {TAP} up"))?;
    serve_dhcp(dom0, TAP)?;
    dom0.unpause(name)?;
    dom0.spawn(&announce_end(name))?;
    let mut at = 0;
    loop {
        let (line, next) = dom0.await_console(name, at, &[""], QUIET)?;
        if line.contains(ENDED) {
            return Ok(());
        }
        println!("{line}");
        at = next;
    }
}

/// Returns a shell command that adds a last line to a guest's console once its domain is gone.
fn announce_end(name: &str) -> String {
    format!("{}; echo '{ENDED}' >> {}", await_gone(name), console_file(name))
}

/// Starts a DHCP server on a device of dom0.
pub fn serve_dhcp(dom0: &mut Dom0, device: &str) -> Result<()> {
    let config = format!(
        "interface {device}\nstart 10.0.0.2\nend 10.0.0.9\nmax_leases 8\noption subnet 255.255.255.0\n\
         option router 10.0.0.1\nlease_file /run/udhcpd.leases\npidfile /run/udhcpd.{device}.pid\n"
    );
    let path = format!("/run/udhcpd.{device}.conf");
    dom0.agent().write(&path, &config)?;
    dom0.shell("touch /run/udhcpd.leases")?;
    dom0.spawn(&format!("udhcpd -f {path}"))?;
    Ok(())
}
