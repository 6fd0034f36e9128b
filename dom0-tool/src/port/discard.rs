//! An address beside an uplink that throws away what it gets: what guests can send, without what a kernel takes to
//! receive it. It answers ARP for its address, as any station does.
//!
//! It knows an uplink, to which it leaves everything else.

use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;

use drayage_wire::container::Meta;

use super::{Budget, By, Flushed, Sent, Uplink};

/// The station's hardware address: locally administered, and none that anybody else has on a segment.
pub const MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x09];
const ARP_BYTES: usize = 42;

/// An uplink with such an address beside it.
pub struct Discard {
    link: Box<dyn Uplink>,
    address: Ipv4Addr,
    /// The answer that is due to whoever has asked last.
    answer: Option<[u8; ARP_BYTES]>,
}

impl Discard {
    /// Puts an address beside an uplink.
    pub fn new(link: Box<dyn Uplink>, address: Ipv4Addr) -> Self {
        Self { link, address, answer: None }
    }
}

impl Uplink for Discard {
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.link.descriptor()
    }

    fn has_own(&self) -> bool {
        self.answer.is_some()
    }

    fn receive(&mut self, budget: &mut Budget, each: &mut dyn FnMut(&[u8], Meta)) {
        if let Some(answer) = self.answer.take() {
            budget.spend(answer.len());
            each(&answer, Meta::default());
        }
        if budget.is_left() {
            self.link.receive(budget, each);
        }
    }

    fn by(&self) -> By {
        self.link.by()
    }

    fn send(&mut self, frame: &[u8], meta: Meta) -> Sent {
        if frame.starts_with(&MAC) {
            return Sent::Yes;
        }
        if let Some(answer) = answer_to(frame, self.address) {
            self.answer = Some(answer);
            return Sent::Yes;
        }
        self.link.send(frame, meta)
    }

    fn flush(&mut self) -> Flushed {
        self.link.flush()
    }

    fn receive_drops(&self) -> u64 {
        self.link.receive_drops()
    }

    fn clear_error(&mut self) {
        self.link.clear_error();
    }
}

/// Returns the answer to a frame that asks by ARP who has the address (RFC 826).
fn answer_to(frame: &[u8], address: Ipv4Addr) -> Option<[u8; ARP_BYTES]> {
    let frame: &[u8; ARP_BYTES] = frame.first_chunk()?;
    if frame[12..22] != [0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1] || frame[38..42] != address.octets() {
        return None;
    }
    let mut answer = *frame;
    answer[..6].copy_from_slice(&frame[22..28]);
    answer[6..12].copy_from_slice(&MAC);
    answer[21] = 2;
    answer[22..28].copy_from_slice(&MAC);
    answer[28..32].copy_from_slice(&address.octets());
    answer[32..42].copy_from_slice(&frame[22..32]);
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Other(Vec<Vec<u8>>);

    impl Uplink for Other {
        fn descriptor(&self) -> Option<BorrowedFd<'_>> {
            None
        }
        fn receive(&mut self, _: &mut Budget, _: &mut dyn FnMut(&[u8], Meta)) {}
        fn send(&mut self, frame: &[u8], _: Meta) -> Sent {
            self.0.push(frame.to_vec());
            Sent::No
        }
    }

    fn question(target: [u8; 4]) -> Vec<u8> {
        let mut frame = [[0xff; 6], [2, 0, 0, 0, 0, 7]].concat();
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 7, 10, 0, 0, 2, 0, 0, 0, 0, 0, 0]);
        frame.extend(target);
        frame.resize(60, 0);
        frame
    }

    #[test]
    fn it_answers_for_its_address_and_keeps_what_comes_for_it() {
        let mut port = Discard::new(Box::new(Other::default()), Ipv4Addr::new(10, 0, 0, 9));
        let received = |port: &mut Discard| {
            let mut frames = Vec::new();
            port.receive(&mut Budget::new(), &mut |frame, _| frames.push(frame.to_vec()));
            frames
        };
        assert_eq!(port.send(&question([10, 0, 0, 9]), Meta::default()), Sent::Yes);
        assert!(port.has_own(), "nobody else knows of it");
        let answer = received(&mut port).remove(0);
        assert!(!port.has_own());
        assert_eq!(answer[..14], [2, 0, 0, 0, 0, 7, 2, 0, 0, 0, 0, 9, 8, 6]);
        assert_eq!(answer[20..32], [0, 2, 2, 0, 0, 0, 0, 9, 10, 0, 0, 9]);
        assert_eq!(answer[32..42], [2, 0, 0, 0, 0, 7, 10, 0, 0, 2]);
        assert!(received(&mut port).is_empty(), "one answer to one question");
        assert_eq!(port.send(&[&MAC[..], &[0; 54]].concat(), Meta::default()), Sent::Yes);
        assert_eq!(port.send(&question([10, 0, 0, 8]), Meta::default()), Sent::No, "the uplink's affair");
        assert_eq!(port.send(&[0xff; 10], Meta::default()), Sent::No);
    }
}
