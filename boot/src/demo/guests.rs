//! The guests of the demo and of the tests under Xen, and the addresses that they have. Knows
//! nothing of backends.

use crate::dom0::{Guest, Mode};
use crate::images::inside;

/// dom0's address towards the guest.
pub const HOST_IP: &str = "10.0.0.1";

/// The guest's address.
pub const GUEST_IP: &str = "10.0.0.2";

/// The guest's MAC.
pub const GUEST_MAC: &str = "00:16:3e:00:00:02";

/// One of the networks between dom0 and a guest; every guest of a measurement has one of its own. [`Site::FIRST`] has
/// the addresses above.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Site(pub u8);

impl Site {
    /// The one that is there when there is only one.
    pub const FIRST: Site = Site(0);

    /// Returns dom0's address towards the guest.
    pub fn host_ip(self) -> String {
        format!("10.0.{}.1", self.0)
    }

    /// Returns the guest's address.
    pub fn guest_ip(self) -> String {
        format!("10.0.{}.2", self.0)
    }

    /// Returns the guest's MAC.
    pub fn guest_mac(self) -> String {
        format!("00:16:3e:00:{:02x}:02", self.0)
    }

    /// Returns the name of our backend's TAP.
    pub fn tap(self) -> String {
        format!("dry{}", self.0)
    }

    /// Returns the names of a veth's ends: the sender's, and the one that is in the bridge or our uplink.
    pub fn veth(self) -> [String; 2] {
        [format!("dry-near{}", self.0), format!("dry-far{}", self.0)]
    }

    /// Returns the name of the stock backend's bridge.
    pub fn bridge(self) -> String {
        format!("drayage-br{}", self.0)
    }
}

/// Memory of a Linux guest: its kernel comes unpacked, and needs room for that beside its own.
const LINUX_MEMORY_MIB: u32 = 256;

/// Memory of ours.
const OUR_MEMORY_MIB: u32 = 16;

/// Returns a Linux guest that runs a script once its modules are in.
pub fn linux(name: &str, mode: Mode, script: &str) -> Guest {
    let script = drayage_peer::init::encode(script);
    Guest {
        name: name.to_owned(),
        mode,
        kernel: inside::LINUX.to_owned(),
        ramdisk: Some(inside::LINUX_INITRAMFS.to_owned()),
        arguments: format!("console=hvc0 loglevel=2 rdinit=/init {script}"),
        memory_mib: LINUX_MEMORY_MIB,
        vifs: Vec::new(),
        extra_lines: Vec::new(),
    }
}

/// Returns our unikernel with settings on its command line.
pub fn ours(name: &str, mode: Mode, settings: &str) -> Guest {
    Guest {
        name: name.to_owned(),
        mode,
        kernel: inside::KERNEL.to_owned(),
        ramdisk: None,
        arguments: settings.to_owned(),
        memory_mib: OUR_MEMORY_MIB,
        vifs: Vec::new(),
        extra_lines: Vec::new(),
    }
}

/// Returns a `vif` entry of the stock backend. dom0's own commands bring the device up; its hotplug script
/// only says that this is done.
pub fn stock_vif(mac: &str) -> String {
    format!("mac={mac},script={}", inside::VIF_SCRIPT)
}

/// Returns the script of a Linux guest with a static address, an echo service and a counting reader.
pub fn linux_reader_script() -> String {
    reader_script(Site::FIRST)
}

/// Returns the same for another place.
pub fn reader_script(site: Site) -> String {
    let ip = site.guest_ip();
    format!(
        "ip link set lo up; ip link set eth0 up; ip addr add {ip}/24 dev eth0; peer recv & peer serve-echo"
    )
}
