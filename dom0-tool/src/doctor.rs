//! What the daemon needs of the host, checked one by one, with what to do about each thing that is missing.
//!
//! It only looks, and changes nothing. It knows no data path.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::sockopt::socket_peercred;
use serde::{Deserialize, Serialize};

use crate::control::nodes;
use crate::ipc::{Request, ask};
use crate::sandbox::{self, Needs, Status};
use crate::store::client::{Client, DEVICE, SOCKET};
use crate::store::{Transaction, read_text};

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is as it should be.
    Ok,
    /// It works, but there is something to know.
    Note,
    /// The daemon will not work.
    Bad,
}

/// A check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// What came of it.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do; empty if nothing.
    pub mend: String,
}

fn check(name: &str, verdict: Verdict, found: impl Into<String>, mend: impl Into<String>) -> Check {
    Check { name: name.into(), verdict, found: found.into(), mend: mend.into() }
}

/// Runs all checks.
pub fn examine(socket: &Path) -> Vec<Check> {
    let mut all = vec![hypervisor()];
    for (path, module) in [("/dev/xen/gntdev", "xen-gntdev"), ("/dev/xen/evtchn", "xen-evtchn")] {
        all.push(device(path, module));
    }
    all.push(device(crate::port::tap::TUN, "tun"));
    all.push(vhost());
    all.push(xenstore());
    all.push(netback());
    all.push(xdp());
    all.push(daemon(socket));
    all.push(sandbox(socket));
    all.push(landlock());
    all
}

fn hypervisor() -> Check {
    let name = "xen";
    match std::fs::read_to_string("/sys/hypervisor/type") {
        Ok(kind) if kind.trim() == "xen" => {
            let part = |file| {
                let text = std::fs::read_to_string(format!("/sys/hypervisor/version/{file}"));
                text.map(|t| t.trim().to_owned()).unwrap_or_default()
            };
            check(
                name,
                Verdict::Ok,
                format!("running on Xen {}.{}{}", part("major"), part("minor"), part("extra")),
                "",
            )
        }
        Ok(kind) => {
            check(name, Verdict::Bad, format!("running on {}", kind.trim()), "boot this host under Xen")
        }
        Err(_) => check(
            name,
            Verdict::Bad,
            "no /sys/hypervisor/type: not running on Xen",
            "boot this host under Xen, and run this in dom0 or in a driver domain",
        ),
    }
}

fn device(path: &str, module: &str) -> Check {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => check(path, Verdict::Ok, "can be opened", ""),
        Err(error) => {
            let mend = match error.kind() {
                ErrorKind::NotFound => format!("modprobe {module}"),
                ErrorKind::PermissionDenied => "run as root".into(),
                _ => format!("is the module {module} loaded? see dmesg"),
            };
            check(path, Verdict::Bad, error.to_string(), mend)
        }
    }
}

fn xenstore() -> Check {
    let name = "xenstore";
    match Client::connect(|_| ()) {
        Ok(client) => match client.own_domain().and_then(|own| nodes::domain(&client, own).map(|d| (own, d)))
        {
            Ok((own, Some(domain))) => {
                check(name, Verdict::Ok, format!("answers; this is domain {own} ({})", domain.name), "")
            }
            Ok((own, None)) => check(
                name,
                Verdict::Note,
                format!("answers; domain {own} has no name in it"),
                "run xen-init-dom0, as the xen service does",
            ),
            Err(error) => {
                check(name, Verdict::Bad, error.to_string(), "restart the xen service, and run as root")
            }
        },
        Err(error) => check(
            name,
            Verdict::Bad,
            error.to_string(),
            format!("start xenstored (the xen service), which makes {SOCKET}, or load xenfs for {DEVICE}"),
        ),
    }
}

/// Looks whether the kernel's netback is there too, which does no harm: its vifs are of another type.
fn netback() -> Check {
    let name = "xen-netback";
    if !Path::new("/sys/bus/xen-backend/drivers/vif").exists() {
        return check(
            name,
            Verdict::Ok,
            "not loaded; guests with `vif = [...]` lines need it, ours do not",
            "",
        );
    }
    let others = Client::connect(|_| ()).ok().and_then(|store| {
        let own = store.own_domain().ok()?;
        let path = format!("{}/backend/vif", nodes::home(own));
        read_text(&store, Transaction::NONE, &path).ok()?;
        crate::store::children(&store, &path).ok().map(|domains| domains.len())
    });
    let found = format!("loaded, serving {} domains beside us", others.unwrap_or(0));
    check(name, Verdict::Ok, found, "")
}

