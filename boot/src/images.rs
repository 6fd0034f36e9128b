//! Makes the files that QEMU boots out of the unpacked packages and our own programs: the plain
//! hypervisor, Linux kernels that need no unpacking in the emulation, and two first file systems.
//! Knows nothing of QEMU.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail};
use flate2::read::GzDecoder;

use crate::cpio::Archive;
use crate::elf::{find_library, library_closure};
use crate::modules::{Module, Modules};
use crate::progress::Step;
use crate::setup::Provisions;
use crate::workspace::Workspace;
use crate::xz;

/// Modules of dom0: access to Xen from programs, networks, the stock backend.
const DOM0_MODULES: [&str; 12] = [
    "xen-gntdev",
    "xen-gntalloc",
    "xen-evtchn",
    "xen-privcmd",
    "xenfs",
    "bridge",
    "tun",
    "vhost_net",
    "veth",
    "dummy",
    "pktgen",
    "xen-netback",
];

/// Modules of a Linux guest.
const GUEST_MODULES: [&str; 1] = ["xen-netfront"];

/// Modules of a driver domain: access to other guests' pages and events, and a network of its own.
const DRIVER_MODULES: [&str; 4] = ["xen-gntdev", "xen-evtchn", "tun", "vhost_net"];

/// xl's hotplug script for interfaces that the backend serves.
const HOTPLUG: &str = include_str!("../../dom0-tool/hotplug/vif-drayage");

/// What busybox's DHCP client in a Linux guest does with a lease.
const LEASE: &str = "#!/bin/busybox sh\n[ \"$1\" = bound ] || exit 0\n\
                     ip addr add $ip/$mask dev $interface\necho \"leased $ip\" > /dev/console\n";

/// dom0's hotplug script for vifs of the stock backend: what a distribution's script ends with. Until then netback
/// does not say that it is connected, and a frontend that waits for it (as it should) waits for ever.
const VIF_SCRIPT: &str = "#!/bin/busybox sh\n[ \"$1\" = online ] || exit 0\n\
                          exec /usr/bin/xenstore-write \"$XENBUS_PATH/hotplug-status\" connected\n";

/// What a Linux guest does with an interface that comes, whenever that is: the address in /run/address is its.
const PLUG: &str = "#!/bin/busybox sh\n[ \"$SUBSYSTEM$ACTION\" = netadd ] || exit 0\n\
                    ip link set lo up; ip link set $INTERFACE up\n\
                    ip addr add $(cat /run/address)/24 dev $INTERFACE && echo \"plugged $INTERFACE\" > /dev/console\n";

/// dom0's first process.
const DOM0_INIT: &str = include_str!("dom0-init.sh");

/// Where things lie inside dom0.
pub mod inside {
    /// Our guest image.
    pub const KERNEL: &str = "/drayage/guest.elf";
    /// The Debian package.
    pub const PACKAGE: &str = "/drayage/drayage.deb";
    /// Linux for guests.
    pub const LINUX: &str = "/drayage/vmlinux";
    /// First file system of Linux guests.
    pub const LINUX_INITRAMFS: &str = "/drayage/linux-guest.cpio";
    /// Hotplug script of the stock backend's vifs.
    pub const VIF_SCRIPT: &str = "/etc/xen/scripts/vif-connected";
    /// First file system of a Linux driver domain.
    pub const DRIVER_INITRAMFS: &str = "/drayage/driver-domain.cpio";
}

/// Programs of ours that go into dom0.
#[derive(Debug, Clone)]
pub struct Programs {
    /// The test bed's tool, static.
    pub peer: PathBuf,
    /// The backend, static.
    pub drayage: PathBuf,
    /// The unikernel.
    pub guest: PathBuf,
    /// The Debian package of the two; absent when no test installs it.
    pub package: Option<PathBuf>,
}

/// The files that QEMU boots.
#[derive(Debug, Clone)]
pub struct Images {
    /// Uncompressed hypervisor.
    pub xen: PathBuf,
    /// Uncompressed Linux, for dom0 and guests.
    pub linux: PathBuf,
    /// dom0's first file system.
    pub dom0: PathBuf,
}

