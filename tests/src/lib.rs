//! Helpers of the whole-system tests. Each module says what it knows; none is part of the product.
#![forbid(unsafe_code)]

pub mod back;
pub mod cable;
pub mod channel;
pub mod connector;
pub mod control;
pub mod fleet;
pub mod hand;
pub mod host;
pub mod inhabitants;
pub mod probe;
pub mod rawfront;
pub mod stage;
pub mod tasks;
pub mod transfers;
pub mod uplink;
pub mod world;
