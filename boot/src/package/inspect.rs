//! Reads a Debian package back, and judges it as Debian's own checker would where it matters here. Knows the format,
//! not how the package was made.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use anyhow::{Context, Result, bail, ensure};
use flate2::read::GzDecoder;
use md5::{Digest, Md5};
use tar::EntryType;

/// A file or folder in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its permission bits.
    pub mode: u32,
    /// What is in it; absent for a folder.
    pub contents: Option<Vec<u8>>,
}

/// A package that was read back.
#[derive(Debug, Clone)]
pub struct Unpacked {
    /// The control archive, by name.
    pub control: BTreeMap<String, Member>,
    /// The data archive, by path from the root on.
    pub data: BTreeMap<String, Member>,
}

/// Reads a package, and fails on what a package must not be.
pub fn inspect(bytes: &[u8]) -> Result<Unpacked> {
    let mut archive = ar::Archive::new(bytes);
    let mut next = |name: &str| -> Result<Vec<u8>> {
        let mut entry = archive.next_entry().with_context(|| format!("no {name}"))??;
        let found = String::from_utf8_lossy(entry.header().identifier()).into_owned();
        ensure!(found == name, "{found} where {name} belongs");
        let mut contents = Vec::new();
        entry.read_to_end(&mut contents)?;
        Ok(contents)
    };
    ensure!(next("debian-binary")? == b"2.0\n", "another version of the format");
    let control = unpack(&next("control.tar.gz")?).context("control.tar.gz")?;
    let data = unpack(&next("data.tar.gz")?).context("data.tar.gz")?;
    let unpacked = Unpacked { control, data };
    unpacked.judge_control()?;
    unpacked.judge_files()?;
    Ok(unpacked)
}

fn unpack(packed: &[u8]) -> Result<BTreeMap<String, Member>> {
    let mut members = BTreeMap::new();
    let mut folders = BTreeSet::from([String::from("./")]);
    let mut archive = tar::Archive::new(GzDecoder::new(packed));
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = String::from_utf8(entry.path_bytes().into_owned()).context("a name that is no text")?;
        let header = entry.header().clone();
        ensure!(path.starts_with("./"), "{path}: does not start with ./");
        ensure!((header.uid()?, header.gid()?) == (0, 0), "{path}: is not root's");
        let mode = header.mode()?;
        ensure!(mode & 0o022 == 0, "{path}: others may write it");
        ensure!(mode & 0o7000 == 0, "{path}: has special bits");
        let trimmed = path.trim_end_matches('/');
        let parent = trimmed.rsplit_once('/').map_or(".", |(parent, _)| parent);
        ensure!(folders.contains(&format!("{parent}/")), "{path}: its folder comes after it");
        let contents = match header.entry_type() {
            EntryType::Directory => {
                folders.insert(format!("{trimmed}/"));
                None
            }
            EntryType::Regular => {
                let mut contents = Vec::new();
                entry.read_to_end(&mut contents)?;
                Some(contents)
            }
            other => bail!("{path}: is a {other:?}"),
        };
        let name = trimmed.trim_start_matches('.').to_owned();
        ensure!(members.insert(name, Member { mode, contents }).is_none(), "{path}: is there twice");
    }
    Ok(members)
}

impl Unpacked {
    /// Returns a text of the control archive.
    pub fn control_text(&self, name: &str) -> Result<String> {
        let member = self.control.get(&format!("/{name}")).with_context(|| format!("no {name}"))?;
        let contents = member.contents.clone().with_context(|| format!("{name} is a folder"))?;
        String::from_utf8(contents).with_context(|| format!("{name} is no text"))
    }

    /// Returns a field of the control file.
    pub fn field(&self, name: &str) -> Result<String> {
        let text = self.control_text("control")?;
        let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        found.map(str::to_owned).with_context(|| format!("control has no {name}"))
    }

    fn judge_control(&self) -> Result<()> {
        for field in
            ["Package", "Version", "Architecture", "Maintainer", "Description", "Section", "Priority"]
        {
            ensure!(!self.field(field)?.trim().is_empty(), "{field} is empty");
        }
        let kib: u64 = self.field("Installed-Size")?.parse().context("Installed-Size")?;
        let bytes: usize = self.data.values().filter_map(|m| m.contents.as_ref()).map(Vec::len).sum();
        let most = bytes as u64 / 1024 + 2 * self.data.len() as u64;
        ensure!((bytes as u64 / 1024..=most).contains(&kib), "Installed-Size {kib} for {bytes} bytes");
        for name in ["preinst", "postinst", "prerm", "postrm"] {
            let Some(script) = self.control.get(&format!("/{name}")) else { continue };
            ensure!(script.mode == 0o755, "{name} cannot be run");
            let text = self.control_text(name)?;
            ensure!(text.starts_with("#!/bin/sh\n") && text.contains("set -e"), "{name} hides its failures");
            for word in ["enable", "start "] {
                let used = text.lines().any(|line| !line.starts_with('#') && line.contains(word));
                ensure!(!(used && name.ends_with("inst")), "{name} enables or starts something unasked");
            }
        }
        Ok(())
    }

    fn judge_files(&self) -> Result<()> {
        let mut sums = BTreeMap::new();
        for line in self.control_text("md5sums")?.lines() {
            let (sum, path) = line.split_once("  ").with_context(|| format!("md5sums: {line:?}"))?;
            sums.insert(format!("/{path}"), sum.to_owned());
        }
        let files = self.data.iter().filter_map(|(path, m)| m.contents.as_ref().map(|c| (path, c, m.mode)));
        for (path, contents, mode) in files {
            let sum: String = Md5::digest(contents).iter().map(|byte| format!("{byte:02x}")).collect();
            let expected = (!path.starts_with("/etc/")).then_some(&sum);
            ensure!(sums.remove(path).as_ref() == expected, "{path}: its sum is missing, wrong or too much");
            let program = path.starts_with("/usr/sbin/") || path.starts_with("/etc/xen/scripts/");
            ensure!(program == (mode == 0o755), "{path}: has mode {mode:o}");
            if path.starts_with("/usr/share/man/") {
                ensure!(path.ends_with(".gz"), "{path}: is not compressed");
            }
        }
        ensure!(sums.is_empty(), "sums of what is not there: {sums:?}");
        let listed: BTreeSet<String> = match self.control.contains_key("/conffiles") {
            true => self.control_text("conffiles")?.lines().map(str::to_owned).collect(),
            false => BTreeSet::new(),
        };
        let below_etc =
            self.data.iter().filter(|(path, m)| path.starts_with("/etc/") && m.contents.is_some());
        let expected: BTreeSet<String> = below_etc.map(|(path, _)| path.clone()).collect();
        ensure!(listed == expected, "conffiles are {listed:?}, and what is below /etc is {expected:?}");
        let name = self.field("Package")?;
        for document in ["copyright", "changelog.gz"] {
            let path = format!("/usr/share/doc/{name}/{document}");
            ensure!(self.data.contains_key(&path), "{path} is missing");
        }
        Ok(())
    }
}
