//! The scenario of a backend in a Linux domain other than dom0. Knows that domain by its console.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::Scenario;
use super::bench::Bench;
use crate::demo::guests::{GUEST_IP, GUEST_MAC, HOST_IP, linux, ours};
use crate::dom0::{Mode, Start};
use crate::images::inside;

/// The driver domain.
const DRIVER: &str = "driver";

/// The guest that it serves.
const GUEST: &str = "far";

/// Patience with what the driver domain prints.
const PATIENCE: Duration = Duration::from_secs(90);

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario { name: "xen::driver_domain::serves_a_guest", run: serves }]
}

/// What the driver domain runs: the daemon, and the other end of the guest's traffic, twice.
fn script() -> String {
    format!(
        "ip link set lo up; drayage run & \
         for round in one two; do \
         until ip addr add {HOST_IP}/24 dev dry0; do sleep 1; done 2>/dev/null; \
         peer ping {GUEST_IP} --until-answered --interval-ms 100 --count 600; \
         peer udp-echo {GUEST_IP}; peer tcp-echo {GUEST_IP} && echo tcp $round; \
         while drayage list | grep -q connected; do sleep 1; done; \
         drayage list; echo gone $round; done"
    )
}

fn serves(bench: &mut Bench) -> Result<()> {
    let mut driver = linux(DRIVER, Mode::Pvh, &script());
    driver.ramdisk = Some(inside::DRIVER_INITRAMFS.into());
    bench.dom0.create(&driver, Start::Running)?;
    let (_, mut at) = bench.dom0.await_console(DRIVER, 0, &["ready: serving as domain"], PATIENCE)?;
    bench.dom0.create(&ours(GUEST, Mode::Pvh, &format!("app=echo ip={GUEST_IP}/24")), Start::Paused)?;
    // Frames are written one by one here, and go by vhost in the other tests.
    let port = "tap:dry0,vhost=off";
    let attach = format!("drayage attach {GUEST} --backend {DRIVER} --mac {GUEST_MAC} --port {port}");
    bench.dom0.shell(&attach)?;
    bench.dom0.unpause(GUEST)?;
    let ids = [bench.dom0.domain_id(DRIVER)?, bench.dom0.domain_id(GUEST)?];
    let nodes = format!("/local/domain/{}/backend/drayage/{}", ids[0], ids[1]);
    for round in ["one", "two"] {
        for protocol in ["udp", "tcp"] {
            let sign = format!("\"protocol\":\"{protocol}\"");
            let (line, next) = bench.dom0.await_console(DRIVER, at, &[&sign], PATIENCE)?;
            ensure!(line.contains("\"mismatched\":0"), "{line}");
            at = next;
        }
        at = bench.dom0.await_console(DRIVER, at, &[&format!("tcp {round}")], PATIENCE)?.1;
        let owner = bench.dom0.shell(&format!("xenstore-ls -p {nodes}"))?;
        ensure!(owner.contains(&format!("n{},r{}", ids[0], ids[1])), "who owns what:\n{owner}");
        if round == "one" {
            // Taken away in order, and given again.
            bench.dom0.shell(&format!("drayage detach {GUEST} --backend {DRIVER}"))?;
            let left = bench
                .dom0
                .attempt(&format!("xenstore-ls {nodes}; xenstore-ls /local/domain/{}/device/vif", ids[1]))?;
            ensure!(!left.output.contains("state"), "left behind:\n{}", left.output);
            at = bench.dom0.await_console(DRIVER, at, &["gone one"], PATIENCE)?.1;
            bench.dom0.shell(&attach)?;
        } else {
            bench.dom0.destroy(GUEST)?;
            bench.dom0.await_console(DRIVER, at, &["gone two"], PATIENCE)?;
        }
    }
    let left = bench.dom0.attempt(&format!("xenstore-exists {nodes}"))?;
    ensure!(left.code != 0, "the dead guest's nodes remain");
    let zombies = bench.dom0.shell("xl list")?;
    ensure!(
        !zombies.contains(GUEST) && !zombies.contains("(null)"),
        "a domain is held by somebody:\n{zombies}"
    );
    bench.dom0.destroy(DRIVER)
}
