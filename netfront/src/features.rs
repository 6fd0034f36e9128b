//! What the two ends agree on when a vif is connected: the backend's keys are read, and ours follow from them.
//!
//! It knows keys and values, and neither rings nor states.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::rx::MIRROR_PAGES;
use drayage_wire::PAGE_SIZE;
use drayage_wire::container::{MAX_RX_BYTES, MAX_TX_BYTES, MIN_SIZE_BYTES, VERSION};
use drayage_wire::keys;

use crate::platform::{Store, Transaction};
use crate::pool::Reading;
use crate::{rx, tx};

/// What the guest wants of its vifs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether containers are received from backends that write them.
    pub rx_containers: Use,
    /// Whether containers are sent to backends that read them.
    pub tx_containers: Use,
    /// The largest container to receive, in bytes: 4096 to 65 536.
    pub rx_container_max_bytes: usize,
    /// Whether TCP super-frames are sent to backends that take them.
    pub tcp_segmentation: Use,
    /// Whether TCP segments larger than the MTU are received.
    pub segments: Use,
    /// Whether backends are asked to map the guest's pages once, for as long as they are connected.
    pub staged: Stage,
}

/// Whether a backend that can do it is asked to map the guest's pages (netif.h, "Static Grants").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// If the toolstack says that it is to be trusted: `trusted` is 1.
    IfTrusted,
    /// Always. What one sends that is not to be trusted is copied before it is looked at.
    Always,
    /// Never.
    Never,
}

/// Whether something that a backend offers is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Where it is offered.
    Offered,
    /// Never.
    Never,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            rx_containers: Use::Offered,
            tx_containers: Use::Offered,
            rx_container_max_bytes: MAX_RX_BYTES,
            tcp_segmentation: Use::Offered,
            segments: Use::Offered,
            staged: Stage::IfTrusted,
        }
    }
}

/// How the event channels are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Channels {
    /// One for both rings.
    Shared,
    /// One for each ring.
    Split,
}

/// What was agreed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    pub(crate) channels: Channels,
    pub(crate) rx: rx::Mode,
    pub(crate) tx: tx::Terms,
    pub(crate) segments: Use,
    /// How received pages are read once the backend maps them, if it is to be asked to.
    pub(crate) staged: Option<Reading>,
}

impl Agreed {
    /// Returns the largest container to receive in bytes, where containers are received.
    pub fn rx_container_max_bytes(&self) -> Option<usize> {
        match self.rx {
            rx::Mode::Containers { max_slots } => Some(max_slots * PAGE_SIZE),
            rx::Mode::Frames => None,
        }
    }

    /// Returns the largest container to send in bytes, where containers are sent.
    pub fn tx_container_max_bytes(&self) -> Option<usize> {
        match self.tx.mode {
            tx::Mode::Containers { max_bytes } => Some(max_bytes),
            tx::Mode::Frames { .. } => None,
        }
    }
}

/// Returns a key's number, or `None` where it is missing or no number.
pub(crate) fn number(store: &impl Store, dir: &str, key: &str) -> Option<u32> {
    let value = store.read(Transaction::NONE, &join(dir, key)).ok()?;
    keys::parse_number(&value)
}

/// Returns the path of a key in a directory.
pub(crate) fn join(dir: &str, key: &str) -> String {
    [dir, "/", key].concat()
}

