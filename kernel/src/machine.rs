//! Brings the machine up, in the order in which its parts need each other: console, faults, first memory, shared
//! info (time and events), xenstore, the rest of the memory, grants, the toolstack's wishes.

#[cfg(feature = "selftest")]
mod selftest;

use core::fmt;

use drayage_entry::{BootInfo, PAGE_BYTES, Platform};
use spin::Once;

use crate::console::{self, println};
use crate::exit::{Exit, exit};
use crate::hypercall::{self, PhysmapSpace, XenError};
use crate::memory::pages::Pages;
use crate::memory::paging::{self, Access};
use crate::memory::{Frame, MapError, MemorySummary, window};
use crate::{fault, grants, idle, memory, shared_info, time, toolstack, xenstore};

static BOOT: Once<BootInfo> = Once::new();

/// Returns what the loader told.
pub(crate) fn boot_info() -> &'static BootInfo {
    BOOT.wait()
}

/// Returns who runs the machine.
pub(crate) fn platform() -> Platform {
    boot_info().platform
}

/// Returns the kernel's command line.
pub(crate) fn command_line() -> &'static str {
    boot_info().command_line.as_str()
}

/// Returns this domain's number, where there is one.
pub(crate) fn domain_id() -> Option<u16> {
    xenstore::read("domid").ok()?.trim().parse().ok()
}

/// Brings everything up. What is indispensable and fails ends the guest with a reason.
pub(crate) fn start(boot: BootInfo) {
    let boot = BOOT.call_once(|| boot);
    match (boot.platform, boot.console) {
        (Platform::NoXen, _) => console::start_serial(),
        // SAFETY: the channel is the one that Xen told; its page is mapped at its own address for good.
        (_, Some(channel)) => unsafe { console::start_xen(channel) },
        (_, None) => {}
    }
    println!("drayage-guest {} on {}", env!("CARGO_PKG_VERSION"), Description(boot.platform));
    need("exceptions", fault::install(boot.platform));
    need("memory", memory::start(boot));
    match boot.platform {
        Platform::NoXen => {
            time::calibrate_tsc();
            need("timer", idle::start());
        }
        Platform::XenPv | Platform::XenPvh => need("shared info", map_shared_info(boot)),
    }
    if let Some(channel) = boot.store {
        // SAFETY: the channel is the one that Xen told; its page is mapped at its own address for good.
        unsafe { xenstore::start(channel) };
    }
    let target_kib = xenstore::read("memory/target").ok();
    let summary: MemorySummary = need("memory", memory::take_all(boot, target_kib.as_deref()));
    println!("memory: {summary}");
    if boot.platform != Platform::NoXen {
        hypercall::arguments::move_away();
        need("grant table", grants::start(boot.platform));
        if let Err(error) = toolstack::start() {
            println!("control: shutdown and reboot requests cannot be seen: {error}");
        }
    }
    #[cfg(feature = "selftest")]
    selftest::run(boot.command_line.as_str());
}

fn need<T, E: fmt::Display>(what: &str, result: Result<T, E>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => exit(Exit::Failed(format_args!("{what}: {error}"))),
    }
}

fn map_shared_info(boot: &BootInfo) -> Result<(), MapError> {
    let frame = match boot.pv {
        Some(pv) => Frame(pv.shared_info / PAGE_BYTES),
        None => {
            let page = Pages::allocate(1).ok_or(MapError::NoMemory)?.leak();
            // SAFETY: the page was just taken from the free ones and is never used as memory again: Xen frees
            // it and shows its own in its place.
            unsafe { hypercall::add_to_physmap(PhysmapSpace::SharedInfo, 0, page / PAGE_BYTES) }?;
            Frame(page / PAGE_BYTES)
        }
    };
    let address = window::reserve(1)?;
    // SAFETY: the address was just reserved, and the frame is Xen's shared info.
    unsafe { paging::map(address, frame, Access::ReadWrite) }?;
    // SAFETY: this is the mapping just made, and it stays.
    unsafe { shared_info::install(address) };
    Ok(())
}

struct Description(Platform);

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version: Result<(u16, u16), XenError> = hypercall::xen_version();
        match (self.0, version) {
            (Platform::NoXen, _) => f.write_str("no Xen (plain PC)"),
            (Platform::XenPv, Ok((major, minor))) => write!(f, "Xen {major}.{minor}, PV"),
            (Platform::XenPvh, Ok((major, minor))) => write!(f, "Xen {major}.{minor}, PVH"),
            (_, Err(error)) => write!(f, "a Xen that does not tell its version ({error})"),
        }
    }
}
