//! How people name a port: `tap:NAME[,bridge=BRIDGE][,vhost=USE][,discard=ADDRESS]`,
//! `packet:DEVICE[,ring=FORMAT][,retire_ms=N]` or `xdp:DEVICE[,queue=N][,mode=MODE]`.
//!
//! It knows text only.

use std::net::Ipv4Addr;

use super::device::IFNAMSIZ;

/// What the name of a port may be, for help texts and errors.
pub const SYNTAX: &str = "tap:NAME[,bridge=BRIDGE][,vhost=auto|on|off][,discard=ADDRESS], \
                          packet:DEVICE[,ring=v2|v3][,retire_ms=N] or xdp:DEVICE[,queue=N][,mode=MODE]";

/// An uplink, as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortSpec {
    /// A TAP device, made if it is not there.
    Tap(TapSpec),
    /// A device of Linux's, shared with Linux by a packet socket.
    Packet(PacketSpec),
    /// One queue of a device of Linux's, by an AF_XDP socket.
    Xdp(XdpSpec),
}

/// A TAP device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapSpec {
    /// The device's name.
    pub name: String,
    /// The bridge that it is to join.
    pub bridge: Option<String>,
    /// Whether frames go to it by `/dev/vhost-net`.
    pub vhost: VhostUse,
    /// An address beside it whose packets are thrown away, to measure what guests can send.
    pub discard: Option<Ipv4Addr>,
}

/// Whether the kernel's vhost thread takes frames for a TAP device, many at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VhostUse {
    /// Where it can be had.
    #[default]
    Auto,
    /// It must.
    On,
    /// Frames are written one by one.
    Off,
}

const USES: [(&str, VhostUse); 3] = [("auto", VhostUse::Auto), ("on", VhostUse::On), ("off", VhostUse::Off)];

/// A device by a packet socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketSpec {
    /// The device's name.
    pub device: String,
    /// The format of the ring in which frames come.
    pub ring: RingFormat,
}

/// The format of a packet socket's ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RingFormat {
    /// Slots of one size, of which each is handed over by itself (`TPACKET_V2`).
    #[default]
    Slots,
    /// Blocks of many frames (`TPACKET_V3`).
    Blocks {
        /// After how many milliseconds a block is handed over that is not full.
        retire_ms: u32,
    },
}

impl RingFormat {
    /// Blocks that are handed over as early as the kernel can.
    pub const BLOCKS: Self = Self::Blocks { retire_ms: 1 };
}

/// The longest time after which a block is handed over.
const MOST_RETIRE_MS: u32 = 1000;

/// A device by an AF_XDP socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XdpSpec {
    /// The device's name.
    pub device: String,
    /// Which of its queues.
    pub queue: u32,
    /// Where the program runs.
    pub mode: XdpMode,
}

/// Where an XDP program runs, and whether frames are copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver if it can, else in the stack.
    #[default]
    Auto,
    /// In the driver.
    Native,
    /// In the driver, which writes frames straight into our memory.
    ZeroCopy,
    /// In the stack.
    Generic,
}

const MODES: [(&str, XdpMode); 4] = [
    ("auto", XdpMode::Auto),
    ("native", XdpMode::Native),
    ("zerocopy", XdpMode::ZeroCopy),
    ("generic", XdpMode::Generic),
];

/// A text that names no port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bad port {text:?}: {why}; write {SYNTAX}")]
pub struct BadPort {
    text: String,
    why: String,
}

impl PortSpec {
    /// Returns the name of the network device.
    pub fn device(&self) -> &str {
        match self {
            Self::Tap(spec) => &spec.name,
            Self::Packet(spec) => &spec.device,
            Self::Xdp(spec) => &spec.device,
        }
    }
}

impl std::str::FromStr for PortSpec {
    type Err = BadPort;

    fn from_str(text: &str) -> Result<Self, BadPort> {
        parse(text).map_err(|why| BadPort { text: text.into(), why })
    }
}

fn parse(text: &str) -> Result<PortSpec, String> {
    let (kind, rest) = text.split_once(':').ok_or("it says no kind of port before a colon")?;
    let mut parts = rest.split(',');
    let name = device(parts.next().unwrap_or_default())?;
    let settings = parts.map(|part| part.split_once('=').ok_or_else(|| no_setting(part, kind)));
    match kind {
        "tap" => {
            let mut spec = TapSpec { name, bridge: None, vhost: VhostUse::Auto, discard: None };
            for setting in settings {
                match setting? {
                    ("bridge", bridge) => spec.bridge = Some(device(bridge)?),
                    ("vhost", wanted) => {
                        let known = USES.iter().find(|(name, _)| *name == wanted);
                        let names = USES.map(|(name, _)| name).join(", ");
                        spec.vhost = known.ok_or_else(|| format!("{wanted:?} is none of {names}"))?.1;
                    }
                    ("discard", address) => {
                        let parsed = address.parse();
                        spec.discard = Some(parsed.map_err(|_| format!("{address:?} is no IPv4 address"))?);
                    }
                    (key, value) => return Err(no_setting(&format!("{key}={value}"), kind)),
                }
            }
            Ok(PortSpec::Tap(spec))
        }
        "packet" => {
            let mut spec = PacketSpec { device: name, ring: RingFormat::Slots };
            let mut retire = None;
            for setting in settings {
                match setting? {
                    ("ring", "v2") => spec.ring = RingFormat::Slots,
                    ("ring", "v3") => spec.ring = RingFormat::BLOCKS,
                    ("ring", other) => return Err(format!("{other:?} is no format of a ring: v2, v3")),
                    ("retire_ms", time) => {
                        let known = time.parse().ok().filter(|ms| (1..=MOST_RETIRE_MS).contains(ms));
                        let bad = || format!("{time:?} is no time from 1 to {MOST_RETIRE_MS} milliseconds");
                        retire = Some(known.ok_or_else(bad)?);
                    }
                    (key, value) => return Err(no_setting(&format!("{key}={value}"), kind)),
                }
            }
            match (&mut spec.ring, retire) {
                (_, None) => {}
                (RingFormat::Blocks { retire_ms }, Some(time)) => *retire_ms = time,
                (RingFormat::Slots, Some(_)) => return Err("retire_ms goes with ring=v3 only".into()),
            }
            Ok(PortSpec::Packet(spec))
        }
        "xdp" => {
            let mut spec = XdpSpec { device: name, queue: 0, mode: XdpMode::Auto };
            for setting in settings {
                match setting? {
                    ("queue", queue) => {
                        spec.queue =
                            queue.parse().map_err(|_| format!("{queue:?} is no number of a queue"))?;
                    }
                    ("mode", mode) => {
                        let known = MODES.iter().find(|(name, _)| *name == mode);
                        let names = MODES.map(|(name, _)| name).join(", ");
                        spec.mode = known.ok_or_else(|| format!("{mode:?} is no mode: {names}"))?.1;
                    }
                    (key, value) => return Err(no_setting(&format!("{key}={value}"), kind)),
                }
            }
            Ok(PortSpec::Xdp(spec))
        }
        _ => Err(format!("{kind:?} is no kind of port")),
    }
}

