//! The counters as Prometheus reads them: OpenMetrics text made of what `stats --json` shows.
//!
//! It works on the names in that document and not on the counters' types: whatever is counted is exposed, without
//! another list that could be forgotten. It knows no data path and no HTTP.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use serde_json::{Map, Value};

/// What a scrape is answered with, as HTTP names it.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Where the histogram's buckets end: 1.024 µs and its doubles, up to 2.1 s. The daemon's own finer buckets end there
/// too. They are always the same, so that rates can be computed over them.
const BUCKET_ENDS_NS: [u64; 22] = {
    let mut ends = [1024; 22];
    let mut at = 1;
    while at < ends.len() {
        ends[at] = ends[at - 1] * 2;
        at += 1;
    }
    ends
};

/// What the names mean that do not say it themselves.
const HELP: [(&str, &str); 22] = [
    ("vif_packets", "Packets; rx is what the guest receives"),
    ("vif_bytes", "Bytes in the packets"),
    ("vif_containers", "Containers handed over"),
    ("vif_slots", "Ring slots used"),
    ("vif_grant_ops", "Grant operations, each of which copies from or to one page of the guest's"),
    ("vif_copied_bytes", "Bytes that the grant operations copied"),
    ("vif_copies", "Copies made by the processor inside the daemon"),
    ("vif_moved_bytes", "Bytes that those copied"),
    ("vif_flushes", "Containers that went out, by reason"),
    ("vif_drops", "Packets that were not delivered, by reason"),
    ("vif_hypercalls", "Hypercalls made for the interface"),
    ("vif_events_in", "Events that the guest sent"),
    ("vif_events_out", "Events that the guest was sent"),
    ("vif_wakeups", "Passes of the data path that had work for the interface"),
    ("vif_guest_errors", "Requests, chains and containers of the guest's that were refused"),
    ("vif_connected", "Whether the interface is connected"),
    ("vif_hold_seconds", "How long packets were held before they were handed over"),
    ("uplink_received", "Frames that came in"),
    ("uplink_sent", "Frames that went out"),
    ("uplink_sent_last_seconds", "When the last frame went out, by the monotonic clock"),
    ("worker_passes", "Passes of the data path"),
    ("worker_sleeps", "Times that the data path slept"),
];

type Labels = Vec<(String, String)>;

#[derive(Clone, Debug, PartialEq)]
enum Reading {
    Counter(u64),
    Seconds(f64),
    Gauge(f64),
    Histogram { sum: f64, count: u64, buckets: Vec<(f64, u64)> },
}

impl Reading {
    fn kind(&self) -> MetricType {
        match self {
            Self::Counter(_) | Self::Seconds(_) => MetricType::Counter,
            Self::Gauge(_) => MetricType::Gauge,
            Self::Histogram { .. } => MetricType::Histogram,
        }
    }

    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        match self {
            Self::Counter(value) => ConstCounter::new(*value).encode(encoder),
            Self::Seconds(value) => ConstCounter::new(*value).encode(encoder),
            Self::Gauge(value) => ConstGauge::new(*value).encode(encoder),
            Self::Histogram { sum, count, buckets } => {
                encoder.encode_histogram::<NoLabelSet>(*sum, *count, buckets, None)
            }
        }
    }
}

/// Readings by their name, as they must be printed.
#[derive(Debug, Default)]
struct Readings(BTreeMap<String, Vec<(Labels, Reading)>>);

impl Readings {
    fn add(&mut self, name: String, labels: &Labels, reading: Reading) {
        self.0.entry(name).or_default().push((labels.clone(), reading));
    }

