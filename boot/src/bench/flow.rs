//! Streams that start in a guest: its application is told by datagrams what to send. With it, the suites `tx` (to the
//! driver domain), `intervm` (to another guest) and `forward` (through a guest that routes).

use anyhow::{Context, Result, ensure};
use drayage_peer::query::word;

use crate::agent::Process;
use crate::backend;
use crate::bench::lab::{Lab, Source as Known};
use crate::bench::row::{Label, Peer};
use crate::bench::rx::generators;
use crate::demo::greeting::await_guest;
use crate::demo::guests::{Site, linux, ours, stock_vif};
use crate::demo::path::{GENERATOR, Sent};
use crate::demo::reader::{Reader, Reading};
use crate::demo::search::Measurement;
use crate::demo::sender::{self, Stream};
use crate::dom0::{Dom0, Guest, Mode, Start};

/// Port on which a source takes orders.
const ORDERS: u16 = 11;

/// The station that throws away what it gets, and its place in a network.
const NOBODY_MAC: &str = "02:00:00:00:00:09";
const NOBODY: u8 = 9;

/// MAC of dom0's own end of a network.
fn host_mac(site: Site) -> String {
    format!("02:00:00:00:{:02x}:01", site.0)
}

fn nobody_ip(site: Site) -> String {
    format!("10.0.{}.{NOBODY}", site.0)
}

/// Networks on one kind of backend, and the guests in them.
#[derive(Debug)]
pub struct Fabric {
    peer: Peer,
    guests: Vec<String>,
    bridges: Vec<Site>,
    helper: Option<Process>,
    /// Further options of `drayage attach`.
    options: &'static str,
}

/// Whether dom0's end of a stock vif is a bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Network {
    /// Each stands alone, and what is for nobody is thrown away.
    Alone,
    /// On the place's bridge, or TAP.
    Bridged,
}

impl Fabric {
    fn new(peer: Peer) -> Self {
        Fabric { peer, guests: Vec::new(), bridges: Vec::new(), helper: None, options: "" }
    }

    /// Creates a guest with an interface in each of some networks.
    fn create(
        &mut self,
        dom0: &mut Dom0,
        mut guest: Guest,
        interfaces: &[(Site, String)],
        network: Network,
    ) -> Result<()> {
        self.guests.push(guest.name.clone());
        match self.peer {
            Peer::A | Peer::B => {
                guest.vifs = interfaces.iter().map(|(_, mac)| stock_vif(mac)).collect();
                dom0.create(&guest, Start::Running)?;
                let id = dom0.domain_id(&guest.name)?;
                for (at, (site, _)) in interfaces.iter().enumerate() {
                    self.connect_stock(dom0, *site, &format!("vif{id}.{at}"), network)?;
                }
            }
            Peer::C | Peer::D => {
                dom0.create(&guest, Start::Paused)?;
                for (at, (site, mac)) in interfaces.iter().enumerate() {
                    let containers = if self.peer == Peer::D { "on" } else { "off" };
                    let tap = site.tap();
                    let discard = match network {
                        Network::Alone => format!(",discard={}", nobody_ip(*site)),
                        Network::Bridged => String::new(),
                    };
                    let options = format!(
                        "--vif {at} --port tap:{tap}{discard} --containers {containers} {}",
                        self.options
                    );
                    backend::attach(dom0, &guest.name, mac, &options)?;
                    address(dom0, *site, &tap)?;
                }
                dom0.unpause(&guest.name)?;
            }
        }
        Ok(())
    }

    fn connect_stock(&mut self, dom0: &mut Dom0, site: Site, vif: &str, network: Network) -> Result<()> {
        if network == Network::Alone {
            return address(dom0, site, vif);
        }
        let bridge = site.bridge();
        if !self.bridges.contains(&site) {
            dom0.shell(&format!("/usr/sbin/ip link add {bridge} type bridge"))?;
            self.bridges.push(site);
            address(dom0, site, &bridge)?;
        }
        dom0.shell(&format!("/usr/sbin/ip link set {vif} master {bridge} && ip link set {vif} up")).map(drop)
    }

