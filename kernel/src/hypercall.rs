//! Xen's calls by name: structures packed, errors typed. The instruction itself is drayage-entry's. It knows
//! nothing of what the callers do with pages, ports and grants.

pub(crate) mod arguments;

use core::fmt;
use core::mem::offset_of;

use arguments::Arguments;
use drayage_entry::hypercall::call;

/// This domain, in calls that name one.
pub(crate) const DOMID_SELF: u16 = 0x7ff0;

/// What Xen answered instead of success: a negative errno (public/errno.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct XenError(pub(crate) i64);

impl fmt::Display for XenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            -1 => "not permitted",
            -2 => "no such thing",
            -3 => "no such domain",
            -12 => "out of memory",
            -14 => "bad address",
            -16 => "busy",
            -22 => "invalid argument",
            -28 => "no space",
            -38 => "not implemented",
            _ => return write!(f, "xen error {}", self.0),
        };
        write!(f, "xen error {}: {name}", self.0)
    }
}

/// What a call that succeeded returned.
pub(crate) type XenResult<T = u64> = Result<T, XenError>;

fn check(result: i64) -> XenResult {
    u64::try_from(result).map_err(|_| XenError(result))
}

/// Returns the address of a structure that Xen reads and writes.
fn address_of<T>(value: &mut T) -> u64 {
    core::ptr::from_mut(value).expose_provenance() as u64
}

// ---- scheduling (public/sched.h) -----------------------------------------------------------------------

const SCHED_OP: u64 = 29;

/// Why a domain ends, as `xl` sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShutdownReason {
    /// Clean end.
    PowerOff = 0,
    /// End, and be started anew.
    Reboot = 1,
    /// Something went wrong.
    Crash = 3,
}

/// Lets other domains run.
pub(crate) fn yield_now() {
    // SAFETY: SCHEDOP_yield takes nothing and touches no memory.
    unsafe { call(SCHED_OP, [0, 0, 0, 0, 0]) };
}

/// Ends the domain. Returns only when there is no Xen.
pub(crate) fn shutdown(reason: ShutdownReason) {
    let mut argument = reason as u32;
    // SAFETY: SCHEDOP_shutdown reads one u32.
    unsafe { call(SCHED_OP, [2, address_of(&mut argument), 0, 0, 0]) };
}

/// Blocks until one of the ports is pending or the system time is reached; 0 is no time. Ports beyond
/// [`MAX_PORTS`](arguments::MAX_PORTS) are not waited for. The rules are in `events`.
pub(crate) fn poll(ports: impl Iterator<Item = u32>, deadline_ns: u64) {
    let address = Arguments::get().poll(ports, deadline_ns);
    // SAFETY: SCHEDOP_poll reads the structure and its ports. An error (a port beyond the limit) is as good as a spurious
    // wake-up, which every caller must bear.
    unsafe { call(SCHED_OP, [3, address, 0, 0, 0]) };
}

// ---- virtual processors (public/vcpu.h) ----------------------------------------------------------------

const VCPU_OP: u64 = 24;

/// Returns for how long the first virtual processor has run in all, in nanoseconds.
pub(crate) fn running_ns() -> XenResult {
    /// `struct vcpu_runstate_info`.
    #[repr(C)]
    struct Runstate {
        state: i32,
        since_ns: u64,
        running_ns: u64,
        others_ns: [u64; 3],
    }
    const _: () = assert!(size_of::<Runstate>() == 48 && offset_of!(Runstate, running_ns) == 16);
    let mut argument = Runstate { state: 0, since_ns: 0, running_ns: 0, others_ns: [0; 3] };
    // SAFETY: VCPUOP_get_runstate_info of processor 0 writes one vcpu_runstate_info.
    check(unsafe { call(VCPU_OP, [4, 0, address_of(&mut argument), 0, 0]) })?;
    Ok(argument.running_ns)
}

// ---- event channels (public/event_channel.h) -----------------------------------------------------------

const EVENT_CHANNEL_OP: u64 = 32;

