//! Drayage's backend as a library: the data path, and what steers it.
//!
//! The data path (`worker` and what it uses: `vif`, `aggregate`, `switch`, `port`, `xen`) names no xenstore;
//! `control` finds the two ends and connects them. `unsafe` lives in `xen`'s device files, in the TAP port and in `sandbox`.
#![deny(unsafe_code)]

pub mod aggregate;
pub mod bell;
pub mod capture;
pub mod class;
pub mod clock;
pub mod control;
pub mod cores;
pub mod daemon;
pub mod doctor;
mod fabric;
pub mod ipc;
pub mod memory;
pub mod metrics;
pub mod policy;
pub mod port;
pub mod rules;
pub mod sandbox;
pub mod scattered;
pub mod segment;
pub mod slo;
pub mod store;
pub mod switch;
pub mod table;
pub mod trunk;
pub mod vif;
pub mod worker;
pub mod xen;

pub use fabric::{MAX_GUESTS, MAX_UPLINKS, UplinkCounters};
