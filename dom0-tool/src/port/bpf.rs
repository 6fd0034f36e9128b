//! The XDP program that hands one queue's frames to an AF_XDP socket, by bpf(2) (`linux/bpf.h`).
//!
//! It knows maps, programs and links, each of which goes with its descriptor, and nothing of rings.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_MAP_TYPE_XSKMAP: u32 = 17;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const BPF_FUNC_REDIRECT_MAP: i32 = 51;
const XDP_PASS: i32 = 2;
/// Where `struct xdp_md` has the number of the queue.
const RX_QUEUE_INDEX: i16 = 16;
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// Returns constants and layouts by their names in the headers, so that a test outside can compare them.
pub(super) fn constants() -> Vec<(&'static str, u64)> {
    vec![
        ("BPF_MAP_CREATE", BPF_MAP_CREATE as u64),
        ("BPF_MAP_UPDATE_ELEM", BPF_MAP_UPDATE_ELEM as u64),
        ("BPF_PROG_LOAD", BPF_PROG_LOAD as u64),
        ("BPF_LINK_CREATE", BPF_LINK_CREATE as u64),
        ("BPF_MAP_TYPE_XSKMAP", BPF_MAP_TYPE_XSKMAP.into()),
        ("BPF_PROG_TYPE_XDP", BPF_PROG_TYPE_XDP.into()),
        ("BPF_XDP", BPF_XDP.into()),
        ("BPF_FUNC_redirect_map", BPF_FUNC_REDIRECT_MAP as u64),
        ("XDP_PASS", XDP_PASS as u64),
        ("XDP_FLAGS_SKB_MODE", XDP_FLAGS_SKB_MODE.into()),
        ("XDP_FLAGS_DRV_MODE", XDP_FLAGS_DRV_MODE.into()),
        ("offsetof(struct xdp_md, rx_queue_index)", RX_QUEUE_INDEX as u64),
        ("offsetof(union bpf_attr, max_entries)", 12),
        ("offsetof(union bpf_attr, value)", 16),
        ("offsetof(union bpf_attr, insns)", 8),
        ("offsetof(union bpf_attr, license)", 16),
        ("offsetof(union bpf_attr, link_create.target_ifindex)", 4),
        ("offsetof(union bpf_attr, link_create.attach_type)", 8),
        ("offsetof(union bpf_attr, link_create.flags)", 12),
    ]
}

/// An instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
struct Instruction {
    code: u8,
    /// The destination in the lower half, the source in the upper one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// Returns the program: redirect into the map by the queue's number; a queue that is not in it passes on.
fn program(map: i32) -> [Instruction; 6] {
    let op = |code, registers, offset, immediate| Instruction { code, registers, offset, immediate };
    [
        op(0x61, 0x12, RX_QUEUE_INDEX, 0), // r2 = *(u32 *)(r1 + rx_queue_index)
        op(0x18, 0x11, 0, map),            // r1 = the map (BPF_PSEUDO_MAP_FD), in two slots
        op(0x00, 0x00, 0, 0),              // its upper half
        op(0xb7, 0x03, 0, XDP_PASS),       // r3 = XDP_PASS
        op(0x85, 0x00, 0, BPF_FUNC_REDIRECT_MAP), // r0 = redirect_map(r1, r2, r3)
        op(0x95, 0x00, 0, 0),              // return r0
    ]
}

/// The first words of `union bpf_attr`, as far as we fill them in; the kernel takes the rest for zero.
#[repr(C, align(8))]
#[derive(Default)]
struct Attributes {
    words: [u32; 16],
}

impl Attributes {
    fn of(words: &[u32]) -> Self {
        let mut all = Self::default();
        all.words[..words.len()].copy_from_slice(words);
        all
    }

    /// Writes a pointer, or another value of eight bytes.
    fn set_long(&mut self, at: usize, value: u64) {
        self.words[at / 4] = value as u32;
        self.words[at / 4 + 1] = (value >> 32) as u32;
    }

