//! Ethernet, IPv4, UDP and ICMP as bytes: the frames that `send` and `ping` put on a device. Knows
//! nothing of sockets.

use std::net::Ipv4Addr;

/// Bytes of headers before the payload of a UDP frame.
pub const UDP_HEADERS: usize = 14 + 20 + 8;

/// Smallest frame: headers and a sequence number.
pub const MIN_FRAME: usize = UDP_HEADERS + 8;

/// Largest frame without VLAN tag, FCS and jumbo MTU.
pub const MAX_FRAME: usize = 1514;

/// Where a stream of UDP frames comes from and goes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UdpFlow {
    /// Source MAC.
    pub src_mac: [u8; 6],
    /// Destination MAC.
    pub dst_mac: [u8; 6],
    /// Source address.
    pub src_ip: Ipv4Addr,
    /// Destination address.
    pub dst_ip: Ipv4Addr,
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
}

/// A UDP frame whose sequence number can be changed without summing all of it again.
#[derive(Debug, Clone)]
pub struct Template {
    /// The frame.
    pub bytes: Vec<u8>,
    /// Sum of everything that the UDP checksum covers but the sequence number.
    base_sum: u32,
}

impl Template {
    /// Builds a frame of a given size with valid checksums and sequence number 0.
    pub fn new(flow: &UdpFlow, frame_bytes: usize) -> Self {
        assert!(frame_bytes >= MIN_FRAME, "frame of {frame_bytes} bytes, {MIN_FRAME} is the least");
        let ip_len = (frame_bytes - 14) as u16;
        let udp_len = ip_len - 20;
        let mut bytes = Vec::with_capacity(frame_bytes);
        bytes.extend(flow.dst_mac);
        bytes.extend(flow.src_mac);
        bytes.extend([0x08, 0x00]);
        bytes.extend([0x45, 0]);
        bytes.extend(ip_len.to_be_bytes());
        bytes.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
        bytes.extend(flow.src_ip.octets());
        bytes.extend(flow.dst_ip.octets());
        let header_sum = fold(sum(&bytes[14..34]));
        bytes[24..26].copy_from_slice(&header_sum.to_be_bytes());
        bytes.extend(flow.src_port.to_be_bytes());
        bytes.extend(flow.dst_port.to_be_bytes());
        bytes.extend(udp_len.to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend([0; 8]);
        let filler = frame_bytes - bytes.len();
        bytes.extend((0..filler).map(|at| at as u8));
        let base_sum = sum(&bytes[26..34]) + 17 + u32::from(udp_len) + sum(&bytes[34..]);
        let mut template = Template { bytes, base_sum };
        template.set_sequence(0);
        template
    }

    /// Writes a sequence number into the payload and repairs the checksum.
    pub fn set_sequence(&mut self, sequence: u64) {
        let field = sequence.to_be_bytes();
        self.bytes[UDP_HEADERS..UDP_HEADERS + 8].copy_from_slice(&field);
        // RFC 768: a sum of zero is sent as all ones.
        let checksum = match fold(self.base_sum + sum(&field)) {
            0 => 0xffff,
            other => other,
        };
        self.bytes[40..42].copy_from_slice(&checksum.to_be_bytes());
    }
}

impl AsRef<[u8]> for Template {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Returns the sequence number at the start of a payload.
pub fn sequence_of(payload: &[u8]) -> Option<u64> {
    payload.first_chunk().map(|field| u64::from_be_bytes(*field))
}

/// Returns an ICMP message of the given type (8 asks, 0 answers) with a valid checksum.
pub fn icmp_echo(kind: u8, identifier: u16, sequence: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, 0, 0, 0];
    bytes.extend(identifier.to_be_bytes());
    bytes.extend(sequence.to_be_bytes());
    bytes.extend(payload);
    let checksum = fold(sum(&bytes));
    bytes[2..4].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

/// Parses `02:00:00:00:00:01`.
pub fn parse_mac(text: &str) -> Result<[u8; 6], String> {
    let bad = || format!("MAC address {text:?}: six hexadecimal bytes with colons are needed");
    let bytes: Vec<u8> = text
        .split(':')
        .map(|part| u8::from_str_radix(part, 16).map_err(|_| bad()))
        .collect::<Result<_, _>>()?;
    bytes.try_into().map_err(|_| bad())
}

/// Returns the unfolded ones' complement sum of big-endian words (RFC 1071).
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | word.get(1).map_or(0, |low| u32::from(*low))).sum()
}

/// Returns the checksum for an unfolded sum.
fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow() -> UdpFlow {
        UdpFlow {
            src_mac: [2, 0, 0, 0, 0, 1],
            dst_mac: [2, 0, 0, 0, 0, 2],
            src_ip: Ipv4Addr::new(10, 0, 0, 1),
            dst_ip: Ipv4Addr::new(10, 0, 0, 2),
            src_port: 4000,
            dst_port: 9,
        }
    }

    fn udp_sum_is_valid(frame: &[u8]) -> bool {
        let udp_len = (frame.len() - 34) as u32;
        fold(sum(&frame[26..34]) + 17 + udp_len + sum(&frame[34..])) == 0
    }

    #[test]
    fn rfc_1071_example() {
        assert_eq!(fold(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])), !0xddf2);
    }

    #[test]
    fn the_smallest_common_frame_byte_for_byte() {
        let frame = Template::new(&flow(), 60).bytes;
        assert_eq!(
            frame[..44],
            [
                2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, // Ethernet
                0x45, 0, 0, 46, 0, 0, 0x40, 0, 64, 17, 0x26, 0xbd, 10, 0, 0, 1, 10, 0, 0, 2, // IPv4
                0x0f, 0xa0, 0, 9, 0, 26, 0xc7, 0xf5, 0, 0, // UDP and the sequence number's start
            ]
        );
    }

    #[test]
    fn every_size_has_valid_checksums_with_every_kind_of_sequence_number() {
        for size in [MIN_FRAME, 51, 60, 252, 1513, MAX_FRAME] {
            let mut template = Template::new(&flow(), size);
            assert_eq!(template.bytes.len(), size);
            assert_eq!(fold(sum(&template.bytes[14..34])), 0, "IP header of {size}");
            for sequence in [0, 1, 0xffff, 0x1_0000, 0xdead_beef_cafe, u64::MAX] {
                template.set_sequence(sequence);
                assert!(udp_sum_is_valid(&template.bytes), "size {size}, sequence {sequence:#x}");
                assert_eq!(sequence_of(&template.bytes[UDP_HEADERS..]), Some(sequence));
                assert_ne!(template.bytes[40..42], [0, 0], "a sum of zero means no checksum");
            }
        }
    }

    #[test]
    fn icmp_echo_sums_to_zero() {
        for len in 0..9 {
            let message = icmp_echo(8, 0x1234, 7, &vec![0xa5; len]);
            assert_eq!(fold(sum(&message)), 0);
            assert_eq!(message[..2], [8, 0]);
        }
    }

    #[test]
    fn mac_addresses() {
        assert_eq!(parse_mac("00:16:3e:00:00:fF"), Ok([0, 0x16, 0x3e, 0, 0, 255]));
        for bad in ["", "1:2:3:4:5", "1:2:3:4:5:6:7", "00:16:3e:00:00:100", "00-16-3e-00-00-01"] {
            assert!(parse_mac(bad).is_err(), "{bad}");
        }
    }
}
