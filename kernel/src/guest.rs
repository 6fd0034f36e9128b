//! The machine on Xen, as the loop sees it: what xenstore reports, and sleep until an event.

use core::fmt;

use drayage_kernel::net::{Change, Machine};
use drayage_kernel::settings::Settings;

use crate::console::Console;
use crate::virtio::VirtioNic;
use crate::{time, toolstack, xenstore};

/// A Xen guest.
pub(crate) struct Guest {
    console: Console,
}

impl Guest {
    /// Returns the machine.
    pub(crate) fn new(_settings: &Settings) -> Self {
        Self { console: Console }
    }
}

impl Machine for Guest {
    type Nic = VirtioNic;

    fn now_ns(&self) -> u64 {
        time::now_ns()
    }

    fn sleep(&mut self, until_ns: Option<u64>) {
        time::sleep_until(until_ns, &[]);
    }

    fn next_change(&mut self) -> Option<Change<VirtioNic>> {
        while let Some(event) = xenstore::take_event() {
            if event.token == toolstack::TOKEN
                && let Some(request) = toolstack::look()
            {
                return Some(Change::Stop(request));
            }
        }
        None
    }

    fn console(&mut self) -> &mut dyn fmt::Write {
        &mut self.console
    }
}
