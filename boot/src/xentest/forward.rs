//! Our guest as a router between two networks: dom0 in one, a Linux guest in the other, IPv4 and IPv6.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Scenario;
use super::bench::Bench;
use crate::backend::{self, Daemon};
use crate::demo::guests::{linux, ours};
use crate::dom0::{Mode, Start};

const PATIENCE: Duration = Duration::from_secs(60);

/// The router's interfaces: TAP, MAC, and addresses of both families.
const SIDES: [(&str, &str, &str, &str); 2] = [
    ("dry0", "00:16:3e:00:00:02", "10.0.0.2", "fd00::2"),
    ("dry1", "00:16:3e:00:01:02", "10.0.1.2", "fd00:1::2"),
];

/// The Linux guest behind it.
const FAR_MAC: &str = "00:16:3e:00:01:03";
const FAR: [&str; 2] = ["10.0.1.3", "fd00:1::3"];

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario { name: "xen::forward::between_two_networks", run: between_two_networks }]
}

fn between_two_networks(bench: &mut Bench) -> Result<()> {
    let daemon = Daemon::start(bench.dom0)?;
    let [(_, _, ip, ip6), (_, _, ip1, ip61)] = SIDES;
    let settings = format!("app=forward ip={ip}/24,{ip6}/64 ip1={ip1}/24,{ip61}/64");
    bench.dom0.create(&ours("router", Mode::Pvh, &settings), Start::Paused)?;
    for (vif, (tap, mac, ..)) in SIDES.iter().enumerate() {
        backend::attach(bench.dom0, "router", mac, &format!("--vif {vif} --port tap:{tap}"))?;
    }
    // dom0 is in the first network only; the second one's TAP has nobody behind it.
    let [far, far6] = FAR;
    bench.dom0.shell(&format!(
        "ip link set dry0 up && ip addr add 10.0.0.1/24 dev dry0 && /usr/sbin/ip addr add fd00::1/64 dev dry0 nodad && \
         /usr/sbin/ip route add 10.0.1.0/24 via {ip} && /usr/sbin/ip -6 route add fd00:1::/64 via {ip6}"
    ))?;
    bench.dom0.unpause("router")?;
    let script = format!(
        "echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad; ip link set lo up; ip link set eth0 up; \
         ip addr add {far}/24 dev eth0; ip -6 addr add {far6}/64 dev eth0; ip route add default via {ip1}; \
         ip -6 route add default via {ip61}; peer serve-echo"
    );
    bench.dom0.create(&linux("far", Mode::Pvh, &script), Start::Paused)?;
    backend::attach(bench.dom0, "far", FAR_MAC, "--port tap:dry1")?;
    bench.dom0.unpause("far")?;
    for ip in FAR {
        bench.await_answer(ip)?;
        // The far end verifies every checksum, and so does dom0: what was made wrong on the way does not come back.
        bench.compare_echoes(ip).with_context(|| format!("through the router to {ip}"))?;
        one_hop(bench, ip)?;
    }
    let answer = bench.dom0.shell(&format!("peer query {ip} --port 10 --text stats"))?;
    let count = |key: &str| {
        let word = drayage_peer::query::word(&answer, key)?;
        word.parse::<u64>().ok()
    };
    ensure!(count("packets").is_some_and(|packets| packets > 1000), "the router says {answer:?}");
    ensure!(count("expired").is_some_and(|expired| expired >= 2), "the router says {answer:?}");
    for guest in ["far", "router"] {
        bench.dom0.destroy(guest)?;
    }
    bench
        .dom0
        .shell_within("drayage detach router --vif 0; drayage detach router --vif 1; true", PATIENCE)?;
    daemon.stop(bench.dom0)
}

/// What crosses the router has lived through one hop, and what has no hop left is answered by the router itself.
fn one_hop(bench: &mut Bench, ip: &str) -> Result<()> {
    let said = bench.dom0.shell(&format!("ping -c 2 {ip}"))?;
    // Linux sends with 64.
    ensure!(said.contains("ttl=63"), "the answers from {ip} crossed one router, and say {said:?}");
    // busybox's ping sets this for IPv4 alone; a route can say it for IPv6.
    let route = format!("/usr/sbin/ip -6 route replace fd00:1::/64 via {}", SIDES[0].3);
    bench.dom0.shell(&format!("{route} hoplimit 1"))?;
    let said = bench.dom0.attempt(&format!("ping -c 1 -W 2 -t 1 {ip}"))?;
    ensure!(said.code != 0, "a packet with one hop left crossed the router: {said:?}");
    bench.dom0.shell(&route).map(drop)
}
