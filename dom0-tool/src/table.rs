//! Tables for people.
//!
//! It knows what is shown, and neither where it comes from nor where it is printed.

use comfy_table::Table;
use comfy_table::presets::NOTHING;

use crate::control::views::{Interface, InterfaceStats};
use crate::cores::Proposal;
use crate::doctor::{Check, Verdict};
use crate::ipc::Stats;
use crate::port::By;

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING);
    table.set_header(header.iter().copied());
    table
}

/// Says how packets get into a guest's pages and out of them.
fn mode(staged_pages: u64) -> String {
    if staged_pages == 0 { "copy".into() } else { format!("staged ({staged_pages} pages)") }
}

/// Names an uplink, and by what its frames go.
fn port(one: &Interface) -> String {
    match (&one.port, one.port_by) {
        (None, _) => "-".into(),
        (Some(port), None | Some(By::Other)) => port.clone(),
        (Some(port), Some(by)) => format!("{port} ({by})"),
    }
}

/// Shows what is attached.
pub fn interfaces(list: &[Interface]) -> String {
    if list.is_empty() {
        return "nothing is attached: `drayage attach DOMAIN`".into();
    }
    let mut table = table(&[
        "domain",
        "id",
        "vif",
        "mac",
        "port",
        "state",
        "containers",
        "mode",
        "policy",
        "size",
        "rules",
    ]);
    for one in list {
        let containers = match (one.rx_containers, one.tx_containers) {
            (Some(rx), Some(tx)) => match (rx, tx) {
                (true, true) => "rx tx",
                (true, false) => "rx",
                (false, true) => "tx",
                (false, false) => "no",
            },
            _ => "-",
        };
        table.add_row([
            one.name.clone(),
            one.domain.map_or("-".into(), |id| id.to_string()),
            one.vif.to_string(),
            one.mac.clone(),
            port(one),
            one.state.clone(),
            containers.into(),
            one.staged_pages.map_or("-".into(), mode),
            one.policy.clone(),
            one.size_bytes.to_string(),
            one.rules.words().into(),
        ]);
    }
    table.trim_fmt()
}

/// Shows counters: a block for each interface, and a table of uplinks.
pub fn stats(stats: &Stats) -> String {
    let mut text = String::new();
    for one in &stats.interfaces {
        let counters = &one.counters;
        text.push_str(&format!("{} ({}) vif {}: {}\n", one.name, one.domain, one.vif, one.state));
        let mut table = table(&[
            "",
            "packets",
            "bytes",
            "containers",
            "packets/container",
            "slots",
            "grant ops",
            "grant bytes",
            "mapped ops",
            "mapped bytes",
            "copies",
            "moved bytes",
        ]);
        for (name, direction, ratio) in [
            ("rx", &counters.rx, one.rx_packets_per_container),
            ("tx", &counters.tx, one.tx_packets_per_container),
        ] {
            table.add_row([
                name.to_owned(),
                direction.packets.to_string(),
                direction.bytes.to_string(),
                direction.containers.to_string(),
                ratio.map_or("-".into(), |r| format!("{r:.1}")),
                direction.slots.to_string(),
                direction.grant_ops.to_string(),
                direction.copied_bytes.to_string(),
                direction.mapped_ops.to_string(),
                direction.mapped_bytes.to_string(),
                direction.copies.to_string(),
                direction.moved_bytes.to_string(),
            ]);
        }
        text.push_str(&table.trim_fmt());
        let (f, d) = (&counters.flushes, &counters.drops);
        text.push_str(&format!(
            "\nflushes: full {}, idle {}, deadline {}, target {}, class {}, whole {}, ring end {}\n",
            f.full, f.idle, f.deadline, f.target, f.class, f.whole, f.ring_end,
        ));
        text.push_str(&hold_times(one));
        text.push_str(&format!(
            "hypercalls {}, events in {}, events out {}, wake-ups {}, filtered {}, guest errors {}\n",
            counters.hypercalls,
            counters.events_in,
            counters.events_out,
            counters.wakeups,
            counters.filtered,
            counters.guest_errors
        ));
        let staging = counters.staging;
        text.push_str(&format!(
            "mapped pages {}, control requests {}, refused {}\n",
            staging.pages, staging.requests, staging.refused
        ));
        text.push_str(&format!(
            "drops: queue full {}, too late {}, too large {}, bad buffer {}, not segmentable {}, malformed {}, \
             unreadable {}, no destination {}, wrong source {}, isolated {}\n\n",
            d.queue_full,
            d.too_late,
            d.too_large,
            d.bad_buffer,
            d.not_segmentable,
            d.malformed,
            d.unreadable,
            d.no_destination,
            d.wrong_source,
            d.isolated
        ));
    }
    if !stats.uplinks.is_empty() {
        let header =
            ["uplink", "received", "bytes", "drops", "sent", "bytes", "drops", "batches", "wake-ups"];
        let mut table = table(&header);
        for one in &stats.uplinks {
            let c = &one.counters;
            let (received, sent) = ([c.received, c.received_bytes, c.receive_drops], [c.sent, c.sent_bytes]);
            let numbers = received.into_iter().chain(sent).chain([c.send_drops, c.batches, c.wakeups]);
            table.add_row(std::iter::once(one.port.clone()).chain(numbers.map(|n| n.to_string())));
        }
        text.push_str(&table.trim_fmt());
        text.push('\n');
    }
    if stats.workers.len() > 1 {
        let header =
            ["worker", "cpu", "guests", "uplinks", "passes", "sleeps", "to others", "full", "from others"];
        let mut table = table(&[&header[..], &["no destination", "isolated", "rings"]].concat());
        for (number, one) in stats.workers.iter().enumerate() {
            let (c, t) = (&one.counters, &one.trunks);
            let cpu = one.cpu.map_or("-".into(), |cpu| cpu.to_string());
            let held = [one.guests as u64, one.uplinks as u64, c.passes, c.sleeps];
            let moved = [t.sent, t.queue_full, t.received, t.no_destination, t.isolated, t.rings];
            let numbers = held.iter().chain(&moved).map(u64::to_string);
            table.add_row([number.to_string(), cpu].into_iter().chain(numbers));
        }
        text.push_str(&table.trim_fmt());
        text.push('\n');
    }
    let w = &stats.worker;
    text.push_str(&format!(
        "loop: passes {}, sleeps {}, put off {}, polls {}, rests {}, batches of grant copies {}, grant copies {}",
        w.passes, w.sleeps, w.put_off, w.polls, w.rests, w.copy_batches, w.copies
    ));
    text
}

