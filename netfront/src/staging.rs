//! Staged grants: what is said with the backend over the control ring, so that it maps the pages of both pools
//! once (netif.h, "Static Grants") and a container costs neither end a grant operation.
//!
//! One request is in flight at a time: how many pages can be mapped, then the receive pages, then the send
//! pages, and at the end both lists once more to be unmapped. From the moment that the backend is asked to map
//! a page until it has said that it does not, the page counts as mapped and its grant is not revoked. It knows
//! lists of grants and answers, and nothing of packets.

use drayage_wire::control::{Control, GREF_READONLY, Gref, Request, Response, kind, status};
use drayage_wire::netif::RING_SLOTS;
use drayage_wire::ring::Index;

use crate::counters::RxCounters;
use crate::platform::{DomainId, GrantRef, Platform, Port, Refused, StillInUse};
use crate::pool::{Reading, SharedList, SharedRing};
use crate::rx::{Broken, RxQueue};
use crate::tx::TxQueue;

/// How far the talk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Nothing was said.
    Silent,
    /// The backend was asked how many pages it maps.
    Size,
    /// The receive pages are to be mapped as soon as none is lent.
    RxDue,
    /// The backend was asked to map the receive pages.
    AddRx,
    /// And the send pages.
    AddTx,
    /// Nothing is left to be said before the end.
    Settled,
    /// The backend was asked to unmap the receive pages.
    DelRx,
    /// And the send pages.
    DelTx,
    /// It was asked for everything back, and has answered.
    Released,
}

/// What came of a look at the control ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Nothing that others need to know.
    None,
    /// What can be staged is.
    Settled,
    /// Nothing is staged any more, or the backend would not let go of it.
    Released,
}

/// The talk about one connection's pages.
#[derive(Debug)]
pub(crate) struct Staging<P> {
    platform: P,
    ring: SharedRing<Control, P>,
    list: SharedList<P>,
    list_ref: u32,
    port: Option<Port>,
    /// How receive pages are read while they are mapped.
    reading: Reading,
    step: Step,
    /// What the request in flight was.
    asked: Request,
    /// How many more pages the backend would map.
    room: u32,
    /// Whether the receive pages are mapped, or may be.
    rx: bool,
    /// And the send pages.
    tx: bool,
    closing: bool,
    /// What the backend answered to the first request that it did not do.
    refused: Option<u32>,
}

impl<P: Platform + Clone> Staging<P> {
    /// Allocates the ring and a page for lists. Nothing is granted yet.
    pub(crate) fn new(platform: &P, reading: Reading) -> Result<Self, Refused> {
        let mut ring = SharedRing::new(platform.clone())?;
        let list = match SharedList::new(platform.clone()) {
            Ok(list) => list,
            Err(error) => {
                // It was never granted, so nobody uses it.
                let _ = ring.reclaim();
                return Err(error);
            }
        };
        Ok(Self {
            platform: platform.clone(),
            ring,
            list,
            list_ref: 0,
            port: None,
            reading,
            step: Step::Silent,
            asked: Request::default(),
            room: 0,
            rx: false,
            tx: false,
            closing: false,
            refused: None,
        })
    }
}

impl<P: Platform> Staging<P> {
    /// Grants the pages and opens the event channel. Returns the ring's reference and the port.
    pub(crate) fn open(&mut self, peer: DomainId) -> Result<(u32, Port), Refused> {
        self.list_ref = self.list.grant(peer)?.0;
        let reference = self.ring.grant(peer)?;
        let port = self.platform.alloc_unbound(peer)?;
        self.port = Some(port);
        Ok((reference.0, port))
    }

    /// Returns the event channel.
    pub(crate) fn port(&self) -> Option<Port> {
        self.port
    }

    /// Returns whether the receive pages are mapped.
    pub(crate) fn has_rx(&self) -> bool {
        self.rx && self.step != Step::AddRx
    }

    /// Returns whether the send pages are mapped.
    pub(crate) fn has_tx(&self) -> bool {
        self.tx && self.step != Step::AddTx
    }

    /// Returns the answer to the first request that the backend did not do.
    pub(crate) fn refused(&self) -> Option<u32> {
        self.refused
    }

    /// Returns whether an answer is awaited.
    fn awaits(&self) -> bool {
        matches!(self.step, Step::Size | Step::AddRx | Step::AddTx | Step::DelRx | Step::DelTx)
    }

    /// Begins the talk, once the backend is connected.
    pub(crate) fn start(&mut self) {
        if self.step == Step::Silent {
            self.ask(Step::Size, kind::GET_GREF_MAPPING_SIZE, [0; 3]);
        }
    }