    /// Adds a number under its name in the document.
    fn number(&mut self, name: &str, labels: &Labels, value: &Value) {
        let Some(number) = value.as_f64() else { return };
        let last = name.rsplit('_').nth(usize::from(name.ends_with("_ns"))).unwrap_or_default();
        let level =
            name.contains("longest_") || matches!(last, "max" | "p50" | "p99" | "mean" | "jitter" | "last");
        match (name.strip_suffix("_ns"), level, value.as_u64()) {
            (Some(name), true, _) => {
                self.add(format!("{name}_seconds"), labels, Reading::Gauge(number / 1e9))
            }
            (Some(name), false, _) => {
                self.add(format!("{name}_seconds"), labels, Reading::Seconds(number / 1e9));
            }
            (None, false, Some(count)) => self.add(name.to_owned(), labels, Reading::Counter(count)),
            (None, ..) => self.add(name.to_owned(), labels, Reading::Gauge(number)),
        }
    }

    /// Adds all numbers of an object.
    fn object(&mut self, prefix: &str, labels: &Labels, object: &Map<String, Value>) {
        for (key, value) in object {
            let name = format!("{prefix}_{key}");
            match (key.as_str(), value) {
                // What the labels say, and what two counters say better.
                ("domain" | "vif" | "cpu" | "rx_packets_per_container" | "tx_packets_per_container", _) => {}
                ("hold", Value::Object(hold)) => self.hold(&name, labels, hold),
                ("rx" | "tx", Value::Object(inner)) => {
                    self.object(prefix, &with(labels, "direction", key), inner);
                }
                ("drops" | "flushes", Value::Object(inner)) => {
                    for (reason, value) in inner {
                        self.number(&name, &with(labels, "reason", reason), value);
                    }
                }
                // How many there are, not how many there were.
                ("guests" | "uplinks", Value::Number(_)) => {
                    self.add(name, labels, Reading::Gauge(value.as_f64().unwrap_or_default()));
                }
                (_, Value::Object(inner)) => self.object(&name, labels, inner),
                _ => self.number(&name, labels, value),
            }
        }
    }

    fn hold(&mut self, name: &str, labels: &Labels, hold: &Map<String, Value>) {
        let number = |object: &Map<String, Value>, key| object.get(key).and_then(Value::as_u64).unwrap_or(0);
        let mut counts = [0; BUCKET_ENDS_NS.len() + 1];
        for bucket in hold.get("buckets").and_then(Value::as_array).into_iter().flatten() {
            let Value::Object(bucket) = bucket else { continue };
            let below_ns = number(bucket, "below_ns");
            let at = BUCKET_ENDS_NS.iter().position(|end| below_ns <= *end).unwrap_or(BUCKET_ENDS_NS.len());
            counts[at] += number(bucket, "packets");
        }
        let ends = BUCKET_ENDS_NS.iter().map(|ns| *ns as f64 / 1e9).chain([f64::INFINITY]);
        let count = number(hold, "packets");
        // The daemon keeps the mean, rounded down to a nanosecond.
        let sum = number(hold, "mean_ns") as f64 * count as f64 / 1e9;
        let buckets = ends.zip(counts).collect();
        self.add(format!("{name}_seconds"), labels, Reading::Histogram { sum, count, buckets });
        for level in ["max_ns", "jitter_ns"] {
            if let Some(value) = hold.get(level) {
                self.number(&format!("{name}_{level}"), labels, value);
            }
        }
    }
}

fn with(labels: &Labels, key: &str, value: &str) -> Labels {
    let mut labels = labels.clone();
    labels.push((key.to_owned(), value.to_owned()));
    labels
}

fn label(object: &Map<String, Value>, key: &str) -> (String, String) {
    let text = match object.get(key) {
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
        None => String::new(),
    };
    (key.to_owned(), text)
}

