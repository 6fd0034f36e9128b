//! Which shared libraries a program needs, read from its ELF file, and where they lie below a
//! folder. Knows nothing of packages.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use object::read::elf::{Dyn, ElfFile64, FileHeader};
use object::{Endianness, elf};

/// Folders, below the root, in which libraries lie.
const LIBRARY_FOLDERS: [&str; 6] = [
    "lib/x86_64-linux-gnu",
    "usr/lib/x86_64-linux-gnu",
    "lib64",
    "usr/lib64",
    "lib/x86_64-linux-gnu/systemd",
    "usr/lib/x86_64-linux-gnu/systemd",
];

/// Returns every library that some programs need, by name, with the file that has it.
pub fn library_closure(root: &Path, programs: &[PathBuf]) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let mut queue: VecDeque<PathBuf> = programs.iter().cloned().collect();
    while let Some(path) = queue.pop_front() {
        for name in needed(&path)? {
            if found.contains_key(&name) {
                continue;
            }
            let Some(library) = find_library(root, &name) else {
                bail!("{} needs {name}, which no unpacked package has", path.display())
            };
            queue.push_back(library.clone());
            found.insert(name, library);
        }
    }
    Ok(found)
}

/// Returns the file of a library below a root.
pub fn find_library(root: &Path, name: &str) -> Option<PathBuf> {
    LIBRARY_FOLDERS.iter().map(|folder| root.join(folder).join(name)).find(|path| path.exists())
}

/// Returns the names in an ELF file's NEEDED entries; none when the file is not ELF.
pub fn needed(path: &Path) -> Result<Vec<String>> {
    let data = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    if !data.starts_with(&elf::ELFMAG) {
        return Ok(Vec::new());
    }
    needed_in(&data).with_context(|| format!("ELF file {}", path.display()))
}

fn needed_in(data: &[u8]) -> Result<Vec<String>> {
    let file = ElfFile64::<Endianness>::parse(data)?;
    let (endian, header) = (file.endian(), file.elf_header());
    let sections = header.sections(endian, data)?;
    let Some((dynamic, link)) = sections.dynamic(endian, data)? else { return Ok(Vec::new()) };
    let strings = sections.strings(endian, data, link)?;
    let wanted = dynamic.iter().filter(|entry| entry.tag32(endian) == Some(elf::DT_NEEDED));
    wanted.map(|entry| Ok(String::from_utf8_lossy(entry.string(endian, strings)?).into_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_very_program_needs_libc() {
        let names = needed(&std::env::current_exe().unwrap()).unwrap();
        assert!(names.iter().any(|name| name.starts_with("libc.so")), "{names:?}");
    }

    #[test]
    fn a_script_needs_nothing() {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        assert!(needed(&manifest).unwrap().is_empty());
    }
}