    /// Sends a request. There is always room: one is in flight at a time.
    fn ask(&mut self, step: Step, kind: u16, data: [u32; 3]) {
        self.step = step;
        let ring = self.ring.get();
        let Index(id) = ring.next_request();
        self.asked = Request { id: id as u16, kind, data };
        let _ = ring.push(self.asked);
        // No answer can be there yet: this asks for an event with it.
        let _ = ring.rearm();
        if ring.publish()
            && let Some(port) = self.port
        {
            self.platform.notify(port);
        }
    }

    /// Sends a request about the pages of a pool.
    fn ask_about(&mut self, step: Step, kind: u16, flags: u16, grants: &[GrantRef]) {
        self.list.fill(grants.iter().map(|grant| Gref { gref: grant.0, flags, status: 0 }));
        self.ask(step, kind, [0, self.list_ref, grants.len() as u32]);
    }

    /// Takes the answer, if it is there.
    fn answer(&mut self) -> Result<Option<Response>, Broken> {
        let ring = self.ring.get();
        if ring.available()? == 0 {
            return Ok(None);
        }
        let response: Response = ring.peek(0);
        ring.advance(1);
        if (response.id, response.kind) != (self.asked.id, self.asked.kind) {
            return Err(Broken::WrongAnswer);
        }
        Ok(Some(response))
    }

    /// Returns whether there is an answer to look at. Clears the event.
    pub(crate) fn has_answer(&mut self) -> bool {
        if let Some(port) = self.port {
            self.platform.take_pending(port);
        }
        self.awaits() && self.ring.get().available() != Ok(0)
    }

    /// Goes on with the talk. Cheap while nothing is to be said.
    ///
    /// # Errors
    /// [`Broken`]: the backend's answers make no sense.
    pub(crate) fn service(
        &mut self,
        rx: &mut RxQueue<P>,
        tx: &TxQueue<P>,
        counters: &mut RxCounters,
    ) -> Result<Progress, Broken> {
        if self.awaits()
            && let Some(response) = self.answer()?
        {
            let done = response.status == status::SUCCESS;
            if !done {
                self.refused.get_or_insert(response.status);
            }
            match self.step {
                Step::Size => {
                    self.room = if done { response.data } else { 0 };
                    self.step = if self.room < RING_SLOTS { Step::Settled } else { Step::RxDue };
                }
                Step::AddRx => {
                    if done {
                        self.room -= RING_SLOTS;
                    } else {
                        // Of a list that fails, nothing is mapped.
                        self.rx = false;
                        rx.unstage();
                    }
                    self.add_tx(tx);
                }
                Step::AddTx => {
                    self.tx = done;
                    self.step = Step::Settled;
                }
                _ => {}
            }
            if self.closing {
                return Ok(self.release_next(rx, tx));
            }
            if self.step == Step::Settled {
                return Ok(Progress::Settled);
            }
        }
        // Pages that are lent just now are granted again when the packets in them are done with.
        if self.step == Step::RxDue && rx.stage(self.reading, counters) {
            self.rx = true;
            self.ask_about(Step::AddRx, kind::ADD_GREF_MAPPING, 0, rx.grants());
        }
        Ok(Progress::None)
    }

    fn add_tx(&mut self, tx: &TxQueue<P>) {
        if self.closing || self.room < RING_SLOTS {
            self.step = Step::Settled;
            return;
        }
        self.tx = true;
        self.ask_about(Step::AddTx, kind::ADD_GREF_MAPPING, GREF_READONLY, tx.grants());
    }

    /// Asks for all pages back, at the end of the connection. Returns whether there is an answer to wait for.
    pub(crate) fn release(&mut self, rx: &RxQueue<P>, tx: &TxQueue<P>) -> bool {
        self.closing = true;
        self.awaits() || self.release_next(rx, tx) != Progress::Released
    }

    /// Asks for the next list of pages. Each is asked for once: what a backend keeps nevertheless is found out
    /// when the grants are revoked.
    fn release_next(&mut self, rx: &RxQueue<P>, tx: &TxQueue<P>) -> Progress {
        if core::mem::take(&mut self.rx) {
            self.ask_about(Step::DelRx, kind::DEL_GREF_MAPPING, 0, rx.grants());
        } else if core::mem::take(&mut self.tx) {
            self.ask_about(Step::DelTx, kind::DEL_GREF_MAPPING, GREF_READONLY, tx.grants());
        } else {
            self.step = Step::Released;
            return Progress::Released;
        }
        Progress::None
    }

    /// Gives everything back.
    ///
    /// # Errors
    /// [`StillInUse`]: to be asked again later.
    pub(crate) fn reclaim(&mut self) -> Result<(), StillInUse> {
        self.list.reclaim()?;
        self.ring.reclaim()
    }
}
