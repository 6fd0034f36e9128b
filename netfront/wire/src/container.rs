//! The container: many packets in one byte range. `SPEC.md` beside this crate is normative.
//!
//! A header of 16 bytes, a table of 8 bytes for each packet, then the packets at strictly increasing
//! offsets. [`Writer`] fills one in place, without moving a packet; [`Manifest`] copies header and table
//! into private memory and judges the copy. Neither knows how a container travels, and neither allocates.

use crate::netif::{GSO_TCPV4, GSO_TCPV6};

/// The version of the format, and of the protocol that carries it.
pub const VERSION: u8 = 1;
/// Bytes of the header.
pub const HEADER_BYTES: usize = 16;
/// Bytes of a descriptor.
pub const DESCRIPTOR_BYTES: usize = 8;
/// The most packets in one container.
pub const MAX_PACKETS: usize = 1024;
/// The largest container on RX: 16 ring slots of a page each.
pub const MAX_RX_BYTES: usize = 65_536;
/// The largest container on TX: a TX request carries the total in 16 bits.
pub const MAX_TX_BYTES: usize = 65_535;
/// The smallest container size that may be negotiated: one page.
pub const MIN_SIZE_BYTES: usize = 4096;
/// The shortest packet: an Ethernet header.
pub const MIN_PACKET_BYTES: usize = 14;

/// What travels beside a packet: checksum and segmentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Meta {
    /// The state of the protocol checksum.
    pub checksum: Checksum,
    /// The segmentation that the packet still needs.
    pub gso: Option<Gso>,
}

/// The state of a packet's TCP or UDP checksum, as netif's two flags give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Checksum {
    /// The field is filled, and nobody has looked at it: the receiver verifies it.
    #[default]
    Unverified,
    /// The field is filled, and the sender vouches for it.
    Valid,
    /// The field holds only the pseudo-header's sum; the data never left memory.
    Blank,
}

/// A super-frame's segmentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// Which protocol is to be segmented.
    pub kind: GsoKind,
    /// Payload bytes of each segment, at least 1.
    pub size: u16,
}

/// The protocols that can be segmented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
}

impl GsoKind {
    /// Returns the kind that netif's number names.
    pub const fn from_netif(gso_type: u8) -> Option<Self> {
        match gso_type {
            GSO_TCPV4 => Some(Self::TcpV4),
            GSO_TCPV6 => Some(Self::TcpV6),
            _ => None,
        }
    }

    /// Returns netif's number.
    pub const fn to_netif(self) -> u8 {
        match self {
            Self::TcpV4 => GSO_TCPV4,
            Self::TcpV6 => GSO_TCPV6,
        }
    }
}

const FLAG_BLANK: u8 = 1 << 0;
const FLAG_VALIDATED: u8 = 1 << 1;

impl Meta {
    #[inline]
    fn to_bytes(self) -> [u8; 4] {
        let flags = match self.checksum {
            Checksum::Unverified => 0,
            Checksum::Valid => FLAG_VALIDATED,
            Checksum::Blank => FLAG_BLANK | FLAG_VALIDATED,
        };
        match self.gso {
            None => [flags, 0, 0, 0],
            Some(gso) => {
                let size = gso.size.to_le_bytes();
                [flags, gso.kind.to_netif(), size[0], size[1]]
            }
        }
    }

    #[inline]
    fn from_bytes(bytes: [u8; 4]) -> Option<Self> {
        let checksum = match bytes[0] {
            0 => Checksum::Unverified,
            FLAG_VALIDATED => Checksum::Valid,
            b if b == FLAG_BLANK | FLAG_VALIDATED => Checksum::Blank,
            _ => return None,
        };
        let size = u16::from_le_bytes([bytes[2], bytes[3]]);
        let gso = match (bytes[1], size) {
            (0, 0) => None,
            (_, 0) => return None,
            (gso_type, size) => Some(Gso { kind: GsoKind::from_netif(gso_type)?, size }),
        };
        Some(Self { checksum, gso })
    }
}

