//! Properties of the container format: what a writer makes a reader accepts, with the same contents; and
//! whatever bytes a reader accepts, they are in bounds, in order, aligned and without overlap.

use drayage_wire::container::{
    Checksum, DESCRIPTOR_BYTES, Gso, GsoKind, HEADER_BYTES, MAX_PACKETS, MAX_RX_BYTES, MAX_TX_BYTES,
    MIN_PACKET_BYTES, MIN_SIZE_BYTES, Manifest, Meta, Reject, Writer,
};
use proptest::prelude::*;

/// The hex dump of SPEC.md, section 8.
fn dump_of_the_specification() -> Vec<u8> {
    include_str!("../SPEC.md")
        .lines()
        .filter_map(|line| line.strip_prefix("    00")?.split_once("  "))
        .flat_map(|(_, bytes)| bytes.split_whitespace())
        .map(|byte| u8::from_str_radix(byte, 16).expect("SPEC.md has a hex dump"))
        .collect()
}

#[test]
fn the_dump_of_the_specification_is_what_a_writer_writes_and_a_reader_reads() {
    let dump = dump_of_the_specification();
    assert_eq!(dump.len(), 66);
    let meta = Meta { checksum: Checksum::Blank, gso: Some(Gso { kind: GsoKind::TcpV4, size: 1448 }) };
    let mut buffer = [0xee; 128];
    let mut writer = Writer::new(128, 2);
    writer.push_with(&mut buffer, 15, Meta::default(), |b| b.fill(0x11)).unwrap();
    writer.push_with(&mut buffer, 16, meta, |b| b.fill(0x22)).unwrap();
    let total = writer.finish(&mut buffer, 7, 1500);
    assert_eq!(buffer[..total], dump[..]);

    let mut manifest = Manifest::new();
    let header = manifest.read(&dump).unwrap();
    assert_eq!((header.count, header.total_bytes, header.sequence, header.hold_ns), (2, 66, 7, 1500));
    let [first, second] = manifest.packets() else { panic!("two packets") };
    assert_eq!((first.range(), first.meta), (34..49, Meta::default()));
    assert_eq!((second.range(), second.meta), (50..66, meta));
}

#[test]
fn the_limits_are_those_of_the_specification() {
    let spec = include_str!("../SPEC.md");
    let says = |text: &str| assert!(spec.contains(text), "SPEC.md does not say {text:?}");
    says("| largest container | 65 536 bytes, 16 slots | 65 535 bytes, 16 slots");
    assert_eq!((MAX_RX_BYTES, MAX_TX_BYTES), (65_536, 65_535));
    says("| largest packet in it | 65 510 | 65 509 |");
    says("| largest packet with a limit of 4096 | 4070 | 4070 |");
    for (size, largest) in [(MAX_RX_BYTES, 65_510), (MAX_TX_BYTES, 65_509), (MIN_SIZE_BYTES, 4070)] {
        assert!(Writer::could_ever_fit(size, largest), "{largest} in {size}");
        assert!(!Writer::could_ever_fit(size, largest + 1), "{} in {size}", largest + 1);
    }
    says("packets, 1 to 1024");
    assert_eq!(MAX_PACKETS, 1024);
    says("a packet is shorter than 14 bytes");
    assert_eq!((MIN_PACKET_BYTES, HEADER_BYTES, DESCRIPTOR_BYTES), (14, 16, 8));
}

#[test]
fn every_key_is_in_the_specification() {
    use drayage_wire::keys;
    for key in [
        keys::FEATURE_RX_CONTAINERS,
        keys::FEATURE_TX_CONTAINERS,
        keys::TX_CONTAINER_MAX_BYTES,
        keys::REQUEST_RX_CONTAINERS,
        keys::REQUEST_TX_CONTAINERS,
        keys::RX_CONTAINER_MAX_BYTES,
        keys::FEATURE_RX_CONTAINER_WRAP,
    ] {
        let row = format!("| `{key}` |");
        assert!(include_str!("../SPEC.md").contains(&row), "SPEC.md has no row {row:?}");
    }
}

fn meta() -> impl Strategy<Value = Meta> {
    let checksum = prop_oneof![Just(Checksum::Unverified), Just(Checksum::Valid), Just(Checksum::Blank)];
    let kind = prop_oneof![Just(GsoKind::TcpV4), Just(GsoKind::TcpV6)];
    let gso = proptest::option::of((kind, 1..=u16::MAX).prop_map(|(kind, size)| Gso { kind, size }));
    (checksum, gso).prop_map(|(checksum, gso)| Meta { checksum, gso })
}

/// Lengths as traffic has them, with the odd super-frame and the odd impossible one.
fn length() -> impl Strategy<Value = usize> {
    prop_oneof![8 => 14usize..128, 4 => 128usize..1515, 1 => 1515usize..66_000, 1 => 0usize..14]
}

fn bytes_of(packet: usize, len: usize) -> impl Iterator<Item = u8> {
    (0..len).map(move |i| (i as u8).wrapping_mul(31) ^ (packet as u8).wrapping_mul(97))
}

