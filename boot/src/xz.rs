//! Unpacks xz data with the xz program of the unpacked packages. Knows nothing of what is packed.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result};

use crate::progress::ensure_success;

/// First bytes of xz data.
pub const MAGIC: &[u8] = b"\xfd7zXZ\0";

/// The program. Its one library, liblzma, is on every Debian machine: dpkg itself needs it.
#[derive(Debug, Clone)]
pub struct Tool {
    program: PathBuf,
}

impl Tool {
    /// Takes the program below a root.
    pub fn below(root: &Path) -> Self {
        Tool { program: root.join("usr/bin/xz") }
    }

    /// Returns data unpacked when they are xz's, else as they are.
    pub fn unpack_if_packed(&self, data: Vec<u8>) -> Result<Vec<u8>> {
        if data.starts_with(MAGIC) { self.unpack(data) } else { Ok(data) }
    }

    /// Unpacks data.
    pub fn unpack(&self, data: Vec<u8>) -> Result<Vec<u8>> {
        let mut command = Command::new(&self.program);
        command.args(["--decompress", "--stdout", "--threads=2"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("starting {}", self.program.display()))?;
        let mut input = child.stdin.take().context("xz without its input")?;
        // A thread feeds it: with both pipes full neither end would move.
        let feeder = thread::spawn(move || input.write_all(&data));
        let output = child.wait_with_output().context("running xz")?;
        ensure_success(&command, output.status, &String::from_utf8_lossy(&output.stderr))?;
        feeder.join().ok().context("feeding xz")?.context("feeding xz")?;
        Ok(output.stdout)
    }
}
