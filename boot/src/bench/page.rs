//! The report: one HTML page with everything in it, for somebody who has seen none of this. Knows nothing of how the
//! rows came about.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::bench::breakdown::{SUITE, breakdowns};
use crate::bench::plot::draw;
use crate::bench::row::{Peer, Row, Time};
use crate::bench::table::{Group, cell, groups};
use crate::demo::report::Generator;

const STYLE: &str = "body{font:16px/1.5 sans-serif;max-width:62em;margin:2em auto;padding:0 1em;color:#222}\
    table{border-collapse:collapse;margin:1em 0;font-size:14px}td,th{border-bottom:1px solid #ccc;padding:.2em .7em;\
    text-align:right}td:first-child,th:first-child,td:nth-child(2),th:nth-child(2){text-align:left}\
    .hit{color:#060}.miss{color:#a00}svg{max-width:100%;height:auto}code{background:#f3f3f3}";

const INTRODUCTION: &str = "<p>A guest of the Xen hypervisor gets its network through a <em>driver domain</em>: a Linux \
    that owns the network card and hands packets over, one by one, each with a ring slot, a grant and often a wake-up of \
    its own. Drayage hands over whole <em>containers</em> of packets. This page compares the two on one emulated machine \
    (Xen in QEMU), in one run.</p>\
    <p><b>Who is compared.</b> <b>a</b>: a Linux guest on Xen's stock backend, netback. <b>b</b>: our guest on netback. \
    <b>c</b>: our guest on the drayage backend, containers off. <b>d</b>: the same with containers. Guests run \
    paravirtualised (pv) and with hardware's help (pvh); where a ratio is given, a's better one counts. Linux reads with \
    <code>recvmmsg</code> and has its offloads on.</p>\
    <p><b>What a number means.</b> Unless a table says <em>wall time</em>, the machine's clock advances by one nanosecond \
    with every instruction executed, by hypervisor, driver domain and guest together. \"Packets per 10^9 instructions\" is \
    thus the cost of a packet to the whole system, and repeats on any host; it knows no caches and no parallelism. Every \
    throughput is the highest at which less than 1 % of the packets was lost, counted by the application that got them. \
    \"net\" leaves out what the traffic generator costs by itself. Wall-time figures are an emulator's: only their ratios \
    mean something, and their noise stands beside them.</p>";

/// What a suite is about, for its section.
fn about(suite: &str) -> &'static str {
    match suite {
        "rx" => {
            "Packets into a guest. <em>direct</em>: the source is as close to the backend as it gets, a Linux sender on \
             netback's device for a and b, the generator inside drayage for c and d. <em>linux</em>: the same Linux \
             sender for all, through a bridge for a and b, through a TAP for c and d. <em>veth</em>: the same sender on a veth \
             whose other end is in the bridge for a and b, and a packet socket of drayage's for c and d."
        }
        "tx" => {
            "Packets out of a guest. <em>port</em>: as far as the driver domain's port, which throws them away; not for b, \
             whose stack would ask for a neighbour that nobody is on a stock vif. <em>linux</em>: into a reader in the driver \
             domain."
        }
        "forward" => {
            "A guest with two interfaces that routes from one to the other. <em>direct</em>: from a source at the first \
             interface's port to the second's; not for b, as with tx. <em>linux</em>: from a Linux sender to a Linux reader."
        }
        "intervm" => {
            "From an application in one guest to an application in another, through the driver domain."
        }
        "guests" => {
            "One Linux sender for each of several guests, on a veth whose other end is in the guest's bridge for a and b, and a \
             packet socket of drayage's for c and d. All begin at the same time; what counts is the highest rate of all \
             together at which less than 1 % is lost. The machine has two CPUs: the driver domain has the first, and the \
             guests share the second."
        }
        "containers" => {
            "Reception by how large a container may grow, and by when it is handed over: at once while the guest is idle and when \
             it has caught up while it is busy (opportunistic), at that size or after 1 ms (fixed, the paper's policy), or with \
             as many packets as a bound of 1 ms on the delay allows (slo). The tables after each throughput say what a packet \
             took of ring slots, grant copies and hypercalls: where they stay the same while containers grow, a larger \
             container saves none of them."
        }
        "latency" => {
            "Round trips of single pings, alone and beside a stream of 60-byte packets; jitter is the mean difference of \
             two round trips in a row. Containers are held open only while the guest is busy; for how long packets were held, from the \
             switch to the guest's page, is what the backend counts of all packets of a load, the pings among them. In wall time the machine itself \
             is late now and then: how late an idle loop was on it stands beside the percentiles."
        }
        "cores" => {
            "Reception by where the guest and what serves it run, on two CPUs: the guest apart from the driver domain; both on \
             one core; the driver domain with a virtual CPU on each, its interrupts on the first and the backend's threads on \
             the second, beside the guest; and nothing held anywhere."
        }
        "cost" => {
            "Operations per packet, as the backend counts them while it is saturated, into the guest and out of it, without containers \
             (c) and with them (d); netback has no such counters. The bars are on a logarithmic axis. And what valgrind counts of backend, \
             driver, stack and reader in one process, with memory in the hypervisor's place."
        }
        "tcp" => {
            "Streams into a guest, out of it, and one that it echoes, of which the bytes in both directions count. dom0 is the other \
             end: on netback's interface for a and b, and for c and d on a veth, whose other end drayage has by a packet socket."
        }
        "boot" => {
            "From the guest's creation to its first answered ping, and the CPU time that its domain took for it, on a machine \
             with one CPU. Our guest has 8 MiB of memory. Mini-OS is not compared: Debian has no package of it, and \
             Xen's source package there leaves it out."
        }
        _ => "",
    }
}

