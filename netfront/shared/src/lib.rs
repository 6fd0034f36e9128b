//! Memory that another domain can read and write at any time: by-value loads, stores and copies, and no
//! references.
//!
//! A Rust reference promises that nobody else writes what it points at, and the compiler may read twice
//! through it. So shared memory is only reached through these types, which use atomics for words, and volatile
//! accesses or the processor's own copying for bulk; a [`Span`] names a part for the system to read. They know neither who
//! shares the memory nor what lies in it.
#![no_std]

use core::arch::asm;
use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering, fence};

use drayage_wire::PAGE_SIZE;
use drayage_wire::ring::SharedWords;

/// A shared page, seen as 1024 words: what a ring lies in.
#[derive(Debug)]
pub struct SharedPage(NonNull<AtomicU32>);

// SAFETY: the type is a pointer to memory that lives as long as the value (the promise of `new`), and every
// access through it is atomic, so it may be used from whichever thread owns it.
unsafe impl Send for SharedPage {}

impl SharedPage {
    /// Takes a page that another domain shares, or will share.
    ///
    /// # Safety
    /// `page` points to 4096 readable and writable bytes, aligned to a page, that stay mapped for as long as
    /// the value lives, and nothing in this program accesses them but by atomics.
    pub const unsafe fn new(page: NonNull<u8>) -> Self {
        Self(page.cast())
    }

    fn word(&self, word: usize) -> &AtomicU32 {
        assert!(word < PAGE_SIZE / 4, "word {word} is outside the page");
        // SAFETY: `word` was just bounded, so the result lies in the page that `new` was promised.
        let at = unsafe { self.0.add(word) };
        // SAFETY: the page is mapped and aligned while `self` lives, and is only accessed by atomics.
        unsafe { at.as_ref() }
    }
}

impl SharedWords for SharedPage {
    fn load(&self, word: usize, order: Ordering) -> u32 {
        self.word(word).load(order)
    }

    fn store(&self, word: usize, value: u32, order: Ordering) {
        self.word(word).store(value, order);
    }

    fn full_fence(&self) {
        fence(Ordering::SeqCst);
    }
}

/// A range of shared bytes that is copied out of or into, never borrowed.
#[derive(Debug)]
pub struct SharedBytes {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: as for `SharedPage`: a pointer to memory that outlives the value, accessed without references.
unsafe impl Send for SharedBytes {}

/// Eight bytes at any address. A volatile `[u8; 8]` would be read and written byte by byte: LLVM takes a
/// volatile aggregate apart, and this one only down to its one word.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Unaligned(u64);

/// A copy would leave the shared range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfRange;

impl SharedBytes {
    /// Takes a range that another domain shares.
    ///
    /// # Safety
    /// `start` points to `len` readable and writable bytes that stay mapped for as long as the value lives,
    /// and nothing in this program holds a reference into them.
    pub const unsafe fn new(start: NonNull<u8>, len: usize) -> Self {
        Self { start, len }
    }

