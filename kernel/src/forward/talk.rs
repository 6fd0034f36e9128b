//! What a router itself says and hears: errors of ICMP, questions for a neighbour's address, and what neighbours
//! say of theirs. Knows formats, and neither routes nor when something is said.

use drayage_wire::checksum::sum;

use super::packet::{
    Address, ETHERNET_BYTES, Family, IPV4_BYTES, IPV6_BYTES, Mac, Packet, mapped, stays_on_link, unmapped,
};

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const ICMP_BYTES: usize = 8;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const ARP_BYTES: usize = 28;
/// The shortest Ethernet frame.
const MIN_FRAME_BYTES: usize = 60;
/// The longest error (RFC 1812, 4.3.2.3; RFC 4443, 2.4 c).
const MAX_ERROR_V4: usize = 576;
const MAX_ERROR_V6: usize = 1280;

/// Why a packet goes no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It has passed too many routers.
    Expired,
    /// There is no route to where it goes.
    NoRoute,
    /// There is one, and nobody at its end.
    NoHost,
    /// It is too large for the next link.
    TooBig {
        /// The largest packet that is not.
        mtu: usize,
    },
}

impl Trouble {
    /// Returns type, code and the rest of the header (RFC 792, RFC 1191, RFC 4443).
    fn header(self, family: Family) -> (u8, u8, u32) {
        match (self, family) {
            (Self::Expired, Family::V4) => (11, 0, 0),
            (Self::NoRoute, Family::V4) => (3, 0, 0),
            (Self::NoHost, Family::V4) => (3, 1, 0),
            (Self::TooBig { mtu }, Family::V4) => (3, 4, mtu as u32 & 0xffff),
            (Self::Expired, Family::V6) => (3, 0, 0),
            (Self::NoRoute, Family::V6) => (1, 0, 0),
            (Self::NoHost, Family::V6) => (1, 3, 0),
            (Self::TooBig { mtu }, Family::V6) => (2, 0, mtu as u32),
        }
    }
}

/// Writes the error about a packet into `out` and returns its length, or `None` where none may be sent (RFC 1812,
/// 4.3.2.7; RFC 4443, 2.4 e): about errors, about fragments behind the first, to a group or to nobody.
pub(super) fn write_error(
    out: &mut [u8],
    frame: &[u8],
    packet: &Packet,
    trouble: Trouble,
    from: (Address, Mac),
) -> Option<usize> {
    if stays_on_link(packet.source) || is_silent(frame, packet) {
        return None;
    }
    let (address, mac) = from;
    let sender = frame.get(6..12)?;
    let (kind, code, rest) = trouble.header(packet.family);
    let (header_bytes, most) = match packet.family {
        Family::V4 => (IPV4_BYTES, MAX_ERROR_V4),
        Family::V6 => (IPV6_BYTES, MAX_ERROR_V6),
    };
    let quote = frame.get(ETHERNET_BYTES..packet.frame_bytes)?;
    let quote = &quote[..quote.len().min(most - header_bytes - ICMP_BYTES)];
    let icmp_at = ETHERNET_BYTES + header_bytes;
    let len = icmp_at + ICMP_BYTES + quote.len();
    let out = out.get_mut(..len)?;
    out[..6].copy_from_slice(sender);
    out[6..12].copy_from_slice(&mac);
    let icmp = &mut out[icmp_at..];
    icmp[..4].copy_from_slice(&[kind, code, 0, 0]);
    icmp[4..8].copy_from_slice(&rest.to_be_bytes());
    icmp[8..].copy_from_slice(quote);
    write_ip(out, packet.family, address, packet.source, 64);
    Some(len)
}

/// Completes a frame with an ICMP message in it: type of frame, IP header, both checksums.
fn write_ip(frame: &mut [u8], family: Family, from: Address, to: Address, hops: u8) {
    match family {
        Family::V4 => {
            let total = ((frame.len() - ETHERNET_BYTES) as u16).to_be_bytes();
            frame[12..14].copy_from_slice(&[0x08, 0x00]);
            let header = &mut frame[ETHERNET_BYTES..ETHERNET_BYTES + IPV4_BYTES];
            // Class of service: internetwork control, as routers' errors have (RFC 1812, 4.3.2.5).
            header.copy_from_slice(&[
                0x45, 0xc0, total[0], total[1], 0, 0, 0, 0, hops, ICMP, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            ]);
            header[12..16].copy_from_slice(&unmapped(from));
            header[16..20].copy_from_slice(&unmapped(to));
            let check = !sum(header);
            header[10..12].copy_from_slice(&check.to_be_bytes());
            let icmp = &mut frame[ETHERNET_BYTES + IPV4_BYTES..];
            let check = !sum(icmp);
            icmp[2..4].copy_from_slice(&check.to_be_bytes());
        }
        Family::V6 => {
            let payload = (frame.len() - ETHERNET_BYTES - IPV6_BYTES) as u16;
            frame[12..14].copy_from_slice(&[0x86, 0xdd]);
            frame[14..18].copy_from_slice(&[0x60, 0, 0, 0]);
            frame[18..20].copy_from_slice(&payload.to_be_bytes());
            frame[20..22].copy_from_slice(&[ICMPV6, hops]);
            frame[22..38].copy_from_slice(&from.to_be_bytes());
            frame[38..54].copy_from_slice(&to.to_be_bytes());
            let check = !sum_v6(frame);
            frame[ETHERNET_BYTES + IPV6_BYTES + 2..][..2].copy_from_slice(&check.to_be_bytes());
        }
    }
}

