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
    format!(
        "ip link set lo up; ip link set eth0 up; ip addr add {GUEST_IP}/24 dev eth0; peer recv & peer serve-echo"
    )
}