/// The first 16 bytes of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Header {
    /// Packets in the container, 1 to [`MAX_PACKETS`].
    pub count: u16,
    /// Bytes of the whole container.
    pub total_bytes: u32,
    /// Counts the containers of this direction from 0, wrapping.
    pub sequence: u32,
    /// How long the container was held open by its writer's clock, in nanoseconds, saturating.
    pub hold_ns: u32,
}

impl Header {
    fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[0] = VERSION;
        out[2..4].copy_from_slice(&self.count.to_le_bytes());
        out[4..8].copy_from_slice(&self.total_bytes.to_le_bytes());
        out[8..12].copy_from_slice(&self.sequence.to_le_bytes());
        out[12..16].copy_from_slice(&self.hold_ns.to_le_bytes());
        out
    }
}

/// One packet of a validated container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Packet {
    /// Where the packet starts in the container, in bytes.
    pub offset: u16,
    /// The packet's length, in bytes.
    pub len: u16,
    /// What travels beside it.
    pub meta: Meta,
}

impl Packet {
    /// Returns the packet's byte range in the container.
    #[inline]
    pub fn range(&self) -> core::ops::Range<usize> {
        let start = usize::from(self.offset);
        start..start + usize::from(self.len)
    }
}

/// Why a container is refused. All of it is: a writer that got this wrong cannot be trusted with the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// Shorter than its header, or than header and table.
    Truncated,
    /// The version is not [`VERSION`], or the reserved byte is not zero.
    Version,
    /// The count is zero, or above [`MAX_PACKETS`].
    Count,
    /// The total is not the number of bytes that arrived.
    Total,
    /// A packet's flags, GSO type or GSO size are not among those defined.
    Flags {
        /// The packet.
        packet: u16,
    },
    /// A packet starts inside the table or its predecessor, or misaligned.
    Offset {
        /// The packet.
        packet: u16,
    },
    /// A packet is shorter than an Ethernet header, or ends beyond the container.
    Length {
        /// The packet.
        packet: u16,
    },
}

impl core::fmt::Display for Reject {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Truncated => write!(f, "container shorter than its header and table"),
            Self::Version => write!(f, "container of an unknown version"),
            Self::Count => write!(f, "container with no packet or with more than {MAX_PACKETS}"),
            Self::Total => write!(f, "container total differs from the bytes received"),
            Self::Flags { packet } => write!(f, "container packet {packet} has undefined flags"),
            Self::Offset { packet } => write!(f, "container packet {packet} overlaps or is misaligned"),
            Self::Length { packet } => write!(f, "container packet {packet} has an impossible length"),
        }
    }
}

impl core::error::Error for Reject {}

/// Header and table of one container, in private memory.
///
/// About 10 KiB: made once for each queue, and read into again and again.
#[derive(Debug)]
pub struct Manifest {
    header: Header,
    packets: [Packet; MAX_PACKETS],
}

impl Manifest {
    /// Returns a manifest with no packets.
    pub const fn new() -> Self {
        const NONE: Packet =
            Packet { offset: 0, len: 0, meta: Meta { checksum: Checksum::Unverified, gso: None } };
        Self {
            header: Header { count: 0, total_bytes: 0, sequence: 0, hold_ns: 0 },
            packets: [NONE; MAX_PACKETS],
        }
    }

