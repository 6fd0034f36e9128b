//! Which grant references are free: a stack of them that grows with the table. It knows nothing of what a grant
//! entry is. References 0 to 7 are reserved by the toolstack (public/grant_table.h).

use alloc::vec::Vec;

/// The first reference that a guest may hand out (`GNTTAB_NR_RESERVED_ENTRIES`).
pub const FIRST_REF: u32 = 8;

/// The free references of a grant table.
#[derive(Debug, Default)]
pub struct GrantRefs {
    free: Vec<u32>,
    /// Whether a reference is handed out, by reference.
    taken: Vec<bool>,
    /// References below this are known: handed out, or in `free`.
    known: u32,
    /// References that were given up for good because the other end would not let go of them.
    lost: u32,
}

impl GrantRefs {
    /// Returns a set without references.
    pub const fn new() -> Self {
        Self { free: Vec::new(), taken: Vec::new(), known: FIRST_REF, lost: 0 }
    }

    /// Adds the references of a table that now has `entries`.
    pub fn grow_to(&mut self, entries: u32) {
        if entries > self.known {
            self.free.reserve_exact(entries as usize - self.free.len());
            // The lowest reference is handed out first: it sits on top of the stack.
            self.free.splice(0..0, (self.known..entries).rev());
            self.taken.resize(entries as usize, false);
            self.known = entries;
        }
    }

    /// Takes a free reference.
    pub fn take(&mut self) -> Option<u32> {
        let reference = self.free.pop()?;
        self.taken[reference as usize] = true;
        Some(reference)
    }

    /// Gives a reference back. Returns whether it was taken; a second time is refused.
    pub fn give_back(&mut self, reference: u32) -> bool {
        let taken = self.taken.get_mut(reference as usize).is_some_and(core::mem::take);
        if taken {
            self.free.push(reference);
        }
        taken
    }

    /// Counts a reference that can never be used again.
    pub fn lose(&mut self) {
        self.lost += 1;
    }

    /// Returns how many references are free.
    pub fn free_count(&self) -> usize {
        self.free.len()
    }

    /// Returns how many references were lost.
    pub fn lost_count(&self) -> u32 {
        self.lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_references_are_never_handed_out() {
        let mut refs = GrantRefs::new();
        assert_eq!(refs.take(), None);
        refs.grow_to(512);
        assert_eq!(refs.take(), Some(8));
        assert_eq!(refs.take(), Some(9));
        assert!(!refs.give_back(7));
        assert!(!refs.give_back(512));
        assert!(refs.give_back(8));
        assert!(!refs.give_back(8));
        assert_eq!(refs.take(), Some(8));
    }

    #[test]
    fn every_reference_is_handed_out_once() {
        let mut refs = GrantRefs::new();
        refs.grow_to(512);
        refs.grow_to(512);
        let mut seen: Vec<u32> = core::iter::from_fn(|| refs.take()).collect();
        refs.grow_to(1024);
        seen.extend(core::iter::from_fn(|| refs.take()));
        assert_eq!(seen, (8..1024).collect::<Vec<u32>>());
    }

    #[test]
    fn giving_back_does_not_allocate() {
        let mut refs = GrantRefs::new();
        refs.grow_to(1024);
        let capacity = refs.free.capacity();
        let all: Vec<u32> = core::iter::from_fn(|| refs.take()).collect();
        all.iter().for_each(|reference| assert!(refs.give_back(*reference)));
        assert_eq!(refs.free.capacity(), capacity);
        assert_eq!(refs.free_count(), 1016);
    }
}
