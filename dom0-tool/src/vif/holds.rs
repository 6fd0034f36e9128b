//! How long packets were held: a histogram of fixed size, the jitter, and the lateness of what was held too long.
//!
//! A packet's hold is the time from its acceptance by the switch to the end of the copy into the guest's page. All
//! packets that one pass accepted into one container have both in common, so that they are counted together
//! ([`Stamps`]): the cost is a comparison for each packet, and one count for each pass that fed a container. It knows
//! no clock, no container and no ring.

use serde::{Deserialize, Serialize};

/// Steps between a power of two and the next: a bucket is at most a sixteenth of its lower end wide.
const STEP_BITS: u32 = 4;
/// The finest that is told apart, as a power of two: 64 ns.
const UNIT_BITS: u32 = 6;
/// Buckets up to 2^31 ns (2.1 s), more than twice what a policy may hold; what is longer is in the last.
const BUCKETS: usize = 22 << STEP_BITS;

/// The hold times of one vif's packets.
#[derive(Clone, PartialEq, Eq)]
pub struct Holds {
    buckets: [u64; BUCKETS],
    packets: u64,
    max_ns: u64,
    sum_ns: u64,
    /// The last packet's.
    last_ns: u64,
    /// The sum of the differences between each packet's and the next one's.
    changes_ns: u64,
}

fn bucket(hold_ns: u64) -> usize {
    let value = hold_ns >> UNIT_BITS;
    let octave = (value >> STEP_BITS).checked_ilog2().map_or(0, |log| log + 1);
    let step = if octave == 0 { value } else { (value >> (octave - 1)) & ((1 << STEP_BITS) - 1) };
    (((octave as usize) << STEP_BITS) + step as usize).min(BUCKETS - 1)
}

/// Returns the first value beyond a bucket.
fn end_ns(bucket: usize) -> u64 {
    let (octave, step) = (bucket >> STEP_BITS, (bucket & ((1 << STEP_BITS) - 1)) as u64);
    let (base, shift) = if octave == 0 { (0, 0) } else { (1 << STEP_BITS, octave - 1) };
    (base + step + 1) << shift << UNIT_BITS
}

impl Holds {
    /// Counts so many packets that were held equally long.
    #[inline]
    pub fn count(&mut self, hold_ns: u64, packets: u64) {
        self.buckets[bucket(hold_ns)] += packets;
        if self.packets > 0 {
            self.changes_ns = self.changes_ns.saturating_add(hold_ns.abs_diff(self.last_ns));
        }
        self.packets += packets;
        self.sum_ns = self.sum_ns.saturating_add(hold_ns.saturating_mul(packets));
        self.max_ns = self.max_ns.max(hold_ns);
        self.last_ns = hold_ns;
    }

    /// Returns them as they are shown.
    pub fn summary(&self) -> HoldTimes {
        let filled = self.buckets.iter().enumerate().filter(|(_, packets)| **packets > 0);
        HoldTimes {
            packets: self.packets,
            p50_ns: self.quantile_ns(500),
            p99_ns: self.quantile_ns(990),
            max_ns: self.max_ns,
            mean_ns: self.sum_ns.checked_div(self.packets).unwrap_or(0),
            jitter_ns: self.changes_ns.checked_div(self.packets.saturating_sub(1)).unwrap_or(0),
            buckets: filled
                .map(|(at, packets)| HoldBucket { below_ns: end_ns(at), packets: *packets })
                .collect(),
        }
    }

    /// Returns what so many thousandths of the packets were held for at most, rounded up to a bucket's end.
    fn quantile_ns(&self, per_mille: u64) -> u64 {
        let rank = (u128::from(self.packets) * u128::from(per_mille)).div_ceil(1000) as u64;
        let mut seen = 0;
        for (at, packets) in self.buckets.iter().enumerate() {
            seen += packets;
            if seen >= rank && seen > 0 {
                return end_ns(at).min(self.max_ns);
            }
        }
        0
    }
}

impl Default for Holds {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS], packets: 0, max_ns: 0, sum_ns: 0, last_ns: 0, changes_ns: 0 }
    }
}

impl std::fmt::Debug for Holds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.summary().fmt(f)
    }
}

/// How long packets were held, as it is shown: times in nanoseconds, quantiles up to a sixteenth too high.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldTimes {
    /// Packets that were handed over.
    pub packets: u64,
    /// Half of them were held for at most this.
    pub p50_ns: u64,
    /// Of a hundred, 99 were held for at most this.
    pub p99_ns: u64,
    /// The longest.
    pub max_ns: u64,
    /// The mean.
    pub mean_ns: u64,
    /// The mean absolute difference between a packet's and the next one's.
    pub jitter_ns: u64,
    /// How many packets were held for less than so long, and not for less than the bucket before; empty buckets are
    /// left out. Two of these subtract.
    pub buckets: Vec<HoldBucket>,
}

/// A bucket of [`HoldTimes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldBucket {
    /// Where it ends.
    pub below_ns: u64,
    /// Packets in it.
    pub packets: u64,
}

/// Containers that went out later than their policy allows, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Late {
    /// Containers.
    pub containers: u64,
    /// By how much they were late together.
    pub sum_ns: u64,
    /// By how much the latest was late.
    pub max_ns: u64,
}

impl Late {
    /// Counts a container whose first packet was held for `hold_ns` where `bound_ns` is allowed.
    pub fn judge(&mut self, hold_ns: u64, bound_ns: u64) {
        if let Some(late_ns @ 1..) = hold_ns.checked_sub(bound_ns) {
            self.containers += 1;
            self.sum_ns = self.sum_ns.saturating_add(late_ns);
            self.max_ns = self.max_ns.max(late_ns);
        }
    }
}

