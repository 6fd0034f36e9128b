//! Sets of address ranges, as memory maps are made of: sorted, disjoint, of a fixed capacity, because there
//! is no heap yet when they are needed. Plain arithmetic.

use crate::PAGE_BYTES;

/// An address range, `start` included and `end` not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// First address behind the range.
    pub end: u64,
}

impl Range {
    /// Returns the range from `start` to `end`, empty when they are the wrong way round.
    pub const fn new(start: u64, end: u64) -> Self {
        Self { start, end: if end < start { start } else { end } }
    }

    /// Returns the length in bytes.
    pub const fn len_bytes(&self) -> u64 {
        self.end - self.start
    }

    /// Tells whether nothing lies in the range.
    pub const fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Returns the whole pages inside the range.
    pub const fn shrink_to_pages(&self) -> Self {
        let start = self.start.saturating_add(PAGE_BYTES - 1) & !(PAGE_BYTES - 1);
        Self::new(start, self.end & !(PAGE_BYTES - 1))
    }

    /// Returns the pages that the range touches.
    pub const fn grow_to_pages(&self) -> Self {
        let end = self.end.saturating_add(PAGE_BYTES - 1) & !(PAGE_BYTES - 1);
        Self::new(self.start & !(PAGE_BYTES - 1), end)
    }
}

/// Ranges that a [`Ranges`] can hold; memory maps of guests have about ten.
pub const CAPACITY: usize = 64;

/// A sorted set of disjoint ranges.
#[derive(Clone, Debug)]
pub struct Ranges {
    items: [Range; CAPACITY],
    count: usize,
}

impl Default for Ranges {
    fn default() -> Self {
        Self::new()
    }
}

impl Ranges {
    /// Returns the empty set.
    pub const fn new() -> Self {
        Self { items: [Range { start: 0, end: 0 }; CAPACITY], count: 0 }
    }

    /// Returns the ranges in ascending order.
    pub fn iter(&self) -> core::slice::Iter<'_, Range> {
        self.items[..self.count].iter()
    }

    /// Returns the sum of the lengths in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.iter().map(Range::len_bytes).sum()
    }

    /// Adds a range, joined with those that it touches. A range that finds no room is left out: memory that is
    /// not used does less harm than memory that is used twice.
    pub fn add(&mut self, range: Range) {
        if range.is_empty() {
            return;
        }
        let mut merged = range;
        let mut kept = Self::new();
        for item in self.iter() {
            if item.end < merged.start || item.start > merged.end {
                kept.append(*item);
            } else {
                merged = Range::new(merged.start.min(item.start), merged.end.max(item.end));
            }
        }
        let at = kept.items[..kept.count].partition_point(|item| item.start < merged.start);
        if kept.count < CAPACITY {
            kept.items.copy_within(at..kept.count, at + 1);
            kept.items[at] = merged;
            kept.count += 1;
            *self = kept;
        }
    }

    /// Takes a range out of the set.
    pub fn remove(&mut self, hole: Range) {
        if hole.is_empty() {
            return;
        }
        let mut kept = Self::new();
        for item in self.iter() {
            kept.append(Range::new(item.start, item.end.min(hole.start).max(item.start)));
            kept.append(Range::new(item.start.max(hole.end).min(item.end), item.end));
        }
        *self = kept;
    }

    /// Returns the first `limit_bytes` of the set, counted from its lowest address.
    pub fn first_bytes(&self, limit_bytes: u64) -> Self {
        let mut out = Self::new();
        let mut left = limit_bytes;
        for item in self.iter() {
            let take = item.len_bytes().min(left);
            out.append(Range::new(item.start, item.start + take));
            left -= take;
        }
        out
    }

    /// Appends a range that lies above all others.
    fn append(&mut self, range: Range) {
        if !range.is_empty() && self.count < CAPACITY {
            self.items[self.count] = range;
            self.count += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(items: &[(u64, u64)]) -> Ranges {
        let mut out = Ranges::new();
        for (start, end) in items {
            out.add(Range::new(*start, *end));
        }
        out
    }

    fn list(ranges: &Ranges) -> Vec<(u64, u64)> {
        ranges.iter().map(|range| (range.start, range.end)).collect()
    }

    #[test]
    fn adding_sorts_and_joins() {
        assert_eq!(list(&set(&[(5, 7), (1, 2), (2, 3), (9, 9)])), [(1, 3), (5, 7)]);
        assert_eq!(list(&set(&[(1, 2), (5, 6), (8, 9), (0, 8)])), [(0, 9)]);
    }

    #[test]
    fn removing_splits() {
        let mut map = set(&[(0, 10), (20, 30)]);
        map.remove(Range::new(3, 5));
        map.remove(Range::new(8, 22));
        map.remove(Range::new(40, 50));
        map.remove(Range::new(25, 25));
        assert_eq!(list(&map), [(0, 3), (5, 8), (22, 30)]);
        map.remove(Range::new(0, 100));
        assert_eq!(list(&map), []);
    }

    #[test]
    fn adding_and_removing_agree_with_a_bitmap() {
        let mut seed = 0x1234_5678_9abc_def1_u64;
        let mut map = Ranges::new();
        let mut bits = [false; 64];
        for _ in 0..5000 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            let (start, len) = (seed % 60, (seed >> 8) % 5);
            let range = Range::new(start, start + len);
            let set = seed & (1 << 40) != 0;
            if set {
                map.add(range)
            } else {
                map.remove(range)
            }
            bits[start as usize..(start + len) as usize].fill(set);
            let mut seen = [false; 64];
            map.iter().for_each(|range| seen[range.start as usize..range.end as usize].fill(true));
            assert_eq!(seen, bits);
            assert!(map.iter().zip(map.iter().skip(1)).all(|(a, b)| a.end < b.start));
        }
    }

    #[test]
    fn a_limit_takes_the_lowest_bytes() {
        let map = set(&[(0, 10), (20, 30)]);
        assert_eq!(list(&map.first_bytes(13)), [(0, 10), (20, 23)]);
        assert_eq!(list(&map.first_bytes(0)), []);
        assert_eq!(map.first_bytes(99).len_bytes(), 20);
    }

    #[test]
    fn pages_are_rounded_inwards_and_outwards() {
        let range = Range::new(1, 8193);
        assert_eq!(range.shrink_to_pages(), Range::new(4096, 8192));
        assert_eq!(range.grow_to_pages(), Range::new(0, 12288));
        assert!(Range::new(1, 4095).shrink_to_pages().is_empty());
        assert_eq!(Range::new(0, u64::MAX).grow_to_pages().end, !4095);
    }

    #[test]
    fn a_full_set_keeps_what_it_has() {
        let mut map = Ranges::new();
        (0..CAPACITY as u64 + 5).for_each(|i| map.add(Range::new(i * 10, i * 10 + 1)));
        assert_eq!(map.len_bytes(), CAPACITY as u64);
    }
}
