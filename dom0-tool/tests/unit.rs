//! The systemd unit that is shipped, judged by systemd's own tools. Whether systemd starts the daemon and restarts it
//! has not been seen: the test bed's dom0 has another init.

use std::process::{Command, Output};

const UNIT: &str = include_str!("../packaging/drayage.service");
const INSTALLED: &str = "/usr/sbin/drayage";

/// What `systemd-analyze security` calls exposure, in tenths, at most: 46 with systemd 252.
const EXPOSURE: &str = "47";

/// Runs `systemd-analyze` on the unit, as if the program were installed.
fn analyze(arguments: &[&str]) -> Option<Output> {
    assert!(UNIT.contains(&format!("ExecStart={INSTALLED} run ")));
    let folder = std::env::temp_dir().join(format!("drayage-unit-{}-{}", arguments[0], std::process::id()));
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    let path = folder.join("drayage.service");
    std::fs::write(&path, UNIT.replace(INSTALLED, env!("CARGO_BIN_EXE_drayage"))).expect("a file in it");
    let out = Command::new("systemd-analyze").args(arguments).arg(&path).output();
    std::fs::remove_dir_all(&folder).expect("it is there");
    match out {
        Ok(out) => Some(out),
        Err(error) => {
            eprintln!("SKIPPED: systemd-analyze is not there ({error}): install systemd");
            None
        }
    }
}

#[test]
fn systemd_understands_every_line() {
    let Some(out) = analyze(&["verify", "--man=no"]) else { return };
    let said = String::from_utf8_lossy(&out.stderr);
    // Of other units on this machine it may say what it likes.
    let ours: Vec<_> = said.lines().filter(|line| line.contains("drayage")).collect();
    assert!(out.status.success() && ours.is_empty(), "{said}");
}

#[test]
fn the_unit_gives_away_no_more_than_it_did() {
    let threshold = format!("--threshold={EXPOSURE}");
    let Some(out) = analyze(&["security", "--offline=true", "--no-pager", &threshold]) else { return };
    assert!(
        out.status.success(),
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
}
