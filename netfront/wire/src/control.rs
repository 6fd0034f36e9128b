//! The messages of netif's control ring (`xen/include/public/io/netif.h`, "Control ring"), as far as they
//! concern static grants: pages that the backend maps once, before packets pass through them.
//!
//! As with the other rings, a field holds what the peer wrote, and whoever acts on it judges it first.

use crate::PAGE_SIZE;
use crate::ring::{RingKind, Slot, Words};

/// What a request asks for (`XEN_NETIF_CTRL_TYPE_*`).
pub mod kind {
    /// How many pages can be mapped at a time.
    pub const GET_GREF_MAPPING_SIZE: u16 = 8;
    /// Map the pages of a list, all or none.
    pub const ADD_GREF_MAPPING: u16 = 9;
    /// Unmap the pages of a list.
    pub const DEL_GREF_MAPPING: u16 = 10;
}

/// How a request fared, and in a [`Gref`] how an entry of a `DEL` list did (`XEN_NETIF_CTRL_STATUS_*`).
pub mod status {
    /// It was done.
    pub const SUCCESS: u32 = 0;
    /// The backend does not know such requests.
    pub const NOT_SUPPORTED: u32 = 1;
    /// The request or its list makes no sense, or could not be done.
    pub const INVALID_PARAMETER: u32 = 2;
    /// The list is larger than what there is room for (of hashes; static grants do not answer it).
    pub const BUFFER_OVERFLOW: u32 = 3;
}

/// `XEN_NETIF_CTRLF_GREF_readonly`: the backend may only read the page.
pub const GREF_READONLY: u16 = 1 << 0;

/// The most entries of a list: it fills one page.
pub const MAX_LIST_ENTRIES: usize = PAGE_SIZE / (Gref::WORDS * 4);

/// A request (`struct xen_netif_ctrl_request`, 16 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Request {
    /// Echoed in the response.
    pub id: u16,
    /// [`kind`].
    pub kind: u16,
    /// For static grants: the queue, the grant of the page with the list, and the list's entries.
    pub data: [u32; 3],
}

/// The answer to a [`Request`] (`struct xen_netif_ctrl_response`, 12 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Response {
    /// The request's.
    pub id: u16,
    /// The request's.
    pub kind: u16,
    /// [`status`].
    pub status: u32,
    /// For `GET` how many pages can be mapped, for `DEL` how many were unmapped.
    pub data: u32,
}

/// An entry of a list (`struct xen_netif_gref`, 8 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Gref {
    /// The page.
    pub gref: u32,
    /// [`GREF_READONLY`] or nothing.
    pub flags: u16,
    /// [`status`]; written by the backend when it answers a `DEL`, and of no meaning before.
    pub status: u16,
}

impl Gref {
    /// Words of an entry.
    pub const WORDS: usize = 2;

    /// Packs the entry.
    pub const fn to_words(self) -> [u32; Self::WORDS] {
        [self.gref, self.flags as u32 | (self.status as u32) << 16]
    }

    /// Unpacks an entry.
    pub const fn from_words(words: [u32; Self::WORDS]) -> Self {
        Self { gref: words[0], flags: words[1] as u16, status: (words[1] >> 16) as u16 }
    }

    /// Packs the entry into bytes.
    pub fn to_bytes(self) -> [u8; 8] {
        let [low, high] = self.to_words().map(u32::to_le_bytes);
        [low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]]
    }

    /// Unpacks an entry from bytes.
    pub const fn from_bytes([a, b, c, d, e, f, g, h]: [u8; 8]) -> Self {
        Self::from_words([u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])])
    }
}

impl Slot for Request {
    fn to_words(self) -> Words {
        let [a, b, c] = self.data;
        [u32::from(self.id) | u32::from(self.kind) << 16, a, b, c]
    }
    fn from_words([head, a, b, c]: Words) -> Self {
        Self { id: head as u16, kind: (head >> 16) as u16, data: [a, b, c] }
    }
}

impl Slot for Response {
    fn to_words(self) -> Words {
        [u32::from(self.id) | u32::from(self.kind) << 16, self.status, self.data, 0]
    }
    fn from_words([head, status, data, _]: Words) -> Self {
        Self { id: head as u16, kind: (head >> 16) as u16, status, data }
    }
}

/// The control ring.
#[derive(Clone, Copy, Debug)]
pub struct Control;

impl RingKind for Control {
    const SLOT_WORDS: usize = 4;
    const SLOTS: u32 = 128;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(slot: impl Slot) -> [u8; 16] {
        let mut out = [0; 16];
        for (chunk, word) in out.chunks_exact_mut(4).zip(slot.to_words()) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    #[test]
    fn messages_have_the_bytes_of_netif_h() {
        let data = [0x0807_0605, 0x0c0b_0a09, 0x100f_0e0d];
        let request = Request { id: 0x0201, kind: 0x0403, data };
        assert_eq!(bytes(request), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
        assert_eq!(Request::from_words(request.to_words()), request);
        let response = Response { id: 0x0201, kind: 0x0403, status: 0x0807_0605, data: 0x0c0b_0a09 };
        assert_eq!(bytes(response)[..12], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        assert_eq!(Response::from_words(response.to_words()), response);
    }

    #[test]
    fn entries_have_the_bytes_of_netif_h() {
        let gref = Gref { gref: 0x0403_0201, flags: 0x0605, status: 0x0807 };
        assert_eq!(gref.to_bytes(), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(Gref::from_bytes(gref.to_bytes()), gref);
        assert_eq!(MAX_LIST_ENTRIES, 512);
    }
}
