//! Waiting on a machine without Xen: a while at full speed, then halted until the local APIC's timer ends the
//! nap. Devices raise no interrupts here, so a nap is short, and whoever naps looks again.

use core::arch::{asm, global_asm};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use spin::Once;
use x86_64::instructions::port::Port;
use x86_64::registers::model_specific::Msr;

use crate::memory::{MapError, window};
use crate::time;

global_asm!(include_str!("idle.s"), options(att_syntax));

unsafe extern "C" {
    /// Read by idle.s.
    static drayage_apic_end: AtomicUsize;
}

/// Vector of the timer, and of the spurious interrupt (whose low four bits older processors fix to ones).
pub(crate) const TIMER_VECTOR: u8 = 0x20;
pub(crate) const SPURIOUS_VECTOR: u8 = 0x2f;

/// A wait this short is spent at full speed: packets come in trains.
const SPIN_NS: u64 = 50_000;
/// The longest nap: what a device that cannot wake us may have to wait.
const MAX_NAP_NS: u64 = 1_000_000;

/// Registers of the local APIC (Intel SDM volume 3, "local APIC register address map").
const END_OF_INTERRUPT: usize = 0xb0;
const SPURIOUS: usize = 0xf0;
const TIMER: usize = 0x320;
const TIMER_INITIAL: usize = 0x380;
const TIMER_CURRENT: usize = 0x390;
const TIMER_DIVIDE: usize = 0x3e0;

struct Timer {
    registers: NonNull<AtomicU32>,
    ticks_per_ms: u64,
}

// SAFETY: the registers are mapped for good, and reached by atomic accesses alone.
unsafe impl Send for Timer {}
// SAFETY: as above.
unsafe impl Sync for Timer {}

static TIMER_OF_NAPS: Once<Timer> = Once::new();
/// When the last nap ended, in nanoseconds.
static LAST_END_NS: AtomicU64 = AtomicU64::new(0);

/// Sets the timer up. To be called when the clock runs.
///
/// # Errors
/// [`MapError`] when the APIC's registers cannot be mapped; naps are then spent at full speed.
pub(crate) fn start() -> Result<(), MapError> {
    const APIC_BASE: u32 = 0x1b;
    const ENABLED: u64 = 1 << 11;
    // SAFETY: every x86-64 processor of QEMU's has the register.
    let base = unsafe { Msr::new(APIC_BASE).read() };
    if base & ENABLED == 0 {
        return Ok(());
    }
    // The firmware left the old interrupt controllers with vectors that are exceptions to us.
    for mask in [0x21, 0xa1] {
        // SAFETY: without Xen we are in ring 0 of a PC, and nobody else uses the controllers.
        unsafe { Port::<u8>::new(mask).write(0xff) };
    }
    let registers = window::map_device(base & 0x000f_ffff_ffff_f000, 4096)?.cast();
    let mut timer = Timer { registers, ticks_per_ms: 0 };
    // SAFETY: idle.s defines the word, and reads it in interrupts alone, which are still off.
    let end = unsafe { &drayage_apic_end };
    end.store(timer.register(END_OF_INTERRUPT).as_ptr().expose_provenance(), Ordering::Relaxed);
    timer.register(SPURIOUS).store(0x100 | u32::from(SPURIOUS_VECTOR), Ordering::Relaxed);
    timer.register(TIMER_DIVIDE).store(0b0011, Ordering::Relaxed); // 16
    timer.register(TIMER).store(TIMER_VECTOR.into(), Ordering::Relaxed);
    timer.register(TIMER_INITIAL).store(u32::MAX, Ordering::Relaxed);
    let end_ns = time::now_ns() + 1_000_000;
    while time::now_ns() < end_ns {
        core::hint::spin_loop();
    }
    timer.ticks_per_ms = u64::from(u32::MAX - timer.register(TIMER_CURRENT).load(Ordering::Relaxed)).max(1);
    timer.register(TIMER_INITIAL).store(0, Ordering::Relaxed);
    TIMER_OF_NAPS.call_once(|| timer);
    Ok(())
}

/// Waits until the deadline, or for a short while.
pub(crate) fn nap(deadline_ns: Option<u64>) {
    let start_ns = time::now_ns();
    let left_ns = deadline_ns.unwrap_or(u64::MAX).saturating_sub(start_ns).min(MAX_NAP_NS);
    if left_ns == 0 {
        return;
    }
    let timer = match TIMER_OF_NAPS.get() {
        Some(timer) if left_ns > SPIN_NS => timer,
        _ => return spin_until(start_ns + left_ns.min(SPIN_NS)),
    };
    // A nap that follows another one at once means that nothing came meanwhile: then it may be a long one.
    let last_end_ns = LAST_END_NS.load(Ordering::Relaxed);
    if start_ns.saturating_sub(last_end_ns) < SPIN_NS {
        timer.halt_for(left_ns);
    } else {
        spin_until(start_ns + SPIN_NS);
    }
    LAST_END_NS.store(time::now_ns(), Ordering::Relaxed);
}

fn spin_until(end_ns: u64) {
    while time::now_ns() < end_ns {
        core::hint::spin_loop();
    }
}

impl Timer {
    fn register(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: the offsets above lie inside the page that was mapped.
        let register = unsafe { self.registers.byte_add(offset) };
        // SAFETY: as above; a device register is never anything but an integer.
        unsafe { register.as_ref() }
    }

    fn halt_for(&self, ns: u64) {
        let ticks = (ns * self.ticks_per_ms / 1_000_000).clamp(1, u32::MAX.into());
        self.register(TIMER_INITIAL).store(ticks as u32, Ordering::Relaxed);
        // SAFETY: the only interrupt that can come is the timer's (or a spurious one), whose stub changes no
        // register; `sti` takes effect behind the `hlt`, so none is lost between the two.
        unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
    }
}
