//! A thread of the data path: it runs the passes of one worker, and sleeps when there is nothing to do.
//!
//! Who wants something of the worker sends it a function; a bell wakes it for that. It knows no xenstore, and
//! not that there may be others.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::{CpuSet, sched_setaffinity};

use super::realtime::{self, Share};
use crate::bell::Bell;
use crate::clock::Monotonic;
use crate::control::error::Failure;
use crate::switch::PortId;
use crate::vif::rx::Wish;
use crate::worker::{Readiness, Uplinks, Worker};
use crate::xen::{Linux, Xen};

/// A worker of the daemon.
pub(super) type LinuxWorker = Worker<Linux, Monotonic>;
type Job = Box<dyn FnOnce(&mut LinuxWorker) + Send>;

/// What a thread is to do. Not a channel of the standard library: who finds one in the middle of a send spins until that
/// is over, and in real time a sender on the same processor would never get to go on. Who finds a lock taken sleeps.
#[derive(Clone, Default)]
struct Inbox(Arc<Mutex<Jobs>>);

#[derive(Default)]
struct Jobs {
    waiting: VecDeque<Job>,
    /// Whether either end is gone.
    closed: bool,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Jobs> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread's end of its inbox.
struct Ours(Inbox);

impl Drop for Ours {
    fn drop(&mut self) {
        let mut jobs = self.0.lock();
        jobs.closed = true;
        // Who waits for an answer learns that there will be none.
        jobs.waiting.clear();
    }
}

/// The handle on a thread of the data path, which ends with it.
pub(super) struct DataThread {
    inbox: Inbox,
    bell: Arc<Bell>,
    thread: Option<JoinHandle<()>>,
}

/// How the system is to schedule a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheduling {
    /// As any other.
    Ordinary,
    /// Ahead of ordinary processes, to which it leaves a share.
    Realtime,
}

/// Why there is no thread.
pub(super) enum NotStarted {
    /// The system gives none, or there is no such processor.
    System(io::Error),
    /// It may not run in real time.
    Realtime(Failure),
}

/// Starts a thread, on one processor if `cpu` names one. `on_fault` is called when the worker noticed a guest that
/// broke the protocol.
///
/// # Errors
/// [`NotStarted`].
pub(super) fn start(
    mut worker: LinuxWorker,
    bell: Arc<Bell>,
    name: String,
    cpu: Option<usize>,
    scheduling: Scheduling,
    mut on_fault: impl FnMut() + Send + 'static,
) -> Result<DataThread, NotStarted> {
    let inbox = Inbox::default();
    let (ours, rings) = (Ours(inbox.clone()), bell.clone());
    let (tell, started) = channel();
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        let prepared = prepare(cpu, scheduling);
        let stop = prepared.is_err();
        // Whoever started us waits for this.
        let _ = tell.send(prepared);
        realtime::exact_timers();
        let mut share = (scheduling == Scheduling::Realtime).then(|| Share::new(worker.now_ns()));
        if !stop {
            while serve(&mut worker, &ours.0, &rings, &mut share, &mut on_fault) {}
        }
    });
    let thread = thread.map_err(NotStarted::System)?;
    started.recv().map_err(|error| NotStarted::System(io::Error::other(error)))??;
    Ok(DataThread { inbox, bell, thread: Some(thread) })
}

/// Has the calling thread scheduled as it is to be.
fn prepare(cpu: Option<usize>, scheduling: Scheduling) -> Result<(), NotStarted> {
    cpu.map_or(Ok(()), pin).map_err(NotStarted::System)?;
    match scheduling {
        Scheduling::Ordinary => Ok(()),
        Scheduling::Realtime => realtime::enter().map_err(NotStarted::Realtime),
    }
}

/// Holds the calling thread to one processor.
fn pin(cpu: usize) -> io::Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// Runs one pass and what follows it. Returns whether to go on.
fn serve(
    worker: &mut LinuxWorker,
    inbox: &Inbox,
    bell: &Bell,
    share: &mut Option<Share>,
    on_fault: &mut impl FnMut(),
) -> bool {
    if bell.take() {
        loop {
            let mut jobs = inbox.lock();
            match jobs.waiting.pop_front() {
                Some(job) => {
                    drop(jobs);
                    job(worker);
                }
                None if jobs.closed => return false,
                None => break,
            }
        }
    }
    let next = worker.pass();
    if worker.has_faults() {
        on_fault();
    }
    if let Some(share) = share
        && let Some(rest_ns) = share.worked(worker.now_ns())
    {
        // Nothing wakes us, or those who are to run would have to wait for the next packet.
        let _ = poll(&mut [], Some(&timespec(rest_ns)));
        worker.note_rest();
        share.rested(worker.now_ns());
        return true;
    }
    let timeout = match next.when {
        Wish::Now => return true,
        Wish::Event => None,
        Wish::At(at_ns) => match at_ns.checked_sub(worker.now_ns()) {
            None | Some(0) => return true,
            Some(left_ns) => Some(timespec(left_ns)),
        },
    };
    worker.note_sleep();
    sleep(worker, bell, next.uplinks, timeout.as_ref());
    if let Some(share) = share {
        share.rested(worker.now_ns());
    }
    true
}

