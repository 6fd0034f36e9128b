//! The pieces of a guest's containers that are not in its region: each is a run of packets that lie where they were copied to
//! from another guest, as they do in the container, and go out from there; or that are in the guest's pages already.
//!
//! It knows neither how a container is opened and closed nor who refers to blocks.

use drayage_wire::PAGE_SIZE;
use drayage_wire::container::DESCRIPTOR_BYTES;

use crate::vif::scratch::Lent;

/// Pieces of one container, at most, so that its copies always find room in a batch.
pub(super) const MOST_IN_ONE: usize = 256;
/// Pieces of all containers of a guest, at most.
const MOST: usize = 1024;
/// Between two packets of a container that follow each other there are fewer bytes.
const GAP_BYTES: u32 = 4;

/// A piece.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Where in its container it starts, in bytes.
    pub start: u32,
    /// Where in it it ends.
    pub end: u32,
    /// Where it lies.
    pub place: Held,
}

/// Where a piece lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Where it was copied to from another guest.
    Lent(Lent),
    /// In the guest's pages already, where it belongs in them.
    Placed,
}

impl Piece {
    /// Returns what it refers to.
    pub fn lent(self) -> Option<Lent> {
        match self.place {
            Held::Lent(lent) => Some(lent),
            Held::Placed => None,
        }
    }
}

/// What one copy takes into one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where in its container it starts, in bytes.
    pub start: u32,
    /// How many bytes it has.
    pub len: u32,
    /// Where it lies: in the guest's region, or in the blocks.
    pub from: u32,
    /// See above.
    pub is_lent: bool,
}

/// The pieces of all containers of a guest, oldest first, those of the open container last.
#[derive(Debug)]
pub(super) struct Pieces {
    ring: Box<[Option<Piece>]>,
    /// The number of the oldest, and how many there are. Numbers wrap.
    first: u32,
    count: u32,
    /// How many belong to the open container.
    open: u32,
}

impl Default for Pieces {
    fn default() -> Self {
        Self { ring: vec![None; MOST].into_boxed_slice(), first: 0, count: 0, open: 0 }
    }
}

impl Pieces {
    fn slot(&mut self, number: u32) -> &mut Option<Piece> {
        &mut self.ring[number as usize % MOST]
    }

    /// Adds a packet to the last piece, if it follows that in the open container and lies behind it in the same way: `at` in the
    /// blocks, or placed.
    pub(super) fn extend(&mut self, start: u32, len: u32, at: Option<u32>) -> bool {
        if self.open == 0 {
            return false;
        }
        let last = self.first.wrapping_add(self.count).wrapping_sub(1);
        let Some(piece) = self.slot(last) else { return false };
        let in_the_same_way = match (piece.place, at) {
            (Held::Lent(lent), Some(at)) => {
                lent.at + (start - piece.start) == at && lent.shares_block_with(at)
            }
            (Held::Placed, None) => true,
            _ => false,
        };
        let follows = start - piece.end < GAP_BYTES && in_the_same_way;
        if follows {
            piece.end = start + len;
        }
        follows
    }

    /// Returns whether there is room for another one.
    pub(super) fn have_room(&self) -> bool {
        self.count < MOST as u32
    }

    /// Adds a piece of the open container, behind all that is in it. There is [room](Self::have_room) for it.
    pub(super) fn push(&mut self, piece: Piece) {
        *self.slot(self.first.wrapping_add(self.count)) = Some(piece);
        self.count += 1;
        self.open += 1;
    }

    /// Returns how many belong to the open container.
    pub(super) fn in_open(&self) -> usize {
        self.open as usize
    }

    /// Closes the open container. Returns the number of its first piece, and how many it has.
    pub(super) fn close(&mut self) -> (u32, u32) {
        let open = std::mem::take(&mut self.open);
        (self.first.wrapping_add(self.count - open), open)
    }

    /// Frees the `n` oldest, which belong to closed containers.
    pub(super) fn release(&mut self, n: u32) {
        self.first = self.first.wrapping_add(n);
        self.count -= n;
    }

    /// Returns pieces by their numbers.
    pub(super) fn numbered(&self, first: u32, count: u32) -> impl Iterator<Item = Piece> + use<'_> {
        (0..count).map_while(move |i| self.ring[first.wrapping_add(i) as usize % MOST])
    }

    /// Returns all.
    pub(super) fn all(&self) -> impl Iterator<Item = Piece> + use<'_> {
        self.numbered(self.first, self.count)
    }
}

/// Returns the copies that a container of `bytes` bytes takes that lies at `region_start`, but for its pieces. What is placed
/// takes none. What lies between two pieces that follow each other belongs to no packet, and is left as the guest had it.
pub(super) fn parts(
    region_start: u32,
    bytes: u32,
    mut pieces: impl Iterator<Item = Piece>,
) -> impl Iterator<Item = Part> {
    let (mut at, mut next) = (0, pieces.next());
    std::iter::from_fn(move || {
        while at < bytes {
            let start = at;
            let page_end = start - start % PAGE_SIZE as u32 + PAGE_SIZE as u32;
            let Some(piece) = next.filter(|piece| piece.start <= start) else {
                at = page_end.min(next.map_or(bytes, |piece| piece.start));
                return Some(Part { start, len: at - start, from: region_start + start, is_lent: false });
            };
            let lent = piece.lent();
            at = if lent.is_some() { page_end.min(piece.end) } else { piece.end };
            let len = at - start;
            if at == piece.end {
                next = pieces.next();
                if let Some(following) = next.filter(|following| following.start - at < GAP_BYTES) {
                    at = following.start;
                }
            }
            if let Some(lent) = lent {
                return Some(Part { start, len, from: lent.at + (start - piece.start), is_lent: true });
            }
        }
        None
    })
}