/// Returns the text of a document as `stats --json` prints it.
pub fn text(stats: &Value) -> String {
    let mut readings = Readings::default();
    let list = |key: &str| {
        stats.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_object)
    };
    for one in list("interfaces") {
        let labels = vec![label(one, "name"), label(one, "domain"), label(one, "vif")];
        let connected = one.get("state").and_then(Value::as_str) == Some("connected");
        readings.add("vif_connected".into(), &labels, Reading::Gauge(f64::from(u8::from(connected))));
        readings.object("vif", &labels, one);
    }
    for one in list("uplinks") {
        readings.object("uplink", &vec![label(one, "port")], one);
    }
    let mut workers = 0;
    for (at, one) in list("workers").enumerate() {
        workers += 1;
        readings.object("worker", &vec![("worker".into(), at.to_string())], one);
    }
    if let (0, Some(one)) = (workers, stats.get("worker").and_then(Value::as_object)) {
        readings.object("worker", &vec![("worker".into(), "0".into())], one);
    }
    let version = vec![("version".into(), env!("CARGO_PKG_VERSION").into())];
    readings.add("build_info".into(), &version, Reading::Gauge(1.0));
    let mut registry = Registry::with_prefix("drayage");
    registry.register_collector(Box::new(readings));
    let mut out = String::new();
    // A string takes whatever is written.
    let _ = text::encode(&mut out, &registry);
    out
}

