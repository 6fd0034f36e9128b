//! TCP segmentation in software, for a receiver that takes no super-frames.
//!
//! It knows only bytes: a frame goes in, segments of at most the given payload come out, with complete
//! checksums. The frame's sender is not trusted; what is not a TCP frame that can be cut is refused.

use drayage_wire::checksum::{self, IpVersion, Protocol};
use drayage_wire::container::{Gso, GsoKind};

/// The most segments that one frame may make: one of 64 KiB with the smallest segments that make sense. A guest
/// that asks for more would have others do its work.
const MOST: usize = 1024;

/// The frame is no TCP frame that can be cut into as few segments as that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotSegmentable;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// Returns whether a frame is what its sender says of it: a TCP frame of the right version of IP that can be
/// cut into a bounded number of segments. Whoever gets it whole believes that.
pub fn is_sound(frame: &[u8], gso: Gso) -> bool {
    let Some(site) = checksum::locate(frame) else { return false };
    let version = match gso.kind {
        GsoKind::TcpV4 => IpVersion::V4,
        GsoKind::TcpV6 => IpVersion::V6,
    };
    let headers = site.start + usize::from(frame[site.start + 12] >> 4) * 4;
    let shaped = site.protocol == Protocol::Tcp && site.ip == version;
    shaped
        && headers >= site.start + 20
        && headers <= site.end
        && (site.end - headers).div_ceil(usize::from(gso.size).max(1)) <= MOST
}

