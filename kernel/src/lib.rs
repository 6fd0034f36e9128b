//! The parts of the unikernel that are plain logic: no instruction of the machine, no address, no unsafe code,
//! so that `cargo test` runs them on any host. The binary beside this library puts them on a machine.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod app;
pub mod console_ring;
pub mod control;
mod forward;
pub mod grant_refs;
pub mod memory_plan;
pub mod net;
pub mod pvclock;
pub mod seed;
pub mod settings;
pub mod store_stream;
pub mod watch_events;
