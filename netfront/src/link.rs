//! One connection to a backend: two rings, their pages, their event channels. It comes and goes with the
//! backend; the vif outlives it.
//!
//! It knows neither xenstore's states nor the network stack.

use alloc::boxed::Box;
use alloc::string::ToString;

use drayage_wire::keys;

use crate::counters::Counters;
use crate::features::{Agreed, Channels, Details, container_details, stock_details};
use crate::platform::{DomainId, Platform, Port, Refused, StillInUse};
use crate::rx::{Broken, RxQueue};
use crate::tx::TxQueue;

/// What may be done until the next event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// There is something to do: do not sleep.
    Busy,
    /// Nothing is there; an event will come with the next packet.
    Idle,
    /// As [`Idle`](Self::Idle), and what the stack wants to send waits for the backend: an event will come
    /// when there is room. That the stack asks to be polled at once is not to be heeded until then.
    SendBlocked,
}

/// Event channels, RX first; the same one twice where they are not split.
#[derive(Clone, Copy, Debug)]
struct Ports {
    rx: Port,
    tx: Port,
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Link<P> {
    pub(crate) rx: RxQueue<P>,
    pub(crate) tx: TxQueue<P>,
    platform: P,
    ports: Option<Ports>,
    agreed: Agreed,
}

/// Pages that a backend may still use: kept until it does not.
#[derive(Debug)]
pub(crate) struct Remains<P> {
    rx: RxQueue<P>,
    tx: TxQueue<P>,
}

impl<P: Platform> Remains<P> {
    /// Gives back what can be given back.
    ///
    /// # Errors
    /// [`StillInUse`]: to be asked again later.
    pub(crate) fn reclaim(&mut self) -> Result<(), StillInUse> {
        let rx = self.rx.reclaim();
        self.tx.reclaim().and(rx)
    }
}

/// A connection that could not be made, and what is left of the attempt, if anything is.
pub(crate) struct Failed<P> {
    pub(crate) why: Refused,
    pub(crate) remains: Option<Box<Remains<P>>>,
}

impl<P: Platform + Clone> Link<P> {
    /// Makes rings, grants everything to `peer`, posts the receive buffers and opens event channels. Returns
    /// the connection and what the backend is to be told of it.
    pub(crate) fn open(platform: &P, peer: DomainId, agreed: Agreed) -> Result<(Self, Details), Failed<P>> {
        let without_remains = |why| Failed { why, remains: None };
        let mut rx = RxQueue::new(platform).map_err(without_remains)?;
        let tx = match TxQueue::new(platform) {
            Ok(tx) => tx,
            Err(why) => {
                // Nothing was granted yet, so nothing is in use.
                let _ = rx.reclaim();
                return Err(without_remains(why));
            }
        };
        let mut link = Self { rx, tx, platform: platform.clone(), ports: None, agreed };
        match link.share(peer) {
            Ok(details) => Ok((link, details)),
            Err(why) => Err(Failed { why, remains: link.close() }),
        }
    }
}

impl<P: Platform> Link<P> {
    fn share(&mut self, peer: DomainId) -> Result<Details, Refused> {
        let mut details = stock_details(&self.agreed);
        details.push((keys::TX_RING_REF, Some(self.tx.open(peer, self.agreed.tx)?.to_string())));
        details.push((keys::RX_RING_REF, Some(self.rx.open(peer, self.agreed.rx)?.to_string())));
        let rx = self.platform.alloc_unbound(peer)?;
        self.ports = Some(Ports { rx, tx: rx });
        let (one, two) = match self.agreed.channels {
            Channels::Shared => (Some(rx.0.to_string()), [None, None]),
            Channels::Split => {
                let tx = self.platform.alloc_unbound(peer)?;
                self.ports = Some(Ports { rx, tx });
                (None, [Some(rx.0.to_string()), Some(tx.0.to_string())])
            }
        };
        let [of_rx, of_tx] = two;
        details.push((keys::EVENT_CHANNEL, one));
        details.push((keys::EVENT_CHANNEL_RX, of_rx));
        details.push((keys::EVENT_CHANNEL_TX, of_tx));
        details.extend(container_details(&self.agreed, self.rx.can_wrap()));
        Ok(details)
    }

    /// Returns what was agreed.
    pub(crate) fn agreed(&self) -> &Agreed {
        &self.agreed
    }

    /// Returns the event channels to sleep on.
    pub(crate) fn ports(&self) -> impl Iterator<Item = Port> + use<P> {
        let ports = self.ports;
        let tx = ports.filter(|p| p.tx != p.rx).map(|p| p.tx);
        ports.map(|p| p.rx).into_iter().chain(tx)
    }

    /// Sends an event on every channel, once: what was posted before the backend came, it may have missed.
    pub(crate) fn kick(&self) {
        for port in self.ports() {
            self.platform.notify(port);
        }
    }

    /// Hands everything that is ready to the backend: the open container, requests, buffers. Notifies it at
    /// most once for each ring, and only if it asked for that.
    ///
    /// # Errors
    /// [`Broken`].
    pub(crate) fn flush(&mut self, counters: &mut Counters) -> Result<(), Broken> {
        let tx = self.tx.flush(&mut counters.tx)?;
        let rx = self.rx.flush(&mut counters.rx);
        let Some(ports) = self.ports else { return Ok(()) };
        let shared = ports.rx == ports.tx;
        if tx {
            counters.tx.notifications += 1;
            self.platform.notify(ports.tx);
        }
        if rx && !(tx && shared) {
            counters.rx.notifications += 1;
            self.platform.notify(ports.rx);
        }
        Ok(())
    }

    /// Prepares for sleep, in the order that loses no event: clear pending bits, ask for events, look again.
    /// `frame_bytes` is the longest frame that the stack may want to send.
    ///
    /// # Errors
    /// [`Broken`].
    pub(crate) fn rearm(&mut self, frame_bytes: usize, counters: &mut Counters) -> Result<Readiness, Broken> {
        self.flush(counters)?;
        for port in self.ports() {
            counters.events += u64::from(self.platform.take_pending(port));
        }
        let received = self.rx.rearm();
        let room = self.tx.rearm(frame_bytes, &mut counters.tx)?;
        Ok(match (received || room, self.tx.is_starved()) {
            (true, _) => Readiness::Busy,
            (false, true) => Readiness::SendBlocked,
            (false, false) => Readiness::Idle,
        })
    }

    /// Hands over what is ready and returns whether everything sent is answered; where it is not, an event comes
    /// when it is.
    ///
    /// # Errors
    /// [`Broken`].
    pub(crate) fn drain(&mut self, counters: &mut Counters) -> Result<bool, Broken> {
        self.flush(counters)?;
        for port in self.ports() {
            counters.events += u64::from(self.platform.take_pending(port));
        }
        self.tx.drain(&mut counters.tx)
    }

    /// Closes the event channels and gives the pages back. Returns what the backend still uses.
    pub(crate) fn close(self) -> Option<Box<Remains<P>>> {
        for port in self.ports() {
            self.platform.close(port);
        }
        let mut remains = Box::new(Remains { rx: self.rx, tx: self.tx });
        match remains.reclaim() {
            Ok(()) => None,
            Err(StillInUse) => Some(remains),
        }
    }
}
