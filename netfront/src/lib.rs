//! A Xen network frontend: netif with any backend, containers with one that knows them, straight into
//! smoltcp.
//!
//! It knows no kernel and no hypervisor: both are reached through [`platform`]. One file (`device`) names
//! smoltcp. `unsafe` is confined to `pool` and `platform`'s forwarding.
#![no_std]

extern crate alloc;

pub mod platform;
