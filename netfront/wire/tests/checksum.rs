//! Properties of the checksum functions, against a naive implementation that knows one byte at a time.

use drayage_wire::checksum::{
    IpVersion, Protocol, Verdict, blank, fill, is_ipv4_header_good, locate, sum, verify,
};
use proptest::prelude::*;

/// RFC 1071, the slowest way: 16-bit words in network order, carries folded at each step.
fn naive(bytes: &[u8]) -> u16 {
    let mut total = 0u32;
    for (i, byte) in bytes.iter().enumerate() {
        total += u32::from(*byte) << if i % 2 == 0 { 8 } else { 0 };
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// What a frame is to be made of.
#[derive(Clone, Debug)]
struct Shape {
    ip: IpVersion,
    protocol: Protocol,
    vlan: Option<u16>,
    /// Words of IPv4 options.
    options: u8,
    payload: Vec<u8>,
    padding: Vec<u8>,
}

fn shape() -> impl Strategy<Value = Shape> {
    (
        prop_oneof![Just(IpVersion::V4), Just(IpVersion::V6)],
        prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)],
        proptest::option::of(any::<u16>()),
        0u8..=10,
        proptest::collection::vec(any::<u8>(), 0..200),
        proptest::collection::vec(any::<u8>(), 0..20),
    )
        .prop_map(|(ip, protocol, vlan, options, payload, padding)| Shape {
            ip,
            protocol,
            vlan,
            options,
            payload,
            padding,
        })
}

struct Built {
    frame: Vec<u8>,
    /// Where the TCP or UDP header starts, where its checksum is, and where its data ends.
    start: usize,
    field: usize,
    end: usize,
    /// The right value of the field.
    checksum: u16,
}

