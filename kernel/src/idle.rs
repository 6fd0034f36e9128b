//! Waiting on a machine without Xen. There are no interrupts, so a nap is short and its caller looks again.

use crate::time;

/// The longest nap, so that a device that cannot wake us is looked at often.
const MAX_NAP_NS: u64 = 50_000;

/// Waits until the deadline, or for a short while.
pub(crate) fn nap(deadline_ns: Option<u64>) {
    let end_ns = (time::now_ns() + MAX_NAP_NS).min(deadline_ns.unwrap_or(u64::MAX));
    while time::now_ns() < end_ns {
        core::hint::spin_loop();
    }
}