fn timespec(ns: u64) -> Timespec {
    Timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as i64 }
}

/// Sleeps until something happens, or for so long.
fn sleep(worker: &mut LinuxWorker, bell: &Bell, uplinks: Uplinks, timeout: Option<&Timespec>) {
    /// More uplinks than this are looked at when something else wakes us, or every so often.
    const MOST: usize = crate::MAX_UPLINKS;
    /// Mostly there is one: a list for all there can be costs as much as a lone packet's way through the switch.
    const FEW: usize = 4;
    if uplinks == Uplinks::PutOff || worker.uplink_descriptors().nth(FEW).is_none() {
        sleep_on::<{ 2 + FEW }>(worker, bell, uplinks, timeout);
    } else {
        sleep_on::<{ 2 + MOST }>(worker, bell, uplinks, timeout);
    }
}

/// Sleeps on as many descriptors as there is room for: the bell's, that of event channels, and those of uplinks.
fn sleep_on<const MOST: usize>(
    worker: &mut LinuxWorker,
    bell: &Bell,
    uplinks: Uplinks,
    timeout: Option<&Timespec>,
) {
    let mut list: [PollFd<'_>; MOST] = std::array::from_fn(|_| PollFd::new(bell, PollFlags::IN));
    let mut ports = [PortId(0); MOST];
    let mut used = 1;
    if let Some(events) = worker.xen().event_descriptor() {
        list[used] = PollFd::from_borrowed_fd(events, PollFlags::IN);
        used += 1;
    }
    let first = used;
    if uplinks == Uplinks::Awaited {
        for (port, link) in worker.uplink_descriptors().take(MOST - first) {
            list[used] = PollFd::from_borrowed_fd(link, PollFlags::IN);
            ports[used] = port;
            used += 1;
        }
    }
    // Interrupted, the next pass looks at everything.
    if poll(&mut list[..used], timeout).is_err() {
        return;
    }
    let ready = list.map(|waited| waited.revents());
    if !ready[0].is_empty() {
        bell.heard();
    }
    if first > 1 && ready[1].is_empty() {
        worker.note_no_event();
    }
    for (port, flags) in ports.iter().zip(&ready).take(used).skip(first) {
        if flags.contains(PollFlags::ERR) {
            worker.note_uplink_wakeup(*port, Readiness::Failed);
        } else if flags.contains(PollFlags::IN) {
            worker.note_uplink_wakeup(*port, Readiness::Readable);
        } else if flags.is_empty() {
            worker.note_uplink_silence(*port);
        }
    }
}

impl DataThread {
    /// Has the worker do something, and returns what came of it; `None` when the thread is gone.
    pub(super) fn run<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut LinuxWorker) -> R + Send + 'static,
    ) -> Option<R> {
        let (tell, answer) = channel();
        let job: Job = Box::new(move |worker| {
            // The asker may have given up.
            let _ = tell.send(job(worker));
        });
        {
            let mut jobs = self.inbox.lock();
            if jobs.closed {
                return None;
            }
            jobs.waiting.push_back(job);
        }
        self.bell.ring();
        answer.recv().ok()
    }
}

impl Drop for DataThread {
    fn drop(&mut self) {
        // Before the bell: the thread ends when it looks and finds that the handle is gone.
        self.inbox.lock().closed = true;
        self.bell.ring();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::thread::sched_getaffinity;

    #[test]
    fn a_thread_is_held_to_a_processor_that_there_is() {
        let tried = std::thread::spawn(|| {
            let allowed = sched_getaffinity(None).expect("Linux says it");
            let cpu = (0..CpuSet::MAX_CPU).rev().find(|cpu| allowed.is_set(*cpu)).expect("we run on one");
            pin(cpu).expect("it may run there");
            let held = sched_getaffinity(None).expect("Linux says it");
            assert_eq!((held.count(), held.is_set(cpu)), (1, true));
            // More than any machine that this is tested on has, and more than the system can say.
            assert!(pin(CpuSet::MAX_CPU - 1).is_err() && pin(usize::MAX).is_err());
        });
        tried.join().expect("no panic");
    }
}
