//! One daemon at a time: a locked file, which says who has it, so that whoever comes next can wait for an end that is
//! under way.
//!
//! It knows processes and files, and nothing of what the daemon does.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::control::error::{Failure, FailureKind};

/// How long an end may take that is under way.
const PATIENCE_S: i64 = 10;

/// A process, told from a later one of the same number by when it started.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Owner {
    pid: i32,
    started: String,
}

impl Owner {
    /// Returns the running process of a number.
    fn running(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // Behind the name, which may hold anything, the start is the 20th field.
        let (_, rest) = stat.rsplit_once(')')?;
        Some(Self { pid, started: rest.split_whitespace().nth(19)?.to_owned() })
    }

    fn read(file: &mut File) -> Option<Self> {
        let mut text = String::new();
        file.seek(SeekFrom::Start(0)).ok()?;
        file.read_to_string(&mut text).ok()?;
        let (pid, started) = text.trim().split_once(' ')?;
        Some(Self { pid: pid.parse().ok()?, started: started.to_owned() })
    }

    /// Waits for its end: then all that it had open is closed, event channels and devices included. Returns whether
    /// it has ended.
    fn await_end(&self) -> bool {
        let own = u32::try_from(self.pid) == Ok(std::process::id());
        if own || Self::running(self.pid).as_ref() != Some(self) {
            return true;
        }
        let Some(pid) = Pid::from_raw(self.pid) else { return true };
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return true };
        let patience = Timespec { tv_sec: PATIENCE_S, tv_nsec: 0 };
        matches!(poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&patience)), Ok(1))
    }
}

/// The lock. It is given back when it is dropped, and by the kernel when the process ends otherwise.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock beside a path. A daemon that is about to end is waited for; one that lives on is an error.
    /// `lives` asks the daemon itself.
    ///
    /// # Errors
    /// [`Failure`].
    pub(super) fn take(beside: &Path, lives: impl Fn() -> bool) -> Result<Self, Failure> {
        let mut path = beside.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        let failed = |error: std::io::Error| {
            let kind = match error.kind() {
                std::io::ErrorKind::PermissionDenied => FailureKind::Denied,
                _ => FailureKind::Other,
            };
            Failure::new(
                kind,
                format!("locking {}: {error}; run as root, or name another --socket", path.display()),
            )
        };
        let options =
            || OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let mut file = options().map_err(failed)?;
        let owner = Owner::read(&mut file);
        let taken = |owner: &Option<Owner>| {
            let who =
                owner.as_ref().map_or("another process".into(), |owner| format!("process {}", owner.pid));
            let message = format!(
                "a daemon runs already ({who} has {}); stop it, let this one take over with --takeover, or name another \
                 --socket",
                path.display()
            );
            Failure::new(FailureKind::Taken, message)
        };
        let mut held = flock(&file, FlockOperation::NonBlockingLockExclusive);
        if held == Err(Errno::WOULDBLOCK) && lives() {
            return Err(taken(&owner));
        }
        // Its end may have begun, with the lock given back and event channels still open.
        if let Some(owner) = &owner
            && !owner.await_end()
        {
            return Err(taken(&Some(owner.clone())));
        }
        if held == Err(Errno::WOULDBLOCK) {
            held = flock(&file, FlockOperation::NonBlockingLockExclusive);
        }
        match held {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(taken(&owner)),
            Err(error) => return Err(failed(error.into())),
        }
        let own = i32::try_from(std::process::id()).ok().and_then(Owner::running);
        let text = own.map_or(String::new(), |own| format!("{} {}\n", own.pid, own.started));
        let mut write = || -> std::io::Result<()> {
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
            file.write_all(text.as_bytes())
        };
        write().map_err(failed)?;
        Ok(Self { file, path })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // The file stays: one that is removed could be locked by two. What is in it is of interest while we live.
        if let Err(error) = flock(&self.file, FlockOperation::Unlock) {
            tracing::warn!("unlocking {}: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_refused_while_somebody_has_it_and_taken_from_the_dead() {
        let folder = std::env::temp_dir().join(format!("drayage-lock-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let beside = folder.join("sock");
        let lock = Lock::take(&beside, || true).unwrap();
        let failure = Lock::take(&beside, || true).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Taken);
        assert!(failure.message.contains(&std::process::id().to_string()), "{failure}");
        drop(lock);
        // Left by a process of our number that started at another time, and by one that cannot be.
        for text in [format!("{} 1\n", std::process::id()), "999999999 1\n".into(), "rubbish".into()] {
            std::fs::write(folder.join("sock.lock"), text).unwrap();
            drop(Lock::take(&beside, || true).unwrap());
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn an_end_that_is_under_way_is_waited_for() {
        let folder = std::env::temp_dir().join(format!("drayage-dying-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let beside = folder.join("sock");
        let mut child = std::process::Command::new("sleep").arg("0.3").spawn().unwrap();
        let owner = Owner::running(i32::try_from(child.id()).unwrap()).unwrap();
        std::fs::write(folder.join("sock.lock"), format!("{} {}\n", owner.pid, owner.started)).unwrap();
        let lock = Lock::take(&beside, || false).unwrap();
        assert!(owner.await_end(), "it has ended");
        drop(lock);
        child.wait().unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