    /// Starts a process that is ended with the fabric.
    fn help(&mut self, process: Option<Process>) {
        self.helper = process;
    }

    /// Ends the guests, and what was made for them.
    pub fn end(self, dom0: &mut Dom0) -> Result<()> {
        if let Some(helper) = &self.helper {
            dom0.agent().kill(helper, 9)?;
            dom0.agent().wait(helper, std::time::Duration::from_secs(5))?;
        }
        for guest in &self.guests {
            dom0.destroy(guest)?;
            if matches!(self.peer, Peer::C | Peer::D) {
                dom0.attempt(&format!("drayage detach {guest} --vif 0; drayage detach {guest} --vif 1"))?;
            }
        }
        for site in self.bridges {
            dom0.shell(&format!("/usr/sbin/ip link del {}", site.bridge()))?;
        }
        Ok(())
    }
}

/// Gives dom0 its address in a network.
fn address(dom0: &mut Dom0, site: Site, device: &str) -> Result<()> {
    let (ip, mac) = (site.host_ip(), host_mac(site));
    dom0.shell(&format!(
        "ip link set {device} address {mac}; ip link set {device} up && \
         {{ ip addr show dev {device} | grep -q ' {ip}/' || ip addr add {ip}/24 dev {device}; }}"
    ))
    .map(drop)
}

/// Guests of several peers stand beside each other in wall time, each at its place.
fn source_name(site: Site) -> String {
    format!("source{}", site.0)
}

/// A guest that sends what it is told.
fn sending_guest(peer: Peer, mode: Mode, site: Site) -> Guest {
    let ip = site.guest_ip();
    match peer {
        Peer::A => linux(
            &source_name(site),
            mode,
            &format!(
                "ip link set lo up; ip link set eth0 up; ip addr add {ip}/24 dev eth0; \
                 peer serve-send --dev eth0 --dst-mac {NOBODY_MAC} --dst-ip {ip} --src-ip {ip}"
            ),
        ),
        _ => ours(&source_name(site), mode, &format!("app=source control={ORDERS} ip={ip}/24")),
    }
}

/// Where a guest's stream goes.
#[derive(Debug, Clone)]
struct Destination {
    ip: String,
    mac: String,
}

/// Lets a guest send, and returns what it says of it.
fn order(dom0: &mut Dom0, peer: Peer, from: Site, to: &Destination, stream: Stream) -> Result<Sent> {
    let ip = from.guest_ip();
    let Stream { frame_bytes, count, rate } = stream;
    // Linux's sender writes frames, and is told the MAC; ours asks for it.
    let mac = if peer == Peer::A { format!(" mac={}", to.mac) } else { String::new() };
    let order =
        format!("send to={}:9 size={frame_bytes} count={count} rate={}{mac}", to.ip, rate.unwrap_or(0));
    // The answer may be lost, and the order be repeated: then the source is busy with it already.
    let answer = dom0.shell(&format!("peer query {ip} --port {ORDERS} --text '{order}'"))?;
    ensure!(["started", "busy"].contains(&answer.trim()), "the source answered {answer:?} to {order:?}");
    loop {
        let answer = dom0.shell(&format!("peer query {ip} --port {ORDERS} --text stats --still sent"))?;
        let number = |key: &str| {
            let text = word(&answer, key).with_context(|| format!("the source answered {answer:?}"))?;
            text.parse::<u64>().with_context(|| format!("the source answered {answer:?}"))
        };
        if number("done")? == 1 {
            return Ok(Sent { sent: number("sent")?, elapsed_ns: number("elapsed_ns")?, started_ns: None });
        }
    }
}

fn begin<'a>(dom0: &mut Dom0, reader: &'a Reader) -> Result<Reading<'a>> {
    reader.begin(dom0)
}

