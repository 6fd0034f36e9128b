//! How the system schedules the data path's thread: timers that are exact, and, if asked for, ahead of all ordinary
//! processes, but for a share of its processor that is left to them.
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

/// Warns where threads in real time leave the rest of the domain no processor that is not also theirs.
pub(super) fn warn(workers: usize) {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    if processors <= workers {
        let s = |count| if count == 1 { "" } else { "s" };
        tracing::warn!(
            "in real time: {workers} worker{}, {processors} processor{}: under load, all else in this domain, xenstored and \
             the toolstack too, has a tenth of the time; give the domain another virtual CPU, or leave out --realtime",
            s(workers),
            s(processors)
        );
    }
}

/// Of the time that a thread is awake in real time, it then rests the ninth part: a tenth of its processor is left to
/// ordinary processes, among them xenstored and our own control side, however much traffic there is. The kernel's own
/// limit (`sched_rt_runtime_us`, 950 ms of each second) is never met then: it would stop the thread for 50 ms at a time.
const WORK_PER_REST: u64 = 9;
/// The shortest rest: others are to get something done between two switches. With a fifth of it, in the test bed, `drayage
/// stats` took 17 s instead of 5 to 9.
const LEAST_REST_NS: u64 = 500_000;
/// The longest. A thread that was stopped for a while, or whose processor was taken away, was not at work.
const MOST_REST_NS: u64 = 1_000_000;

/// How much rest a thread in real time owes to the others of its processor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    owed_ns: u64,
    /// Until when that was reckoned.
    at_ns: u64,
}

impl Share {
    /// Begins without debts.
    pub(super) fn new(now_ns: u64) -> Self {
        Self { owed_ns: 0, at_ns: now_ns }
    }

    /// Notes that the thread was at work until now. Returns how long it is to rest, if it is to at once.
    pub(super) fn worked(&mut self, now_ns: u64) -> Option<u64> {
        let worked_ns = now_ns.saturating_sub(std::mem::replace(&mut self.at_ns, now_ns));
        self.owed_ns = self.owed_ns.saturating_add(worked_ns / WORK_PER_REST).min(MOST_REST_NS);
        (self.owed_ns >= LEAST_REST_NS).then_some(self.owed_ns)
    }

    /// Notes that it slept until now, for whatever reason. Nothing is saved up by that.
    pub(super) fn rested(&mut self, now_ns: u64) {
        let rested_ns = now_ns.saturating_sub(std::mem::replace(&mut self.at_ns, now_ns));
        self.owed_ns = self.owed_ns.saturating_sub(rested_ns);
    }
}

fn refused(why: &str) -> Failure {
    let message = format!("cannot run in real time (SCHED_FIFO): {why}; leave out --realtime");
    Failure::new(FailureKind::Other, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
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

    #[test]
    fn who_never_sleeps_rests_a_tenth_of_the_time() {
        let (mut share, mut now_ns, mut rested_ns) = (Share::new(0), 0, 0);
        let mut longest_ns = 0;
        while now_ns < 1_000_000_000 {
            now_ns += 20_000;
            if let Some(rest_ns) = share.worked(now_ns) {
                now_ns += rest_ns;
                share.rested(now_ns);
                rested_ns += rest_ns;
                longest_ns = longest_ns.max(rest_ns);
            }
        }
        assert!((99_000_000..102_000_000).contains(&rested_ns), "{rested_ns} ns of a second");
        assert!(longest_ns < 510_000, "in small pieces, not {longest_ns} ns at once");
    }

    #[test]
    fn who_sleeps_enough_anyway_owes_nothing() {
        let mut share = Share::new(0);
        for n in 0..10_000 {
            assert_eq!(share.worked(n * 100_000 + 85_000), None);
            share.rested((n + 1) * 100_000);
        }
        // What was slept long ago does not count.
        share.rested(3_600_000_000_000);
        assert_eq!(share.worked(3_600_004_490_000), None);
        assert!(share.worked(3_600_004_510_000).is_some());
    }

    #[test]
    fn a_thread_that_was_stopped_rests_no_longer_than_others() {
        let mut share = Share::new(0);
        assert_eq!(share.worked(3_600_000_000_000), Some(MOST_REST_NS));
        share.rested(3_600_001_000_000);
        assert_eq!(share.worked(3_600_001_000_010), None);
    }

    proptest! {
        /// However work and sleep come, as long as the thread rests when it is told to: the kernel's limit, 95 of 100, is
        /// not met in any second, and no rest is longer than a millisecond.
        #[test]
        fn the_kernels_limit_is_never_met(steps in proptest::collection::vec((1..8_000_000u64, 0..300_000u64), 1..400)) {
            let (mut share, mut now_ns) = (Share::new(0), 0);
            let mut spans = Vec::new();
            for (work_ns, sleep_ns) in steps {
                let began_ns = now_ns;
                now_ns += work_ns;
                spans.push((began_ns, now_ns));
                let rest_ns = share.worked(now_ns);
                prop_assert!(rest_ns.is_none_or(|rest_ns| rest_ns <= MOST_REST_NS));
                now_ns += rest_ns.unwrap_or(sleep_ns);
                share.rested(now_ns);
            }
            for (from_ns, _) in &spans {
                let until_ns = from_ns + 1_000_000_000;
                let worked_ns: u64 = spans
                    .iter()
                    .map(|(began, ended)| ended.min(&until_ns).saturating_sub(*began.max(from_ns)))
                    .sum();
                prop_assert!(worked_ns < 950_000_000, "{worked_ns} ns of a second");
            }
        }
    }
}
