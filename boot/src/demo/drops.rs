//! What was lost on the way to guests, at places that count it: network devices of Linux with their queues, and the
//! daemon. Knows nothing of what is sent.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::backend::stats_command;
use crate::dom0::Dom0;

/// What [`of_daemon`] reads of the daemon's statistics.
const KEYS: &str =
    "interfaces uplinks name drops queue_full too_large bad_buffer not_segmentable receive_drops";

/// Where packets to a guest may be lost.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    /// Devices of dom0.
    pub devices: Vec<String>,
    /// The guest whose interface is the daemon's, if one is.
    pub guest: Option<String>,
}

/// Returns the packets that were lost at some places so far, each with its name, in an order that stays.
pub fn drops(dom0: &mut Dom0, places: &[Places]) -> Result<Vec<(String, u64)>> {
    let printed = dom0.shell(&command(places))?;
    parse(&printed, places).with_context(|| format!("drops: {printed:?}"))
}

/// Returns one command for all of them: a line for each device, and one of the daemon's.
fn command(places: &[Places]) -> String {
    let devices: Vec<&str> = places.iter().flat_map(|place| &place.devices).map(String::as_str).collect();
    let mut command = format!(
        "for device in {}; do cd /sys/class/net/$device/statistics || exit 1; \
         echo $(cat tx_dropped tx_errors rx_dropped) $(/usr/sbin/tc -s qdisc show dev $device | \
         grep -o 'dropped [0-9]*'); done",
        devices.join(" ")
    );
    if places.iter().any(|place| place.guest.is_some()) {
        command.push_str("; ");
        command.push_str(&stats_command(KEYS));
    }
    command
}

fn parse(printed: &str, places: &[Places]) -> Result<Vec<(String, u64)>> {
    let mut lines = printed.lines();
    let mut drops = Vec::new();
    for device in places.iter().flat_map(|place| &place.devices) {
        let line = lines.next().unwrap_or_default();
        let [own, queues] = of_device(line).with_context(|| format!("drops of {device}: {line:?}"))?;
        drops.push((format!("{device} device"), own));
        drops.push((format!("{device} queue"), queues));
    }
    let guests: Vec<&String> = places.iter().filter_map(|place| place.guest.as_ref()).collect();
    if !guests.is_empty() {
        let stats: Value = serde_json::from_str(lines.next().unwrap_or_default())?;
        for guest in guests {
            drops.extend(of_daemon(&stats, guest)?);
        }
        drops.push(("the uplinks' rings".to_owned(), of_uplinks(&stats)?));
    }
    ensure!(lines.next().is_none(), "more lines than were asked for");
    Ok(drops)
}

/// Reads a device's three drop counters, and those of its queues ("dropped N" each).
fn of_device(line: &str) -> Option<[u64; 2]> {
    let mut words = line.split_whitespace();
    let mut sums = [0, 0];
    for _ in 0..3 {
        sums[0] += words.next()?.parse::<u64>().ok()?;
    }
    while let Some(word) = words.next() {
        let count = words.next().filter(|_| word == "dropped")?;
        sums[1] += count.parse::<u64>().ok()?;
    }
    Some(sums)
}

/// Reads what the daemon lost on the way to a guest.
fn of_daemon(stats: &Value, guest: &str) -> Result<Vec<(String, u64)>> {
    const REASONS: [&str; 4] = ["queue_full", "too_large", "bad_buffer", "not_segmentable"];
    let interfaces = stats["interfaces"].as_array().context("drayage stats has no interfaces")?;
    let interface = interfaces
        .iter()
        .find(|interface| interface["name"] == guest)
        .with_context(|| format!("drayage stats has no interface of {guest:?}"))?;
    let count = |reason: &&str| {
        let count = interface["drops"][reason].as_u64();
        let count = count.with_context(|| format!("drayage stats has no drops.{reason}"))?;
        Ok((format!("drayage {reason}"), count))
    };
    REASONS.iter().map(count).collect()
}

/// Reads what the daemon's uplinks lost before the daemon saw it.
fn of_uplinks(stats: &Value) -> Result<u64> {
    let uplinks = stats["uplinks"].as_array().context("drayage stats has no uplinks")?;
    Ok(uplinks.iter().filter_map(|uplink| uplink["receive_drops"].as_u64()).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_of_a_device_and_its_queues() {
        assert_eq!(of_device("3 0 1 dropped 0 dropped 17"), Some([4, 17]));
        assert_eq!(of_device("3 0 1"), Some([4, 0]));
        assert_eq!(of_device("3 x"), None);
    }

    #[test]
    fn several_guests_and_each_uplink_once() {
        let guest = |number: u8| Places {
            devices: vec![format!("near{number}"), format!("far{number}")],
            guest: Some(format!("rx{number}")),
        };
        let places = [guest(0), guest(1)];
        let drops = r#"{"queue_full":2,"too_large":0,"bad_buffer":0,"not_segmentable":1}"#;
        let printed = format!(
            "1 0 0 dropped 2\n0 0 0\n0 0 0\n0 0 4\n{{\"interfaces\":[{{\"name\":\"rx1\",\"drops\":{drops}}},\
             {{\"name\":\"rx0\",\"drops\":{drops}}}],\"uplinks\":[{{\"receive_drops\":5}},{{}}]}}\n"
        );
        let found = parse(&printed, &places).unwrap();
        assert_eq!(found.iter().map(|(_, count)| count).sum::<u64>(), 1 + 2 + 4 + 3 + 3 + 5);
        assert!(parse("0 0 0\n", &places).is_err());
        assert!(parse(&printed, &[guest(0), guest(2)]).is_err(), "who is not there has not lost nothing");
    }

    #[test]
    fn devices_alone_do_not_ask_the_daemon() {
        let places = [Places { devices: vec!["vif1.0".into()], guest: None }];
        assert!(!command(&places).contains("drayage"));
    }
}