/// Writes the plots and the page into a folder.
pub fn write(folder: &Path, rows: &[Row], generators: &[Generator], took: Duration) -> Result<()> {
    let mut body = String::new();
    let (groups, breakdowns) = (groups(rows), breakdowns(rows));
    let mut suites: Vec<&str> = Vec::new();
    for row in rows {
        if !suites.contains(&row.suite.as_str()) {
            suites.push(&row.suite);
        }
    }
    // A plot keeps its name, however many there are when the page is written again.
    let plot = |title: &str, svg: &str| {
        let path = folder.join(file_name(title));
        fs::write(&path, svg).with_context(|| format!("writing {}", path.display()))
    };
    for suite in suites {
        let _ = write!(body, "<h2 id=\"{suite}\">{suite}</h2><p>{}</p>", about(suite));
        for group in groups.iter().filter(|group| group.suite() == Some(suite)) {
            let svg = draw(group)?;
            plot(&group.title, &svg)?;
            let _ = write!(body, "{svg}{}", table(group));
        }
        for breakdown in breakdowns.iter().filter(|breakdown| breakdown.suite == suite) {
            if suite == SUITE {
                let svg = breakdown.draw()?;
                plot(&breakdown.title, &svg)?;
                body.push_str(&svg);
            }
            body.push_str(&breakdown.html());
        }
    }
    let path = folder.join("index.html");
    fs::write(&path, page(rows, generators, took, &body))
        .with_context(|| format!("writing {}", path.display()))
}

/// Returns the name of a plot's file: the words of its title.
fn file_name(title: &str) -> String {
    let words = title.split(|letter: char| !letter.is_ascii_alphanumeric());
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    words.join("-").to_lowercase() + ".svg"
}

fn page(rows: &[Row], generators: &[Generator], took: Duration, body: &str) -> String {
    let mut text = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Drayage: the evaluation</title>\
         <style>{STYLE}</style><h1>Drayage: the evaluation</h1>{INTRODUCTION}{}",
        targets(rows)
    );
    text.push_str(body);
    if !generators.is_empty() {
        text.push_str(
            "<h2>generators</h2><p>What each costs alone, without anybody to take its packets.</p><table>",
        );
        text.push_str("<tr><th>generator<th>frame<th>instructions per packet</tr>");
        for generator in generators {
            let _ = write!(
                text,
                "<tr><td>{}<td>{} B<td>{:.0}</tr>",
                generator.name, generator.frame_bytes, generator.instructions_per_packet
            );
        }
        text.push_str("</table>");
    }
    let _ = writeln!(text, "<p>All of this took {} minutes.</p></html>", took.as_secs().div_ceil(60));
    text
}

fn table(group: &Group<'_>) -> String {
    let mut text = format!("<table><tr><th>guest<th>{} →", group.across);
    for at in &group.columns {
        let _ = write!(text, "<th>{}", group.heading(*at));
    }
    text.push_str("</tr>");
    for line in &group.lines {
        let _ = write!(text, "<tr><td>{} {}<td>{}", line.peer.letter(), line.mode, line.peer.describe());
        for row in &line.cells {
            let _ = write!(text, "<td>{}", row.map(cell).unwrap_or_default());
        }
        text.push_str("</tr>");
    }
    let _ = write!(text, "</table><p>Unit: {}.", group.unit);
    for note in group.notes() {
        let _ = write!(text, "<br>{note}");
    }
    text + "</p>"
}

/// What is to be reached.
struct Target {
    suite: &'static str,
    case: &'static str,
    /// Whom it is compared with.
    rival: Peer,
    /// How many times better, by size of the frame; none where there are no frames.
    factors: &'static [(Option<usize>, f64)],
}

