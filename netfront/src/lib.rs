//! A Xen network frontend: netif with any backend, containers with one that knows them, straight into
//! smoltcp.
//!
//! It knows no kernel and no hypervisor: both are reached through [`platform`]. One file (`device`) names
//! smoltcp. `unsafe` is confined to `pool` and to `platform`'s forwarding.
//!
//! A round of a poll loop: hand watch events to [`Netfront::watch_fired`], call [`Netfront::service`], look at
//! [`Netfront::next_change`]; for each vif [`Vif::ingress`] with a bounded batch, the application, the stack's
//! egress, [`Vif::flush`]; and once nothing is left to do [`Vif::rearm`], then sleep on [`Vif::ports`].
#![no_std]

extern crate alloc;

mod chain;
mod counters;
pub mod datagram;
mod device;
mod features;
mod frontend;
pub mod inbox;
mod link;
pub mod platform;
mod pool;
mod rx;
mod staging;
mod tx;
mod vif;

pub use counters::{ContainerRejects, Counters, RxCounters, RxDrops, TxCounters};
pub use device::{RxToken, Shown, TxToken, take_frame};
pub use features::{Agreed, Options, Stage, Use};
pub use frontend::{Fired, Netfront};
pub use link::Readiness;
pub use pool::Reading;
pub use rx::Broken;
pub use vif::{Change, Event, Problem, Staged, Vif};