    /// Returns the length of the range, in bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Returns whether the range has no bytes.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn check(&self, offset: usize, len: usize) -> Result<(), OutOfRange> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(OutOfRange),
        }
    }

    /// Copies `into.len()` bytes out of the range from `offset` on. Each byte is read once; what the other
    /// domain writes meanwhile may or may not be in the copy.
    ///
    /// # Errors
    /// [`OutOfRange`]; nothing is then copied.
    pub fn copy_out(&self, offset: usize, into: &mut [u8]) -> Result<(), OutOfRange> {
        self.check(offset, into.len())?;
        let to = NonNull::from(&mut *into).cast();
        // SAFETY: `offset + into.len()` was checked to lie in the range that `new` was promised.
        let from = unsafe { self.start.add(offset) };
        // SAFETY: as many bytes can be read, by the same check, and written, as `into` is borrowed for that.
        unsafe { copy(from, to, into.len()) };
        Ok(())
    }

    /// Copies `from` into the range at `offset`.
    ///
    /// # Errors
    /// [`OutOfRange`]; nothing is then copied.
    pub fn copy_in(&self, offset: usize, from: &[u8]) -> Result<(), OutOfRange> {
        self.check(offset, from.len())?;
        // SAFETY: `offset + from.len()` was checked to lie in the range that `new` was promised.
        let to = unsafe { self.start.add(offset) };
        // SAFETY: as many bytes can be written, by the same check, and read, as `from` is borrowed for that.
        unsafe { copy(NonNull::from(from).cast(), to, from.len()) };
        Ok(())
    }

    /// Returns a part of the range, for the system to read.
    ///
    /// # Errors
    /// [`OutOfRange`].
    pub fn span(&self, offset: usize, len: usize) -> Result<Span<'_>, OutOfRange> {
        self.check(offset, len)?;
        // SAFETY: `offset + len` was checked to lie in the range that `new` was promised.
        let start = unsafe { self.start.add(offset) };
        Ok(Span { start, len, range: PhantomData })
    }

    /// Copies `len` bytes from `offset` on into another shared range, at `at`, with no copy in between. Each byte is read
    /// once.
    ///
    /// # Errors
    /// [`OutOfRange`], of either range; nothing is then copied.
    pub fn copy_across(&self, offset: usize, to: &Self, at: usize, len: usize) -> Result<(), OutOfRange> {
        self.check(offset, len)?;
        to.check(at, len)?;
        // SAFETY: `offset + len` was checked to lie in the range that `new` was promised.
        let source = unsafe { self.start.add(offset) };
        // SAFETY: `at + len` was checked to lie in the range that the other's `new` was promised.
        let target = unsafe { to.start.add(at) };
        // SAFETY: as many bytes can be read and written, by the two checks.
        unsafe { copy(source, target, len) };
        Ok(())
    }
}

/// A part of a shared range, for the system to read: it is named in a system call, and this program judges nothing by it, as
/// the other domain may write it at any time.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    start: NonNull<u8>,
    len: usize,
    range: PhantomData<&'a SharedBytes>,
}

impl Span<'_> {
    /// Returns where it starts. As many bytes as it [is long](Self::len) can be read there while it lives.
    pub const fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Returns its length, in bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Returns whether it has no bytes.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies as many bytes out of it as `into` has, as the system would: each is read once.
    ///
    /// # Errors
    /// [`OutOfRange`]; nothing is then copied.
    pub fn copy_out(&self, into: &mut [u8]) -> Result<(), OutOfRange> {
        if into.len() > self.len {
            return Err(OutOfRange);
        }
        // SAFETY: that many bytes can be read, as `span` checked, and written, as `into` is borrowed for that.
        unsafe { copy(self.start, NonNull::from(&mut *into).cast(), into.len()) };
        Ok(())
    }
}

/// Copies shorter than this go word by word: an instruction that repeats has a start of its own.
const LEAST_REPEATED: usize = 64;

