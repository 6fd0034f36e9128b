//! A guest's first answered ping, and whether what it echoes is what it was sent. Knows nothing of
//! how the guest is reached.

use std::time::Duration;

use anyhow::{Result, ensure};
use drayage_peer::report::{EchoReport, PingReport};

use crate::demo::guests::GUEST_IP;
use crate::demo::path::Path;
use crate::demo::report::Boot;
use crate::demo::rows::Outcome;
use crate::dom0::{Dom0, Guest};

/// Patience with a guest's first answer, in the machine's time.
const GREETING: Duration = Duration::from_secs(60);

/// Time between two pings while a guest boots: the precision of its boot time.
const INTERVAL_MS: u64 = 20;

/// Who is booted on what, in the report's words.
#[derive(Debug, Clone, Copy)]
pub struct Names {
    /// "linux" or "drayage".
    pub guest: &'static str,
    /// "netback" or "drayage".
    pub backend: &'static str,
}

/// Boots a guest, times its first answered ping, and compares what it echoes.
pub fn greet(
    dom0: &mut Dom0,
    path: &mut dyn Path,
    guest: &Guest,
    names: Names,
    outcome: &mut Outcome,
) -> Result<()> {
    let started_ns = dom0.agent().clock_ns()?;
    path.create(dom0, guest)?;
    let first_ping_ms = await_answer(dom0, started_ns)?;
    let differences = match first_ping_ms {
        Some(_) => compare_echoes(dom0)?,
        None => vec![format!("no ping was answered within {} s", GREETING.as_secs())],
    };
    let mode = guest.mode.name();
    let name = format!("{} guest, {mode}, on {}", names.guest, names.backend);
    match first_ping_ms {
        Some(ms) if differences.is_empty() => {
            println!("{name}: first answered ping after {ms:.0} ms; ICMP, UDP and TCP echo: same bytes");
        }
        _ => println!("{name}: FAILED: {}", differences.join("; ")),
    }
    outcome.failures.extend(differences.iter().map(|difference| format!("{name}: {difference}")));
    outcome.report.boots.push(Boot {
        guest: names.guest.to_owned(),
        backend: names.backend.to_owned(),
        mode: mode.to_owned(),
        ok: differences.is_empty(),
        first_ping_ms,
    });
    Ok(())
}

/// Waits until a guest answers, so that neighbours know each other before packets count.
pub fn await_guest(dom0: &mut Dom0, ip: &str) -> Result<()> {
    let command = format!("peer ping {ip} --until-answered --count 2400 --interval-ms 50");
    let report: PingReport = dom0.json(&command, 3 * GREETING)?;
    ensure!(report.answered > 0, "the guest at {ip} has not answered a ping in two minutes");
    Ok(())
}

/// Returns the milliseconds from a time to the guest's first answered ping.
fn await_answer(dom0: &mut Dom0, since_ns: u64) -> Result<Option<f64>> {
    let count = GREETING.as_millis() as u64 / INTERVAL_MS;
    let report: PingReport = dom0.json(
        &format!("peer ping {GUEST_IP} --until-answered --interval-ms {INTERVAL_MS} --count {count}"),
        2 * GREETING,
    )?;
    let now_ns = dom0.agent().clock_ns()?;
    Ok((report.answered > 0).then(|| (now_ns - since_ns) as f64 / 1e6))
}

/// Returns what differed between payloads sent to the guest and those that came back.
fn compare_echoes(dom0: &mut Dom0) -> Result<Vec<String>> {
    let mut differences = Vec::new();
    let ping: PingReport = dom0.json(&format!("peer ping {GUEST_IP} --bytes 1000"), GREETING)?;
    if ping.answered < ping.sent || ping.mismatched > 0 {
        differences.push(format!("ping: {ping:?}"));
    }
    for command in ["udp-echo", "tcp-echo"] {
        let report = dom0.json::<EchoReport>(&format!("peer {command} {GUEST_IP}"), GREETING);
        match report {
            Ok(report) if report.mismatched == 0 && report.received_bytes == report.sent_bytes => {}
            Ok(report) => differences.push(format!("{report:?}")),
            Err(error) => differences.push(format!("{command}: {error:#}")),
        }
    }
    Ok(differences)
}
