//! The toolstack and a backend, by hand: every step and every lie is a test's to choose.

use drayage_netfront::platform::{Access, DomainId, GrantRef, Port};
use drayage_shared::SharedPage;
use drayage_wire::PAGE_SIZE;
use drayage_wire::container::{Manifest, Meta, Writer};
use drayage_wire::keys::{self, State};
use drayage_wire::netif::{
    ExtraInfo, Rx, RxRequest, RxResponse, Tx, TxRequest, TxResponse, rx_flags, tx_flags,
};
use drayage_wire::ring::BackRing;
use memxen::grants::{Copy, Foreign, status};
use memxen::store::{Connection, NO_TRANSACTION, Permission};
use memxen::{Hypervisor, grants::Mapping};

use crate::guest::GUEST;

/// The backend's domain: never domain 0, so that no test passes by taking that for granted.
pub(crate) const BACKEND: DomainId = DomainId(3);

/// What a stock backend offers.
pub(crate) const STOCK: &[(&str, &str)] = &[
    (keys::FEATURE_RX_COPY, "1"),
    (keys::FEATURE_SG, "1"),
    (keys::FEATURE_GSO_TCPV4, "1"),
    (keys::FEATURE_IPV6_CSUM_OFFLOAD, "1"),
    (keys::FEATURE_SPLIT_EVENT_CHANNELS, "1"),
];

/// What one offers that speaks containers.
pub(crate) const CONTAINERS: &[(&str, &str)] = &[
    (keys::FEATURE_RX_COPY, "1"),
    (keys::FEATURE_IPV6_CSUM_OFFLOAD, "1"),
    (keys::FEATURE_RX_CONTAINERS, "1"),
    (keys::FEATURE_TX_CONTAINERS, "1"),
    (keys::TX_CONTAINER_MAX_BYTES, "65535"),
];

/// The rings of a connected backend.
pub(crate) struct Rings {
    pub(crate) tx: BackRing<Tx, SharedPage>,
    pub(crate) rx: BackRing<Rx, SharedPage>,
    tx_mapping: Mapping,
    rx_mapping: Mapping,
    ports: Vec<Port>,
}

/// A sent chain: its bytes, and the first slot's flags.
pub(crate) struct Sent {
    pub(crate) bytes: Vec<u8>,
    pub(crate) flags: u16,
    pub(crate) slots: usize,
}

/// The backend's end of a vif.
pub(crate) struct Peer {
    pub(crate) hv: Hypervisor,
    store: Connection,
    handle: u32,
    pub(crate) rings: Option<Rings>,
}

impl Peer {
    /// Writes both ends' directories as a toolstack does, the backend's in state Initialising.
    pub(crate) fn plug(hv: &Hypervisor, handle: u32) -> Self {
        let peer = Self { hv: hv.clone(), store: hv.connect_store(DomainId(0)), handle, rings: None };
        let transaction = peer.store.begin().unwrap();
        let (front, back) = (peer.front_dir(), peer.back_dir());
        let write = |dir: &str, key: &str, value: &str| {
            peer.store.write(transaction, &format!("{dir}/{key}"), value.as_bytes()).unwrap();
        };
        peer.store.mkdir(transaction, &front).unwrap();
        peer.store
            .set_permissions(transaction, &front, &[(GUEST, Permission::None), (BACKEND, Permission::Read)])
            .unwrap();
        peer.store.mkdir(transaction, &back).unwrap();
        peer.store
            .set_permissions(transaction, &back, &[(BACKEND, Permission::None), (GUEST, Permission::Read)])
            .unwrap();
        write(&front, keys::BACKEND, &back);
        write(&front, keys::BACKEND_ID, "3");
        write(&front, keys::HANDLE, &handle.to_string());
        write(&front, keys::MAC, "00:16:3e:00:00:07");
        write(&front, keys::STATE, "1");
        write(&back, keys::FRONTEND, &front);
        write(&back, keys::FRONTEND_ID, "7");
        write(&back, keys::ONLINE, "1");
        write(&back, keys::STATE, "1");
        peer.store.commit(transaction).unwrap();
        peer
    }

