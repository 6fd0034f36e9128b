//! Event channels without interrupts. Every port is masked for ever; a pending bit is cleared by whoever looks
//! after the port, and the guest sleeps in SCHEDOP_poll.
//!
//! The order that loses no wake-up (guest ABI, do_poll in xen/common/sched/core.c): clear the pending bit, set
//! the ring's event index, check the ring once more, then sleep. Xen wakes on the edge from 0 to 1, and checks
//! the bits again after it has put the vCPU to sleep.

use core::fmt;

use crate::hypercall::{self, XenResult};
use crate::shared_info;

/// One end of an event channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Port(pub(crate) u32);

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Makes a port to which the remote domain may bind.
pub(crate) fn allocate(remote: u16) -> XenResult<Port> {
    hypercall::event_alloc_unbound(remote).map(Port)
}

/// Closes a port. One that Xen has closed already is closed enough.
pub(crate) fn close(port: Port) {
    let _ = hypercall::event_close(port.0);
    take_pending(port);
}

/// Notifies the other end. A port whose other end is gone swallows it: xenstore tells about that.
#[inline]
pub(crate) fn notify(port: Port) {
    let _ = hypercall::event_send(port.0);
}

/// Clears the port's pending bit and returns whether it was set.
#[inline]
pub(crate) fn take_pending(port: Port) -> bool {
    shared_info::get().is_some_and(|info| info.take_pending(port.0))
}