/// Puts what was sent and what arrived together. What was lost on the way is not known by place here: what matters
/// is that it is little. The time is that until the last packet has arrived, where somebody knows when that was: what
/// still lies in a queue when the sender is done counts for nothing. Only netback's counters of packets tell no time;
/// there the time of Linux's sender stands, at whose end some hundred packets are on their way still.
fn measurement(sent: &Sent, reading: Reading<'_>, dom0: &mut Dom0) -> Result<Measurement> {
    let arrived = reading.end(dom0)?;
    let received = arrived.packets.min(sent.sent);
    let elapsed_ns = match (sent.started_ns, arrived.ended_ns) {
        (Some(started_ns), Some(ended_ns)) => ended_ns.saturating_sub(started_ns),
        _ => sent.elapsed_ns,
    };
    Ok(Measurement {
        sent: sent.sent,
        received,
        elapsed_ns: elapsed_ns.max(arrived.span_ns),
        lost: vec![("on the way".into(), sent.sent - received)],
        packets_per_container: arrived.packets_per_container,
    })
}

/// A peer's guest that sends to dom0's end of its network, or to nobody.
pub struct Transmitter {
    peer: Peer,
    /// Where it is.
    pub fabric: Fabric,
    reader: Reader,
    to: Destination,
}

impl Transmitter {
    /// Creates the guest.
    pub fn create(dom0: &mut Dom0, peer: Peer, mode: Mode, site: Site, case: &str) -> Result<Self> {
        Self::create_with(dom0, peer, mode, site, case, "", "")
    }

    /// Creates the guest, with further options of `drayage attach`, and further words for it.
    pub fn create_with(
        dom0: &mut Dom0,
        peer: Peer,
        mode: Mode,
        site: Site,
        case: &str,
        options: &'static str,
        words: &str,
    ) -> Result<Self> {
        let mut fabric = Fabric { options, ..Fabric::new(peer) };
        let network = if case == "linux" { Network::Bridged } else { Network::Alone };
        let mut guest = sending_guest(peer, mode, site);
        guest.arguments.push_str(words);
        fabric.create(dom0, guest, &[(site, site.guest_mac())], network)?;
        await_guest(dom0, &site.guest_ip())?;
        let nobody = Destination { ip: nobody_ip(site), mac: NOBODY_MAC.into() };
        let (reader, to) = match (case, peer) {
            ("linux", _) => (Reader::Host, Destination { ip: site.host_ip(), mac: host_mac(site) }),
            (_, Peer::A | Peer::B) => {
                let id = dom0.domain_id(&source_name(site))?;
                (Reader::Counter(format!("/sys/class/net/vif{id}.0/statistics/rx_packets")), nobody)
            }
            _ => (Reader::Uplink(format!("tap:{},discard={}", site.tap(), nobody.ip)), nobody),
        };
        let process = reader.start(dom0)?;
        fabric.help(process);
        Ok(Transmitter { peer, fabric, reader, to })
    }

    /// Returns the guest's name.
    pub fn name(&self) -> &str {
        &self.fabric.guests[0]
    }

    /// Sends a stream, and returns what came of it.
    pub fn measure(&self, dom0: &mut Dom0, site: Site, stream: Stream) -> Result<Measurement> {
        let reading = begin(dom0, &self.reader)?;
        let sent = order(dom0, self.peer, site, &self.to, stream)?;
        measurement(&sent, reading, dom0)
    }
}

/// Runs suite `tx`.
pub fn tx(lab: &mut Lab<'_>) -> Result<()> {
    for (case, peers) in [("port", &[Peer::A, Peer::C, Peer::D][..]), ("linux", &Peer::ALL)] {
        for peer in lab.peers(peers) {
            for &mode in lab.modes("tx", peer) {
                let site = Site::FIRST;
                let transmitter = Transmitter::create(lab.dom0, peer, mode, site, case)?;
                for &frame_bytes in lab.frames("tx") {
                    let label = Label {
                        suite: "tx",
                        peer,
                        mode,
                        case: case.into(),
                        frame_bytes: Some(frame_bytes),
                        varied: None,
                    };
                    lab.saturate(&label, Known::Guest, |dom0, count, rate| {
                        transmitter.measure(dom0, site, Stream { frame_bytes, count, rate })
                    })?;
                }
                transmitter.fabric.end(lab.dom0)?;
            }
        }
    }
    Ok(())
}

