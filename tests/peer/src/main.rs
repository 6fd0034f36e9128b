//! The test bed's tool.
fn main() {}
