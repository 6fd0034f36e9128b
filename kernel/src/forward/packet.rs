//! The bytes of a frame that a router reads and changes. Knows headers, and neither routes nor neighbours.

use drayage_wire::checksum::sum;

/// A hardware address.
pub(crate) type Mac = [u8; 6];

/// An IPv6 address, or an IPv4 one mapped into ::ffff:0:0/96 (RFC 4291, 2.5.5.2): one table serves both.
pub(crate) type Address = u128;

/// The upper 96 bits of a mapped IPv4 address.
const MAPPED: u128 = 0xffff << 32;
pub(crate) const ETHERNET_BYTES: usize = 14;
pub(crate) const IPV4_BYTES: usize = 20;
pub(crate) const IPV6_BYTES: usize = 40;
/// Where the hop count is, in bytes from the frame's start.
const TTL_AT: usize = ETHERNET_BYTES + 8;
const HOP_LIMIT_AT: usize = ETHERNET_BYTES + 7;

/// The versions of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    /// Returns the family of an address.
    pub(crate) fn of(address: Address) -> Self {
        if address >> 32 == MAPPED >> 32 { Self::V4 } else { Self::V6 }
    }
}

/// What a router reads of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) family: Family,
    pub(crate) source: Address,
    pub(crate) destination: Address,
    /// Routers that it may still pass, this one included.
    pub(crate) hops: u8,
    /// The frame without what pads it.
    pub(crate) frame_bytes: usize,
}

/// What a frame is to a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// A packet with a sound header.
    Packet(Packet),
    /// A packet with a broken one.
    Malformed,
    /// No IP packet.
    Other,
}

/// Returns an IPv4 address as the tables have it.
pub(crate) fn mapped(address: [u8; 4]) -> Address {
    MAPPED | u128::from(u32::from_be_bytes(address))
}

/// Returns the IPv4 address in a mapped one.
pub(crate) fn unmapped(address: Address) -> [u8; 4] {
    (address as u32).to_be_bytes()
}

/// Reads a frame.
pub(crate) fn find(frame: &[u8]) -> Found {
    let found = match frame.get(12..ETHERNET_BYTES) {
        Some([0x08, 0x00]) => find_v4(frame),
        Some([0x86, 0xdd]) => find_v6(frame),
        _ => return Found::Other,
    };
    found.map_or(Found::Malformed, Found::Packet)
}

fn find_v4(frame: &[u8]) -> Option<Packet> {
    let header = frame.get(ETHERNET_BYTES..)?.first_chunk::<IPV4_BYTES>()?;
    let words = usize::from(header[0] & 0xf);
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if header[0] >> 4 != 4 || words < 5 || total < 4 * words || frame.len() < ETHERNET_BYTES + total {
        return None;
    }
    // RFC 1812, 5.2.2: a router forwards nothing whose header sum is wrong.
    let good = match words {
        5 => sum_is_good(header),
        _ => sum(&frame[ETHERNET_BYTES..ETHERNET_BYTES + 4 * words]) == 0xffff,
    };
    good.then(|| Packet {
        family: Family::V4,
        source: mapped([header[12], header[13], header[14], header[15]]),
        destination: mapped([header[16], header[17], header[18], header[19]]),
        hops: header[8],
        frame_bytes: ETHERNET_BYTES + total,
    })
}

/// Returns the source's and the destination's address of an IPv4 packet, as they lie in the frame. Whether it is one is
/// not looked at.
#[inline]
pub(crate) fn addresses_v4(frame: &[u8]) -> Option<&[u8; 8]> {
    frame.get(ETHERNET_BYTES + 12..)?.first_chunk()
}

/// Returns the hops that an IPv4 packet without options has left, and its frame's length without what pads it; none if
/// it is no such packet, or broken.
#[inline]
pub(crate) fn find_plain_v4(frame: &[u8]) -> Option<(u8, usize)> {
    let head = frame.first_chunk::<{ ETHERNET_BYTES + IPV4_BYTES }>()?;
    let header: &[u8; IPV4_BYTES] = head.last_chunk()?;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let plain = head[12..15] == [0x08, 0x00, 0x45];
    let whole = total >= IPV4_BYTES && frame.len() >= ETHERNET_BYTES + total;
    (plain && whole && sum_is_good(header)).then_some((header[8], ETHERNET_BYTES + total))
}

