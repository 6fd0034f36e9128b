//! What the two ends of a vif write for each other: our features, and the frontend's details, judged.
//!
//! It knows xenstore keys, and neither when they are written nor what happens then. Everything that a
//! frontend wrote is a text from a stranger.

use drayage_wire::container::{MAX_RX_BYTES, MAX_TX_BYTES, MIN_SIZE_BYTES, VERSION};
use drayage_wire::keys;

use crate::aggregate::Wrap;
use crate::class::Classes;
use crate::policy::Policy;
use crate::rules::Rules;
use crate::store::{Store, StoreError, Transaction};
use crate::switch::Mac;
use crate::vif::multicast::Groups;
use crate::vif::{Connection, ControlRing, RemoteEvents, Rings, rx, tx};
use crate::xen::{DomainId, EventPort, GrantRef};

/// Whether containers are offered to a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Containers {
    /// They are.
    #[default]
    On,
    /// They are not: plain netif is spoken.
    Off,
}

/// Whether a guest may have its pages mapped here, as it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Staged {
    /// Where nothing is given away by it, and containers make it worth its pages: see [`Asked::resolve`].
    #[default]
    Auto,
    /// It may.
    On,
    /// It may not.
    Off,
}

/// Whether a guest is told that its backend is to be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trusted {
    /// It is.
    #[default]
    On,
    /// It is told not to: it copies what it receives through mapped pages before it looks.
    Off,
}

/// What is asked for of a [`Mapping`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Asked {
    /// Whether pages may be mapped.
    pub staged: Staged,
    /// What the guest is told.
    pub trusted: Trusted,
}

impl Asked {
    /// Returns what it comes to for a guest of `backend`'s.
    ///
    /// [`Staged::Auto`] maps pages where the backend is domain 0, which can map any page of any guest anyway, and the
    /// guest is told to trust it; and where containers are offered, since plain netif is for who wants no extensions.
    pub fn resolve(self, backend: DomainId, containers: Containers) -> Mapping {
        let trusted = self.trusted == Trusted::On;
        let staged = match self.staged {
            Staged::Auto => trusted && backend == DomainId(0) && containers == Containers::On,
            Staged::On => true,
            Staged::Off => false,
        };
        Mapping { staged, trusted }
    }
}

impl From<Mapping> for Asked {
    fn from(mapping: Mapping) -> Self {
        Self {
            staged: if mapping.staged { Staged::On } else { Staged::Off },
            trusted: if mapping.trusted { Trusted::On } else { Trusted::Off },
        }
    }
}

/// Whether a guest may have its pages mapped here, and what it is told of us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Mapping {
    /// A control ring is offered, over which the guest may ask for its pages to be mapped.
    pub staged: bool,
    /// The guest is told that this backend is to be trusted.
    pub trusted: bool,
}

impl Default for Mapping {
    fn default() -> Self {
        Self { staged: false, trusted: true }
    }
}

/// Returns the features that the backend writes, before anything of the guest's is known.
pub fn features(containers: Containers, mapping: Mapping) -> Vec<(&'static str, String)> {
    let mut features: Vec<(&str, String)> = [
        keys::FEATURE_RX_COPY,
        keys::FEATURE_SG,
        keys::FEATURE_GSO_TCPV4,
        keys::FEATURE_GSO_TCPV6,
        keys::FEATURE_IPV6_CSUM_OFFLOAD,
        keys::FEATURE_SPLIT_EVENT_CHANNELS,
        keys::FEATURE_MULTICAST_CONTROL,
    ]
    .into_iter()
    .map(|key| (key, "1".into()))
    .collect();
    if mapping.staged {
        features.push((keys::FEATURE_CTRL_RING, "1".into()));
    }
    if containers == Containers::On {
        features.push((keys::FEATURE_RX_CONTAINERS, VERSION.to_string()));
        features.push((keys::FEATURE_TX_CONTAINERS, VERSION.to_string()));
        features.push((keys::TX_CONTAINER_MAX_BYTES, MAX_TX_BYTES.to_string()));
    }
    features
}

/// Why a frontend's details are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A key is missing, or its value makes no sense.
    #[error("frontend key {key:?} is {value:?}, where {wanted} is needed")]
    Bad {
        /// The key.
        key: &'static str,
        /// Its value; empty for none.
        value: String,
        /// What was expected.
        wanted: &'static str,
    },
    /// xenstore failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What the operator asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The guest.
    pub domain: DomainId,
    /// Its address.
    pub mac: Mac,
    /// When containers go out.
    pub policy: Policy,
    /// Packets that do not wait.
    pub urgent: Classes,
    /// The largest container.
    pub size_bytes: usize,
    /// Whether containers were offered.
    pub containers: Containers,
    /// What the guest is held to.
    pub rules: Rules,
    /// Whether a control ring was offered.
    pub mapping: Mapping,
}

struct Reader<'a, S> {
    store: &'a S,
    within: Transaction,
    dir: &'a str,
}

