//! What is watched at the NIC: every frame on its way into the stack, to count the UDP datagrams for our sockets (smoltcp
//! drops what a full socket cannot take without a word) and to keep out what the stack could not survive; and
//! on the way out, that a transmit ring was full, and what datagrams look like to those who would send the like.
//!
//! It knows header offsets; it never keeps or changes a frame.

use alloc::vec::Vec;

use drayage_netfront::Shown;
use smoltcp::phy::{Device, DeviceCapabilities};
use smoltcp::time::Instant;

use super::egress::Short;

/// What has been seen on one interface.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// UDP ports that are open here.
    pub(super) ports: Vec<u16>,
    /// Datagrams for these ports, handed to the stack.
    pub(super) offered: u64,
    /// Datagrams that apps took from their sockets.
    pub(super) taken: u64,
    /// Frames kept from the stack.
    pub(super) refused: u64,
    /// Bytes seen since [`Watch::begin_batch`].
    pub(super) batch_bytes: usize,
    /// Whether a frame could not be sent since [`Watch::begin_batch`] because the NIC had no room.
    pub(super) transmit: Transmit,
    /// Buffers that the stack took since then, to send from.
    pub(super) batch_sent: usize,
    /// Whether an app had more to send than its socket took since this was last cleared.
    pub(super) crowded: bool,
    /// What need not go through the stack.
    pub(super) short: Short,
}

/// Whether the NIC took every frame that the stack had for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Transmit {
    /// It did.
    #[default]
    Open,
    /// It had no room; an event tells when it has.
    Full,
}

impl Watch {
    pub(super) fn begin_batch(&mut self) {
        self.batch_bytes = 0;
        self.batch_sent = 0;
        self.transmit = Transmit::Open;
    }

    /// Returns the datagrams that the stack did not pass on, or that a full socket lost. Exact whenever the
    /// apps have emptied their sockets.
    pub(super) fn dropped(&self) -> u64 {
        self.offered.saturating_sub(self.taken)
    }

    /// Looks at a frame on its way into the stack.
    pub(super) fn see(&mut self, frame: &[u8]) -> Verdict {
        match frame.get(12..14) {
            Some([0x08, 0x00]) => {
                if ipv4_udp_port(frame).is_some_and(|port| self.ports.contains(&port)) {
                    self.offered += 1;
                }
                Verdict::Pass
            }
            // A neighbour may have another address from now on.
            Some([0x08, 0x06]) => {
                self.short.flows.forget();
                Verdict::Pass
            }
            Some([0x86, 0xdd]) => match ipv6_payload(frame) {
                Some((UDP, payload)) => {
                    if port_of(payload).is_some_and(|port| self.ports.contains(&port)) {
                        self.offered += 1;
                    }
                    Verdict::Pass
                }
                Some((ICMPV6, payload)) if advertises_no_network(payload) => {
                    self.refused += 1;
                    Verdict::Refuse
                }
                _ => Verdict::Pass,
            },
            _ => Verdict::Pass,
        }
    }
}

/// Whether the stack may have a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Pass,
    Refuse,
}

const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const HOP_BY_HOP: u8 = 0;
const ETHERNET_BYTES: usize = 14;
const IPV6_BYTES: usize = 40;

/// Returns the destination port of a datagram, or of the first fragment of one.
fn ipv4_udp_port(frame: &[u8]) -> Option<u16> {
    let header = frame.get(ETHERNET_BYTES..ETHERNET_BYTES + 20)?;
    let fragment_offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
    if header[9] != UDP || fragment_offset != 0 {
        return None;
    }
    port_of(frame.get(ETHERNET_BYTES + usize::from(header[0] & 0xf) * 4..)?)
}

fn port_of(udp: &[u8]) -> Option<u16> {
    udp.get(2..4).map(|port| u16::from_be_bytes([port[0], port[1]]))
}

/// Returns what follows an IPv6 header, and the hop-by-hop options if there are any.
fn ipv6_payload(frame: &[u8]) -> Option<(u8, &[u8])> {
    let packet = frame.get(ETHERNET_BYTES..)?;
    let (next, payload) = (*packet.get(6)?, packet.get(IPV6_BYTES..)?);
    if next != HOP_BY_HOP {
        return Some((next, payload));
    }
    let options_bytes = 8 * (usize::from(*payload.get(1)?) + 1);
    Some((*payload.first()?, payload.get(options_bytes..)?))
}