/// Returns a name that no other machine has, in this process or in another one.
pub fn unique() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Makes all images; what only depends on the packages is made once.
pub fn make(workspace: &Workspace, provisions: &Provisions, programs: &Programs) -> Result<Images> {
    let _lock = workspace.lock()?;
    let folder = workspace.data("images")?;
    let versions = &provisions.versions;
    let root = &provisions.root;
    let xz = xz::Tool::below(root);
    let xen = folder.join(format!("xen-{}.elf", versions.xen));
    cached(&xen, || {
        let packed = root.join("boot").join(format!("xen-{}-amd64.gz", versions.xen));
        gunzip(&packed)
    })?;
    let linux = folder.join(format!("vmlinux-{}", versions.linux));
    cached(&linux, || {
        let step = Step::begin("unpacking the Linux kernel");
        let image = linux_kernel(&root.join("boot").join(format!("vmlinuz-{}", versions.linux)), &xz)?;
        step.done("");
        Ok(image)
    })?;
    let modules = Modules::list(&module_folder(root, &versions.linux)?, xz)?;
    let guest = linux_guest(root, &modules, programs)?;
    let driver = driver_domain(root, &modules, programs)?;
    remove_stale(&folder);
    let dom0 = folder.join(format!("dom0-{}.cpio", unique()));
    let archive = dom0_archive(provisions, &modules, programs, &fs::read(&linux)?, &guest, &driver)?;
    fs::write(&dom0, archive).with_context(|| format!("writing {}", dom0.display()))?;
    Ok(Images { xen, linux, dom0 })
}

/// Removes what launchers left that were killed while they booted.
fn remove_stale(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if owner(&name).is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            fs::remove_file(entry.path()).ok();
        }
    }
}

/// Returns the process that made a file for one machine, if that is what the file is.
fn owner(name: &str) -> Option<&str> {
    let unique = name.strip_prefix("dom0-")?.strip_suffix(".cpio")?;
    unique.split('-').next()
}