fn no_setting(part: &str, kind: &str) -> String {
    format!("{part:?} is no setting of a {kind} port")
}

fn device(name: &str) -> Result<String, String> {
    let legal = name.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':' && b != b'%');
    if name.is_empty() || name.len() >= IFNAMSIZ || !legal || name == "." || name == ".." {
        return Err(format!("{name:?} is no name of a network device (1 to 15 characters)"));
    }
    Ok(name.to_owned())
}

impl std::fmt::Display for PortSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tap(spec) => spec.fmt(f),
            Self::Packet(spec) => spec.fmt(f),
            Self::Xdp(spec) => spec.fmt(f),
        }
    }
}

impl std::fmt::Display for TapSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "tap:{}", self.name)?;
        self.bridge.as_ref().map_or(Ok(()), |bridge| write!(f, ",bridge={bridge}"))?;
        match USES.iter().find(|(_, known)| *known == self.vhost) {
            Some((name, used)) if *used != VhostUse::Auto => write!(f, ",vhost={name}")?,
            _ => {}
        }
        self.discard.map_or(Ok(()), |address| write!(f, ",discard={address}"))
    }
}

impl std::fmt::Display for PacketSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "packet:{}", self.device)?;
        match self.ring {
            RingFormat::Slots => Ok(()),
            RingFormat::BLOCKS => write!(f, ",ring=v3"),
            RingFormat::Blocks { retire_ms } => write!(f, ",ring=v3,retire_ms={retire_ms}"),
        }
    }
}

impl std::fmt::Display for XdpSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "xdp:{}", self.device)?;
        if self.queue != 0 {
            write!(f, ",queue={}", self.queue)?;
        }
        match MODES.iter().find(|(_, mode)| *mode == self.mode) {
            Some((name, mode)) if *mode != XdpMode::Auto => write!(f, ",mode={name}"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_what_is_read() {
        for text in [
            "tap:dry0",
            "tap:a-b_c.9,bridge=br0",
            "tap:a,discard=10.0.0.9",
            "tap:a,vhost=off,discard=10.0.0.9",
            "tap:a,bridge=br0,vhost=on",
            "packet:eth0",
            "packet:eth0,ring=v3",
            "packet:eth0,ring=v3,retire_ms=8",
            "xdp:eth0",
            "xdp:eth0,queue=3",
            "xdp:eth0,queue=1,mode=generic",
            "xdp:eth0,mode=zerocopy",
        ] {
            assert_eq!(text.parse::<PortSpec>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            ("dry0", "no kind of port before a colon"),
            ("dpdk:eth0", "\"dpdk\" is no kind of port"),
            ("tap:", "\"\" is no name"),
            ("tap:0123456789abcdef", "is no name"),
            ("tap:a b", "is no name"),
            ("tap:a/b", "is no name"),
            ("tap:a,bridge=", "\"\" is no name"),
            ("tap:a,vlan=3", "\"vlan=3\" is no setting of a tap port"),
            ("tap:a,vhost=yes", "\"yes\" is none of auto, on, off"),
            ("packet:eth0,bridge=br0", "\"bridge=br0\" is no setting of a packet port"),
            ("packet:eth0,ring=v1", "\"v1\" is no format of a ring: v2, v3"),
            ("packet:eth0,ring=v3,retire_ms=0", "\"0\" is no time from 1 to 1000 milliseconds"),
            ("packet:eth0,ring=v3,retire_ms=4ms", "\"4ms\" is no time"),
            ("packet:eth0,retire_ms=4", "retire_ms goes with ring=v3 only"),
            ("packet:eth0,queue", "\"queue\" is no setting of a packet port"),
            ("xdp:eth0,queue=one", "\"one\" is no number of a queue"),
            ("xdp:eth0,mode=fast", "\"fast\" is no mode: auto, native, zerocopy, generic"),
        ] {
            let error = text.parse::<PortSpec>().unwrap_err().to_string();
            assert!(error.contains(named) && error.contains("write tap:NAME"), "{error}");
        }
    }
}