/// Reads what the backend offers and returns what comes of it, or `None` when it is no backend for us: one
/// that does not copy received frames (`feature-rx-copy`). `dir` is our own directory.
pub(crate) fn agree(store: &impl Store, dir: &str, backend: &str, options: Options) -> Option<Agreed> {
    let flag = |key| number(store, backend, key) == Some(1);
    if !flag(keys::FEATURE_RX_COPY) {
        return None;
    }
    let offers = |key, wanted: Use| {
        let version = number(store, backend, key).unwrap_or(0);
        wanted == Use::Offered && version >= u32::from(VERSION)
    };
    let rx = if offers(keys::FEATURE_RX_CONTAINERS, options.rx_containers) {
        let bytes = options.rx_container_max_bytes.clamp(MIN_SIZE_BYTES, MAX_RX_BYTES);
        rx::Mode::Containers { max_slots: bytes / PAGE_SIZE }
    } else {
        rx::Mode::Frames
    };
    // A limit that is malformed or too small is no offer.
    let limit = match store.read(Transaction::NONE, &join(backend, keys::TX_CONTAINER_MAX_BYTES)) {
        Ok(value) => keys::parse_number(&value).unwrap_or(0) as usize,
        Err(_) => MIN_SIZE_BYTES,
    };
    let mode = if limit >= MIN_SIZE_BYTES && offers(keys::FEATURE_TX_CONTAINERS, options.tx_containers) {
        tx::Mode::Containers { max_bytes: limit.min(MAX_TX_BYTES) }
    } else {
        tx::Mode::Frames { max_slots: if flag(keys::FEATURE_SG) { MIRROR_PAGES + 1 } else { 1 } }
    };
    let blank_v4 = !flag(keys::FEATURE_NO_CSUM_OFFLOAD);
    let blank_v6 = flag(keys::FEATURE_IPV6_CSUM_OFFLOAD);
    // A super-frame's checksum is blank by its nature.
    let gso_v4 = flag(keys::FEATURE_GSO_TCPV4) && blank_v4 && options.tcp_segmentation == Use::Offered;
    let channels = if flag(keys::FEATURE_SPLIT_EVENT_CHANNELS) { Channels::Split } else { Channels::Shared };
    let segments = options.segments;
    let trusted = number(store, dir, keys::TRUSTED) == Some(1);
    let wanted = match options.staged {
        Stage::IfTrusted => trusted,
        Stage::Always => true,
        Stage::Never => false,
    };
    let reading = if trusted { Reading::InPlace } else { Reading::Copied };
    let staged = (wanted && flag(keys::FEATURE_CTRL_RING)).then_some(reading);
    Some(Agreed { channels, rx, tx: tx::Terms { mode, blank_v4, blank_v6, gso_v4 }, segments, staged })
}

/// What the frontend's directory is to hold: a value for each key, or `None` for one that must not be there,
/// such as a leftover of an earlier connection.
pub(crate) type Details = Vec<(&'static str, Option<String>)>;

/// Returns what says that received frames are copied and which of the stock features we take.
pub(crate) fn stock_details(agreed: &Agreed) -> Details {
    let on =
        [keys::REQUEST_RX_COPY, keys::FEATURE_RX_NOTIFY, keys::FEATURE_SG, keys::FEATURE_IPV6_CSUM_OFFLOAD];
    let mut details: Details = on.iter().map(|key| (*key, Some("1".to_string()))).collect();
    let segments = (agreed.segments == Use::Offered).then(|| "1".to_string());
    details.push((keys::FEATURE_GSO_TCPV4, segments.clone()));
    details.push((keys::FEATURE_GSO_TCPV6, segments));
    // Blank checksums over IPv4 are taken, too.
    details.push((keys::FEATURE_NO_CSUM_OFFLOAD, None));
    details
}

/// Returns what asks for the containers that were agreed.
pub(crate) fn container_details(agreed: &Agreed, can_wrap: bool) -> Details {
    let version = |on: bool| on.then(|| VERSION.to_string());
    let rx = agreed.rx_container_max_bytes();
    Vec::from([
        (keys::REQUEST_RX_CONTAINERS, version(rx.is_some())),
        (keys::REQUEST_TX_CONTAINERS, version(agreed.tx_container_max_bytes().is_some())),
        (keys::RX_CONTAINER_MAX_BYTES, rx.map(|bytes| bytes.to_string())),
        (keys::FEATURE_RX_CONTAINER_WRAP, (rx.is_some() && can_wrap).then(|| "1".to_string())),
    ])
}
