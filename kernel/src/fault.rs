//! Panics and exceptions: a report on the console, then a crash shutdown. Nothing is ever resumed. Under PV the
//! handlers are Xen's trap table; else an IDT whose vectors are handled on a stack of their own, so that even
//! an overflown stack is reported. (Under PV there is no second stack: Xen itself ends a guest whose stack has
//! overflown, and says so in its own log.)

use core::arch::{asm, global_asm};
use core::fmt;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use drayage_entry::Platform;
use spin::Once;
use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, Segment};
use x86_64::instructions::tables::{lidt, load_tss};
use x86_64::registers::control::Cr2;
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable, SegmentSelector};
use x86_64::structures::tss::TaskStateSegment;

use crate::console::print_emergency;
use crate::exit::{Exit, exit, stop};
use crate::hypercall::{self, ShutdownReason, TrapInfo, XenResult};
use crate::{idle, shared_info};

global_asm!(include_str!("fault.s"), options(att_syntax));

unsafe extern "C" {
    static drayage_fault_stubs: [u64; VECTORS];
    static drayage_fault_stubs_pv: [u64; VECTORS];
    static drayage_fault_stack_top: u8;
    static drayage_stack_guard: u8;
    static drayage_timer_stub: u8;
    static drayage_spurious_stub: u8;
}

const VECTORS: usize = 32;
/// The exceptions, and the two interrupts of a machine without Xen.
const GATES: usize = idle::SPURIOUS_VECTOR as usize + 1;
const PAGE_FAULT: u64 = 14;

const NAMES: [&str; VECTORS] = [
    "divide error",
    "debug",
    "non-maskable interrupt",
    "breakpoint",
    "overflow",
    "bound range exceeded",
    "invalid opcode",
    "device not available",
    "double fault",
    "coprocessor segment overrun",
    "invalid TSS",
    "segment not present",
    "stack fault",
    "general protection fault",
    "page fault",
    "vector 15",
    "floating point error",
    "alignment check",
    "machine check",
    "SIMD floating point error",
    "virtualisation exception",
    "control protection exception",
    "vector 22",
    "vector 23",
    "vector 24",
    "vector 25",
    "vector 26",
    "vector 27",
    "hypervisor injection exception",
    "VMM communication exception",
    "security exception",
    "vector 31",
];

/// What fault.s leaves on the stack.
#[repr(C)]
struct Frame {
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    rbp: u64,
    rdi: u64,
    rsi: u64,
    rdx: u64,
    rcx: u64,
    rbx: u64,
    rax: u64,
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  rip {:#018x} cs {:#06x} rflags {:#010x}", self.rip, self.cs, self.rflags)?;
        writeln!(f, "  rsp {:#018x} ss {:#06x} error {:#x}", self.rsp, self.ss, self.error)?;
        writeln!(f, "  rax {:#018x} rbx {:#018x} rcx {:#018x}", self.rax, self.rbx, self.rcx)?;
        writeln!(f, "  rdx {:#018x} rsi {:#018x} rdi {:#018x}", self.rdx, self.rsi, self.rdi)?;
        writeln!(f, "  rbp {:#018x} r8  {:#018x} r9  {:#018x}", self.rbp, self.r8, self.r9)?;
        writeln!(f, "  r10 {:#018x} r11 {:#018x} r12 {:#018x}", self.r10, self.r11, self.r12)?;
        write!(f, "  r13 {:#018x} r14 {:#018x} r15 {:#018x}", self.r13, self.r14, self.r15)
    }
}

/// Installs the exception handlers.
///
/// # Errors
/// What Xen says about the trap table of a PV guest.
pub(crate) fn install(platform: Platform) -> XenResult<()> {
    match platform {
        Platform::XenPv => install_pv(),
        Platform::XenPvh | Platform::NoXen => {
            install_idt();
            Ok(())
        }
    }
}

fn install_pv() -> XenResult<()> {
    const FLAT_KERNEL_CODE: u16 = 0xe033; // public/arch-x86/xen-x86_64.h, FLAT_RING3_CS64
    let mut table =
        [TrapInfo { vector: 0, flags: 0, code_segment: FLAT_KERNEL_CODE, address: 0 }; VECTORS + 1];
    // SAFETY: fault.s defines the table of stubs.
    let stubs = unsafe { &drayage_fault_stubs_pv };
    for (vector, (entry, stub)) in table.iter_mut().zip(stubs).enumerate() {
        entry.vector = vector as u8;
        entry.address = *stub;
    }
    // SAFETY: the last entry's address is 0, and the stubs take Xen's frame.
    unsafe { hypercall::set_trap_table(&table) }.map(drop)
}

