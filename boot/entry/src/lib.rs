//! From Xen's entry point to the kernel's main.
#![no_std]