/// Two guests of a peer's on one network.
pub struct Pair {
    peer: Peer,
    /// Where it is.
    pub fabric: Fabric,
    reader: Reader,
    to: Destination,
}

impl Pair {
    /// Creates both.
    pub fn create(dom0: &mut Dom0, peer: Peer, mode: Mode, site: Site) -> Result<Self> {
        let mut fabric = Fabric::new(peer);
        let guest = sending_guest(peer, mode, site);
        fabric.create(dom0, guest, &[(site, site.guest_mac())], Network::Bridged)?;
        let (ip, mac) = (format!("10.0.{}.3", site.0), format!("00:16:3e:00:{:02x}:03", site.0));
        let name = format!("receiver{}", site.0);
        let (guest, reader) = match peer {
            Peer::A => {
                let script = format!(
                    "ip link set lo up; ip link set eth0 up; ip addr add {ip}/24 dev eth0; peer recv"
                );
                (linux(&name, mode, &script), Reader::Linux(name))
            }
            _ => (ours(&name, mode, &format!("app=sink ip={ip}/24")), Reader::Sink(ip.clone())),
        };
        fabric.create(dom0, guest, &[(site, mac.clone())], Network::Bridged)?;
        await_guest(dom0, &site.guest_ip())?;
        await_guest(dom0, &ip)?;
        Ok(Pair { peer, fabric, reader, to: Destination { ip, mac } })
    }

    /// Sends a stream, and returns what came of it.
    pub fn measure(&self, dom0: &mut Dom0, site: Site, stream: Stream) -> Result<Measurement> {
        let reading = begin(dom0, &self.reader)?;
        let sent = order(dom0, self.peer, site, &self.to, stream)?;
        measurement(&sent, reading, dom0)
    }
}

/// Runs suite `intervm`.
pub fn intervm(lab: &mut Lab<'_>) -> Result<()> {
    for peer in lab.peers(&Peer::ALL) {
        for &mode in lab.modes("intervm", peer) {
            let site = Site::FIRST;
            let pair = Pair::create(lab.dom0, peer, mode, site)?;
            for &frame_bytes in lab.frames("intervm") {
                let label = Label {
                    suite: "intervm",
                    peer,
                    mode,
                    case: "guest to guest".into(),
                    frame_bytes: Some(frame_bytes),
                    varied: None,
                };
                lab.saturate(&label, Known::Guest, |dom0, count, rate| {
                    pair.measure(dom0, site, Stream { frame_bytes, count, rate })
                })?;
            }
            pair.fabric.end(lab.dom0)?;
        }
    }
    Ok(())
}

/// A peer's guest between two networks.
pub struct Router {
    peer: Peer,
    /// Where it is.
    pub fabric: Fabric,
    reader: Reader,
    device: String,
    to: String,
    case: &'static str,
    inner: Site,
}

