//! The launcher behind `cargo boot`: makes the test bed (Xen and a Linux dom0 in QEMU), builds what
//! goes into it, runs, demonstrates, tests. See ARCHITECTURE.md for how the modules lean on each
//! other.
#![forbid(unsafe_code)]

pub mod agent;
pub mod apt;
pub mod backend;
pub mod bench;
pub mod cli;
pub mod commands;
pub mod count;
pub mod cpio;
pub mod demo;
pub mod dom0;
pub mod elf;
pub mod images;
pub mod modules;
pub mod package;
pub mod products;
pub mod progress;
pub mod qemu;
pub mod run;
pub mod setup;
pub mod testbed;
pub mod testing;
pub mod workspace;
pub mod xentest;
pub mod xz;
