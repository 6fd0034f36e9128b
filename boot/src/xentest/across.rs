//! A scenario of two guests whose pages are both mapped: what one sends the other goes there by one copy. Knows the daemon by
//! its counters, and of the receiver what it says of the bytes that came.

use anyhow::{Context, Result, ensure};
use drayage_peer::query::word;
use serde_json::Value;

use super::Scenario;
use super::bench::Bench;
use crate::backend::{self, Daemon};
use crate::demo::guests::{GUEST_IP, GUEST_MAC, HOST_IP, ours};
use crate::dom0::{Mode, Start};

/// The daemon's TAP in dom0, by which the guests are asked.
const TAP: &str = "dry0";

const SOURCE_IP: &str = "10.0.0.3";
const SOURCE_MAC: &str = "00:16:3e:00:00:03";

/// The ports on which the source takes orders, and the sink tells its counters.
const ORDERS: u16 = 5000;
const COUNTERS: u16 = 10;

/// Bytes of a frame, frames of a burst, and bursts. A burst fits into the pages that the receiver has posted, so that it
/// does not matter when it runs: the two guests share a processor.
const FRAME_BYTES: u64 = 1514;
const BURST: u64 = 500;
const BURSTS: u64 = 20;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "xen::across::staged_guests_take_one_copy",
            run: |bench| one_copy(bench, "opportunistic", judge_whole),
        },
        // Such a policy has a say in how large a container is, so packets are gathered into it one by one.
        Scenario {
            name: "xen::across::gathered_packets_take_one_copy",
            run: |bench| one_copy(bench, "fixed:size=16384,timeout=500", judge_gathered),
        },
    ]
}

/// Lets one guest send to another, which receives by a policy, and judges how often what was copied.
fn one_copy(bench: &mut Bench, policy: &str, judge: fn(&Copied, u64) -> Result<()>) -> Result<()> {
    let daemon = Daemon::start(bench.dom0)?;
    let sink = format!("app=sink verify=on ip={GUEST_IP}/24 staged=on");
    let source = format!("app=source control={ORDERS} ip={SOURCE_IP}/24 staged=on");
    for (name, mac, settings) in [("sink", GUEST_MAC, sink), ("source", SOURCE_MAC, source)] {
        bench.dom0.create(&ours(name, Mode::Pvh, &settings), Start::Paused)?;
        backend::attach(bench.dom0, name, mac, &format!("--staged on --policy {policy} --port tap:{TAP}"))?;
        bench.dom0.unpause(name)?;
        bench.await_console(name, "staged rx=in-place tx=on")?;
    }
    bench.dom0.shell(&format!("ip link set {TAP} up; ip addr add {HOST_IP}/24 dev {TAP}"))?;
    for ip in [GUEST_IP, SOURCE_IP] {
        bench.await_answer(ip)?;
    }
    bench.dom0.shell(&format!("peer query {GUEST_IP} --port {COUNTERS} --text reset"))?;
    let before = Look(backend::stats(bench.dom0)?);
    for _ in 0..BURSTS {
        burst(bench)?;
    }
    let told = bench.dom0.shell(&format!(
        "peer query {GUEST_IP} --port {COUNTERS} --text stats --still packets --interval-ms 200"
    ))?;
    let after = Look(backend::stats(bench.dom0)?);
    let sent = BURST * BURSTS;
    let value = |key: &str| word(&told, key).and_then(|text| text.parse::<u64>().ok());
    let received = ["packets", "wrong", "dropped", "dropped_by_nic"].map(value);
    // A sender waits 30 ms for a receiver that gets no processor: on a busy host, what comes then finds a full queue.
    let full = |look: &Look| look.number("sink", "/drops/queue_full");
    let lost = full(&after)? - full(&before)?;
    let arrived = sent - lost;
    ensure!(
        received == [arrived, 0, 0, 0].map(Some) && lost * 10 < sent,
        "the sink has not what was sent, {sent} packets of which {lost} found a full queue: {told}"
    );
    let copied = Copied::between(&before, &after);
    copied
        .and_then(|copied| judge(&copied, arrived))
        .with_context(|| format!("{}\n{}", before.0, after.0))?;
    bench.dom0.destroy("source")?;
    bench.dom0.destroy("sink")?;
    daemon.stop(bench.dom0)
}

