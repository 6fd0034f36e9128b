//! What netif's checksum flags mean for the bytes of a frame: finding the TCP or UDP checksum of an Ethernet
//! frame, verifying it, filling a blank one, and blanking one.
//!
//! Frames are as hostile as their senders: every length is checked, and a frame that is not understood (a
//! fragment, an extension header, another protocol) has no checksum here, which is no error.

/// Where a frame's TCP or UDP checksum is, and the sum of its pseudo-header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// Where the TCP or UDP header starts, in bytes from the frame's start.
    pub start: usize,
    /// Where the checksum field is, in bytes from `start`.
    pub field: usize,
    /// Where the TCP segment or UDP datagram ends, in bytes from the frame's start; beyond it there may be
    /// padding.
    pub end: usize,
    /// The folded sum of the pseudo-header.
    pub pseudo: u16,
    /// Which protocol.
    pub protocol: Protocol,
    /// Over which IP.
    pub ip: IpVersion,
}

/// The protocols whose checksum can be left blank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP, where a field of zero over IPv4 says that there is no checksum.
    Udp,
}

/// The versions of IP, for which netif negotiates blank checksums apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpVersion {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What came of verifying a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The sum is right, or the frame has none.
    Good,
    /// The sum is wrong.
    Bad,
}

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Returns the ones' complement sum of `bytes`, folded to 16 bits but not inverted. Odd tails are padded.
#[inline]
pub fn sum(bytes: &[u8]) -> u16 {
    fold(total(bytes)).swap_bytes()
}

/// Returns the sum of the little-endian words of `bytes`, to be folded: the sum is independent of byte order (RFC 1071
/// 2(B)), so what is made of this is swapped once. It is congruent to that of all 16-bit words, modulo 2^16 - 1, and zero
/// only if each of them is.
#[inline]
fn total(bytes: &[u8]) -> u64 {
    // Twice as wide as what is added: an addition and one of the carry for each eight bytes.
    let mut total = 0u128;
    let (chunks, rest) = bytes.as_chunks::<32>();
    for chunk in chunks {
        for words in chunk.as_chunks::<8>().0 {
            total += u128::from(u64::from_le_bytes(*words));
        }
    }
    let (words, tail) = rest.as_chunks::<8>();
    for words in words {
        total += u128::from(u64::from_le_bytes(*words));
    }
    let last = match bytes.last_chunk::<8>() {
        // Those of the last eight bytes that were not summed yet: shifted in two steps, as there may be none.
        Some(last) => u64::from_le_bytes(*last) >> 8 >> (56 - 8 * tail.len()),
        None => tail.iter().rev().fold(0, |last, byte| last << 8 | u64::from(*byte)),
    };
    total += u128::from(last);
    // 2^64 is congruent to 1.
    let (low, carries) = (total as u64, (total >> 64) as u64);
    let (total, carry) = low.overflowing_add(carries);
    total + u64::from(carry)
}

/// Returns whether the words of a sum with its checksum come to all ones, in whichever byte order. No carry is folded for
/// that: it is so where the sum is a multiple of 2^16 - 1, unless it is zero.
#[inline]
const fn is_all_ones(total: u64) -> bool {
    total.is_multiple_of(0xffff) && total != 0
}

/// Returns whether the checksum of an IPv4 header without options is right.
#[inline]
pub fn is_ipv4_header_good(header: &[u8; 20]) -> bool {
    is_all_ones(total(header))
}

const fn fold(total: u64) -> u16 {
    // Below 2^33, then 2^17 + 2^16, then 2^16 + 2, then 2^16.
    let total = (total & 0xffff_ffff) + (total >> 32);
    let total = (total & 0xffff) + (total >> 16);
    let total = (total & 0xffff) + (total >> 16);
    ((total & 0xffff) + (total >> 16)) as u16
}

