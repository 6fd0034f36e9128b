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
use crate::pool::Reading;
use crate::rx::{Broken, RxQueue};
use crate::staging::{Progress, Staging};
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
    /// The control ring, where the backend has one and is asked to map pages.
    staging: Option<Box<Staging<P>>>,
    platform: P,
    ports: Option<Ports>,
    /// Whether an event of the transmit ring was asked for.
    awaits_tx: bool,
    agreed: Agreed,
}

/// Pages that a backend may still use: kept until it does not.
#[derive(Debug)]
pub(crate) struct Remains<P> {
    rx: RxQueue<P>,
    tx: TxQueue<P>,
    staging: Option<Box<Staging<P>>>,
}

impl<P: Platform> Remains<P> {
    /// Gives back what can be given back.
    ///
    /// # Errors
    /// [`StillInUse`]: to be asked again later.
    pub(crate) fn reclaim(&mut self) -> Result<(), StillInUse> {
        let rx = self.rx.reclaim();
        let staging = self.staging.as_mut().map_or(Ok(()), |staging| staging.reclaim());
        self.tx.reclaim().and(rx).and(staging)
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
        let mut link =
            Self { rx, tx, staging: None, platform: platform.clone(), ports: None, awaits_tx: false, agreed };
        match link.share(peer) {
            Ok(details) => Ok((link, details)),
            Err(why) => Err(Failed { why, remains: link.close() }),
        }
    }

    fn share(&mut self, peer: DomainId) -> Result<Details, Refused> {
        let mut details = stock_details(&self.agreed);
        details.push((keys::TX_RING_REF, Some(self.tx.open(peer, self.agreed.tx)?.to_string())));
        details.push((
            keys::RX_RING_REF,
            Some(self.rx.open(peer, self.agreed.rx, self.agreed.staged)?.to_string()),
        ));
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
        let control = match self.agreed.staged {
            Some(reading) => {
                let staging = self.staging.insert(Box::new(Staging::new(&self.platform, reading)?));
                Some(staging.open(peer)?)
            }
            None => None,
        };
        details.push((keys::CTRL_RING_REF, control.map(|(reference, _)| reference.to_string())));
        details.push((keys::EVENT_CHANNEL_CTRL, control.map(|(_, port)| port.0.to_string())));
        Ok(details)
    }
}

impl<P: Platform> Link<P> {
    /// Returns what was agreed.
    pub(crate) fn agreed(&self) -> &Agreed {
        &self.agreed
    }

    /// Returns the event channels to sleep on: that of the transmit ring only where its event was asked for, as a
    /// hypervisor looks at each before it lets us sleep.
    pub(crate) fn awaited_ports(&self) -> impl Iterator<Item = Port> + use<P> {
        let awaits_tx = self.awaits_tx;
        let unasked = self.ports.filter(|p| p.tx != p.rx && !awaits_tx).map(|p| p.tx);
        self.ports().filter(move |port| Some(*port) != unasked)
    }

    /// Returns all event channels.
    fn ports(&self) -> impl Iterator<Item = Port> + use<P> {
        let ports = self.ports;
        let tx = ports.filter(|p| p.tx != p.rx).map(|p| p.tx);
        ports.map(|p| p.rx).into_iter().chain(tx).chain(self.control_port())
    }

    /// Returns the event channel of the control ring.
    pub(crate) fn control_port(&self) -> Option<Port> {
        self.staging.as_ref().and_then(|staging| staging.port())
    }

    /// Returns whether the control ring has something for us. Clears its event.
    pub(crate) fn has_control_answer(&mut self) -> bool {
        self.staging.as_mut().is_some_and(|staging| staging.has_answer())
    }

    /// Goes on with what is said over the control ring.
    ///
    /// # Errors
    /// [`Broken`].
    pub(crate) fn service(&mut self, counters: &mut Counters) -> Result<Progress, Broken> {
        match &mut self.staging {
            Some(staging) => staging.service(&mut self.rx, &self.tx, &mut counters.rx),
            None => Ok(Progress::None),
        }
    }

    /// Asks for mapped pages back. Returns whether there is an answer to wait for.
    pub(crate) fn release(&mut self) -> bool {
        self.staging.as_mut().is_some_and(|staging| staging.release(&self.rx, &self.tx))
    }

    /// Returns how received pages are read while the backend maps them, if it does.
    pub(crate) fn staged_rx(&self) -> Option<Reading> {
        self.staging.as_ref().filter(|staging| staging.has_rx()).map(|_| self.rx.reading())
    }

    /// Returns whether the backend maps the pages that are sent from.
    pub(crate) fn staged_tx(&self) -> bool {
        self.staging.as_ref().is_some_and(|staging| staging.has_tx())
    }

    /// Returns what the backend answered to the first request about pages that it did not do.
    pub(crate) fn staging_refused(&self) -> Option<u32> {
        self.staging.as_ref().and_then(|staging| staging.refused())
    }

    /// Sends an event on every channel, once: what was posted before the backend came, it may have missed.
    /// Begins to talk about mapping pages.
    pub(crate) fn kick(&mut self) {
        for port in self.ports() {
            self.platform.notify(port);
        }
        if let Some(staging) = &mut self.staging {
            staging.start();
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
        let received = self.rx.rearm() || self.has_control_answer();
        let room = self.tx.rearm(frame_bytes, &mut counters.tx)?;
        self.awaits_tx = self.tx.awaits_answers();
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
        let drained = self.tx.drain(&mut counters.tx)?;
        self.awaits_tx = !drained;
        Ok(drained)
    }

    /// Closes the event channels and gives the pages back. Returns what the backend still uses.
    pub(crate) fn close(self) -> Option<Box<Remains<P>>> {
        for port in self.ports() {
            self.platform.close(port);
        }
        let mut remains = Box::new(Remains { rx: self.rx, tx: self.tx, staging: self.staging });
        match remains.reclaim() {
            Ok(()) => None,
            Err(StillInUse) => Some(remains),
        }
    }
}
