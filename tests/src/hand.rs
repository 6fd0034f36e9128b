//! A backend played by hand, in domain 0 of the in-memory hypervisor: it sets up its vif as a toolstack would, and
//! then does to the driver whatever a test wants, true to the protocol or not.
//!
//! It knows netif and xenstore, and nothing of the driver that it plays with.

use drayage_wire::PAGE_SIZE;
use drayage_wire::container::{Meta, Writer};
use drayage_wire::keys::{self, State};
use drayage_wire::netif::{Rx, RxRequest, RxResponse, Tx, TxRequest, TxResponse, rx_flags, status};
use drayage_wire::ring::BackRing;
use memxen::grants::{Copy, Foreign};
use memxen::raw::RawPage;
use memxen::store::{Connection, NO_TRANSACTION, Permission};
use memxen::{DomainId, GrantRef, Hypervisor, Port};

/// Domain 0.
pub const DOM0: DomainId = DomainId(0);

/// Writes the nodes of a vif as a toolstack does, both ends in Initialising; the backend's offers are `offers`.
///
/// # Panics
/// When xenstore refuses.
pub fn plug(hv: &Hypervisor, guest: DomainId, handle: u32, mac: [u8; 6], offers: &[(&str, &str)]) {
    let store = hv.connect_store(DOM0);
    let (front, back) = (front_dir(guest, handle), back_dir(guest, handle));
    let write =
        |path: &str, value: &str| store.write(NO_TRANSACTION, path, value.as_bytes()).expect("domain 0 may");
    let own = |path: &str, owner, reader| {
        let permissions = [(owner, Permission::None), (reader, Permission::Read)];
        store.set_permissions(NO_TRANSACTION, path, &permissions).expect("domain 0 may");
    };
    write(&back, "");
    own(&back, DOM0, guest);
    write(&format!("{back}/{}", keys::FRONTEND), &front);
    write(&format!("{back}/{}", keys::FRONTEND_ID), &guest.0.to_string());
    write(&format!("{back}/{}", keys::ONLINE), "1");
    for (key, value) in offers {
        write(&format!("{back}/{key}"), value);
    }
    write(&format!("{back}/{}", keys::STATE), State::Initialising.value());
    write(&front, "");
    own(&front, guest, DOM0);
    write(&format!("{front}/{}", keys::BACKEND), &back);
    write(&format!("{front}/{}", keys::BACKEND_ID), "0");
    write(&format!("{front}/{}", keys::HANDLE), &handle.to_string());
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    write(&format!("{front}/{}", keys::MAC), &mac);
    write(&format!("{front}/{}", keys::STATE), State::Initialising.value());
}

/// Writes a key of the frontend's directory, as a toolstack does.
///
/// # Panics
/// When xenstore refuses.
pub fn write_front(hv: &Hypervisor, guest: DomainId, handle: u32, key: &str, value: &str) {
    let path = format!("{}/{key}", front_dir(guest, handle));
    hv.connect_store(DOM0).write(NO_TRANSACTION, &path, value.as_bytes()).expect("domain 0 may");
}

fn front_dir(guest: DomainId, handle: u32) -> String {
    format!("/local/domain/{}/device/vif/{handle}", guest.0)
}

fn back_dir(guest: DomainId, handle: u32) -> String {
    format!("/local/domain/0/backend/hand/{}/{handle}", guest.0)
}

/// A backend.
#[derive(Debug)]
pub struct Hand {
    hv: Hypervisor,
    guest: DomainId,
    handle: u32,
    store: Connection,
    wired: Option<Wired>,
}

/// The connected part.
#[derive(Debug)]
struct Wired {
    rx_page: RawPage,
    tx_page: RawPage,
    port: Port,
    rx: BackRing<Rx, RawPage>,
    tx: BackRing<Tx, RawPage>,
}

/// The word of a ring page that holds `rsp_prod`.
const RSP_PROD: usize = 2;

impl Hand {
    /// Takes up a vif that was [`plug`]ged, and waits for its frontend.
    pub fn new(hv: &Hypervisor, guest: DomainId, handle: u32) -> Self {
        let store = hv.connect_store(DOM0);
        let hand = Self { hv: hv.clone(), guest, handle, store, wired: None };
        hand.set_state(State::InitWait);
        hand
    }