/// Tells whether a header without options sums up to what it should; the byte order does not matter (RFC 1071).
fn sum_is_good(header: &[u8; IPV4_BYTES]) -> bool {
    let (words, _) = header.as_chunks::<4>();
    let total: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    let total = (total & 0xffff_ffff) + (total >> 32);
    // What is left is at most 2^32 + 3: two more folds bring it to sixteen bits.
    let total = (total & 0xffff) + (total >> 16 & 0xffff) + (total >> 32);
    (total & 0xffff) + (total >> 16) == 0xffff
}

fn find_v6(frame: &[u8]) -> Option<Packet> {
    let header = frame.get(ETHERNET_BYTES..)?.first_chunk::<IPV6_BYTES>()?;
    let frame_bytes = ETHERNET_BYTES + IPV6_BYTES + usize::from(u16::from_be_bytes([header[4], header[5]]));
    let (source, destination) = (header[8..].first_chunk()?, header[24..].first_chunk()?);
    let (source, destination) = (u128::from_be_bytes(*source), u128::from_be_bytes(*destination));
    // Mapped addresses do not appear on a wire (RFC 4942, 2.2), and would be taken for IPv4 ones here.
    let real = [source, destination].iter().all(|address| Family::of(*address) == Family::V6);
    (header[0] >> 4 == 6 && real && frame.len() >= frame_bytes).then_some(Packet {
        family: Family::V6,
        source,
        destination,
        hops: header[7],
        frame_bytes,
    })
}

/// Tells whether no single host can have sent from, or be reached at, an address beyond its own link: it is a
/// group, nobody, the host itself, or of the link alone.
pub(crate) fn stays_on_link(address: Address) -> bool {
    match Family::of(address) {
        Family::V4 => {
            let [first, second, ..] = unmapped(address);
            // 0/8, 127/8, 169.254/16, 224/4 and 240/4, broadcast among them.
            first == 0 || first == 127 || first >= 224 || (first, second) == (169, 254)
        }
        // ff00::/8, fe80::/10, ::1 and ::.
        Family::V6 => address >> 120 == 0xff || address >> 118 == 0xfe80 >> 6 || address <= 1,
    }
}

/// Copies a packet for its next hop: the hardware addresses are new, one hop is gone. `to` is as long as `from`.
pub(crate) fn pass_on(from: &[u8], to: &mut [u8], family: Family, next: Mac, own: Mac) {
    to.copy_from_slice(from);
    rewrite(to, family, next, own);
}

/// Makes a packet one for its next hop, in place.
pub(crate) fn rewrite(frame: &mut [u8], family: Family, next: Mac, own: Mac) {
    let Some(head) = frame.first_chunk_mut::<{ ETHERNET_BYTES + IPV4_BYTES }>() else { return };
    head[..6].copy_from_slice(&next);
    head[6..12].copy_from_slice(&own);
    match family {
        Family::V4 => {
            let word = u16::from_be_bytes([head[TTL_AT], head[TTL_AT + 1]]);
            let check = u16::from_be_bytes([head[TTL_AT + 2], head[TTL_AT + 3]]);
            let new = word.wrapping_sub(0x100);
            head[TTL_AT] = (new >> 8) as u8;
            head[TTL_AT + 2..TTL_AT + 4].copy_from_slice(&updated(check, word, new).to_be_bytes());
        }
        Family::V6 => head[HOP_LIMIT_AT] = head[HOP_LIMIT_AT].wrapping_sub(1),
    }
}

