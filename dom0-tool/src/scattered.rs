//! A frame whose end is still in pages that its sender may write at any time: on its way to a system call, which is then
//! the only one to read that.
//!
//! It knows neither whose pages these are nor where the frame goes.

use drayage_shared::Span;

/// Parts behind what is known, at most: a container has 16 pages.
pub const MOST_PARTS: usize = 16;

/// A frame in parts.
#[derive(Debug)]
pub struct Scattered<'a> {
    /// As long as the frame. Its first bytes are here, all headers among them, and nothing is known of what is here in place
    /// of the others.
    pub frame: &'a [u8],
    /// How many bytes are known: those that go out from here.
    pub known: usize,
    /// Where the others are, in order.
    pub rest: [Option<Span<'a>>; MOST_PARTS],
}

impl<'a> Scattered<'a> {
    /// Returns the bytes that are known.
    pub fn head(&self) -> &'a [u8] {
        &self.frame[..self.known]
    }

    /// Returns where the others are, in order.
    pub fn rest(&self) -> impl Iterator<Item = Span<'a>> {
        self.rest.iter().copied().flatten()
    }
}
