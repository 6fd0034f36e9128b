//! How packets get from dom0 to a guest: through Xen's stock backend, or through ours. Knows nothing
//! of the guest behind it.

use std::time::Duration;

use anyhow::Result;
use serde::Deserialize;

use crate::backend;
use crate::demo::drops::Places;
use crate::demo::guests::{Site, stock_vif};
use crate::demo::report::{Generator, Source};
use crate::demo::sender::{Stream, send};
use crate::dom0::{Dom0, Guest, Start};

/// Name of our generator in the report.
pub const GENERATOR: &str = "drayage";

/// Patience with our generator, in the machine's time.
const GENERATION: Duration = Duration::from_secs(60);

/// What a source sent.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Sent {
    /// Packets.
    pub sent: u64,
    /// From the first to the last.
    pub elapsed_ns: u64,
    /// When the first was sent, by dom0's clock, where the sender says so.
    #[serde(default)]
    pub started_ns: Option<u64>,
}

/// A way to a guest.
pub trait Path {
    /// Creates a guest that is reached this way, with dom0's address on its end.
    fn create(&mut self, dom0: &mut Dom0, guest: &Guest) -> Result<()>;

    /// Makes the way ready for a source.
    fn prepare(&mut self, dom0: &mut Dom0, source: Source) -> Result<()>;

    /// Sends a stream from a source.
    fn send(&self, dom0: &mut Dom0, source: Source, stream: Stream) -> Result<Sent>;

    /// Returns where packets may be lost on the way.
    fn places(&self) -> Places;

    /// Ends the guest, and what was made for it.
    fn end(self: Box<Self>, dom0: &mut Dom0) -> Result<()>;
}

/// Xen's stock path: netback's vif, alone or on a bridge.
#[derive(Debug, Default)]
pub struct Stock {
    site: Site,
    guest: String,
    vif: String,
    bridged: bool,
    veth: bool,
}

impl Stock {
    /// Returns the path to a place.
    pub fn new(site: Site) -> Self {
        Stock { site, ..Stock::default() }
    }

    /// Returns the device that packets leave dom0 by.
    fn device(&self) -> String {
        match (self.veth, self.bridged) {
            (true, _) => self.site.veth()[0].clone(),
            (_, true) => self.site.bridge(),
            _ => self.vif.clone(),
        }
    }
}

impl Path for Stock {
    fn create(&mut self, dom0: &mut Dom0, guest: &Guest) -> Result<()> {
        let mut guest = guest.clone();
        guest.vifs = vec![stock_vif(&self.site.guest_mac())];
        dom0.create(&guest, Start::Running)?;
        self.vif = format!("vif{}.0", dom0.domain_id(&guest.name)?);
        self.guest = guest.name;
        let (vif, ip) = (&self.vif, self.site.host_ip());
        dom0.shell(&format!("ip link set {vif} up && ip addr add {ip}/24 dev {vif}"))?;
        know_guest(dom0, self.site, vif)
    }

    /// Source `linux` leaves by a bridge, which takes dom0's address over; source `veth` by a veth into it.
    fn prepare(&mut self, dom0: &mut Dom0, source: Source) -> Result<()> {
        let (ip, bridge) = (self.site.host_ip(), self.site.bridge());
        if source != Source::Direct && !self.bridged {
            let vif = &self.vif;
            dom0.shell(&format!(
                "ip addr del {ip}/24 dev {vif} && /usr/sbin/ip link add {bridge} type bridge && \
                 /usr/sbin/ip link set {vif} master {bridge} && ip link set {bridge} up && \
                 ip addr add {ip}/24 dev {bridge}"
            ))?;
            know_guest(dom0, self.site, &bridge)?;
            self.bridged = true;
        }
        if source == Source::Veth && !self.veth {
            let [near, far] = make_veth(dom0, self.site)?;
            dom0.shell(&format!(
                "/usr/sbin/ip link set {far} master {bridge} && ip addr del {ip}/24 dev {bridge} && \
                 ip addr add {ip}/24 dev {near}"
            ))?;
            know_guest(dom0, self.site, &near)?;
            self.veth = true;
        }
        Ok(())
    }

    fn send(&self, dom0: &mut Dom0, _source: Source, stream: Stream) -> Result<Sent> {
        let report = send(dom0, &self.device(), self.site, stream)?;
        Ok(Sent { sent: report.sent, elapsed_ns: report.elapsed_ns, started_ns: None })
    }

    fn places(&self) -> Places {
        let mut devices = vec![self.vif.clone()];
        if self.bridged {
            devices.push(self.site.bridge());
        }
        if self.veth {
            devices.extend(self.site.veth());
        }
        Places { devices, guest: None }
    }

    fn end(self: Box<Self>, dom0: &mut Dom0) -> Result<()> {
        dom0.destroy(&self.guest)?;
        if self.bridged {
            dom0.shell(&format!("/usr/sbin/ip link del {}", self.site.bridge()))?;
        }
        if self.veth {
            dom0.shell(&format!("/usr/sbin/ip link del {}", self.site.veth()[0]))?;
        }
        Ok(())
    }
}

/// Whether containers are offered to a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Containers {
    /// They are.
    On,
    /// Plain netif is spoken.
    Off,
}

/// By blocks: the uplink that costs a stream of datagrams least.
const BLOCKS: &str = ",ring=v3";

/// Our path: a guest attached to the daemon, which has a TAP, or one end of a veth as a packet socket.
#[derive(Debug)]
pub struct Ours {
    site: Site,
    guest: String,
    containers: Containers,
    veth: bool,
    /// Further options of `drayage attach`.
    options: String,
    /// How frames are taken from a veth: options of the port.
    ring: &'static str,
}