/// Returns a checksum after one of the words that it covers has changed (RFC 1624, equation 3).
fn updated(check: u16, old: u16, new: u16) -> u16 {
    let sum = u32::from(!check) + u32::from(!old) + u32::from(new);
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A UDP datagram from 192.0.2.1 to 198.51.100.7 with TTL 64, padded to 60 bytes.
    pub(crate) const V4: [u8; 60] = {
        let head = [
            2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9, 8, 0, // Ethernet
            0x45, 0, 0, 30, 0x12, 0x34, 0x40, 0, 64, 17, 0x3c, 0x5f, 192, 0, 2, 1, 198, 51, 100,
            7, // IP
            0x0f, 0xa0, 0, 9, 0, 10, 0, 0, b'h', b'i', // UDP
        ];
        let mut frame = [0xaa; 60];
        let mut at = 0;
        while at < head.len() {
            frame[at] = head[at];
            at += 1;
        }
        frame
    };

    fn reference_sum(header: &[u8]) -> u16 {
        let mut total: u32 =
            header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        while total > 0xffff {
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    }

    #[test]
    fn a_packet_is_read_without_its_padding() {
        assert_eq!(reference_sum(&V4[14..34]), 0xffff, "the specimen itself");
        let Found::Packet(packet) = find(&V4) else { panic!("not found") };
        assert_eq!(packet.frame_bytes, 44);
        assert_eq!((packet.family, packet.hops), (Family::V4, 64));
        assert_eq!(unmapped(packet.destination), [198, 51, 100, 7]);
        assert_eq!(unmapped(packet.source), [192, 0, 2, 1]);
    }

    #[test]
    fn broken_headers_are_seen() {
        for (at, value, why) in [
            (14, 0x55, "version 5"),
            (14, 0x44, "a header of four words"),
            (16, 1, "longer than the frame"),
            (17, 19, "shorter than its header"),
            (25, 0x12, "a wrong sum"),
            (14, 0x46, "a header of six words with the sum of five"),
        ] {
            let mut frame = V4;
            frame[at] = value;
            assert_eq!(find(&frame), Found::Malformed, "{why}");
        }
        for len in 0..44 {
            assert!(!matches!(find(&V4[..len]), Found::Packet(_)), "{len} bytes");
        }
        assert_eq!(find(&V4[..13]), Found::Other);
    }

    #[test]
    fn one_hop_less_and_the_sum_is_still_right() {
        for id in 0..=u16::MAX {
            let mut frame = V4;
            frame[18..20].copy_from_slice(&id.to_be_bytes());
            frame[24..26].fill(0);
            let check = !reference_sum(&frame[14..34]);
            frame[24..26].copy_from_slice(&check.to_be_bytes());
            let mut out = [0; 60];
            pass_on(&frame, &mut out, Family::V4, [1; 6], [3; 6]);
            assert_eq!(reference_sum(&out[14..34]), 0xffff, "id {id:#x}");
            assert_eq!(out[22], 63);
            assert_eq!((&out[..6], &out[6..12]), (&[1; 6][..], &[3; 6][..]));
            assert_eq!((&out[26..], &out[12..22]), (&frame[26..], &frame[12..22]), "nothing else changes");
        }
    }

    #[test]
    fn ipv6_has_a_hop_limit_and_no_sum() {
        let mut frame = [0; 70];
        frame[12..16].copy_from_slice(&[0x86, 0xdd, 0x60, 0]);
        frame[19] = 8;
        frame[21] = 2;
        frame[22] = 0x20;
        frame[38] = 0x20;
        frame[53] = 9;
        let Found::Packet(packet) = find(&frame) else { panic!("not found") };
        assert_eq!((packet.family, packet.hops, packet.frame_bytes), (Family::V6, 2, 62));
        assert_eq!(packet.destination, 0x20 << 120 | 9);
        let mut out = frame;
        rewrite(&mut out, Family::V6, [1; 6], [3; 6]);
        assert_eq!(out[21], 1);
        assert_eq!((&out[12..21], &out[22..]), (&frame[12..21], &frame[22..]));
        frame[19] = 17;
        assert_eq!(find(&frame), Found::Malformed, "longer than the frame");
        frame[19] = 8;
        frame[38..54].copy_from_slice(&mapped([10, 0, 0, 1]).to_be_bytes());
        assert_eq!(find(&frame), Found::Malformed, "a mapped address on a wire");
    }

    #[test]
    fn some_addresses_never_leave_their_link() {
        for address in [[0, 0, 0, 1], [127, 0, 0, 1], [169, 254, 1, 1], [224, 0, 0, 1], [255; 4]] {
            assert!(stays_on_link(mapped(address)), "{address:?}");
        }
        assert!(!stays_on_link(mapped([10, 0, 0, 1])));
        for (word, stays) in
            [(0xff02_u128, true), (0xfe80, true), (0xfebf, true), (0xfec0, false), (0x2001, false)]
        {
            assert_eq!(stays_on_link(word << 112 | 1), stays, "{word:x}::1");
        }
        assert!(stays_on_link(0) && stays_on_link(1));
    }
}
