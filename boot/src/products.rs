//! Builds what goes into the machine, by cargo: the guest image, the static backend, the test bed's
//! tool. The kernel always has an invocation of its own (ARCHITECTURE.md, "Two builds"). Knows
//! nothing of how the results are used.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::progress::{Step, Verbosity, command_line, ensure_success};
use crate::workspace::Workspace;

/// Builds the guest image and returns its path.
pub fn guest_image(workspace: &Workspace, verbosity: Verbosity) -> Result<PathBuf> {
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--release", "-p", "drayage-kernel"]);
    build("the guest image", cargo, verbosity)?;
    Ok(workspace.release_binary("drayage-guest"))
}

/// Builds the backend and returns its path.
pub fn drayage(workspace: &Workspace, verbosity: Verbosity) -> Result<PathBuf> {
    static_binary(workspace, "drayage", "drayage", verbosity)
}

/// Builds the test bed's tool and returns its path.
pub fn peer(workspace: &Workspace, verbosity: Verbosity) -> Result<PathBuf> {
    static_binary(workspace, "drayage-peer", "peer", verbosity)
}

/// Builds a program that needs no shared library.
fn static_binary(workspace: &Workspace, package: &str, name: &str, verbosity: Verbosity) -> Result<PathBuf> {
    let mut cargo = workspace.cargo();
    cargo.args(["rustc", "--release", "-p", package, "--bin", name, "--"]);
    cargo.args(["-C", "target-feature=+crt-static", "-C", "strip=symbols"]);
    build(&format!("the static program {name}"), cargo, verbosity)?;
    Ok(workspace.release_binary(name))
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
