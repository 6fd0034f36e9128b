//! How much traffic there is, and what that means for the next wake-up.
//!
//! It knows times and counts only. A lone packet is never kept waiting: only what came in of late says that the
//! next look may be put off, or that sleeping is not worth it.

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
}

impl Load {
    /// Counts the frames of a pass. A frame fades within `window_ns`.
    pub(super) fn note(&mut self, now_ns: u64, frames: usize, window_ns: u64, poll_ns: u64) {
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
