//! How the system schedules the data path's thread: timers that are exact, and, if asked for, ahead of all ordinary
//! processes.
//!
//! It knows the calling thread, and nothing of what that does.

use std::num::NonZeroU64;

use thread_priority::{
    Error, RealtimeThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id,
};

use crate::control::error::{Failure, FailureKind};

/// Has the calling thread woken when it asked to be, not up to 50 us later so that the system can save wake-ups: a
/// wake-up of ours serves many packets already.
pub(super) fn exact_timers() {
    // Where this is refused, deadlines are met a little later, and the slack is learned as everything else is.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
}

/// Puts the calling thread under `SCHED_FIFO`, at its lowest priority: above all ordinary processes, and below what a
/// system runs in real time of its own, such as the interrupt threads that packets come through.
///
/// # Errors
/// [`Failure`], which says what is missing.
pub(super) fn enter() -> Result<(), Failure> {
    let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo);
    set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, policy).map_err(|error| {
        match error {
            Error::OS(libc::EPERM) => Failure::new(
                FailureKind::Denied,
                "no permission to run in real time (SCHED_FIFO): CAP_SYS_NICE is missing; run as root, grant it \
                 (systemd: AmbientCapabilities=CAP_SYS_NICE or LimitRTPRIO=1), or leave out --realtime",
            ),
            Error::OS(code) => refused(&std::io::Error::from_raw_os_error(code).to_string()),
            other => refused(&other.to_string()),
        }
    })
}

fn refused(why: &str) -> Failure {
    let message = format!("cannot run in real time (SCHED_FIFO): {why}; leave out --realtime");
    Failure::new(FailureKind::Other, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

    /// Returns what came of it, and the priority and policy that the system then shows for the thread.
    fn tried() -> (Result<(), Failure>, [String; 2]) {
        exact_timers();
        let result = enter();
        let stat = std::fs::read_to_string("/proc/thread-self/stat").expect("Linux has it");
        // Fields 40 and 41 of the line, counted behind the name, which may have spaces.
        let fields: Vec<&str> = stat.rsplit(')').next().expect("a name").split_whitespace().collect();
        (result, [fields[37].into(), fields[38].into()])
    }

    #[test]
    fn real_time_is_granted_or_what_is_missing_is_named() {
        match std::thread::spawn(tried).join().expect("no panic") {
            (Ok(()), shown) => assert_eq!(shown, ["1", "1"], "SCHED_FIFO, at its lowest priority"),
            (Err(failure), _) => assert_eq!(failure.kind, FailureKind::Denied, "{failure}"),
        }
        // Without the capability, whoever we are.
        let without = std::thread::spawn(|| {
            let mut sets = capabilities(None).expect("the system tells");
            sets.effective.remove(CapabilitySet::SYS_NICE);
            set_capabilities(None, sets).expect("less is always allowed");
            tried()
        });
        let (result, shown) = without.join().expect("no panic");
        let failure = result.expect_err("it is not allowed");
        assert_eq!(failure.kind, FailureKind::Denied);
        assert!(
            failure.message.contains("CAP_SYS_NICE") && failure.message.contains("--realtime"),
            "{failure}"
        );
        assert_eq!(shown, ["0", "0"], "an ordinary thread");
    }
}
