//! The machine without Xen, as the loop sees it: one virtio NIC, no toolstack, a console on the serial port.

use core::fmt;

use drayage_kernel::net::{Change, Machine};

use crate::console::Console;
use crate::time;
use crate::virtio::{NicError, VirtioNic};

/// A PC.
pub(crate) struct Pc {
    /// The NIC, until the loop has taken it.
    nic: Option<VirtioNic>,
    console: Console,
}

impl Pc {
    /// Finds the machine's NIC.
    ///
    /// # Errors
    /// There is none that works: there is nothing to do on this machine.
    pub(crate) fn find() -> Result<Self, NicError> {
        Ok(Self { nic: Some(VirtioNic::find()?), console: Console })
    }
}

impl Machine for Pc {
    type Nic = VirtioNic;

    fn now_ns(&self) -> u64 {
        time::now_ns()
    }

    fn sleep(&mut self, until_ns: Option<u64>) {
        time::sleep_until(until_ns, &[]);
    }

    fn next_change(&mut self) -> Option<Change<VirtioNic>> {
        self.nic.take().map(Change::Attached)
    }

    fn console(&mut self) -> &mut dyn fmt::Write {
        &mut self.console
    }
}
