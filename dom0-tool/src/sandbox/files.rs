//! The files that the daemon writes: Landlock, where the kernel has it.
//!
//! Everything may be read (the configuration can lie anywhere), nothing may be run, and only devices and a few folders
//! may be written.

use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError,
};

/// The newest version whose rules are known here. An older kernel enforces what it knows, and one without Landlock
/// nothing.
const VERSION: ABI = ABI::V3;

/// Restricts this thread and those that it will start.
pub(super) fn restrict(folders: &[PathBuf]) -> Result<(), RulesetError> {
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
    rules.restrict_self()?;
    Ok(())
}