impl<S: Store> Reader<'_, S> {
    fn value(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        match self.store.read(self.within, &format!("{}/{key}", self.dir)) {
            Ok(value) => Ok(Some(value)),
            Err(StoreError::Missing(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn number(&self, key: &'static str) -> Result<u32, Refused> {
        self.optional(key)?.ok_or(Refused::Bad { key, value: String::new(), wanted: "a number" })
    }

    fn optional(&self, key: &'static str) -> Result<Option<u32>, Refused> {
        let Some(value) = self.value(key)? else { return Ok(None) };
        let number = keys::parse_number(&value);
        let bad = || {
            let value = String::from_utf8_lossy(&value).chars().take(64).collect();
            Refused::Bad { key, value, wanted: "a number" }
        };
        number.map(Some).ok_or_else(bad)
    }

    /// A feature is on if its key is a number other than 0; rubbish counts as off.
    fn flag(&self, key: &'static str) -> Result<bool, Refused> {
        match self.optional(key) {
            Ok(number) => Ok(number.is_some_and(|n| n != 0)),
            Err(Refused::Bad { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Returns whether a direction has containers, and refuses a version that was not offered.
    fn version(&self, key: &'static str, offered: Containers) -> Result<bool, Refused> {
        let refuse = |version: u32, wanted| Refused::Bad { key, value: version.to_string(), wanted };
        match (self.optional(key)?.unwrap_or(0), offered) {
            (0, _) => Ok(false),
            (version, Containers::Off) => Err(refuse(version, "0, as none were offered,")),
            (version, Containers::On) if version == u32::from(VERSION) => Ok(true),
            (version, Containers::On) => Err(refuse(version, "0 or 1")),
        }
    }
}

/// Reads and judges a frontend's details. All keys are read within one transaction: they belong together.
///
/// # Errors
/// [`Refused`].
pub fn read(
    store: &impl Store,
    within: Transaction,
    frontend: &str,
    wanted: &Wanted,
) -> Result<Connection, Refused> {
    let from = Reader { store, within, dir: frontend };
    if !from.flag(keys::REQUEST_RX_COPY)? {
        return Err(Refused::Bad { key: keys::REQUEST_RX_COPY, value: String::new(), wanted: "1" });
    }
    let events = match from.optional(keys::EVENT_CHANNEL_TX)? {
        Some(tx) => {
            let rx = EventPort(from.number(keys::EVENT_CHANNEL_RX)?);
            RemoteEvents::Split { tx: EventPort(tx), rx }
        }
        None => RemoteEvents::Shared(EventPort(from.number(keys::EVENT_CHANNEL)?)),
    };
    let control = match from.optional(keys::CTRL_RING_REF)? {
        Some(ring) if wanted.mapping.staged => {
            let event = EventPort(from.number(keys::EVENT_CHANNEL_CTRL)?);
            Some(ControlRing { ring: GrantRef(ring), event })
        }
        // One that was not asked for is left alone.
        _ => None,
    };
    let scatter = from.flag(keys::FEATURE_SG)?;
    let accepts = rx::Accepts {
        scatter,
        gso_v4: from.flag(keys::FEATURE_GSO_TCPV4)?,
        gso_v6: from.flag(keys::FEATURE_GSO_TCPV6)?,
        blank_v4: !from.flag(keys::FEATURE_NO_CSUM_OFFLOAD)?,
        blank_v6: from.flag(keys::FEATURE_IPV6_CSUM_OFFLOAD)?,
    };
    let rx_format = if from.version(keys::REQUEST_RX_CONTAINERS, wanted.containers)? {
        let key = keys::RX_CONTAINER_MAX_BYTES;
        let limit = from.optional(key)?.unwrap_or(MIN_SIZE_BYTES as u32) as usize;
        if limit < MIN_SIZE_BYTES {
            return Err(Refused::Bad { key, value: limit.to_string(), wanted: "4096 or more" });
        }
        let wrap = if from.flag(keys::FEATURE_RX_CONTAINER_WRAP)? { Wrap::Allowed } else { Wrap::Forbidden };
        rx::Format::Containers { size: limit.min(MAX_RX_BYTES).min(wanted.size_bytes), wrap }
    } else {
        rx::Format::Plain
    };
    let tx_format = if from.version(keys::REQUEST_TX_CONTAINERS, wanted.containers)? {
        tx::Format::Containers { size: MAX_TX_BYTES }
    } else {
        tx::Format::Plain
    };
    // With containers there is no place for the requests that would fill the list (SPEC.md 3).
    let asked = tx_format == tx::Format::Plain && from.flag(keys::REQUEST_MULTICAST_CONTROL)?;
    let groups = if asked { Groups::Subscribed } else { Groups::All };
    Ok(Connection {
        domain: wanted.domain,
        mac: wanted.mac,
        tx_ring: GrantRef(from.number(keys::TX_RING_REF)?),
        rx_ring: GrantRef(from.number(keys::RX_RING_REF)?),
        events,
        control,
        tx_format,
        rx_format,
        accepts,
        policy: wanted.policy,
        urgent: wanted.urgent,
        rules: wanted.rules,
        groups,
        rings: Rings::New,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_mapped_unasked_where_nothing_is_given_away_and_containers_are_on() {
        let (dom0, other) = (DomainId(0), DomainId(7));
        let staged = |staged, trusted, backend, containers| {
            let mapping = Asked { staged, trusted }.resolve(backend, containers);
            assert_eq!(mapping.trusted, trusted == Trusted::On);
            mapping.staged
        };
        assert!(staged(Staged::Auto, Trusted::On, dom0, Containers::On));
        assert!(!staged(Staged::Auto, Trusted::Off, dom0, Containers::On));
        assert!(!staged(Staged::Auto, Trusted::On, other, Containers::On));
        assert!(!staged(Staged::Auto, Trusted::On, dom0, Containers::Off));
        assert!(staged(Staged::On, Trusted::Off, other, Containers::Off));
        assert!(!staged(Staged::Off, Trusted::On, dom0, Containers::On));
    }
}
