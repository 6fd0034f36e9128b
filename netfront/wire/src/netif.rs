//! The messages of the netif rings, as `xen/include/public/io/netif.h` defines them.
//!
//! Each message has one shape here: a plain struct, and its packing into the 32-bit words of a ring slot.
//! Nothing is validated: a field holds what the peer wrote, and whoever acts on it judges it first.

use crate::ring::{RingKind, Slot, Words};

/// Slots in a one-page ring: both kinds round down to 256 (`__RING_SIZE` in `ring.h`).
pub const RING_SLOTS: u32 = 256;

/// The most slots of one plain frame that a frontend may send: `XEN_NETIF_NR_SLOTS_MIN`.
pub const MAX_TX_SLOTS: usize = 18;

/// The longest frame that a TX request can name: its total is carried in 16 bits.
pub const MAX_TX_BYTES: usize = 65_535;

/// Flags of a TX request (`XEN_NETTXF_*`).
pub mod tx_flags {
    /// The protocol checksum field holds only the pseudo-header's sum.
    pub const CSUM_BLANK: u16 = 1 << 0;
    /// The packet's data was validated by its sender, or never left memory.
    pub const DATA_VALIDATED: u16 = 1 << 1;
    /// The packet goes on in the next slot.
    pub const MORE_DATA: u16 = 1 << 2;
    /// An extra info segment follows this slot.
    pub const EXTRA_INFO: u16 = 1 << 3;
}

/// Flags of an RX response (`XEN_NETRXF_*`); they are numbered otherwise than those of TX.
pub mod rx_flags {
    /// The packet's data was validated by its sender, or never left memory.
    pub const DATA_VALIDATED: u16 = 1 << 0;
    /// The protocol checksum field holds only the pseudo-header's sum.
    pub const CSUM_BLANK: u16 = 1 << 1;
    /// The packet goes on in the next slot.
    pub const MORE_DATA: u16 = 1 << 2;
    /// An extra info segment follows this slot.
    pub const EXTRA_INFO: u16 = 1 << 3;
    /// A GSO prefix segment (never negotiated by us).
    pub const GSO_PREFIX: u16 = 1 << 4;
}

/// Status of a response (`XEN_NETIF_RSP_*`). An RX status of zero or more is a length in bytes.
pub mod status {
    /// The packet was dropped by the backend.
    pub const DROPPED: i16 = -2;
    /// The request was wrong.
    pub const ERROR: i16 = -1;
    /// The packet was sent.
    pub const OKAY: i16 = 0;
    /// The slot held an extra info segment: there is nothing to answer.
    pub const NULL: i16 = 1;
}

/// A page of a frame that the guest sends (`struct netif_tx_request`, 12 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TxRequest {
    /// The page.
    pub gref: u32,
    /// Where in the page the data starts, in bytes.
    pub offset: u16,
    /// [`tx_flags`].
    pub flags: u16,
    /// Echoed in the response.
    pub id: u16,
    /// In a frame's first slot the length of the whole frame, in the others that of the slot.
    pub size: u16,
}

/// The answer to a [`TxRequest`] (`struct netif_tx_response`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TxResponse {
    /// The request's.
    pub id: u16,
    /// [`status`].
    pub status: i16,
}

/// A page that the guest offers for reception (`struct netif_rx_request`, 8 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct RxRequest {
    /// Echoed in the response.
    pub id: u16,
    /// The page.
    pub gref: u32,
}

/// A page of a frame or container that the guest receives (`struct netif_rx_response`, 8 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct RxResponse {
    /// The request's.
    pub id: u16,
    /// Where in the page the data starts, in bytes.
    pub offset: u16,
    /// [`rx_flags`].
    pub flags: u16,
    /// The length in bytes, or a negative [`status`].
    pub status: i16,
}

/// An extra info segment (`struct netif_extra_info`, 8 bytes), in place of a request (TX) or response (RX).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtraInfo {
    /// What the segment says.
    pub kind: ExtraKind,
    /// Another extra segment follows (`XEN_NETIF_EXTRA_FLAG_MORE`).
    pub more: bool,
}

/// The kinds of extra info that Drayage reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtraKind {
    /// The frame is to be segmented (`XEN_NETIF_EXTRA_TYPE_GSO`).
    Gso {
        /// Payload bytes of each segment.
        size: u16,
        /// 1 for TCP over IPv4, 2 for TCP over IPv6 (`XEN_NETIF_GSO_TYPE_*`), others as written.
        gso_type: u8,
    },
    /// Join a multicast group (`XEN_NETIF_EXTRA_TYPE_MCAST_ADD`).
    McastAdd([u8; 6]),
    /// Leave a multicast group (`XEN_NETIF_EXTRA_TYPE_MCAST_DEL`).
    McastDel([u8; 6]),
    /// Any other type, as written.
    Other(u8),
}

/// `XEN_NETIF_GSO_TYPE_TCPV4`.
pub const GSO_TCPV4: u8 = 1;
/// `XEN_NETIF_GSO_TYPE_TCPV6`.
pub const GSO_TCPV6: u8 = 2;

const fn pack(low: u16, high: u16) -> u32 {
    low as u32 | (high as u32) << 16
}

const fn low(word: u32) -> u16 {
    word as u16
}

