//! Compiles and runs the C programs of `probe/`, which say what the headers of others say.
//!
//! It knows a C compiler and a folder of headers, and nothing of what the programs print.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// Headers that a probe includes.
#[derive(Clone, Copy, Debug)]
pub struct Headers {
    /// The Debian package that has them.
    pub package: &'static str,
    /// One of them, under the system's include folder.
    pub sample: &'static str,
}

/// Xen's public headers.
pub const XEN: Headers = Headers { package: "libxen-dev", sample: "xen/io/netif.h" };
/// Linux's user-space headers. Those of Xen's devices need grant types from [`XEN`].
pub const LINUX: Headers = Headers { package: "linux-libc-dev", sample: "xen/gntdev.h" };

/// A compiled probe.
#[derive(Debug)]
pub struct Probe(PathBuf);

impl Probe {
    /// Compiles `probe/NAME.c`. Returns `None`, and says so aloud, on a machine that lacks its headers.
    ///
    /// # Panics
    /// When the program does not compile; or when headers are missing and `CI` is set, because a check that
    /// nobody would miss is no check.
    pub fn compile(name: &str, needs: &[Headers]) -> Option<Self> {
        for headers in needs {
            if !Path::new("/usr/include").join(headers.sample).exists() {
                let Headers { package, sample } = headers;
                let lacks = format!("/usr/include/{sample} is missing: install {package}");
                assert!(std::env::var_os("CI").is_none(), "{lacks}");
                eprintln!("SKIPPED {name}: {lacks}");
                return None;
            }
        }
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("probe/{name}.c"));
        // Tests of one binary compile at the same time, those of several binaries too.
        static COMPILED: AtomicU32 = AtomicU32::new(0);
        let serial = COMPILED.fetch_add(1, Ordering::Relaxed);
        let program = std::env::temp_dir().join(format!("drayage-{name}-{}-{serial}", std::process::id()));
        let output = Command::new("cc")
            .args(["-std=gnu11", "-O1", "-Wall", "-Wno-unused", "-o"])
            .args([&program, &source])
            .output()
            .expect("cc runs");
        assert!(output.status.success(), "{name}.c: {}", String::from_utf8_lossy(&output.stderr));
        Some(Self(program))
    }

    /// Runs the probe with `input` on its standard input and returns the lines it printed.
    ///
    /// # Panics
    /// When the probe fails.
    pub fn run(&self, args: &[&str], input: String) -> Vec<String> {
        let mut child = Command::new(&self.0)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the probe runs");
        let mut stdin = child.stdin.take().expect("a pipe was asked for");
        // Fed from a thread: the probe answers as it reads, and both pipes are short.
        let feeder = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
        let output = child.wait_with_output().expect("the probe ends");
        feeder.join().expect("no panic").expect("the probe read everything");
        assert!(output.status.success(), "{:?} {args:?}: {}", self.0, output.status);
        String::from_utf8(output.stdout).expect("plain text").lines().map(String::from).collect()
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // Only litter is left when that fails.
        let _ = std::fs::remove_file(&self.0);
    }
}
