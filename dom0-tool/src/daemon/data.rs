//! The data path's thread: it runs passes, and sleeps when there is nothing to do.
//!
//! Who wants something of the worker sends it a function; an eventfd wakes it for that. It knows no xenstore.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::UplinkCounters;
use crate::clock::Monotonic;
use crate::control::plane::DataPlane;
use crate::port::Uplink;
use crate::switch::{PortId, Segment};
use crate::vif::holds::HoldTimes;
use crate::vif::rx::Wish;
use crate::vif::{Connection, Counters, Fault};
use crate::worker::{ConnectError, Uplinks, Worker};
use crate::xen::{Linux, Xen};

/// The worker of the daemon.
pub(super) type LinuxWorker = Worker<Linux, Monotonic>;
type Job = Box<dyn FnOnce(&mut LinuxWorker) + Send>;

/// A handle on the data path's thread; clones are the same thread.
#[derive(Clone)]
pub(super) struct DataThread {
    /// There until the handle is dropped.
    jobs: Option<Sender<Job>>,
    bell: Arc<Bell>,
}

/// What wakes the thread for a job.
struct Bell {
    rung: AtomicBool,
    event: OwnedFd,
}

impl Bell {
    fn ring(&self) {
        self.rung.store(true, Ordering::Release);
        // A full counter is a bell that rings already.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    fn take(&self) -> bool {
        // A plain load first: this is asked in every pass.
        if !self.rung.load(Ordering::Acquire) {
            return false;
        }
        self.rung.store(false, Ordering::Release);
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.event, &mut count);
        true
    }
}

/// Starts the thread. It ends when all handles are gone. `on_fault` is called when the worker noticed a guest
/// that broke the protocol.
///
/// # Errors
/// When the system gives no eventfd or no thread.
pub(super) fn start(
    mut worker: LinuxWorker,
    mut on_fault: impl FnMut() + Send + 'static,
) -> io::Result<(DataThread, JoinHandle<()>)> {
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let bell = Arc::new(Bell { rung: AtomicBool::new(false), event });
    let (jobs, inbox) = channel();
    let ours = bell.clone();
    let thread = std::thread::Builder::new().name("data".into()).spawn(move || {
        super::realtime::exact_timers();
        while serve(&mut worker, &inbox, &ours, &mut on_fault) {}
    })?;
    Ok((DataThread { jobs: Some(jobs), bell }, thread))
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

fn sleep(worker: &LinuxWorker, bell: &Bell, uplinks: Uplinks, timeout: Option<&Timespec>) {
    /// More than these are looked at when something else wakes us, or every so often.
    const MOST: usize = 2 + crate::MAX_UPLINKS;
    let mut list: [PollFd<'_>; MOST] = std::array::from_fn(|_| PollFd::new(&bell.event, PollFlags::IN));
    let mut used = 1;
    if let Some(events) = worker.xen().event_descriptor() {
        list[used] = PollFd::from_borrowed_fd(events, PollFlags::IN);
        used += 1;
    }
    if uplinks == Uplinks::Awaited {
        for (slot, link) in list[used..].iter_mut().zip(worker.uplink_descriptors()) {
            *slot = PollFd::from_borrowed_fd(link, PollFlags::IN);
            used += 1;
        }
    }
    // Interrupted or not, the next pass looks at everything.
    let _ = poll(&mut list[..used], timeout);
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
        // Before the bell: the thread ends when it looks and finds that the last handle is gone.
        self.jobs = None;
        self.bell.ring();
    }
}

impl DataPlane for DataThread {
    fn connect(&mut self, segment: Segment, connection: Connection) -> Result<PortId, ConnectError> {
        self.run(move |worker| worker.connect(segment, &connection)).unwrap_or(Err(ConnectError::NoRoom))
    }
    fn disconnect(&mut self, port: PortId) -> Option<Counters> {
        self.run(move |worker| worker.disconnect(port))?
    }
    fn counters(&mut self, port: PortId) -> Option<Counters> {
        self.run(move |worker| worker.counters(port))?
    }
    fn holds(&mut self, port: PortId) -> Option<HoldTimes> {
        self.run(move |worker| worker.holds(port))?
    }
    fn add_uplink(&mut self, segment: Segment, link: Box<dyn Uplink>) -> Option<PortId> {
        self.run(move |worker| worker.add_uplink(segment, link))?
    }
    fn remove_uplink(&mut self, port: PortId) {
        self.run(move |worker| worker.remove_uplink(port));
    }
    fn uplink_counters(&mut self, port: PortId) -> Option<UplinkCounters> {
        self.run(move |worker| worker.uplink_counters(port))?
    }
    fn take_faults(&mut self) -> Vec<(PortId, Fault)> {
        self.run(Worker::take_faults).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bell_rings_until_it_is_taken() {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let bell = Bell { rung: AtomicBool::new(false), event };
        assert!(!bell.take());
        bell.ring();
        bell.ring();
        let mut list = [PollFd::new(&bell.event, PollFlags::IN)];
        let soon = Timespec { tv_sec: 0, tv_nsec: 0 };
        assert_eq!(poll(&mut list, Some(&soon)).unwrap(), 1);
        assert!(bell.take() && !bell.take());
        assert_eq!(poll(&mut list, Some(&soon)).unwrap(), 0, "it is silent again");
    }
}
