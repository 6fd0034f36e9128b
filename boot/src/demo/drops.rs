//! What a network device of Linux has dropped, itself and in its queues. Knows nothing of what is
//! sent through it.

use anyhow::{Context, Result};

use crate::dom0::Dom0;

/// Returns the packets that a device of dom0 has dropped so far, by place.
pub fn device_drops(dom0: &mut Dom0, device: &str) -> Result<Vec<(String, u64)>> {
    let text = dom0.shell(&format!(
        "cd /sys/class/net/{device}/statistics && cat tx_dropped tx_errors rx_dropped && \
         /usr/sbin/tc -s qdisc show dev {device}"
    ))?;
    let counts = parse_drops(&text).with_context(|| format!("drops of {device}: {text:?}"))?;
    Ok(counts.map(|(place, count)| (format!("{device} {place}"), count)).to_vec())
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
