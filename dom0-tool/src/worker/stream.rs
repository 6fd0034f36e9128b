//! The generator's place in a pass: it writes straight into the open container of a guest, or of a sink, for as
//! long as there is room.
//!
//! It knows a guest's queue, and neither rings nor grants.

use std::sync::mpsc::Sender;

use drayage_wire::container::Meta;

use super::Worker;
use crate::aggregate::REGION_BYTES;
use crate::clock::Clock;
use crate::fabric::{Kind, Port, region_start};
use crate::port::generator::{Generator, Report, Stream};
use crate::port::sink::{Sink, SinkCounters};
use crate::switch::PortId;
use crate::vif::rx::Wish;
use crate::xen::Xen;

/// Frames that the generator writes in one pass.
const GENERATED: u64 = 4096;

/// Where a generated stream goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// To a guest.
    Guest(PortId),
    /// Nowhere.
    Sink,
}

/// A stream under way.
pub(super) struct Running {
    generator: Generator,
    pub(super) target: Target,
    sink: Option<Sink>,
    done: Sender<(Report, Option<SinkCounters>)>,
}

impl<X: Xen, C: Clock> Worker<X, C> {
    /// Starts a generated stream. `done` gets its report. Returns whether there was none already.
    pub fn start_stream(
        &mut self,
        stream: &Stream,
        target: Target,
        done: Sender<(Report, Option<SinkCounters>)>,
    ) -> bool {
        if self.stream.is_some() {
            return false;
        }
        let sink = (target == Target::Sink).then(Sink::new);
        self.stream = Some(Running { generator: Generator::new(stream), target, sink, done });
        true
    }

    pub(super) fn end_stream(&mut self, cut_short: bool) {
        if let Some(running) = self.stream.take() {
            let report = Report { cut_short, ..running.generator.report };
            // Nobody is left to be told if the asker went away.
            let _ = running.done.send((report, running.sink.map(|s| s.counters)));
        }
    }

    /// Lets the generator write while there is room.
    pub(super) fn generate(&mut self, now_ns: u64) -> Wish {
        let Some(running) = &mut self.stream else { return Wish::Event };
        let due = running.generator.due(now_ns).min(GENERATED);
        let len = running.generator.frame_bytes();
        let mut wish = Wish::Now;
        match (running.target, &mut running.sink) {
            (Target::Guest(id), _) => {
                let vif = match self.fabric.ports.get_mut(usize::from(id.0)) {
                    Some(Some(Port { kind: Kind::Guest { vif, region }, .. })) if vif.fault.is_none() => {
                        Some((vif, *region))
                    }
                    _ => None,
                };
                let Some((vif, region)) = vif else {
                    self.end_stream(true);
                    return Wish::Event;
                };
                let start = region_start(region);
                let memory = &mut self.fabric.regions.bytes_mut()[start..start + REGION_BYTES];
                let generator = &mut running.generator;
                for _ in 0..due {
                    if !vif.rx.has_room_for(len) {
                        // The guest's next event is what the stream waits for.
                        generator.report.stalls += 1;
                        wish = Wish::Event;
                        break;
                    }
                    let counters = &mut vif.counters;
                    let pushed = vif.rx.push_with(memory, now_ns, len, Meta::default(), counters, |out| {
                        generator.write(out);
                    });
                    if pushed.is_err() {
                        self.end_stream(true);
                        return Wish::Event;
                    }
                    generator.advance(now_ns);
                }
            }
            (Target::Sink, Some(sink)) => {
                for _ in 0..due {
                    let generator = &running.generator;
                    sink.push_with(now_ns, len, |out| generator.write(out));
                    running.generator.advance(now_ns);
                }
            }
            (Target::Sink, None) => {}
        }
        if running.generator.is_done() {
            self.end_stream(false);
            return Wish::Event;
        }
        match running.generator.next_due_ns() {
            Some(next_ns) if wish == Wish::Now => Wish::At(next_ns),
            _ => wish,
        }
    }

    /// Returns whether there is a stream that waited for room, and now has some.
    pub(super) fn stream_has_room(&self) -> bool {
        let Some(Running { target: Target::Guest(id), generator, .. }) = &self.stream else { return false };
        match self.fabric.ports.get(usize::from(id.0)) {
            Some(Some(Port { kind: Kind::Guest { vif, .. }, .. })) => {
                vif.fault.is_some() || vif.rx.has_room_for(generator.frame_bytes())
            }
            _ => true,
        }
    }
}
