//! A network device's offloads, as `ethtool -K` sets them. Knows nothing of what they are good for.

use anyhow::{Context, Result};

use crate::sys;

/// An offload that can be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offload {
    /// Its name, ethtool's.
    pub name: &'static str,
    /// The commands that read and set it (`linux/ethtool.h`).
    get: u32,
    set: u32,
}

/// All that are known here.
pub const OFFLOADS: [Offload; 5] = [
    Offload { name: "sg", get: 0x18, set: 0x19 },
    Offload { name: "tso", get: 0x1e, set: 0x1f },
    Offload { name: "gso", get: 0x23, set: 0x24 },
    Offload { name: "gro", get: 0x2b, set: 0x2c },
    Offload { name: "tx", get: 0x16, set: 0x17 },
];

/// Whether an offload is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Switch {
    /// It is.
    On,
    /// It is not.
    Off,
}

/// Sets an offload of a device, and makes sure that the device obeys.
pub fn set(device: &str, name: &str, to: Switch) -> Result<()> {
    let names = OFFLOADS.map(|offload| offload.name).join(", ");
    let offload = OFFLOADS
        .iter()
        .find(|offload| offload.name == name)
        .with_context(|| format!("offload {name:?} is not known; there are {names}"))?;
    let wanted = u32::from(to == Switch::On);
    let what = || format!("offload {name} of {device}");
    sys::ethtool(device, offload.set, wanted).with_context(what)?;
    let is = sys::ethtool(device, offload.get, 0).with_context(what)?;
    anyhow::ensure!(is == wanted, "{} is {is} after it was set to {wanted}", what());
    Ok(())
}
