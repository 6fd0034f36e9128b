//! A traffic generator: UDP frames with a sequence number in each, written where they are to lie.
//!
//! It knows frames, and neither guests nor containers. It is a closed loop: whoever runs it asks for frames
//! only while there is room for them.

use std::net::Ipv4Addr;

use drayage_wire::checksum;
use drayage_wire::container::MAX_RX_BYTES;
use serde::{Deserialize, Serialize};

use crate::switch::Mac;

/// Bytes of headers before the payload.
const HEADERS: usize = 14 + 20 + 8;
/// The smallest frame: headers and a sequence number.
pub const MIN_FRAME_BYTES: usize = HEADERS + 8;
/// The largest frame.
pub const MAX_FRAME_BYTES: usize = 9014;

/// What is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stream {
    /// Source address.
    pub src_mac: Mac,
    /// Destination address.
    pub dst_mac: Mac,
    /// Source address.
    pub src_ip: Ipv4Addr,
    /// Destination address.
    pub dst_ip: Ipv4Addr,
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Bytes of each frame, without its FCS.
    pub frame_bytes: usize,
    /// How many frames.
    pub count: u64,
    /// Frames a second; as fast as there is room when absent.
    pub rate: Option<u64>,
}

/// What was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Frames handed over.
    pub sent: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When the stream began, in nanoseconds of the backend's clock (CLOCK_MONOTONIC).
    #[serde(default)]
    pub started_ns: u64,
    /// From the first frame to the last, in nanoseconds: until it was written, which is before it is delivered.
    pub elapsed_ns: u64,
    /// How often there was no room, and the generator waited.
    pub stalls: u64,
    /// Whether the stream ended because the receiver went away.
    pub cut_short: bool,
}

/// The frame of a stream, whose sequence number can be changed without summing all of it again.
#[derive(Clone, Debug)]
pub struct Template {
    bytes: Vec<u8>,
    /// The folded sum of all that the UDP checksum covers but the sequence number.
    base: u64,
}

impl Template {
    /// Builds the frame. Its size is brought into bounds.
    pub fn new(stream: &Stream) -> Self {
        let frame_bytes = stream.frame_bytes.clamp(MIN_FRAME_BYTES, MAX_FRAME_BYTES.min(MAX_RX_BYTES));
        let ip_len = (frame_bytes - 14) as u16;
        let mut bytes = Vec::with_capacity(frame_bytes);
        bytes.extend(stream.dst_mac.0);
        bytes.extend(stream.src_mac.0);
        bytes.extend([0x08, 0x00, 0x45, 0]);
        bytes.extend(ip_len.to_be_bytes());
        bytes.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
        bytes.extend(stream.src_ip.octets());
        bytes.extend(stream.dst_ip.octets());
        let header_sum = !checksum::sum(&bytes[14..34]);
        bytes[24..26].copy_from_slice(&header_sum.to_be_bytes());
        bytes.extend(stream.src_port.to_be_bytes());
        bytes.extend(stream.dst_port.to_be_bytes());
        bytes.extend((ip_len - 20).to_be_bytes());
        bytes.extend([0; 10]);
        let filler = frame_bytes - bytes.len();
        bytes.extend((0..filler).map(|at| at as u8));
        let pseudo = u64::from(checksum::sum(&bytes[26..34])) + 17 + u64::from(ip_len - 20);
        let base = pseudo + u64::from(checksum::sum(&bytes[34..]));
        Self { bytes, base }
    }

    /// Returns the length of each frame.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Returns whether frames have no bytes, which they never do.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Writes the frame with a sequence number into `out`, which has [`len`](Self::len) bytes.
    pub fn write(&self, sequence: u64, out: &mut [u8]) {
        out.copy_from_slice(&self.bytes);
        out[HEADERS..HEADERS + 8].copy_from_slice(&sequence.to_be_bytes());
        let low = |shift: u32| sequence >> shift & 0xffff;
        let words = low(48) + low(32) + low(16) + low(0);
        let mut total = self.base + words;
        total = (total & 0xffff) + (total >> 16);
        total = (total & 0xffff) + (total >> 16);
        // RFC 768: a sum of zero is sent as all ones.
        let sum = match !(total as u16) {
            0 => 0xffff,
            other => other,
        };
        out[40..42].copy_from_slice(&sum.to_be_bytes());
    }
}

