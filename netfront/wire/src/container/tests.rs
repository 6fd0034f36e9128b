use super::*;

#[test]
fn a_container_that_changes_hands_keeps_its_packets_and_nothing_else() {
    let mut buffer = [0xee; 256];
    let mut writer = Writer::new(200, 4);
    for (len, byte) in [(15, 1), (16, 2), (61, 3)] {
        writer.push_with(&mut buffer, len, Meta::default(), |b| b.fill(byte)).unwrap();
    }
    let total = writer.finish(&mut buffer, 7, 1500);
    let mut manifest = Manifest::new();
    manifest.read(&buffer[..total]).unwrap();
    let packets = manifest.packets().to_vec();
    assert_eq!(readdress(&mut buffer[..total], &packets, 99, 3), total);
    let header = manifest.read(&buffer[..total]).unwrap();
    assert_eq!((header.sequence, header.hold_ns, header.count), (99, 3, 3));
    assert_eq!(manifest.packets(), packets);
    let lies = |at: usize| packets.iter().any(|packet| packet.range().contains(&at));
    for (at, byte) in buffer[..total].iter().enumerate().skip(HEADER_BYTES + 3 * DESCRIPTOR_BYTES) {
        assert!(lies(at) || *byte == 0, "byte {at} is {byte:#x}");
    }
    for (packet, byte) in packets.iter().zip(1..) {
        assert!(buffer[packet.range()].iter().all(|b| *b == byte));
    }
}

#[test]
fn a_container_has_the_bytes_of_the_specification() {
    let mut buffer = [0xee; 128];
    let mut writer = Writer::new(128, 2);
    let ping = [0x11; 15];
    let tcp = [0x22; 16];
    writer.push_with(&mut buffer, 15, Meta::default(), |b| b.copy_from_slice(&ping)).unwrap();
    let meta = Meta { checksum: Checksum::Blank, gso: Some(Gso { kind: GsoKind::TcpV4, size: 1448 }) };
    writer.push_with(&mut buffer, 16, meta, |b| b.copy_from_slice(&tcp)).unwrap();
    let total = writer.finish(&mut buffer, 7, 1500);
    // The worked example of SPEC.md.
    let mut expected = [0u8; 66];
    expected[..16].copy_from_slice(&[1, 0, 2, 0, 66, 0, 0, 0, 7, 0, 0, 0, 0xdc, 5, 0, 0]);
    expected[16..24].copy_from_slice(&[34, 0, 15, 0, 0, 0, 0, 0]);
    expected[24..32].copy_from_slice(&[50, 0, 16, 0, 3, 1, 0xa8, 5]);
    expected[32..34].fill(0xee);
    expected[34..49].copy_from_slice(&ping);
    expected[49] = 0xee;
    expected[50..66].copy_from_slice(&tcp);
    assert_eq!(total, 66);
    assert_eq!(buffer[..66], expected);

    let mut manifest = Manifest::new();
    let header = manifest.read(&buffer[..total]).unwrap();
    assert_eq!(header, Header { count: 2, total_bytes: 66, sequence: 7, hold_ns: 1500 });
    assert_eq!(manifest.packets()[0], Packet { offset: 34, len: 15, meta: Meta::default() });
    assert_eq!(manifest.packets()[1], Packet { offset: 50, len: 16, meta });
}

fn one() -> [u8; 48] {
    let mut buffer = [0; 48];
    let mut writer = Writer::new(48, 1);
    writer.push_with(&mut buffer, 20, Meta::default(), |_| ()).unwrap();
    assert_eq!(writer.finish(&mut buffer, 0, 0), 46);
    buffer
}