impl Router {
    /// Creates a guest that routes from `inner` to the network after it.
    pub fn create(dom0: &mut Dom0, peer: Peer, mode: Mode, inner: Site, case: &'static str) -> Result<Self> {
        let outer = Site(inner.0 + 1);
        let (ip, ip1) = (inner.guest_ip(), outer.guest_ip());
        let nobody = nobody_ip(outer);
        let name = format!("router{}", inner.0);
        let guest = match peer {
            Peer::A => linux(
                &name,
                mode,
                &format!(
                    "ip link set lo up; ip link set eth0 up; ip link set eth1 up; ip addr add {ip}/24 dev eth0; \
                     ip addr add {ip1}/24 dev eth1; echo 1 > /proc/sys/net/ipv4/ip_forward; \
                     arp -s {nobody} {NOBODY_MAC}; peer serve-echo"
                ),
            ),
            _ => ours(&name, mode, &format!("app=forward ip={ip}/24 ip1={ip1}/24")),
        };
        let mut fabric = Fabric::new(peer);
        let network = if case == "linux" { Network::Bridged } else { Network::Alone };
        let interfaces = [(inner, inner.guest_mac()), (outer, outer.guest_mac())];
        fabric.create(dom0, guest, &interfaces, network)?;
        await_guest(dom0, &ip)?;
        await_guest(dom0, &ip1)?;
        let stock = matches!(peer, Peer::A | Peer::B);
        let id = dom0.domain_id(&name)?;
        let device = match (stock, case) {
            (true, "linux") => inner.bridge(),
            (true, _) => format!("vif{id}.0"),
            (false, _) => inner.tap(),
        };
        let (reader, to) = match (case, stock) {
            ("linux", _) => (Reader::Host, outer.host_ip()),
            (_, true) => (Reader::Counter(format!("/sys/class/net/vif{id}.1/statistics/rx_packets")), nobody),
            (_, false) => (Reader::Uplink(format!("tap:{},discard={nobody}", outer.tap())), nobody),
        };
        let process = reader.start(dom0)?;
        fabric.help(process);
        let router = Router { peer, fabric, reader, device, to, case, inner };
        // The next hop's address is known before packets count: what comes while it is asked for is dropped.
        router.measure(dom0, Stream { frame_bytes: 60, count: 1, rate: None })?;
        Ok(router)
    }

    /// Sends a stream, and returns what came of it.
    pub fn measure(&self, dom0: &mut Dom0, stream: Stream) -> Result<Measurement> {
        let reading = begin(dom0, &self.reader)?;
        let Stream { frame_bytes, count, rate } = stream;
        let rate = rate.map(|rate| format!(" --rate {rate}")).unwrap_or_default();
        // Not dom0's own address, which dom0 would not take from outside.
        let (from, to) = (format!("10.0.{}.77", self.inner.0), &self.to);
        let patience = crate::dom0::COMMAND;
        let command = if self.generates() {
            format!(
                "drayage generate --to router{} --vif 0 --ip {to} --source-ip {from} --frame-bytes {frame_bytes} \
                 --count {count}{rate} --json",
                self.inner.0
            )
        } else {
            let (mac, device) = (self.inner.guest_mac(), &self.device);
            format!(
                "peer send --dev {device} --dst-mac {mac} --dst-ip {to} --src-ip {from} --frame {frame_bytes} \
                 --count {count}{rate}"
            )
        };
        let sent: Sent = dom0.json(&command, patience)?;
        measurement(&sent, reading, dom0)
    }

    fn generates(&self) -> bool {
        self.case == "direct" && matches!(self.peer, Peer::C | Peer::D)
    }
}

/// Runs suite `forward`.
pub fn forward(lab: &mut Lab<'_>) -> Result<()> {
    generators(lab, lab.frames("forward"))?;
    for case in ["direct", "linux"] {
        for peer in lab.peers(&Peer::ALL) {
            // Our guest cannot be told a neighbour's address, and nobody answers on a vif that stands alone.
            if case == "direct" && peer == Peer::B {
                continue;
            }
            for &mode in lab.modes("forward", peer) {
                let router = Router::create(lab.dom0, peer, mode, Site::FIRST, case)?;
                for &frame_bytes in lab.frames("forward") {
                    let label = Label {
                        suite: "forward",
                        peer,
                        mode,
                        case: case.into(),
                        frame_bytes: Some(frame_bytes),
                        varied: None,
                    };
                    let known = if router.generates() { GENERATOR } else { sender::NAME };
                    lab.saturate(&label, Known::Known(known), |dom0, count, rate| {
                        router.measure(dom0, Stream { frame_bytes, count, rate })
                    })?;
                }
                router.fabric.end(lab.dom0)?;
            }
        }
    }
    Ok(())
}