/// Asserts what a reader promises of whatever it accepted.
fn assert_sound(manifest: &Manifest, container: &[u8]) {
    let mut floor = HEADER_BYTES + DESCRIPTOR_BYTES * manifest.packets().len();
    assert!((1..=MAX_PACKETS).contains(&manifest.packets().len()));
    for packet in manifest.packets() {
        let range = packet.range();
        assert!(range.start >= floor, "{range:?} overlaps what ends at {floor}");
        assert_eq!(range.start % 4, 2, "{range:?} is misaligned");
        assert!(range.len() >= MIN_PACKET_BYTES && range.end <= container.len(), "{range:?}");
        assert!(packet.meta.gso.is_none_or(|gso| gso.size > 0));
        floor = range.end;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_a_writer_makes_a_reader_accepts(
        size in MIN_SIZE_BYTES..=MAX_RX_BYTES,
        mean in 0usize..2000,
        packets in proptest::collection::vec((length(), meta()), 1..200),
        sequence: u32,
        hold_ns: u32,
    ) {
        let mut buffer = vec![0xee; size];
        let mut writer = Writer::for_mean(size, mean);
        let mut inside = Vec::new();
        for (i, (len, meta)) in packets.into_iter().enumerate() {
            let fits = writer.fits(len);
            let pushed = writer.push_with(&mut buffer, len, meta, |slot| {
                for (byte, value) in slot.iter_mut().zip(bytes_of(i, len)) {
                    *byte = value;
                }
            });
            prop_assert_eq!(pushed.is_ok(), fits && len >= MIN_PACKET_BYTES);
            if pushed.is_ok() {
                inside.push((i, len, meta));
            }
            prop_assert!(writer.is_empty() || writer.total_bytes() <= size);
        }
        prop_assert_eq!(writer.count(), inside.len());
        if inside.is_empty() {
            return Ok(());
        }
        let foretold = writer.total_bytes();
        let total = writer.finish(&mut buffer, sequence, hold_ns);
        prop_assert_eq!(total, foretold);
        prop_assert!(buffer[total..].iter().all(|b| *b == 0xee), "nothing is written beyond the total");
        prop_assert!(writer.is_empty(), "and the writer starts again");

        let mut manifest = Manifest::new();
        let header = manifest.read(&buffer[..total]);
        let header = header.map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!((header.sequence, header.hold_ns), (sequence, hold_ns));
        prop_assert_eq!(usize::from(header.count), inside.len());
        assert_sound(&manifest, &buffer[..total]);
        for (packet, (i, len, meta)) in manifest.packets().iter().zip(inside) {
            prop_assert_eq!(packet.meta, meta);
            prop_assert!(buffer[packet.range()].iter().copied().eq(bytes_of(i, len)));
        }
    }

    #[test]
    fn a_reader_is_sound_whatever_it_reads(mut bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let mut manifest = Manifest::new();
        if manifest.read(&bytes).is_ok() {
            assert_sound(&manifest, &bytes);
        }
        // The same with what any liar gets right, so that the table is reached.
        if bytes.len() >= HEADER_BYTES {
            let len = bytes.len() as u32;
            let count = bytes[2] % 4;
            bytes[..4].copy_from_slice(&[1, 0, count, 0]);
            bytes[4..8].copy_from_slice(&len.to_le_bytes());
            if manifest.read(&bytes).is_ok() {
                assert_sound(&manifest, &bytes);
            } else {
                prop_assert!(manifest.packets().is_empty(), "a rejected container has no packets");
            }
        }
    }

    #[test]
    fn a_mutated_container_is_rejected_or_sound(
        lengths in proptest::collection::vec(14usize..100, 1..20),
        spare in 0usize..8,
        mutations in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut buffer = vec![0; MIN_SIZE_BYTES];
        let mut writer = Writer::new(buffer.len(), lengths.len() + spare);
        for len in &lengths {
            writer.push_with(&mut buffer, *len, Meta::default(), |_| ()).unwrap();
        }
        let table = HEADER_BYTES + DESCRIPTOR_BYTES * lengths.len();
        let mut total = writer.finish(&mut buffer, 0, 0);
        for (at, value) in mutations {
            buffer[at.index(table)] = value;
        }
        if let Some(cut) = cut {
            total = cut.index(total + 1);
        }
        let mut manifest = Manifest::new();
        match manifest.read(&buffer[..total]) {
            Ok(_) => assert_sound(&manifest, &buffer[..total]),
            Err(_) => prop_assert!(manifest.packets().is_empty()),
        }
    }

    #[test]
    fn a_reader_forgets_the_container_before(first in 1usize..30, second in 1usize..30) {
        let mut manifest = Manifest::new();
        for count in [first, second] {
            let mut buffer = vec![0; MIN_SIZE_BYTES];
            let mut writer = Writer::new(buffer.len(), count);
            for _ in 0..count {
                writer.push_with(&mut buffer, 60, Meta::default(), |_| ()).unwrap();
            }
            let total = writer.finish(&mut buffer, 0, 0);
            manifest.read(&buffer[..total]).unwrap();
            prop_assert_eq!(manifest.packets().len(), count);
        }
        prop_assert_eq!(manifest.read(&[]), Err(Reject::Truncated));
        prop_assert!(manifest.packets().is_empty());
    }
}
