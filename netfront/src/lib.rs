//! A Xen network frontend.
#![no_std]
