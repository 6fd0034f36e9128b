//! Xen's paravirtual clock (public/xen.h, `struct vcpu_time_info`): the arithmetic, without the shared page.

/// One consistent reading of the parameters that Xen publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockParams {
    /// TSC at Xen's last update.
    pub tsc: u64,
    /// System time at Xen's last update.
    pub system_ns: u64,
    /// Nanoseconds per (shifted) tick, as a 32-bit fraction.
    pub multiplier: u32,
    /// Ticks are shifted left by this, or right when it is negative.
    pub shift: i8,
}

impl ClockParams {
    /// Returns the system time at a TSC reading. A reading from before Xen's update counts as the update. A
    /// guest's counter starts near zero, so an update from before its birth has a stamp just below 2^64.
    pub fn system_time_ns(&self, tsc: u64) -> u64 {
        let ticks = tsc.wrapping_sub(self.tsc);
        let ticks = if ticks > u64::MAX / 2 { 0 } else { ticks };
        let shifted = match self.shift {
            shift @ 0.. => ticks.checked_shl(shift.unsigned_abs().into()).unwrap_or(0),
            shift => ticks.checked_shr(shift.unsigned_abs().into()).unwrap_or(0),
        };
        let ns = (u128::from(shifted) * u128::from(self.multiplier)) >> 32;
        self.system_ns.wrapping_add(ns as u64)
    }

    /// Returns the parameters of a clock that ticks at a known frequency and starts now.
    pub fn from_frequency(tsc: u64, hertz: u64) -> Self {
        // multiplier / 2^32 ns per tick must be below one, so ticks of less than 1 GHz are counted shifted.
        let mut shift = 0_i8;
        while (hertz << shift) <= 1_000_000_000 && shift < 20 {
            shift += 1;
        }
        let multiplier = ((1_000_000_000_u128 << 32) / u128::from((hertz << shift).max(1))) as u32;
        Self { tsc, system_ns: 0, multiplier, shift }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_as_the_header_says() {
        // 2 GHz: half a nanosecond a tick.
        let clock = ClockParams { tsc: 1000, system_ns: 7, multiplier: 1 << 31, shift: 0 };
        assert_eq!(clock.system_time_ns(1000), 7);
        assert_eq!(clock.system_time_ns(1000 + 2_000_000_000), 7 + 1_000_000_000);
        // The same with a negative shift: ticks are halved, then count one nanosecond less a bit each.
        let clock = ClockParams { tsc: 0, system_ns: 0, multiplier: u32::MAX, shift: -1 };
        assert_eq!(clock.system_time_ns(2_000_000), 999_999);
        let clock = ClockParams { tsc: 0, system_ns: 0, multiplier: 1 << 31, shift: 1 };
        assert_eq!(clock.system_time_ns(1_000_000), 1_000_000);
    }

    #[test]
    fn never_runs_backwards_or_overflows() {
        let clock = ClockParams { tsc: 500, system_ns: 9, multiplier: u32::MAX, shift: 0 };
        assert_eq!(clock.system_time_ns(400), 9);
        let born_later =
            ClockParams { tsc: 0_u64.wrapping_sub(1000), system_ns: 7, multiplier: 1 << 31, shift: 0 };
        assert_eq!(born_later.system_time_ns(1000), 7 + 1000);
        clock.system_time_ns(u64::MAX);
        ClockParams { tsc: 0, system_ns: u64::MAX, multiplier: 1, shift: i8::MIN }.system_time_ns(u64::MAX);
        ClockParams { tsc: 0, system_ns: u64::MAX, multiplier: 1, shift: i8::MAX }.system_time_ns(u64::MAX);
    }

    #[test]
    fn a_measured_frequency_makes_seconds() {
        for hertz in [1_193_182, 999_999_999, 1_000_000_000, 2_400_000_000, 5_000_000_000] {
            let clock = ClockParams::from_frequency(10, hertz);
            let hour = clock.system_time_ns(10 + 3600 * hertz);
            let error = hour.abs_diff(3_600_000_000_000);
            assert!(error < 100_000, "{hertz} Hz: an hour is off by {error} ns");
        }
    }
}