/// Makes a port to which a remote domain may bind.
pub(crate) fn event_alloc_unbound(remote: u16) -> XenResult<u32> {
    /// `struct evtchn_alloc_unbound`.
    #[repr(C)]
    struct AllocUnbound {
        domain: u16,
        remote: u16,
        port: u32,
    }
    const _: () = assert!(size_of::<AllocUnbound>() == 8);
    let mut argument = AllocUnbound { domain: DOMID_SELF, remote, port: 0 };
    // SAFETY: EVTCHNOP_alloc_unbound reads and writes one evtchn_alloc_unbound.
    check(unsafe { call(EVENT_CHANNEL_OP, [6, address_of(&mut argument), 0, 0, 0]) })?;
    Ok(argument.port)
}

/// Closes a port.
pub(crate) fn event_close(port: u32) -> XenResult {
    let mut port = port;
    // SAFETY: EVTCHNOP_close reads one port.
    check(unsafe { call(EVENT_CHANNEL_OP, [3, address_of(&mut port), 0, 0, 0]) })
}

/// Notifies the other end of a port.
#[inline]
pub(crate) fn event_send(port: u32) -> XenResult {
    let address = Arguments::get().send(port);
    // SAFETY: EVTCHNOP_send reads one port.
    check(unsafe { call(EVENT_CHANNEL_OP, [4, address, 0, 0, 0]) })
}

// ---- memory (public/memory.h, public/xen.h) ------------------------------------------------------------

const MMU_UPDATE: u64 = 1;
const MEMORY_OP: u64 = 12;
const UPDATE_VA_MAPPING: u64 = 14;
const MMUEXT_OP: u64 = 26;

/// Which table `add_to_physmap` takes a page from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PhysmapSpace {
    /// The shared info page.
    SharedInfo = 0,
    /// Frames of the grant table.
    GrantTable = 1,
}

/// Puts a page of Xen's in place of one of ours (PVH). What was there is freed.
///
/// # Safety
/// The frame must be one that nothing else uses.
pub(crate) unsafe fn add_to_physmap(space: PhysmapSpace, index: u64, frame: u64) -> XenResult {
    /// `struct xen_add_to_physmap`.
    #[repr(C)]
    struct AddToPhysmap {
        domain: u16,
        size: u16,
        space: u32,
        index: u64,
        frame: u64,
    }
    const _: () = assert!(size_of::<AddToPhysmap>() == 24 && offset_of!(AddToPhysmap, index) == 8);
    let mut argument = AddToPhysmap { domain: DOMID_SELF, size: 0, space: space as u32, index, frame };
    // SAFETY: XENMEM_add_to_physmap reads one structure; our caller vouches for the frame.
    check(unsafe { call(MEMORY_OP, [7, address_of(&mut argument), 0, 0, 0]) })
}

/// One change of a page table: the entry's machine address, and its new value.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MmuUpdate {
    /// Machine address of the entry; the lowest two bits are the command, 0 for an ordinary update.
    pub(crate) entry: u64,
    /// New value.
    pub(crate) value: u64,
}
const _: () = assert!(size_of::<MmuUpdate>() == 16);

/// Changes page table entries (PV).
///
/// # Safety
/// The changes must be sound: nothing that the program uses may lose its mapping or be mapped twice for writing
/// in a way that it does not expect.
pub(crate) unsafe fn mmu_update(updates: &[MmuUpdate]) -> XenResult {
    let list = updates.as_ptr().expose_provenance() as u64;
    // SAFETY: HYPERVISOR_mmu_update reads `len` requests; our caller vouches for what they do.
    check(unsafe { call(MMU_UPDATE, [list, updates.len() as u64, 0, DOMID_SELF.into(), 0]) })
}

/// Changes one page's mapping and drops it from the TLB (PV).
///
/// # Safety
/// As for [`mmu_update`].
pub(crate) unsafe fn update_va_mapping(address: u64, entry: u64) -> XenResult {
    const UVMF_INVLPG: u64 = 2;
    // SAFETY: three plain arguments; our caller vouches for what they do.
    check(unsafe { call(UPDATE_VA_MAPPING, [address, entry, UVMF_INVLPG, 0, 0]) })
}

