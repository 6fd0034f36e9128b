//! What time it is: Xen's paravirtual clock, or under plain QEMU a TSC whose frequency the interval timer told.
//! Sleeping is here too, because Xen's poll takes both a time and ports.

use core::arch::x86_64::_rdtsc;
use core::sync::atomic::{AtomicU64, Ordering};

use drayage_kernel::pvclock::ClockParams;
use spin::Once;
use x86_64::instructions::port::Port as IoPort;

use crate::events::Port;
use crate::hypercall::arguments::MAX_PORTS;
use crate::{hypercall, idle, shared_info, xenstore};

static TSC_CLOCK: Once<ClockParams> = Once::new();
/// What the clock last said.
static LAST_NS: AtomicU64 = AtomicU64::new(0);

/// Returns nanoseconds on a clock that only runs forwards: under Xen the host's system time (so that two guests
/// of one host can compare), else the time since boot.
#[inline(never)]
pub(crate) fn now_ns() -> u64 {
    let params = match shared_info::get() {
        Some(info) => info.clock_params(),
        None => match TSC_CLOCK.get() {
            Some(params) => *params,
            None => return 0,
        },
    };
    let now_ns = params.system_time_ns(tsc());
    LAST_NS.store(now_ns, Ordering::Relaxed);
    now_ns
}

/// Returns what the clock said when it was last looked at, which the loop does in every round. Where Xen emulates the
/// time stamp counter, a look is an exit from the guest.
#[inline]
pub(crate) fn recent_ns() -> u64 {
    LAST_NS.load(Ordering::Relaxed)
}

/// Returns nanoseconds since 1970, where somebody knows. Xen 4.17 tells a PVH guest only when its clock is set.
pub(crate) fn wall_clock_ns() -> Option<u64> {
    let base_ns = shared_info::get()?.wall_clock_base_ns();
    (base_ns != 0).then(|| base_ns.wrapping_add(now_ns()))
}

/// Returns the processor's time stamp counter.
#[inline]
pub(crate) fn tsc() -> u64 {
    // SAFETY: every x86-64 processor has it; Xen emulates it for a PV guest where it must.
    unsafe { _rdtsc() }
}

/// Sleeps until one of the ports is pending, xenstore has something to say, or the deadline is reached. May
/// return early for no reason. Whoever calls it has cleared the ports' pending bits and checked their rings.
pub(crate) fn sleep_until(deadline_ns: Option<u64>, ports: &[Port]) {
    if shared_info::get().is_none() {
        idle::nap(deadline_ns);
        return;
    }
    // More ports than fit: none at all makes Xen wake for every one of them (nr_ports 0 polls the domain), but
    // does not look at bits that are set already, so it must not be for long.
    let (count, deadline_ns) = if ports.len() >= MAX_PORTS {
        (0, Some(deadline_ns.unwrap_or(u64::MAX).min(now_ns() + 1_000_000)))
    } else {
        (MAX_PORTS, deadline_ns)
    };
    let deadline_ns = match deadline_ns {
        // By the look that the deadline was reckoned from: Xen sees to one that has passed meanwhile.
        Some(deadline_ns) if deadline_ns <= recent_ns() => return,
        Some(deadline_ns) => deadline_ns,
        None => 0,
    };
    let ports = ports.iter().copied().chain(xenstore::port()).map(|port| port.0);
    hypercall::poll(ports.take(count), deadline_ns);
}

/// Measures the TSC against the interval timer (Intel 8254, channel 2, mode 0; its clock is 1 193 182 Hz), for
/// machines without Xen.
pub(crate) fn calibrate_tsc() {
    const TICKS: u16 = 11_932; // 10 ms
    let mut gate = IoPort::<u8>::new(0x61);
    let mut command = IoPort::<u8>::new(0x43);
    let mut channel2 = IoPort::<u8>::new(0x42);
    // SAFETY: without Xen we are in ring 0 of a PC, and nobody else uses the timer or the speaker's gate.
    let speaker = unsafe { gate.read() };
    // SAFETY: as above: gate on, speaker off.
    unsafe { gate.write((speaker & !2) | 1) };
    // SAFETY: as above: channel 2, both bytes, mode 0.
    unsafe { command.write(0xb0) };
    // SAFETY: as above.
    unsafe { channel2.write(TICKS as u8) };
    // SAFETY: as above; the count starts with this byte.
    unsafe { channel2.write((TICKS >> 8) as u8) };
    let start = tsc();
    // A machine without the timer never raises the output: give up after what must be far more than 10 ms.
    while tsc() - start < 20_000_000_000 {
        // SAFETY: as above; bit 5 is the timer's output.
        if unsafe { gate.read() } & 0x20 != 0 {
            break;
        }
    }
    let hertz = ((tsc() - start) * 1_193_182 / u64::from(TICKS)).max(1_000_000);
    TSC_CLOCK.call_once(|| ClockParams::from_frequency(tsc(), hertz));
}
