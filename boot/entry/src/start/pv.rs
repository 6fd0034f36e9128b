//! The PV reader: from `struct start_info` (public/xen.h) to a [`BootInfo`].

use core::slice;

use crate::hypercall::{self, Gate};
use crate::{BootInfo, Channel, CommandLine, PAGE_BYTES, Platform, PvBoot, Range, Ranges};

/// `struct start_info`, as far as a guest kernel reads it.
#[repr(C)]
struct StartInfo {
    magic: [u8; 32],
    nr_pages: u64,
    shared_info: u64,
    flags: u32,
    store_mfn: u64,
    store_evtchn: u32,
    console_mfn: u64,
    console_evtchn: u32,
    pt_base: u64,
    nr_pt_frames: u64,
    mfn_list: u64,
    mod_start: u64,
    mod_len: u64,
    cmd_line: [u8; 1024],
}

const _: () = assert!(core::mem::offset_of!(StartInfo, cmd_line) == 128);

/// Where Xen maps its machine-to-pseudo-physical table for every PV guest (public/arch-x86/xen-x86_64.h).
const MACHINE_TO_PHYS: usize = 0xffff_8000_0000_0000;

/// Returns the address of the page with this machine frame number.
///
/// # Safety
/// The frame must belong to this guest, which runs as PV with VIRT_BASE 0.
unsafe fn address_of(machine_frame: u64) -> u64 {
    let table = core::ptr::with_exposed_provenance::<u64>(MACHINE_TO_PHYS);
    // SAFETY: the table has an entry for every frame of the host.
    let entry = unsafe { table.add(machine_frame as usize) };
    // SAFETY: Xen maps the table readable into every PV guest.
    (unsafe { entry.read_volatile() }) * PAGE_BYTES
}

/// Returns the memory behind the entries of the frame list. One without a frame is a hole: `~0`, or a foreign
/// frame's top bit.
fn populated(frames: &[u64]) -> Ranges {
    let mut ram = Ranges::new();
    let mut at = 0;
    for run in frames.chunk_by(|a, b| (a >> 52 == 0) == (b >> 52 == 0)) {
        let end = at + run.len() as u64 * PAGE_BYTES;
        if run[0] >> 52 == 0 {
            ram.add(Range::new(at, end));
        }
        at = end;
    }
    ram
}

/// Continues the PV entry.
///
/// # Safety
/// Called once, by start.s, with the address that Xen's domain builder put into rsi.
#[unsafe(no_mangle)]
unsafe extern "C" fn drayage_start_pv(start_info: *const StartInfo) -> ! {
    // SAFETY: the PV entry is taken by Xen PV alone, where `syscall` is the hypercall.
    unsafe { hypercall::set_gate(Gate::Syscall) };
    // SAFETY: rsi points to the start info page, which nobody writes during the boot.
    let info = unsafe { &*start_info };
    // SAFETY: the builder allocated the xenstore page for this guest.
    let store_page = unsafe { address_of(info.store_mfn) };
    // SAFETY: likewise the console page; a domU has no other console.
    let console_page = unsafe { address_of(info.console_mfn) };
    let start_info_page = Range::new(start_info.addr() as u64, start_info.addr() as u64 + PAGE_BYTES);
    let frame_list = Range::new(info.mfn_list, info.mfn_list + info.nr_pages * 8).grow_to_pages();

    // SAFETY: mfn_list has nr_pages entries, mapped by the builder and written by nobody.
    let frames = unsafe {
        slice::from_raw_parts(
            core::ptr::with_exposed_provenance::<u64>(info.mfn_list as usize),
            info.nr_pages as usize,
        )
    };
    let ram = populated(frames);
    let mut taken = Ranges::new();
    taken.add(Range::new(0, PAGE_BYTES));
    taken.add(super::image());
    taken.add(frame_list);
    taken.add(start_info_page);
    taken.add(Range::new(store_page, store_page + PAGE_BYTES));
    taken.add(Range::new(console_page, console_page + PAGE_BYTES));
    taken.add(Range::new(info.pt_base, info.pt_base + info.nr_pt_frames * PAGE_BYTES));
    // The boot stack lies behind the page tables and is left already. A ramdisk nobody asked for stays put.
    taken.add(Range::new(info.mod_start, info.mod_start + info.mod_len).grow_to_pages());
    let mut reclaimable = Ranges::new();
    reclaimable.add(frame_list);
    reclaimable.add(start_info_page);
    reclaimable.add(super::boot_tables());

    // SAFETY: cmd_line is 1024 bytes inside the start info page.
    let command_line = unsafe { slice::from_raw_parts(info.cmd_line.as_ptr(), info.cmd_line.len()) };
    super::enter(BootInfo {
        platform: Platform::XenPv,
        command_line: CommandLine::from_bytes(command_line),
        ram,
        taken,
        reclaimable,
        console: Some(Channel { page: console_page, port: info.console_evtchn }),
        store: Some(Channel { page: store_page, port: info.store_evtchn }),
        pv: Some(PvBoot {
            shared_info: info.shared_info,
            page_tables: info.pt_base,
            frame_list: info.mfn_list,
        }),
    })
}
