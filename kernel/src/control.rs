//! What the toolstack asks of a guest through `control/shutdown` (xen's docs/misc/xenstore-paths.pandoc). It
//! knows the words, not how they are fetched or obeyed.

/// A request by the toolstack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// `poweroff`, `halt`: end.
    PowerOff,
    /// `reboot`: end, and be started anew.
    Reboot,
    /// `suspend`: save all state; this guest declines.
    Suspend,
    /// Something newer than this program.
    Unknown,
}

impl Request {
    /// Reads the value of `control/shutdown`; an empty one is no request but the acknowledgement of the last.
    pub fn parse(value: &str) -> Option<Self> {
        Some(match value.trim() {
            "" => return None,
            "poweroff" | "halt" => Self::PowerOff,
            "reboot" => Self::Reboot,
            "suspend" => Self::Suspend,
            _ => Self::Unknown,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_requests() {
        assert_eq!(Request::parse(""), None);
        assert_eq!(Request::parse("poweroff"), Some(Request::PowerOff));
        assert_eq!(Request::parse("halt"), Some(Request::PowerOff));
        assert_eq!(Request::parse("reboot\n"), Some(Request::Reboot));
        assert_eq!(Request::parse("suspend"), Some(Request::Suspend));
        assert_eq!(Request::parse("s3"), Some(Request::Unknown));
    }
}
