//! The parts of the unikernel that are plain logic.
#![no_std]