const fn high(word: u32) -> u16 {
    (word >> 16) as u16
}

impl Slot for TxRequest {
    fn to_words(self) -> Words {
        [self.gref, pack(self.offset, self.flags), pack(self.id, self.size), 0]
    }
    fn from_words(w: Words) -> Self {
        Self { gref: w[0], offset: low(w[1]), flags: high(w[1]), id: low(w[2]), size: high(w[2]) }
    }
}

impl Slot for TxResponse {
    fn to_words(self) -> Words {
        [pack(self.id, self.status as u16), 0, 0, 0]
    }
    fn from_words(w: Words) -> Self {
        Self { id: low(w[0]), status: high(w[0]) as i16 }
    }
}

impl Slot for RxRequest {
    fn to_words(self) -> Words {
        [pack(self.id, 0), self.gref, 0, 0]
    }
    fn from_words(w: Words) -> Self {
        Self { id: low(w[0]), gref: w[1] }
    }
}

impl Slot for RxResponse {
    fn to_words(self) -> Words {
        [pack(self.id, self.offset), pack(self.flags, self.status as u16), 0, 0]
    }
    fn from_words(w: Words) -> Self {
        Self { id: low(w[0]), offset: high(w[0]), flags: low(w[1]), status: high(w[1]) as i16 }
    }
}

impl Slot for ExtraInfo {
    fn to_words(self) -> Words {
        let (kind, body) = match self.kind {
            ExtraKind::Gso { size, gso_type } => {
                let s = size.to_le_bytes();
                (1, [s[0], s[1], gso_type, 0, 0, 0])
            }
            ExtraKind::McastAdd(mac) => (2, mac),
            ExtraKind::McastDel(mac) => (3, mac),
            ExtraKind::Other(kind) => (kind, [0; 6]),
        };
        let head = [kind, u8::from(self.more), body[0], body[1]];
        [u32::from_le_bytes(head), u32::from_le_bytes([body[2], body[3], body[4], body[5]]), 0, 0]
    }
    fn from_words(w: Words) -> Self {
        let [kind, flags, b0, b1] = w[0].to_le_bytes();
        let [b2, b3, b4, b5] = w[1].to_le_bytes();
        let kind = match kind {
            1 => ExtraKind::Gso { size: u16::from_le_bytes([b0, b1]), gso_type: b2 },
            2 => ExtraKind::McastAdd([b0, b1, b2, b3, b4, b5]),
            3 => ExtraKind::McastDel([b0, b1, b2, b3, b4, b5]),
            other => ExtraKind::Other(other),
        };
        Self { kind, more: flags & 1 != 0 }
    }
}

/// The ring on which the guest sends.
#[derive(Clone, Copy, Debug)]
pub struct Tx;

/// The ring on which the guest receives.
#[derive(Clone, Copy, Debug)]
pub struct Rx;

impl RingKind for Tx {
    const SLOT_WORDS: usize = 3;
}

impl RingKind for Rx {
    const SLOT_WORDS: usize = 2;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(slot: impl Slot) -> [u8; 12] {
        let mut out = [0; 12];
        for (chunk, word) in out.chunks_exact_mut(4).zip(slot.to_words()) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    #[test]
    fn requests_have_the_bytes_of_netif_h() {
        let tx = TxRequest { gref: 0x0403_0201, offset: 0x0605, flags: 0x0807, id: 0x0a09, size: 0x0c0b };
        assert_eq!(bytes(tx), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        assert_eq!(TxRequest::from_words(tx.to_words()), tx);
        let rx = RxRequest { id: 0x0201, gref: 0x0807_0605 };
        assert_eq!(bytes(rx)[..8], [1, 2, 0, 0, 5, 6, 7, 8]);
        assert_eq!(RxRequest::from_words(rx.to_words()), rx);
    }

    #[test]
    fn responses_have_the_bytes_of_netif_h() {
        let tx = TxResponse { id: 0x0201, status: -2 };
        assert_eq!(bytes(tx)[..4], [1, 2, 0xfe, 0xff]);
        assert_eq!(TxResponse::from_words(tx.to_words()), tx);
        let rx = RxResponse { id: 0x0201, offset: 0x0403, flags: 0x0605, status: 0x0807 };
        assert_eq!(bytes(rx)[..8], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(RxResponse::from_words(rx.to_words()), rx);
    }

    #[test]
    fn extra_segments_have_the_bytes_of_netif_h() {
        let gso = ExtraInfo { kind: ExtraKind::Gso { size: 0x05a8, gso_type: 1 }, more: false };
        assert_eq!(bytes(gso)[..8], [1, 0, 0xa8, 0x05, 1, 0, 0, 0]);
        assert_eq!(ExtraInfo::from_words(gso.to_words()), gso);
        let add = ExtraInfo { kind: ExtraKind::McastAdd([1, 0, 0x5e, 0, 0, 0xfb]), more: true };
        assert_eq!(bytes(add)[..8], [2, 1, 1, 0, 0x5e, 0, 0, 0xfb]);
        assert_eq!(ExtraInfo::from_words(add.to_words()), add);
        let other = ExtraInfo::from_words([0x0000_0109, 0, 0, 0]);
        assert_eq!(other, ExtraInfo { kind: ExtraKind::Other(9), more: true });
    }
}