/// Returns the ones' complement sum of two such sums.
#[inline]
pub fn add(a: u16, b: u16) -> u16 {
    fold(u64::from(a) + u64::from(b))
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

/// Where a TCP or UDP header starts behind an Ethernet header and an IPv4 header without options.
const PLAIN_START: usize = 34;
/// Where the protocol's number and the addresses are in such a frame.
const PROTOCOL_AT: usize = 23;
const ADDRESSES: usize = 26;

/// Returns where the frame's TCP or UDP checksum is, or `None` if it has none that is understood.
#[inline]
pub fn locate(frame: &[u8]) -> Option<Site> {
    match frame.first_chunk::<42>() {
        Some(head) if is_plain(head) => locate_plain(head, frame.len()),
        _ => locate_any(frame),
    }
}

/// Returns whether a frame holds IPv4 without a VLAN tag and without options: most do, and this is asked of every
/// packet.
#[inline]
const fn is_plain(head: &[u8; 42]) -> bool {
    head[12] == 8 && head[13] == 0 && head[14] == 0x45
}

/// Where a plain frame's checksum is.
struct Place {
    protocol: Protocol,
    field: usize,
    end: usize,
}

/// As [`locate`], for a plain frame of so many bytes, but without the sum.
#[inline]
fn place_plain(head: &[u8; 42], len: usize) -> Option<Place> {
    let half = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
    let (protocol, field, least) = match head[PROTOCOL_AT] {
        UDP => (Protocol::Udp, 6, 8),
        TCP => (Protocol::Tcp, 16, 20),
        _ => return None,
    };
    let mut end = 14 + usize::from(half(16));
    if end > len || end < PLAIN_START + least || half(20) & 0x3fff != 0 {
        return None;
    }
    if protocol == Protocol::Udp {
        // A datagram may end before its packet does, and is summed by its own length (RFC 768).
        let own = PLAIN_START + usize::from(half(38));
        if own < PLAIN_START + least || own > end {
            return None;
        }
        end = own;
    }
    Some(Place { protocol, field, end })
}

#[inline]
fn locate_plain(head: &[u8; 42], len: usize) -> Option<Site> {
    let Place { protocol, field, end } = place_plain(head, len)?;
    let word =
        |at: usize| u64::from(u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]));
    let addresses = word(ADDRESSES) + word(ADDRESSES + 4);
    let pseudo = fold(addresses + u64::from(head[PROTOCOL_AT]) + (end - PLAIN_START) as u64);
    Some(Site { start: PLAIN_START, field, end, pseudo, protocol, ip: IpVersion::V4 })
}

fn locate_any(frame: &[u8]) -> Option<Site> {
    let mut ip = 14;
    let mut ethertype = be16(frame, 12)?;
    if ethertype == 0x8100 {
        ethertype = be16(frame, 16)?;
        ip = 18;
    }
    // The pseudo-header's sum lacks the length until the protocol is known.
    let (start, mut end, addresses, protocol, ip) = match ethertype {
        0x0800 => {
            let header = frame.get(ip..ip + 20)?;
            let header_len = usize::from(header[0] & 0xf) * 4;
            let total = usize::from(be16(header, 2)?);
            let fragment = be16(header, 6)? & 0x3fff;
            if header[0] >> 4 != 4 || header_len < 20 || total < header_len || fragment != 0 {
                return None;
            }
            (ip + header_len, ip + total, sum(&header[12..20]), header[9], IpVersion::V4)
        }
        0x86dd => {
            let header = frame.get(ip..ip + 40)?;
            if header[0] >> 4 != 6 {
                return None;
            }
            let end = ip + 40 + usize::from(be16(header, 4)?);
            (ip + 40, end, sum(&header[8..40]), header[6], IpVersion::V6)
        }
        _ => return None,
    };
    let (kind, field, least) = match protocol {
        TCP => (Protocol::Tcp, 16, 20),
        UDP => (Protocol::Udp, 6, 8),
        _ => return None,
    };
    if end > frame.len() || end < start + least {
        return None;
    }
    if kind == Protocol::Udp {
        // A datagram may end before its packet does, and is summed by its own length (RFC 768).
        let len = usize::from(be16(frame, start + 4)?);
        if len < least || start + len > end {
            return None;
        }
        end = start + len;
    }
    let pseudo = add(add(addresses, u16::from(protocol)), (end - start) as u16);
    Some(Site { start, field, end, pseudo, protocol: kind, ip })
}

/// Verifies the frame's TCP or UDP checksum.
#[inline]
pub fn verify(frame: &[u8]) -> Verdict {
    match frame.first_chunk::<42>() {
        Some(head) if is_plain(head) => verify_plain(head, frame),
        _ => verify_any(frame),
    }
}

