//! Debian's package tools as functions: what exists, what it depends on, download, unpack, install.
//! Knows nothing of which packages are wanted.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::progress::{Step, Verbosity, run};

/// Packages downloaded by one call of apt-get: few enough to show progress between the calls.
const DOWNLOAD_BATCH: usize = 12;

/// How packages may be put on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    /// We are root.
    Root,
    /// `sudo` works without a password.
    Sudo,
    /// Nothing may be installed.
    None,
}

/// The package tools of this machine.
#[derive(Debug)]
pub struct Apt {
    rights: Rights,
    verbosity: Verbosity,
    /// Options that point apt to lists of our own, where the system has none.
    own_lists: Vec<String>,
}

impl Apt {
    /// Finds the package tools, and reads the package lists when the system has none.
    pub fn find(data: &Path, verbosity: Verbosity) -> Result<Self> {
        for tool in ["apt-get", "apt-cache", "dpkg-deb"] {
            if !exists(tool) {
                bail!(
                    "{tool} is not on this machine: the test bed is made of Debian 12 packages.\n\
                     On another distribution, work in a Debian 12 container or machine, which needs \
                     nothing but Rust and a C linker (rustup.rs, apt-get install gcc)"
                );
            }
        }
        let mut apt = Apt { rights: rights(), verbosity, own_lists: Vec::new() };
        if !apt.has_lists() {
            apt.update(data)?;
        }
        Ok(apt)
    }

    /// Returns how packages may be put on this machine.
    pub fn rights(&self) -> Rights {
        self.rights
    }

    /// Reads the package lists: the system's where we may, else into a folder of ours.
    pub fn update(&mut self, data: &Path) -> Result<()> {
        let step = Step::begin("reading Debian's package lists (apt-get update)");
        if self.rights == Rights::None {
            let folder = data.join("apt");
            fs::create_dir_all(folder.join("lists/partial"))?;
            fs::create_dir_all(folder.join("cache/archives/partial"))?;
            self.own_lists = [("State::Lists", "lists"), ("Cache", "cache")]
                .map(|(key, name)| format!("-oDir::{key}={}", folder.join(name).display()))
                .to_vec();
        }
        self.privileged("apt-get", &["update", "-qq"])?;
        step.done("");
        Ok(())
    }

    /// Installs packages and what they need.
    pub fn install(&self, packages: &[&str]) -> Result<()> {
        let mut args = vec!["install", "-y", "-qq", "--no-install-recommends"];
        args.extend(packages);
        self.privileged("apt-get", &args)
    }

    /// Returns the newest package whose name is the prefix, a version number and the suffix, with
    /// that version.
    pub fn newest(&self, prefix: &str, suffix: &str) -> Result<(String, String)> {
        let names = self.query(&["pkgnames", prefix])?;
        newest_of(names.lines(), prefix, suffix)
            .with_context(|| format!("no package {prefix}*{suffix} is known to apt: try apt-get update"))
    }

    /// Returns the packages that one package depends on directly.
    pub fn depends(&self, package: &str) -> Result<Vec<String>> {
        let text = self.query(&["depends", "--important", package])?;
        Ok(parse_depends(&text))
    }

    /// Returns packages and, all the way down, the libraries that they depend on.
    pub fn with_libraries(&self, packages: &[String]) -> Result<BTreeSet<String>> {
        let mut all: BTreeSet<String> = packages.iter().cloned().collect();
        let mut next: Vec<String> = packages.to_vec();
        while !next.is_empty() {
            let mut args = vec!["depends", "--important"];
            args.extend(next.iter().map(String::as_str));
            let found = parse_depends(&self.query(&args)?);
            next = found.into_iter().filter(|name| is_library(name) && all.insert(name.clone())).collect();
        }
        Ok(all)
    }

    /// Returns those packages that are not installed on this machine.
    pub fn not_installed(&self, packages: BTreeSet<String>) -> Vec<String> {
        let installed = |name: &String| {
            let mut query = Command::new("dpkg-query");
            run(query.args(["-W", "-f=${db:Status-Status}", name]), Verbosity::Normal)
                .is_ok_and(|status| status == "installed")
        };
        packages.into_iter().filter(|name| !installed(name)).collect()
    }

    /// Downloads packages into a folder, those aside that are there, and returns their files.
    pub fn download(&self, packages: &[String], folder: &Path, step: &Step) -> Result<Vec<PathBuf>> {
        fs::create_dir_all(folder)?;
        let mut missing = Vec::new();
        for package in packages {
            if find_deb(folder, package)?.is_none() {
                missing.push(package.as_str());
            }
        }
        for (at, batch) in missing.chunks(DOWNLOAD_BATCH).enumerate() {
            step.update(&format!("{} of {} packages", at * DOWNLOAD_BATCH, missing.len()));
            let mut command = self.apt("apt-get");
            // As root apt drops its rights for the download and may not write to our folder.
            command.args(["-oAPT::Sandbox::User=root", "download", "-qq"]).args(batch);
            run(command.current_dir(folder), self.verbosity)?;
        }
        let file = |package: &String| {
            find_deb(folder, package)?.with_context(|| format!("apt-get download {package} left no file"))
        };
        packages.iter().map(file).collect()
    }