/// Cuts a TCP frame into segments of at most `gso.size` bytes of payload. `each` gets every segment's length
/// and a function that writes the segment into so many bytes.
///
/// # Errors
/// [`NotSegmentable`]; `each` has then not been called.
pub fn tcp(
    frame: &[u8],
    gso: Gso,
    mut each: impl FnMut(usize, &dyn Fn(&mut [u8])),
) -> Result<(), NotSegmentable> {
    let site = checksum::locate(frame).ok_or(NotSegmentable)?;
    if site.protocol != Protocol::Tcp {
        return Err(NotSegmentable);
    }
    let headers = site.start + usize::from(frame[site.start + 12] >> 4) * 4;
    if headers < site.start + 20 || headers > site.end {
        return Err(NotSegmentable);
    }
    let tagged = frame[12..14] == [0x81, 0];
    let ip = if tagged { 18 } else { 14 };
    let payload = &frame[headers..site.end];
    let size = usize::from(gso.size).max(1);
    let count = payload.len().div_ceil(size).max(1);
    if count > MOST {
        return Err(NotSegmentable);
    }
    let word = |at: usize| u32::from_be_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
    let sequence = word(site.start + 4);
    let flags = frame[site.start + 13];
    for index in 0..count {
        let first = index * size;
        let part = &payload[first..payload.len().min(first + size)];
        let len = headers + part.len();
        each(len, &|out| {
            out[..headers].copy_from_slice(&frame[..headers]);
            out[headers..].copy_from_slice(part);
            match site.ip {
                IpVersion::V4 => {
                    out[ip + 2..ip + 4].copy_from_slice(&((len - ip) as u16).to_be_bytes());
                    let id = u16::from_be_bytes([frame[ip + 4], frame[ip + 5]]).wrapping_add(index as u16);
                    out[ip + 4..ip + 6].copy_from_slice(&id.to_be_bytes());
                    out[ip + 10..ip + 12].fill(0);
                    let sum = !checksum::sum(&out[ip..site.start]);
                    out[ip + 10..ip + 12].copy_from_slice(&sum.to_be_bytes());
                }
                IpVersion::V6 => {
                    out[ip + 4..ip + 6].copy_from_slice(&((len - ip - 40) as u16).to_be_bytes());
                }
            }
            let at = site.start;
            out[at + 4..at + 8].copy_from_slice(&sequence.wrapping_add(first as u32).to_be_bytes());
            let mut these = flags;
            if index + 1 < count {
                these &= !(FIN | PSH);
            }
            if index > 0 {
                these &= !CWR;
            }
            out[at + 13] = these;
            checksum::fill(out);
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use drayage_wire::checksum::Verdict;

    fn frame(version: IpVersion, payload: usize) -> Vec<u8> {
        let mut frame = vec![2u8; 12];
        let tcp_len = 32 + payload;
        match version {
            IpVersion::V4 => {
                frame.extend([8, 0, 0x45, 0]);
                frame.extend(((20 + tcp_len) as u16).to_be_bytes());
                frame.extend([0xff, 0xff, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            }
            IpVersion::V6 => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend((tcp_len as u16).to_be_bytes());
                frame.extend([6, 64]);
                frame.extend([0xfe; 32]);
            }
        }
        frame.extend([0, 80, 0, 81, 0xff, 0xff, 0xff, 0x00, 0, 0, 0, 0, 0x80, FIN | PSH | CWR | 0x10]);
        frame.extend([0, 0, 0, 0, 0, 0]);
        frame.extend([1; 12]);
        frame.extend((0..payload).map(|i| (i * 7) as u8));
        frame
    }

    fn cut(frame: &[u8], kind: GsoKind, size: u16) -> Vec<Vec<u8>> {
        let mut segments = Vec::new();
        tcp(frame, Gso { kind, size }, |len, write| {
            let mut out = vec![0xee; len];
            write(&mut out);
            segments.push(out);
        })
        .unwrap();
        segments
    }

    #[test]
    fn segments_carry_the_payload_in_order_and_verify() {
        for (version, kind, headers) in
            [(IpVersion::V4, GsoKind::TcpV4, 66), (IpVersion::V6, GsoKind::TcpV6, 86)]
        {
            let whole = frame(version, 5000);
            let segments = cut(&whole, kind, 1448);
            let lengths: Vec<usize> = segments.iter().map(Vec::len).collect();
            assert_eq!(lengths, [headers + 1448, headers + 1448, headers + 1448, headers + 656]);
            let joined: Vec<u8> = segments.iter().flat_map(|s| s[headers..].to_vec()).collect();
            assert_eq!(joined, whole[headers..]);
            for (i, segment) in segments.iter().enumerate() {
                assert_eq!(checksum::verify(segment), Verdict::Good);
                let tcp = &segment[headers - 32..];
                let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
                assert_eq!(sequence, 0xffff_ff00_u32.wrapping_add(1448 * i as u32), "it wraps");
                let expected = match i {
                    0 => CWR | 0x10,
                    3 => FIN | PSH | 0x10,
                    _ => 0x10,
                };
                assert_eq!(tcp[13], expected);
                if version == IpVersion::V4 {
                    assert_eq!(checksum::sum(&segment[14..34]), 0xffff, "the IP header's own sum");
                    assert_eq!(segment[18..20], 0xffff_u16.wrapping_add(i as u16).to_be_bytes());
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_cut_is_refused() {
        let refuse = |frame: &[u8], size| {
            tcp(frame, Gso { kind: GsoKind::TcpV4, size }, |_, _| panic!("called for a refused frame"))
        };
        let good = frame(IpVersion::V4, 5000);
        assert_eq!(refuse(&good[..60], 1448), Err(NotSegmentable), "cut short");
        assert_eq!(refuse(&good, 1), Err(NotSegmentable), "5000 segments");
        let with = |at: usize, value: u8| {
            let mut bad = good.clone();
            bad[at] = value;
            refuse(&bad, 1448)
        };
        assert_eq!(with(23, 17), Err(NotSegmentable), "UDP");
        assert_eq!(with(46, 0x40), Err(NotSegmentable), "a short TCP header");
        assert_eq!(refuse(&frame(IpVersion::V4, 0)[..54], 1448), Err(NotSegmentable), "a TCP header cut");
        assert_eq!(cut(&frame(IpVersion::V4, 0), GsoKind::TcpV4, 1448).len(), 1, "no payload, one segment");
    }

    #[test]
    fn only_what_is_true_of_a_frame_is_sound() {
        let (v4, v6) = (frame(IpVersion::V4, 5000), frame(IpVersion::V6, 5000));
        let sound = |frame: &[u8], kind, size| is_sound(frame, Gso { kind, size });
        assert!(sound(&v4, GsoKind::TcpV4, 1448) && sound(&v6, GsoKind::TcpV6, 1448));
        assert!(!sound(&v4, GsoKind::TcpV6, 1448) && !sound(&v6, GsoKind::TcpV4, 1448), "another version");
        assert!(sound(&v4, GsoKind::TcpV4, 5) && !sound(&v4, GsoKind::TcpV4, 4), "1000 segments, and 1250");
        let with = |at: usize, value: u8| {
            let mut bad = v4.clone();
            bad[at] = value;
            sound(&bad, GsoKind::TcpV4, 1448)
        };
        assert!(!with(23, 17) && !with(46, 0x40) && !with(20, 0x20), "UDP, a short header, a fragment");
        assert!(!sound(&v4[..60], GsoKind::TcpV4, 1448), "cut short");
        assert!(sound(&frame(IpVersion::V4, 0), GsoKind::TcpV4, 1448));
    }
}