    fn front_dir(&self) -> String {
        format!("/local/domain/{}/device/vif/{}", GUEST.0, self.handle)
    }

    fn back_dir(&self) -> String {
        format!("/local/domain/{}/backend/test/{}/{}", BACKEND.0, GUEST.0, self.handle)
    }

    /// Writes a key in the backend's directory.
    pub(crate) fn write(&self, key: &str, value: &str) {
        let path = format!("{}/{key}", self.back_dir());
        self.store.write(NO_TRANSACTION, &path, value.as_bytes()).unwrap();
    }

    /// Writes a key in the frontend's directory, as a toolstack does.
    pub(crate) fn write_front(&self, key: &str, value: &str) {
        let path = format!("{}/{key}", self.front_dir());
        self.store.write(NO_TRANSACTION, &path, value.as_bytes()).unwrap();
    }

    /// Returns a key of the frontend.
    pub(crate) fn read(&self, key: &str) -> Option<String> {
        let value = self.store.read(NO_TRANSACTION, &format!("{}/{key}", self.front_dir())).ok()?;
        Some(String::from_utf8(value).unwrap())
    }

    pub(crate) fn number(&self, key: &str) -> Option<u32> {
        self.read(key)?.parse().ok()
    }

    /// Returns the frontend's state.
    pub(crate) fn front_state(&self) -> State {
        State::parse(self.read(keys::STATE).unwrap_or_default().as_bytes())
    }

    pub(crate) fn set_state(&self, state: State) {
        self.write(keys::STATE, state.value());
    }

    /// Writes features and goes to InitWait.
    pub(crate) fn offer(&self, features: &[(&str, &str)]) {
        for (key, value) in features {
            self.write(key, value);
        }
        self.set_state(State::InitWait);
    }

    /// Removes the backend's directory.
    pub(crate) fn vanish(&mut self) {
        self.let_go();
        self.store.remove(NO_TRANSACTION, &self.back_dir()).unwrap();
    }

    /// Removes the frontend's directory.
    pub(crate) fn unplug(&self) {
        self.store.remove(NO_TRANSACTION, &self.front_dir()).unwrap();
    }

    pub(crate) fn map_ring(&self, key: &str) -> (SharedPage, Mapping) {
        let grant = GrantRef(self.number(key).expect(key));
        let mapping = self.hv.map(BACKEND, &[(GUEST, grant)], Access::ReadWrite).unwrap();
        // SAFETY: the page stays mapped until `let_go`, which drops the ring first; the frontend reaches it by
        // atomics too.
        (unsafe { SharedPage::new(mapping.base) }, mapping)
    }

    /// Maps the rings and binds the event channels that the frontend wrote.
    pub(crate) fn attach(&mut self) {
        let (tx, tx_mapping) = self.map_ring(keys::TX_RING_REF);
        let (rx, rx_mapping) = self.map_ring(keys::RX_RING_REF);
        let names = [keys::EVENT_CHANNEL_TX, keys::EVENT_CHANNEL_RX, keys::EVENT_CHANNEL];
        let ports: Vec<Port> = names.iter().filter_map(|key| self.number(key)).map(Port).collect();
        assert!(!ports.is_empty(), "the frontend named no event channel");
        let ports = ports.into_iter().map(|p| self.hv.bind_interdomain(BACKEND, GUEST, p).unwrap()).collect();
        let (tx, rx) = (BackRing::attach(tx), BackRing::attach(rx));
        self.rings = Some(Rings { tx, rx, tx_mapping, rx_mapping, ports });
    }

    /// As `attach`, and goes to Connected.
    pub(crate) fn connect(&mut self) {
        self.attach();
        self.set_state(State::Connected);
    }

    /// Unmaps the rings and closes the event channels.
    pub(crate) fn let_go(&mut self) {
        let Some(rings) = self.rings.take() else { return };
        for port in rings.ports {
            self.hv.close(BACKEND, port);
        }
        self.hv.unmap(BACKEND, rings.tx_mapping.handle);
        self.hv.unmap(BACKEND, rings.rx_mapping.handle);
    }

