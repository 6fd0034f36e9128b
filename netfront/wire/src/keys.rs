//! The xenstore keys and states of a vif, as both ends write them.
//!
//! The stock keys are those of `xen/include/public/io/netif.h`; the container keys are ours (SPEC.md,
//! "Negotiation"). This module knows no xenstore: names, values, and what a value means.

/// The state of one end of a split device (`enum xenbus_state` in `public/io/xenbus.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum State {
    /// There is no such device, or what its state key holds is no state.
    #[default]
    Unknown,
    /// The device is being set up.
    Initialising,
    /// The backend has written its features and waits for the frontend.
    InitWait,
    /// The frontend has written its details and waits for the backend.
    Initialised,
    /// Packets may flow.
    Connected,
    /// The device is being torn down.
    Closing,
    /// The device is torn down.
    Closed,
    /// The frontend changes its details.
    Reconfiguring,
    /// The backend has taken them.
    Reconfigured,
}

impl State {
    /// Returns the state that a key's value names; anything else is [`State::Unknown`].
    pub fn parse(value: &[u8]) -> Self {
        match value {
            b"1" => Self::Initialising,
            b"2" => Self::InitWait,
            b"3" => Self::Initialised,
            b"4" => Self::Connected,
            b"5" => Self::Closing,
            b"6" => Self::Closed,
            b"7" => Self::Reconfiguring,
            b"8" => Self::Reconfigured,
            _ => Self::Unknown,
        }
    }

    /// Returns the value to write for the state.
    pub const fn value(self) -> &'static str {
        match self {
            Self::Unknown => "0",
            Self::Initialising => "1",
            Self::InitWait => "2",
            Self::Initialised => "3",
            Self::Connected => "4",
            Self::Closing => "5",
            Self::Closed => "6",
            Self::Reconfiguring => "7",
            Self::Reconfigured => "8",
        }
    }
}

impl core::fmt::Display for State {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Debug::fmt(self, f)
    }
}

/// Returns the number that a key's value spells in decimal, without sign or space.
pub fn parse_number(value: &[u8]) -> Option<u32> {
    if value.is_empty() || value.len() > 10 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    value.iter().try_fold(0u32, |n, d| n.checked_mul(10)?.checked_add(u32::from(d - b'0')))
}

