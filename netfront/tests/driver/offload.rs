//! TCP super-frames: what is offered to the stack, and what a backend sees of them.

use core::num::{NonZeroU16, NonZeroUsize};

use drayage_netfront::{Options, Use};
use drayage_wire::checksum::locate;
use drayage_wire::container::{Checksum, Gso, GsoKind, Meta};
use drayage_wire::keys;
use drayage_wire::netif::{ExtraInfo, ExtraKind, TxRequest, TxResponse, rx_flags, status, tx_flags};
use memxen::grants::{Copy, Foreign};
use smoltcp::phy::{Device, PacketMeta, TxToken};
use smoltcp::time::Instant;

use crate::guest::{GUEST, Guest};
use crate::peer::{BACKEND, CONTAINERS, Peer, STOCK, pack, unpack};
use crate::states::{connected, connected_as};

/// A TCP segment over IPv4 of `len` bytes, with a checksum of zero and its number in every byte of payload.
fn segment(len: usize, which: u32) -> Vec<u8> {
    let mut frame = vec![0, 0x16, 0x3e, 0, 0, 7, 2, 0, 0, 0, 0, 1, 8, 0];
    frame.extend([0x45, 0]);
    frame.extend(((len - 14) as u16).to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([0, 7, 0, 7, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    frame.extend((frame.len()..len).map(|i| (i as u32).wrapping_mul(31).wrapping_add(which) as u8));
    frame
}

/// Sends a super-frame as the stack does. Returns whether the driver had room.
fn send(guest: &mut Guest, frame: &[u8], size: u16) -> bool {
    let Some(mut token) = guest.vif(0).transmit(Instant::ZERO) else { return false };
    let mut meta = PacketMeta::default();
    meta.segmentation_offload_size = NonZeroU16::new(size);
    token.set_meta(meta);
    token.consume(frame.len(), |buffer| buffer.copy_from_slice(frame));
    true
}

fn with_blank_sum(frame: &[u8]) -> Vec<u8> {
    let mut blank = frame.to_vec();
    let pseudo = locate(frame).expect("it is TCP").pseudo;
    blank[50..52].copy_from_slice(&pseudo.to_be_bytes());
    blank
}

/// Takes one chain as Linux's netback does, answers it, and returns its bytes, its slots and its extra segment.
fn take(peer: &mut Peer) -> (Vec<u8>, usize, Option<ExtraInfo>) {
    let hv = peer.hv.clone();
    let tx = &mut peer.rings().tx;
    assert!(tx.available().unwrap() > 0, "nothing was sent");
    let first: TxRequest = tx.peek(0);
    let mut slots = 1;
    let extra = (first.flags & tx_flags::EXTRA_INFO != 0).then(|| {
        slots += 1;
        tx.peek::<ExtraInfo>(1)
    });
    let mut parts = vec![first];
    while parts.last().is_some_and(|part| part.flags & tx_flags::MORE_DATA != 0) {
        parts.push(tx.peek(slots));
        slots += 1;
    }
    tx.advance(slots);
    let rest: u16 = parts[1..].iter().map(|part| part.size).sum();
    parts[0].size -= rest;
    let mut bytes = Vec::new();
    for part in &parts {
        let mut piece = vec![0; usize::from(part.size)];
        let grant = drayage_netfront::platform::GrantRef(part.gref);
        let place = Foreign { domain: GUEST, grant, offset: part.offset };
        let mut statuses = [0];
        hv.grant_copy(BACKEND, &mut [Copy::From(place, &mut piece)], &mut statuses);
        assert_eq!(statuses, [memxen::grants::status::OKAY]);
        bytes.extend(piece);
    }
    for (n, part) in parts.iter().enumerate() {
        tx.respond(TxResponse { id: part.id, status: status::OKAY }).unwrap();
        if n == 0 && extra.is_some() {
            // Linux leaves the id that happens to be there.
            tx.respond(TxResponse { id: first.id, status: status::NULL }).unwrap();
        }
    }
    let _ = tx.rearm();
    peer.publish_sent();
    (bytes, slots as usize, extra)
}

#[test]
fn a_super_frame_is_a_chain_with_an_extra_segment_at_every_place_of_the_ring() {
    let (mut guest, mut peer) = connected(STOCK);
    assert_eq!(guest.vif(0).capabilities().segmentation.tcpv4, NonZeroUsize::new(65_535));
    // 16 pages and an extra segment: the slots come to every place, the pages of one lie across the ring's end.
    for n in 0..300 {
        let len = if n % 3 == 0 { 65_535 - n as usize } else { 1515 + n as usize * 17 };
        let frame = segment(len, n);
        assert!(send(&mut guest, &frame, 1448), "frame {n}");
        guest.vif(0).flush();
        let first: TxRequest = peer.rings().tx.peek(0);
        let flags = tx_flags::CSUM_BLANK | tx_flags::DATA_VALIDATED | tx_flags::EXTRA_INFO;
        assert_eq!(first.flags & !tx_flags::MORE_DATA, flags);
        assert_eq!(usize::from(first.size), len);
        let (bytes, slots, extra) = take(&mut peer);
        assert!(bytes == with_blank_sum(&frame), "frame {n}");
        let kind = ExtraKind::Gso { size: 1448, gso_type: 1 };
        assert_eq!((slots, extra), (len.div_ceil(4096) + 1, Some(ExtraInfo { kind, more: false })));
        guest.vif(0).flush();
    }
    let tx = guest.counters(0).tx;
    assert_eq!((tx.packets, tx.super_frames, tx.blank_checksums), (300, 300, 300));
    assert_eq!((tx.bad_responses, tx.errors, tx.dropped_full, tx.dropped_long, tx.refused), (0, 0, 0, 0, 0));
    guest.hv.assert_clean();
}

#[test]
fn a_super_frame_in_a_container_says_so_in_its_descriptor() {
    let mut features = CONTAINERS.to_vec();
    features.push((keys::FEATURE_GSO_TCPV4, "1"));
    let (mut guest, mut peer) = connected(&features);
    assert_eq!(guest.vif(0).capabilities().segmentation.tcpv4, NonZeroUsize::new(65_509));
    let gso = Some(Gso { kind: GsoKind::TcpV4, size: 1000 });
    for n in 0..300 {
        let frames =
            [segment(60, n), segment(if n % 2 == 0 { 65_509 } else { 3000 + n as usize }, n), segment(60, n)];
        for (frame, size) in frames.iter().zip([0, 1000, 0]) {
            assert!(send(&mut guest, frame, size), "frame {n}");
        }
        guest.vif(0).flush();
        let mut packets = Vec::new();
        while peer.rings().tx.available().unwrap() > 0 {
            packets.extend(unpack(&take(&mut peer).0));
        }
        let expected: Vec<(Vec<u8>, Meta)> = frames
            .iter()
            .zip([None, gso, None])
            .map(|(frame, gso)| (with_blank_sum(frame), Meta { checksum: Checksum::Blank, gso }))
            .collect();
        assert!(packets == expected, "round {n}");
        guest.vif(0).flush();
    }
    let tx = guest.counters(0).tx;
    assert_eq!((tx.packets, tx.super_frames, tx.dropped_full, tx.dropped_long), (900, 300, 0, 0));
    guest.hv.assert_clean();
}

#[test]
fn nothing_is_offered_that_the_backend_does_not_take() {
    let offered = |features: &[(&str, &str)], options| {
        let (mut guest, _peer) = connected_as(options, features);
        let capabilities = guest.vif(0).capabilities();
        assert_eq!(capabilities.segmentation.tcpv6, None);
        capabilities.segmentation.tcpv4.map(NonZeroUsize::get)
    };
    let without = |key: &str| -> Vec<_> { STOCK.iter().copied().filter(|(k, _)| *k != key).collect() };
    let with = |base: &[(&'static str, &'static str)], key, value| {
        let mut features = base.to_vec();
        features.push((key, value));
        features
    };
    let options = Options::default();
    assert_eq!(offered(STOCK, options), Some(65_535));
    assert_eq!(offered(&without(keys::FEATURE_GSO_TCPV4), options), None);
    assert_eq!(offered(&with(STOCK, keys::FEATURE_NO_CSUM_OFFLOAD, "1"), options), None);
    assert_eq!(offered(STOCK, Options { tcp_segmentation: Use::Never, ..options }), None);
    // Of one page only: still longer than what fits the MTU.
    assert_eq!(offered(&without(keys::FEATURE_SG), options), Some(4096));
    assert_eq!(offered(CONTAINERS, options), None, "it takes containers, and no super-frames in them");
    let small: Vec<_> =
        CONTAINERS.iter().copied().filter(|(k, _)| *k != keys::TX_CONTAINER_MAX_BYTES).collect();
    assert_eq!(offered(&with(&small, keys::FEATURE_GSO_TCPV4, "1"), options), Some(4070));
}

#[test]
fn received_super_frames_reach_the_stack_whole_and_are_counted() {
    let whole = segment(65_000, 5);
    let (mut guest, mut peer) = connected(STOCK);
    let pieces: Vec<_> = whole.chunks(4096).collect();
    for (n, piece) in pieces.iter().enumerate() {
        let more = if n + 1 < pieces.len() { rx_flags::MORE_DATA } else { 0 };
        let first = if n == 0 { rx_flags::EXTRA_INFO | rx_flags::CSUM_BLANK } else { 0 };
        peer.give_slot(piece, more | first);
        if n == 0 {
            peer.respond_extra(ExtraInfo { kind: ExtraKind::Gso { size: 1448, gso_type: 1 }, more: false });
        }
    }
    peer.publish();
    assert!(guest.receive(0) == [whole.clone()]);
    assert_eq!(guest.counters(0).rx.super_frames, 1);

    let (mut guest, mut peer) = connected(CONTAINERS);
    let gso = Some(Gso { kind: GsoKind::TcpV4, size: 1448 });
    let meta = Meta { checksum: Checksum::Blank, gso };
    peer.give(&pack(&[(whole.clone(), meta), (segment(60, 1), Meta { gso: None, ..meta })], 0), 0);
    assert!(guest.receive(0) == [whole, segment(60, 1)]);
    assert_eq!(guest.counters(0).rx.super_frames, 1);
}