/// Looks whether frames can go to TAP devices many at a time.
fn vhost() -> Check {
    let path = crate::port::vhost::PATH;
    match device(path, "vhost_net") {
        Check { verdict: Verdict::Ok, .. } => {
            check(path, Verdict::Ok, "can be opened, for tap:NAME ports to take many frames at a time", "")
        }
        Check { found, mend, .. } => {
            let found = format!("{found}; tap:NAME ports take frames one by one, which is slower");
            check(path, Verdict::Note, found, mend)
        }
    }
}

/// Looks whether `xdp:` ports can be had.
fn xdp() -> Check {
    match crate::port::xdp::is_there() {
        Ok(()) => check("af_xdp", Verdict::Ok, "this kernel has it, for xdp:DEVICE ports", ""),
        Err(error) => {
            let mend = "use packet:DEVICE ports; run as root to see whether xdp:DEVICE works";
            check("af_xdp", Verdict::Note, error.to_string(), mend)
        }
    }
}

fn daemon(socket: &Path) -> Check {
    match ask::<String>(socket, &Request::Hello) {
        Ok(version) => {
            check("daemon", Verdict::Ok, format!("drayage {version} listens on {}", socket.display()), "")
        }
        Err(failure) => check("daemon", Verdict::Note, failure.message, "drayage run"),
    }
}

/// Looks at what the daemon that runs has given up, or at what one could.
fn sandbox(socket: &Path) -> Check {
    let name = "sandbox";
    let peer = UnixStream::connect(socket).ok().and_then(|stream| socket_peercred(&stream).ok());
    let pid = peer.map(|peer| peer.pid.as_raw_nonzero().get());
    let status = pid.and_then(|pid| u32::try_from(pid).ok()).and_then(Status::of);
    let kept = sandbox::names(sandbox::kept(&Needs::default()));
    match status {
        Some(status) if status.filtered && status.no_new_privs => {
            let left = sandbox::names(status.capabilities);
            let found = format!("the daemon has {left}, can gain nothing, and its system calls are filtered");
            check(name, Verdict::Ok, found, "")
        }
        Some(status) => check(
            name,
            Verdict::Note,
            format!("the daemon runs without it, with {}", sandbox::names(status.capabilities)),
            "start it without --no-sandbox",
        ),
        None if sandbox::can_filter() => check(
            name,
            Verdict::Ok,
            format!("the kernel can filter system calls; of its capabilities the daemon keeps {kept}"),
            "",
        ),
        None => check(
            name,
            Verdict::Note,
            "the kernel cannot filter system calls",
            "take a kernel with CONFIG_SECCOMP_FILTER, or drayage run --no-sandbox",
        ),
    }
}

/// Looks whether the kernel keeps the daemon's writes to its folders.
fn landlock() -> Check {
    let name = "landlock";
    if sandbox::can_keep_files() {
        return check(name, Verdict::Ok, "a daemon's write to a file that is not its own was refused", "");
    }
    let mend = "take a kernel with CONFIG_SECURITY_LANDLOCK, and landlock among its lsm=";
    check(name, Verdict::Note, "not enforced here: the daemon could write what root can", mend)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_that_is_bad_says_what_to_do() {
        let checks = examine(Path::new("/nowhere/drayage.sock"));
        assert_eq!(checks.len(), 11);
        for check in &checks {
            assert!(check.verdict == Verdict::Ok || !check.mend.is_empty(), "{check:?}");
        }
        assert_eq!(checks[8].verdict, Verdict::Note, "no daemon: {:?}", checks[8]);
        let missing = device("/nowhere/gntdev", "xen-gntdev");
        assert_eq!((missing.verdict, missing.mend.as_str()), (Verdict::Bad, "modprobe xen-gntdev"));
    }
}
