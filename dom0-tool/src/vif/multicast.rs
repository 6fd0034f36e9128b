//! netif's own multicast control: the groups that a frontend wants to hear, once it asked for being asked
//! (`feature-multicast-control` in `xen/include/public/io/netif.h`).
//!
//! The list is bounded as netback's is, and costs nothing but its guest when it is full. It is noted in a page that
//! outlives the process, for the next backend; one that does not find it there sends its guest all groups. It knows group
//! addresses only.

use std::sync::atomic::Ordering;

use drayage_wire::ring::SharedWords;

use super::Rings;
use crate::switch::Mac;

/// Groups in a list, at most (`XEN_NETBK_MCAST_MAX` in Linux's netback).
pub const MAX_GROUPS: usize = 64;
/// The upper half of a ledger's first word, while the list after it is whole; the lower half is its length.
const LEDGER: u32 = 0x6d63;

/// Which groups a guest is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Groups {
    /// All.
    #[default]
    All,
    /// Those that it asks for.
    Subscribed,
}

/// A change of the list, as an extra segment asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A group more.
    Add(Mac),
    /// One less.
    Remove(Mac),
}

/// The list is full, or what was to be added is no group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// The groups that a guest asked for.
#[derive(Debug)]
pub struct Subscriptions<P> {
    groups: Groups,
    list: [Mac; MAX_GROUPS],
    used: usize,
    /// A page of our own in which the next backend finds the list.
    ledger: Option<P>,
}

impl<P: SharedWords> Subscriptions<P> {
    /// Returns an empty list; or, for rings that were taken over, the one that an earlier backend noted in `ledger`.
    pub fn new(groups: Groups, ledger: Option<P>, rings: Rings) -> Self {
        let mut this = Self { groups, list: [Mac::default(); MAX_GROUPS], used: 0, ledger };
        match rings {
            Rings::New => this.note(),
            Rings::TakenOver if this.recall().is_some() => {}
            Rings::TakenOver => {
                (this.groups, this.used) = (Groups::All, 0);
                // Not to be taken for the whole list by the one after us.
                this.ledger = None;
            }
        }
        this
    }

    /// Writes the list down.
    fn note(&self) {
        let Some(ledger) = &self.ledger else { return };
        // A list that is half written is none.
        ledger.store(0, 0, Ordering::Release);
        for (word, mac) in (1..).step_by(2).zip(&self.list[..self.used]) {
            let [a, b, c, d, e, f] = mac.0;
            ledger.store(word, u32::from_le_bytes([a, b, c, d]), Ordering::Release);
            ledger.store(word + 1, u32::from_le_bytes([e, f, 0, 0]), Ordering::Release);
        }
        ledger.store(0, LEDGER << 16 | self.used as u32, Ordering::Release);
    }

    /// Reads the list that an earlier backend wrote down.
    fn recall(&mut self) -> Option<()> {
        let ledger = self.ledger.as_ref()?;
        let head = ledger.load(0, Ordering::Acquire);
        let used = (head & 0xffff) as usize;
        if head >> 16 != LEDGER {
            return None;
        }
        for (word, mac) in (1..).step_by(2).zip(self.list.get_mut(..used)?) {
            let [a, b, c, d] = ledger.load(word, Ordering::Relaxed).to_le_bytes();
            let [e, f, ..] = ledger.load(word + 1, Ordering::Relaxed).to_le_bytes();
            *mac = Mac([a, b, c, d, e, f]);
        }
        self.used = used;
        Some(())
    }

    /// Changes the list. It may be changed before it is in force; the header says so.
    ///
    /// # Errors
    /// [`Refused`]; the list is then as it was.
    pub fn change(&mut self, change: Change) -> Result<(), Refused> {
        match change {
            Change::Add(mac) if !mac.is_group() => Err(Refused),
            Change::Add(mac) if self.contains(mac) => Ok(()),
            Change::Add(mac) => {
                *self.list.get_mut(self.used).ok_or(Refused)? = mac;
                self.used += 1;
                self.note();
                Ok(())
            }
            Change::Remove(mac) => {
                if let Some(at) = self.list[..self.used].iter().position(|m| *m == mac) {
                    self.used -= 1;
                    self.list.swap(at, self.used);
                    self.note();
                }
                Ok(())
            }
        }
    }
}

