//! Where things are: the workspace's root, cargo's own output folder, and the folder of everything
//! that the launcher downloads or generates. Knows nothing of what is in them.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

/// The folders of one workspace.
#[derive(Debug, Clone)]
pub struct Workspace {
    root: PathBuf,
    cargo_output: PathBuf,
}

/// The right to change what is under [`Workspace::data`], given back when dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Workspace {
    /// Finds the workspace that the launcher belongs to.
    pub fn find() -> Result<Self> {
        // `cargo run` sets this; what was compiled in serves a launcher that is started by hand.
        let manifest = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let output = Command::new(cargo())
            .args(["metadata", "--no-deps", "--format-version=1", "--offline"])
            .current_dir(&manifest)
            .output()
            .with_context(|| format!("running cargo metadata in {manifest:?}"))?;
        if !output.status.success() {
            bail!("cargo metadata in {manifest:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let metadata: serde_json::Value =
            serde_json::from_slice(&output.stdout).context("cargo metadata's output")?;
        let path = |key: &str| {
            let text = metadata[key].as_str().with_context(|| format!("cargo metadata has no {key}"))?;
            anyhow::Ok(PathBuf::from(text))
        };
        Ok(Workspace { root: path("workspace_root")?, cargo_output: path("target_directory")? })
    }

    /// Returns the folder with the workspace's Cargo.toml.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns what `cargo build --release` made of a binary.
    pub fn release_binary(&self, name: &str) -> PathBuf {
        self.cargo_output.join("release").join(name)
    }

    /// Returns what `cargo build --profile` made of a binary.
    pub fn profile_binary(&self, profile: &str, name: &str) -> PathBuf {
        self.cargo_output.join(profile).join(name)
    }

    /// Returns what `cargo build --release` made of a binary for a target that was named.
    pub fn target_binary(&self, target: &str, name: &str) -> PathBuf {
        self.cargo_output.join(target).join("release").join(name)
    }

    /// Returns a folder for downloads and generated files, which it makes when it is missing.
    pub fn data(&self, name: &str) -> Result<PathBuf> {
        let path = self.root.join("target").join("drayage").join(name);
        fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(path)
    }

    /// Waits for the right to change downloads and generated files.
    pub fn lock(&self) -> Result<Lock> {
        let path = self.data("")?.join("lock");
        let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        flock(&file, FlockOperation::LockExclusive).with_context(|| format!("locking {}", path.display()))?;
        Ok(Lock { _file: file })
    }

    /// Returns a cargo command that runs in the workspace.
    pub fn cargo(&self) -> Command {
        let mut command = Command::new(cargo());
        command.current_dir(&self.root);
        command
    }
}

fn cargo() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}
