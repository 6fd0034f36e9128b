//! A loop that does nothing but read the clock: for how long it is kept from that is the machine's own jitter, which no
//! percentile of a measurement on it can be below. Knows nothing of networks.

use std::time::Duration;

use crate::report::SpinReport;
use crate::sys;

/// Time for which the longest pause is noted: that of a short round trip.
const WINDOW_NS: u64 = 200_000;

/// Spins, and sums up the longest pauses of all windows.
pub fn spin(time: Duration) -> SpinReport {
    let time_ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let mut longest_ns = Vec::with_capacity((time_ns / WINDOW_NS) as usize + 1);
    let started_ns = sys::monotonic_ns();
    let (mut last_ns, mut window_ns, mut most_ns) = (started_ns, started_ns, 0);
    while last_ns - started_ns < time_ns {
        let now_ns = sys::monotonic_ns();
        most_ns = most_ns.max(now_ns - last_ns);
        if now_ns - window_ns >= WINDOW_NS {
            longest_ns.push(most_ns);
            (window_ns, most_ns) = (now_ns, 0);
        }
        last_ns = now_ns;
    }
    sum_up(longest_ns)
}

fn sum_up(mut longest_ns: Vec<u64>) -> SpinReport {
    longest_ns.sort_unstable();
    let at = (longest_ns.len() * 99 / 100).min(longest_ns.len().saturating_sub(1));
    SpinReport {
        windows: longest_ns.len() as u64,
        p99_ns: longest_ns.get(at).copied().unwrap_or_default(),
        max_ns: longest_ns.last().copied().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_summed_up() {
        let report = sum_up((1..=200).rev().collect());
        assert_eq!(report, SpinReport { windows: 200, p99_ns: 199, max_ns: 200 });
        assert_eq!(sum_up(Vec::new()), SpinReport { windows: 0, p99_ns: 0, max_ns: 0 });
    }

    #[test]
    fn a_loop_sees_its_windows() {
        let report = spin(Duration::from_millis(20));
        assert!((1..=100).contains(&report.windows) && report.p99_ns <= report.max_ns, "{report:?}");
    }
}
