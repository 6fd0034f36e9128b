//! The first serial port of a PC (16550 at 0x3f8), where a machine without Xen has its console.

use x86_64::instructions::port::Port;

const BASE: u16 = 0x3f8;
const LINE_STATUS: u16 = BASE + 5;
const TRANSMITTER_EMPTY: u8 = 0x20;

/// Sets 115 200 baud, 8 bits, no parity.
pub(crate) fn start() {
    for (register, value) in [(1, 0x00), (3, 0x80), (0, 0x01), (1, 0x00), (3, 0x03), (2, 0x07), (4, 0x03)] {
        // SAFETY: without Xen we are in ring 0 of a PC, and nobody else uses the port.
        unsafe { Port::<u8>::new(BASE + register).write(value) };
    }
}

/// Writes bytes, each as soon as the transmitter takes it. One that is missing or stuck is not waited for.
pub(crate) fn write(bytes: &[u8]) {
    let mut status = Port::<u8>::new(LINE_STATUS);
    for byte in bytes {
        for _ in 0..100_000 {
            // SAFETY: reading the line status has no effect on the line.
            if unsafe { status.read() } & TRANSMITTER_EMPTY != 0 {
                break;
            }
        }
        // SAFETY: as in `start`.
        unsafe { Port::<u8>::new(BASE).write(*byte) };
    }
}