/// Clears what lies between the packets of each piece in the blocks. `table` has the container's descriptors.
pub(super) fn clear_gaps(
    table: &[[u8; DESCRIPTOR_BYTES]],
    mut pieces: impl Iterator<Item = Piece>,
    blocks: &mut [u8],
) {
    let (mut piece, mut end) = (pieces.next(), 0);
    for [o0, o1, l0, l1, ..] in table {
        let start = u32::from(u16::from_le_bytes([*o0, *o1]));
        while piece.is_some_and(|piece| piece.end <= start) {
            piece = pieces.next();
        }
        // It goes on with a packet that began before this one, so with the last one.
        if let Some(piece) = piece.filter(|piece| piece.start < start && end < start)
            && let Held::Lent(lent) = piece.place
        {
            let at = |offset| (lent.at + (offset - piece.start)) as usize;
            blocks[at(end)..at(start)].fill(0);
        }
        end = start + u32::from(u16::from_le_bytes([*l0, *l1]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vif::scratch::{Leases, Pins};

    fn piece(start: u32, end: u32, at: u32) -> Piece {
        let lent = Pins::default().pin(&mut Leases::default(), at).expect("the first");
        Piece { start, end, place: Held::Lent(lent) }
    }

    #[test]
    fn only_what_follows_both_here_and_there_is_one_piece() {
        let mut pieces = Pieces::default();
        assert!(!pieces.extend(34, 60, Some(1002)), "there is none");
        pieces.push(piece(34, 94, 1002));
        assert!(pieces.extend(94, 59, Some(1062)));
        assert!(pieces.extend(154, 60, Some(1122)), "a gap of one byte on both sides");
        assert!(!pieces.extend(214, 60, Some(1183)), "elsewhere");
        assert!(!pieces.extend(218, 60, Some(1186)), "something else is between them");
        assert_eq!(pieces.all().map(|piece| (piece.start, piece.end)).collect::<Vec<_>>(), [(34, 214)]);
        assert_eq!(pieces.close(), (0, 1));
        assert!(!pieces.extend(214, 60, Some(1182)), "another container's");
        let mut pieces = Pieces::default();
        pieces.push(piece(34, 94, 65_476));
        assert!(!pieces.extend(94, 60, Some(65_536)), "another block");
    }

    #[test]
    fn every_byte_of_a_packet_is_in_one_copy_and_each_copy_in_one_page() {
        // Header and table, a run over a page's end, one behind it, one of its own, one more.
        let pieces =
            [piece(34, 5000, 70_002), piece(5002, 5100, 9000), piece(5402, 9000, 20_000)].into_iter();
        let parts: Vec<_> =
            parts(65_536, 9100, pieces).map(|p| (p.start, p.len, p.from, p.is_lent)).collect();
        let expected = [
            (0, 34, 65_536, false),
            (34, 4062, 70_002, true),
            (4096, 904, 74_064, true),
            (5002, 98, 9000, true),
            (5100, 302, 70_636, false),
            (5402, 2790, 20_000, true),
            (8192, 808, 22_790, true),
            (9000, 100, 74_536, false),
        ];
        assert_eq!(parts, expected);
    }

    #[test]
    fn what_is_placed_is_in_no_copy() {
        let placed = |start, end| Piece { start, end, place: Held::Placed };
        // Over a page's end, with a lent one close behind it, and one at the end.
        let pieces = [placed(34, 5000), piece(5002, 5100, 9000), placed(5400, 9000)].into_iter();
        let parts: Vec<_> = parts(65_536, 9000, pieces).map(|p| (p.start, p.len, p.is_lent)).collect();
        assert_eq!(parts, [(0, 34, false), (5002, 98, true), (5100, 300, false)]);
        let mut pieces = Pieces::default();
        pieces.push(placed(34, 94));
        assert!(!pieces.extend(96, 60, Some(96)), "that one lies elsewhere");
        assert!(pieces.extend(96, 60, None));
        pieces.push(piece(160, 220, 160));
        assert!(!pieces.extend(220, 60, None), "the last one is not placed");
        assert_eq!(
            pieces.all().map(|piece| (piece.start, piece.end)).collect::<Vec<_>>(),
            [(34, 156), (160, 220)]
        );
    }

    #[test]
    fn gaps_inside_pieces_are_cleared_and_nothing_else() {
        let mut blocks = vec![0xee; 400];
        let describe = |start: u16, len: u16| {
            let ([s0, s1], [l0, l1]) = (start.to_le_bytes(), len.to_le_bytes());
            [s0, s1, l0, l1, 0, 0, 0, 0]
        };
        // Two pieces of two packets, and a packet between them that is in neither.
        let table = [(50, 15), (66, 17), (86, 20), (106, 14), (122, 18)].map(|(s, l)| describe(s, l));
        clear_gaps(&table, [piece(50, 83, 10), piece(106, 140, 202)].into_iter(), &mut blocks);
        let cleared: Vec<_> = (0..400).filter(|at| blocks[*at] == 0).collect();
        assert_eq!(cleared, [25, 218 - 2, 218 - 1]);
    }
}
