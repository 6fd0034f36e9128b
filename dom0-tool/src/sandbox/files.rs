//! The files that the daemon writes: Landlock, where the kernel has it.
//!
//! Everything may be read (the configuration can lie anywhere), nothing may be run, and only devices and a few folders
//! may be written.

use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus,
};

/// The newest version whose rules are known here. An older kernel enforces what it knows, and one without Landlock
/// nothing.
const VERSION: ABI = ABI::V3;

/// Restricts this thread and those that it will start. Returns whether the kernel enforces anything.
pub(super) fn restrict(folders: &[PathBuf]) -> Result<bool, RulesetError> {
    let all = AccessFs::from_all(VERSION);
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write: BitFlags<AccessFs> = AccessFs::WriteFile.into();
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .create()?
        .set_compatibility(CompatLevel::BestEffort);
    let mut add = |path: &std::path::Path, access| -> Result<(), RulesetError> {
        // What is not there cannot be written.
        if let Ok(path) = PathFd::new(path) {
            (&mut rules).add_rule(PathBeneath::new(path, access))?;
        }
        Ok(())
    };
    add("/".as_ref(), read)?;
    // Xen's devices, /dev/net/tun and /dev/vhost-net.
    add("/dev".as_ref(), read | write)?;
    for folder in folders {
        let make = AccessFs::MakeReg | AccessFs::MakeSock | AccessFs::MakeDir;
        let remove = AccessFs::RemoveFile | AccessFs::RemoveDir;
        add(folder, read | write | make | remove | AccessFs::Truncate)?;
    }
    Ok(rules.restrict_self()?.ruleset != RulesetStatus::NotEnforced)
}

/// Returns whether this kernel keeps a daemon from writing elsewhere: one is played by a thread that tries.
pub(super) fn is_enforced() -> bool {
    let attempt = || {
        // Whoever may open its own name for writing may write anywhere; nothing is written to it.
        let elsewhere = || std::fs::OpenOptions::new().write(true).open("/proc/thread-self/comm");
        elsewhere().is_ok() && restrict(&[]).is_ok_and(|enforced| enforced) && elsewhere().is_err()
    };
    std::thread::spawn(attempt).join().unwrap_or(false)
}
