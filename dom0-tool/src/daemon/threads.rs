//! The data path of the daemon: workers, each in a thread of its own, every two joined by a trunk. Guests and
//! uplinks are spread over them, and every worker is told what is behind the others.
//!
//! It knows which worker has what, and nothing of packets or of xenstore.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use serde::Deserialize;

use super::data::{self, DataThread, LinuxWorker, NotStarted, Scheduling};
use crate::UplinkCounters;
use crate::bell::Bell;
use crate::capture::{Source, capture};
use crate::clock::Monotonic;
use crate::control::error::{Failure, FailureKind};
use crate::control::plane::DataPlane;
use crate::ipc::WorkerStats;
use crate::port::Uplink;
use crate::port::generator::{Report, Stream};
use crate::port::sink::SinkCounters;
use crate::switch::{Mac, PortId, Segment};
use crate::trunk::MAX_TRUNKS;
use crate::vif::holds::HoldTimes;
use crate::vif::{Connection, Counters, Fault};
use crate::worker::trunks::join;
use crate::worker::{BATCH_OPS, ConnectError, Settings, Target, Worker};
use crate::xen::Linux;
use crate::xen::kept::KeptPages;

/// Workers, at most: each has a trunk to every other.
const MAX_WORKERS: usize = MAX_TRUNKS + 1;
/// A port's number has the worker's above these bits.
const LOCAL_BITS: u32 = 10;

/// What the configuration says of workers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "toml::Table")]
pub struct Workers {
    /// How each trades delay for wake-ups.
    pub settings: Settings,
    /// How many there are.
    pub threads: usize,
    /// The processor that each is held to; none for all of them, or one for each.
    pub pin: Vec<usize>,
}

impl Default for Workers {
    fn default() -> Self {
        Self { settings: Settings::default(), threads: 1, pin: Vec::new() }
    }
}

impl TryFrom<toml::Table> for Workers {
    type Error = String;

    fn try_from(mut table: toml::Table) -> Result<Self, String> {
        let mut take = |key: &str| table.remove(key);
        let threads = match take("threads") {
            Some(value) => value.try_into().map_err(|error| format!("threads: {error}"))?,
            None => 1,
        };
        let pin: Vec<usize> = match take("pin") {
            Some(value) => value.try_into().map_err(|error| format!("pin: {error}"))?,
            None => Vec::new(),
        };
        if !(1..=MAX_WORKERS).contains(&threads) {
            return Err(format!("threads is {threads}: it can be 1 to {MAX_WORKERS}"));
        }
        if !pin.is_empty() && pin.len() != threads {
            let (named, s) = (pin.len(), if threads == 1 { "" } else { "s" });
            return Err(format!("pin names {named} processors for {threads} thread{s}: name one for each"));
        }
        let settings = table.try_into().map_err(|error: toml::de::Error| error.to_string())?;
        Ok(Self { settings, threads, pin })
    }
}

/// A worker's thread, and what it has.
struct Member {
    thread: DataThread,
    cpu: Option<usize>,
    guests: usize,
    uplinks: usize,
    /// Its trunk to each of the others, by their number.
    trunks: Vec<Option<PortId>>,
}

/// All workers.
pub(super) struct DataThreads {
    members: Vec<Member>,
    /// Where each port hears, and the address of a guest.
    ports: BTreeMap<PortId, (Segment, Option<Mac>)>,
}

