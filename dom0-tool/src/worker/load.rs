//! How much traffic there is, and what that means for the next wake-up.
//!
//! It knows times and counts only. A lone packet is never kept waiting: only what came in of late says that the
//! next look may be put off, for how long, or that sleeping is not worth it.

/// Frames that make a look worth its wake-up, which is estimated, not measured, to cost some 50 k instructions in dom0
/// and Xen.
const WORTH_FRAMES: u64 = 128;
/// Looks during which the hold-off stays at its least once a longer one has slowed the senders down.
const SHORT_LOOKS: u32 = 256;

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
    found: u64,
    /// When that was.
    looked_ns: u64,
    /// For how long the next one was put off then; 0 when it was not.
    holdoff_ns: u64,
    /// Frames in a millisecond when the hold-off last grew.
    rate: u64,
    /// Looks for which it is not to grow.
    short: u32,
}

impl Load {
    /// Counts the frames of a pass. A frame fades within `window_ns`.
    pub(super) fn note(&mut self, now_ns: u64, frames: usize, window_ns: u64, poll_ns: u64) {
        self.found += frames as u64;
        let passed = now_ns.saturating_sub(self.at_ns);
        self.at_ns = now_ns;
        self.frames = match window_ns.checked_sub(passed) {
            Some(left) if left > 0 => {
                (u128::from(self.frames) * u128::from(left) / u128::from(window_ns)) as u64
            }
            _ => 0,
        };
        if frames > 0 {
            self.frames += (frames as u64) << 8;
            self.close = now_ns.saturating_sub(self.last_ns) <= poll_ns;
            self.last_ns = now_ns;
        }
    }

    /// Returns for how long the next look is put off now that nothing is left: not at all unless `busy_frames` came in
    /// of late, and from `least_ns` to `most_ns` else, for longer while looks bring few frames. Who sends less because
    /// of that, such as one who waits for answers, is looked at as often as before.
    pub(super) fn put_off_ns(&mut self, now_ns: u64, busy_frames: usize, least_ns: u64, most_ns: u64) -> u64 {
        let found = std::mem::take(&mut self.found);
        let passed_ns = now_ns.saturating_sub(std::mem::replace(&mut self.looked_ns, now_ns));
        if found == 0 || least_ns == 0 || !self.reaches(busy_frames) {
            self.holdoff_ns = 0;
            return 0;
        }
        let rate = found.saturating_mul(1_000_000) / passed_ns.max(1);
        self.short = self.short.saturating_sub(1);
        if self.holdoff_ns > least_ns && 4 * u128::from(rate) < 3 * u128::from(self.rate) {
            (self.holdoff_ns, self.short) = (least_ns, SHORT_LOOKS);
            return least_ns;
        }
        let before_ns = self.holdoff_ns;
        let wanted_ns = if found < WORTH_FRAMES && self.short == 0 {
            2 * before_ns
        } else if found < 3 * WORTH_FRAMES {
            before_ns
        } else {
            before_ns / 2
        };
        self.holdoff_ns = wanted_ns.min(most_ns).max(least_ns);
        if self.holdoff_ns > before_ns {
            self.rate = rate;
        }
        self.holdoff_ns
    }

    /// Returns whether at least so many frames came in within about one window.
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

    const WINDOW_NS: u64 = 100_000;

    /// Lets single frames come in at a steady rate. Returns whether the load reached eight.
    fn steady(gap_ns: u64) -> bool {
        let mut load = Load::default();
        (1..1000).any(|n| {
            load.note(n * gap_ns, 1, WINDOW_NS, 0);
            load.reaches(8)
        })
    }

    #[test]
    fn a_rate_counts_even_if_each_wake_up_brings_one_frame() {
        assert!(!steady(1_000_000), "a thousand a second");
        assert!(!steady(33_000), "thirty thousand a second");
        assert!(steady(5_000), "two hundred thousand a second");
    }

    #[test]
    fn a_burst_counts_and_fades() {
        let mut load = Load::default();
        load.note(1_000_000, 8, WINDOW_NS, 0);
        assert!(load.reaches(8));
        load.note(1_000_000 + WINDOW_NS / 2, 0, WINDOW_NS, 0);
        assert!(load.reaches(4) && !load.reaches(5));
        load.note(1_000_000 + 2 * WINDOW_NS, 0, WINDOW_NS, 0);
        assert!(!load.reaches(1));
    }

    const MOST_NS: u64 = 4 * WINDOW_NS;

    /// Lets a sender be looked at so many times who sends `frames` in so long a time. Returns the hold-offs.
    fn looks(load: &mut Load, count: usize, frames: impl Fn(u64) -> u64) -> Vec<u64> {
        let mut now_ns = load.at_ns + 20_000;
        let mut held = Vec::new();
        for _ in 0..count {
            let passed_ns = now_ns - load.looked_ns;
            load.note(now_ns, frames(passed_ns) as usize, WINDOW_NS, 0);
            let put_off_ns = load.put_off_ns(now_ns, 8, WINDOW_NS, MOST_NS);
            held.push(put_off_ns / WINDOW_NS);
            now_ns += put_off_ns + 20_000;
        }
        held
    }

    #[test]
    fn looks_that_bring_little_are_put_off_for_longer_and_those_that_bring_much_for_less() {
        // A frame in two microseconds, whatever we do.
        let mut load = Load::default();
        assert_eq!(looks(&mut load, 7, |passed_ns| passed_ns / 2000), [1, 2, 4, 4, 4, 4, 4]);
        assert_eq!(looks(&mut load, 4, |passed_ns| passed_ns / 500), [4, 2, 1, 1], "four times as many");
        assert_eq!(looks(&mut load, 3, |_| 3)[1..], [0, 0], "too few, once the others have faded");
        load.looked_ns = load.at_ns;
        assert_eq!(looks(&mut load, 2, |_| 0), [0, 0]);
        load.note(load.at_ns + 1_000_000, 100, WINDOW_NS, 0);
        assert_eq!(load.put_off_ns(load.at_ns, 8, 0, MOST_NS), 0, "it is off");
    }

    #[test]
    fn one_who_waits_for_answers_is_not_slowed_down_by_a_longer_hold() {
        let mut load = Load::default();
        let held = looks(&mut load, 600, |_| 60);
        assert_eq!(held[..4], [1, 2, 1, 1]);
        let longer = held.iter().filter(|held| **held > 1).count();
        assert!(longer < 5, "{longer} of 600 looks were put off for longer");
    }

    #[test]
    fn polling_is_for_traffic_that_it_would_have_caught() {
        let poll_ns = 20_000;
        let mut load = Load::default();
        load.note(1_000_000, 1, WINDOW_NS, poll_ns);
        assert!(!load.is_worth_polling(1_000_001, poll_ns), "the first after a long time");
        load.note(1_010_000, 1, WINDOW_NS, poll_ns);
        assert!(load.is_worth_polling(1_010_001, poll_ns));
        load.note(1_029_999, 0, WINDOW_NS, poll_ns);
        assert!(load.is_worth_polling(1_029_999, poll_ns));
        assert!(!load.is_worth_polling(1_030_000, poll_ns), "the budget is spent");
        assert!(!load.is_worth_polling(1_010_001, 0), "it is off");
    }
}
