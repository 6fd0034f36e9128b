use super::*;
use drayage_wire::container::Manifest;

fn push(open: &mut Aggregator, region: &mut [u8], len: usize, byte: u8) -> Result<(), Refusal> {
    open.push_with(region, 0, len, Meta::default(), |b| b.fill(byte))
}

#[test]
fn small_containers_wait_in_all_of_the_region() {
    for (size, least) in [(4096, 64), (5000, 32), (16_384, 16), (65_536, 4)] {
        let mut region = vec![0; REGION_BYTES];
        let mut open = Aggregator::new(size, Wrap::Allowed, 0);
        let mut packets = 0u64;
        while push(&mut open, &mut region, 1000, packets as u8).is_ok() {
            packets += 1;
        }
        assert!(open.waiting_count() >= least, "{} of {size} bytes", open.waiting_count());
        assert!(!open.has_room_for(1000));
        // All of them are whole, apart from each other, and in order.
        let (mut seen, mut manifest) = (0u64, Manifest::new());
        for (sequence, closed) in (0..).zip(open.waiting()) {
            let start = closed.start as usize;
            assert!(start.is_multiple_of(PAGE_SIZE) && closed.bytes as usize <= size);
            let bytes = &region[start..start + closed.bytes as usize];
            assert_eq!(manifest.read(bytes).expect("a good container").sequence, sequence);
            for packet in manifest.packets() {
                assert!(bytes[packet.range()].iter().all(|b| *b == seen as u8));
                seen += 1;
            }
        }
        assert_eq!(seen, packets);
        open.release(1);
        assert!(push(&mut open, &mut region, 1000, 0).is_ok(), "and they are used again");
    }
}

#[test]
fn a_container_is_taken_whole_behind_what_is_open() {
    let mut theirs = vec![0xee; MAX_RX_BYTES];
    let mut writer = Writer::new(16_384, 100);
    for n in 0..100u8 {
        writer.push_with(&mut theirs, 61, Meta::default(), |b| b.fill(n)).unwrap();
    }
    let total = writer.finish(&mut theirs, 4711, 5);
    let mut manifest = Manifest::new();
    manifest.read(&theirs[..total]).unwrap();
    let mut region = vec![0; REGION_BYTES];
    let mut open = Aggregator::new(16_384, Wrap::Allowed, 0).numbered_from(40);
    push(&mut open, &mut region, 60, 0xaa).unwrap();
    assert_eq!(open.push_whole(&mut region, 9, &mut theirs[..total], manifest.packets(), Place::Own), Ok(()));
    push(&mut open, &mut region, 60, 0xbb).unwrap();
    open.close(&mut region, 9, Reason::Idle);
    let waiting: Vec<Closed> = open.waiting().collect();
    assert_eq!(waiting.iter().map(|closed| closed.packets).collect::<Vec<_>>(), [1, 100, 1]);
    for (closed, (sequence, first)) in waiting.iter().zip([(40, 0xaa), (41, 0), (42, 0xbb)]) {
        let bytes = &region[closed.start as usize..][..closed.bytes as usize];
        let header = manifest.read(bytes).expect("a good container");
        assert_eq!(header.sequence, sequence);
        assert_eq!(bytes[manifest.packets()[0].range()][0], first);
    }
    manifest.read(&theirs[..total]).unwrap();
    while open.push_whole(&mut region, 9, &mut theirs[..total], manifest.packets(), Place::Own).is_ok() {}
    assert_eq!((open.has_room_for(60), open.room_bytes()), (false, 0));
    assert_eq!(
        open.push_whole(&mut region, 9, &mut theirs[..16_385], manifest.packets(), Place::Own),
        Err(Refusal::TooLarge)
    );
    // At the ring's end, where it may not be crossed.
    let mut open = Aggregator::new(16_384, Wrap::Forbidden, 255);
    assert_eq!(
        open.push_whole(&mut region, 9, &mut theirs[..total], manifest.packets(), Place::Own),
        Err(Refusal::NoRoom)
    );
}

#[test]
fn no_container_crosses_the_rings_end_where_that_is_forbidden() {
    for start in 200..=255 {
        let mut region = vec![0; REGION_BYTES];
        let mut open = Aggregator::new(65_536, Wrap::Forbidden, start);
        let (mut slot, mut skipped, mut ends) = (start, 0, 0);
        for n in 0..2000usize {
            let len = if n % 50 == 0 { 9000 } else { 14 + n * 37 % 1500 };
            push(&mut open, &mut region, len, 0).expect("what waits is taken away");
            for closed in open.waiting() {
                slot += closed.skip;
                skipped += closed.skip;
                assert!(closed.skip == 0 || slot.is_multiple_of(RING_SLOTS), "only up to the ring's end");
                let pages = closed.slots() - closed.skip;
                assert!(slot % RING_SLOTS + pages <= RING_SLOTS, "from {slot}, {pages} pages");
                slot += pages;
                ends += u32::from(closed.reason == Reason::RingEnd);
            }
            open.release(open.waiting_count());
        }
        assert!(slot > 2 * RING_SLOTS && ends > 0, "the end was met: {slot}, {ends}, {skipped}");
    }
}