const fn target(
    suite: &'static str,
    case: &'static str,
    rival: Peer,
    factors: &'static [(Option<usize>, f64)],
) -> Target {
    Target { suite, case, rival, factors }
}

const TARGETS: [Target; 9] = [
    target("rx", "direct", Peer::A, &[(Some(60), 8.0), (Some(252), 6.0), (Some(1514), 3.0)]),
    target("rx", "veth", Peer::A, &[(Some(60), 4.0), (Some(252), 3.0), (Some(1514), 1.5)]),
    target("rx", "direct", Peer::C, &[(Some(60), 4.0), (Some(252), 3.0), (Some(1514), 1.3)]),
    target("tx", "port", Peer::A, &[(Some(60), 8.0), (Some(252), 6.0), (Some(1514), 3.0)]),
    target("intervm", "guest to guest", Peer::A, &[(Some(60), 10.0), (Some(252), 8.0), (Some(1514), 3.0)]),
    target("forward", "direct", Peer::A, &[(Some(60), 8.0), (Some(252), 6.0), (Some(1514), 2.0)]),
    target("forward", "linux", Peer::A, &[(Some(60), 8.0), (Some(252), 6.0), (Some(1514), 2.0)]),
    target("tcp", "into the guest", Peer::A, &[(None, 2.0)]),
    target("tcp", "out of the guest", Peer::A, &[(None, 2.0)]),
];

/// Returns a peer's best row of a suite.
fn best<'a>(rows: &'a [Row], target: &Target, peer: Peer, frame_bytes: Option<usize>) -> Option<&'a Row> {
    rows.iter()
        .filter(|row| {
            row.time == Time::Instructions
                && row.peer == peer
                && (row.suite.as_str(), row.case.as_str()) == (target.suite, target.case)
                && row.frame_bytes == frame_bytes
                && !row.is_cost()
        })
        .max_by(|one, two| one.value.total_cmp(&two.value))
}

/// Returns the table of targets, with what was reached.
fn targets(rows: &[Row]) -> String {
    let mut text = String::from(
        "<h2>Targets</h2><p>How many times better our guest with containers (d) is than a Linux guest on the stock backend \
         (a), or than the same without containers (c): wanted, reached, and reached net of the generators.</p>\
         <table><tr><th>suite<th>way<th>times<th>60 B<th>252 B<th>1514 B<th>a stream</tr>",
    );
    for target in &TARGETS {
        let _ = write!(text, "<tr><td>{}<td>{}<td>{}", target.suite, target.case, target.rival.letter());
        for column in [Some(60), Some(252), Some(1514), None] {
            let Some((_, factor)) = target.factors.iter().find(|(frame, _)| *frame == column) else {
                text.push_str("<td>");
                continue;
            };
            let ours = best(rows, target, Peer::D, column);
            let rival = best(rows, target, target.rival, column).filter(|row| row.value > 0.0);
            let Some((ours, rival)) = ours.zip(rival) else {
                let _ = write!(text, "<td>≥ {factor}: not measured");
                continue;
            };
            let ratio = ours.value / rival.value;
            let class = if ratio >= *factor { "hit" } else { "miss" };
            let net = rival.net_instructions.zip(ours.net_instructions.filter(|net| *net > 0.0));
            let net = net.map(|(rival, ours)| format!(", net {:.1}", rival / ours)).unwrap_or_default();
            let _ = write!(text, "<td class=\"{class}\">≥ {factor}: {ratio:.1}{net}");
        }
        text.push_str("</tr>");
    }
    text + "</table>"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::row::{Label, THROUGHPUT, compare};
    use crate::dom0::Mode;

    #[test]
    fn the_page_stands_alone_and_says_what_was_reached() {
        let row = |peer, value| {
            let label = Label {
                suite: "rx",
                peer,
                mode: Mode::Pvh,
                case: "direct".into(),
                frame_bytes: Some(60),
                varied: None,
            };
            Row::new(&label, Time::Instructions, THROUGHPUT, "packets per 10^9 instructions", value)
        };
        let mut rows = vec![row(Peer::A, 50_000.0), row(Peer::D, 450_000.0)];
        compare(&mut rows);
        let folder = std::env::temp_dir().join(format!("boot-page-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        write(&folder, &rows, &[], Duration::from_secs(61)).unwrap();
        let page = fs::read_to_string(folder.join("index.html")).unwrap();
        assert!(folder.join("rx-throughput-direct.svg").is_file());
        fs::remove_dir_all(&folder).unwrap();
        assert!(page.contains("<td class=\"hit\">≥ 8: 9.0"), "{page}");
        assert!(page.contains("<svg") && page.contains("took 2 minutes"), "{page}");
        assert!(!page.contains("href=") && !page.contains("src="), "nothing is fetched");
    }
}
