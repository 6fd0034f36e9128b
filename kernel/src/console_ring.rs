//! Index arithmetic of the console's output ring (public/io/console.h). The other end writes one of the two
//! indices, so every value of it must be bearable.

/// Bytes of the output ring.
pub const OUT_BYTES: u32 = 2048;

/// Returns how many bytes may be written now. An impossible consumer index counts as a full ring.
pub fn room(producer: u32, consumer: u32) -> u32 {
    OUT_BYTES.saturating_sub(producer.wrapping_sub(consumer))
}

/// Returns the slot of a byte.
pub fn slot(index: u32) -> usize {
    (index % OUT_BYTES) as usize
}

/// Tells whether the other end has taken everything.
pub fn is_drained(producer: u32, consumer: u32) -> bool {
    producer == consumer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_shrinks_to_nothing_and_wraps() {
        assert_eq!(room(0, 0), 2048);
        assert_eq!(room(2048, 0), 0);
        assert_eq!(room(5, u32::MAX - 4), 2048 - 10);
        assert_eq!(slot(u32::MAX), 2047);
        assert!(is_drained(7, 7) && !is_drained(8, 7));
    }

    #[test]
    fn a_lying_consumer_gets_nothing() {
        assert_eq!(room(0, 1), 0);
        assert_eq!(room(5000, 0), 0);
    }
}