/// As [`verify`], for a frame that [is plain](is_plain). The addresses lie in front of what is summed, so one sum
/// goes over both.
#[inline]
fn verify_plain(head: &[u8; 42], frame: &[u8]) -> Verdict {
    let Some(place) = place_plain(head, frame.len()) else { return Verdict::Good };
    if place.protocol == Protocol::Udp && head[40] == 0 && head[41] == 0 {
        return Verdict::Good;
    }
    let Some(summed) = frame.get(ADDRESSES..place.end) else { return Verdict::Good };
    // What is left of the pseudo-header: protocol and length, which no sum of 64 KiB takes beyond 2^64.
    let rest = u16::from(head[PROTOCOL_AT]).swap_bytes();
    let len = ((place.end - PLAIN_START) as u16).swap_bytes();
    let (total, carry) = total(summed).overflowing_add(u64::from(rest) + u64::from(len));
    if is_all_ones(total + u64::from(carry)) { Verdict::Good } else { Verdict::Bad }
}

fn verify_any(frame: &[u8]) -> Verdict {
    let Some(site) = locate_any(frame) else { return Verdict::Good };
    let body = &frame[site.start..site.end];
    let unsummed = (site.protocol, site.ip) == (Protocol::Udp, IpVersion::V4);
    if unsummed && body[site.field] == 0 && body[site.field + 1] == 0 {
        return Verdict::Good;
    }
    if add(sum(body), site.pseudo) == 0xffff { Verdict::Good } else { Verdict::Bad }
}

/// Fills the frame's TCP or UDP checksum, whatever the field holds. Returns whether the frame has one.
pub fn fill(frame: &mut [u8]) -> bool {
    let Some(site) = locate(frame) else { return false };
    let field = site.start + site.field;
    frame[field..field + 2].fill(0);
    let value = !add(sum(&frame[site.start..site.end]), site.pseudo);
    // A UDP sum of zero is sent as all ones (RFC 768); for TCP both mean the same.
    let value = if value == 0 { 0xffff } else { value };
    frame[field..field + 2].copy_from_slice(&value.to_be_bytes());
    true
}

