//! What the daemon gives up before it serves anybody: capabilities, the way to new ones, files that it does not write,
//! and system calls that it does not make.
//!
//! It is entered by the first thread before there are others, which inherit it. All that the daemon opens afterwards
//! (Xen's devices, xenstore, TAPs, uplinks) it opens as root by the files' own permissions, and with the capabilities
//! in [`kept`]. A guest that takes the daemon over so gets a process that can start no program, load no code, and
//! write no file outside a few folders.

mod calls;
mod files;
mod violation;

use std::io;
use std::path::{Path, PathBuf};

use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::control::error::{Failure, FailureKind};
pub use violation::MARK;

/// What the daemon needs to be able to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Folders in which it writes.
    pub folders: Vec<PathBuf>,
    /// Whether threads change their own scheduling class.
    pub realtime: bool,
}

/// Returns the capabilities that are kept, where the process has them at all.
///
/// `/dev/xen/gntdev`, `/dev/xen/evtchn` and xenstore's socket ask for none: who may open them may use them.
pub fn kept(needs: &Needs) -> CapabilitySet {
    // TAP devices, their queues and flags, bridges; attaching XDP programs.
    let mut kept = CapabilitySet::NET_ADMIN;
    // AF_PACKET and AF_XDP sockets.
    kept |= CapabilitySet::NET_RAW;
    // AF_XDP's map and program, and the memory that its frames are in.
    kept |= CapabilitySet::BPF | CapabilitySet::IPC_LOCK;
    if needs.realtime {
        kept |= CapabilitySet::SYS_NICE;
    }
    kept
}

/// Enters the sandbox, for good. To be called while the process has one thread.
///
/// # Errors
/// [`Failure`], when the kernel lacks what it takes. Part of the sandbox may then be in force.
pub fn enter(needs: &Needs) -> Result<(), Failure> {
    let failed = |doing: &str, error: &dyn std::fmt::Display| {
        let message = format!("{doing}: {error}; to run without the sandbox, say --no-sandbox");
        Failure::new(FailureKind::Other, message)
    };
    rustix::thread::set_no_new_privs(true).map_err(|error| failed("giving up new privileges", &error))?;
    files::restrict(&needs.folders).map_err(|error| failed("restricting files", &error))?;
    drop_capabilities(kept(needs)).map_err(|error| failed("dropping capabilities", &error))?;
    violation::report().map_err(|error| failed("watching for refused system calls", &error))?;
    calls::restrict().map_err(|error| failed("filtering system calls", &error))
}

fn drop_capabilities(kept: CapabilitySet) -> io::Result<()> {
    let have = rustix::thread::capabilities(None)?;
    let left = have.permitted & kept;
    let sets = CapabilitySets { effective: left, permitted: left, inheritable: CapabilitySet::empty() };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

/// What is in force for a process, as the kernel says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Its capabilities.
    pub capabilities: CapabilitySet,
    /// Whether it can gain no others.
    pub no_new_privs: bool,
    /// Whether its system calls are filtered.
    pub filtered: bool,
}

impl Status {
    /// Reads it of a process.
    pub fn of(pid: u32) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(str::trim)
        };
        let capabilities = u64::from_str_radix(field("CapEff")?, 16).ok()?;
        Some(Self {
            capabilities: CapabilitySet::from_bits_retain(capabilities),
            no_new_privs: field("NoNewPrivs") == Some("1"),
            filtered: field("Seccomp") == Some("2"),
        })
    }
}

/// Returns whether the kernel can filter system calls.
pub fn can_filter() -> bool {
    Path::new("/proc/sys/kernel/seccomp/actions_avail").exists()
}

/// Returns whether the kernel keeps the daemon from writing files outside its folders. A thread tries it, which ends
/// with it.
pub fn can_keep_files() -> bool {
    files::is_enforced()
}

