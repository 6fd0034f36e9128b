//! Xen's stock path: netback's vif, alone or on a bridge, and the drops that they count. Knows
//! nothing of the guest behind it.

use anyhow::{Context, Result};

use crate::demo::guests::HOST_IP;
use crate::dom0::Dom0;

/// The bridge of source `linux`.
const BRIDGE: &str = "drayage-br";

/// How dom0 reaches a guest through netback.
#[derive(Debug)]
pub struct StockPath {
    vif: String,
    /// Device that packets are sent out of.
    pub device: String,
}

impl StockPath {
    /// Brings a guest's vif up, with dom0's address on it.
    pub fn direct(dom0: &mut Dom0, guest: &str) -> Result<Self> {
        let vif = format!("vif{}.0", dom0.domain_id(guest)?);
        dom0.shell(&format!("ip link set {vif} up && ip addr add {HOST_IP}/24 dev {vif}"))?;
        Ok(StockPath { device: vif.clone(), vif })
    }

    /// Puts the vif on a bridge that takes dom0's address over.
    pub fn bridged(self, dom0: &mut Dom0) -> Result<Self> {
        let vif = &self.vif;
        dom0.shell(&format!(
            "ip addr del {HOST_IP}/24 dev {vif} && /usr/sbin/ip link add {BRIDGE} type bridge && \
             /usr/sbin/ip link set {vif} master {BRIDGE} && ip link set {BRIDGE} up && \
             ip addr add {HOST_IP}/24 dev {BRIDGE}"
        ))?;
        Ok(StockPath { device: BRIDGE.to_owned(), ..self })
    }

    /// Removes what was added for this guest, the vif aside, which goes with it.
    pub fn remove(self, dom0: &mut Dom0) -> Result<()> {
        dom0.shell(&format!("[ ! -e /sys/class/net/{BRIDGE} ] || /usr/sbin/ip link del {BRIDGE}"))?;
        Ok(())
    }

    /// Returns the packets that the path has dropped so far, by place.
    pub fn drops(&self, dom0: &mut Dom0) -> Result<Vec<(String, u64)>> {
        let mut devices = vec![self.vif.as_str()];
        if self.device != self.vif {
            devices.push(&self.device);
        }
        let mut places = Vec::new();
        for device in devices {
            let text = dom0.shell(&format!(
                "cd /sys/class/net/{device}/statistics && cat tx_dropped tx_errors rx_dropped && \
                 /usr/sbin/tc -s qdisc show dev {device}"
            ))?;
            let counts = parse_drops(&text).with_context(|| format!("drops of {device}: {text:?}"))?;
            places.extend(counts.map(|(place, count)| (format!("{device} {place}"), count)));
        }
        Ok(places)
    }
}

/// Reads a device's drop counters and its queues' ("dropped N," in `tc -s qdisc show`).
fn parse_drops(text: &str) -> Option<[(&'static str, u64); 2]> {
    let mut lines = text.lines();
    let mut device = 0;
    for _ in 0..3 {
        device += lines.next()?.trim().parse::<u64>().ok()?;
    }
    let mut queue = 0;
    for line in lines {
        if let Some((_, rest)) = line.split_once("(dropped ") {
            queue += rest.split(',').next()?.trim().parse::<u64>().ok()?;
        }
    }
    Some([("device", device), ("queue", queue)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_of_a_device_and_its_queues() {
        let text = "3\n0\n1\nqdisc mq 0: root \n Sent 84 bytes 2 pkt (dropped 0, overlimits 0 requeues 0) \n \
                    backlog 0b 0p requeues 0\nqdisc fq_codel 0: parent :1 limit 10240p\n Sent 84 bytes 2 pkt \
                    (dropped 17, overlimits 0 requeues 0) \n";
        assert_eq!(parse_drops(text), Some([("device", 4), ("queue", 17)]));
        assert_eq!(parse_drops("3\nx\n"), None);
    }
}
