//! A frontend played by hand, straight onto the backend's worker: it posts whatever a test wants, true to netif or not.
//!
//! It knows rings and grants, and nothing of xenstore.

use core::sync::atomic::Ordering;

use drayage::class::Classes;
use drayage::clock::Clock;
use drayage::policy::Policy;
use drayage::rules::Rules;
use drayage::switch::{Mac, PortId};
use drayage::vif::multicast::Groups;
use drayage::vif::rx::{self, Accepts};
use drayage::vif::{Connection, RemoteEvents, Rings, tx};
use drayage::worker::Worker;
use drayage::xen;
use drayage_wire::PAGE_SIZE;
use drayage_wire::container::Manifest;
use drayage_wire::netif::{Rx, RxRequest, RxResponse, Tx, TxRequest, TxResponse, rx_flags, tx_flags};
use drayage_wire::ring::{FrontRing, SharedWords as _};
use memxen::raw::RawPage;
use memxen::{Access, DomainId, GrantRef, Hypervisor, Port};

use crate::back::Back;
use crate::hand::DOM0;
use crate::world::LAN;

/// Pages that the guest grants for data.
pub const PAGES: usize = 256;
/// The word of a ring page that holds `req_prod`.
const REQ_PROD: usize = 0;

/// A frontend.
#[derive(Debug)]
pub struct RawFront {
    hv: Hypervisor,
    guest: DomainId,
    /// What it sends on.
    pub tx: FrontRing<Tx, RawPage>,
    /// What it receives on.
    pub rx: FrontRing<Rx, RawPage>,
    tx_page: RawPage,
    rx_page: RawPage,
    pages: Vec<(RawPage, GrantRef)>,
    port: Port,
    /// The worker's port.
    pub id: PortId,
}

impl RawFront {
    /// Makes a domain with pages and rings, and connects it to the worker.
    ///
    /// # Panics
    /// When the hypervisor or the worker refuses.
    pub fn connect<C: Clock>(
        hv: &Hypervisor,
        worker: &mut Worker<Back, C>,
        guest: DomainId,
        tx_format: tx::Format,
        rx_format: rx::Format,
    ) -> Self {
        Self::connect_as(hv, worker, guest, |connection| {
            connection.tx_format = tx_format;
            connection.rx_format = rx_format;
        })
    }

    /// As [`connect`](Self::connect), with a connection as `shape` leaves it; it is plain before.
    ///
    /// # Panics
    /// As above.
    pub fn connect_as<C: Clock>(
        hv: &Hypervisor,
        worker: &mut Worker<Back, C>,
        guest: DomainId,
        shape: impl FnOnce(&mut Connection),
    ) -> Self {
        hv.create_domain(guest);
        Self::connect_made(hv, worker, guest, shape)
    }

    /// As [`connect_as`](Self::connect_as), of a domain that is there.
    ///
    /// # Panics
    /// As above.
    pub fn connect_made<C: Clock>(
        hv: &Hypervisor,
        worker: &mut Worker<Back, C>,
        guest: DomainId,
        shape: impl FnOnce(&mut Connection),
    ) -> Self {
        let granted = |page: RawPage| {
            let grant = hv.grant(guest, DOM0, page.address(), Access::ReadWrite).expect("a grant");
            (page, grant)
        };
        let pages = hv.raw_pages(guest, PAGES + 2).expect("memory");
        let mut pages: Vec<_> = pages.into_iter().map(granted).collect();
        let (tx_page, tx_ring) = pages.pop().expect("two more than needed for data");
        let (rx_page, rx_ring) = pages.pop().expect("two more than needed for data");
        let (tx, rx) = (FrontRing::new(tx_page.clone()), FrontRing::new(rx_page.clone()));
        let port = hv.alloc_unbound(guest, DOM0).expect("a port");
        let mut connection = Connection {
            domain: xen::DomainId(guest.0),
            mac: Mac(mac(guest)),
            tx_ring: xen::GrantRef(tx_ring.0),
            rx_ring: xen::GrantRef(rx_ring.0),
            events: RemoteEvents::Shared(xen::EventPort(port.0)),
            tx_format: tx::Format::Plain,
            rx_format: rx::Format::Plain,
            accepts: Accepts { scatter: true, gso_v4: true, gso_v6: true, blank_v4: true, blank_v6: true },
            policy: Policy::default(),
            urgent: Classes::default(),
            rules: Rules::default(),
            groups: Groups::All,
            rings: Rings::New,
            control: None,
        };
        shape(&mut connection);
        let id = worker.connect(LAN, &connection).expect("it connects");
        Self { hv: hv.clone(), guest, tx, rx, tx_page, rx_page, pages, port, id }
    }

    /// Returns a page's grant.
    pub fn grant(&self, page: usize) -> u32 {
        self.pages[page % PAGES].1.0
    }

    /// Writes into a page.
    pub fn write(&self, page: usize, bytes: &[u8]) {
        self.pages[page % PAGES].0.write(0, bytes);
    }

    /// Returns a page itself, for a test that writes it at a time of its own.
    pub fn page(&self, page: usize) -> RawPage {
        self.pages[page % PAGES].0.clone()
    }

    /// As [`page`](Self::page), of the TX ring.
    pub fn tx_page(&self) -> RawPage {
        self.tx_page.clone()
    }

    /// Returns the page of its RX ring.
    pub fn rx_page(&self) -> RawPage {
        self.rx_page.clone()
    }

