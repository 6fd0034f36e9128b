//! xenstore's message framing (`xen/include/public/io/xs_wire.h`): the same over the guest's ring page and
//! over the daemon's socket. It knows neither: it packs and unpacks headers and payloads.

/// The longest payload (`XENSTORE_PAYLOAD_MAX`), in bytes.
pub const MAX_PAYLOAD_BYTES: usize = 4096;
/// The longest absolute path (`XENSTORE_ABS_PATH_MAX`), in bytes.
pub const MAX_PATH_BYTES: usize = 3072;
/// Bytes of a message header (`struct xsd_sockmsg`).
pub const HEADER_BYTES: usize = 16;
/// Bytes of each direction's ring in the xenstore page (`XENSTORE_RING_SIZE`).
pub const RING_BYTES: usize = 1024;

/// What a message asks or says (`enum xsd_sockmsg_type`); only those that Drayage uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// List the children of a path.
    Directory = 1,
    /// Read a path.
    Read = 2,
    /// Read the permissions of a path.
    GetPerms = 3,
    /// Watch a path under a token.
    Watch = 4,
    /// End a watch.
    Unwatch = 5,
    /// Open a transaction.
    TransactionStart = 6,
    /// Commit (`T`) or abort (`F`) a transaction.
    TransactionEnd = 7,
    /// Ask for a domain's home path.
    GetDomainPath = 10,
    /// Write a path.
    Write = 11,
    /// Make a path.
    Mkdir = 12,
    /// Remove a path and all below it.
    Rm = 13,
    /// Set the permissions of a path.
    SetPerms = 14,
    /// A watch fired: path and token.
    WatchEvent = 15,
    /// The request failed: the name of an errno.
    Error = 16,
}

impl Kind {
    /// Returns the kind that a number names.
    pub const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Directory,
            2 => Self::Read,
            3 => Self::GetPerms,
            4 => Self::Watch,
            5 => Self::Unwatch,
            6 => Self::TransactionStart,
            7 => Self::TransactionEnd,
            10 => Self::GetDomainPath,
            11 => Self::Write,
            12 => Self::Mkdir,
            13 => Self::Rm,
            14 => Self::SetPerms,
            15 => Self::WatchEvent,
            16 => Self::Error,
            _ => return None,
        })
    }
}

/// A message header (`struct xsd_sockmsg`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// A [`Kind`] by number; a peer may send others.
    pub kind: u32,
    /// Echoed in the reply.
    pub request: u32,
    /// The transaction, 0 for none.
    pub transaction: u32,
    /// Bytes of the payload, as written; at most [`MAX_PAYLOAD_BYTES`] is legal.
    pub len_bytes: u32,
}

impl Header {
    /// Packs the header.
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        let words = [self.kind, self.request, self.transaction, self.len_bytes];
        for (chunk, word) in out.chunks_exact_mut(4).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    /// Unpacks a header.
    pub fn from_bytes(bytes: [u8; HEADER_BYTES]) -> Self {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Self { kind: word(0), request: word(4), transaction: word(8), len_bytes: word(12) }
    }
}

/// Returns the NUL-separated strings of a payload (children of a directory, path and token of an event).
pub fn strings(payload: &[u8]) -> impl Iterator<Item = &[u8]> {
    let trimmed = payload.strip_suffix(&[0]).unwrap_or(payload);
    let empty = payload.is_empty();
    trimmed.split(|b| *b == 0).filter(move |_| !empty)
}

/// Returns the path and token of a [`Kind::WatchEvent`]'s payload.
pub fn watch_event(payload: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut parts = strings(payload);
    Some((parts.next()?, parts.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::vec::Vec;

    #[test]
    fn a_header_has_the_bytes_of_xs_wire_h() {
        let header = Header { kind: Kind::Write as u32, request: 2, transaction: 3, len_bytes: 0x0102 };
        let bytes = [11, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 2, 1, 0, 0];
        assert_eq!(header.to_bytes(), bytes);
        assert_eq!(Header::from_bytes(bytes), header);
        assert!(
            (1..=16).filter_map(Kind::from_number).all(|kind| Kind::from_number(kind as u32) == Some(kind))
        );
    }

    #[test]
    fn payloads_split_at_nul() {
        assert_eq!(strings(b"a\0bc\0").collect::<Vec<_>>(), [&b"a"[..], b"bc"]);
        assert_eq!(strings(b"a").collect::<Vec<_>>(), [b"a"]);
        assert_eq!(strings(b"").count(), 0);
        assert_eq!(
            watch_event(b"device/vif/0/state\0tok\0"),
            Some((&b"device/vif/0/state"[..], &b"tok"[..]))
        );
        assert_eq!(watch_event(b"device\0"), None);
    }
}
