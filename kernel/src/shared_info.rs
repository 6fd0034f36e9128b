//! The page that Xen shares with every guest (public/xen.h, `struct shared_info`): pending events and time.
//! Every field is an atomic, because Xen writes it whenever it likes.

use core::mem::offset_of;
use core::sync::atomic::{AtomicI8, AtomicU8, AtomicU32, AtomicU64, Ordering};

use drayage_kernel::pvclock::ClockParams;
use spin::Once;

/// `struct vcpu_time_info`.
#[repr(C)]
struct TimeInfo {
    version: AtomicU32,
    pad: u32,
    tsc: AtomicU64,
    system_ns: AtomicU64,
    multiplier: AtomicU32,
    shift: AtomicI8,
    flags: AtomicU8,
    pad2: [u8; 2],
}

/// `struct vcpu_info`.
#[repr(C)]
struct VcpuInfo {
    upcall_pending: AtomicU8,
    upcall_mask: AtomicU8,
    pending_selector: AtomicU64,
    cr2: AtomicU64,
    pad: u64,
    time: TimeInfo,
}

/// `struct shared_info`.
#[repr(C)]
pub(crate) struct SharedInfo {
    vcpus: [VcpuInfo; 32],
    pending: [AtomicU64; 64],
    mask: [AtomicU64; 64],
    wall_version: AtomicU32,
    wall_seconds: AtomicU32,
    wall_ns: AtomicU32,
    wall_seconds_high: AtomicU32,
}

const _: () = assert!(size_of::<VcpuInfo>() == 64);
const _: () = assert!(offset_of!(SharedInfo, pending) == 2048);
const _: () = assert!(offset_of!(SharedInfo, wall_version) == 3072);

static SHARED_INFO: Once<&'static SharedInfo> = Once::new();

/// Installs the page, with every event masked: a port that is not masked would raise an upcall, and there is
/// none (guest ABI: a poller is woken for masked ports too).
///
/// # Safety
/// `address` must be where the page is mapped, for good.
pub(crate) unsafe fn install(address: u64) {
    let page = core::ptr::with_exposed_provenance::<SharedInfo>(address as usize);
    // SAFETY: our caller vouches for the mapping; all fields are atomics, so Xen may write at any time.
    let info = unsafe { &*page };
    info.mask.iter().for_each(|word| word.store(!0, Ordering::Relaxed));
    SHARED_INFO.call_once(|| info);
}

/// Returns the page; `None` before it is installed, and where there is no Xen.
#[inline]
pub(crate) fn get() -> Option<&'static SharedInfo> {
    SHARED_INFO.get().copied()
}

impl SharedInfo {
    /// Clears a port's pending bit and returns whether it was set.
    #[inline]
    pub(crate) fn take_pending(&self, port: u32) -> bool {
        let bit = 1_u64 << (port % 64);
        let Some(word) = self.pending.get((port / 64) as usize) else { return false };
        // The locked instruction also orders it before the reads of the ring that follow.
        word.load(Ordering::Relaxed) & bit != 0 && word.fetch_and(!bit, Ordering::SeqCst) & bit != 0
    }

    /// Returns the parameters of the clock.
    #[inline]
    pub(crate) fn clock_params(&self) -> ClockParams {
        let time = &self.vcpus[0].time;
        loop {
            let version = time.version.load(Ordering::Acquire);
            let params = ClockParams {
                tsc: time.tsc.load(Ordering::Relaxed),
                system_ns: time.system_ns.load(Ordering::Relaxed),
                multiplier: time.multiplier.load(Ordering::Relaxed),
                shift: time.shift.load(Ordering::Relaxed),
            };
            core::sync::atomic::fence(Ordering::Acquire);
            if version & 1 == 0 && time.version.load(Ordering::Relaxed) == version {
                return params;
            }
            core::hint::spin_loop();
        }
    }

    /// Returns the wall clock at system time zero, in nanoseconds since 1970.
    pub(crate) fn wall_clock_base_ns(&self) -> u64 {
        loop {
            let version = self.wall_version.load(Ordering::Acquire);
            let low = self.wall_seconds.load(Ordering::Relaxed);
            let high = self.wall_seconds_high.load(Ordering::Relaxed);
            let ns = self.wall_ns.load(Ordering::Relaxed);
            core::sync::atomic::fence(Ordering::Acquire);
            if version & 1 == 0 && self.wall_version.load(Ordering::Relaxed) == version {
                let seconds = (u64::from(high) << 32) | u64::from(low);
                return seconds.wrapping_mul(1_000_000_000).wrapping_add(ns.into());
            }
            core::hint::spin_loop();
        }
    }

    /// Returns the address that the last page fault was about (PV has it here, not in cr2).
    pub(crate) fn fault_address(&self) -> u64 {
        self.vcpus[0].cr2.load(Ordering::Relaxed)
    }
}
