//! What can go wrong between an operator and the daemon, and which exit code says so.

use serde::{Deserialize, Serialize};

use crate::port::DeviceError;
use crate::port::tap::TapError;
use crate::store::StoreError;
use crate::worker::ConnectError;

/// An error for people, with a kind for scripts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What kind of error it is.
    pub kind: FailureKind,
    /// The thing, the value, and what to do.
    pub message: String,
}

/// Kinds of errors; each has an exit code of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// Anything that has no kind of its own.
    Other,
    /// There is no such domain, or no such interface of it.
    NotFound,
    /// The domain is attached already, or the name of the device is taken.
    Taken,
    /// We may not.
    Denied,
    /// There is no Xen here.
    NoXen,
    /// The daemon does not run.
    NoDaemon,
    /// The daemon went away before it answered.
    Gone,
    /// A value makes no sense.
    BadValue,
}

impl FailureKind {
    /// Returns the exit code; 2 is also what a command line that cannot be parsed ends with.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Other | Self::Gone => 1,
            Self::BadValue => 2,
            Self::NotFound => 3,
            Self::Taken => 4,
            Self::Denied => 5,
            Self::NoXen => 6,
            Self::NoDaemon => 7,
        }
    }
}

impl Failure {
    /// Makes an error.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let kind = match error {
            StoreError::Denied(_) => FailureKind::Denied,
            _ => FailureKind::Other,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<TapError> for Failure {
    fn from(error: TapError) -> Self {
        let denied = |source: &std::io::Error| source.kind() == std::io::ErrorKind::PermissionDenied;
        let kind = match &error {
            TapError::Taken(_) => FailureKind::Taken,
            TapError::NoTun(source) | TapError::Vhost { source, .. } | TapError::Other { source, .. }
                if denied(source) =>
            {
                FailureKind::Denied
            }
            TapError::Bridge { .. } => FailureKind::NotFound,
            _ => FailureKind::Other,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<DeviceError> for Failure {
    fn from(error: DeviceError) -> Self {
        let kind = match error {
            DeviceError::Missing(_) => FailureKind::NotFound,
            DeviceError::NotEthernet(_) => FailureKind::BadValue,
            DeviceError::Denied { .. } => FailureKind::Denied,
            DeviceError::Other { .. } => FailureKind::Other,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        Self::new(FailureKind::Other, error.to_string())
    }
}
