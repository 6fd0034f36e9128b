//! What the kernel's main learns from whoever booted it: one plain struct, filled by the PV reader, by the PVH
//! reader (Xen's and QEMU's) or by a test. It knows nothing of how the kernel uses it.

use crate::Ranges;

/// Who runs the machine, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    /// A paravirtualised Xen guest: page tables are Xen's to write.
    XenPv,
    /// A Xen guest in a hardware container, without emulated devices.
    XenPvh,
    /// A machine without Xen, as `qemu -kernel` makes one.
    NoXen,
}

/// A page shared with a service of the control domain, and the event channel that goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channel {
    /// Address of the page; virtual and physical are the same at entry.
    pub page: u64,
    /// Our end of the event channel.
    pub port: u32,
}

/// What only a PV guest has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PvBoot {
    /// Machine address of the shared info page.
    pub shared_info: u64,
    /// Virtual address of the root page table.
    pub page_tables: u64,
    /// Virtual address of the list of our pages' machine frame numbers.
    pub frame_list: u64,
}

/// The boot command line, owned.
#[derive(Clone, Debug)]
pub struct CommandLine {
    bytes: [u8; Self::MAX_BYTES],
    len: usize,
    truncated: bool,
}

impl CommandLine {
    /// The longest command line that is kept. A PV guest gets at most 1024 bytes (`MAX_GUEST_CMDLINE`).
    pub const MAX_BYTES: usize = 2048;

    /// Returns a copy of the bytes in front of the first NUL.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let line = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        let len = line.len().min(Self::MAX_BYTES);
        let mut out = Self { bytes: [0; Self::MAX_BYTES], len, truncated: line.len() > len };
        out.bytes[..len].copy_from_slice(&line[..len]);
        out
    }

    /// Returns the command line, as far as it is UTF-8.
    pub fn as_str(&self) -> &str {
        let bytes = &self.bytes[..self.len];
        match core::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => core::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default(),
        }
    }

    /// Tells whether something was cut off: bytes beyond [`Self::MAX_BYTES`], or what is not UTF-8.
    pub fn is_truncated(&self) -> bool {
        self.truncated || self.as_str().len() < self.len
    }
}

/// What the kernel is told at boot.
#[derive(Clone, Debug)]
pub struct BootInfo {
    /// Who runs the machine.
    pub platform: Platform,
    /// The kernel's command line.
    pub command_line: CommandLine,
    /// All memory of the machine, free or not. Under PVH with `maxmem` above `memory` this is more than the
    /// guest may touch.
    pub ram: Ranges,
    /// Parts of `ram` that hold the image and what must stay.
    pub taken: Ranges,
    /// Parts of `taken` that are free once the kernel has set up its memory and read this struct.
    pub reclaimable: Ranges,
    /// The console ring.
    pub console: Option<Channel>,
    /// The xenstore ring.
    pub store: Option<Channel>,
    /// What only a PV guest has.
    pub pv: Option<PvBoot>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_ends_at_nul() {
        let line = CommandLine::from_bytes(b"app=echo ip=dhcp\0garbage");
        assert_eq!(line.as_str(), "app=echo ip=dhcp");
        assert!(!line.is_truncated());
        assert_eq!(CommandLine::from_bytes(b"").as_str(), "");
    }

    #[test]
    fn what_is_cut_off_is_told() {
        let line = CommandLine::from_bytes(b"name=\xff\xfe");
        assert_eq!(line.as_str(), "name=");
        assert!(line.is_truncated());
        let line = CommandLine::from_bytes(&[b'x'; CommandLine::MAX_BYTES + 1]);
        assert_eq!(line.as_str().len(), CommandLine::MAX_BYTES);
        assert!(line.is_truncated());
    }
}