    /// Pushes a request, if there is room.
    pub fn send(&mut self, request: TxRequest) -> bool {
        self.tx.push(request).is_some()
    }

    /// Posts a buffer, if there is room.
    pub fn post(&mut self, request: RxRequest) -> bool {
        self.rx.push(request).is_some()
    }

    /// Publishes both rings and sends an event.
    pub fn publish(&mut self) {
        let _ = self.tx.publish();
        let _ = self.rx.publish();
        self.hv.notify(self.guest, self.port);
    }

    /// Publishes any index at all as that of the TX ring's requests.
    pub fn publish_nonsense(&mut self, req_prod: u32) {
        self.tx_page.store(REQ_PROD, req_prod, Ordering::Release);
        self.hv.notify(self.guest, self.port);
    }

    /// As [`publish_nonsense`](Self::publish_nonsense), of the RX ring's.
    pub fn publish_rx_nonsense(&mut self, req_prod: u32) {
        self.rx_page.store(REQ_PROD, req_prod, Ordering::Release);
        self.hv.notify(self.guest, self.port);
    }

    /// Returns what is in the first bytes of a page.
    ///
    /// # Panics
    /// When they are more than a page.
    pub fn read(&self, page: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.pages[page % PAGES].0.read(0, &mut bytes);
        bytes
    }

    /// Posts pages `first` to `first + count` to receive into, and publishes them.
    pub fn post_pages(&mut self, first: usize, count: usize) {
        for page in first..first + count {
            let gref = self.grant(page);
            self.post(RxRequest { id: page as u16, gref });
        }
        self.publish();
    }

    /// Sends a frame of up to a page from page `page`.
    ///
    /// # Panics
    /// When the ring is full.
    pub fn send_frame(&mut self, page: usize, frame: &[u8]) {
        self.write(page, frame);
        let gref = self.grant(page);
        let request = TxRequest { gref, offset: 0, flags: 0, id: page as u16, size: frame.len() as u16 };
        assert!(self.send(request), "the ring is full");
        self.publish();
    }

    /// Sends a frame or a container from as many pages as it takes, from `page` on.
    ///
    /// # Panics
    /// When the ring is full.
    pub fn send_bytes(&mut self, page: usize, bytes: &[u8]) {
        let pieces = bytes.chunks(PAGE_SIZE);
        let last = pieces.len() - 1;
        for (n, piece) in pieces.enumerate() {
            self.write(page + n, piece);
            let gref = self.grant(page + n);
            let flags = if n < last { tx_flags::MORE_DATA } else { 0 };
            let size = if n == 0 { bytes.len() } else { piece.len() } as u16;
            assert!(self.send(TxRequest { gref, offset: 0, flags, id: n as u16, size }), "the ring is full");
        }
        self.publish();
    }

    /// Takes the frames that came, by the pages that they lie in.
    pub fn frames(&mut self) -> Vec<Vec<u8>> {
        let received = self.received();
        self.assembled(&received)
    }

    /// As [`frames`](Self::frames), and posts the pages that they lay in again.
    pub fn take_frames(&mut self) -> Vec<Vec<u8>> {
        let received = self.received();
        let frames = self.assembled(&received);
        for answer in &received {
            let gref = self.grant(usize::from(answer.id));
            self.post(RxRequest { id: answer.id, gref });
        }
        self.publish();
        frames
    }

    /// As [`take_frames`](Self::take_frames), of the containers that came the packets in them.
    ///
    /// # Panics
    /// When one is not as the specification says.
    pub fn take_packets(&mut self) -> Vec<Vec<u8>> {
        let mut manifest = Manifest::new();
        let mut packets = Vec::new();
        for container in self.take_frames() {
            manifest.read(&container).expect("a good container");
            packets.extend(manifest.packets().iter().map(|packet| container[packet.range()].to_vec()));
        }
        packets
    }

    fn assembled(&self, received: &[RxResponse]) -> Vec<Vec<u8>> {
        let mut slots = received.iter().filter(|answer| answer.status > 0);
        let mut frames = Vec::new();
        while let Some(first) = slots.next() {
            let mut frame = self.read(usize::from(first.id), first.status as usize);
            if first.flags & rx_flags::EXTRA_INFO != 0 {
                slots.next();
            }
            let mut more = first.flags & rx_flags::MORE_DATA != 0;
            while more && let Some(next) = slots.next() {
                frame.extend(self.read(usize::from(next.id), next.status as usize));
                more = next.flags & rx_flags::MORE_DATA != 0;
            }
            frames.push(frame);
        }
        frames
    }

    /// Takes the answers of the TX ring, if their index can be true.
    pub fn answers(&mut self) -> Vec<TxResponse> {
        let there = self.tx.available().unwrap_or(0);
        let answers = (0..there).map(|ahead| self.tx.peek(ahead)).collect();
        self.tx.advance(there);
        answers
    }

    /// Takes the answers of the RX ring, if their index can be true.
    pub fn received(&mut self) -> Vec<RxResponse> {
        let there = self.rx.available().unwrap_or(0);
        let answers = (0..there).map(|ahead| self.rx.peek(ahead)).collect();
        self.rx.advance(there);
        answers
    }
}

/// Returns the address of a guest.
pub fn mac(guest: DomainId) -> [u8; 6] {
    [2, 0, 0, 0, 1, guest.0 as u8]
}
