//! Scenarios in plain QEMU, without Xen. Knows nothing of dom0.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use drayage_peer::echo::{Extent, tcp_client, udp_client};

use super::Alone;
use crate::commands::Context;
use crate::products;
use crate::qemu::{Machine, plain_command};
use crate::run::free_ports;
use crate::setup::provide_qemu;

/// Time after which the machine is ended by force.
const LIMIT: Duration = Duration::from_secs(120);

pub(super) fn scenarios() -> [(&'static str, Alone); 1] {
    [("qemu::echo_over_virtio", echo_over_virtio)]
}

/// The guest says that there is no Xen, and echoes UDP and TCP from the host.
fn echo_over_virtio(context: &Context) -> Result<()> {
    let emulator = provide_qemu(&context.workspace, context.verbosity)?;
    let kernel = products::guest_image(&context.workspace, context.verbosity)?;
    let forwards = free_ports()?;
    let command = plain_command(&emulator, &kernel, "app=echo", &forwards);
    let folder = context.workspace.data("logs")?;
    let (_machine, line) = Machine::start(command, LIMIT, &folder, context.verbosity)?;
    let mut printed = String::new();
    for line in BufReader::new(line.output).lines() {
        let line = line.context("reading the console")?;
        printed.push_str(&line);
        printed.push('\n');
        if line.contains("dhcp lease") {
            break;
        }
    }
    ensure!(printed.contains("no Xen"), "no line says \"no Xen\":\n{printed}");
    ensure!(printed.contains("dhcp lease"), "the machine ended without an address:\n{printed}");
    let host = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let [udp, tcp] = forwards;
    let report = udp_client(host, udp.host_port, 50, 512)?;
    ensure!(report.mismatched == 0 && report.received_bytes == report.sent_bytes, "{report:?}");
    let report = tcp_client(host, tcp.host_port, Extent::Bytes(1 << 20), 1, Duration::from_secs(20))?;
    ensure!(report.mismatched == 0 && report.received_bytes == report.sent_bytes, "{report:?}");
    Ok(())
}
