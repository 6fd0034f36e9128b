//! The instruction that calls Xen: `syscall` for a PV guest, `vmcall` or `vmmcall` for a PVH guest
//! (public/arch-x86/xen-x86_64.h). Number in rax, arguments in rdi, rsi, rdx, r10, r8, result in rax; a PV
//! guest loses rcx and r11. What the numbers mean is for the callers to know.

use core::arch::asm;
use core::sync::atomic::{AtomicU8, Ordering};

/// The instruction that reaches Xen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Gate {
    /// There is no Xen: every call fails with [`ENOSYS`].
    None = 0,
    /// `syscall`, for PV.
    Syscall = 1,
    /// `vmcall`, for PVH on Intel's virtualisation.
    Vmcall = 2,
    /// `vmmcall`, for PVH on AMD's virtualisation.
    Vmmcall = 3,
}

/// "Function not implemented" as Xen returns it (public/errno.h).
pub const ENOSYS: i64 = -38;

static GATE: AtomicU8 = AtomicU8::new(Gate::None as u8);

/// Sets the instruction that [`call`] uses.
///
/// # Safety
/// The instruction must be the one that this machine has: another one is an invalid opcode, or a system call
/// into nowhere.
pub unsafe fn set_gate(gate: Gate) {
    GATE.store(gate as u8, Ordering::Relaxed);
}

/// Calls Xen with up to five arguments. What Xen reads and writes through them is memory to the compiler.
///
/// # Safety
/// The arguments must be what the hypercall of this number demands; pointers among them must be valid for what
/// it reads and writes; and what it does to the machine (mappings above all) must be sound.
#[inline(never)]
pub unsafe fn call(number: u64, args: [u64; 5]) -> i64 {
    let [a, b, c, d, e] = args;
    let result: i64;
    match GATE.load(Ordering::Relaxed) {
        // SAFETY: set_gate's caller vouches for the instruction, ours for the arguments. Xen preserves all
        // registers but rax, and `syscall` itself overwrites rcx and r11.
        1 => unsafe {
            asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c,
                in("r10") d, in("r8") e, out("rcx") _, out("r11") _, options(nostack));
        },
        // SAFETY: as above; `vmcall` overwrites nothing but rax.
        2 => unsafe {
            asm!("vmcall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c,
                in("r10") d, in("r8") e, options(nostack));
        },
        // SAFETY: as above; `vmmcall` overwrites nothing but rax.
        3 => unsafe {
            asm!("vmmcall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c,
                in("r10") d, in("r8") e, options(nostack));
        },
        _ => result = ENOSYS,
    }
    result
}
