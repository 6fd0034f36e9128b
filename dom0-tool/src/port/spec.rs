//! How people name a port: `tap:NAME[,bridge=BRIDGE]`.
//!
//! It knows text only.

/// A TAP device, as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapSpec {
    /// The device's name.
    pub name: String,
    /// The bridge that it is to join.
    pub bridge: Option<String>,
}

/// A text that names no port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bad port {text:?}: {why}; write tap:NAME or tap:NAME,bridge=BRIDGE")]
pub struct BadPort {
    text: String,
    why: String,
}

/// The longest name of a network device (`IFNAMSIZ`, with its NUL).
const IFNAMSIZ: usize = 16;

impl std::str::FromStr for TapSpec {
    type Err = BadPort;

    fn from_str(text: &str) -> Result<Self, BadPort> {
        let bad = |why: String| BadPort { text: text.into(), why };
        let rest = text.strip_prefix("tap:").ok_or_else(|| bad("only tap ports are known".into()))?;
        let mut parts = rest.split(',');
        let name = parts.next().unwrap_or_default();
        let device = |name: &str| {
            let legal = name.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':' && b != b'%');
            if name.is_empty() || name.len() >= IFNAMSIZ || !legal || name == "." || name == ".." {
                return Err(bad(format!("{name:?} is no name of a network device (1 to 15 characters)")));
            }
            Ok(name.to_owned())
        };
        let mut spec = Self { name: device(name)?, bridge: None };
        for part in parts {
            match part.split_once('=') {
                Some(("bridge", bridge)) => spec.bridge = Some(device(bridge)?),
                _ => return Err(bad(format!("{part:?} is no setting of a tap port"))),
            }
        }
        Ok(spec)
    }
}

impl std::fmt::Display for TapSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "tap:{}", self.name)?;
        self.bridge.as_ref().map_or(Ok(()), |bridge| write!(f, ",bridge={bridge}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_what_is_read() {
        for text in ["tap:dry0", "tap:a-b_c.9,bridge=br0"] {
            assert_eq!(text.parse::<TapSpec>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            ("dry0", "only tap ports"),
            ("tap:", "\"\" is no name"),
            ("tap:0123456789abcdef", "is no name"),
            ("tap:a b", "is no name"),
            ("tap:a/b", "is no name"),
            ("tap:a,bridge=", "\"\" is no name"),
            ("tap:a,vlan=3", "\"vlan=3\" is no setting"),
        ] {
            let error = text.parse::<TapSpec>().unwrap_err().to_string();
            assert!(error.contains(named) && error.contains("write tap:NAME"), "{error}");
        }
    }
}
