//! How the guest ends: a verdict as the last line of the console (tests look for it), then the shutdown that
//! `xl` sees, or the end of QEMU where there is no Xen.

use core::fmt;

use x86_64::instructions::port::Port;

use crate::console::{self, println};
use crate::hypercall::{self, ShutdownReason};

/// Why the guest ends.
pub(crate) enum Exit<'a> {
    /// Its work is done, or it was asked to power off.
    PowerOff,
    /// It was asked to reboot.
    Reboot,
    /// It cannot go on: `xl` sees a crash, and the console says why.
    Failed(fmt::Arguments<'a>),
}

/// Ends the guest.
pub(crate) fn exit(exit: Exit<'_>) -> ! {
    let (reason, code) = match exit {
        Exit::PowerOff => (ShutdownReason::PowerOff, 0),
        Exit::Reboot => (ShutdownReason::Reboot, 0),
        Exit::Failed(_) => (ShutdownReason::Crash, 1),
    };
    match exit {
        Exit::PowerOff | Exit::Reboot => println!("drayage-guest: exit ok"),
        Exit::Failed(why) => println!("drayage-guest: exit FAILED: {why}"),
    }
    console::drain();
    stop(reason, code)
}

/// Stops the machine without a word.
pub(crate) fn stop(reason: ShutdownReason, code: u8) -> ! {
    hypercall::shutdown(reason);
    // No Xen answered, so this is a machine of QEMU's, in ring 0. Its debug exit device, where it was asked
    // for, ends QEMU with status 2 * code + 1; else the ACPI power register that SeaBIOS sets up for both of
    // QEMU's PC machines; else the keyboard controller's reset line, which `-no-reboot` makes an exit.
    // SAFETY: nothing runs after this; a port that nobody listens to ignores the write.
    unsafe { Port::<u8>::new(0xf4).write(code) };
    if reason != ShutdownReason::Reboot {
        for acpi_power_register in [0x604, 0xb004] {
            // SAFETY: as above; 0x2000 is SLP_EN with sleep type 0, which QEMU has for "soft off".
            unsafe { Port::<u16>::new(acpi_power_register).write(0x2000) };
        }
    }
    // SAFETY: as above; 0xfe pulses the reset line.
    unsafe { Port::<u8>::new(0x64).write(0xfe) };
    loop {
        x86_64::instructions::hlt();
    }
}