    /// Copies header and table of `container` and validates the copy. Afterwards every
    /// [`packet`](Self::packets)'s range lies inside `container`, whatever it held.
    ///
    /// # Errors
    /// [`Reject`]; the manifest is then empty.
    pub fn read(&mut self, container: &[u8]) -> Result<Header, Reject> {
        self.header = Header::default();
        let (head, rest) = container.split_first_chunk::<HEADER_BYTES>().ok_or(Reject::Truncated)?;
        let head = *head;
        if head[0] != VERSION || head[1] != 0 {
            return Err(Reject::Version);
        }
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let count = u16::from_le_bytes([head[2], head[3]]);
        let header = Header { count, total_bytes: word(4), sequence: word(8), hold_ns: word(12) };
        if count == 0 || usize::from(count) > MAX_PACKETS {
            return Err(Reject::Count);
        }
        if header.total_bytes as usize != container.len() || container.len() > MAX_RX_BYTES {
            return Err(Reject::Total);
        }
        let table = rest.get(..usize::from(count) * DESCRIPTOR_BYTES).ok_or(Reject::Truncated)?;
        let mut floor = HEADER_BYTES + table.len();
        let (descriptors, _) = table.as_chunks::<DESCRIPTOR_BYTES>();
        for (packet, (raw, slot)) in (0..count).zip(descriptors.iter().zip(&mut self.packets)) {
            let [o0, o1, l0, l1, meta @ ..] = *raw;
            let (offset, len) = (u16::from_le_bytes([o0, o1]), u16::from_le_bytes([l0, l1]));
            let start = usize::from(offset);
            let end = start + usize::from(len);
            if start < floor || start % 4 != 2 {
                return Err(Reject::Offset { packet });
            }
            if usize::from(len) < MIN_PACKET_BYTES || end > container.len() {
                return Err(Reject::Length { packet });
            }
            let meta = Meta::from_bytes(meta).ok_or(Reject::Flags { packet })?;
            *slot = Packet { offset, len, meta };
            floor = end;
        }
        self.header = header;
        Ok(header)
    }

    /// Returns the header of the container read last.
    pub fn header(&self) -> Header {
        self.header
    }

    /// Returns the packets of the container read last, none after a [`Reject`].
    #[inline]
    pub fn packets(&self) -> &[Packet] {
        &self.packets[..usize::from(self.header.count)]
    }
}

impl Default for Manifest {
    fn default() -> Self {
        Self::new()
    }
}

/// The packet does not fit: the container is to be finished first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Returns the first offset at or after `end` that puts an IP header on a 4-byte boundary.
#[inline]
pub const fn aligned(end: usize) -> usize {
    ((end + 1) & !3) + 2
}

/// The state of a container that is being filled. The bytes are the caller's, who passes the same buffer to
/// every call; they are only written, never read back.
#[derive(Clone, Copy, Debug)]
pub struct Writer {
    size: usize,
    table_capacity: u16,
    count: u16,
    end: usize,
}

impl Writer {
    /// Opens a container of at most `size` bytes whose table has room for `table_capacity` packets. Room
    /// that stays unused becomes a gap before the first packet.
    ///
    /// `size` is capped at [`MAX_RX_BYTES`], the table at [`MAX_PACKETS`] and at what fits in `size`.
    pub fn new(size: usize, table_capacity: usize) -> Self {
        let size = size.min(MAX_RX_BYTES);
        let room = size.saturating_sub(HEADER_BYTES + 2) / (DESCRIPTOR_BYTES + MIN_PACKET_BYTES);
        let table_capacity = table_capacity.clamp(1, room.clamp(1, MAX_PACKETS)) as u16;
        let end = HEADER_BYTES + DESCRIPTOR_BYTES * usize::from(table_capacity);
        Self { size, table_capacity, count: 0, end }
    }

    /// Opens a container whose table is sized for packets of `mean_bytes`.
    pub fn for_mean(size: usize, mean_bytes: usize) -> Self {
        let size = size.min(MAX_RX_BYTES);
        let each = mean_bytes.max(MIN_PACKET_BYTES).next_multiple_of(4) + DESCRIPTOR_BYTES;
        Self::new(size, size.saturating_sub(HEADER_BYTES + 2).div_ceil(each))
    }

    /// Returns how many packets are inside.
    #[inline]
    pub fn count(&self) -> usize {
        usize::from(self.count)
    }