    /// Writes our state.
    ///
    /// # Panics
    /// When xenstore refuses.
    pub fn set_state(&self, state: State) {
        let path = format!("{}/{}", back_dir(self.guest, self.handle), keys::STATE);
        self.store.write(NO_TRANSACTION, &path, state.value().as_bytes()).expect("domain 0 may");
    }

    /// Returns what the frontend wrote under a key.
    pub fn told(&self, key: &str) -> Option<String> {
        let path = format!("{}/{key}", front_dir(self.guest, self.handle));
        let value = self.store.read(NO_TRANSACTION, &path).ok()?;
        String::from_utf8(value).ok()
    }

    /// Returns the frontend's state.
    pub fn front_state(&self) -> State {
        State::parse(self.told(keys::STATE).unwrap_or_default().as_bytes())
    }

    /// Maps the rings that the frontend told of, binds its event channel and becomes Connected.
    ///
    /// # Panics
    /// When the frontend told of nothing, or of something that is not there.
    pub fn connect(&mut self) {
        let number = |key: &str| -> u32 {
            let value = self.told(key).unwrap_or_else(|| panic!("the frontend wrote no {key}"));
            value.parse().unwrap_or_else(|_| panic!("{key} is {value:?}"))
        };
        let page = |key| self.hv.raw_map(DOM0, self.guest, GrantRef(number(key))).expect("a granted ring");
        let (rx_page, tx_page) = (page(keys::RX_RING_REF), page(keys::TX_RING_REF));
        let remote = Port(number(keys::EVENT_CHANNEL));
        let port = self.hv.bind_interdomain(DOM0, self.guest, remote).expect("an unbound channel");
        let (rx, tx) = (BackRing::attach(rx_page.clone()), BackRing::attach(tx_page.clone()));
        self.wired = Some(Wired { rx_page, tx_page, port, rx, tx });
        self.set_state(State::Connected);
    }

    /// Lets go of rings and event channel.
    pub fn disconnect(&mut self) {
        if let Some(wired) = self.wired.take() {
            self.hv.close(DOM0, wired.port);
        }
    }

    /// Removes the nodes of both ends, as a toolstack does when a device is unplugged.
    ///
    /// # Panics
    /// When xenstore refuses.
    pub fn unplug(&mut self) {
        self.disconnect();
        for dir in [front_dir(self.guest, self.handle), back_dir(self.guest, self.handle)] {
            self.store.remove(NO_TRANSACTION, &dir).expect("domain 0 may");
        }
    }

    fn wired(&mut self) -> &mut Wired {
        self.wired.as_mut().expect("the test has connected")
    }

    /// Takes the next RX request, if one is posted.
    ///
    /// # Panics
    /// When the frontend's index cannot be true.
    pub fn take_buffer(&mut self) -> Option<RxRequest> {
        let rx = &mut self.wired().rx;
        (rx.available().expect("an honest frontend") > 0).then(|| {
            let request = rx.peek(0);
            rx.advance(1);
            request
        })
    }

    /// Returns how many buffers are posted.
    ///
    /// # Panics
    /// When the frontend's index cannot be true.
    pub fn buffers(&mut self) -> u32 {
        self.wired().rx.available().expect("an honest frontend")
    }

    /// Returns the slot of the next response.
    pub fn next_slot(&mut self) -> usize {
        let rx = &self.wired().rx;
        (rx.next_request().slot() + 256 - rx.unanswered() as usize) % 256
    }

    /// Copies bytes into a posted page. Returns the status of the copy.
    pub fn fill(&self, buffer: RxRequest, offset: u16, bytes: &[u8]) -> i16 {
        let place = Foreign { domain: self.guest, grant: GrantRef(buffer.gref), offset };
        let mut statuses = [0];
        self.hv.grant_copy(DOM0, &mut [Copy::To(place, bytes)], &mut statuses);
        statuses[0]
    }

    /// Answers the oldest taken buffer, unpublished.
    ///
    /// # Panics
    /// When none is taken.
    pub fn answer(&mut self, response: RxResponse) {
        self.wired().rx.respond(response).expect("a buffer was taken");
    }

    /// Publishes the answers, and notifies whether or not that was asked for.
    pub fn publish(&mut self) {
        let wired = self.wired();
        let _ = wired.rx.publish();
        let _ = wired.tx.publish();
        self.kick();
    }

