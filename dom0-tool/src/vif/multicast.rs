//! netif's own multicast control: the groups that a frontend wants to hear, once it asked for being asked
//! (`feature-multicast-control` in `xen/include/public/io/netif.h`).
//!
//! The list is bounded as netback's is, and costs nothing but its guest when it is full. It knows group
//! addresses only.

use crate::switch::Mac;

/// Groups in a list, at most (`XEN_NETBK_MCAST_MAX` in Linux's netback).
pub const MAX_GROUPS: usize = 64;

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
pub struct Subscriptions {
    groups: Groups,
    list: [Mac; MAX_GROUPS],
    used: usize,
}

impl Subscriptions {
    /// Returns an empty list.
    pub fn new(groups: Groups) -> Self {
        Self { groups, list: [Mac::default(); MAX_GROUPS], used: 0 }
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
                Ok(())
            }
            Change::Remove(mac) => {
                if let Some(at) = self.list[..self.used].iter().position(|m| *m == mac) {
                    self.used -= 1;
                    self.list.swap(at, self.used);
                }
                Ok(())
            }
        }
    }

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
    use super::*;

    fn group(n: u8) -> Mac {
        Mac([1, 0, 0x5e, 0, 0, n])
    }

    #[test]
    fn groups_come_and_go_and_broadcast_stays() {
        let mut list = Subscriptions::new(Groups::Subscribed);
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
        let mut list = Subscriptions::new(Groups::Subscribed);
        for n in 0..MAX_GROUPS as u8 {
            list.change(Change::Add(group(n))).unwrap();
        }
        assert_eq!(list.change(Change::Add(group(200))), Err(Refused));
        assert_eq!(list.change(Change::Add(group(3))), Ok(()), "it is there");
        list.change(Change::Remove(group(3))).unwrap();
        list.change(Change::Add(group(200))).unwrap();
        assert!(list.want(&group(200).0) && list.want(&group(63).0) && !list.want(&group(3).0));
        assert!(Subscriptions::new(Groups::All).want(&group(9).0));
    }
}
