//! What reads a peer's bytes in the wire crate: containers, frames, xenstore messages.

use bolero::check;
use drayage_wire::checksum::{Verdict, fill, locate, verify};
use drayage_wire::container::{DESCRIPTOR_BYTES, HEADER_BYTES, MIN_PACKET_BYTES, Manifest};
use drayage_wire::{keys, xs};

const RUNS: usize = 20_000;

/// Asserts what SPEC.md, section 6 leaves of an accepted container.
fn assert_sound(manifest: &Manifest, container: &[u8]) {
    let mut floor = HEADER_BYTES + DESCRIPTOR_BYTES * manifest.packets().len();
    for packet in manifest.packets() {
        let range = packet.range();
        assert!(range.start >= floor && range.start % 4 == 2, "{range:?} after {floor}");
        assert!(range.len() >= MIN_PACKET_BYTES && range.end <= container.len(), "{range:?}");
        floor = range.end;
    }
}

#[test]
fn a_container_is_rejected_or_sound() {
    check!().with_iterations(RUNS).with_max_len(1024).for_each(|bytes: &[u8]| {
        let mut manifest = Manifest::new();
        if manifest.read(bytes).is_ok() {
            assert_sound(&manifest, bytes);
        }
        // The same behind a header that holds, so that a blind fuzzer reaches the table too.
        let mut container = vec![1, 0, bytes.first().copied().unwrap_or(0) % 8, 0];
        container.extend(((HEADER_BYTES + bytes.len()) as u32).to_le_bytes());
        container.extend([0; 8]);
        container.extend(bytes);
        match manifest.read(&container) {
            Ok(header) => {
                assert_eq!(usize::from(header.count), manifest.packets().len());
                assert_sound(&manifest, &container);
            }
            Err(_) => assert!(manifest.packets().is_empty()),
        }
    });
}

#[test]
fn a_frame_is_left_alone_or_summed() {
    check!().with_iterations(RUNS).with_max_len(256).for_each(|bytes: &[u8]| {
        // As it is, and behind the start of an IPv4 or IPv6 frame.
        let four = [&[0; 12][..], &[8, 0, 0x45, 0, 0], bytes].concat();
        let six = [&[0; 12][..], &[0x86, 0xdd, 0x60, 0, 0, 0, 0], bytes].concat();
        for mut frame in [bytes.to_vec(), four, six] {
            let site = locate(&frame);
            if let Some(site) = site {
                assert!(site.start + site.field + 2 <= site.end && site.end <= frame.len());
            }
            if fill(&mut frame) {
                assert_eq!(verify(&frame), Verdict::Good);
            } else {
                assert_eq!(site, None);
            }
        }
    });
}

#[test]
fn a_xenstore_message_is_split_or_refused() {
    check!().with_iterations(RUNS).with_max_len(256).for_each(|bytes: &[u8]| {
        if let Some((head, payload)) = bytes.split_first_chunk::<{ xs::HEADER_BYTES }>() {
            let header = xs::Header::from_bytes(*head);
            assert_eq!(header.to_bytes(), *head);
            let _ = xs::Kind::from_number(header.kind);
            assert!(xs::strings(payload).map(|part| part.len() + 1).sum::<usize>() <= payload.len() + 1);
            if let Some((path, token)) = xs::watch_event(payload) {
                assert!(path.len() + token.len() < payload.len());
            }
        }
        let _ = (keys::parse_number(bytes), keys::parse_mac(bytes), keys::State::parse(bytes));
    });
}