#[test]
fn each_rule_of_the_specification_is_kept() {
    let good = one();
    let read = |bytes: &[u8]| Manifest::new().read(bytes).map(|_| ());
    assert_eq!(read(&good[..46]), Ok(()));
    assert_eq!(read(&[]), Err(Reject::Truncated));
    assert_eq!(read(&good[..15]), Err(Reject::Truncated));
    assert_eq!(read(&good[..45]), Err(Reject::Total));
    assert_eq!(read(&good[..48]), Err(Reject::Total));
    let with = |at: usize, value: u8| {
        let mut bad = good;
        bad[at] = value;
        read(&bad[..46])
    };
    assert_eq!(with(0, 0), Err(Reject::Version));
    assert_eq!(with(0, 2), Err(Reject::Version));
    assert_eq!(with(1, 1), Err(Reject::Version));
    assert_eq!(with(2, 0), Err(Reject::Count));
    assert_eq!(with(3, 5), Err(Reject::Count), "0x501 packets");
    assert_eq!(with(2, 4), Err(Reject::Truncated), "a table beyond the end");
    assert_eq!(with(2, 2), Err(Reject::Offset { packet: 0 }), "a packet inside the table");
    assert_eq!(with(16, 22), Err(Reject::Offset { packet: 0 }));
    assert_eq!(with(16, 27), Err(Reject::Offset { packet: 0 }), "misaligned");
    assert_eq!(with(16, 28), Err(Reject::Offset { packet: 0 }), "misaligned");
    assert_eq!(with(18, 13), Err(Reject::Length { packet: 0 }));
    assert_eq!(with(18, 21), Err(Reject::Length { packet: 0 }));
    assert_eq!(with(19, 0xff), Err(Reject::Length { packet: 0 }));
    assert_eq!(with(20, 1), Err(Reject::Flags { packet: 0 }), "blank but not validated");
    assert_eq!(with(20, 4), Err(Reject::Flags { packet: 0 }));
    assert_eq!(with(21, 1), Err(Reject::Flags { packet: 0 }), "a GSO type without a size");
    assert_eq!(with(22, 1), Err(Reject::Flags { packet: 0 }), "a GSO size without a type");
}

#[test]
fn packets_must_not_overlap() {
    let mut buffer = [0; 128];
    let mut writer = Writer::new(128, 2);
    for _ in 0..2 {
        writer.push_with(&mut buffer, 20, Meta::default(), |_| ()).unwrap();
    }
    let total = writer.finish(&mut buffer, 0, 0);
    assert!(Manifest::new().read(&buffer[..total]).is_ok());
    let (first, second) = (buffer[16], buffer[24]);
    buffer[24] = second - 4;
    assert_eq!(Manifest::new().read(&buffer[..total]), Err(Reject::Offset { packet: 1 }));
    buffer[24] = first;
    assert_eq!(Manifest::new().read(&buffer[..total]), Err(Reject::Offset { packet: 1 }));
}

#[test]
fn a_writer_stops_at_its_size_and_at_its_table() {
    let mut buffer = [0; 4096];
    let mut writer = Writer::for_mean(4096, 60);
    let mut packets = 0;
    while writer.push_with(&mut buffer, 60, Meta::default(), |b| b.fill(1)).is_ok() {
        packets += 1;
    }
    assert_eq!(packets, 59, "the table was sized for just these");
    let total = writer.finish(&mut buffer, 0, 0);
    assert!(total <= 4096);
    let mut manifest = Manifest::new();
    manifest.read(&buffer[..total]).unwrap();
    assert_eq!(manifest.packets().len(), packets);
    assert!(manifest.packets().iter().all(|p| p.offset % 4 == 2));

    let mut writer = Writer::new(4096, 2);
    assert!(writer.push_with(&mut buffer, 60, Meta::default(), |_| ()).is_ok());
    assert!(writer.push_with(&mut buffer, 13, Meta::default(), |_| ()).is_err(), "no packet");
    assert!(writer.push_with(&mut buffer, 60, Meta::default(), |_| ()).is_ok());
    assert!(writer.push_with(&mut buffer, 60, Meta::default(), |_| ()).is_err(), "the table is full");
}

#[test]
fn the_largest_container_is_64_kib() {
    let mut buffer = [0; MAX_RX_BYTES];
    let mut writer = Writer::for_mean(1 << 20, 60);
    while writer.push_with(&mut buffer, 60, Meta::default(), |_| ()).is_ok() {}
    let total = writer.finish(&mut buffer, 0, 0);
    assert!(total <= MAX_RX_BYTES);
    let mut manifest = Manifest::new();
    manifest.read(&buffer[..total]).unwrap();
    assert_eq!(manifest.packets().len(), 963);
    assert!(Writer::could_ever_fit(65_535, 65_509) && !Writer::could_ever_fit(65_535, 65_510));
}