/// Tells whether a router advertisement offers a prefix in which no host can have an address: smoltcp 0.14
/// would take an address from it and then panic, because it is a multicast one.
fn advertises_no_network(icmp: &[u8]) -> bool {
    const ROUTER_ADVERTISEMENT: u8 = 134;
    const HEADER_BYTES: usize = 16;
    const PREFIX_OPTION: u8 = 3;
    const PREFIX_AT: usize = 16;
    if icmp.first() != Some(&ROUTER_ADVERTISEMENT) {
        return false;
    }
    let mut options = icmp.get(HEADER_BYTES..).unwrap_or_default();
    while let [kind, units, ..] = *options {
        if kind == PREFIX_OPTION && options.get(PREFIX_AT) == Some(&0xff) {
            return true;
        }
        match options.get(8 * usize::from(units)..) {
            Some(rest) if units > 0 => options = rest,
            _ => break,
        }
    }
    false
}

/// The NIC as the stack sees it when it sends. What comes in is `ingress`'s.
pub(super) struct Watched<'a, D> {
    pub(super) device: &'a mut D,
    pub(super) watch: &'a mut Watch,
}

impl<D: Device> Device for Watched<'_, D> {
    type RxToken<'b>
        = D::RxToken<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Shown<'b, D::TxToken<'b>>
    where
        Self: 'b;

    fn receive(&mut self, _: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        None
    }

    fn transmit(&mut self, timestamp: Instant) -> Option<Self::TxToken<'_>> {
        let Some(token) = self.device.transmit(timestamp) else {
            self.watch.transmit = Transmit::Full;
            return None;
        };
        self.watch.batch_sent += 1;
        let short = &mut self.watch.short;
        Some(Shown { token, to: Some((&mut short.flows, short.now_ns)) })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.device.capabilities()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(port: u16) -> Watch {
        Watch { ports: alloc::vec![port], ..Watch::default() }
    }

    fn ipv4(protocol: u8, fragment: u16, port: u16) -> Vec<u8> {
        let mut frame = alloc::vec![0; 60];
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14] = 0x46;
        frame[20..22].copy_from_slice(&fragment.to_be_bytes());
        frame[23] = protocol;
        frame[40..42].copy_from_slice(&port.to_be_bytes());
        frame
    }

    fn advertisement(prefix: u8, before: &[u8]) -> Vec<u8> {
        let mut frame = alloc::vec![0; 14 + 40];
        frame[12..14].copy_from_slice(&[0x86, 0xdd]);
        frame[20] = 58;
        frame.extend([134; 16]);
        frame.extend(before);
        frame.extend([3, 4]);
        frame.extend([0; 14]);
        frame.extend([prefix; 16]);
        frame
    }

    #[test]
    fn datagrams_for_open_ports_are_counted() {
        let mut watch = watch(9);
        for frame in [ipv4(17, 0, 9), ipv4(17, 0x2000, 9), ipv4(17, 0, 10), ipv4(6, 0, 9), ipv4(17, 100, 9)] {
            assert_eq!(watch.see(&frame), Verdict::Pass);
        }
        assert_eq!(watch.offered, 2, "the datagram and the first fragment");
        watch.taken = 1;
        assert_eq!(watch.dropped(), 1);
    }

    #[test]
    fn ipv6_datagrams_are_counted_behind_options_too() {
        let mut watch = watch(9);
        let mut frame = alloc::vec![0; 14 + 40 + 8 + 8];
        frame[12..14].copy_from_slice(&[0x86, 0xdd]);
        frame[54] = 17;
        frame[64..66].copy_from_slice(&9u16.to_be_bytes());
        watch.see(&frame);
        assert_eq!(watch.offered, 1);
        frame[20] = 17;
        frame[56..58].copy_from_slice(&9u16.to_be_bytes());
        watch.see(&frame);
        assert_eq!(watch.offered, 2);
    }

    #[test]
    fn a_multicast_prefix_is_kept_out_wherever_it_hides() {
        let mut watch = watch(9);
        assert_eq!(watch.see(&advertisement(0x20, &[])), Verdict::Pass);
        assert_eq!(watch.see(&advertisement(0xff, &[])), Verdict::Refuse);
        assert_eq!(watch.see(&advertisement(0xff, &[1, 1, 0, 0, 0, 0, 0, 0])), Verdict::Refuse);
        assert_eq!(
            watch.see(&advertisement(0xff, &[1, 0, 0, 0, 0, 0, 0, 0])),
            Verdict::Pass,
            "no such option"
        );
        let mut hidden = advertisement(0xff, &[]);
        hidden[20] = 0;
        hidden.splice(54..54, [58, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(watch.see(&hidden), Verdict::Refuse);
        assert_eq!(watch.refused, 3);
    }

    #[test]
    fn no_frame_is_too_short() {
        let mut watch = watch(9);
        for frame in [ipv4(17, 0, 9), advertisement(0xff, &[1, 1, 0, 0, 0, 0, 0, 0])] {
            for len in 0..frame.len() {
                watch.see(&frame[..len]);
            }
        }
    }
}
