//! Containers on their way to the backend: one is open at a time, in the pages behind the last request's.
//!
//! It knows how a container is filled and how large its table should be, and leaves requests to the queue.

use drayage_wire::PAGE_SIZE;
use drayage_wire::container::{Checksum, DESCRIPTOR_BYTES, Gso, HEADER_BYTES, Meta, Writer};

use super::TxQueue;
use crate::counters::TxCounters;
use crate::platform::Platform;

/// Bytes of a container in front of its first packet, where its table has room for that one alone.
pub(super) const FRONT_BYTES: usize = HEADER_BYTES + DESCRIPTOR_BYTES + 2;
/// The smallest descriptor table of a container: what a guest that says little needs.
const FEWEST_DESCRIPTORS: usize = 8;

/// A container that is being filled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Open {
    pub(super) writer: Writer,
    first: usize,
    size: usize,
    opened_ns: u64,
}

impl<P: Platform> TxQueue<P> {
    /// Adds a frame to the open container, or to a new one where it does not fit. Gives `write` back, unused, where there is
    /// no room.
    pub(super) fn pack_frame<R, F: FnOnce(&mut [u8]) -> (R, Checksum)>(
        &mut self,
        len: usize,
        gso: Option<Gso>,
        max_bytes: usize,
        counters: &mut TxCounters,
        write: F,
    ) -> Result<R, F> {
        if self.open.as_ref().is_some_and(|open| !open.writer.fits(len)) {
            self.close_container(counters);
        }
        if self.open.is_none() {
            self.open = self.open_container(len, max_bytes, counters);
        }
        let Some(open) = &mut self.open else { return Err(write) };
        let (mut write, mut checksum) = (Some(write), Checksum::Unverified);
        let pushed = self.pool.bytes_mut(open.first, open.size).and_then(|buffer| {
            let fill = |frame: &mut [u8]| {
                let Some((result, found)) = write.take().map(|write| write(frame)) else {
                    return (None, Meta::default());
                };
                checksum = found;
                (Some(result), Meta { checksum, gso })
            };
            open.writer.push_described(buffer, len, fill).ok().flatten()
        });
        match (pushed, write) {
            (Some(result), _) => {
                counters.blank_checksums += u64::from(checksum == Checksum::Blank);
                Ok(result)
            }
            (None, Some(write)) => {
                if open.writer.is_empty() {
                    self.open = None;
                }
                Err(write)
            }
            (None, None) => unreachable!("`write` is taken where its result is kept"),
        }
    }

    fn open_container(&mut self, len: usize, max_bytes: usize, counters: &mut TxCounters) -> Option<Open> {
        let least = (len + FRONT_BYTES).div_ceil(PAGE_SIZE);
        self.make_room(least, least, counters);
        let pages = self.room(max_bytes.div_ceil(PAGE_SIZE));
        let size = max_bytes.min(pages * PAGE_SIZE);
        // Twice what the rounds before had: a guest that says little sends no empty table, and one that says
        // more and more soon has a table for all of it.
        let (packets, bytes) = self.round[0].max(self.round[1]);
        let each = bytes.checked_div(packets).unwrap_or(len).next_multiple_of(4) + DESCRIPTOR_BYTES;
        let writer = Writer::new(size, (size / each).min((2 * packets).max(FEWEST_DESCRIPTORS)));
        let writer = if writer.fits(len) { writer } else { Writer::new(size, 1) };
        if !writer.fits(len) {
            return None;
        }
        let first = self.ring.get().next_request().slot();
        Some(Open { writer, first, size, opened_ns: self.platform.now_ns() })
    }

    /// Hands the open container over, if there is one.
    pub(super) fn close_container(&mut self, counters: &mut TxCounters) {
        let Some(mut open) = self.open.take() else { return };
        let Some(buffer) = self.pool.bytes_mut(open.first, open.size) else { return };
        let hold_ns = self.platform.now_ns().saturating_sub(open.opened_ns);
        let total = open.writer.finish(buffer, self.sequence, hold_ns.try_into().unwrap_or(u32::MAX));
        self.sequence = self.sequence.wrapping_add(1);
        counters.containers += 1;
        self.push_chain(total, 0, None, counters);
        self.notify |= self.ring.get().publish();
    }
}
