//! The unikernel.
fn main() {}