/// Returns the names of capabilities as the kernel's header has them.
pub fn names(set: CapabilitySet) -> String {
    let names: Vec<String> = set.iter_names().map(|(name, _)| format!("CAP_{name}")).collect();
    if names.is_empty() { "no capability".into() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_as_the_kernel_writes_it() {
        let text = "Name:\tdrayage\nCapPrm:\t0000008000007000\nCapEff:\t0000008000007000\nNoNewPrivs:\t1\nSeccomp:\t2\n";
        let status = Status::parse(text).unwrap();
        assert!(status.no_new_privs && status.filtered);
        assert_eq!(status.capabilities, kept(&Needs::default()));
        assert_eq!(names(status.capabilities), "CAP_NET_ADMIN, CAP_NET_RAW, CAP_IPC_LOCK, CAP_BPF");
        assert!(Status::parse("Name:\tx\n").is_none());
        assert!(Status::of(std::process::id()).is_some());
    }

    #[test]
    fn a_thread_in_the_sandbox_does_what_the_daemon_does_and_nothing_else() {
        let folder = std::env::temp_dir().join(format!("drayage-sandbox-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let outside = std::env::temp_dir().join(format!("drayage-outside-{}", std::process::id()));
        let inside = folder.clone();
        let work = move || {
            enter(&Needs { folders: vec![inside.clone()], realtime: false }).unwrap();
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let status = Status::parse(&status).unwrap();
            assert!(status.no_new_privs && status.filtered, "{status:?}");
            assert!(kept(&Needs::default()).contains(status.capabilities), "{status:?}");
            // Files, sockets, threads, time.
            std::fs::write(inside.join("new"), "text").unwrap();
            std::fs::rename(inside.join("new"), inside.join("old")).unwrap();
            assert_eq!(std::fs::read_to_string(inside.join("old")).unwrap(), "text");
            let listener = std::os::unix::net::UnixListener::bind(inside.join("sock")).unwrap();
            let mut stream = std::os::unix::net::UnixStream::connect(inside.join("sock")).unwrap();
            io::Write::write_all(&mut stream, b"x").unwrap();
            drop(listener.accept().unwrap());
            let there = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            std::net::TcpStream::connect(there.local_addr().unwrap()).unwrap();
            let summed = std::thread::Builder::new()
                .name("child".into())
                .spawn(|| vec![1u64; 1 << 20].iter().sum::<u64>());
            assert_eq!(summed.unwrap().join().unwrap(), 1u64 << 20);
            std::thread::sleep(std::time::Duration::from_millis(1));
            // What a daemon that was taken over would like to do.
            let error =
                std::os::unix::process::CommandExt::exec(&mut std::process::Command::new("/bin/true"));
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
            let error = std::os::unix::fs::symlink("old", inside.join("link")).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EPERM), "a refused call says so: {error}");
            let crypto = rustix::net::AddressFamily::from_raw(libc::AF_ALG as u16);
            let kind = rustix::net::SocketType::SEQPACKET;
            assert_eq!(rustix::net::socket(crypto, kind, None).unwrap_err(), rustix::io::Errno::PERM);
            let dumpable =
                rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
            assert_eq!(dumpable.unwrap_err(), rustix::io::Errno::PERM, "an option of prctl that is not used");
            std::fs::write(&outside, "text").map(|()| std::fs::remove_file(&outside))
        };
        // The rest of this process goes on without.
        let written = std::thread::spawn(work).join().unwrap();
        if can_keep_files() {
            let refused = written.expect_err("a file outside was written");
            assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied, "{refused}");
        } else {
            eprintln!("SKIPPED: what may be written, for this kernel does not enforce Landlock; dom0's does");
        }
        std::fs::write(folder.join("later"), "").unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(std::process::Command::new("true").status().unwrap().success());
    }

    #[test]
    fn scheduling_is_kept_for_who_changes_it() {
        let needs = Needs { realtime: true, ..Needs::default() };
        assert!(kept(&needs).contains(CapabilitySet::SYS_NICE));
        assert!(!kept(&Needs::default()).contains(CapabilitySet::SYS_NICE));
        assert!(!kept(&needs).intersects(CapabilitySet::SYS_ADMIN | CapabilitySet::DAC_OVERRIDE));
    }
}
