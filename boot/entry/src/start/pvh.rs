//! The PVH reader: from `struct hvm_start_info` to a [`BootInfo`], under Xen and under QEMU.

use core::arch::x86_64::__cpuid;

use pvh::start_info::reader::StartInfoReader;
use pvh::start_info::{MemmapTableEntry, MemmapType};

use crate::hypercall::{self, Gate};
use crate::{BootInfo, Channel, CommandLine, PAGE_BYTES, Platform, Range, Ranges};

/// HVM_PARAM_… (public/hvm/params.h).
const STORE_PFN: u32 = 1;
const STORE_EVTCHN: u32 = 2;
const CONSOLE_PFN: u32 = 17;
const CONSOLE_EVTCHN: u32 = 18;

/// Continues the PVH entry, in 64-bit mode with 0 to 4 GiB mapped to themselves.
///
/// # Safety
/// Called once, by start.s, with the address that the loader put into ebx.
#[unsafe(no_mangle)]
unsafe extern "C" fn drayage_start_pvh(start_info: u32) -> ! {
    let platform = detect_xen();
    let mut ram = Ranges::new();
    let mut command_line = CommandLine::from_bytes(b"");
    // SAFETY: ebx holds the address of the start info, and everything below 4 GiB is mapped to itself.
    if let Some(info) = unsafe { StartInfoReader::from_paddr_identity(start_info) } {
        command_line = CommandLine::from_bytes(info.cmdline().map_or(&[], |line| line.to_bytes()));
        let ram_only = |entry: &&MemmapTableEntry| entry.ty() == MemmapType::Ram;
        info.memmap().iter().filter(ram_only).for_each(|entry| {
            ram.add(Range::new(entry.addr, entry.addr.saturating_add(entry.size)).shrink_to_pages());
        });
    }
    let mut taken = Ranges::new();
    taken.add(Range::new(0, PAGE_BYTES));
    taken.add(super::image());
    super::enter(BootInfo {
        platform,
        command_line,
        ram,
        taken,
        reclaimable: Ranges::new(),
        console: channel(CONSOLE_PFN, CONSOLE_EVTCHN),
        store: channel(STORE_PFN, STORE_EVTCHN),
        pv: None,
    })
}

/// Looks for Xen's CPUID leaves (public/arch-x86/cpuid.h) and sets the hypercall instruction.
fn detect_xen() -> Platform {
    let signature = |base: u32| {
        let leaf = __cpuid(base);
        (leaf.ebx, leaf.ecx, leaf.edx) == (0x566e_6558, 0x6558_4d4d, 0x4d4d_566e) // "XenVMMXenVMM"
    };
    if !(0x4000_0000..0x4001_0000).step_by(0x100).any(signature) {
        return Platform::NoXen;
    }
    let vendor = __cpuid(0);
    let vendor = [vendor.ebx.to_le_bytes(), vendor.edx.to_le_bytes(), vendor.ecx.to_le_bytes()];
    let amd = matches!(vendor.as_flattened(), b"AuthenticAMD" | b"HygonGenuine");
    // SAFETY: the processor's vendor decides which of the two its virtualisation knows.
    unsafe { hypercall::set_gate(if amd { Gate::Vmmcall } else { Gate::Vmcall }) };
    Platform::XenPvh
}

/// Asks Xen where a shared page and its event channel are.
fn channel(page_param: u32, port_param: u32) -> Option<Channel> {
    let page = hvm_param(page_param)?;
    let port = u32::try_from(hvm_param(port_param)?).ok()?;
    (page != 0 && port != 0).then_some(Channel { page: page * PAGE_BYTES, port })
}

/// Reads an HVM parameter of this domain; `None` without Xen.
fn hvm_param(index: u32) -> Option<u64> {
    /// `struct xen_hvm_param`.
    #[repr(C)]
    struct Param {
        domain: u16,
        index: u32,
        value: u64,
    }
    const _: () = assert!(size_of::<Param>() == 16);
    const HYPERVISOR_HVM_OP: u64 = 34;
    const HVMOP_GET_PARAM: u64 = 1;
    const DOMID_SELF: u16 = 0x7ff0;
    let mut param = Param { domain: DOMID_SELF, index, value: 0 };
    let address = (&raw mut param).expose_provenance() as u64;
    // SAFETY: HVMOP_get_param reads and writes one xen_hvm_param at this address, which is ours.
    let result = unsafe { hypercall::call(HYPERVISOR_HVM_OP, [HVMOP_GET_PARAM, address, 0, 0, 0]) };
    (result == 0).then_some(param.value)
}
