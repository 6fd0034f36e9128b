//! What the kernel command line asks for: `key=value` words, separated by spaces.
//!
//! A word that nobody understands ends the guest with a message that says what would be valid; nothing is
//! guessed. It knows the words and their forms, not what the network or an app does with them.

mod error;
mod words;

use alloc::boxed::Box;
use alloc::vec::Vec;

use smoltcp::wire::{IpAddress, IpCidr, Ipv4Address, Ipv6Address};

pub use error::SettingError;
pub use words::{Key, Words};

use crate::app::{self, AppKind, Starter};

/// The most network interfaces that can have settings of their own.
pub const MAX_INTERFACES: usize = 8;
/// The most static addresses of one interface; the stack keeps room for a link-local one and for what a router
/// advertises.
pub const MAX_ADDRESSES: usize = 4;

/// `app=`
const APP: Key = Key { name: "app", form: "echo, sink, source or forward" };
/// `ip=`
const IP: Key = Key {
    name: "ip",
    form: "dhcp, none, or ADDRESS/PREFIX; several of them separated by commas, IPv4 and IPv6",
};
/// `gw=`
const GW: Key =
    Key { name: "gw", form: "the address of a router; two separated by a comma for IPv4 and IPv6" };
/// `containers=`
const CONTAINERS: Key = Key { name: "containers", form: "on, off, rx or tx" };
/// `container-bytes=`
const CONTAINER_BYTES: Key = Key { name: "container-bytes", form: "a number of bytes, 4096 to 65536" };
/// `staged=`
const STAGED: Key = Key { name: "staged", form: "on, or off; by default on if the backend is trusted" };

/// The settings that belong to no app. `ip` and `gw` may carry the number of an interface: `ip1`.
pub const COMMON_KEYS: [Key; 6] = [APP, IP, GW, CONTAINERS, CONTAINER_BYTES, STAGED];

/// All that the command line says, with the defaults for what it does not say.
pub struct Settings {
    /// The app.
    pub app: &'static AppKind,
    /// Starts the app on an interface.
    pub start: Starter,
    /// How interface 0, 1, … get their addresses; what is beyond the end asks by DHCP.
    pub interfaces: Vec<Addressing>,
    /// What is asked of a backend that knows containers.
    pub containers: Containers,
    /// The largest container to receive; the driver's own choice when absent.
    pub container_bytes: Option<usize>,
    /// Whether backends are asked to map the guest's pages.
    pub staged: Staging,
}

/// Whether backends are asked to map the guest's pages, so that a container costs no grant operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Staging {
    /// If the toolstack says that the backend is to be trusted.
    IfTrusted,
    /// Always; what one sends that is not to be trusted is copied first.
    On,
    /// Never.
    Off,
}

/// The directions in which containers are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Containers {
    /// Towards the guest.
    pub rx: Direction,
    /// From the guest.
    pub tx: Direction,
}

/// Whether one direction has containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// With containers, when the backend has them too.
    Containers,
    /// Frame by frame.
    Plain,
}

/// How an interface gets its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addressing {
    /// Where the IPv4 address comes from.
    pub ipv4: Ipv4Source,
    /// Static addresses of both families.
    pub fixed: Vec<IpCidr>,
    /// The static IPv4 router.
    pub gateway_v4: Option<Ipv4Address>,
    /// The static IPv6 router.
    pub gateway_v6: Option<Ipv6Address>,
}

/// Where an interface's IPv4 address comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipv4Source {
    /// A DHCP server.
    Dhcp,
    /// The command line, or nowhere.
    Fixed,
}

impl Default for Addressing {
    /// Returns what an interface without a setting does: it asks a DHCP server.
    fn default() -> Self {
        Self { ipv4: Ipv4Source::Dhcp, fixed: Vec::new(), gateway_v4: None, gateway_v6: None }
    }
}

impl Addressing {
    /// Tells whether an IPv6 address was given; where none was, routers are asked for a prefix.
    pub fn has_fixed_v6(&self) -> bool {
        self.fixed.iter().any(|cidr| matches!(cidr, IpCidr::Ipv6(_)))
    }
}

impl Settings {
    /// Reads a command line.
    ///
    /// # Errors
    /// The first word that is unknown or malformed, with what would be valid.
    pub fn parse(line: &str) -> Result<Self, SettingError> {
        Self::parse_with(line, app::KINDS)
    }

    /// Reads a command line for other apps than the built-in ones.
    ///
    /// # Errors
    /// As for [`Settings::parse`].
    pub fn parse_with(line: &str, kinds: &'static [AppKind]) -> Result<Self, SettingError> {
        let words = Words::split(line)?;
        let app = match words.get(&APP) {
            None => kinds.first(),
            Some(name) => kinds.iter().find(|kind| kind.name == name),
        };
        let app = app.ok_or_else(|| {
            let names: Vec<&str> = kinds.iter().map(|kind| kind.name).collect();
            words.wrong_with(&APP, &names.join(", "))
        })?;
        words.check_keys(app, kinds)?;
        Ok(Self {
            app,
            start: (app.configure)(&words)?,
            interfaces: interfaces(&words)?,
            containers: containers(&words)?,
            container_bytes: words
                .number(&CONTAINER_BYTES, 4096..=65_536)?
                .and_then(|bytes| usize::try_from(bytes).ok()),
            staged: match words.get(&STAGED) {
                None => Staging::IfTrusted,
                Some("on") => Staging::On,
                Some("off") => Staging::Off,
                Some(_) => return Err(words.wrong(&STAGED)),
            },
        })
    }

