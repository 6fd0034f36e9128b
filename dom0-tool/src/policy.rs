//! When an open container goes out: the policies, as people write them and as the data path asks them.
//!
//! It knows no container, no ring and no clock.

use drayage_wire::container::{MAX_RX_BYTES, MIN_SIZE_BYTES};

/// How long the opportunistic policy holds a container for a busy guest at most, unless it is told.
pub const DEFAULT_DEADLINE_US: u32 = 500;
/// The longest time that any policy may hold a container.
pub const MAX_HOLD_US: u32 = 1_000_000;
/// The shortest bound on delay: below it, there is nothing to be traded for it.
pub const MIN_DELAY_US: u32 = 10;

/// A policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// At once while the guest is idle; while it is busy, when it has caught up, or the container is full, or
    /// the deadline has passed.
    Opportunistic {
        /// The longest hold.
        deadline_us: u32,
    },
    /// At a size or a timeout, whichever comes first, whatever the guest does (the papers' policy).
    Fixed {
        /// The size at which a container goes out.
        size_bytes: u32,
        /// The longest hold.
        timeout_us: u32,
    },
    /// As large as a bound on each packet's delay allows: size and deadline follow the rate (see [`crate::slo`]).
    Slo {
        /// The bound.
        delay_us: u32,
    },
}

impl Default for Policy {
    fn default() -> Self {
        Self::Opportunistic { deadline_us: DEFAULT_DEADLINE_US }
    }
}

impl Policy {
    /// Returns the longest time that a container may be held.
    pub fn hold_ns(self) -> u64 {
        let (Self::Opportunistic { deadline_us: us }
        | Self::Fixed { timeout_us: us, .. }
        | Self::Slo { delay_us: us }) = self;
        u64::from(us) * 1000
    }

    /// Returns the size at which a container goes out, if the policy has one.
    pub fn size_bytes(self) -> Option<usize> {
        match self {
            Self::Opportunistic { .. } | Self::Slo { .. } => None,
            Self::Fixed { size_bytes, .. } => Some(size_bytes as usize),
        }
    }
}

/// A text that is no policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "bad policy {text:?}: {why}; write opportunistic, opportunistic:deadline=US, fixed:size=BYTES,timeout=US or \
     slo:delay=US (BYTES {MIN_SIZE_BYTES} to {MAX_RX_BYTES}, US 1 to {MAX_HOLD_US}, with slo from {MIN_DELAY_US})"
)]
pub struct BadPolicy {
    text: String,
    why: String,
}

impl std::str::FromStr for Policy {
    type Err = BadPolicy;

    fn from_str(text: &str) -> Result<Self, BadPolicy> {
        let bad = |why: String| BadPolicy { text: text.into(), why };
        let (name, settings) = text.split_once(':').unwrap_or((text, ""));
        let (mut deadline, mut size, mut timeout, mut delay) = (None, None, None, None);
        for setting in settings.split(',').filter(|s| !s.is_empty()) {
            let (key, value) =
                setting.split_once('=').ok_or_else(|| bad(format!("{setting:?} has no value")))?;
            let number: u32 = value.parse().map_err(|_| bad(format!("{key} {value:?} is no number")))?;
            let (slot, low, high) = match (name, key) {
                ("opportunistic", "deadline") => (&mut deadline, 1, MAX_HOLD_US),
                ("slo", "delay") => (&mut delay, MIN_DELAY_US, MAX_HOLD_US),
                ("fixed", "timeout") => (&mut timeout, 1, MAX_HOLD_US),
                ("fixed", "size") => (&mut size, MIN_SIZE_BYTES as u32, MAX_RX_BYTES as u32),
                _ => return Err(bad(format!("{name:?} has no setting {key:?}"))),
            };
            if !(low..=high).contains(&number) {
                return Err(bad(format!("{key} {number} is not between {low} and {high}")));
            }
            *slot = Some(number);
        }
        let needed = |value: Option<u32>, key: &str| value.ok_or_else(|| bad(format!("{key} is missing")));
        match name {
            "opportunistic" => {
                Ok(Self::Opportunistic { deadline_us: deadline.unwrap_or(DEFAULT_DEADLINE_US) })
            }
            "fixed" => {
                Ok(Self::Fixed { size_bytes: needed(size, "size")?, timeout_us: needed(timeout, "timeout")? })
            }
            "slo" => Ok(Self::Slo { delay_us: needed(delay, "delay")? }),
            _ => Err(bad(format!("{name:?} is not known"))),
        }
    }
}

impl std::fmt::Display for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Opportunistic { deadline_us: DEFAULT_DEADLINE_US } => write!(f, "opportunistic"),
            Self::Opportunistic { deadline_us } => write!(f, "opportunistic:deadline={deadline_us}"),
            Self::Fixed { size_bytes, timeout_us } => {
                write!(f, "fixed:size={size_bytes},timeout={timeout_us}")
            }
            Self::Slo { delay_us } => write!(f, "slo:delay={delay_us}"),
        }
    }
}

/// Why a container went out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The next packet did not fit.
    Full,
    /// It had as many packets as the rate promises within the bound on delay.
    Target,
    /// It had a packet of a class that does not wait.
    Class,
    /// The guest was asleep, or had caught up.
    Idle,
    /// It had been open for as long as the policy allows.
    Deadline,
    /// It was handed on as another guest wrote it, or was open when one came that was.
    Whole,
    /// The ring's end was near, and the guest takes no chain across it.
    RingEnd,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_what_is_read() {
        for text in [
            "opportunistic",
            "opportunistic:deadline=1000000",
            "fixed:size=4096,timeout=1",
            "slo:delay=10",
            "slo:delay=1000000",
        ] {
            assert_eq!(text.parse::<Policy>().unwrap().to_string(), text);
        }
        assert_eq!("opportunistic:".parse(), Ok(Policy::default()));
        let fixed: Policy = "fixed:timeout=200,size=65536".parse().unwrap();
        assert_eq!(fixed, Policy::Fixed { size_bytes: 65_536, timeout_us: 200 });
        assert_eq!((fixed.hold_ns(), fixed.size_bytes()), (200_000, Some(65_536)));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            ("", "is not known"),
            ("greedy", "\"greedy\" is not known"),
            ("fixed", "size is missing"),
            ("fixed:size=4096", "timeout is missing"),
            ("fixed:size=4095,timeout=1", "size 4095 is not between 4096 and 65536"),
            ("fixed:size=4096,timeout=0", "timeout 0 is not"),
            ("fixed:size=many,timeout=1", "size \"many\" is no number"),
            ("fixed:size", "has no value"),
            ("opportunistic:size=4096", "has no setting \"size\""),
            ("slo", "delay is missing"),
            ("slo:delay=9", "delay 9 is not between 10 and 1000000"),
            ("slo:deadline=500", "has no setting \"deadline\""),
        ] {
            let error = text.parse::<Policy>().unwrap_err().to_string();
            assert!(error.contains(named) && error.contains("write opportunistic"), "{error}");
        }
    }
}
