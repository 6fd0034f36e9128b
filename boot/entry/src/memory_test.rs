//! Compares memory.s with the obvious loops, at every small length, offset and overlap.

use core::arch::global_asm;

global_asm!(include_str!("memory.s"), options(att_syntax));

unsafe extern "C" {
    fn drayage_memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8;
    fn drayage_memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8;
    fn drayage_memset(to: *mut u8, byte: i32, len: usize) -> *mut u8;
    fn drayage_memcmp(a: *const u8, b: *const u8, len: usize) -> i32;
    fn drayage_strlen(text: *const u8) -> usize;
}

const LENGTHS: [usize; 23] =
    [0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 1023, 1500, 1501];

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251) as u8).collect()
}

#[test]
fn copies_like_a_loop() {
    for len in (0..300).chain([1023, 1024, 1025, 1030, 1031, 4096, 5001]) {
        for offset in 0..3 {
            let from = pattern(len + 8);
            let mut to = vec![0xee_u8; len + 8];
            // SAFETY: both vectors hold offset + len bytes.
            let start = unsafe { to.as_mut_ptr().add(offset) };
            // SAFETY: as above, and the vectors do not overlap.
            let back = unsafe { drayage_memcpy(start, from.as_ptr(), len) };
            assert_eq!(back, start);
            assert_eq!(to[offset..offset + len], from[..len], "len {len}");
            assert!(to[..offset].iter().chain(&to[offset + len..]).all(|byte| *byte == 0xee));
        }
    }
}

#[test]
fn moves_overlapping_bytes() {
    for len in LENGTHS {
        for distance in [0, 1, 3, 8, 16, 17, 63, 64, 65, 200] {
            for (from, to) in [(0, distance), (distance, 0)] {
                let mut bytes = pattern(len + 256);
                let mut expected = bytes.clone();
                expected.copy_within(from..from + len, to);
                let base = bytes.as_mut_ptr();
                // SAFETY: from + len lies inside the vector.
                let source = unsafe { base.add(from) };
                // SAFETY: to + len lies inside the vector.
                let target = unsafe { base.add(to) };
                // SAFETY: both ranges lie inside the vector; memmove allows them to overlap.
                unsafe { drayage_memmove(target, source, len) };
                assert!(bytes == expected, "len {len} from {from} to {to}");
            }
        }
    }
}

#[test]
fn sets_and_compares() {
    for len in (0..300).chain([1023, 1024, 1025, 4099]) {
        let mut bytes = vec![0xee_u8; len + 2];
        // SAFETY: the vector holds len + 2 bytes.
        let start = unsafe { bytes.as_mut_ptr().add(1) };
        // SAFETY: as above.
        unsafe { drayage_memset(start, 0x1a5, len) };
        assert!(bytes[1..=len].iter().all(|byte| *byte == 0xa5), "len {len}");
        assert_eq!((bytes[0], bytes[len + 1]), (0xee, 0xee), "len {len}");
    }
    for len in LENGTHS {
        let a = pattern(len);
        let mut b = a.clone();
        // SAFETY: both hold len bytes.
        assert_eq!(unsafe { drayage_memcmp(a.as_ptr(), b.as_ptr(), len) }, 0);
        for at in 0..len {
            b[at] = b[at].wrapping_add(100);
            // SAFETY: both hold len bytes.
            let order = unsafe { drayage_memcmp(a.as_ptr(), b.as_ptr(), len) };
            assert_eq!(order.cmp(&0), a.cmp(&b), "len {len} at {at}");
            b[at] = a[at];
        }
    }
    // SAFETY: the text ends in NUL.
    assert_eq!(unsafe { drayage_strlen(c"drayage".as_ptr().cast()) }, 7);
}