/// Leaves the frame's TCP or UDP checksum blank: the field then holds the pseudo-header's sum, as netif's
/// `csum_blank` and Linux's `CHECKSUM_PARTIAL` want it. Returns where it is, if the frame has one.
#[inline]
pub fn blank(frame: &mut [u8]) -> Option<Site> {
    let site = locate(frame)?;
    let field = site.start + site.field;
    frame[field..field + 2].copy_from_slice(&site.pseudo.to_be_bytes());
    Some(site)
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::vec::Vec;

    /// A UDP datagram "hi!" from 10.0.0.1:1 to 10.0.0.2:7 as Linux sends it, with two bytes of padding.
    const UDP4: &[u8] = &[
        2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0, 31, 0, 0, 0x40, 0, 64, 17, 0x26, 0xcc, 10, 0,
        0, 1, 10, 0, 0, 2, 0, 1, 0, 7, 0, 11, 0x62, 0x4a, b'h', b'i', b'!', 0xaa, 0xbb,
    ];

    #[test]
    fn a_known_datagram_verifies_and_any_flipped_bit_does_not() {
        // By hand: pseudo 0a00+0001+0a00+0002+0011+000b = 141f; body 0001+0007+000b+6869+2100 = 897c.
        let site = locate(UDP4).unwrap();
        assert_eq!((site.start, site.field, site.end, site.pseudo), (34, 6, 45, 0x141f));
        let mut frame = UDP4.to_vec();
        assert!(fill(&mut frame));
        assert_eq!(u16::from_be_bytes([frame[40], frame[41]]), !(0x141f + 0x897c_u16));
        assert_eq!(verify(&frame), Verdict::Good);
        for byte in 34..45 {
            let mut bad = frame.clone();
            bad[byte] ^= 4;
            // Another length makes it no datagram: that is for the stack to see.
            let expected = if matches!(byte, 38 | 39) { Verdict::Good } else { Verdict::Bad };
            assert_eq!(verify(&bad), expected, "byte {byte}");
            assert_eq!(locate(&bad).is_none(), matches!(byte, 38 | 39), "byte {byte}");
        }
        frame[46] ^= 1;
        assert_eq!(verify(&frame), Verdict::Good, "padding is not summed");
    }

    #[test]
    fn blank_then_fill_is_the_same_as_fill() {
        let mut filled = UDP4.to_vec();
        fill(&mut filled);
        let mut frame = UDP4.to_vec();
        let site = blank(&mut frame).unwrap();
        assert_eq!(&frame[40..42], &site.pseudo.to_be_bytes());
        // What a device does with CHECKSUM_PARTIAL: sum from start to end, the field included.
        let value = !sum(&frame[site.start..site.end]);
        frame[40..42].copy_from_slice(&value.to_be_bytes());
        assert_eq!(frame, filled);
    }

    #[test]
    fn a_datagram_shorter_than_its_packet_is_summed_by_its_own_length() {
        let mut frame = UDP4.to_vec();
        frame[17] += 2;
        assert!(fill(&mut frame));
        let site = locate(&frame).unwrap();
        assert_eq!((site.end, site.pseudo), (45, 0x141f), "as if the packet ended with it");
        frame[45] ^= 0xff;
        assert_eq!(verify(&frame), Verdict::Good);
        frame[44] ^= 1;
        assert_eq!(verify(&frame), Verdict::Bad);
        frame[39] = 7;
        assert_eq!(locate(&frame), None, "a datagram shorter than its header");
        frame[39] = 14;
        assert_eq!(locate(&frame), None, "a datagram beyond its packet");
    }

    #[test]
    fn what_is_found_quickly_is_what_is_found() {
        let mut seed = 1u32;
        let mut found = 0;
        for n in 0..200_000 {
            let mut frame = UDP4.to_vec();
            frame.resize(45 + n % 30, 0);
            if n % 2 == 0 {
                (frame[17], frame[23]) = (31 + (n % 30) as u8, TCP);
            }
            for _ in 0..n % 4 {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let at = (seed >> 8) as usize % 46 % frame.len();
                frame[at] =
                    if seed >> 31 == 0 { (seed >> 20) as u8 } else { frame[at] ^ (1 << (seed >> 28 & 7)) };
            }
            frame.truncate(frame.len() - n % 3);
            found += usize::from(locate_any(&frame).is_some());
            assert_eq!(locate(&frame), locate_any(&frame), "{frame:x?}");
            assert_eq!(verify(&frame), verify_any(&frame), "{frame:x?}");
            if fill(&mut frame) {
                assert_eq!(
                    (verify(&frame), verify_any(&frame)),
                    (Verdict::Good, Verdict::Good),
                    "{frame:x?}"
                );
            }
        }
        assert!(found > 50_000, "{found}");
    }

    #[test]
    fn only_ipv4_lets_a_datagram_go_without_a_sum() {
        let mut four = UDP4.to_vec();
        four[40..42].fill(0);
        assert_eq!(verify(&four), Verdict::Good);
        // From ::1 to ::2, ports 1 to 7, "hi!": by hand 0001+0002+0011+000b = 001f.
        let mut six = [0u8; 65];
        six[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
        (six[19], six[20], six[21]) = (11, 17, 64);
        (six[37], six[53]) = (1, 2);
        six[54..65].copy_from_slice(&[0, 1, 0, 7, 0, 11, 0, 0, b'h', b'i', b'!']);
        let site = locate(&six).unwrap();
        assert_eq!((site.start, site.end, site.pseudo, site.ip), (54, 65, 0x1f, IpVersion::V6));
        assert_eq!(verify(&six), Verdict::Bad, "RFC 8200, 8.1");
        assert!(fill(&mut six));
        assert_eq!(u16::from_be_bytes([six[60], six[61]]), !(0x1f + 0x897c_u16));
        assert_eq!(verify(&six), Verdict::Good);
    }

    #[test]
    fn a_sum_does_not_depend_on_how_it_is_taken() {
        let bytes: Vec<u8> = (0..=255u8).cycle().take(1001).map(|b| b.wrapping_mul(37)).collect();
        for len in 0..bytes.len() {
            let slow = bytes[..len].chunks(2).fold(0u64, |total, pair| {
                total + (u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0)))
            });
            assert_eq!(sum(&bytes[..len]), fold(slow), "{len} bytes");
        }
    }

    #[test]
    fn what_is_not_understood_has_no_checksum() {
        assert_eq!(locate(&[]), None);
        for len in 0..45 {
            assert_eq!(locate(&UDP4[..len]), None, "{len} bytes");
        }
        let with = |at: usize, value: u8| {
            let mut frame = UDP4.to_vec();
            frame[at] = value;
            locate(&frame)
        };
        assert_eq!(with(14, 0x44), None, "a short IP header");
        assert_eq!(with(14, 0x65), None, "IPv6 in an IPv4 frame");
        assert_eq!(with(20, 0x20), None, "a fragment");
        assert_eq!(with(23, 1), None, "ICMP");
        assert_eq!(with(17, 19), None, "a total shorter than the header");
        assert_eq!(with(16, 9), None, "a total beyond the frame");
        assert_eq!(with(17, 27), None, "no room for the UDP header");
    }
}