impl<P> Subscriptions<P> {
    fn contains(&self, mac: Mac) -> bool {
        self.list[..self.used].contains(&mac)
    }

    /// Returns whether the guest is to get a frame: one to itself, a broadcast, or one to a group it is in.
    pub fn want(&self, frame: &[u8]) -> bool {
        if self.groups == Groups::All {
            return true;
        }
        let Some(to) = frame.first_chunk::<6>() else { return true };
        let to = Mac(*to);
        !to.is_group() || to == Mac::BROADCAST || self.contains(to)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    /// A page for one thread.
    #[derive(Clone)]
    struct Words(Rc<[Cell<u32>; 1024]>);

    impl Default for Words {
        fn default() -> Self {
            Self(Rc::new([const { Cell::new(0) }; 1024]))
        }
    }

    impl SharedWords for Words {
        fn load(&self, word: usize, _: Ordering) -> u32 {
            self.0[word].get()
        }
        fn store(&self, word: usize, value: u32, _: Ordering) {
            self.0[word].set(value);
        }
        fn full_fence(&self) {}
    }

    fn new(groups: Groups) -> Subscriptions<Words> {
        Subscriptions::new(groups, None, Rings::New)
    }

    fn group(n: u8) -> Mac {
        Mac([1, 0, 0x5e, 0, 0, n])
    }

    #[test]
    fn groups_come_and_go_and_broadcast_stays() {
        let mut list = new(Groups::Subscribed);
        assert!(list.want(&[0xff; 14]) && list.want(&[2; 14]));
        assert!(!list.want(&group(1).0));
        for _ in 0..2 {
            list.change(Change::Add(group(1))).unwrap();
        }
        assert!(list.want(&group(1).0) && !list.want(&group(2).0));
        list.change(Change::Remove(group(2))).unwrap();
        list.change(Change::Remove(group(1))).unwrap();
        assert!(!list.want(&group(1).0), "once was enough");
        assert_eq!(list.change(Change::Add(Mac([2; 6]))), Err(Refused), "no group");
    }

    #[test]
    fn the_list_is_bounded_and_nobody_is_filtered_unasked() {
        let mut list = new(Groups::Subscribed);
        for n in 0..MAX_GROUPS as u8 {
            list.change(Change::Add(group(n))).unwrap();
        }
        assert_eq!(list.change(Change::Add(group(200))), Err(Refused));
        assert_eq!(list.change(Change::Add(group(3))), Ok(()), "it is there");
        list.change(Change::Remove(group(3))).unwrap();
        list.change(Change::Add(group(200))).unwrap();
        assert!(list.want(&group(200).0) && list.want(&group(63).0) && !list.want(&group(3).0));
        assert!(new(Groups::All).want(&group(9).0));
    }

    #[test]
    fn the_next_backend_knows_the_list_or_sends_everything() {
        let page = Words::default();
        let with = |rings| Subscriptions::new(Groups::Subscribed, Some(page.clone()), rings);
        assert!(with(Rings::TakenOver).want(&group(1).0), "a page with nothing in it");
        let mut first = with(Rings::New);
        let mut second = with(Rings::TakenOver);
        assert!(!second.want(&group(1).0), "an empty list is a list");
        for n in 1..=MAX_GROUPS as u8 {
            first.change(Change::Add(group(n))).unwrap();
        }
        first.change(Change::Remove(group(2))).unwrap();
        second = with(Rings::TakenOver);
        assert!(second.want(&group(1).0) && second.want(&group(64).0) && !second.want(&group(2).0));
        second.change(Change::Remove(group(1))).unwrap();
        assert!(!with(Rings::TakenOver).want(&group(1).0), "and so on");
        // One that ended while it wrote.
        page.store(0, 0, Ordering::Relaxed);
        assert!(with(Rings::TakenOver).want(&group(2).0));
        page.store(0, LEDGER << 16 | 65, Ordering::Relaxed);
        assert!(with(Rings::TakenOver).want(&group(2).0), "more than there can be");
        assert!(!with(Rings::New).want(&group(1).0) && !with(Rings::TakenOver).want(&group(1).0), "all anew");
    }
}
