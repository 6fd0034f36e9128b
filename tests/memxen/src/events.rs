//! Event channels, as `xen/common/event_channel.c` has them: unbound, interdomain, and a pending bit that
//! wakes on its edge only.

use std::time::{Duration, Instant};

use drayage_netfront::platform::Refused;

use crate::{DomainId, Hypervisor, Port, State};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
enum End {
    #[default]
    Free,
    Unbound(DomainId),
    Bound(DomainId, Port),
}

/// A port of a domain.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Channel {
    end: End,
    pending: bool,
}

impl State {
    fn channel(&mut self, id: DomainId, port: Port) -> Option<&mut Channel> {
        self.domains.get_mut(&id)?.ports.get_mut(port.0 as usize)
    }

    fn claim(&mut self, id: DomainId, end: End) -> Result<Port, Refused> {
        let domain = self.domains.get_mut(&id).ok_or(Refused::NoPorts)?;
        if domain.faults.refuse_ports > 0 {
            domain.faults.refuse_ports -= 1;
            return Err(Refused::NoPorts);
        }
        // Port 0 is never used (`xen/common/event_channel.c`).
        let free = domain.ports.iter().skip(1).position(|c| c.end == End::Free).map(|at| at + 1);
        let at = free.unwrap_or(domain.ports.len().max(1));
        if domain.ports.len() <= at {
            domain.ports.resize(at + 1, Channel::default());
        }
        domain.ports[at] = Channel { end, pending: false };
        Ok(Port(at as u32))
    }

    fn raise(&mut self, id: DomainId, port: Port) {
        let Some(domain) = self.domains.get_mut(&id) else { return };
        let Some(channel) = domain.ports.get_mut(port.0 as usize) else { return };
        if !channel.pending {
            channel.pending = true;
            domain.operations.events += 1;
            if let Some(hook) = &domain.on_event {
                hook();
            }
        }
    }
}

impl Hypervisor {
    /// Allocates a port that `peer` can bind to.
    ///
    /// # Errors
    /// [`Refused::NoPorts`].
    pub fn alloc_unbound(&self, id: DomainId, peer: DomainId) -> Result<Port, Refused> {
        self.lock().claim(id, End::Unbound(peer))
    }

    /// Binds a new port of `id` to an unbound one of `remote`. The new port is pending at once, for what was
    /// sent before.
    ///
    /// # Errors
    /// [`Refused::Hypervisor`] with `EINVAL` when the remote port does not wait for this domain.
    pub fn bind_interdomain(
        &self,
        id: DomainId,
        remote: DomainId,
        remote_port: Port,
    ) -> Result<Port, Refused> {
        let mut state = self.lock();
        match state.channel(remote, remote_port) {
            Some(channel) if channel.end == End::Unbound(id) => {}
            _ => return Err(Refused::Hypervisor(-22)),
        }
        let port = state.claim(id, End::Bound(remote, remote_port))?;
        if let Some(channel) = state.channel(remote, remote_port) {
            channel.end = End::Bound(id, port);
        }
        state.raise(id, port);
        self.wake(state);
        Ok(port)
    }

    /// Closes a port. The other end becomes unbound again.
    pub fn close(&self, id: DomainId, port: Port) {
        let mut state = self.lock();
        let Some(channel) = state.channel(id, port) else { return };
        let end = std::mem::take(&mut channel.end);
        channel.pending = false;
        if let End::Bound(remote, remote_port) = end
            && let Some(other) = state.channel(remote, remote_port)
        {
            other.end = End::Unbound(id);
        }
    }

    /// Sends an event to the other end; lost when there is none.
    pub fn notify(&self, id: DomainId, port: Port) {
        let mut state = self.lock();
        if let Some(domain) = state.domains.get_mut(&id) {
            domain.operations.notifies += 1;
        }
        match state.channel(id, port).map(|c| c.end) {
            Some(End::Bound(remote, remote_port)) => {
                state.raise(remote, remote_port);
                self.wake(state);
            }
            Some(End::Unbound(_)) => {}
            Some(End::Free) | None => state.violation(format!("{id:?} notifies {port:?}, which is closed")),
        }
    }

    /// Returns whether a port is pending, and clears it.
    pub fn take_pending(&self, id: DomainId, port: Port) -> bool {
        self.lock().channel(id, port).is_some_and(|c| std::mem::take(&mut c.pending))
    }

    /// Returns whether a port is pending.
    pub fn is_pending(&self, id: DomainId, port: Port) -> bool {
        self.lock().channel(id, port).is_some_and(|c| c.pending)
    }

    /// Returns how many ports of a domain are open.
    pub fn open_ports(&self, id: DomainId) -> usize {
        self.lock().domains.get(&id).map_or(0, |d| d.ports.iter().filter(|c| c.end != End::Free).count())
    }

    /// Waits until one of the ports is pending, as `SCHEDOP_poll` does. Returns whether one is.
    pub fn poll(&self, id: DomainId, ports: &[Port], timeout: Duration) -> bool {
        self.wait_for(Instant::now() + timeout, |state| {
            let Some(domain) = state.domains.get(&id) else { return false };
            ports.iter().any(|p| domain.ports.get(p.0 as usize).is_some_and(|c| c.pending))
        })
    }
}