/// Builds a frame, checksum included, by this file's own arithmetic.
fn build(shape: &Shape) -> Built {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    if let Some(tag) = shape.vlan {
        frame.extend([0x81, 0]);
        frame.extend(tag.to_be_bytes());
    }
    let (number, header_len, field) = match shape.protocol {
        Protocol::Tcp => (6u8, 20, 16),
        Protocol::Udp => (17, 8, 6),
    };
    let len = (header_len + shape.payload.len()) as u16;
    let mut pseudo = Vec::new();
    match shape.ip {
        IpVersion::V4 => {
            let ihl = 5 + shape.options;
            frame.extend([8, 0, 0x40 | ihl, 0]);
            frame.extend((u16::from(ihl) * 4 + len).to_be_bytes());
            frame.extend([0, 7, 0x40, 0, 64, number, 0, 0, 10, 1, 2, 3, 192, 168, 255, 4]);
            pseudo.extend(&frame[frame.len() - 8..]);
            frame.extend((0..usize::from(shape.options) * 4).map(|i| i as u8));
        }
        IpVersion::V6 => {
            frame.extend([0x86, 0xdd, 0x60, 1, 2, 3]);
            frame.extend(len.to_be_bytes());
            frame.extend([number, 64]);
            frame.extend((0..32).map(|i| 0xf0 ^ i));
            pseudo.extend(&frame[frame.len() - 32..]);
        }
    }
    pseudo.extend(len.to_be_bytes());
    pseudo.extend([0, number]);
    let start = frame.len();
    let mut transport = vec![0u8; header_len];
    transport[..4].copy_from_slice(&[0x12, 0x34, 0, 7]);
    match shape.protocol {
        Protocol::Tcp => transport[12] = 0x50,
        Protocol::Udp => transport[4..6].copy_from_slice(&len.to_be_bytes()),
    }
    transport.extend(&shape.payload);
    pseudo.extend(&transport);
    let mut checksum = !naive(&pseudo);
    if checksum == 0 {
        checksum = 0xffff;
    }
    transport[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
    frame.extend(transport);
    let end = frame.len();
    frame.extend(&shape.padding);
    Built { frame, start, field: start + field, end, checksum }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sums_are_the_naive_sum(bytes in proptest::collection::vec(any::<u8>(), 0..5000), skip in 0usize..17) {
        let bytes = bytes.get(skip..).unwrap_or(&[]);
        prop_assert_eq!(sum(bytes), naive(bytes));
    }

    #[test]
    fn a_verdict_is_the_naive_one(
        mut shape in shape(),
        ones in any::<bool>(),
        checksum in prop_oneof![Just(0), Just(0xffff), any::<u16>()],
    ) {
        if ones {
            // As many carries as there can be.
            shape.payload.fill(0xff);
        }
        let mut built = build(&shape);
        built.frame[built.field..built.field + 2].copy_from_slice(&checksum.to_be_bytes());
        let site = locate(&built.frame).expect("a whole frame");
        let summed = [&site.pseudo.to_be_bytes(), &built.frame[built.start..built.end]].concat();
        let unsummed = (shape.ip, shape.protocol, checksum) == (IpVersion::V4, Protocol::Udp, 0);
        prop_assert_eq!(verify(&built.frame) == Verdict::Good, unsummed || naive(&summed) == 0xffff);
    }

    #[test]
    fn an_ipv4_header_is_good_where_its_naive_sum_is(
        mut header: [u8; 20],
        level in prop_oneof![Just(0), Just(0xff), any::<u8>()],
        from in 0usize..20,
        bit in 0usize..160,
    ) {
        header[from..].fill(level);
        prop_assert_eq!(is_ipv4_header_good(&header), naive(&header) == 0xffff);
        header[10..12].fill(0);
        let value = !naive(&header);
        header[10..12].copy_from_slice(&value.to_be_bytes());
        prop_assert!(is_ipv4_header_good(&header));
        header[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(is_ipv4_header_good(&header), naive(&header) == 0xffff);
        prop_assert!(!is_ipv4_header_good(&header));
    }

    #[test]
    fn a_right_checksum_is_good_and_is_what_fill_and_a_device_make(shape in shape()) {
        let built = build(&shape);
        let site = locate(&built.frame).expect("a whole frame");
        prop_assert_eq!((site.start, site.start + site.field, site.end), (built.start, built.field, built.end));
        prop_assert_eq!((site.ip, site.protocol), (shape.ip, shape.protocol));
        prop_assert_eq!(verify(&built.frame), Verdict::Good);

        let mut filled = built.frame.clone();
        filled[built.field..built.field + 2].fill(0x5a);
        prop_assert!(fill(&mut filled));
        prop_assert_eq!(&filled, &built.frame);

        let mut blanked = built.frame.clone();
        prop_assert_eq!(blank(&mut blanked), Some(site));
        // What hardware does with CHECKSUM_PARTIAL: sums from the start to the end, field included.
        let made = match !naive(&blanked[site.start..site.end]) {
            0 => 0xffff,
            made => made,
        };
        prop_assert_eq!(made, built.checksum);
    }

    #[test]
    fn a_flipped_bit_is_bad(shape in shape(), at: prop::sample::Index, bit in 0u8..8) {
        let mut built = build(&shape);
        let at = built.start + at.index(built.end - built.start);
        built.frame[at] ^= 1 << bit;
        let lengths = built.start + 4..built.start + 6;
        if shape.protocol == Protocol::Udp && lengths.contains(&at) {
            // Another datagram, or none.
            return Ok(());
        }
        let unsummed = (shape.ip, shape.protocol) == (IpVersion::V4, Protocol::Udp)
            && built.frame[built.field..built.field + 2] == [0, 0];
        prop_assert_eq!(verify(&built.frame) == Verdict::Good, unsummed);
    }

    #[test]
    fn no_frame_makes_them_leave_the_frame(
        shape in shape(),
        mutations in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut: prop::sample::Index,
        noise in proptest::collection::vec(any::<u8>(), 0..80),
    ) {
        let mut frame = build(&shape).frame;
        for (at, value) in mutations {
            let at = at.index(frame.len());
            frame[at] = value;
        }
        frame.truncate(cut.index(frame.len() + 1));
        for mut frame in [frame, noise] {
            let _ = verify(&frame);
            if let Some(site) = locate(&frame) {
                prop_assert!(site.start + site.field + 2 <= site.end && site.end <= frame.len());
            }
            let before = frame.clone();
            let found = fill(&mut frame);
            prop_assert_eq!(found, locate(&frame).is_some());
            if found {
                prop_assert_eq!(verify(&frame), Verdict::Good);
            } else {
                prop_assert_eq!(before, frame);
            }
        }
    }
}

#[test]
fn the_longest_sums_carry_all_that_they_can() {
    for len in [65_535, 65_534, 65_528, 65_521, 65_504] {
        assert_eq!((sum(&vec![0xff; len]), len), (naive(&vec![0xff; len]), len));
    }
    assert!(!is_ipv4_header_good(&[0; 20]), "a sum of zero, which is none of a header");
    let built = build(&plain(vec![0xff; 65_535 - 28]));
    assert_eq!(verify(&built.frame), Verdict::Good);
}

fn plain(payload: Vec<u8>) -> Shape {
    Shape { ip: IpVersion::V4, protocol: Protocol::Udp, vlan: None, options: 0, payload, padding: vec![] }
}

#[test]
fn a_sum_of_zero_is_sent_as_all_ones() {
    // The complement of a datagram's sum, put into its payload, makes the sum all ones.
    let built = build(&plain(vec![0, 0]));
    let mut frame = build(&plain(built.checksum.to_be_bytes().to_vec())).frame;
    assert!(fill(&mut frame));
    assert_eq!(frame[built.field..built.field + 2], [0xff, 0xff]);
    assert_eq!(verify(&frame), Verdict::Good);
}

#[test]
fn an_ip_header_shorter_than_itself_has_no_checksum() {
    let mut frame = build(&plain(vec![0; 40])).frame;
    // Sixteen bytes of header, which would put a datagram of 20 bytes onto the addresses' second half.
    frame[14] = 0x44;
    frame[34..36].copy_from_slice(&[0, 20]);
    assert_eq!(locate(&frame), None);
    frame[14] = 0x45;
    frame[34..36].copy_from_slice(&[0x12, 0x34]);
    assert!(locate(&frame).is_some());
}
