//! What `top` shows: rates made of two readings of the counters, in the order that was asked for.
//!
//! It knows counters and keys, and neither terminal nor socket.

use drayage::control::views::InterfaceStats;
use drayage::ipc::Stats;
use drayage::vif::counters::Direction;
use drayage::vif::holds::{HoldBucket, HoldTimes};

/// By what rows are ordered: names upwards, numbers downwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sort {
    Name,
    Rx,
    Tx,
    Fill,
    Hold,
    Drops,
}

impl Sort {
    const ALL: [Sort; 6] = [Sort::Name, Sort::Rx, Sort::Tx, Sort::Fill, Sort::Hold, Sort::Drops];

    /// Returns its name on the screen.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Sort::Name => "name",
            Sort::Rx => "rx",
            Sort::Tx => "tx",
            Sort::Fill => "packets/container",
            Sort::Hold => "hold",
            Sort::Drops => "drops",
        }
    }

    fn step(self, by: usize) -> Self {
        let at = Self::ALL.iter().position(|sort| *sort == self).unwrap_or(0);
        Self::ALL[(at + by) % Self::ALL.len()]
    }
}

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Quit,
    Up,
    Down,
    NextSort,
    PreviousSort,
}

/// Packets and bits a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Rate {
    pub(crate) packets: f64,
    pub(crate) bits: f64,
}

/// An interface, as it is shown.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) domain: u16,
    pub(crate) vif: u32,
    pub(crate) state: String,
    pub(crate) rx: Rate,
    pub(crate) tx: Rate,
    /// Packets in each container since the last reading.
    pub(crate) rx_fill: Option<f64>,
    pub(crate) tx_fill: Option<f64>,
    /// What 99 of 100 packets were held for at most since the last reading.
    pub(crate) hold_us: Option<f64>,
    /// Drops a second.
    pub(crate) drops: f64,
    /// All drops, and why.
    pub(crate) drop_reasons: Vec<(String, u64)>,
    /// All containers that went out, and why.
    pub(crate) flush_reasons: Vec<(String, u64)>,
}

/// An uplink, as it is shown.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct UplinkRow {
    pub(crate) port: String,
    pub(crate) received: Rate,
    pub(crate) sent: Rate,
    pub(crate) drops: f64,
}

/// Everything that is shown.
#[derive(Debug)]
pub(crate) struct Model {
    last: Option<(Stats, u64)>,
    pub(crate) rows: Vec<Row>,
    pub(crate) uplinks: Vec<UplinkRow>,
    /// Passes and sleeps of the data path in a second.
    pub(crate) passes: f64,
    pub(crate) sleeps: f64,
    pub(crate) sort: Sort,
    pub(crate) selected: usize,
    /// Why there is nothing new.
    pub(crate) trouble: Option<String>,
}

impl Model {
    /// Returns a screen with nothing on it.
    pub(crate) fn new() -> Self {
        Self {
            last: None,
            rows: Vec::new(),
            uplinks: Vec::new(),
            passes: 0.0,
            sleeps: 0.0,
            sort: Sort::Rx,
            selected: 0,
            trouble: None,
        }
    }

    /// Takes a reading.
    pub(crate) fn update(&mut self, stats: Stats, now_ns: u64) {
        let chosen = self.rows.get(self.selected).map(|row| (row.domain, row.vif));
        let elapsed_s = match &self.last {
            Some((_, then_ns)) => now_ns.saturating_sub(*then_ns) as f64 / 1e9,
            None => 0.0,
        };
        // What went down was started anew, and has made all of it since.
        let per_s = |now: u64, before: u64| {
            let made = now.checked_sub(before).unwrap_or(now);
            if elapsed_s > 0.0 { made as f64 / elapsed_s } else { 0.0 }
        };
        let last = self.last.as_ref().map(|(stats, _)| stats);
        self.rows = stats
            .interfaces
            .iter()
            .map(|now| {
                let same = |b: &&InterfaceStats| (b.domain, b.vif) == (now.domain, now.vif);
                let before = last.and_then(|last| last.interfaces.iter().find(same));
                row(now, before, &per_s)
            })
            .collect();
        self.uplinks = stats
            .uplinks
            .iter()
            .map(|now| {
                let before = last.and_then(|last| last.uplinks.iter().find(|b| b.port == now.port));
                let (n, b) = (now.counters, before.map_or(now.counters, |before| before.counters));
                let rate = |packets, bytes| Rate { packets, bits: bytes * 8.0 };
                UplinkRow {
                    port: now.port.clone(),
                    received: rate(per_s(n.received, b.received), per_s(n.received_bytes, b.received_bytes)),
                    sent: rate(per_s(n.sent, b.sent), per_s(n.sent_bytes, b.sent_bytes)),
                    drops: per_s(n.receive_drops, b.receive_drops)
                        + per_s(n.send_drops, b.send_drops)
                        + per_s(n.no_destination, b.no_destination),
                }
            })
            .collect();
        let before = last.map_or(stats.worker, |last| last.worker);
        self.passes = per_s(stats.worker.passes, before.passes);
        self.sleeps = per_s(stats.worker.sleeps, before.sleeps);
        self.trouble = None;
        self.last = Some((stats, now_ns));
        self.arrange(chosen);
    }

