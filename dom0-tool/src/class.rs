//! Which packets are too urgent to wait for company: the classes that flush a container at once.
//!
//! It knows the first bytes of frames, and neither containers nor guests. It reads a few bytes of each frame and
//! parses nothing that the answer does not need; a frame that is not understood is in no class.

use std::fmt;

/// One class of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Class {
    Arp = 1,
    Neighbour = 2,
    Icmp = 4,
    TcpAck = 8,
    Expedited = 16,
}

/// The classes, with the names by which people choose them.
const NAMES: [(Class, &str); 5] = [
    (Class::Arp, "arp"),
    (Class::Neighbour, "nd"),
    (Class::Icmp, "icmp"),
    (Class::TcpAck, "tcp-ack"),
    (Class::Expedited, "ef"),
];

/// A set of classes; all of them unless somebody chose.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Classes(u8);

impl Classes {
    /// No class: packets wait as the policy says.
    pub const NONE: Self = Self(0);
    /// ARP; neighbour discovery; ICMP and ICMPv6; TCP without payload; DSCP "expedited forwarding".
    pub const ALL: Self = Self(31);

    fn has(self, class: Class) -> bool {
        self.0 & class as u8 != 0
    }

    /// Returns whether a frame is in one of the classes.
    #[inline]
    pub fn contain(self, frame: &[u8]) -> bool {
        if self == Self::NONE {
            return false;
        }
        // Most frames, and every packet of the data path comes here.
        if let Some(&[8, 0, ref ip @ ..]) = frame.get(12..) {
            return self.contain_v4(ip);
        }
        self.contain_other(frame)
    }

    fn contain_other(self, frame: &[u8]) -> bool {
        let (mut ethertype, mut rest) = match frame.get(12..) {
            Some([high, low, rest @ ..]) => (u16::from_be_bytes([*high, *low]), rest),
            _ => return false,
        };
        // One tag (802.1Q), or one inside another (802.1ad).
        for _ in 0..2 {
            if matches!(ethertype, 0x8100 | 0x88a8)
                && let [_, _, high, low, inner @ ..] = rest
            {
                (ethertype, rest) = (u16::from_be_bytes([*high, *low]), inner);
            }
        }
        match ethertype {
            0x0800 => self.contain_v4(rest),
            0x86dd => self.contain_v6(rest),
            0x0806 => self.has(Class::Arp),
            _ => false,
        }
    }

    fn contain_v4(self, ip: &[u8]) -> bool {
        let Some(header) = ip.first_chunk::<20>() else { return false };
        if self.has(Class::Expedited) && header[1] >> 2 == EXPEDITED {
            return true;
        }
        match header[9] {
            ICMP => self.has(Class::Icmp),
            // A later fragment has no TCP header, and a first one that is not the last has payload.
            TCP if self.has(Class::TcpAck) && u16::from_be_bytes([header[6], header[7]]) & 0x3fff == 0 => {
                let header_len = usize::from(header[0] & 0xf) * 4;
                let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
                header_len >= 20 && is_bare_tcp(ip, header_len, total)
            }
            _ => false,
        }
    }

    fn contain_v6(self, ip: &[u8]) -> bool {
        let Some(header) = ip.first_chunk::<40>() else { return false };
        let traffic_class = header[0] << 4 | header[1] >> 4;
        if self.has(Class::Expedited) && traffic_class >> 2 == EXPEDITED {
            return true;
        }
        match header[6] {
            // Router and neighbour solicitations and advertisements, and redirects (RFC 4861).
            ICMP_V6 if matches!(ip.get(40), Some(133..=137)) => self.has(Class::Neighbour),
            ICMP_V6 => self.has(Class::Icmp),
            TCP if self.has(Class::TcpAck) => {
                let payload = usize::from(u16::from_be_bytes([header[4], header[5]]));
                is_bare_tcp(ip, 40, 40 + payload)
            }
            _ => false,
        }
    }
}

/// RFC 3246's code point.
const EXPEDITED: u8 = 46;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const ICMP_V6: u8 = 58;

/// Returns whether a TCP header from `start` on is all that there is up to `total`: padding may follow.
fn is_bare_tcp(ip: &[u8], start: usize, total: usize) -> bool {
    let Some(offset) = ip.get(start + 12) else { return false };
    total == start + usize::from(offset >> 4) * 4
}

impl Default for Classes {
    fn default() -> Self {
        Self::ALL
    }
}

/// A text that names no set of classes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bad urgent class {0:?}: write arp, nd, icmp, tcp-ack, ef with commas between them, or all, or none")]
pub struct BadClasses(String);

impl std::str::FromStr for Classes {
    type Err = BadClasses;

    fn from_str(text: &str) -> Result<Self, BadClasses> {
        match text {
            "all" => return Ok(Self::ALL),
            "none" => return Ok(Self::NONE),
            _ => {}
        }
        text.split(',').try_fold(Self::NONE, |all, name| {
            let found = NAMES.iter().find(|(_, known)| *known == name);
            found.map(|(class, _)| Self(all.0 | *class as u8)).ok_or_else(|| BadClasses(name.into()))
        })
    }
}

impl fmt::Display for Classes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::NONE {
            return write!(f, "none");
        }
        let names: Vec<&str> =
            NAMES.iter().filter(|(class, _)| self.has(*class)).map(|(_, name)| *name).collect();
        write!(f, "{}", names.join(","))
    }
}

