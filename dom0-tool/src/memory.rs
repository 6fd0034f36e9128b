//! Private memory that starts at a page boundary, so that a page of a guest's is copied from or to it in one
//! operation. It knows nothing of what lies in it.

use drayage_wire::PAGE_SIZE;

/// Page-aligned private memory.
#[derive(Debug)]
pub struct Pages {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Pages {
    /// Makes `len` zeroed bytes. The system gives them when they are touched first.
    pub fn new(len: usize) -> Self {
        let memory = vec![0; len + PAGE_SIZE];
        let start = memory.as_ptr().align_offset(PAGE_SIZE).min(PAGE_SIZE);
        Self { memory, start, len }
    }

    /// Returns the bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    /// Returns the bytes.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}