impl Collector for Readings {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (name, readings) in &self.0 {
            let known = HELP.iter().find(|(known, _)| known == name);
            let words = name.replace('_', " ");
            let help = known.map_or(words.as_str(), |(_, help)| help);
            let Some((_, first)) = readings.first() else { continue };
            let mut encoder = encoder.encode_descriptor(name, help, None, first.kind())?;
            for (labels, reading) in readings {
                reading.encode(encoder.encode_family(labels)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::ipc::Stats;

    /// Returns the lines of a text by what is before their value.
    fn lines(text: &str) -> BTreeMap<String, f64> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines
            .map(|line| line.rsplit_once(' ').unwrap())
            .map(|(k, v)| (k.into(), v.parse().unwrap()))
            .collect()
    }

    #[test]
    fn the_text_is_what_prometheus_reads() {
        let stats = json!({
            "interfaces": [{
                "domain": 7, "name": "a\"b", "vif": 0, "state": "connected", "rx_packets_per_container": 3.0,
                "rx": { "packets": 30, "bytes": 3000 }, "tx": { "packets": 4, "bytes": 400 },
                "flushes": { "full": 2, "idle": 8 }, "drops": { "queue_full": 5 },
                "hypercalls": 11, "longest_hold_ns": 1500,
                "late": { "containers": 1, "sum_ns": 2_000_000_000u64, "max_ns": 9 },
                "hold": { "packets": 3, "p50_ns": 900, "mean_ns": 1000, "max_ns": 5_000_000_000u64, "jitter_ns": 2,
                    "buckets": [{ "below_ns": 960, "packets": 1 }, { "below_ns": 1024, "packets": 1 },
                        { "below_ns": 6_000_000_000u64, "packets": 1 }] },
            }],
            "uplinks": [{ "port": "tap:t0", "received": 6 }],
            "worker": { "passes": 9 },
        });
        let text = text(&stats);
        assert!(text.ends_with("# EOF\n"), "{text}");
        assert!(text.contains(
            "# HELP drayage_vif_packets Packets; rx is what the guest receives.\n# TYPE drayage_vif_packets counter\n"
        ) || text.contains(
            "# HELP drayage_vif_packets Packets; rx is what the guest receives\n# TYPE drayage_vif_packets counter\n"
        ), "{text}");
        let vif = "name=\"a\\\"b\",domain=\"7\",vif=\"0\"";
        let lines = lines(&text);
        for (name, value) in [
            (format!("drayage_vif_packets_total{{{vif},direction=\"rx\"}}"), 30.0),
            (format!("drayage_vif_packets_total{{{vif},direction=\"tx\"}}"), 4.0),
            (format!("drayage_vif_flushes_total{{{vif},reason=\"idle\"}}"), 8.0),
            (format!("drayage_vif_drops_total{{{vif},reason=\"queue_full\"}}"), 5.0),
            (format!("drayage_vif_hypercalls_total{{{vif}}}"), 11.0),
            (format!("drayage_vif_connected{{{vif}}}"), 1.0),
            (format!("drayage_vif_longest_hold_seconds{{{vif}}}"), 1.5e-6),
            (format!("drayage_vif_late_containers_total{{{vif}}}"), 1.0),
            (format!("drayage_vif_late_sum_seconds_total{{{vif}}}"), 2.0),
            (format!("drayage_vif_late_max_seconds{{{vif}}}"), 9e-9),
            (format!("drayage_vif_hold_seconds_count{{{vif}}}"), 3.0),
            (format!("drayage_vif_hold_seconds_sum{{{vif}}}"), 3e-6),
            (format!("drayage_vif_hold_seconds_bucket{{le=\"0.000001024\",{vif}}}"), 2.0),
            (format!("drayage_vif_hold_seconds_bucket{{le=\"+Inf\",{vif}}}"), 3.0),
            ("drayage_uplink_received_total{port=\"tap:t0\"}".into(), 6.0),
            ("drayage_worker_passes_total{worker=\"0\"}".into(), 9.0),
        ] {
            assert_eq!(lines.get(&name), Some(&value), "{name} in\n{text}");
        }
        assert!(!text.contains("per_container"), "{text}");
    }

    /// Collects the numbers in a document, those of `skip` aside.
    fn numbers(value: &Value, skip: &[&str], into: &mut Vec<f64>) {
        match value {
            Value::Object(object) => {
                let kept = object.iter().filter(|(key, _)| !skip.contains(&key.as_str()));
                kept.for_each(|(_, value)| numbers(value, skip, into));
            }
            Value::Array(list) => list.iter().for_each(|value| numbers(value, skip, into)),
            Value::Number(number) => into.push(number.as_f64().unwrap()),
            _ => {}
        }
    }

    /// Gives every number in a document a value of its own.
    fn number_all(value: &mut Value, next: &mut u64) {
        match value {
            Value::Object(object) => object.values_mut().for_each(|value| number_all(value, next)),
            Value::Array(list) => list.iter_mut().for_each(|value| number_all(value, next)),
            Value::Number(_) => {
                *next += 1;
                *value = json!(1_000_000 + *next);
            }
            _ => {}
        }
    }

    #[test]
    fn everything_that_is_counted_is_exposed() {
        let counters = serde_json::to_value(crate::vif::Counters::default()).unwrap();
        let mut interface = json!({ "domain": 1, "name": "g", "vif": 0, "state": "connected" });
        interface.as_object_mut().unwrap().extend(counters.as_object().unwrap().clone());
        let mut uplink = json!({ "port": "tap:t0" });
        let counters = serde_json::to_value(crate::UplinkCounters::default()).unwrap();
        uplink.as_object_mut().unwrap().extend(counters.as_object().unwrap().clone());
        let worker = serde_json::to_value(crate::worker::WorkerCounters::default()).unwrap();
        let mut stats = json!({ "interfaces": [interface], "uplinks": [uplink], "worker": worker });
        number_all(&mut stats, &mut 0);
        let shown: Vec<f64> = lines(&text(&stats)).into_values().collect();
        let mut expected = Vec::new();
        numbers(&stats, &["domain", "vif"], &mut expected);
        assert!(expected.len() > 30, "{expected:?}");
        for number in expected {
            let found = shown.iter().any(|shown| *shown == number || *shown == number / 1e9);
            assert!(found, "{number} of {stats} is not in {}", text(&stats));
        }
    }

    #[test]
    fn nothing_served_is_still_a_document() {
        let empty = Stats {
            interfaces: Vec::new(),
            uplinks: Vec::new(),
            worker: Default::default(),
            workers: Vec::new(),
        };
        let text = text(&serde_json::to_value(empty).unwrap());
        assert!(text.contains("drayage_build_info{version="), "{text}");
        assert!(text.contains("drayage_worker_passes_total{worker=\"0\"} 0"), "{text}");
    }
}
