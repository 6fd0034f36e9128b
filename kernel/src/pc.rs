//! The machine without Xen, as the loop sees it: one virtio NIC, no toolstack, a console on the serial port.

use drayage_kernel::net::{Change, Machine};

use crate::time;
use crate::virtio::{NicError, VirtioNic};

/// A PC.
pub(crate) struct Pc {
    nic: VirtioNic,
    /// What the loop is still to be told: that the NIC is there.
    news: Option<Change>,
}

impl Pc {
    /// Finds the machine's NIC.
    ///
    /// # Errors
    /// There is none that works: there is nothing to do on this machine.
    pub(crate) fn find() -> Result<Self, NicError> {
        Ok(Self { nic: VirtioNic::find()?, news: Some(Change::Up(0)) })
    }
}

impl Machine for Pc {
    type Nic = VirtioNic;

    const PREFIX: &'static str = "virtio";

    fn now_ns(&self) -> u64 {
        time::now_ns()
    }

    /// Nobody shares the processor.
    fn cpu_ns(&self) -> Option<u64> {
        Some(self.now_ns())
    }

    fn sleep(&mut self, until_ns: Option<u64>) {
        time::sleep_until(until_ns, &[]);
    }

    fn next_change(&mut self) -> Option<Change> {
        self.news.take()
    }

    fn nic(&mut self, number: u32) -> Option<&mut VirtioNic> {
        (number == 0).then_some(&mut self.nic)
    }

    fn nics(&mut self, numbers: [u32; 2]) -> [Option<&mut VirtioNic>; 2] {
        match numbers {
            [0, _] => [Some(&mut self.nic), None],
            [_, 0] => [None, Some(&mut self.nic)],
            _ => [None, None],
        }
    }
}