impl fmt::Debug for Classes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Classes({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn classes(text: &str) -> Classes {
        text.parse().unwrap()
    }

    /// Asserts that a frame is in one class alone, with no tag, one tag, and two, padded or not.
    fn assert_only(frame: &[u8], name: &str) {
        let one_tag = [&frame[..12], &[0x81, 0, 0xe0, 7], &frame[12..]].concat();
        let two_tags = [&frame[..12], &[0x88, 0xa8, 0, 9, 0x81, 0, 0, 7], &frame[12..]].concat();
        for frame in [frame, &one_tag, &two_tags] {
            let mut padded = frame.to_vec();
            padded.resize(frame.len() + 6, 0);
            for frame in [frame, &padded] {
                for (_, other) in NAMES {
                    assert_eq!(classes(other).contain(frame), other == name, "{other} of {frame:02x?}");
                }
                assert!(!Classes::NONE.contain(frame));
                assert_eq!(Classes::ALL.contain(frame), !name.is_empty());
            }
        }
    }

    const MACS: [u8; 12] = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];

    fn v4(tos: u8, protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
        let [high, low] = ((20 + payload.len()) as u16).to_be_bytes();
        let [f, g] = fragment.to_be_bytes();
        let header = [0x45, tos, high, low, 0, 1, f, g, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        [&MACS[..], &[8, 0], &header, payload].concat()
    }

    fn v6(traffic_class: u8, next: u8, payload: &[u8]) -> Vec<u8> {
        let [high, low] = (payload.len() as u16).to_be_bytes();
        let (a, b) = (0x60 | traffic_class >> 4, traffic_class << 4 | 0xf);
        [&MACS[..], &[0x86, 0xdd, a, b, 0, 0, high, low, next, 255], &[0xfe; 32], payload].concat()
    }

    /// A TCP header of 32 bytes (with timestamps) and so many bytes of payload.
    fn tcp(flags: u8, payload: usize) -> Vec<u8> {
        let mut bytes = vec![0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 2, 0x80, flags, 1, 0, 0, 0, 0, 0];
        bytes.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
        bytes.resize(32 + payload, 0x55);
        bytes
    }

    #[test]
    fn each_class_is_known_by_its_bytes() {
        assert_only(&[&MACS[..], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &[0; 20]].concat(), "arp");
        let echo = [8, 0, 0, 0, 0, 1, 0, 1];
        assert_only(&v4(0, ICMP, 0, &echo), "icmp");
        assert_only(&v6(0, ICMP_V6, &[128, 0, 0, 0, 0, 1, 0, 1]), "icmp");
        for kind in 133..=137 {
            assert_only(&v6(0, ICMP_V6, &[kind, 0, 0, 0, 0, 0, 0, 0]), "nd");
        }
        // ACK, SYN, and FIN with ACK; may be fragmented or not.
        for flags in [0x10, 0x02, 0x11] {
            assert_only(&v4(0, TCP, 0, &tcp(flags, 0)), "tcp-ack");
            assert_only(&v4(0, TCP, 0x4000, &tcp(flags, 0)), "tcp-ack");
            assert_only(&v6(0, TCP, &tcp(flags, 0)), "tcp-ack");
        }
        let datagram = [0, 1, 0, 2, 0, 9, 0, 0, 0x55];
        assert_only(&v4(46 << 2 | 1, 17, 0, &datagram), "ef");
        assert_only(&v6(46 << 2, 17, &datagram), "ef");
    }

    #[test]
    fn what_can_wait_is_in_no_class() {
        let datagram = [0, 1, 0, 2, 0, 9, 0, 0, 0x55];
        assert_only(&v4(0, 17, 0, &datagram), "");
        assert_only(&v6(0, 17, &datagram), "");
        assert_only(&v4(40 << 2, 17, 0, &datagram), "");
        assert_only(&v4(0, TCP, 0, &tcp(0x10, 1)), "");
        assert_only(&v4(0, TCP, 0, &tcp(0x18, 1448)), "");
        assert_only(&v6(0, TCP, &tcp(0x10, 1)), "");
        assert_only(&v4(0, TCP, 0x2000, &tcp(0x10, 0)), "");
        assert_only(&v4(0, TCP, 185, &tcp(0x10, 0)), "");
        assert_only(&[&MACS[..], &[0x88, 0xcc, 2, 7, 4, 2, 0, 0, 0, 0, 1]].concat(), "");
    }

    #[test]
    fn sets_are_printed_as_they_are_read() {
        for text in ["none", "arp", "arp,nd", "icmp,ef", "arp,nd,icmp,tcp-ack,ef"] {
            assert_eq!(classes(text).to_string(), text);
        }
        assert_eq!(classes("all"), Classes::ALL);
        assert_eq!(classes("ef,icmp,ef"), classes("icmp,ef"));
        for (text, named) in
            [("", "\"\""), ("arp,", "\"\""), ("arp,udp", "\"udp\""), ("none,arp", "\"none\"")]
        {
            let error = text.parse::<Classes>().unwrap_err().to_string();
            assert!(error.contains(named) && error.contains("tcp-ack"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_fall(bytes in proptest::collection::vec(any::<u8>(), 0..100), set in 0..32u8) {
            let _ = Classes(set).contain(&bytes);
        }

        /// A frame that is cut short anywhere is in a class of the whole one's, or in none.
        #[test]
        fn a_cut_frame_is_in_no_other_class(at in 0..80usize, set in 0..32u8) {
            let whole = v6(0, TCP, &tcp(0x10, 0));
            let cut = &whole[..at.min(whole.len())];
            prop_assert!(!Classes(set).contain(cut) || Classes(set).contain(&whole));
        }
    }
}
