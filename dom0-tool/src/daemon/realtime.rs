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

    /// As root, the thread is then under `SCHED_FIFO`; else what is missing is named. Either way, the system is asked.
    #[test]
    fn real_time_is_granted_or_what_is_missing_is_named() {
        let tried = std::thread::spawn(|| {
            exact_timers();
            let result = enter();
            let stat = std::fs::read_to_string("/proc/thread-self/stat").expect("Linux has it");
            // Fields 40 and 41 of the whole line; the name in front of them may have spaces.
            let fields: Vec<String> =
                stat.rsplit(')').next().expect("a name").split_whitespace().map(Into::into).collect();
            (result, fields[37].clone(), fields[38].clone())
        });
        match tried.join().expect("no panic") {
            (Ok(()), priority, policy) => assert_eq!((priority.as_str(), policy.as_str()), ("1", "1")),
            (Err(failure), ..) => {
                assert_eq!(failure.kind, FailureKind::Denied, "{failure}");
                assert!(failure.message.contains("CAP_SYS_NICE"), "{failure}");
            }
        }
    }
}
