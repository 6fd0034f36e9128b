//! The header in front of a frame that says what is left to do to it: `struct virtio_net_hdr`
//! (`linux/virtio_net.h`), which TAP devices and packet sockets share.
//!
//! It knows bytes only.

use drayage_wire::checksum;
use drayage_wire::container::{Checksum, Gso, GsoKind, Meta};

/// Bytes of `struct virtio_net_hdr`.
pub(super) const VNET_BYTES: usize = 10;
const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_ECN: u8 = 0x80;

/// Returns the constants by their names in the header.
pub(super) fn constants() -> Vec<(&'static str, u64)> {
    vec![
        ("sizeof(struct virtio_net_hdr)", VNET_BYTES as u64),
        ("VIRTIO_NET_HDR_F_NEEDS_CSUM", NEEDS_CSUM.into()),
        ("VIRTIO_NET_HDR_F_DATA_VALID", DATA_VALID.into()),
        ("VIRTIO_NET_HDR_GSO_NONE", GSO_NONE.into()),
        ("VIRTIO_NET_HDR_GSO_TCPV4", GSO_TCPV4.into()),
        ("VIRTIO_NET_HDR_GSO_TCPV6", GSO_TCPV6.into()),
        ("VIRTIO_NET_HDR_GSO_ECN", GSO_ECN.into()),
    ]
}

/// Reads a vnet header.
pub(super) fn parse_header(header: [u8; VNET_BYTES]) -> Meta {
    let [flags, gso_type, _, _, size_low, size_high, ..] = header;
    let size = u16::from_ne_bytes([size_low, size_high]);
    let kind = match gso_type & !GSO_ECN {
        GSO_TCPV4 => Some(GsoKind::TcpV4),
        GSO_TCPV6 => Some(GsoKind::TcpV6),
        _ => None,
    };
    let gso = kind.filter(|_| size > 0).map(|kind| Gso { kind, size });
    let checksum = if flags & NEEDS_CSUM != 0 {
        Checksum::Blank
    } else if flags & DATA_VALID != 0 {
        Checksum::Valid
    } else {
        Checksum::Unverified
    };
    Meta { checksum, gso }
}

/// Writes the vnet header of a frame. What the frame says about itself is its sender's word: where it does
/// not fit, nothing is claimed, and the kernel checks what is claimed.
pub(super) fn make_header(frame: &[u8], meta: Meta) -> [u8; VNET_BYTES] {
    let mut header = [0; VNET_BYTES];
    if meta.checksum != Checksum::Blank {
        // No promise is passed on: `DATA_VALID` would let a guest vouch for its own packets, which is what it
        // does on the kernel's backend too, but a wrong sum then travels on.
        if meta.checksum == Checksum::Valid {
            header[0] = DATA_VALID;
        }
        return header;
    }
    let Some(site) = checksum::locate(frame) else { return header };
    header[0] = NEEDS_CSUM;
    header[6..8].copy_from_slice(&(site.start as u16).to_ne_bytes());
    header[8..10].copy_from_slice(&(site.field as u16).to_ne_bytes());
    if let (Some(gso), checksum::Protocol::Tcp) = (meta.gso, site.protocol) {
        header[1] = match gso.kind {
            GsoKind::TcpV4 => GSO_TCPV4,
            GsoKind::TcpV6 => GSO_TCPV6,
        };
        let tcp_header = usize::from(frame[site.start + 12] >> 4) * 4;
        header[2..4].copy_from_slice(&((site.start + tcp_header) as u16).to_ne_bytes());
        header[4..6].copy_from_slice(&gso.size.to_ne_bytes());
    } else {
        header[1] = GSO_NONE;
    }
    header
}

/// Says in the header of a super-frame that so many of its bytes, more than its headers, are to be in one piece. Returns whether
/// the header is one of a super-frame.
pub(super) fn ask_for_piece(header: &mut [u8; VNET_BYTES], bytes: usize) -> bool {
    let is_super = header[1] != GSO_NONE;
    if is_super && let Ok(bytes) = u16::try_from(bytes) {
        header[2..4].copy_from_slice(&bytes.to_ne_bytes());
    }
    is_super
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp_frame() -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend([8, 0, 0x45, 0, 0, 140, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0; 12]);
        frame.extend([0x80, 0x10]);
        frame.extend([0; 106]);
        frame
    }

    #[test]
    fn a_header_survives_the_way_there_and_back() {
        let gso = Some(Gso { kind: GsoKind::TcpV4, size: 1448 });
        for meta in [
            Meta { checksum: Checksum::Unverified, gso: None },
            Meta { checksum: Checksum::Valid, gso: None },
            Meta { checksum: Checksum::Blank, gso: None },
            Meta { checksum: Checksum::Blank, gso },
        ] {
            assert_eq!(parse_header(make_header(&tcp_frame(), meta)), meta);
        }
        let header = make_header(&tcp_frame(), Meta { checksum: Checksum::Blank, gso });
        // flags, type, header length 14 + 20 + 32, segment size, checksum start 34, offset 16.
        assert_eq!(header, [1, 1, 66, 0, 0xa8, 5, 34, 0, 16, 0]);
    }

    #[test]
    fn nothing_is_claimed_of_a_frame_that_is_not_understood() {
        let blank = Meta { checksum: Checksum::Blank, gso: None };
        assert_eq!(make_header(&[0xff; 60], blank), [0; VNET_BYTES]);
        assert_eq!(make_header(&tcp_frame()[..40], blank), [0; VNET_BYTES]);
    }
}