    /// Returns whether nothing is inside.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Returns how many bytes the container has if it is finished now.
    #[inline]
    pub fn total_bytes(&self) -> usize {
        self.end
    }

    /// Returns where the next packet will start.
    #[inline]
    pub fn next_offset(&self) -> usize {
        aligned(self.end)
    }

    /// Returns whether a packet of `len` bytes still fits.
    #[inline]
    pub fn fits(&self, len: usize) -> bool {
        self.count < self.table_capacity && aligned(self.end) + len <= self.size
    }

    /// Returns whether a packet of `len` bytes fits into an empty container of `size` bytes.
    pub fn could_ever_fit(size: usize, len: usize) -> bool {
        Self::new(size, 1).fits(len)
    }

    /// Appends a packet of `len` bytes that `fill` writes in place.
    ///
    /// # Errors
    /// [`Full`] when it does not fit, or when `buffer` is shorter than the container's size promised, or
    /// `len` is no length of a packet; `fill` has then not run.
    #[inline]
    pub fn push_with<R>(
        &mut self,
        buffer: &mut [u8],
        len: usize,
        meta: Meta,
        fill: impl FnOnce(&mut [u8]) -> R,
    ) -> Result<R, Full> {
        self.push_described(buffer, len, |packet| (fill(packet), meta))
    }

    /// As [`push_with`](Self::push_with), for a writer that learns what travels beside the packet while writing it.
    ///
    /// # Errors
    /// As there.
    #[inline]
    pub fn push_described<R>(
        &mut self,
        buffer: &mut [u8],
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> (R, Meta),
    ) -> Result<R, Full> {
        let start = aligned(self.end);
        if !self.fits(len) || len < MIN_PACKET_BYTES {
            return Err(Full);
        }
        let slot = HEADER_BYTES + DESCRIPTOR_BYTES * self.count();
        // The table lies in front of all packets, so this bounds both.
        let (table, packets) = buffer.split_at_mut_checked(start).ok_or(Full)?;
        let packet = packets.get_mut(..len).ok_or(Full)?;
        let descriptor = table.get_mut(slot..slot + DESCRIPTOR_BYTES).ok_or(Full)?;
        let (result, meta) = fill(packet);
        let [m0, m1, m2, m3] = meta.to_bytes();
        let [s0, s1] = (start as u16).to_le_bytes();
        let [l0, l1] = (len as u16).to_le_bytes();
        descriptor.copy_from_slice(&[s0, s1, l0, l1, m0, m1, m2, m3]);
        self.count += 1;
        self.end = start + len;
        Ok(result)
    }

    /// Writes the header and returns the container's length in bytes. The writer is then empty, for the next
    /// container of the same shape.
    pub fn finish(&mut self, buffer: &mut [u8], sequence: u32, hold_ns: u32) -> usize {
        let total = self.end;
        let header = Header { count: self.count, total_bytes: total as u32, sequence, hold_ns };
        buffer[..HEADER_BYTES].copy_from_slice(&header.to_bytes());
        *self = Self::new(self.size, usize::from(self.table_capacity));
        total
    }
}

/// Makes a container of one writer one of another writer's: bytes that belong to no header, descriptor or packet are
/// cleared (whoever wrote it may have left there what the next reader is not to know, XSA-403), and the header is written
/// anew. `packets` are those that a [`Manifest`] found in it. Returns its length in bytes: it ends with its last packet.
pub fn readdress(container: &mut [u8], packets: &[Packet], sequence: u32, hold_ns: u32) -> usize {
    let mut end = HEADER_BYTES + DESCRIPTOR_BYTES * packets.len();
    for packet in packets {
        let range = packet.range();
        if end < range.start {
            container[end..range.start].fill(0);
        }
        end = range.end;
    }
    let count = packets.len() as u16;
    let header = Header { count, total_bytes: end as u32, sequence, hold_ns };
    container[..HEADER_BYTES].copy_from_slice(&header.to_bytes());
    end
}

#[cfg(test)]
mod tests;
