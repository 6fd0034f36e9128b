//! Which hardware address a neighbour has: learned from what ARP (RFC 826) and neighbour discovery (RFC 4861) say
//! on the link, asked for where it is not known, asked for again before it is forgotten.
//!
//! smoltcp keeps a table of its own for what its sockets send, and shows it to nobody. This one knows when to
//! ask, not how.

use super::packet::{Address, Mac};

/// Neighbours of one interface.
const ENTRIES: usize = 64;
/// Places in which an address may be, from where its hash points.
const PROBES: usize = 8;
/// How long an answer is good for.
const FRESH_NS: u64 = 30_000_000_000;
/// How long a question waits for its answer (RFC 4861, RETRANS_TIMER)…
const RETRY_NS: u64 = 1_000_000_000;
/// …and how often it is repeated (MAX_MULTICAST_SOLICIT).
const ATTEMPTS: u8 = 3;
/// Nobody's hardware address.
const NOBODY: Mac = [0; 6];
const NEVER: u64 = u64::MAX;

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// 0, which is nobody's, where the entry is free.
    address: Address,
    mac: Mac,
    asked: u8,
    fresh_until_ns: u64,
    ask_at_ns: u64,
}

const FREE: Entry = Entry { address: 0, mac: NOBODY, asked: 0, fresh_until_ns: 0, ask_at_ns: NEVER };

/// The neighbours on one link.
#[derive(Debug)]
pub(super) struct Neighbours {
    entries: [Entry; ENTRIES],
    /// No entry has anything due before.
    due_ns: u64,
}

/// What is to be done about a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// To ask for its hardware address: the one itself that had it last, or everybody.
    Ask {
        /// Whose.
        address: Address,
        /// Who had it last.
        last: Option<Mac>,
    },
    /// Nobody has answered.
    GiveUp {
        /// Who is not there.
        address: Address,
    },
}

impl Default for Neighbours {
    fn default() -> Self {
        Self { entries: [FREE; ENTRIES], due_ns: NEVER }
    }
}

impl Neighbours {
    /// Returns a neighbour's hardware address; where it is not known, or not for sure, asking becomes due.
    pub(super) fn look_up(&mut self, address: Address, now_ns: u64) -> Option<Mac> {
        let at = self.find(address).unwrap_or_else(|| self.make_room(address));
        let entry = &mut self.entries[at];
        if entry.fresh_until_ns <= now_ns && entry.ask_at_ns == NEVER {
            entry.ask_at_ns = now_ns;
            self.due_ns = self.due_ns.min(now_ns);
        }
        (entry.mac != NOBODY).then_some(entry.mac)
    }

    /// Returns a neighbour's hardware address if it is known; asks nobody.
    pub(super) fn known(&self, address: Address) -> Option<Mac> {
        self.find(address).map(|at| self.entries[at].mac).filter(|mac| *mac != NOBODY)
    }

    /// Takes what a neighbour has said of itself. Whom nobody has asked for is known only if it has reason to
    /// talk to us: else any host could fill the table.
    pub(super) fn learn(&mut self, address: Address, mac: Mac, reason: Reason, now_ns: u64) {
        if mac[0] & 1 != 0 || mac == NOBODY || address == 0 {
            return;
        }
        let at = match (self.find(address), reason) {
            (Some(at), _) => at,
            (None, Reason::AsksUs) => self.make_room(address),
            (None, Reason::Tells) => return,
        };
        let fresh_until_ns = now_ns.saturating_add(FRESH_NS);
        self.entries[at] = Entry { address, mac, asked: 0, fresh_until_ns, ask_at_ns: NEVER };
    }

    /// Returns what is due, one thing a call.
    pub(super) fn next_due(&mut self, now_ns: u64) -> Option<Due> {
        if self.due_ns > now_ns {
            return None;
        }
        let Some(entry) = self.entries.iter_mut().find(|entry| entry.ask_at_ns <= now_ns) else {
            self.due_ns = self.entries.iter().map(|entry| entry.ask_at_ns).min().unwrap_or(NEVER);
            return None;
        };
        let address = entry.address;
        if entry.asked == ATTEMPTS {
            *entry = FREE;
            return Some(Due::GiveUp { address });
        }
        entry.asked += 1;
        entry.ask_at_ns = now_ns.saturating_add(RETRY_NS);
        Some(Due::Ask { address, last: (entry.mac != NOBODY).then_some(entry.mac) })
    }