/// A stream under way.
#[derive(Debug)]
pub struct Generator {
    template: Template,
    count: u64,
    rate: Option<u64>,
    started_ns: Option<u64>,
    /// What was sent so far.
    pub report: Report,
}

impl Generator {
    /// Makes a stream that starts with the first frame that is asked for.
    pub fn new(stream: &Stream) -> Self {
        let template = Template::new(stream);
        Self { template, count: stream.count, rate: stream.rate, started_ns: None, report: Report::default() }
    }

    /// Returns how many frames may be sent now.
    pub fn due(&mut self, now_ns: u64) -> u64 {
        let started_ns = *self.started_ns.get_or_insert(now_ns);
        self.report.started_ns = started_ns;
        let left = self.count - self.report.sent;
        match self.rate {
            None => left,
            Some(rate) => {
                let elapsed_ns = u128::from(now_ns - started_ns);
                let allowed = (elapsed_ns * u128::from(rate) / 1_000_000_000) as u64 + 1;
                left.min(allowed.saturating_sub(self.report.sent))
            }
        }
    }

    /// Returns when frames are due again, if the stream has a rate. Not for each frame: a wake-up costs more
    /// than many frames do.
    pub fn next_due_ns(&self) -> Option<u64> {
        const BATCH_NS: u64 = 100_000;
        let (rate, started_ns) = (self.rate?.max(1), self.started_ns?);
        let next_ns = (u128::from(self.report.sent) * 1_000_000_000 / u128::from(rate)) as u64;
        let slack_ns = if 1_000_000_000 / rate < BATCH_NS { BATCH_NS } else { 0 };
        Some(started_ns + next_ns + slack_ns)
    }

    /// Returns the frames' length.
    pub fn frame_bytes(&self) -> usize {
        self.template.len()
    }

    /// Writes the next frame into place.
    pub fn write(&self, out: &mut [u8]) {
        self.template.write(self.report.sent, out);
    }

    /// Counts the frame that was just written.
    pub fn advance(&mut self, now_ns: u64) {
        self.report.sent += 1;
        self.report.bytes += self.template.len() as u64;
        self.report.elapsed_ns = now_ns - self.started_ns.unwrap_or(now_ns);
    }

    /// Returns whether all frames were sent.
    pub fn is_done(&self) -> bool {
        self.report.sent >= self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use drayage_wire::checksum::{Verdict, locate, verify};

    fn stream(frame_bytes: usize) -> Stream {
        Stream {
            src_mac: Mac([2, 0, 0, 0, 0, 1]),
            dst_mac: Mac([2, 0, 0, 0, 0, 2]),
            src_ip: Ipv4Addr::new(10, 0, 0, 1),
            dst_ip: Ipv4Addr::new(10, 0, 0, 2),
            src_port: 4000,
            dst_port: 9,
            frame_bytes,
            count: 1000,
            rate: None,
        }
    }

    #[test]
    fn every_frame_verifies_and_says_which_it_is() {
        for size in [MIN_FRAME_BYTES, 60, 61, 252, 1514, MAX_FRAME_BYTES] {
            let template = Template::new(&stream(size));
            let mut frame = vec![0xee; size];
            for sequence in [0, 1, 0xffff, 0x1_0000, 0xdead_beef_cafe, u64::MAX] {
                template.write(sequence, &mut frame);
                assert_eq!(checksum::sum(&frame[14..34]), 0xffff, "the IP header's sum");
                assert!(locate(&frame).is_some() && verify(&frame) == Verdict::Good, "{size} {sequence:#x}");
                assert_ne!(frame[40..42], [0, 0], "zero would mean no checksum");
                assert_eq!(frame[42..50], sequence.to_be_bytes());
            }
        }
    }

    #[test]
    fn a_rate_is_kept_on_average() {
        let mut generator = Generator::new(&Stream { rate: Some(1000), count: 5000, ..stream(60) });
        let mut out = [0; 60];
        let mut now_ns = 7;
        while !generator.is_done() {
            for _ in 0..generator.due(now_ns) {
                generator.write(&mut out);
                generator.advance(now_ns);
            }
            let next = generator.next_due_ns().unwrap();
            assert!(generator.is_done() || next > now_ns, "time goes on");
            now_ns = next.max(now_ns + 1);
        }
        let seconds = generator.report.elapsed_ns as f64 / 1e9;
        assert!((4.9..5.1).contains(&seconds), "5000 frames at 1000 a second took {seconds} s");
    }
}
