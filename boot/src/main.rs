//! The launcher behind `cargo boot`.

fn main() {}