fn cached(path: &Path, make: impl FnOnce() -> Result<Vec<u8>>) -> Result<()> {
    if !path.exists() {
        let partial = path.with_extension("partial");
        fs::write(&partial, make()?).with_context(|| format!("writing {}", partial.display()))?;
        fs::rename(&partial, path).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

fn gunzip(path: &Path) -> Result<Vec<u8>> {
    let packed = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let mut plain = Vec::new();
    GzDecoder::new(&packed[..])
        .read_to_end(&mut plain)
        .with_context(|| format!("unpacking {}", path.display()))?;
    Ok(plain)
}

/// Returns the ELF file inside a bzImage (Documentation/x86/boot.rst: `payload_offset`), so that no
/// boot spends ten seconds of emulation on unpacking it.
fn linux_kernel(path: &Path, xz: &xz::Tool) -> Result<Vec<u8>> {
    let image = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let payload = bzimage_payload(&image).with_context(|| format!("{} is no bzImage", path.display()))?;
    let plain = if payload.starts_with(xz::MAGIC) {
        xz.unpack(payload.to_vec())?
    } else if payload.starts_with(&[0x1f, 0x8b]) {
        let mut plain = Vec::new();
        GzDecoder::new(payload).read_to_end(&mut plain).context("unpacking the Linux kernel")?;
        plain
    } else {
        // Xen and libxl unpack the other kinds themselves, which only takes longer.
        return Ok(image);
    };
    if !plain.starts_with(b"\x7fELF") {
        bail!("what {} holds is no ELF file", path.display());
    }
    Ok(plain)
}

fn bzimage_payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| Some(u32::from_le_bytes(*image.get(at..)?.first_chunk()?) as usize);
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let setup_sectors = match usize::from(*image.get(0x1f1)?) {
        0 => 4,
        count => count,
    };
    let start = (setup_sectors + 1) * 512 + word(0x248)?;
    // The last four bytes are the unpacked size, no part of the compressed stream.
    let len = word(0x24c)?.checked_sub(4)?;
    image.get(start..start.checked_add(len)?)
}

fn module_folder(root: &Path, linux: &str) -> Result<PathBuf> {
    let folders = ["lib/modules", "usr/lib/modules"].map(|folder| root.join(folder).join(linux));
    let found = folders.iter().find(|folder| folder.is_dir()).cloned();
    found.with_context(|| format!("the packages have no folder of modules for Linux {linux}"))
}

fn linux_guest(root: &Path, modules: &Modules, programs: &Programs) -> Result<Vec<u8>> {
    let mut archive = Archive::new();
    base(&mut archive, root, &programs.peer)?;
    archive.symlink("/init", "/bin/guest-init");
    archive.file("/bin/guest-init", 0o755, b"#!/bin/busybox sh\nexec /bin/peer init\n");
    archive.file("/bin/lease", 0o755, LEASE.as_bytes());
    archive.file("/bin/plug", 0o755, PLUG.as_bytes());
    // What runs commands by name asks for this one.
    archive.symlink("/bin/sh", "/bin/busybox");
    add_modules(&mut archive, &modules.in_order(&GUEST_MODULES)?);
    Ok(archive.finish())
}

/// A Linux guest with the backend in it, and no network but what it makes.
fn driver_domain(root: &Path, modules: &Modules, programs: &Programs) -> Result<Vec<u8>> {
    let mut archive = Archive::new();
    base(&mut archive, root, &programs.peer)?;
    archive.symlink("/init", "/bin/guest-init");
    archive.file("/bin/guest-init", 0o755, b"#!/bin/busybox sh\nexec /bin/peer init\n");
    add(&mut archive, "/usr/sbin/drayage", &programs.drayage)?;
    add_modules(&mut archive, &modules.in_order(&DRIVER_MODULES)?);
    Ok(archive.finish())
}

fn dom0_archive(
    provisions: &Provisions,
    modules: &Modules,
    programs: &Programs,
    linux: &[u8],
    linux_guest: &[u8],
    driver_domain: &[u8],
) -> Result<Vec<u8>> {
    let root = &provisions.root;
    let mut archive = Archive::new();
    base(&mut archive, root, &programs.peer)?;
    archive.file("/init", 0o755, DOM0_INIT.as_bytes());
    archive.file("/etc/xen/xl.conf", 0o644, b"");
    archive.file(inside::VIF_SCRIPT, 0o755, VIF_SCRIPT.as_bytes());
    archive.file("/etc/xen/scripts/vif-drayage", 0o755, HOTPLUG.as_bytes());
    add_modules(&mut archive, &modules.in_order(&DOM0_MODULES)?);
    let tools = root.join(format!("usr/lib/xen-{}/bin", provisions.versions.xen));
    let mut needing = Vec::new();
    for name in ["xl", "xenstored", "xenconsoled", "xenconsole", "xen-init-dom0"] {
        let path = tools.join(name);
        add(&mut archive, &format!("/usr/lib/xen-{}/bin/{name}", provisions.versions.xen), &path)?;
        archive.symlink(
            &format!("/usr/sbin/{name}"),
            &format!("/usr/lib/xen-{}/bin/{name}", provisions.versions.xen),
        );
        needing.push(path);
    }
    for name in ["ls", "read", "write", "rm", "list", "exists", "watch", "chmod"] {
        let path = root.join(format!("usr/bin/xenstore-{name}"));
        add(&mut archive, &format!("/usr/bin/xenstore-{name}"), &path)?;
        needing.push(path);
    }
    // busybox has both too; these make veth pairs and show every queue's drops.
    for name in ["ip", "tc"] {
        let folders = ["bin", "sbin", "usr/bin", "usr/sbin"].map(|folder| format!("{folder}/{name}"));
        let path = first_of(root, &folders.each_ref().map(String::as_str))?;
        add(&mut archive, &format!("/usr/sbin/{name}"), &path)?;
        needing.push(path);
    }
    if programs.package.is_some() {
        needing.extend(add_systemd(&mut archive, root)?);
        needing.extend(add_dpkg(&mut archive, root)?);
    }
    let mut libraries = library_closure(root, &needing)?;
    // Loaded by libc when a thread is cancelled: no ELF file names it.
    let unwinder = "libgcc_s.so.1";
    libraries.insert(
        unwinder.to_owned(),
        find_library(root, unwinder).with_context(|| format!("no unpacked package has {unwinder}"))?,
    );
    for (name, path) in &libraries {
        add(&mut archive, &format!("/usr/lib/x86_64-linux-gnu/{name}"), path)?;
    }
    archive.symlink("/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu");
    archive.symlink("/lib64/ld-linux-x86-64.so.2", "/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2");
    add(&mut archive, "/usr/sbin/drayage", &programs.drayage)?;
    add(&mut archive, inside::KERNEL, &programs.guest)?;
    if let Some(package) = &programs.package {
        add(&mut archive, inside::PACKAGE, package)?;
    }
    archive.file(inside::LINUX, 0o644, linux);
    archive.file(inside::LINUX_INITRAMFS, 0o644, linux_guest);
    archive.file(inside::DRIVER_INITRAMFS, 0o644, driver_domain);
    Ok(archive.finish())
}

/// Adds as much of systemd as runs a unit, and returns the files that need libraries.
fn add_systemd(archive: &mut Archive, root: &Path) -> Result<[PathBuf; 2]> {
    for name in
        ["sysinit.target", "basic.target", "multi-user.target", "shutdown.target", "modprobe@.service"]
    {
        let path = format!("lib/systemd/system/{name}");
        let from = first_of(root, &[&path, &format!("usr/{path}")])?;
        let text = fs::read(&from).with_context(|| format!("reading {}", from.display()))?;
        archive.file(&format!("/{path}"), 0o644, &text);
    }
    let manager = first_of(root, &["lib/systemd/systemd", "usr/lib/systemd/systemd"])?;
    let control = first_of(root, &["bin/systemctl", "usr/bin/systemctl"])?;
    add(archive, "/lib/systemd/systemd", &manager)?;
    add(archive, "/usr/bin/systemctl", &control)?;
    Ok([manager, control])
}

/// Adds what installs and removes a package, and returns the files that need libraries.
fn add_dpkg(archive: &mut Archive, root: &Path) -> Result<Vec<PathBuf>> {
    let mut needing = Vec::new();
    for name in ["dpkg", "dpkg-deb", "dpkg-query", "dpkg-split", "tar"] {
        let path = first_of(root, &[&format!("usr/bin/{name}"), &format!("bin/{name}")])?;
        // Before busybox's, which are in /bin.
        add(archive, &format!("/usr/bin/{name}"), &path)?;
        needing.push(path);
    }
    for folder in ["info", "updates", "triggers"] {
        archive.directory(&format!("/var/lib/dpkg/{folder}"));
    }
    archive.file("/var/lib/dpkg/status", 0o644, b"");
    Ok(needing)
}

/// Adds what every Linux here has: busybox, our tool, the device nodes that the kernel opens first.
fn base(archive: &mut Archive, root: &Path, peer: &Path) -> Result<()> {
    for folder in
        ["/bin", "/dev", "/etc", "/proc", "/run", "/sbin", "/sys", "/tmp", "/usr/bin", "/usr/sbin", "/var"]
    {
        archive.directory(folder);
    }
    archive.character_device("/dev/console", 5, 1);
    archive.character_device("/dev/null", 1, 3);
    add(archive, "/bin/busybox", &first_of(root, &["bin/busybox", "usr/bin/busybox"])?)?;
    add(archive, "/bin/peer", peer)?;
    archive.file("/etc/passwd", 0o644, b"root:x:0:0:root:/:/bin/sh\n");
    archive.file("/etc/group", 0o644, b"root:x:0:\n");
    Ok(())
}

fn add_modules(archive: &mut Archive, modules: &[Module]) {
    let mut list = String::new();
    for module in modules {
        let path = format!("/modules/{}.ko", module.name);
        archive.file(&path, 0o644, &module.contents);
        list.push_str(&path);
        list.push('\n');
    }
    archive.file("/modules/list", 0o644, list.as_bytes());
}

fn add(archive: &mut Archive, path: &str, from: &Path) -> Result<()> {
    let contents = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    archive.file(path, 0o755, &contents);
    Ok(())
}

fn first_of(root: &Path, paths: &[&str]) -> Result<PathBuf> {
    let found = paths.iter().map(|path| root.join(path)).find(|path| path.is_file());
    found.with_context(|| format!("no unpacked package has any of {}", paths.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_kept_while_its_process_runs() {
        let folder = std::env::temp_dir().join(format!("boot-images-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let [ours, stale] =
            [unique(), "4999999-0".to_owned()].map(|name| folder.join(format!("dom0-{name}.cpio")));
        for file in [&ours, &stale] {
            fs::write(file, "x").unwrap();
        }
        remove_stale(&folder);
        assert_eq!((ours.exists(), stale.exists()), (true, false));
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn the_payload_of_a_bzimage() {
        let mut image = vec![0; 4096];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&100u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&14u32.to_le_bytes());
        image[1124..1134].copy_from_slice(b"0123456789");
        assert_eq!(bzimage_payload(&image), Some(&b"0123456789"[..]));
        image[0x24c..0x250].copy_from_slice(&5000u32.to_le_bytes());
        assert_eq!(bzimage_payload(&image), None, "a payload beyond the file's end");
        assert_eq!(bzimage_payload(b"short"), None);
    }
}
