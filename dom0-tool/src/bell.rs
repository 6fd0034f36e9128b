//! What wakes a thread of the data path: for a job, or for frames of another worker.
//!
//! It knows an eventfd, and not who rings for what.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};

/// A bell. It stays rung until it is taken.
#[derive(Debug)]
pub struct Bell {
    rung: AtomicBool,
    event: OwnedFd,
}

impl Bell {
    /// Makes a silent bell.
    ///
    /// # Errors
    /// When the system gives no eventfd.
    pub fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { rung: AtomicBool::new(false), event })
    }

    /// Rings it.
    pub fn ring(&self) {
        // A full counter is a bell that rings already.
        self.rung.store(true, Ordering::Release);
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    /// Notes that the descriptor was found readable, so that the next [`take`](Self::take) empties it. Whoever rings may be
    /// anywhere in [`ring`](Self::ring) then, and stay there for long: where the one who is woken goes before all others,
    /// it would find the descriptor readable and nothing to take, again and again, and never let the other go on.
    pub fn heard(&self) {
        self.rung.store(true, Ordering::Release);
    }

    /// Returns whether it was rung since this was last asked.
    pub fn take(&self) -> bool {
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

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    #[test]
    fn a_bell_rings_until_it_is_taken() {
        let bell = Bell::new().unwrap();
        assert!(!bell.take());
        bell.ring();
        bell.ring();
        let mut list = [PollFd::new(&bell, PollFlags::IN)];
        let soon = Timespec { tv_sec: 0, tv_nsec: 0 };
        assert_eq!(poll(&mut list, Some(&soon)).unwrap(), 1);
        assert!(bell.take() && !bell.take());
        assert_eq!(poll(&mut list, Some(&soon)).unwrap(), 0, "it is silent again");
    }

    #[test]
    fn a_bell_falls_silent_whose_ringer_was_interrupted_half_way() {
        let bell = Bell::new().unwrap();
        let mut list = [PollFd::new(&bell, PollFlags::IN)];
        let soon = Timespec { tv_sec: 0, tv_nsec: 0 };
        // The flag was taken before the ringer came to write.
        rustix::io::write(&bell.event, &1u64.to_ne_bytes()).unwrap();
        assert_eq!(poll(&mut list, Some(&soon)).unwrap(), 1);
        bell.heard();
        assert!(bell.take(), "what woke us is taken");
        assert_eq!(poll(&mut list, Some(&soon)).unwrap(), 0, "and wakes us no more");
        assert!(!bell.take());
    }

    #[test]
    fn a_bell_that_others_ring_falls_silent() {
        let bell = std::sync::Arc::new(Bell::new().unwrap());
        let ringing: Vec<_> = (0..2)
            .map(|_| {
                let bell = bell.clone();
                std::thread::spawn(move || (0..20_000).for_each(|_| bell.ring()))
            })
            .collect();
        let mut list = [PollFd::new(&*bell, PollFlags::IN)];
        let soon = Timespec { tv_sec: 0, tv_nsec: 0 };
        while !ringing.iter().all(|thread| thread.is_finished()) {
            bell.take();
            if poll(&mut list, Some(&soon)).unwrap() == 1 {
                bell.heard();
            }
        }
        ringing.into_iter().for_each(|thread| thread.join().unwrap());
        bell.heard();
        bell.take();
        assert_eq!(poll(&mut list, Some(&soon)).unwrap(), 0, "what is readable can be taken");
    }
}
