//! Watch events that wait to be looked at: each once, in order, and never more than a bounded number, however
//! often a peer makes its nodes change. An event says "look again", so one may stand for many.

use alloc::collections::VecDeque;
use alloc::string::String;

/// A watch fired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchEvent {
    /// The node that changed, or the watched one when more events came than are kept.
    pub path: String,
    /// The token that the watch was set with.
    pub token: String,
}

/// Events that are kept apart. Beyond them, all events of a token become one.
pub const MAX_EVENTS: usize = 64;

/// The waiting events.
#[derive(Debug, Default)]
pub struct WatchEvents {
    waiting: VecDeque<WatchEvent>,
}

impl WatchEvents {
    /// Returns an empty queue.
    pub const fn new() -> Self {
        Self { waiting: VecDeque::new() }
    }

    /// Adds an event of a watch on `watched`, unless one that says as much is waiting already.
    pub fn add(&mut self, event: WatchEvent, watched: &str) {
        let says_as_much = |other: &WatchEvent| {
            other.token == event.token && (other.path == event.path || other.path == watched)
        };
        if self.waiting.iter().any(says_as_much) {
            return;
        }
        if self.waiting.len() >= MAX_EVENTS {
            self.waiting.retain(|other| other.token != event.token);
            self.waiting.push_back(WatchEvent { path: watched.into(), token: event.token });
        } else {
            self.waiting.push_back(event);
        }
    }

    /// Takes the oldest event.
    pub fn take(&mut self) -> Option<WatchEvent> {
        self.waiting.pop_front()
    }

    /// Tells whether no event waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Forgets the events of a watch that was ended.
    pub fn forget(&mut self, token: &str) {
        self.waiting.retain(|event| event.token != token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    fn event(path: &str, token: &str) -> WatchEvent {
        WatchEvent { path: path.into(), token: token.into() }
    }

    #[test]
    fn events_come_once_and_in_order() {
        let mut events = WatchEvents::new();
        for path in ["a/x", "a/y", "a/x"] {
            events.add(event(path, "a"), "a");
        }
        events.add(event("a/x", "b"), "a");
        assert_eq!(events.take(), Some(event("a/x", "a")));
        assert_eq!(events.take(), Some(event("a/y", "a")));
        assert_eq!(events.take(), Some(event("a/x", "b")));
        assert!(events.is_empty());
        assert_eq!(events.take(), None);
    }

    #[test]
    fn a_noisy_watch_is_bounded_and_silences_nobody() {
        let mut events = WatchEvents::new();
        (0..10_000).for_each(|i| events.add(event(&format!("noisy/{i}"), "noisy"), "noisy"));
        events.add(event("quiet/1", "quiet"), "quiet");
        assert!(events.waiting.len() <= MAX_EVENTS);
        assert!(events.waiting.contains(&event("noisy", "noisy")));
        assert!(events.waiting.contains(&event("quiet/1", "quiet")));
        events.forget("noisy");
        assert_eq!(events.take(), Some(event("quiet/1", "quiet")));
        assert_eq!(events.take(), None);
    }
}