impl Ours {
    /// Returns the path to a place.
    pub fn new(site: Site, containers: Containers) -> Self {
        Ours { site, guest: String::new(), containers, veth: false, options: String::new(), ring: BLOCKS }
    }

    /// Returns the same path with further options of `drayage attach`.
    pub fn with_options(self, options: &str) -> Self {
        Ours { options: options.to_owned(), ..self }
    }

    /// Returns the same path, but for frames that are taken from a veth one by one: an acknowledgement does not wait for a block
    /// to fill.
    pub fn with_slots(self) -> Self {
        Ours { ring: "", ..self }
    }

    fn attach(&self, dom0: &mut Dom0, port: &str) -> Result<()> {
        let containers = if self.containers == Containers::On { "on" } else { "off" };
        let options = format!("--port {port} --containers {containers} {}", self.options);
        backend::attach(dom0, &self.guest, &self.site.guest_mac(), &options)
    }
}

impl Path for Ours {
    fn create(&mut self, dom0: &mut Dom0, guest: &Guest) -> Result<()> {
        dom0.create(guest, Start::Paused)?;
        self.guest.clone_from(&guest.name);
        let (tap, ip) = (self.site.tap(), self.site.host_ip());
        self.attach(dom0, &format!("tap:{tap}"))?;
        dom0.shell(&format!(
            "ip link set {tap} up && {{ ip addr show dev {tap} | grep -q ' {ip}/' || \
             ip addr add {ip}/24 dev {tap}; }}"
        ))?;
        know_guest(dom0, self.site, &tap)?;
        dom0.unpause(&guest.name)
    }

    /// Source `veth` needs another uplink: the guest is attached to it while it runs.
    fn prepare(&mut self, dom0: &mut Dom0, source: Source) -> Result<()> {
        if source == Source::Veth && !self.veth {
            let [near, far] = make_veth(dom0, self.site)?;
            backend::detach(dom0, &self.guest)?;
            self.attach(dom0, &format!("packet:{far}{}", self.ring))?;
            // The TAP went with its last guest, and its address with it.
            let ip = self.site.host_ip();
            dom0.shell(&format!("ip addr add {ip}/24 dev {near}"))?;
            know_guest(dom0, self.site, &near)?;
            self.veth = true;
        }
        Ok(())
    }

    fn send(&self, dom0: &mut Dom0, source: Source, stream: Stream) -> Result<Sent> {
        match source {
            Source::Direct => generate(dom0, &self.guest, self.site, stream),
            Source::Linux | Source::Veth => {
                let [near, _] = self.site.veth();
                let device = if source == Source::Veth { near } else { self.site.tap() };
                let report = send(dom0, &device, self.site, stream)?;
                Ok(Sent { sent: report.sent, elapsed_ns: report.elapsed_ns, started_ns: None })
            }
        }
    }

    fn places(&self) -> Places {
        let devices = if self.veth { self.site.veth().to_vec() } else { vec![self.site.tap()] };
        Places { devices, guest: Some(self.guest.clone()) }
    }

    fn end(self: Box<Self>, dom0: &mut Dom0) -> Result<()> {
        dom0.destroy(&self.guest)?;
        // A domain of the same name has another UUID: what was remembered for this one is of no use.
        dom0.attempt(&format!("drayage detach {}", self.guest))?;
        if self.veth {
            dom0.shell(&format!("/usr/sbin/ip link del {}", self.site.veth()[0]))?;
        }
        Ok(())
    }
}

fn make_veth(dom0: &mut Dom0, site: Site) -> Result<[String; 2]> {
    let [near, far] = site.veth();
    dom0.shell(&format!(
        "/usr/sbin/ip link add {near} type veth peer name {far} && ip link set {near} up && ip link set {far} up"
    ))?;
    Ok([near, far])
}

/// Tells dom0 the guest's MAC: it would ask for it once a second while the guest boots, and boots
/// take less than that.
fn know_guest(dom0: &mut Dom0, site: Site, device: &str) -> Result<()> {
    let (ip, mac) = (site.guest_ip(), site.guest_mac());
    dom0.shell(&format!("/usr/sbin/ip neigh replace {ip} lladdr {mac} dev {device} nud permanent")).map(drop)
}

/// Measures what our generator costs alone, into a port that only fills containers.
pub fn measure_generator(dom0: &mut Dom0, frame_bytes: usize, count: u64) -> Result<Generator> {
    let sent = generate(dom0, "sink", Site::FIRST, Stream { frame_bytes, count, rate: None })?;
    Ok(Generator {
        name: GENERATOR.to_owned(),
        frame_bytes,
        instructions_per_packet: sent.elapsed_ns as f64 / sent.sent.max(1) as f64,
    })
}

fn generate(dom0: &mut Dom0, to: &str, site: Site, stream: Stream) -> Result<Sent> {
    let Stream { frame_bytes, count, rate } = stream;
    let rate = rate.map(|rate| format!(" --rate {rate}")).unwrap_or_default();
    let (ip, source) = (site.guest_ip(), site.host_ip());
    let command = format!(
        "drayage generate --to {to} --ip {ip} --source-ip {source} --frame-bytes {frame_bytes} \
         --count {count}{rate} --json"
    );
    dom0.json(&command, GENERATION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_of_our_generator() {
        let line = r#"{"sent":5,"bytes":300,"elapsed_ns":77,"stalls":0,"cut_short":false,"sink":null}"#;
        assert_eq!(
            serde_json::from_str::<Sent>(line).unwrap(),
            Sent { sent: 5, elapsed_ns: 77, started_ns: None }
        );
    }
}
