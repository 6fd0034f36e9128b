//! What was decided about a packet holds for all between the same two addresses until something changes that it rests on,
//! at the next turn at the latest. It knows neither routes nor neighbours, nor IPv6.

use super::packet::Mac;

/// Pairs of addresses of which a decision is kept.
const ENTRIES: usize = 64;

/// Where packets of one pair of addresses go: all that does not depend on the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) next: Mac,
    pub(super) own: Mac,
    /// The longest frame that can leave.
    pub(super) longest: usize,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// When it was made; 0 is never.
    age: u64,
    pair: u64,
    decision: Decision,
}

/// Decisions that hold.
#[derive(Debug)]
pub(super) struct Decisions {
    entries: [Entry; ENTRIES],
    /// Goes on with every change: what was made before does not hold any more.
    age: u64,
}

impl Default for Decisions {
    fn default() -> Self {
        let decision = Decision { next: [0; 6], own: [0; 6], longest: 0 };
        Self { entries: [Entry { age: 0, pair: 0, decision }; ENTRIES], age: 1 }
    }
}

/// Returns the addresses of an IPv4 header at their place in a frame, as the table has them.
#[inline]
pub(super) fn pair(addresses: &[u8; 8]) -> u64 {
    u64::from_ne_bytes(*addresses)
}

impl Decisions {
    /// Forgets everything.
    pub(super) fn forget(&mut self) {
        self.age += 1;
    }

    /// Returns what was decided about a pair of addresses, where that holds.
    #[inline]
    pub(super) fn find(&self, pair: u64) -> Option<&Decision> {
        let entry = &self.entries[place(pair)];
        (entry.age == self.age && entry.pair == pair).then_some(&entry.decision)
    }

    /// Keeps a decision.
    pub(super) fn keep(&mut self, pair: u64, decision: Decision) {
        self.entries[place(pair)] = Entry { age: self.age, pair, decision };
    }
}

#[inline]
fn place(pair: u64) -> usize {
    // Multiplicative hashing: the upper bits depend on all of the lower ones.
    (pair.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58) as usize
}
