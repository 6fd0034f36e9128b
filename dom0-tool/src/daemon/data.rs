//! A thread of the data path: it runs the passes of one worker, and sleeps when there is nothing to do.
//!
//! Who wants something of the worker sends it a function; a bell wakes it for that. It knows no xenstore, and
//! not that there may be others.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::bell::Bell;
use crate::clock::Monotonic;
use crate::switch::PortId;
use crate::vif::rx::Wish;
use crate::worker::{Readiness, Uplinks, Worker};
use crate::xen::{Linux, Xen};

/// A worker of the daemon.
pub(super) type LinuxWorker = Worker<Linux, Monotonic>;
type Job = Box<dyn FnOnce(&mut LinuxWorker) + Send>;

/// The handle on a thread of the data path, which ends with it.
pub(super) struct DataThread {
    /// There until the handle is dropped.
    jobs: Option<Sender<Job>>,
    bell: Arc<Bell>,
    thread: Option<JoinHandle<()>>,
}

/// Starts a thread, on one processor if `cpu` names one. `on_fault` is called when the worker noticed a guest that
/// broke the protocol.
///
/// # Errors
/// When the system gives no thread, or there is no such processor.
pub(super) fn start(
    mut worker: LinuxWorker,
    bell: Arc<Bell>,
    name: String,
    cpu: Option<usize>,
    mut on_fault: impl FnMut() + Send + 'static,
) -> io::Result<DataThread> {
    let (jobs, inbox) = channel();
    let ours = bell.clone();
    let (tell, started) = channel();
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        let pinned = cpu.map_or(Ok(()), pin);
        let stop = pinned.is_err();
        // Whoever started us waits for this.
        let _ = tell.send(pinned);
        super::realtime::exact_timers();
        if !stop {
            while serve(&mut worker, &inbox, &ours, &mut on_fault) {}
        }
    })?;
    started.recv().map_err(io::Error::other)??;
    Ok(DataThread { jobs: Some(jobs), bell, thread: Some(thread) })
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
fn serve(worker: &mut LinuxWorker, inbox: &Receiver<Job>, bell: &Bell, on_fault: &mut impl FnMut()) -> bool {
    if bell.take() {
        loop {
            match inbox.try_recv() {
                Ok(job) => job(worker),
                Err(std::sync::mpsc::TryRecvError::Empty) => break,
                Err(std::sync::mpsc::TryRecvError::Disconnected) => return false,
            }
        }
    }
    let next = worker.pass();
    if worker.has_faults() {
        on_fault();
    }
    let timeout = match next.when {
        Wish::Now => return true,
        Wish::Event => None,
        Wish::At(at_ns) => match at_ns.checked_sub(worker.now_ns()) {
            None | Some(0) => return true,
            Some(left_ns) => Some(Timespec {
                tv_sec: (left_ns / 1_000_000_000) as i64,
                tv_nsec: (left_ns % 1_000_000_000) as i64,
            }),
        },
    };
    worker.note_sleep();
    sleep(worker, bell, next.uplinks, timeout.as_ref());
    true
}

fn sleep(worker: &mut LinuxWorker, bell: &Bell, uplinks: Uplinks, timeout: Option<&Timespec>) {
    /// More than these are looked at when something else wakes us, or every so often.
    const MOST: usize = 2 + crate::MAX_UPLINKS;
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
    let ready: [PollFlags; MOST] = std::array::from_fn(|at| list[at].revents());
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
        self.jobs.as_ref()?.send(job).ok()?;
        self.bell.ring();
        answer.recv().ok()
    }
}

impl Drop for DataThread {
    fn drop(&mut self) {
        // Before the bell: the thread ends when it looks and finds that the handle is gone.
        self.jobs = None;
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
