//! What a sleep said about the next look, so that nobody is asked twice: a lone packet is handed over before anybody
//! looks for a second one, and where there was nothing nobody looks.
//!
//! It knows passes by their number, and neither descriptors nor packets.

use crate::fabric::MAX_PORTS;
use crate::switch::PortId;

/// How an uplink is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Glance {
    /// As far as the budget goes.
    Whole,
    /// For one frame: it came after a while, and is to be handed over. If there are more, the next sleep ends at once.
    First,
    /// Not at all.
    None,
}

/// A pass that never is.
const NEVER: u64 = u64::MAX;

#[derive(Clone, Copy, Debug)]
struct Uplink {
    /// The passes after which a sleep said that it has nothing, that it has something, and the last one that it brought
    /// something in.
    silent: u64,
    woke: u64,
    brought: u64,
}

/// What sleeps said.
#[derive(Debug)]
pub(super) struct Glances {
    uplinks: Box<[Uplink; MAX_PORTS]>,
    no_event: u64,
}

impl Glances {
    /// Knows nothing yet.
    pub(super) fn new() -> Self {
        let uplink = Uplink { silent: NEVER, woke: NEVER, brought: NEVER };
        Self { uplinks: Box::new([uplink; MAX_PORTS]), no_event: NEVER }
    }

    /// After a pass, no event channel was pending.
    pub(super) fn note_no_event(&mut self, pass: u64) {
        self.no_event = pass;
    }

    /// After a pass, an uplink had nothing.
    pub(super) fn note_silence(&mut self, pass: u64, id: PortId) {
        if let Some(uplink) = self.uplinks.get_mut(usize::from(id.0)) {
            uplink.silent = pass;
        }
    }

    /// After a pass, an uplink had something.
    pub(super) fn note_wakeup(&mut self, pass: u64, id: PortId) {
        if let Some(uplink) = self.uplinks.get_mut(usize::from(id.0)) {
            uplink.woke = pass;
        }
    }

    /// In a pass, an uplink brought something in.
    pub(super) fn note_frames(&mut self, pass: u64, at: usize) {
        self.uplinks[at].brought = pass;
    }

    /// Returns whether event channels need not be looked at in a pass.
    pub(super) fn skips_events(&self, pass: u64) -> bool {
        self.no_event == pass.wrapping_sub(1)
    }

    /// Returns how an uplink is to be looked at in a pass.
    pub(super) fn of(&self, pass: u64, at: usize) -> Glance {
        let (uplink, last) = (self.uplinks[at], pass.wrapping_sub(1));
        if uplink.silent == last {
            Glance::None
        } else if uplink.woke == last && uplink.brought != last {
            Glance::First
        } else {
            Glance::Whole
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_frame_after_a_while_goes_alone_and_a_burst_behind_it_together() {
        let mut glances = Glances::new();
        assert_eq!(glances.of(1, 5), Glance::Whole, "nothing is known");
        glances.note_wakeup(1, PortId(5));
        assert_eq!((glances.of(2, 5), glances.of(2, 6)), (Glance::First, Glance::Whole));
        glances.note_frames(2, 5);
        glances.note_wakeup(2, PortId(5));
        assert_eq!(glances.of(3, 5), Glance::Whole, "there was one in the last pass");
        // The answer to it came in between.
        glances.note_silence(3, PortId(5));
        assert_eq!(glances.of(4, 5), Glance::None);
        glances.note_wakeup(4, PortId(5));
        assert_eq!(glances.of(5, 5), Glance::First);
    }

    #[test]
    fn what_a_sleep_said_holds_for_one_pass() {
        let mut glances = Glances::new();
        assert!(!glances.skips_events(1));
        glances.note_no_event(7);
        glances.note_silence(7, PortId(0));
        assert!(glances.skips_events(8) && glances.of(8, 0) == Glance::None);
        assert!(!glances.skips_events(9) && glances.of(9, 0) == Glance::Whole);
        // A port that there cannot be is nobody's.
        glances.note_silence(7, PortId(u16::MAX));
    }
}
