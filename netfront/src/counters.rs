//! What a vif counts. Nothing on the data path is logged; everything that is lost is counted here.

use drayage_wire::container::Reject;

/// Counts since the vif appeared, over all its connections. RX is what the guest receives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// What was received.
    pub rx: RxCounters,
    /// What was sent.
    pub tx: TxCounters,
    /// Times that the vif got connected.
    pub connects: u64,
    /// Events received: pending bits that were found set.
    pub events: u64,
}

/// Counts of reception.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RxCounters {
    /// Packets handed to the stack.
    pub packets: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// Those of the packets that are UDP datagrams: what exceeds the applications' own counts was dropped by
    /// the stack or by a full socket.
    pub udp_packets: u64,
    /// Of the packets, TCP super-frames.
    pub super_frames: u64,
    /// Containers accepted.
    pub containers: u64,
    /// Packets in accepted containers, dropped ones included.
    pub container_packets: u64,
    /// Accepted containers by size: `[n]` counts those with 2^n to 2^(n+1) - 1 packets.
    pub container_sizes: [u64; 11],
    /// How long accepted containers say that they were held open, summed, in nanoseconds.
    pub hold_ns: u64,
    /// Times that a container's sequence number was not its predecessor's plus one.
    pub sequence_gaps: u64,
    /// Ring slots taken.
    pub slots: u64,
    /// Pages revoked.
    pub revokes: u64,
    /// Pages that were read without a revoke, because the backend keeps them mapped.
    pub unrevoked: u64,
    /// Containers and frames that were copied into private memory before they were looked at, because the
    /// backend keeps their pages mapped and is not trusted.
    pub private_copies: u64,
    /// Pages granted again.
    pub regrants: u64,
    /// Frames that were copied because they did not lie in one piece.
    pub linearised: u64,
    /// Events sent because of posted buffers.
    pub notifications: u64,
    /// What was dropped.
    pub dropped: RxDrops,
}

/// Why received data was dropped. A chain is a frame, or a container of which nothing is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RxDrops {
    /// Slots that the backend gave back empty (status -2 outside of a chain); nothing was lost.
    pub empty_slots: u64,
    /// Chains with a negative status.
    pub backend_error: u64,
    /// Chains with a response that does not name its slot.
    pub bad_id: u64,
    /// Chains with a slot of length zero, beyond its page, or that does not fill its page in a container.
    pub bad_length: u64,
    /// Chains with more slots or extra segments than are legal.
    pub too_long: u64,
    /// Frames shorter than an Ethernet header.
    pub runt: u64,
    /// Chains with extra segments where none may be.
    pub bad_extra: u64,
    /// Chains of a container that go from the last slot to the first, though that was not agreed.
    pub bad_wrap: u64,
    /// Packets whose TCP or UDP checksum was to be verified, and is wrong.
    pub bad_checksum: u64,
    /// Containers rejected.
    pub containers: ContainerRejects,
}

/// Why containers were rejected, by [`Reject`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContainerRejects {
    /// Shorter than header and table.
    pub truncated: u64,
    /// Unknown version.
    pub version: u64,
    /// No or too many packets.
    pub count: u64,
    /// Total differs from the bytes received.
    pub total: u64,
    /// Undefined flags.
    pub flags: u64,
    /// Overlapping or misaligned packet.
    pub offset: u64,
    /// Impossible length of a packet.
    pub length: u64,
}

impl ContainerRejects {
    /// Counts a rejected container.
    pub(crate) fn add(&mut self, reason: Reject) {
        *match reason {
            Reject::Truncated => &mut self.truncated,
            Reject::Version => &mut self.version,
            Reject::Count => &mut self.count,
            Reject::Total => &mut self.total,
            Reject::Flags { .. } => &mut self.flags,
            Reject::Offset { .. } => &mut self.offset,
            Reject::Length { .. } => &mut self.length,
        } += 1;
    }

    /// Returns how many containers were rejected.
    pub fn total(&self) -> u64 {
        self.truncated + self.version + self.count + self.total + self.flags + self.offset + self.length
    }
}

impl RxDrops {
    /// Returns how many packets and chains were dropped, whatever the reason.
    pub fn total(&self) -> u64 {
        self.backend_error
            + self.bad_id
            + self.bad_length
            + self.too_long
            + self.runt
            + self.bad_extra
            + self.bad_wrap
            + self.bad_checksum
            + self.containers.total()
    }
}

/// Counts of sending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TxCounters {
    /// Packets taken from the stack and given to the backend.
    pub packets: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// Containers sent.
    pub containers: u64,
    /// Ring slots used.
    pub slots: u64,
    /// Packets sent with a blank checksum.
    pub blank_checksums: u64,
    /// Of the packets, TCP super-frames: their segments are cut by the backend, or by nobody.
    pub super_frames: u64,
    /// Events sent.
    pub notifications: u64,
    /// Answers of the kind dropped or error.
    pub errors: u64,
    /// Answers that name no request in flight.
    pub bad_responses: u64,
    /// Times that the stack was refused because the ring was full; it keeps what it wanted to send.
    pub refused: u64,
    /// Replies that the stack gave up because the ring was full to the last slot.
    pub dropped_full: u64,
    /// Frames that are too long for this backend.
    pub dropped_long: u64,
}