fn install_idt() {
    static TSS: Once<TaskStateSegment> = Once::new();
    static GDT: Once<(GlobalDescriptorTable, SegmentSelector, SegmentSelector)> = Once::new();
    static IDT: Once<[[u64; 2]; GATES]> = Once::new();

    let tss = TSS.call_once(|| {
        let mut tss = TaskStateSegment::new();
        tss.interrupt_stack_table[0] = VirtAddr::from_ptr(&raw const drayage_fault_stack_top);
        tss
    });
    let (gdt, code, task) = GDT.call_once(|| {
        let mut gdt = GlobalDescriptorTable::new();
        let code = gdt.append(Descriptor::kernel_code_segment());
        // At 0x10, where the entry code's data segments point.
        gdt.append(Descriptor::kernel_data_segment());
        let task = gdt.append(Descriptor::tss_segment(tss));
        (gdt, code, task)
    });
    gdt.load();
    // SAFETY: the selector is that of the 64-bit code segment just loaded.
    unsafe { CS::set_reg(*code) };
    // SAFETY: the selector is that of the task state segment just loaded.
    unsafe { load_tss(*task) };

    let idt = IDT.call_once(|| {
        // SAFETY: fault.s defines the table of stubs.
        let stubs = unsafe { &drayage_fault_stubs };
        let mut gates = [[0; 2]; GATES];
        gates.iter_mut().zip(stubs).for_each(|(slot, stub)| *slot = gate(*stub, *code));
        let timer = (&raw const drayage_timer_stub).addr() as u64;
        gates[usize::from(idle::TIMER_VECTOR)] = gate(timer, *code);
        let spurious = (&raw const drayage_spurious_stub).addr() as u64;
        gates[usize::from(idle::SPURIOUS_VECTOR)] = gate(spurious, *code);
        gates
    });
    let pointer =
        DescriptorTablePointer { limit: (size_of_val(idt) - 1) as u16, base: VirtAddr::from_ptr(idt) };
    // SAFETY: the table is a static of gates, some valid and the others marked as absent.
    unsafe { lidt(&pointer) };
}

/// Returns a 64-bit interrupt gate on the first stack of the TSS (Intel SDM volume 3, "64-bit IDT gate
/// descriptors").
fn gate(handler: u64, code: SegmentSelector) -> [u64; 2] {
    const PRESENT_INTERRUPT_GATE: u64 = 0x8e00 << 32;
    const FIRST_STACK: u64 = 1 << 32;
    let low = (handler & 0xffff) | (u64::from(code.0) << 16) | ((handler >> 16) & 0xffff) << 48;
    [low | FIRST_STACK | PRESENT_INTERRUPT_GATE, handler >> 32]
}

/// Reports an exception.
///
/// # Safety
/// Called by fault.s alone, with the frame that it made.
#[unsafe(no_mangle)]
unsafe extern "C" fn drayage_fault(frame: *const Frame) -> ! {
    // SAFETY: fault.s passes the address of the frame on its stack.
    let frame = unsafe { &*frame };
    let name = NAMES.get(frame.vector as usize).copied().unwrap_or("unknown exception");
    once_or_stop();
    if frame.vector == PAGE_FAULT {
        let address = match frame.cs & 3 {
            0 => Cr2::read_raw(),
            _ => shared_info::get().map_or(0, |info| info.fault_address()),
        };
        let access = match frame.error & 0b1_0010 {
            0b1_0000 | 0b1_0010 => "executing",
            0b0_0010 => "writing",
            _ => "reading",
        };
        let why = if frame.error & 1 == 0 { "not mapped" } else { "not allowed" };
        let hint = hint(address);
        print_emergency(format_args!("\nEXCEPTION: {name} {access} {address:#x}: {why}{hint}\n{frame}\n"));
        crash(format_args!("{name} {access} {address:#x} at {:#x}{hint}", frame.rip))
    }
    print_emergency(format_args!("\nEXCEPTION: {name}\n{frame}\n"));
    crash(format_args!("{name} at {:#x}", frame.rip))
}

/// Returns what a page fault's address says about its cause.
fn hint(address: u64) -> &'static str {
    let guard = (&raw const drayage_stack_guard).addr() as u64;
    match address {
        0..4096 => " (null pointer)",
        _ if (guard..guard + 4096).contains(&address) => " (stack overflow)",
        _ => "",
    }
}

/// Stops without a word when a report itself goes wrong.
fn once_or_stop() {
    static REPORTING: AtomicBool = AtomicBool::new(false);
    if REPORTING.swap(true, Ordering::Relaxed) {
        stop(ShutdownReason::Crash, 1);
    }
}

fn crash(why: fmt::Arguments<'_>) -> ! {
    exit(Exit::Failed(why))
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let (rsp, rbp): (u64, u64);
    // SAFETY: copies two registers.
    unsafe { asm!("mov {}, rsp", "mov {}, rbp", out(reg) rsp, out(reg) rbp, options(nomem, nostack)) };
    once_or_stop();
    print_emergency(format_args!("\nPANIC: {info}\n  rsp {rsp:#018x} rbp {rbp:#018x}\n"));
    match info.location() {
        Some(place) => crash(format_args!("panic at {}:{}: {}", place.file(), place.line(), info.message())),
        None => crash(format_args!("panic: {}", info.message())),
    }
}