    pub(crate) fn rings(&mut self) -> &mut Rings {
        self.rings.as_mut().expect("the backend is connected")
    }

    /// Returns whether the frontend has notified the backend, and clears that.
    pub(crate) fn take_notified(&mut self) -> bool {
        let hv = self.hv.clone();
        self.rings().ports.iter().fold(false, |any, port| hv.take_pending(BACKEND, *port) | any)
    }

    fn notify(&mut self) {
        let hv = self.hv.clone();
        for port in &self.rings().ports {
            hv.notify(BACKEND, *port);
        }
    }

    /// Takes the next posted buffer.
    pub(crate) fn take_buffer(&mut self) -> RxRequest {
        let rx = &mut self.rings().rx;
        assert!(rx.available().unwrap() > 0, "no buffer is posted");
        let request = rx.peek(0);
        rx.advance(1);
        request
    }

    /// Returns the slot of the next posted buffer.
    pub(crate) fn next_slot(&mut self) -> usize {
        self.rings().rx.next_request().slot()
    }

    /// Copies into a posted buffer. Returns the grant copy's status.
    pub(crate) fn fill(&mut self, buffer: RxRequest, offset: u16, bytes: &[u8]) -> i16 {
        let place = Foreign { domain: GUEST, grant: GrantRef(buffer.gref), offset };
        let mut statuses = [status::OKAY];
        self.hv.grant_copy(BACKEND, &mut [Copy::To(place, bytes)], &mut statuses);
        statuses[0]
    }

    pub(crate) fn respond(&mut self, response: RxResponse) {
        self.rings().rx.respond(response).expect("a request was taken");
    }

    pub(crate) fn respond_extra(&mut self, extra: ExtraInfo) {
        let _ = self.take_buffer();
        self.rings().rx.respond(extra).expect("a request was taken");
    }

    /// Publishes responses, and notifies the frontend if it asked for that. Returns whether it did.
    pub(crate) fn publish(&mut self) -> bool {
        let notify = self.rings().rx.publish();
        if notify {
            self.notify();
        }
        notify
    }

    /// Gives one slot of data, unpublished.
    pub(crate) fn give_slot(&mut self, bytes: &[u8], flags: u16) {
        let buffer = self.take_buffer();
        assert_eq!(self.fill(buffer, 0, bytes), status::OKAY);
        self.respond(RxResponse { id: buffer.id, offset: 0, flags, status: bytes.len() as i16 });
    }

    /// Gives a frame or a container in as many slots as it takes, unpublished.
    pub(crate) fn give_chain(&mut self, bytes: &[u8], flags: u16) {
        let slots = bytes.len().div_ceil(PAGE_SIZE);
        for (n, piece) in bytes.chunks(PAGE_SIZE).enumerate() {
            let more = if n + 1 < slots { rx_flags::MORE_DATA } else { 0 };
            self.give_slot(piece, if n == 0 { flags | more } else { more });
        }
    }

    /// Gives a frame and publishes it.
    pub(crate) fn give(&mut self, frame: &[u8], flags: u16) {
        self.give_chain(frame, flags);
        self.publish();
    }

    /// Gives `n` slots back empty.
    pub(crate) fn skip(&mut self, n: usize) {
        for _ in 0..n {
            let buffer = self.take_buffer();
            let status = drayage_wire::netif::status::DROPPED;
            self.respond(RxResponse { id: buffer.id, offset: 0, flags: 0, status });
        }
        self.publish();
    }

    /// Takes everything that was sent and answers it with `status`, in order.
    pub(crate) fn take_sent(&mut self, status: i16) -> Vec<Sent> {
        let (requests, chains) = self.take_requests();
        for request in requests {
            self.rings().tx.respond(TxResponse { id: request.id, status }).unwrap();
        }
        self.publish_sent();
        chains
    }