/// Lets the source send, and waits until it has.
fn burst(bench: &mut Bench) -> Result<()> {
    let order = format!("send to={GUEST_IP}:9 size={FRAME_BYTES} count={BURST} rate=0");
    // An order whose answer is lost is repeated.
    let answer = bench.dom0.shell(&format!("peer query {SOURCE_IP} --port {ORDERS} --text '{order}'"))?;
    ensure!(answer.trim() == "started", "the source answered {answer:?}");
    for _ in 0..100 {
        let ask = format!("peer query {SOURCE_IP} --port {ORDERS} --text stats --still sent");
        let answer = bench.dom0.shell(&ask)?;
        if word(&answer, "done") == Some("1") {
            return Ok(());
        }
    }
    anyhow::bail!("the source does not get done with {BURST} packets")
}

/// `drayage stats --json`.
struct Look(Value);

impl Look {
    fn number(&self, name: &str, path: &str) -> Result<u64> {
        let all = self.0["interfaces"].as_array();
        let one = all.and_then(|all| all.iter().find(|one| one["name"] == name));
        let value = one.and_then(|one| one.pointer(path)?.as_u64());
        value.with_context(|| format!("no {path} of {name} in {}", self.0))
    }
}

/// What was copied between two looks.
struct Copied {
    /// Bytes of the frames, those of them that were read of the sender's pages, and bytes written into the receiver's.
    bytes: u64,
    read: u64,
    written: u64,
    /// Bytes that were copied between these two.
    moved: u64,
    /// Containers from the sender, and those of them that were handed on whole.
    containers: u64,
    whole: u64,
    /// Operations on pages.
    operations: u64,
}

impl Copied {
    fn between(before: &Look, after: &Look) -> Result<Self> {
        let grown = |name: &str, path: &str| -> Result<u64> {
            Ok(after.number(name, path)? - before.number(name, path)?)
        };
        let granted = grown("source", "/tx/grant_ops")? + grown("sink", "/rx/grant_ops")?;
        ensure!(granted == 0, "{granted} grant copies");
        let copied = Self {
            bytes: grown("source", "/tx/bytes")?,
            read: grown("source", "/tx/mapped_bytes")?,
            written: grown("sink", "/rx/mapped_bytes")?,
            moved: grown("sink", "/rx/moved_bytes")?,
            containers: grown("source", "/tx/containers")?,
            whole: grown("sink", "/flushes/whole")?,
            operations: grown("source", "/tx/mapped_ops")? + grown("sink", "/rx/mapped_ops")?,
        };
        let Self { bytes, read, written, moved, containers, whole, operations } = copied;
        eprintln!(
            "  {containers} containers, handed over in {}, {whole} of them whole; of {bytes} bytes {read} were read, \
             {written} written, and {moved} moved in {} copies; {operations} operations on pages",
            grown("sink", "/rx/containers")?,
            grown("sink", "/rx/copies")?,
        );
        Ok(copied)
    }
}

/// Fails unless most bytes were copied once on their way, whole containers at a time.
fn judge_whole(copied: &Copied, sent: u64) -> Result<()> {
    let Copied { bytes, read, written, moved, containers, whole, operations } = *copied;
    // By two copies it would read as much as it writes. What is decided on is read, 22 bytes a packet; and so is a container
    // before which it was not known where they go: the first of each burst, after an answer to dom0.
    ensure!(written >= sent * FRAME_BYTES && read < bytes / 2, "{read} bytes were read of {bytes}");
    ensure!(whole * 2 > containers && whole * 10 < sent, "{whole} of {containers} containers went on whole");
    // Each of the sender's containers and of the receiver's pages takes one operation, so do the sender's pages.
    ensure!(moved < bytes / 10 && operations < sent, "{moved} bytes moved, {operations} operations");
    Ok(())
}

/// Fails unless most bytes were copied once on their way, packet by packet.
fn judge_gathered(copied: &Copied, sent: u64) -> Result<()> {
    let Copied { bytes, read, written, moved, whole, operations, .. } = *copied;
    // As above; of each packet 152 bytes are read.
    ensure!(written >= sent * FRAME_BYTES && read < bytes / 2, "{read} bytes were read of {bytes}");
    // Each packet lies in one of the receiver's pages or in two.
    ensure!(
        whole == 0 && moved < bytes / 10 && operations < 3 * sent,
        "{moved} bytes moved, {operations} operations"
    );
    Ok(())
}
