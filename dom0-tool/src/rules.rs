//! What an operator holds a guest to: its own address, and uplinks only.
//!
//! It knows addresses, and neither ports nor packets beyond their first twelve bytes.

use serde::{Deserialize, Serialize};

use crate::switch::Mac;

/// What an operator wants of a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rules {
    /// It sends from its own address only. Who an ARP or neighbour advertisement speaks of is not looked at.
    pub locked_mac: bool,
    /// It reaches uplinks and guests that are not isolated, and no other isolated guest, as the ports of a Linux
    /// bridge do after `bridge link set … isolated on`.
    pub isolated: bool,
}

impl Rules {
    /// Returns the rules that are in force, as words.
    pub fn words(self) -> &'static str {
        match (self.locked_mac, self.isolated) {
            (false, false) => "-",
            (true, false) => "locked",
            (false, true) => "isolated",
            (true, true) => "locked isolated",
        }
    }
}

/// Rules as a port applies them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    locked: Option<Mac>,
    /// What the port is to others.
    pub privacy: Privacy,
}

/// Whether ports of a kind hear each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Privacy {
    /// They do.
    #[default]
    Shared,
    /// They do not.
    Isolated,
}

impl Guard {
    /// Returns the guard of a guest with the address `mac`.
    pub fn new(rules: Rules, mac: Mac) -> Self {
        let privacy = if rules.isolated { Privacy::Isolated } else { Privacy::Shared };
        Self { locked: rules.locked_mac.then_some(mac), privacy }
    }

    /// Returns the guard of a port of another worker's, which has looked at addresses already.
    pub fn of_another(privacy: Privacy) -> Self {
        Self { locked: None, privacy }
    }

    /// Returns whether a frame may come from here.
    pub fn admits(self, frame: &[u8]) -> bool {
        self.locked.is_none_or(|mac| frame.get(6..12) == Some(&mac.0[..]))
    }
}

impl Privacy {
    /// Returns whether a frame of a port of this kind may go to one of another.
    pub fn reaches(self, other: Self) -> bool {
        (self, other) != (Self::Isolated, Self::Isolated)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_locked_guest_sends_from_its_own_address_only() {
        let own = Mac([2, 0, 0, 0, 0, 1]);
        let locked = Guard::new(Rules { locked_mac: true, isolated: false }, own);
        let mut frame = [0; 14];
        frame[6..12].copy_from_slice(&own.0);
        assert!(locked.admits(&frame));
        for byte in 6..12 {
            let mut other = frame;
            other[byte] ^= 1;
            assert!(!locked.admits(&other));
            assert!(Guard::default().admits(&other));
        }
        assert!(!locked.admits(&frame[..11]), "no address at all");
    }

    #[test]
    fn only_isolated_ports_do_not_meet() {
        use Privacy::{Isolated, Shared};
        assert!(Isolated.reaches(Shared) && Shared.reaches(Isolated) && Shared.reaches(Shared));
        assert!(!Isolated.reaches(Isolated));
    }

    #[test]
    fn what_was_remembered_before_there_were_rules_is_read_without() {
        assert_eq!(serde_json::from_str::<Rules>("{}").unwrap(), Rules::default());
    }
}
