//! Fuzz targets: what a peer can write, fed to whatever reads it. Under `cargo test` each runs a bounded number
//! of inputs, random ones and those kept in `__fuzz__`; README.md beside this says how a fuzzer drives them.

mod back;
mod front;
mod input;
mod wire;
