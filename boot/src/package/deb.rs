//! Writes Debian packages (deb(5)): an ar archive of a version, a control archive and a data archive. The same entries
//! make the same bytes. Knows nothing of what is packaged.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use flate2::{Compression, GzBuilder};
use md5::{Digest, Md5};
use tar::{EntryType, Header};

/// A file of a package.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Where it goes, from the root on.
    pub path: String,
    /// Its permission bits.
    pub mode: u32,
    /// What is in it.
    pub contents: Vec<u8>,
    /// What becomes of it in an upgrade.
    pub kind: Kind,
}

/// What becomes of a file in an upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It is replaced.
    Ordinary,
    /// The operator's changes are kept.
    Configuration,
}

/// A package in the making.
#[derive(Debug, Clone)]
pub struct Package {
    /// The fields of its control file but Installed-Size, each as name and value.
    pub fields: Vec<(&'static str, String)>,
    /// Scripts that run when it is installed or removed, by name.
    pub scripts: Vec<(&'static str, &'static str)>,
    /// Its files.
    pub entries: Vec<Entry>,
    /// The time of all files, in seconds since 1970.
    pub time_s: u64,
}

impl Package {
    /// Returns the package's bytes.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        self.entries.sort_by(|one, other| one.path.cmp(&other.path));
        let control = self.control()?;
        let data = self.data()?;
        let mut archive = ar::Builder::new(Vec::new());
        let members: [(&str, &[u8]); 3] =
            [("debian-binary", b"2.0\n"), ("control.tar.gz", &control), ("data.tar.gz", &data)];
        for (name, contents) in members {
            let mut header = ar::Header::new(name.as_bytes().to_vec(), contents.len() as u64);
            header.set_mode(0o100_644);
            header.set_mtime(self.time_s);
            archive.append(&header, contents).with_context(|| format!("adding {name}"))?;
        }
        archive.into_inner().context("ending the package")
    }

    fn control(&self) -> Result<Vec<u8>> {
        let mut tar = Tar::new(self.time_s);
        // The policy's formula: each file in whole KiB, and one for each folder.
        let files: u64 = self.entries.iter().map(|entry| entry.contents.len().div_ceil(1024) as u64).sum();
        let installed_kib = files + folders(&self.entries).len() as u64;
        let mut text = String::new();
        for (name, value) in &self.fields {
            if *name == "Description" {
                text.push_str(&format!("Installed-Size: {installed_kib}\n"));
            }
            text.push_str(&format!("{name}: {value}\n"));
        }
        tar.folder("./")?;
        let mut names = String::new();
        for entry in self.entries.iter().filter(|entry| entry.kind == Kind::Configuration) {
            names.push_str(&format!("{}\n", entry.path));
        }
        if !names.is_empty() {
            tar.file("./conffiles", 0o644, names.as_bytes())?;
        }
        tar.file("./control", 0o644, text.as_bytes())?;
        let mut sums = String::new();
        // Configuration is the operator's to change, and has no sum.
        for entry in self.entries.iter().filter(|entry| entry.kind == Kind::Ordinary) {
            let sum: String = Md5::digest(&entry.contents).iter().map(|byte| format!("{byte:02x}")).collect();
            sums.push_str(&format!("{sum}  {}\n", entry.path.trim_start_matches('/')));
        }
        tar.file("./md5sums", 0o644, sums.as_bytes())?;
        for (name, script) in &self.scripts {
            tar.file(&format!("./{name}"), 0o755, script.as_bytes())?;
        }
        tar.finish()
    }

    fn data(&self) -> Result<Vec<u8>> {
        let mut tar = Tar::new(self.time_s);
        let mut made = BTreeSet::new();
        tar.folder("./")?;
        for entry in &self.entries {
            for folder in folders(std::slice::from_ref(entry)) {
                if made.insert(folder.clone()) {
                    tar.folder(&format!(".{folder}/"))?;
                }
            }
            tar.file(&format!(".{}", entry.path), entry.mode, &entry.contents)?;
        }
        tar.finish()
    }
}

/// Returns all folders above some files, outer ones first.
fn folders(entries: &[Entry]) -> BTreeSet<String> {
    let above = |entry: &Entry| -> Vec<String> {
        let parents = Path::new(&entry.path).ancestors().skip(1);
        parents.filter_map(Path::to_str).filter(|path| *path != "/").map(str::to_owned).collect()
    };
    entries.iter().flat_map(above).collect()
}

struct Tar {
    archive: tar::Builder<Vec<u8>>,
    time_s: u64,
}

impl Tar {
    fn new(time_s: u64) -> Self {
        Tar { archive: tar::Builder::new(Vec::new()), time_s }
    }

    fn folder(&mut self, path: &str) -> Result<()> {
        self.add(path, EntryType::Directory, 0o755, &[])
    }

    fn file(&mut self, path: &str, mode: u32, contents: &[u8]) -> Result<()> {
        self.add(path, EntryType::Regular, mode, contents)
    }

    fn add(&mut self, path: &str, kind: EntryType, mode: u32, contents: &[u8]) -> Result<()> {
        let mut header = Header::new_gnu();
        let gnu = header.as_gnu_mut().context("a header that is none of GNU's")?;
        // By hand: the crate takes "./" away, which dpkg's own archives have.
        ensure!(path.len() < gnu.name.len(), "{path:?} is too long for a package");
        gnu.name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_username("root").context("an owner")?;
        header.set_groupname("root").context("a group")?;
        header.set_mtime(self.time_s);
        header.set_size(contents.len() as u64);
        header.set_cksum();
        self.archive.append(&header, contents).with_context(|| format!("adding {path}"))
    }

    fn finish(self) -> Result<Vec<u8>> {
        gzip(&self.archive.into_inner().context("ending an archive")?)
    }
}

/// Compresses without a name and a time, so that the same text makes the same bytes.
pub fn gzip(plain: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().mtime(0).operating_system(255).write(Vec::new(), Compression::best());
    encoder.write_all(plain).and_then(|()| encoder.finish()).context("compressing")
}