/// Opens Xen for each worker, with the pages that outlive it, joins them, and starts their threads.
///
/// # Errors
/// [`Failure`].
pub(super) fn start(
    wanted: &Workers,
    scheduling: Scheduling,
    kept: &KeptPages,
    on_fault: impl FnMut() + Clone + Send + 'static,
) -> Result<DataThreads, Failure> {
    let failed =
        |error: std::io::Error| Failure::new(FailureKind::Other, format!("starting the data path: {error}"));
    let mut workers = Vec::new();
    let mut bells = Vec::new();
    for _ in 0..wanted.threads {
        let linux = Linux::open(BATCH_OPS).map_err(super::not_xen)?.keeping(kept.clone());
        workers.push(Worker::new(linux, Monotonic, wanted.settings));
        bells.push(Arc::new(Bell::new().map_err(failed)?));
    }
    let trunks = join(&mut workers, &bells);
    let mut members = Vec::new();
    for (number, ((worker, bell), trunks)) in workers.into_iter().zip(bells).zip(trunks).enumerate() {
        let cpu = wanted.pin.get(number).copied();
        let name = format!("data-{number}");
        let thread = data::start(worker, bell, name, cpu, scheduling, on_fault.clone());
        let thread = thread.map_err(|error| match (cpu, error) {
            (_, NotStarted::Realtime(failure)) => failure,
            (Some(cpu), NotStarted::System(error))
                if error.raw_os_error().is_some() || error.kind() == std::io::ErrorKind::InvalidInput =>
            {
                let message = format!(
                    "[worker] pin: a thread cannot be held to processor {cpu}: {error}; name one that this \
                     domain has (`nproc`)"
                );
                Failure::new(FailureKind::BadValue, message)
            }
            (_, NotStarted::System(error)) => failed(error),
        })?;
        members.push(Member { thread, cpu, guests: 0, uplinks: 0, trunks });
    }
    Ok(DataThreads { members, ports: BTreeMap::new() })
}

/// Returns the number by which a worker's port is known outside.
fn whole(worker: usize, local: PortId) -> PortId {
    PortId((worker as u16) << LOCAL_BITS | local.0)
}

/// Returns whose port it is, and its number there.
fn parts(port: PortId) -> (usize, PortId) {
    (usize::from(port.0 >> LOCAL_BITS), PortId(port.0 & ((1 << LOCAL_BITS) - 1)))
}

const _: () = assert!(crate::fabric::MAX_PORTS <= 1 << LOCAL_BITS && MAX_WORKERS << LOCAL_BITS <= 1 << 16);

impl DataThreads {
    /// Has the worker of a port do something.
    fn at<R: Send + 'static>(
        &self,
        port: PortId,
        job: impl FnOnce(&mut LinuxWorker, PortId) -> R + Send + 'static,
    ) -> Option<R> {
        let (worker, local) = parts(port);
        self.members.get(worker)?.thread.run(move |worker| job(worker, local))
    }

    /// Returns the worker that has the least of something.
    fn least(&self, of: impl Fn(&Member) -> usize) -> usize {
        (0..self.members.len()).min_by_key(|at| of(&self.members[*at])).unwrap_or_default()
    }

    /// Tells the other workers of a new port. Returns its number.
    fn announce(&mut self, worker: usize, local: PortId, segment: Segment, mac: Option<Mac>) -> PortId {
        for member in &self.members {
            if let Some(Some(trunk)) = member.trunks.get(worker).copied() {
                member.thread.run(move |worker| worker.announce(trunk, segment, mac));
            }
        }
        let port = whole(worker, local);
        self.ports.insert(port, (segment, mac));
        port
    }

    /// Tells the other workers that a port is gone.
    fn retract(&mut self, port: PortId) {
        let Some((segment, mac)) = self.ports.remove(&port) else { return };
        let (worker, _) = parts(port);
        for member in &self.members {
            if let Some(Some(trunk)) = member.trunks.get(worker).copied() {
                member.thread.run(move |worker| worker.retract(trunk, segment, mac));
            }
        }
    }

    /// Starts a generated stream. Returns whether the worker concerned had none already.
    pub(super) fn start_stream(
        &self,
        stream: Stream,
        target: Target,
        done: Sender<(Report, Option<SinkCounters>)>,
    ) -> bool {
        let port = match target {
            Target::Guest(port) => port,
            Target::Sink => whole(0, PortId(0)),
        };
        let start = move |worker: &mut LinuxWorker, local| {
            let target = if target == Target::Sink { target } else { Target::Guest(local) };
            worker.start_stream(&stream, target, done)
        };
        self.at(port, start).unwrap_or_default()
    }

    /// Starts a capture of what passes a port. Returns the file's end; `None` if the port's worker has one already.
    pub(super) fn start_capture(&self, port: PortId, snap_bytes: usize) -> Option<Source> {
        self.at(port, move |worker, local| {
            let (ours, source) = capture(local, snap_bytes);
            worker.start_capture(ours).then_some(source)
        })?
    }

    /// Returns the names of those ports that are on the same worker as one, by their numbers there.
    pub(super) fn numbered_with(&self, port: PortId, names: Vec<(PortId, String)>) -> Vec<(PortId, String)> {
        let there = parts(port).0;
        let local = |(port, name)| (parts(port).0 == there).then(|| (parts(port).1, name));
        names.into_iter().filter_map(local).collect()
    }

    /// Returns what each worker did.
    pub(super) fn stats(&self) -> Vec<WorkerStats> {
        let one = |member: &Member| {
            let counted = member.thread.run(|worker| (worker.worker_counters(), worker.trunk_counters()));
            let (counters, trunks) = counted.unwrap_or_default();
            let (guests, uplinks) = (member.guests, member.uplinks);
            WorkerStats { cpu: member.cpu, guests, uplinks, counters, trunks }
        };
        self.members.iter().map(one).collect()
    }
}