/// Acceptance times that one container tells apart.
const STAMPS: usize = 32;

/// When the packets of one container were accepted: for each pass that brought some, how long after the first, and
/// how many.
///
/// A container that more passes feed than there is room for has neighbouring ones merged, at the earlier time. A hold
/// is then shown too long, never too short, by at most the time between the two.
#[derive(Clone, Copy, Debug)]
pub struct Stamps {
    used: usize,
    entries: [Stamp; STAMPS],
}

#[derive(Clone, Copy, Debug, Default)]
struct Stamp {
    after_ns: u32,
    packets: u32,
}

impl Stamps {
    /// No packets.
    pub const NONE: Self = Self { used: 0, entries: [Stamp { after_ns: 0, packets: 0 }; STAMPS] };

    /// Forgets them.
    pub fn clear(&mut self) {
        self.used = 0;
    }

    /// Notes a packet that was accepted so long after the first, and not before the one before.
    #[inline]
    pub fn add(&mut self, after_ns: u64) {
        self.add_many(after_ns, 1);
    }

    /// As [`add`](Self::add), for packets that were accepted together.
    #[inline]
    pub fn add_many(&mut self, after_ns: u64, packets: u32) {
        let after_ns = u32::try_from(after_ns).unwrap_or(u32::MAX);
        if let Some(last) = self.entries[..self.used].last_mut()
            && last.after_ns == after_ns
        {
            last.packets += packets;
            return;
        }
        if self.used == STAMPS {
            self.merge();
        }
        self.entries[self.used] = Stamp { after_ns, packets };
        self.used += 1;
    }

    #[cold]
    fn merge(&mut self) {
        for at in 0..STAMPS / 2 {
            let (first, second) = (self.entries[2 * at], self.entries[2 * at + 1]);
            self.entries[at] = Stamp { packets: first.packets + second.packets, ..first };
        }
        self.used = STAMPS / 2;
    }

    /// Returns how long after the first so many packets were accepted, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.entries[..self.used].iter().map(|stamp| (u64::from(stamp.after_ns), u64::from(stamp.packets)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn buckets_join_without_gaps() {
        let mut start_ns = 0;
        for at in 0..BUCKETS - 1 {
            let end_ns = end_ns(at);
            assert!(start_ns < end_ns);
            assert_eq!((bucket(start_ns), bucket(end_ns - 1), bucket(end_ns)), (at, at, at + 1));
            assert!(end_ns - start_ns <= 64.max(start_ns / 16), "{start_ns} to {end_ns}");
            start_ns = end_ns;
        }
        assert!(start_ns > 2_000_000_000);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn nothing_was_held_for_no_time() {
        assert_eq!(Holds::default().summary(), HoldTimes::default());
    }

    #[test]
    fn what_is_shown_is_what_was_counted() {
        let mut holds = Holds::default();
        holds.count(1000, 98);
        holds.count(50_000, 1);
        holds.count(900_000, 1);
        let shown = holds.summary();
        assert_eq!((shown.packets, shown.max_ns, shown.mean_ns), (100, 900_000, (98_000 + 950_000) / 100));
        assert!((1000..=1063).contains(&shown.p50_ns), "{shown:?}");
        assert!((50_000..=53_125).contains(&shown.p99_ns), "{shown:?}");
        // Ninety-seven times no change, then 49 us and 850 us, over 99 pairs.
        assert_eq!(shown.jitter_ns, (49_000 + 850_000) / 99);
        assert_eq!(shown.buckets.iter().map(|b| b.packets).collect::<Vec<_>>(), [98, 1, 1]);
        assert!(shown.buckets.iter().map(|b| b.below_ns).is_sorted());
    }

    #[test]
    fn lateness_is_what_is_beyond_the_bound() {
        let mut late = Late::default();
        late.judge(500, 500);
        assert_eq!(late, Late::default());
        late.judge(501, 500);
        late.judge(800, 500);
        assert_eq!(late, Late { containers: 2, sum_ns: 301, max_ns: 300 });
    }

    proptest! {
        /// Quantiles are never below the true ones, and at most a sixteenth and a unit above.
        #[test]
        fn quantiles_are_close(mut values in proptest::collection::vec(0..2_000_000_000u64, 1..300)) {
            let mut holds = Holds::default();
            for value in &values {
                holds.count(*value, 1);
            }
            values.sort_unstable();
            let shown = holds.summary();
            for (shown_ns, per_mille) in [(shown.p50_ns, 500), (shown.p99_ns, 990)] {
                let true_ns = values[(values.len() * per_mille).div_ceil(1000) - 1];
                prop_assert!(shown_ns >= true_ns && shown_ns <= true_ns + true_ns / 16 + 64);
            }
        }

        /// However many passes feed a container, no packet is lost, and none is said to be younger than it is.
        #[test]
        fn stamps_err_on_the_old_side(gaps in proptest::collection::vec(0..1000u64, 1..500)) {
            let mut stamps = Stamps::NONE;
            let mut times = Vec::new();
            let mut now_ns = 0;
            for gap in gaps {
                now_ns += gap;
                times.push(now_ns);
                stamps.add(now_ns);
            }
            let told: Vec<u64> =
                stamps.iter().flat_map(|(after_ns, packets)| (0..packets).map(move |_| after_ns)).collect();
            prop_assert_eq!(told.len(), times.len());
            for (told_ns, true_ns) in told.iter().zip(&times) {
                prop_assert!(told_ns <= true_ns);
            }
            let distinct = times.windows(2).filter(|pair| pair[0] != pair[1]).count() + 1;
            if distinct <= STAMPS {
                prop_assert_eq!(told, times);
            }
        }
    }
}