    /// Publishes any index at all as that of the RX ring's responses.
    pub fn publish_nonsense(&mut self, rsp_prod: u32) {
        use drayage_wire::ring::SharedWords as _;
        self.wired().rx_page.store(RSP_PROD, rsp_prod, core::sync::atomic::Ordering::Release);
        self.kick();
    }

    /// As [`publish_nonsense`](Self::publish_nonsense), of the TX ring's.
    pub fn publish_tx_nonsense(&mut self, rsp_prod: u32) {
        use drayage_wire::ring::SharedWords as _;
        self.wired().tx_page.store(RSP_PROD, rsp_prod, core::sync::atomic::Ordering::Release);
        self.kick();
    }

    /// Sends an event.
    pub fn kick(&mut self) {
        let port = self.wired().port;
        self.hv.notify(DOM0, port);
    }

    /// Sends bytes as one chain of slots, each but the last with a whole page. Returns whether there were
    /// buffers for all of it.
    ///
    /// # Panics
    /// When a posted page cannot be written.
    pub fn send(&mut self, bytes: &[u8], flags: u16) -> bool {
        if (self.buffers() as usize) < bytes.len().div_ceil(PAGE_SIZE) {
            return false;
        }
        let chunks = bytes.chunks(PAGE_SIZE);
        let count = chunks.len();
        for (i, chunk) in chunks.enumerate() {
            let buffer = self.take_buffer().expect("they were counted");
            assert_eq!(self.fill(buffer, 0, chunk), 0, "slot {i} of {count}");
            let more = if i + 1 < count { rx_flags::MORE_DATA } else { 0 };
            let first = if i == 0 { flags } else { 0 };
            let status = chunk.len() as i16;
            self.answer(RxResponse { id: buffer.id, offset: 0, flags: first | more, status });
        }
        self.publish();
        true
    }

    /// Gives the next buffer back empty.
    ///
    /// # Panics
    /// When none is posted.
    pub fn skip(&mut self) {
        let buffer = self.take_buffer().expect("a posted buffer");
        self.answer(RxResponse { id: buffer.id, offset: 0, flags: 0, status: status::DROPPED });
        self.publish();
    }

    /// Takes the next chain of the TX ring as bytes, and answers it with a status. `None` when there is none.
    ///
    /// # Panics
    /// When the frontend's chain makes no sense.
    pub fn take_sent(&mut self, answer: i16) -> Option<Vec<u8>> {
        let guest = self.guest;
        let mut bytes = Vec::new();
        let mut total = None;
        loop {
            let tx = &mut self.wired().tx;
            if tx.available().expect("an honest frontend") == 0 {
                assert!(total.is_none(), "a chain that was only published in part");
                return None;
            }
            let request: TxRequest = tx.peek(0);
            tx.advance(1);
            tx.respond(TxResponse { id: request.id, status: answer }).expect("one was taken");
            assert_eq!(request.offset, 0);
            let more = request.flags & drayage_wire::netif::tx_flags::MORE_DATA != 0;
            let size = usize::from(request.size);
            let len = match total {
                None if more => PAGE_SIZE,
                None | Some(_) => size,
            };
            total.get_or_insert(size);
            let mut page = vec![0; len];
            let place = Foreign { domain: guest, grant: GrantRef(request.gref), offset: 0 };
            let mut statuses = [0];
            self.hv.grant_copy(DOM0, &mut [Copy::From(place, &mut page)], &mut statuses);
            assert_eq!(statuses, [0], "the page can be read");
            bytes.extend(page);
            if !more {
                break;
            }
        }
        assert_eq!(Some(bytes.len()), total);
        self.publish();
        Some(bytes)
    }
}

/// Returns a container with the given packets.
///
/// # Panics
/// When they do not fit into 64 KiB.
pub fn container(packets: &[&[u8]], sequence: u32) -> Vec<u8> {
    let mut buffer = vec![0; 65_536];
    let mut writer = Writer::new(buffer.len(), packets.len());
    for packet in packets {
        let pushed =
            writer.push_with(&mut buffer, packet.len(), Meta::default(), |b| b.copy_from_slice(packet));
        pushed.expect("they fit");
    }
    let total = writer.finish(&mut buffer, sequence, 1000);
    buffer.truncate(total);
    buffer
}