    /// Publishes answers to what was sent. Returns whether that took an event.
    pub(crate) fn publish_sent(&mut self) -> bool {
        let wanted = self.rings().tx.publish();
        if wanted {
            self.notify();
        }
        wanted
    }

    /// Takes everything that was sent and answers nothing.
    pub(crate) fn take_requests(&mut self) -> (Vec<TxRequest>, Vec<Sent>) {
        let (mut requests, mut chains) = (Vec::new(), Vec::new());
        let tx = &mut self.rings().tx;
        while tx.available().unwrap() > 0 {
            requests.push(tx.peek::<TxRequest>(0));
            tx.advance(1);
        }
        let _ = tx.rearm();
        let mut rest = &requests[..];
        while let [first, ..] = rest {
            let slots = rest.iter().take_while(|r| r.flags & tx_flags::MORE_DATA != 0).count() + 1;
            let (chain, later) = rest.split_at(slots);
            rest = later;
            let others: usize = chain[1..].iter().map(|r| usize::from(r.size)).sum();
            let mut bytes = Vec::new();
            for (n, request) in chain.iter().enumerate() {
                let size = usize::from(request.size) - if n == 0 { others } else { 0 };
                let mut piece = vec![0; size];
                let (grant, offset) = (GrantRef(request.gref), request.offset);
                let place = Foreign { domain: GUEST, grant, offset };
                let mut statuses = [status::OKAY];
                self.hv.grant_copy(BACKEND, &mut [Copy::From(place, &mut piece)], &mut statuses);
                assert_eq!(statuses, [status::OKAY]);
                bytes.extend(piece);
            }
            chains.push(Sent { bytes, flags: first.flags, slots });
        }
        (requests, chains)
    }
}

/// Returns a container of the given packets.
pub(crate) fn pack(packets: &[(Vec<u8>, Meta)], sequence: u32) -> Vec<u8> {
    let bytes: usize = packets.iter().map(|(p, _)| p.len() + 12).sum();
    let mut buffer = vec![0; bytes + 64];
    let mut writer = Writer::new(buffer.len(), packets.len());
    for (packet, meta) in packets {
        writer.push_with(&mut buffer, packet.len(), *meta, |b| b.copy_from_slice(packet)).unwrap();
    }
    let total = writer.finish(&mut buffer, sequence, 1000);
    buffer.truncate(total);
    buffer
}

/// Returns the packets of a container, which is a good one.
pub(crate) fn unpack(container: &[u8]) -> Vec<(Vec<u8>, Meta)> {
    let mut manifest = Manifest::new();
    manifest.read(container).unwrap();
    manifest.packets().iter().map(|p| (container[p.range()].to_vec(), p.meta)).collect()
}

/// Returns a frame of `len` bytes that says which one it is, in no protocol that has a checksum.
pub(crate) fn frame(len: usize, which: u32) -> Vec<u8> {
    let mut frame: Vec<u8> =
        (0..len).map(|i| (i as u32).wrapping_mul(31).wrapping_add(which) as u8).collect();
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

/// Returns a UDP datagram over IPv4 from 10.0.0.1 to 10.0.0.2, both ports 7, with a good checksum.
pub(crate) fn datagram(payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 42 + payload.len()];
    frame[..6].copy_from_slice(&[0, 0x16, 0x3e, 0, 0, 7]);
    frame[6..14].copy_from_slice(&[2, 0, 0, 0, 0, 1, 8, 0]);
    let ip = (28 + payload.len()) as u16;
    frame[14..34].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame[16..18].copy_from_slice(&ip.to_be_bytes());
    let header = !drayage_wire::checksum::sum(&frame[14..34]);
    frame[24..26].copy_from_slice(&header.to_be_bytes());
    frame[34..42].copy_from_slice(&[0, 7, 0, 7, 0, 0, 0, 0]);
    frame[38..40].copy_from_slice(&(ip - 20).to_be_bytes());
    frame[42..].copy_from_slice(payload);
    assert!(drayage_wire::checksum::fill(&mut frame));
    frame
}
