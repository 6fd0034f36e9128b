//! Finds Linux modules by name and orders them so that each comes after those it depends on, as its
//! own .modinfo section says. Knows nothing of what the modules do.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection};

use crate::xz;

/// The modules of one kernel.
#[derive(Debug)]
pub struct Modules {
    files: HashMap<String, PathBuf>,
    builtin: HashSet<String>,
    xz: xz::Tool,
}

/// A module, ready to insert.
#[derive(Debug, PartialEq, Eq)]
pub struct Module {
    /// Name with underscores.
    pub name: String,
    /// The uncompressed object file.
    pub contents: Vec<u8>,
}

impl Modules {
    /// Lists the modules in a kernel's folder (lib/modules/VERSION).
    pub fn list(folder: &Path, xz: xz::Tool) -> Result<Self> {
        let mut files = HashMap::new();
        collect(folder, &mut files)?;
        let builtin = fs::read_to_string(folder.join("modules.builtin")).unwrap_or_default();
        let builtin = builtin.lines().filter_map(|line| module_name(Path::new(line))).collect();
        Ok(Modules { files, builtin, xz })
    }

    /// Returns modules and what they depend on, in an order in which they can be inserted; those that
    /// the kernel has built in are left out.
    pub fn in_order(&self, wanted: &[&str]) -> Result<Vec<Module>> {
        let mut seen = HashSet::new();
        let mut ordered = Vec::new();
        for name in wanted {
            self.add(&name.replace('-', "_"), &mut seen, &mut ordered)?;
        }
        Ok(ordered)
    }

    fn add(&self, name: &str, seen: &mut HashSet<String>, ordered: &mut Vec<Module>) -> Result<()> {
        if self.builtin.contains(name) || !seen.insert(name.to_owned()) {
            return Ok(());
        }
        let Some(path) = self.files.get(name) else { bail!("this Linux kernel has no module {name}") };
        let packed = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        let contents = self.xz.unpack_if_packed(packed).with_context(|| format!("{}", path.display()))?;
        for dependency in dependencies(&contents).with_context(|| format!("module {name}"))? {
            self.add(&dependency, seen, ordered)?;
        }
        ordered.push(Module { name: name.to_owned(), contents });
        Ok(())
    }
}

fn collect(folder: &Path, files: &mut HashMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            collect(&path, files)?;
        } else if let Some(name) = module_name(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

/// Returns a module's name from its file's: no folder, no ending, underscores.
fn module_name(path: &Path) -> Option<String> {
    let (stem, ending) = path.file_name()?.to_str()?.split_once('.')?;
    ending.starts_with("ko").then(|| stem.replace('-', "_"))
}

/// Returns the names in "depends=" of a module's .modinfo section.
fn dependencies(module: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(module)?;
    let section = file.section_by_name(".modinfo").context("no .modinfo section")?;
    let info = section.data()?;
    let depends = info.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(b"depends="));
    let names = String::from_utf8_lossy(depends.unwrap_or_default()).into_owned();
    Ok(names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_packed_and_plain_modules() {
        let name = |path: &str| module_name(Path::new(path));
        assert_eq!(name("kernel/drivers/net/xen-netback/xen-netback.ko"), Some("xen_netback".into()));
        assert_eq!(name("kernel/net/802/stp.ko.xz"), Some("stp".into()));
        assert_eq!(name("modules.order"), None);
    }
}
