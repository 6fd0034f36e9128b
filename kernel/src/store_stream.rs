//! Puts xenstore messages together from the pieces that the ring hands over (framing: drayage-wire). It knows
//! neither the ring nor what is asked.

use alloc::vec::Vec;

use drayage_wire::xs::{HEADER_BYTES, Header, MAX_PAYLOAD_BYTES};

/// A whole message.
#[derive(Debug, PartialEq, Eq)]
pub struct Message {
    /// Its header.
    pub header: Header,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// The stream cannot be followed any more: a header announced more than the protocol allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfStep {
    /// What the header announced.
    pub len_bytes: u32,
}

/// The message that is being received.
#[derive(Debug, Default)]
pub struct Incoming {
    bytes: Vec<u8>,
}

impl Incoming {
    /// Returns a receiver at the start of a message.
    pub const fn new() -> Self {
        Self { bytes: Vec::new() }
    }

    /// Returns how many bytes to fetch next: never more than the current message still lacks.
    ///
    /// # Errors
    /// [`OutOfStep`] when the header cannot be right.
    pub fn wanted_bytes(&self) -> Result<usize, OutOfStep> {
        let Some(header) = self.header() else { return Ok(HEADER_BYTES - self.bytes.len()) };
        if header.len_bytes as usize > MAX_PAYLOAD_BYTES {
            return Err(OutOfStep { len_bytes: header.len_bytes });
        }
        Ok(HEADER_BYTES + header.len_bytes as usize - self.bytes.len())
    }

    /// Adds what was fetched.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Returns the message, once it is whole.
    pub fn take(&mut self) -> Option<Message> {
        let header = self.header()?;
        if self.bytes.len() < HEADER_BYTES + header.len_bytes as usize {
            return None;
        }
        let payload = self.bytes.split_off(HEADER_BYTES);
        self.bytes.clear();
        Some(Message { header, payload })
    }

    fn header(&self) -> Option<Header> {
        Some(Header::from_bytes(*self.bytes.first_chunk()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(request: u32, payload: &[u8]) -> (Header, Vec<u8>) {
        let header = Header { kind: 2, request, transaction: 0, len_bytes: payload.len() as u32 };
        (header, [&header.to_bytes()[..], payload].concat())
    }

    #[test]
    fn messages_arrive_in_any_pieces() {
        for piece in 1..40 {
            let (first, mut stream) = message(1, b"hello");
            let (second, bytes) = message(2, b"");
            let (third, more) = message(3, &[7; 100]);
            stream.extend(bytes);
            stream.extend(more);
            let mut incoming = Incoming::new();
            let mut seen = Vec::new();
            let mut rest = &stream[..];
            while !rest.is_empty() {
                let take = incoming.wanted_bytes().unwrap().min(piece).min(rest.len());
                incoming.push(&rest[..take]);
                rest = &rest[take..];
                seen.extend(incoming.take());
            }
            assert_eq!(seen.len(), 3);
            assert_eq!(seen[0], Message { header: first, payload: b"hello".to_vec() });
            assert_eq!(seen[1], Message { header: second, payload: Vec::new() });
            assert_eq!(seen[2], Message { header: third, payload: [7; 100].to_vec() });
            assert_eq!(incoming.wanted_bytes(), Ok(HEADER_BYTES));
        }
    }

    #[test]
    fn an_impossible_length_is_noticed_before_it_is_believed() {
        let mut incoming = Incoming::new();
        incoming.push(&Header { kind: 2, request: 1, transaction: 0, len_bytes: 4097 }.to_bytes());
        assert_eq!(incoming.wanted_bytes(), Err(OutOfStep { len_bytes: 4097 }));
    }
}
