//! What one vif did, counted: the evidence that aggregation works, and where packets were lost.

use serde::{Deserialize, Serialize};

use super::holds::Late;
use crate::policy::Reason;
use crate::xen::{By, CopyOp};

/// The counters of one vif. RX is what the guest receives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Towards the guest.
    pub rx: Direction,
    /// From the guest.
    pub tx: Direction,
    /// Why containers went out.
    pub flushes: Flushes,
    /// Packets that were not delivered, by reason.
    pub drops: Drops,
    /// Pages that the guest has mapped here.
    pub staging: Staging,
    /// Hypercalls made for this vif: groups of up to 16 grant copies, and events sent.
    pub hypercalls: u64,
    /// Events that the guest sent.
    pub events_in: u64,
    /// Events that it was sent.
    pub events_out: u64,
    /// Passes of the worker that had work for this vif.
    pub wakeups: u64,
    /// Multicast packets that the guest did not get because it had not asked for their group.
    pub filtered: u64,
    /// Requests, chains and containers of the guest's that were refused.
    pub guest_errors: u64,
    /// TCP super-frames that were cut into packets here, because the guest or its containers take none so large.
    #[serde(default)]
    pub segmented: u64,
    /// Blank checksums that were filled here, because the guest takes none.
    #[serde(default)]
    pub checksums_filled: u64,
    /// Longest time from a container's first packet to its hand-over, in nanoseconds.
    pub longest_hold_ns: u64,
    /// Containers that were handed over later than the policy allows.
    pub late: Late,
}

/// One direction of a vif.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Direction {
    /// Packets.
    pub packets: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Of the packets, TCP super-frames: cut later, elsewhere, or never.
    #[serde(default)]
    pub super_frames: u64,
    /// Containers.
    pub containers: u64,
    /// Ring slots used.
    pub slots: u64,
    /// Grant operations: each copies from or to one page of the guest's.
    pub grant_ops: u64,
    /// Bytes that they copied.
    pub copied_bytes: u64,
    /// Copies from or to one page of the guest's that is mapped: they cost no hypercall.
    pub mapped_ops: u64,
    /// Bytes that those copied.
    pub mapped_bytes: u64,
    /// Copies made by the processor from one place in this program's memory to another, one for each packet or container
    /// that was moved.
    pub copies: u64,
    /// Bytes that those copied.
    #[serde(default)]
    pub moved_bytes: u64,
}

/// What a guest asked for over its control ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staging {
    /// Pages that are mapped now.
    pub pages: u64,
    /// Requests.
    pub requests: u64,
    /// Requests that were not done.
    pub refused: u64,
}

/// Why containers went out, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flushes {
    /// See [`Reason::Full`].
    pub full: u64,
    /// See [`Reason::Target`].
    pub target: u64,
    /// See [`Reason::Class`].
    pub class: u64,
    /// See [`Reason::Idle`].
    pub idle: u64,
    /// See [`Reason::Deadline`].
    pub deadline: u64,
    /// See [`Reason::Whole`].
    #[serde(default)]
    pub whole: u64,
    /// See [`Reason::RingEnd`].
    pub ring_end: u64,
}

impl Flushes {
    /// Counts a container.
    pub fn count(&mut self, reason: Reason) {
        *match reason {
            Reason::Full => &mut self.full,
            Reason::Target => &mut self.target,
            Reason::Class => &mut self.class,
            Reason::Idle => &mut self.idle,
            Reason::Deadline => &mut self.deadline,
            Reason::Whole => &mut self.whole,
            Reason::RingEnd => &mut self.ring_end,
        } += 1;
    }
}

impl Direction {
    /// Counts a copy from one place in this program's memory to another.
    #[inline]
    pub(crate) fn moved(&mut self, bytes: usize) {
        self.copies += 1;
        self.moved_bytes += bytes as u64;
    }

    /// Counts the copies of a chain that were made, and returns how many of them were grant operations.
    pub(crate) fn count_copies(&mut self, done: &[CopyOp]) -> usize {
        let mut granted = 0;
        for op in done {
            match op.by {
                By::Grant => {
                    granted += 1;
                    self.copied_bytes += u64::from(op.len);
                }
                By::Mapping => {
                    self.mapped_ops += 1;
                    self.mapped_bytes += u64::from(op.len);
                }
            }
        }
        self.grant_ops += granted as u64;
        granted
    }
}

/// Packets that were not delivered, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drops {
    /// To the guest: it does not read, and its queue is full.
    pub queue_full: u64,
    /// To the guest: it would have been held for longer than the bound on delay.
    pub too_late: u64,
    /// To the guest: larger than what it takes.
    pub too_large: u64,
    /// To the guest: it gave a page that cannot be written.
    pub bad_buffer: u64,
    /// To the guest: a super-frame that cannot be segmented.
    pub not_segmentable: u64,
    /// From the guest: the frame or its slots make no sense, or are not what the guest says of them.
    pub malformed: u64,
    /// From the guest: it gave a page that cannot be read.
    pub unreadable: u64,
    /// From the guest: nobody is there to take it.
    pub no_destination: u64,
    /// From the guest: another address than its own, to which it is held.
    pub wrong_source: u64,
    /// From the guest: to another guest that is isolated as it is.
    pub isolated: u64,
}

impl Drops {
    /// Returns their sum.
    pub fn total(&self) -> u64 {
        self.queue_full
            + self.too_late
            + self.too_large
            + self.bad_buffer
            + self.not_segmentable
            + self.malformed
            + self.unreadable
            + self.no_destination
            + self.wrong_source
            + self.isolated
    }
}

/// Returns how many hypercalls the operations `range` of a batch take part in.
pub fn hypercalls(range: &std::ops::Range<usize>) -> u64 {
    if range.is_empty() {
        return 0;
    }
    let group = |op: usize| op as u64 / crate::xen::COPIES_PER_HYPERCALL;
    group(range.end - 1) - group(range.start) + 1
}