/// Returns the address that a `mac` key's value spells (`00:16:3e:01:02:03`).
pub fn parse_mac(value: &[u8]) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = value.split(|b| *b == b':');
    for byte in &mut mac {
        let part = parts.next()?;
        if part.is_empty() || part.len() > 2 {
            return None;
        }
        if !part.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        *byte = u8::from_str_radix(core::str::from_utf8(part).ok()?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

/// The type directory under `backend/` that holds the vifs of this backend, so that a kernel netback, which
/// owns `vif`, leaves them alone.
pub const BACKEND_TYPE: &str = "drayage";

/// The type directory under `device/` that holds the frontend ends of all vifs, whoever their backend is.
pub const FRONTEND_TYPE: &str = "vif";

/// Either end: its [`State`].
pub const STATE: &str = "state";
/// Frontend: the path of the backend's directory.
pub const BACKEND: &str = "backend";
/// Frontend: the domain of the backend.
pub const BACKEND_ID: &str = "backend-id";
/// Backend: the path of the frontend's directory.
pub const FRONTEND: &str = "frontend";
/// Backend: the domain of the frontend.
pub const FRONTEND_ID: &str = "frontend-id";
/// Backend: "1" while the toolstack wants the device, "0" once it is being unplugged.
pub const ONLINE: &str = "online";
/// Both: the vif's number in its domain.
pub const HANDLE: &str = "handle";
/// Both: the guest's address.
pub const MAC: &str = "mac";
/// Frontend: the MTU that the guest should use, in bytes without the Ethernet header.
pub const MTU: &str = "mtu";
/// Frontend: "0" when the frontend should not trust its backend (Linux 5.19 on).
pub const TRUSTED: &str = "trusted";

/// Frontend: grant reference of the TX ring.
pub const TX_RING_REF: &str = "tx-ring-ref";
/// Frontend: grant reference of the RX ring.
pub const RX_RING_REF: &str = "rx-ring-ref";
/// Frontend: the event channel of both rings.
pub const EVENT_CHANNEL: &str = "event-channel";
/// Frontend: the event channel of the TX ring, where they are split.
pub const EVENT_CHANNEL_TX: &str = "event-channel-tx";
/// Frontend: the event channel of the RX ring, where they are split.
pub const EVENT_CHANNEL_RX: &str = "event-channel-rx";
/// Backend: each ring may have an event channel of its own.
pub const FEATURE_SPLIT_EVENT_CHANNELS: &str = "feature-split-event-channels";
/// Backend: it filters multicast for a frontend that asks for it.
pub const FEATURE_MULTICAST_CONTROL: &str = "feature-multicast-control";
/// Frontend: it is sent the groups that it names in extra segments of its TX ring, and no others.
pub const REQUEST_MULTICAST_CONTROL: &str = "request-multicast-control";
/// Backend: received frames are grant-copied.
pub const FEATURE_RX_COPY: &str = "feature-rx-copy";
/// Frontend: received frames are to be grant-copied.
pub const REQUEST_RX_COPY: &str = "request-rx-copy";
/// Frontend: the backend is notified when receive buffers are posted.
pub const FEATURE_RX_NOTIFY: &str = "feature-rx-notify";
/// Either: frames of several slots.
pub const FEATURE_SG: &str = "feature-sg";
/// Either: TCP super-frames over IPv4.
pub const FEATURE_GSO_TCPV4: &str = "feature-gso-tcpv4";
/// Either: TCP super-frames over IPv6.
pub const FEATURE_GSO_TCPV6: &str = "feature-gso-tcpv6";
/// Either: blank checksums over IPv4 are *not* taken.
pub const FEATURE_NO_CSUM_OFFLOAD: &str = "feature-no-csum-offload";
/// Either: blank checksums over IPv6 are taken.
pub const FEATURE_IPV6_CSUM_OFFLOAD: &str = "feature-ipv6-csum-offload";

/// Backend: it has a control ring.
pub const FEATURE_CTRL_RING: &str = "feature-ctrl-ring";
/// Frontend: grant reference of the control ring.
pub const CTRL_RING_REF: &str = "ctrl-ring-ref";
/// Frontend: the event channel of the control ring.
pub const EVENT_CHANNEL_CTRL: &str = "event-channel-ctrl";

/// Backend: the newest container version it writes to the guest.
pub const FEATURE_RX_CONTAINERS: &str = "feature-rx-containers";
/// Backend: the newest container version it reads from the guest.
pub const FEATURE_TX_CONTAINERS: &str = "feature-tx-containers";
/// Backend: the largest TX container it takes, in bytes.
pub const TX_CONTAINER_MAX_BYTES: &str = "tx-container-max-bytes";
/// Frontend: the container version that RX chains are to have, no more than the backend's.
pub const REQUEST_RX_CONTAINERS: &str = "request-rx-containers";
/// Frontend: the container version that TX chains have, no more than the backend's.
pub const REQUEST_TX_CONTAINERS: &str = "request-tx-containers";
/// Frontend: the largest RX container it takes, in bytes.
pub const RX_CONTAINER_MAX_BYTES: &str = "rx-container-max-bytes";
/// Frontend: "1" when an RX chain may cross from slot 255 to slot 0.
pub const FEATURE_RX_CONTAINER_WRAP: &str = "feature-rx-container-wrap";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_those_of_xenbus_h() {
        for (value, state) in [(1, State::Initialising), (4, State::Connected), (8, State::Reconfigured)] {
            assert_eq!(state as u8, value);
            assert_eq!(State::parse(state.value().as_bytes()), state);
        }
        for nonsense in [&b""[..], b"9", b"44", b"-1", b"Connected", &[0xff]] {
            assert_eq!(State::parse(nonsense), State::Unknown);
        }
    }

    #[test]
    fn numbers_are_plain_and_bounded() {
        assert_eq!(parse_number(b"4294967295"), Some(u32::MAX));
        for nonsense in [&b""[..], b"4294967296", b"99999999999", b"-1", b"+1", b" 1", b"0x1"] {
            assert_eq!(parse_number(nonsense), None);
        }
    }

    #[test]
    fn addresses_have_six_parts() {
        assert_eq!(parse_mac(b"00:16:3e:Ab:0:ff"), Some([0, 0x16, 0x3e, 0xab, 0, 0xff]));
        for nonsense in [&b""[..], b"00:16:3e:01:02", b"00:16:3e:01:02:03:04", b"00:16:3e:01:02:+3", b"0"] {
            assert_eq!(parse_mac(nonsense), None, "{nonsense:?}");
        }
    }
}