    /// Returns how an interface gets its addresses.
    pub fn addressing(&self, interface: usize) -> Addressing {
        self.interfaces.get(interface).cloned().unwrap_or_default()
    }
}

impl core::fmt::Debug for Settings {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Settings")
            .field("app", &self.app.name)
            .field("interfaces", &self.interfaces)
            .field("containers", &self.containers)
            .field("container_bytes", &self.container_bytes)
            .field("staged", &self.staged)
            .finish_non_exhaustive()
    }
}

fn containers(words: &Words<'_>) -> Result<Containers, SettingError> {
    use Direction::{Containers as With, Plain};
    let (rx, tx) = match words.get(&CONTAINERS) {
        None | Some("on") => (With, With),
        Some("off") => (Plain, Plain),
        Some("rx") => (With, Plain),
        Some("tx") => (Plain, With),
        Some(_) => return Err(words.wrong(&CONTAINERS)),
    };
    Ok(Containers { rx, tx })
}

fn interfaces(words: &Words<'_>) -> Result<Vec<Addressing>, SettingError> {
    let used = (0..MAX_INTERFACES)
        .rev()
        .find(|at| [IP, GW].iter().any(|key| words.get_numbered(key, *at).is_some()))
        .map_or(0, |last| last + 1);
    (0..used).map(|at| addressing(words, at)).collect()
}

fn addressing(words: &Words<'_>, interface: usize) -> Result<Addressing, SettingError> {
    let mut out = Addressing::default();
    if let Some(list) = words.get_numbered(&IP, interface) {
        out.ipv4 = Ipv4Source::Fixed;
        for part in list.split(',') {
            match part {
                "dhcp" => out.ipv4 = Ipv4Source::Dhcp,
                "none" if list == "none" => {}
                _ => {
                    let cidr = host_address(part).ok_or_else(|| words.wrong_numbered(&IP, interface))?;
                    if out.fixed.contains(&cidr) || out.fixed.len() == MAX_ADDRESSES {
                        return Err(words.conflict(
                            &IP,
                            interface,
                            "an address may be given once, and no more than 4 of them",
                        ));
                    }
                    out.fixed.push(cidr);
                }
            }
        }
        if out.ipv4 == Ipv4Source::Dhcp && out.fixed.iter().any(|cidr| matches!(cidr, IpCidr::Ipv4(_))) {
            return Err(words.conflict(&IP, interface, "dhcp and a static IPv4 address exclude each other"));
        }
    }
    gateways(words, interface, &mut out)?;
    Ok(out)
}

/// Returns an address that a host may have, with its prefix.
fn host_address(text: &str) -> Option<IpCidr> {
    let cidr: IpCidr = text.parse().ok()?;
    let usable = match cidr {
        IpCidr::Ipv4(cidr) => {
            let address = cidr.address();
            !address.is_multicast()
                && !address.is_unspecified()
                && !address.is_broadcast()
                && !address.is_loopback()
                && cidr.broadcast() != Some(address)
        }
        IpCidr::Ipv6(cidr) => {
            let address = cidr.address();
            !address.is_multicast() && !address.is_unspecified() && !address.is_loopback()
        }
    };
    // Both families have a prefix of 0 bits only where there is no other host.
    (usable && cidr.prefix_len() > 0).then_some(cidr)
}

fn gateways(words: &Words<'_>, interface: usize, out: &mut Addressing) -> Result<(), SettingError> {
    let Some(list) = words.get_numbered(&GW, interface) else { return Ok(()) };
    for part in list.split(',') {
        let wrong = || words.wrong_numbered(&GW, interface);
        let address: core::net::IpAddr = part.parse().map_err(|_| wrong())?;
        let address = IpAddress::from(address);
        let twice = match address {
            IpAddress::Ipv4(v4) => out.gateway_v4.replace(v4).is_some(),
            IpAddress::Ipv6(v6) => out.gateway_v6.replace(v6).is_some(),
        };
        if twice || !address.is_unicast() {
            return Err(wrong());
        }
        let link_local = matches!(address, IpAddress::Ipv6(v6) if v6.segments()[0] & 0xffc0 == 0xfe80);
        if !link_local && !out.fixed.iter().any(|cidr| cidr.contains_addr(&address)) {
            return Err(words.conflict(
                &GW,
                interface,
                "a router must be on the network of a static address",
            ));
        }
    }
    Ok(())
}

/// A setting that could not be taken, kept small: it is made once, at boot.
pub(crate) type Boxed = Box<str>;

#[cfg(test)]
mod tests;