    /// Takes a key. Returns whether to go on.
    pub(crate) fn key(&mut self, key: Key) -> bool {
        let chosen = self.rows.get(self.selected).map(|row| (row.domain, row.vif));
        match key {
            Key::Quit => return false,
            Key::Up => self.selected = self.selected.saturating_sub(1),
            Key::Down => self.selected = (self.selected + 1).min(self.rows.len().saturating_sub(1)),
            Key::NextSort => self.sort = self.sort.step(1),
            Key::PreviousSort => self.sort = self.sort.step(Sort::ALL.len() - 1),
        }
        if matches!(key, Key::NextSort | Key::PreviousSort) {
            self.arrange(chosen);
        }
        true
    }

    /// Orders the rows; the one that was chosen stays so wherever it goes.
    fn arrange(&mut self, chosen: Option<(u16, u32)>) {
        let sort = self.sort;
        let value = |row: &Row| match sort {
            Sort::Name => 0.0,
            Sort::Rx => row.rx.packets,
            Sort::Tx => row.tx.packets,
            Sort::Fill => row.rx_fill.unwrap_or(0.0),
            Sort::Hold => row.hold_us.unwrap_or(0.0),
            Sort::Drops => row.drops,
        };
        self.rows.sort_by(|one, other| {
            let by_name = (&one.name, one.vif).cmp(&(&other.name, other.vif));
            value(other).total_cmp(&value(one)).then(by_name)
        });
        let at = chosen.and_then(|key| self.rows.iter().position(|row| (row.domain, row.vif) == key));
        self.selected = at.unwrap_or(0).min(self.rows.len().saturating_sub(1));
    }
}

fn row(now: &InterfaceStats, before: Option<&InterfaceStats>, per_s: &dyn Fn(u64, u64) -> f64) -> Row {
    let counters = &now.counters;
    let old = before.map_or(counters, |before| &before.counters);
    let rate = |n: &Direction, b: &Direction| Rate {
        packets: per_s(n.packets, b.packets),
        bits: per_s(n.bytes, b.bytes) * 8.0,
    };
    let fill = |n: &Direction, b: &Direction| {
        let containers = n.containers.checked_sub(b.containers)?;
        let packets = n.packets.checked_sub(b.packets)?;
        (containers > 0).then(|| packets as f64 / containers as f64)
    };
    Row {
        name: now.name.clone(),
        domain: now.domain,
        vif: now.vif,
        state: now.state.clone(),
        rx: rate(&counters.rx, &old.rx),
        tx: rate(&counters.tx, &old.tx),
        rx_fill: fill(&counters.rx, &old.rx),
        tx_fill: fill(&counters.tx, &old.tx),
        hold_us: hold_us(now.hold.as_ref(), before.and_then(|before| before.hold.as_ref())),
        drops: per_s(counters.drops.total(), old.drops.total()),
        drop_reasons: reasons(&counters.drops),
        flush_reasons: reasons(&counters.flushes),
    }
}

/// Returns what 99 of 100 of the packets between two readings were held for at most.
fn hold_us(now: Option<&HoldTimes>, before: Option<&HoldTimes>) -> Option<f64> {
    let old = |below_ns: u64| {
        let bucket = before.and_then(|before| before.buckets.iter().find(|b| b.below_ns == below_ns));
        bucket.map_or(0, |bucket| bucket.packets)
    };
    let buckets = &now?.buckets;
    let made =
        |bucket: &HoldBucket| bucket.packets.checked_sub(old(bucket.below_ns)).unwrap_or(bucket.packets);
    let total: u64 = buckets.iter().map(made).sum();
    let mut seen = 0;
    let reaches = |bucket: &&HoldBucket| {
        seen += made(bucket);
        seen >= total - total / 100
    };
    let bucket = buckets.iter().filter(|bucket| made(bucket) > 0).find(reaches)?;
    Some(bucket.below_ns as f64 / 1000.0)
}

/// Returns the counters of a structure that are not zero, by name, so that one that is added is shown.
fn reasons(counters: &impl serde::Serialize) -> Vec<(String, u64)> {
    let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(counters) else { return Vec::new() };
    let counted = fields.iter().filter_map(|(name, value)| Some((name.replace('_', " "), value.as_u64()?)));
    counted.filter(|(_, count)| *count > 0).collect()
}
