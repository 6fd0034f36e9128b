//! Builds what goes into the machine, by cargo: the guest image, the static backend, the test bed's
//! tool. The kernel always has an invocation of its own (ARCHITECTURE.md, "Two builds"). Knows
//! nothing of how the results are used.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::images::Programs;
use crate::progress::{Step, Verbosity, command_line, ensure_success};
use crate::workspace::Workspace;

/// The target of programs for dom0 and Linux guests. It is the machine's own; named all the same, because
/// compiler flags then hold for the programs alone, and not for what runs while they are built.
const STATIC_TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds everything that goes into the machine.
pub fn programs(workspace: &Workspace, verbosity: Verbosity) -> Result<Programs> {
    let (drayage, peer) = static_programs(workspace, verbosity)?;
    Ok(Programs { peer, drayage, guest: guest_image(workspace, verbosity)?, package: None })
}

/// Builds the guest image and returns its path.
pub fn guest_image(workspace: &Workspace, verbosity: Verbosity) -> Result<PathBuf> {
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--release", "-p", "drayage-kernel"]);
    build("the guest image", cargo, verbosity)?;
    Ok(workspace.release_binary("drayage-guest"))
}

/// Builds the backend and the test bed's tool, which need no shared library, side by side.
fn static_programs(workspace: &Workspace, verbosity: Verbosity) -> Result<(PathBuf, PathBuf)> {
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--release", "--target", STATIC_TARGET]);
    cargo.args(["-p", "drayage", "--bin", "drayage", "-p", "drayage-peer", "--bin", "peer"]);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static\x1f-Cstrip=symbols");
    build("the static programs drayage and peer", cargo, verbosity)?;
    Ok((workspace.target_binary(STATIC_TARGET, "drayage"), workspace.target_binary(STATIC_TARGET, "peer")))
}

fn build(what: &str, mut cargo: Command, verbosity: Verbosity) -> Result<()> {
    let step = Step::begin(format!("building {what}"));
    if verbosity == Verbosity::Verbose {
        eprintln!("+ {}", command_line(&cargo));
    }
    let output = cargo.output().with_context(|| command_line(&cargo))?;
    ensure_success(&cargo, output.status, &String::from_utf8_lossy(&output.stderr))?;
    step.done("");
    Ok(())
}
