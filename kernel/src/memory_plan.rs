//! How much of the machine's memory the guest may touch. Under PVH with `maxmem` above `memory` the memory map
//! shows `maxmem`, and the pages between are populated on demand from a pool that holds `memory`: a guest that
//! touches more is killed. Plain arithmetic.

/// How the size of the memory was settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLimit {
    /// Bytes that may be touched, counted from the lowest address of the memory map.
    pub bytes: u64,
    /// Where that number is from.
    pub source: LimitSource,
}

/// Where the limit is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitSource {
    /// All that the memory map shows.
    MemoryMap,
    /// xenstore's `memory/target`, which is less.
    Target,
}

/// Returns the limit for a memory map of `map_bytes` and the text of `memory/target`, which is in KiB. A target
/// that is missing or unreadable limits nothing: then the memory map is all there is to go by.
pub fn limit(map_bytes: u64, target_kib: Option<&str>) -> MemoryLimit {
    let target_bytes = target_kib
        .and_then(|text| text.trim().parse::<u64>().ok())
        .and_then(|kib| kib.checked_mul(1024))
        .map(|bytes| bytes & !4095);
    match target_bytes {
        Some(bytes) if bytes < map_bytes => MemoryLimit { bytes, source: LimitSource::Target },
        _ => MemoryLimit { bytes: map_bytes, source: LimitSource::MemoryMap },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_limits_only_downwards() {
        let all = MemoryLimit { bytes: 64 << 20, source: LimitSource::MemoryMap };
        assert_eq!(limit(64 << 20, None), all);
        assert_eq!(limit(64 << 20, Some("65536")), all);
        assert_eq!(limit(64 << 20, Some("99999999999999999999")), all);
        assert_eq!(limit(64 << 20, Some("18446744073709551615")), all);
        assert_eq!(limit(64 << 20, Some("x")), all);
        let some = MemoryLimit { bytes: 16381 << 10 & !4095, source: LimitSource::Target };
        assert_eq!(limit(64 << 20, Some("16381")), some);
    }
}