    /// Returns when something is due, if nothing happens before.
    pub(super) fn due_ns(&self) -> Option<u64> {
        (self.due_ns != NEVER).then_some(self.due_ns)
    }

    fn find(&self, address: Address) -> Option<usize> {
        places(address).find(|at| self.entries[*at].address == address)
    }

    /// Returns the entry of a new address. Of the places where it may be, the one that was fresh last goes: those
    /// that never answered before those that did.
    fn make_room(&mut self, address: Address) -> usize {
        let oldest = places(address).min_by_key(|at| self.entries[*at].fresh_until_ns);
        let at = oldest.unwrap_or_default();
        self.entries[at] = Entry { address, ..FREE };
        at
    }
}

/// What made a neighbour speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// It looks for an address of ours.
    AsksUs,
    /// It answers, or tells everybody.
    Tells,
}

fn places(address: Address) -> impl Iterator<Item = usize> {
    // Multiplicative hashing: the upper bits depend on all of the lower ones.
    let folded = (address as u64) ^ (address >> 64) as u64;
    let start = (folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58) as usize;
    (start..start + PROBES).map(|at| at % ENTRIES)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const MAC: Mac = [2, 0, 0, 0, 0, 7];

    #[test]
    fn an_unknown_neighbour_is_asked_for_three_times() {
        let mut table = Neighbours::default();
        assert_eq!(table.due_ns(), None);
        assert_eq!(table.look_up(7, 5), None);
        assert_eq!(table.due_ns(), Some(5));
        for attempt in 0..3 {
            let now = 5 + attempt * SECOND;
            assert_eq!(table.look_up(7, now), None, "looking again asks no sooner");
            assert_eq!(table.next_due(now), Some(Due::Ask { address: 7, last: None }), "attempt {attempt}");
            assert_eq!(table.next_due(now), None);
            assert_eq!(table.due_ns(), Some(now + SECOND));
        }
        assert_eq!(table.next_due(5 + 3 * SECOND), Some(Due::GiveUp { address: 7 }));
        assert_eq!(table.next_due(u64::MAX - 1), None);
        assert_eq!(table.due_ns(), None);
    }

    #[test]
    fn an_answer_is_good_for_a_while_and_used_while_asking_again() {
        let mut table = Neighbours::default();
        table.look_up(7, 0);
        table.next_due(0);
        table.learn(7, MAC, Reason::Tells, 10);
        assert_eq!(table.look_up(7, 11), Some(MAC));
        assert_eq!(table.next_due(29 * SECOND), None, "nothing to ask");
        assert_eq!(table.look_up(7, 31 * SECOND), Some(MAC));
        assert_eq!(table.next_due(31 * SECOND), Some(Due::Ask { address: 7, last: Some(MAC) }));
        table.learn(7, [2; 6], Reason::Tells, 32 * SECOND);
        assert_eq!(table.look_up(7, 33 * SECOND), Some([2; 6]), "it may have moved");
        assert_eq!(table.next_due(33 * SECOND), None);
    }

    #[test]
    fn who_was_not_asked_for_is_known_only_when_it_asks_us() {
        let mut table = Neighbours::default();
        table.learn(7, MAC, Reason::Tells, 0);
        assert_eq!(table.find(7), None);
        table.learn(7, MAC, Reason::AsksUs, 0);
        assert_eq!(table.look_up(7, 1), Some(MAC));
        table.learn(8, [3; 6], Reason::AsksUs, 0);
        table.learn(8, NOBODY, Reason::AsksUs, 0);
        assert_eq!(table.find(8), None, "a group, and nobody, are no neighbours");
    }

    #[test]
    fn a_flood_of_unknown_addresses_leaves_those_that_answered() {
        let mut table = Neighbours::default();
        table.learn(7, MAC, Reason::AsksUs, 0);
        for address in 1000..3000 {
            table.look_up(address, 1);
        }
        assert_eq!(table.look_up(7, 2), Some(MAC));
        assert!(table.entries.iter().all(|entry| entry.address != 0), "and the table is full");
    }
}
