//! How much traffic there is, and what that means for the next wake-up.
//!
//! It knows times and counts only. A lone packet is never kept waiting: only what came in of late says that the
//! next look may be put off, for how long, or that sleeping is not worth it.

/// Frames that make a wake-up worth its price: where a look brings fewer, the next one is put off for longer.
const WORTH_FRAMES: usize = 64;
/// Hold-offs within which a frame fades: what is to be told apart lies around a few frames in each.
const FADING: u64 = 2;

/// The traffic of late.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Load {
    /// Frames of late, in 256ths: each fades linearly.
    frames: u64,
    /// When that was brought up to date.
    at_ns: u64,
    /// When frames came in last.
    last_ns: u64,
    /// Whether they came so soon after those before them that polling would have caught them.
    close: bool,
    /// Frames since the last look that left nothing behind.
    found: usize,
    /// For how long the last look was put off; 0 when it was not.
    holdoff_ns: u64,
    /// From where frames came last.
    side: Side,
}

/// From where the frames of a pass came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Side {
    /// From guests, or from several sides.
    #[default]
    Guests,
    /// From uplinks or other workers.
    Outside,
}

impl Load {
    /// Counts the frames of a pass. A frame fades within two hold-offs. One that comes alone after one from the
    /// other side is taken for its answer, which somebody waits for, and counts for nothing.
    pub(super) fn note(&mut self, now_ns: u64, frames: usize, side: Side, holdoff_ns: u64, poll_ns: u64) {
        let window_ns = FADING * holdoff_ns;
        self.found += frames;
        let passed = now_ns.saturating_sub(self.at_ns);
        self.at_ns = now_ns;
        self.frames = match window_ns.checked_sub(passed) {
            Some(left) if left > 0 => {
                (u128::from(self.frames) * u128::from(left) / u128::from(window_ns)) as u64
            }
            _ => 0,
        };
        if frames > 0 {
            if frames > 1 || side == self.side {
                self.frames += (frames as u64) << 8;
            }
            self.side = side;
            self.close = now_ns.saturating_sub(self.last_ns) <= poll_ns;
            self.last_ns = now_ns;
        }
    }

    /// Returns for how long the next look is put off, from `least_ns` to `most_ns`, now that nothing is left: for
    /// longer while looks bring few frames, and for no time unless `busy_frames` came in of late.
    pub(super) fn put_off_ns(&mut self, busy_frames: usize, least_ns: u64, most_ns: u64) -> u64 {
        let found = std::mem::take(&mut self.found);
        if found == 0 || !self.reaches(busy_frames) {
            self.holdoff_ns = 0;
            return 0;
        }
        let wanted_ns = if found < WORTH_FRAMES {
            2 * self.holdoff_ns
        } else if found < 3 * WORTH_FRAMES {
            self.holdoff_ns
        } else {
            self.holdoff_ns / 2
        };
        self.holdoff_ns = wanted_ns.min(most_ns).max(least_ns);
        self.holdoff_ns
    }

    /// Returns whether at least so many frames came in within about two hold-offs.
    pub(super) fn reaches(self, frames: usize) -> bool {
        self.frames >= (frames as u64) << 8
    }

    /// Returns whether looking again at once is better than sleeping.
    pub(super) fn is_worth_polling(self, now_ns: u64, poll_ns: u64) -> bool {
        self.close && now_ns.saturating_sub(self.last_ns) < poll_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLDOFF_NS: u64 = 100_000;

    /// Lets single frames come in at a steady rate. Returns whether the load reached eight.
    fn steady(gap_ns: u64) -> bool {
        let mut load = Load::default();
        (1..1000).any(|n| {
            load.note(n * gap_ns, 1, Side::Outside, HOLDOFF_NS, 0);
            load.reaches(8)
        })
    }

    #[test]
    fn a_rate_counts_even_if_each_wake_up_brings_one_frame() {
        assert!(!steady(1_000_000), "a thousand a second");
        assert!(!steady(33_000), "thirty thousand a second");
        assert!(steady(11_000), "ninety thousand a second");
    }

    #[test]
    fn question_and_answer_are_no_load_however_fast_they_follow() {
        let mut load = Load::default();
        for n in 1..1000 {
            let side = if n % 2 == 0 { Side::Guests } else { Side::Outside };
            load.note(n * 5_000, 1, side, HOLDOFF_NS, 0);
            assert!(!load.reaches(1));
        }
        load.note(6_000_000, 1, Side::Guests, HOLDOFF_NS, 0);
        load.note(6_005_000, 1, Side::Guests, HOLDOFF_NS, 0);
        assert!(load.reaches(1), "two one after the other are");
    }

    #[test]
    fn a_burst_counts_and_fades() {
        let mut load = Load::default();
        load.note(1_000_000, 8, Side::Outside, HOLDOFF_NS, 0);
        assert!(load.reaches(8));
        load.note(1_000_000 + HOLDOFF_NS, 0, Side::Outside, HOLDOFF_NS, 0);
        assert!(load.reaches(4) && !load.reaches(5));
        load.note(1_000_000 + 4 * HOLDOFF_NS, 0, Side::Outside, HOLDOFF_NS, 0);
        assert!(!load.reaches(1));
    }

    #[test]
    fn looks_that_bring_little_are_put_off_for_longer_and_those_that_bring_much_for_less() {
        const MOST_NS: u64 = 4 * HOLDOFF_NS;
        let (mut load, mut now_ns, mut put_off_ns) = (Load::default(), 0, Vec::new());
        for frames in [1, 9, 20, 40, 80, 80, 300, 100, 7, 20] {
            now_ns += 1_000_000;
            load.note(now_ns, frames, Side::Outside, HOLDOFF_NS, 0);
            put_off_ns.push(load.put_off_ns(8, HOLDOFF_NS, MOST_NS) / HOLDOFF_NS);
        }
        assert_eq!(put_off_ns, [0, 1, 2, 4, 4, 4, 2, 2, 0, 1]);
    }

    #[test]
    fn what_several_passes_took_is_what_one_look_brought() {
        let mut load = Load::default();
        load.note(1_000_000, 20, Side::Outside, HOLDOFF_NS, 0);
        assert_eq!(load.put_off_ns(8, HOLDOFF_NS, 4 * HOLDOFF_NS), HOLDOFF_NS);
        load.note(2_000_000, 60, Side::Outside, HOLDOFF_NS, 0);
        load.note(2_001_000, 10, Side::Outside, HOLDOFF_NS, 0);
        assert_eq!(load.put_off_ns(8, HOLDOFF_NS, 4 * HOLDOFF_NS), HOLDOFF_NS, "70 are enough");
        assert_eq!(load.put_off_ns(8, HOLDOFF_NS, 4 * HOLDOFF_NS), 0, "none are none");
    }

    #[test]
    fn polling_is_for_traffic_that_it_would_have_caught() {
        let poll_ns = 20_000;
        let mut load = Load::default();
        load.note(1_000_000, 1, Side::Outside, HOLDOFF_NS, poll_ns);
        assert!(!load.is_worth_polling(1_000_001, poll_ns), "the first after a long time");
        load.note(1_010_000, 1, Side::Outside, HOLDOFF_NS, poll_ns);
        assert!(load.is_worth_polling(1_010_001, poll_ns));
        load.note(1_029_999, 0, Side::Outside, HOLDOFF_NS, poll_ns);
        assert!(load.is_worth_polling(1_029_999, poll_ns));
        assert!(!load.is_worth_polling(1_030_000, poll_ns), "the budget is spent");
        assert!(!load.is_worth_polling(1_010_001, 0), "it is off");
    }
}
