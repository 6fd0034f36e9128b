//! The words of a command line, split and looked up. It knows that a word is `key=value`, and a few forms
//! that values have; not which keys there are.

use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::ops::RangeInclusive;

use super::error::{self, SettingError};
use super::{Boxed, COMMON_KEYS, GW, IP, MAX_INTERFACES};
use crate::app::AppKind;

/// A setting that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// What stands in front of the equals sign.
    pub name: &'static str,
    /// What may stand behind it, in words for people.
    pub form: &'static str,
}

/// The words of a command line.
pub struct Words<'a> {
    pairs: Vec<(&'a str, &'a str)>,
}

impl<'a> Words<'a> {
    /// Splits a command line.
    pub(super) fn split(line: &'a str) -> Result<Self, SettingError> {
        let mut pairs: Vec<(&str, &str)> = Vec::new();
        for word in line.split_ascii_whitespace() {
            let pair = word.split_once('=').filter(|(key, _)| !key.is_empty());
            let (key, value) = pair.ok_or_else(|| SettingError::NotAPair { word: word.into() })?;
            if pairs.iter().any(|(other, _)| *other == key) {
                return Err(SettingError::Twice { key: key.into() });
            }
            pairs.push((key, value));
        }
        Ok(Self { pairs })
    }

    /// Returns the value of a key.
    pub fn get(&self, key: &Key) -> Option<&'a str> {
        self.named(key.name)
    }

    /// Returns the number that a key has.
    ///
    /// # Errors
    /// The value is no number, or out of range.
    pub fn number(&self, key: &Key, range: RangeInclusive<u64>) -> Result<Option<u64>, SettingError> {
        self.get(key)
            .map(|text| {
                // `parse` also takes a sign, which a number of things has not.
                let digits = text.bytes().all(|byte| byte.is_ascii_digit());
                let number = text.parse().ok().filter(|number| digits && range.contains(number));
                number.ok_or_else(|| self.wrong(key))
            })
            .transpose()
    }

    /// Returns the UDP or TCP port that a key has.
    ///
    /// # Errors
    /// The value is no port.
    pub fn port(&self, key: &Key) -> Result<Option<u16>, SettingError> {
        Ok(self.number(key, 1..=65_535)?.and_then(|port| u16::try_from(port).ok()))
    }

    /// Returns the address and port that a key has: `10.0.0.1:9`, `[fd00::1]:9`.
    ///
    /// # Errors
    /// The value is no such pair, or the port is 0.
    pub fn endpoint(&self, key: &Key) -> Result<Option<SocketAddr>, SettingError> {
        self.get(key)
            .map(|text| {
                let endpoint: Option<SocketAddr> = text.parse().ok();
                endpoint
                    .filter(|to| to.port() != 0 && !to.ip().is_unspecified())
                    .ok_or_else(|| self.wrong(key))
            })
            .transpose()
    }

    /// Returns the error for a value of the wrong form.
    pub fn wrong(&self, key: &Key) -> SettingError {
        self.wrong_with(key, key.form)
    }

    /// Returns the error for a value of the wrong form, with another description of the right one.
    #[inline(never)]
    pub fn wrong_with(&self, key: &Key, form: &str) -> SettingError {
        let value = self.get(key).unwrap_or_default();
        SettingError::Wrong { key: key.name.into(), value: value.into(), form: form.into() }
    }

    /// Returns the value of a key for one interface: `ip` for the first, `ip1` for the next.
    pub(super) fn get_numbered(&self, key: &Key, interface: usize) -> Option<&'a str> {
        self.named(&numbered(key, interface))
    }

    pub(super) fn wrong_numbered(&self, key: &Key, interface: usize) -> SettingError {
        let value = self.get_numbered(key, interface).unwrap_or_default();
        SettingError::Wrong { key: numbered(key, interface), value: value.into(), form: key.form.into() }
    }

    pub(super) fn conflict(&self, key: &Key, interface: usize, why: &str) -> SettingError {
        let value = self.get_numbered(key, interface).unwrap_or_default();
        SettingError::Conflict { key: numbered(key, interface), value: value.into(), why: why.into() }
    }

    /// Finds a key that neither the guest nor the app has.
    pub(super) fn check_keys(&self, app: &AppKind, kinds: &'static [AppKind]) -> Result<(), SettingError> {
        let valid = || COMMON_KEYS.iter().chain(app.keys);
        for (key, _) in &self.pairs {
            let per_interface =
                (1..MAX_INTERFACES).any(|at| [IP, GW].iter().any(|numbers| *numbered(numbers, at) == **key));
            if per_interface || valid().any(|known| known.name == *key) {
                continue;
            }
            let other = kinds.iter().find(|kind| kind.keys.iter().any(|known| known.name == *key));
            return Err(match other {
                Some(other) => SettingError::OtherApp {
                    key: (*key).into(),
                    owner: other.name,
                    app: app.name,
                    valid: error::list(valid()),
                },
                None => SettingError::Unknown {
                    key: (*key).into(),
                    hint: error::hint(key, valid().map(|known| known.name)),
                    valid: error::list(valid()),
                },
            });
        }
        Ok(())
    }

    #[inline(never)]
    fn named(&self, name: &str) -> Option<&'a str> {
        self.pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }
}

#[inline(never)]
fn numbered(key: &Key, interface: usize) -> Boxed {
    match interface {
        0 => key.name.into(),
        _ => Box::from(format!("{}{interface}", key.name)),
    }
}