    /// # Safety
    /// Every pointer in it points to what the command expects there, for as long as the call takes.
    unsafe fn call(&self, command: libc::c_int) -> io::Result<libc::c_int> {
        let len = size_of::<Self>();
        // SAFETY: pointer and length describe a live `union bpf_attr`, and the caller vouches for what it
        // points to.
        let rc = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *self, len) };
        if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(rc as libc::c_int) }
    }

    /// Makes something that has a descriptor.
    ///
    /// # Safety
    /// As for [`call`](Self::call); the command returns a new descriptor.
    unsafe fn make(&self, command: libc::c_int) -> io::Result<OwnedFd> {
        // SAFETY: the caller vouches for it.
        let fd = unsafe { self.call(command) }?;
        // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// Where the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the driver.
    Driver,
    /// In the stack.
    Stack,
}

/// The program and its map.
#[derive(Debug)]
pub(super) struct Program {
    map: OwnedFd,
    code: OwnedFd,
}

impl Program {
    /// Loads the program, for queues up to `queue`.
    pub(super) fn load(queue: u32) -> io::Result<Self> {
        let map = Attributes::of(&[BPF_MAP_TYPE_XSKMAP, 4, 4, queue.saturating_add(1)]);
        // SAFETY: there is no pointer in it; the command makes a descriptor.
        let map = unsafe { map.make(BPF_MAP_CREATE) }?;
        let code = program(map.as_raw_fd());
        let license = c"Dual MIT/GPL";
        let mut load = Attributes::of(&[BPF_PROG_TYPE_XDP, code.len() as u32]);
        load.set_long(8, code.as_ptr() as u64);
        load.set_long(16, license.as_ptr() as u64);
        // SAFETY: `insns` points to as many live instructions as `insn_cnt` says, `license` to a string with its
        // NUL; the command makes a descriptor.
        let code = unsafe { load.make(BPF_PROG_LOAD) }?;
        Ok(Self { map, code })
    }

    /// Has a queue's frames go to a socket.
    pub(super) fn redirect(&self, queue: u32, socket: &OwnedFd) -> io::Result<()> {
        let value = socket.as_raw_fd() as u32;
        let mut update = Attributes::of(&[self.map.as_raw_fd() as u32]);
        update.set_long(8, &raw const queue as u64);
        update.set_long(16, &raw const value as u64);
        // SAFETY: key and value point to live words, which is what this map's are.
        unsafe { update.call(BPF_MAP_UPDATE_ELEM) }.map(drop)
    }

    /// Has the program run for a device until the link is closed.
    pub(super) fn attach(&self, device: u32, place: Place) -> io::Result<OwnedFd> {
        let flags = match place {
            Place::Driver => XDP_FLAGS_DRV_MODE,
            Place::Stack => XDP_FLAGS_SKB_MODE,
        };
        let link = Attributes::of(&[self.code.as_raw_fd() as u32, device, BPF_XDP, flags]);
        // SAFETY: there is no pointer in it; the command makes a descriptor.
        unsafe { link.make(BPF_LINK_CREATE) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_these_bytes() {
        let bytes: Vec<u8> = program(0x0a0b)
            .iter()
            .flat_map(|i| {
                let ([a, b], [c, d, e, f]) = (i.offset.to_le_bytes(), i.immediate.to_le_bytes());
                [i.code, i.registers, a, b, c, d, e, f]
            })
            .collect();
        let expected = [
            [0x61, 0x12, 16, 0, 0, 0, 0, 0],
            [0x18, 0x11, 0, 0, 0x0b, 0x0a, 0, 0],
            [0; 8],
            [0xb7, 3, 0, 0, 2, 0, 0, 0],
            [0x85, 0, 0, 0, 51, 0, 0, 0],
            [0x95, 0, 0, 0, 0, 0, 0, 0],
        ];
        assert_eq!(bytes, expected.concat());
        assert_eq!(size_of::<Instruction>(), 8);
    }
}