/// Copies bytes that somebody else may change meanwhile, each read once and written once.
///
/// # Safety
/// `len` bytes can be read at `from` and written at `to`, and nobody in this program holds a reference to what lies
/// in shared memory of them.
unsafe fn copy(from: NonNull<u8>, to: NonNull<u8>, len: usize) {
    let mut done = 0;
    if len >= LEAST_REPEATED {
        done = len & !7;
        // SAFETY: reads and writes `done <= len` bytes, which the caller promised; the direction flag is clear by the
        // rules of `asm!`, which does not let the compiler assume what was read.
        unsafe {
            asm!(
                "rep movsq",
                inout("rcx") len / 8 => _,
                inout("rsi") from.as_ptr() => _,
                inout("rdi") to.as_ptr() => _,
                options(nostack, preserves_flags)
            );
        }
    }
    while len - done >= 8 {
        // SAFETY: eight bytes of the `len` are left from `done` on, there and below.
        let from = unsafe { from.add(done) };
        // SAFETY: the same.
        let to = unsafe { to.add(done) };
        // SAFETY: eight readable bytes; the read is volatile, so it is made once, of a type that needs no alignment and
        // for which every bit pattern is a value.
        let word = unsafe { from.cast::<Unaligned>().read_volatile() };
        // SAFETY: eight writable bytes; the type needs no alignment.
        unsafe { to.cast::<Unaligned>().write_volatile(word) };
        done += 8;
    }
    while done < len {
        // SAFETY: a byte of the `len` is left at `done`, there and below.
        let from = unsafe { from.add(done) };
        // SAFETY: the same.
        let to = unsafe { to.add(done) };
        // SAFETY: one readable byte.
        let byte = unsafe { from.read_volatile() };
        // SAFETY: one writable byte.
        unsafe { to.write_volatile(byte) };
        done += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(align(4096))]
    struct Page([u8; PAGE_SIZE]);

    #[test]
    fn words_are_little_endian_and_in_place() {
        let mut page = Page([0; PAGE_SIZE]);
        // SAFETY: the page outlives `words`, and is not touched before `words` was used last.
        let words = unsafe { SharedPage::new(NonNull::from(&mut page.0).cast()) };
        words.store(1023, 0x0403_0201, Ordering::Release);
        assert_eq!(words.load(1023, Ordering::Acquire), 0x0403_0201);
        assert_eq!(page.0[4092..], [1, 2, 3, 4]);
    }

    #[test]
    fn copies_are_exact_and_stay_inside() {
        let mut bytes = [0u8; 64];
        // SAFETY: the array outlives `shared`, and is not touched while `shared` lives.
        let shared = unsafe { SharedBytes::new(NonNull::from(&mut bytes).cast(), 64) };
        let pattern: [u8; 29] = core::array::from_fn(|i| i as u8 + 1);
        assert_eq!(shared.copy_in(3, &pattern), Ok(()));
        let mut back = [0; 31];
        assert_eq!(shared.copy_out(2, &mut back), Ok(()));
        assert_eq!((back[0], back[30]), (0, 0));
        assert_eq!(back[1..30], pattern);
        assert_eq!(shared.copy_in(36, &pattern), Err(OutOfRange));
        assert_eq!(shared.copy_in(usize::MAX, &pattern), Err(OutOfRange));
        assert_eq!(shared.copy_out(64, &mut back[..0]), Ok(()));
        assert_eq!(shared.copy_out(64, &mut back[..1]), Err(OutOfRange));
        let mut others = [0u8; 40];
        // SAFETY: as above.
        let other = unsafe { SharedBytes::new(NonNull::from(&mut others).cast(), 40) };
        assert_eq!(shared.copy_across(3, &other, 5, 29), Ok(()));
        let mut there = [0xff; 40];
        assert_eq!(other.copy_out(0, &mut there), Ok(()));
        assert_eq!((&there[..5], &there[34..]), (&[0; 5][..], &[0; 6][..]));
        assert_eq!(there[5..34], pattern);
        assert_eq!(shared.copy_across(36, &other, 0, 29), Err(OutOfRange));
        assert_eq!(shared.copy_across(0, &other, 36, 5), Err(OutOfRange));
    }

    #[test]
    fn copies_of_every_length_from_every_place_leave_the_rest_alone() {
        let mut bytes = [0u8; 256];
        // SAFETY: the array outlives `shared`, and is not touched while `shared` lives.
        let shared = unsafe { SharedBytes::new(NonNull::from(&mut bytes).cast(), 256) };
        let pattern: [u8; 200] = core::array::from_fn(|i| i as u8 + 1);
        for at in 0..16 {
            for len in 0..=pattern.len() {
                assert_eq!(shared.copy_in(0, &[0xaa; 256]), Ok(()));
                assert_eq!(shared.copy_in(at, &pattern[..len]), Ok(()));
                let mut back = [0xbb; 256];
                assert_eq!(shared.copy_out(at, &mut back[1..=len]), Ok(()));
                assert_eq!((&back[1..=len], back[0], back[len + 1]), (&pattern[..len], 0xbb, 0xbb));
                assert_eq!(shared.copy_out(0, &mut back), Ok(()));
                assert!(back[..at].iter().chain(&back[at + len..]).all(|byte| *byte == 0xaa));
                assert_eq!(back[at..at + len], pattern[..len]);
            }
        }
    }
}