/// Shows how long packets were held, in microseconds.
fn hold_times(one: &InterfaceStats) -> String {
    let us = |ns: u64| format!("{:.1}", ns as f64 / 1000.0);
    let mut text = match &one.hold {
        Some(hold) if hold.packets > 0 => format!(
            "hold (us): p50 {}, p99 {}, max {}, jitter {}; ",
            us(hold.p50_ns),
            us(hold.p99_ns),
            us(hold.max_ns),
            us(hold.jitter_ns)
        ),
        _ => format!("hold (us): max {}; ", us(one.counters.longest_hold_ns)),
    };
    let late = one.counters.late;
    text.push_str(&format!("late containers {}", late.containers));
    if let Some(mean_ns) = late.sum_ns.checked_div(late.containers) {
        text.push_str(&format!(" (by {} on average, {} at most)", us(mean_ns), us(late.max_ns)));
    }
    text.push('\n');
    text
}

/// Shows checks.
pub fn checks(checks: &[Check]) -> String {
    let mut table = table(&["", "check", "found", "to do"]);
    for check in checks {
        let mark = match check.verdict {
            Verdict::Ok => "ok",
            Verdict::Note => "note",
            Verdict::Bad => "BAD",
        };
        table.add_row([mark, &check.name, &check.found, &check.mend]);
    }
    table.trim_fmt()
}

/// Shows which CPU should do what, and how to have it so.
pub fn cores(proposal: &Proposal) -> String {
    let mut table = table(&["cpu", "core", "socket", "node", "runs", "why"]);
    for one in &proposal.uses {
        let runs = if one.runs.is_empty() { "-".to_owned() } else { one.runs.join(", ") };
        let cpu = one.cpu;
        table.add_row([
            cpu.number.to_string(),
            cpu.core.to_string(),
            cpu.socket.to_string(),
            cpu.node.to_string(),
            runs,
            one.why.to_owned(),
        ]);
    }
    let mut text = table.trim_fmt();
    text.push_str("\n\nto have it so:\n");
    for step in &proposal.steps {
        text.push_str(&format!("  {step}\n"));
    }
    for note in &proposal.notes {
        text.push_str(&format!("note: {note}\n"));
    }
    text
}
