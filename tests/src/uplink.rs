//! The end of a cable as an uplink of the backend. Knows frames and what their makers left to others, not where they go.

use drayage::port::{Budget, Sent, Uplink};
use drayage::segment;
use drayage_wire::checksum;
use drayage_wire::container::{Checksum, Gso, GsoKind, Meta};

use crate::cable::{End, Frame};

/// What the uplink does with checksums on the way in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arriving {
    /// Nothing: they are filled, and to be verified.
    Filled,
    /// They are taken out, as the kernel's are that never left memory.
    Blank,
}

/// An end of a cable as the backend's uplink.
#[derive(Debug)]
pub struct CableUplink {
    /// The end.
    pub end: End,
    /// What it does with checksums on the way in.
    pub arriving: Arriving,
    /// Whether TCP super-frames leave it whole; else they are cut, as by a device without segmentation offload.
    pub super_frames: bool,
}

impl Uplink for CableUplink {
    fn descriptor(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }

    fn receive(&mut self, budget: &mut Budget, each: &mut dyn FnMut(&[u8], Meta)) {
        while budget.is_left() {
            let Some(Frame { bytes: mut frame, segment_bytes }) = self.end.take_whole() else { break };
            let gso = segment_bytes.map(|size| Gso { kind: GsoKind::TcpV4, size: size.get() });
            let blank =
                gso.is_some() || self.arriving == Arriving::Blank && checksum::blank(&mut frame).is_some();
            let checksum = if blank { Checksum::Blank } else { Checksum::Unverified };
            budget.spend(frame.len());
            each(&frame, Meta { checksum, gso });
        }
    }

    fn send(&mut self, frame: &[u8], meta: Meta) -> Sent {
        if let Some(gso) = meta.gso.filter(|_| !self.super_frames) {
            let cut = segment::tcp(frame, gso, |len, write| {
                let mut segment = vec![0; len];
                write(&mut segment);
                self.end.send(segment);
            });
            return if cut.is_ok() { Sent::Yes } else { Sent::No };
        }
        let mut frame = frame.to_vec();
        if meta.checksum == Checksum::Blank {
            // A guest that says so of a frame without one gets that frame as it is.
            checksum::fill(&mut frame);
        }
        self.end.send(frame);
        Sent::Yes
    }
}