/// Flushes this processor's TLB (PV).
pub(crate) fn flush_tlb() -> XenResult {
    /// `struct mmuext_op`.
    #[repr(C)]
    struct MmuExtOp {
        command: u32,
        arguments: [u64; 2],
    }
    const _: () = assert!(size_of::<MmuExtOp>() == 24 && offset_of!(MmuExtOp, arguments) == 8);
    const MMUEXT_TLB_FLUSH_LOCAL: u32 = 6;
    let mut op = MmuExtOp { command: MMUEXT_TLB_FLUSH_LOCAL, arguments: [0; 2] };
    // SAFETY: HYPERVISOR_mmuext_op reads one operation; a flush changes no mapping.
    check(unsafe { call(MMUEXT_OP, [address_of(&mut op), 1, 0, DOMID_SELF.into(), 0]) })
}

// ---- grants (public/grant_table.h) ---------------------------------------------------------------------

const GRANT_TABLE_OP: u64 = 20;

/// Returns how many frames the grant table has, and how many it may have.
pub(crate) fn grant_query_size() -> XenResult<(u32, u32)> {
    /// `struct gnttab_query_size`.
    #[repr(C)]
    struct QuerySize {
        domain: u16,
        frames: u32,
        max_frames: u32,
        status: i16,
    }
    const _: () = assert!(size_of::<QuerySize>() == 16 && offset_of!(QuerySize, status) == 12);
    let mut argument = QuerySize { domain: DOMID_SELF, frames: 0, max_frames: 0, status: 0 };
    // SAFETY: GNTTABOP_query_size reads and writes one structure.
    check(unsafe { call(GRANT_TABLE_OP, [6, address_of(&mut argument), 1, 0, 0]) })?;
    if argument.status != 0 {
        return Err(XenError(argument.status.into()));
    }
    Ok((argument.frames, argument.max_frames))
}

/// Makes the grant table at least `frames.len()` long and returns its machine frames (PV).
pub(crate) fn grant_setup_table(frames: &mut [u64]) -> XenResult {
    /// `struct gnttab_setup_table`.
    #[repr(C)]
    struct SetupTable {
        domain: u16,
        frames: u32,
        status: i16,
        list: *mut u64,
    }
    const _: () = assert!(size_of::<SetupTable>() == 24 && offset_of!(SetupTable, status) == 8);
    let mut argument =
        SetupTable { domain: DOMID_SELF, frames: frames.len() as u32, status: 0, list: frames.as_mut_ptr() };
    // SAFETY: GNTTABOP_setup_table reads and writes the structure, and writes `frames` numbers to the list.
    check(unsafe { call(GRANT_TABLE_OP, [2, address_of(&mut argument), 1, 0, 0]) })?;
    if argument.status != 0 {
        return Err(XenError(argument.status.into()));
    }
    Ok(0)
}

// ---- the rest ------------------------------------------------------------------------------------------

/// Returns Xen's version as (major, minor).
pub(crate) fn xen_version() -> XenResult<(u16, u16)> {
    const XEN_VERSION: u64 = 17;
    // SAFETY: XENVER_version takes nothing and returns a number.
    let version = check(unsafe { call(XEN_VERSION, [0, 0, 0, 0, 0]) })?;
    Ok(((version >> 16) as u16, version as u16))
}

/// One entry of a PV guest's trap table (`struct trap_info`).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct TrapInfo {
    /// The exception's number.
    pub(crate) vector: u8,
    /// Bits 0 and 1: who may raise it by an instruction.
    pub(crate) flags: u8,
    /// Code segment of the handler.
    pub(crate) code_segment: u16,
    /// The handler; 0 ends the table.
    pub(crate) address: u64,
}
const _: () = assert!(size_of::<TrapInfo>() == 16 && offset_of!(TrapInfo, address) == 8);

/// Sets the exception handlers of a PV guest.
///
/// # Safety
/// The table must end in an entry with address 0, and the addresses must be handlers that expect Xen's frame.
pub(crate) unsafe fn set_trap_table(table: &[TrapInfo]) -> XenResult {
    // SAFETY: HYPERVISOR_set_trap_table reads entries up to the one with address 0; our caller vouches for them.
    check(unsafe { call(0, [table.as_ptr().expose_provenance() as u64, 0, 0, 0, 0]) })
}
