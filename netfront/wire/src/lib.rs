//! What the two ends of a Xen virtual network interface say to each other.
//!
//! Both ends link this crate: the netif structs and rings of Xen's `public/io/netif.h` and `ring.h`, the
//! container format that Drayage adds (`SPEC.md` beside this crate is normative), the xenstore keys, and
//! xenstore's own message framing.
//!
//! It knows no hypervisor, no network stack and no allocator, and it has no `unsafe`: memory that the other
//! end can write is reached through [`ring::SharedWords`], which others implement.
//!
//! RX and TX are always the guest's: RX is what the guest receives, on both sides.
#![no_std]
#![forbid(unsafe_code)]

pub mod checksum;
pub mod container;
pub mod control;
pub mod keys;
pub mod netif;
pub mod ring;
pub mod xs;

/// Bytes in a page, the unit in which memory is granted.
pub const PAGE_SIZE: usize = 4096;
