//! Whether whoever shares a processor leaves vector registers as they were. Knows nothing of who that is.

use crate::report::RegistersReport;
use crate::sys;

/// Counts of the loop between a look and the next: about a millisecond of emulation, in which a process is seldom
/// interrupted and often enough.
const COUNT: u64 = 20_000;

/// Looks for some seconds whether registers keep their values.
pub fn watch(seconds: u64) -> RegistersReport {
    let until_ns = sys::monotonic_ns() + seconds * 1_000_000_000;
    let mut report = RegistersReport { looks: 0, lost: 0 };
    while sys::monotonic_ns() < until_ns {
        report.looks += 1;
        let seed = report.looks as u8;
        report.lost += u64::from(!sys::keeps_vector_registers(COUNT, seed));
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_keeps_them() {
        let report = watch(1);
        assert!(report.looks > 100, "{report:?}");
        assert_eq!(report.lost, 0);
    }
}
