//! Drayage's backend as a library: the data path, and what steers it.
//!
//! The data path (`worker` and what it uses: `vif`, `aggregate`, `switch`, `port`, `xen`) names no xenstore;
//! `control` finds the two ends and connects them. `unsafe` lives in `xen`'s device files and in the TAP port.
#![deny(unsafe_code)]

pub mod aggregate;
pub mod clock;
mod fabric;
pub mod memory;
pub mod policy;
pub mod port;
pub mod segment;
pub mod switch;
pub mod vif;
pub mod worker;
pub mod xen;

pub use fabric::{MAX_GUESTS, MAX_UPLINKS, UplinkCounters};