impl DataPlane for DataThreads {
    fn connect(&mut self, segment: Segment, connection: Connection) -> Result<PortId, ConnectError> {
        let at = self.least(|member| member.guests);
        let mac = connection.mac;
        let connected = self.members[at].thread.run(move |worker| worker.connect(segment, &connection));
        let local = connected.unwrap_or(Err(ConnectError::NoRoom))?;
        self.members[at].guests += 1;
        Ok(self.announce(at, local, segment, Some(mac)))
    }
    fn disconnect(&mut self, port: PortId) -> Option<Counters> {
        let counters = self.at(port, |worker, local| worker.disconnect(local))??;
        let guests = &mut self.members[parts(port).0].guests;
        *guests = guests.saturating_sub(1);
        self.retract(port);
        Some(counters)
    }
    fn counters(&mut self, port: PortId) -> Option<Counters> {
        self.at(port, |worker, local| worker.counters(local))?
    }
    fn holds(&mut self, port: PortId) -> Option<HoldTimes> {
        self.at(port, |worker, local| worker.holds(local))?
    }
    fn add_uplink(&mut self, segment: Segment, link: Box<dyn Uplink>) -> Option<PortId> {
        let at = self.least(|member| member.uplinks);
        let local = self.members[at].thread.run(move |worker| worker.add_uplink(segment, link))??;
        self.members[at].uplinks += 1;
        Some(self.announce(at, local, segment, None))
    }
    fn remove_uplink(&mut self, port: PortId) {
        if self.at(port, |worker, local| worker.remove_uplink(local)).is_some() {
            let uplinks = &mut self.members[parts(port).0].uplinks;
            *uplinks = uplinks.saturating_sub(1);
        }
        self.retract(port);
    }
    fn uplink_counters(&mut self, port: PortId) -> Option<UplinkCounters> {
        self.at(port, |worker, local| worker.uplink_counters(local))?
    }
    fn take_faults(&mut self) -> Vec<(PortId, Fault)> {
        let mut all = Vec::new();
        for (number, member) in self.members.iter().enumerate() {
            let faults = member.thread.run(Worker::take_faults).unwrap_or_default();
            all.extend(faults.into_iter().map(|(local, fault)| (whole(number, local), fault)));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ports_number_says_whose_it_is() {
        for (worker, local) in [(0, 0), (0, 334), (1, 0), (15, 334), (15, 1023)] {
            assert_eq!(parts(whole(worker, PortId(local))), (worker, PortId(local)));
        }
    }

    #[test]
    fn mistakes_are_named() {
        let read = |text: &str| toml::from_str::<Workers>(text).map_err(|error| error.to_string());
        let good = read("threads = 2\npin = [0, 3]\nholdoff_us = 7").unwrap();
        assert_eq!((good.threads, &good.pin[..], good.settings.holdoff_us), (2, &[0, 3][..], 7));
        assert_eq!(read("").unwrap(), Workers::default());
        for (text, named) in [
            ("threads = 0", "threads is 0: it can be 1 to 16"),
            ("threads = 17", "threads is 17"),
            ("threads = \"many\"", "threads: invalid type"),
            ("threads = 2\npin = [1]", "pin names 1 processors for 2 threads"),
            ("pin = [-1]", "pin: invalid"),
            ("thread = 2", "unknown field `thread`"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(named), "{text:?}: {error}");
        }
    }
}