    /// Unpacks packages below a folder without installing them.
    pub fn unpack(&self, files: &[PathBuf], root: &Path, step: &Step) -> Result<()> {
        fs::create_dir_all(root)?;
        step.update(&format!("unpacking {} packages", files.len()));
        for file in files {
            run(Command::new("dpkg-deb").arg("-x").arg(file).arg(root), self.verbosity)?;
        }
        Ok(())
    }

    fn has_lists(&self) -> bool {
        self.query(&["show", "--no-all-versions", "busybox-static"]).is_ok()
    }

    fn query(&self, args: &[&str]) -> Result<String> {
        run(self.apt("apt-cache").args(args), Verbosity::Normal)
    }

    fn apt(&self, tool: &str) -> Command {
        let mut command = Command::new(tool);
        command.args(&self.own_lists);
        command
    }

    fn privileged(&self, tool: &str, args: &[&str]) -> Result<()> {
        let mut command = match self.rights {
            Rights::Sudo => {
                let mut sudo = Command::new("sudo");
                sudo.args(["-n", "env", "DEBIAN_FRONTEND=noninteractive", tool]);
                sudo
            }
            Rights::Root | Rights::None => self.apt(tool),
        };
        command.args(args).env("DEBIAN_FRONTEND", "noninteractive");
        run(&mut command, self.verbosity).map(drop)
    }
}

/// Returns whether a program is on the search path.
pub fn exists(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

fn rights() -> Rights {
    if rustix::process::geteuid().is_root() {
        return Rights::Root;
    }
    match run(Command::new("sudo").args(["-n", "true"]), Verbosity::Normal) {
        Ok(_) => Rights::Sudo,
        Err(_) => Rights::None,
    }
}

/// Whether a package's name is a library's. Interpreters' libraries are left out: no program of the
/// test bed needs them, the toolstack's helper scripts do.
fn is_library(name: &str) -> bool {
    (name.starts_with("lib") || name.starts_with("zlib"))
        && !name.starts_with("libpython")
        && !name.starts_with("libperl")
}

/// Returns the names behind "Depends:" and "PreDepends:", the provider's where a name is virtual.
fn parse_depends(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    for line in text.lines() {
        let line = line.trim_start().trim_start_matches('|');
        let Some((_, name)) = line.split_once("Depends: ") else { continue };
        let name = name.trim().trim_end_matches(":any");
        if !name.starts_with('<') {
            names.push(name.to_owned());
        }
    }
    names
}

fn find_deb(folder: &Path, package: &str) -> Result<Option<PathBuf>> {
    let prefix = format!("{package}_");
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(&prefix) && name.ends_with(".deb") {
            return Ok(Some(folder.join(name)));
        }
    }
    Ok(None)
}

fn newest_of<'a>(
    names: impl Iterator<Item = &'a str>,
    prefix: &str,
    suffix: &str,
) -> Option<(String, String)> {
    names
        .filter_map(|name| {
            let version = name.strip_prefix(prefix)?.strip_suffix(suffix)?;
            let numeric = !version.is_empty() && version.bytes().all(|c| c.is_ascii_digit() || c == b'.');
            numeric.then(|| (name.to_owned(), version.to_owned()))
        })
        .max_by(|(_, one), (_, two)| compare_versions(one, two))
}

fn compare_versions(one: &str, two: &str) -> Ordering {
    let numbers = |text: &str| text.split('.').map(|part| part.parse().unwrap_or(0)).collect::<Vec<u64>>();
    numbers(one).cmp(&numbers(two))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_counts_by_number() {
        let names =
            ["xen-hypervisor-4.9-amd64", "xen-hypervisor-4.17-amd64", "xen-hypervisor-4.17-amd64-dbg"];
        let found = newest_of(names.into_iter(), "xen-hypervisor-", "-amd64");
        assert_eq!(found, Some(("xen-hypervisor-4.17-amd64".into(), "4.17".into())));
        assert_eq!(newest_of(["other"].into_iter(), "xen-hypervisor-", "-amd64"), None);
    }

    #[test]
    fn dependencies_and_their_providers() {
        let text = "xen-utils-4.17\n  Depends: libc6\n |Depends: one\n  Depends: <python3:any>\n    python3\n  \
                    PreDepends: libyajl2\n  Conflicts: other\n  Depends: perl:any\n";
        assert_eq!(parse_depends(text), ["libc6", "one", "libyajl2", "perl"]);
    }

    #[test]
    fn libraries_of_interpreters_are_left_out() {
        assert!(is_library("libxenstore4") && is_library("libc6") && is_library("zlib1g"));
        assert!(!is_library("libpython3.11-minimal") && !is_library("python3") && !is_library("libperl5.36"));
    }
}