/// Returns the sum of an ICMPv6 message and its pseudo-header.
fn sum_v6(frame: &[u8]) -> u16 {
    let message = &frame[ETHERNET_BYTES + IPV6_BYTES..];
    let total =
        u32::from(sum(&frame[22..54])) + u32::from(sum(message)) + message.len() as u32 + u32::from(ICMPV6);
    let total = (total & 0xffff) + (total >> 16);
    ((total & 0xffff) + (total >> 16)) as u16
}

/// Tells whether no error is sent about a packet, whatever its addresses.
fn is_silent(frame: &[u8], packet: &Packet) -> bool {
    match packet.family {
        Family::V4 => {
            let fragment = u16::from_be_bytes([frame[20], frame[21]]) & 0x1fff;
            let icmp_at = ETHERNET_BYTES + 4 * usize::from(frame[14] & 0xf);
            // Of ICMP, only echo and its like are answered by an error.
            let is_error =
                frame[23] == ICMP && frame.get(icmp_at).is_none_or(|kind| ![0, 8, 13, 14].contains(kind));
            fragment != 0 || is_error
        }
        Family::V6 => {
            let icmp_at = ETHERNET_BYTES + IPV6_BYTES;
            // Errors have types below 128; a redirect is 137.
            frame[20] == ICMPV6 && frame.get(icmp_at).is_none_or(|kind| *kind < 128 || *kind == 137)
        }
    }
}

/// Writes the question for a neighbour's hardware address into `out` and returns its length; to the one who had
/// it last, or to everybody. `own` is an address of ours on the link.
pub(super) fn write_question(
    out: &mut [u8],
    address: Address,
    last: Option<Mac>,
    own: (Address, Mac),
) -> Option<usize> {
    let (own_address, mac) = own;
    match Family::of(address) {
        Family::V4 => {
            let out = out.get_mut(..MIN_FRAME_BYTES)?;
            out.fill(0);
            out[..6].copy_from_slice(&last.unwrap_or([0xff; 6]));
            out[6..12].copy_from_slice(&mac);
            out[12..22].copy_from_slice(&[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
            out[22..28].copy_from_slice(&mac);
            out[28..32].copy_from_slice(&unmapped(own_address));
            out[38..42].copy_from_slice(&unmapped(address));
            Some(MIN_FRAME_BYTES)
        }
        Family::V6 => {
            let len = ETHERNET_BYTES + IPV6_BYTES + 32;
            let out = out.get_mut(..len)?;
            let [.., b, c, d] = address.to_be_bytes();
            let everybody = [0x33, 0x33, 0xff, b, c, d];
            // The solicited-node group (RFC 4291, 2.7.1).
            let group = 0xff02 << 112 | 0x0001_ff00_0000 | (address & 0xff_ffff);
            out[..6].copy_from_slice(&last.unwrap_or(everybody));
            out[6..12].copy_from_slice(&mac);
            let message = &mut out[ETHERNET_BYTES + IPV6_BYTES..];
            message.fill(0);
            message[0] = SOLICITATION;
            message[8..24].copy_from_slice(&address.to_be_bytes());
            message[24..26].copy_from_slice(&[1, 1]);
            message[26..32].copy_from_slice(&mac);
            let to = if last.is_some() { address } else { group };
            write_ip(out, Family::V6, own_address, to, 255);
            Some(len)
        }
    }
}

/// What a neighbour has said of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) address: Address,
    pub(super) mac: Mac,
    /// Whose address it looks for, if it looks for one.
    pub(super) looks_for: Option<Address>,
}

/// Returns what a frame says of its sender's addresses, if it is about that.
pub(super) fn hear(frame: &[u8]) -> Option<Said> {
    match frame.get(12..ETHERNET_BYTES)? {
        [0x08, 0x06] => hear_arp(frame.get(ETHERNET_BYTES..ETHERNET_BYTES + ARP_BYTES)?),
        [0x86, 0xdd] => hear_discovery(frame),
        _ => None,
    }
}

fn hear_arp(arp: &[u8]) -> Option<Said> {
    let [0, 1, 8, 0, 6, 4, 0, operation @ (1 | 2), rest @ ..] = arp else { return None };
    let (mac, rest) = rest.split_first_chunk::<6>()?;
    let (sender, rest) = rest.split_first_chunk::<4>()?;
    let target = rest.get(6..)?.first_chunk::<4>()?;
    // Somebody who makes sure that an address is free has none yet (RFC 5227).
    (*sender != [0; 4]).then_some(Said {
        address: mapped(*sender),
        mac: *mac,
        looks_for: (*operation == 1).then_some(mapped(*target)),
    })
}

fn hear_discovery(frame: &[u8]) -> Option<Said> {
    let end =
        ETHERNET_BYTES + IPV6_BYTES + usize::from(u16::from_be_bytes([*frame.get(18)?, *frame.get(19)?]));
    let frame = frame.get(..end)?;
    // RFC 4861, 7.1: a hop limit of 255 proves that it comes from this link.
    let message = frame.get(ETHERNET_BYTES + IPV6_BYTES..).filter(|message| message.len() >= 24)?;
    if frame[20..22] != [ICMPV6, 255] || sum_v6(frame) != 0xffff {
        return None;
    }
    let target = u128::from_be_bytes(*message[8..].first_chunk()?);
    let source = u128::from_be_bytes(*frame[22..].first_chunk()?);
    let (wanted, address, looks_for) = match message[0] {
        SOLICITATION => (1, source, Some(target)),
        ADVERTISEMENT => (2, target, None),
        _ => return None,
    };
    let mut options = &message[24..];
    while let [kind, units, ..] = *options {
        let option = options.get(..8 * usize::from(units)).filter(|option| !option.is_empty())?;
        if kind == wanted {
            let mac = *option[2..].first_chunk()?;
            return (address != 0).then_some(Said { address, mac, looks_for });
        }
        options = &options[option.len()..];
    }
    None
}
