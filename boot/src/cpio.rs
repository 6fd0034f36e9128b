//! Writes "newc" archives, the kind that Linux unpacks as its first file system
//! (Documentation/driver-api/early-userspace/buffer-format.rst). Knows nothing of what is in them.

use std::collections::BTreeSet;
use std::path::Path;

/// An archive in the making.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    directories: BTreeSet<String>,
}

const DIRECTORY: u32 = 0o040_755;
const SYMLINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;
const FILE: u32 = 0o100_000;

impl Archive {
    /// Returns an empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory, and those above it.
    pub fn directory(&mut self, path: &str) {
        self.parents(path);
        let path = path.trim_matches('/');
        if !path.is_empty() && self.directories.insert(path.to_owned()) {
            self.entry(path, DIRECTORY, (0, 0), &[]);
        }
    }

    /// Adds a file with its permission bits.
    pub fn file(&mut self, path: &str, permissions: u32, contents: &[u8]) {
        self.parents(path);
        self.entry(path, FILE | permissions, (0, 0), contents);
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) {
        self.parents(path);
        self.entry(path, SYMLINK, (0, 0), target.as_bytes());
    }

    /// Adds a character device.
    pub fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        self.parents(path);
        self.entry(path, CHARACTER_DEVICE, (major, minor), &[]);
    }

    /// Ends the archive and returns its bytes.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.pad(512);
        self.bytes
    }

    fn parents(&mut self, path: &str) {
        let parent = Path::new(path).parent().and_then(Path::to_str).unwrap_or_default();
        if !parent.trim_matches('/').is_empty() {
            self.directory(parent);
        }
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), contents: &[u8]) {
        let path = path.trim_start_matches('/');
        self.entries += 1;
        let fields = [
            self.entries,
            mode,
            0, // owner
            0, // group
            1, // links
            0, // time: the same input makes the same archive
            contents.len() as u32,
            0, // major and minor of the file system it came from
            0,
            device.0,
            device.1,
            path.len() as u32 + 1,
            0, // checksum, unused in this kind
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(path.bytes());
        self.bytes.push(0);
        self.pad(4);
        self.bytes.extend(contents);
        self.pad(4);
    }

    fn pad(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads an archive back: path, mode, contents.
    fn entries(bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut at = 0;
        let mut found = Vec::new();
        loop {
            assert_eq!(&bytes[at..at + 6], b"070701", "at {at}");
            let field = |n: usize| {
                let text = std::str::from_utf8(&bytes[at + 6 + 8 * n..at + 14 + 8 * n]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (mode, size, name_len) = (field(1), field(6) as usize, field(11) as usize);
            let name = String::from_utf8(bytes[at + 110..at + 110 + name_len - 1].to_vec()).unwrap();
            let data = (at + 110 + name_len).next_multiple_of(4);
            if name == "TRAILER!!!" {
                return found;
            }
            found.push((name, mode, bytes[data..data + size].to_vec()));
            at = (data + size).next_multiple_of(4);
        }
    }

    #[test]
    fn an_archive_reads_back() {
        let mut archive = Archive::new();
        archive.file("/usr/bin/tool", 0o755, b"12345");
        archive.symlink("/bin", "usr/bin");
        archive.file("usr/bin/other", 0o644, b"");
        archive.character_device("/dev/console", 5, 1);
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 512, 0);
        let names: Vec<_> =
            entries(&bytes).into_iter().map(|(name, mode, data)| (name, mode, data.len())).collect();
        let expected = [
            ("usr", 0o040_755, 0),
            ("usr/bin", 0o040_755, 0),
            ("usr/bin/tool", 0o100_755, 5),
            ("bin", 0o120_777, 7),
            ("usr/bin/other", 0o100_644, 0),
            ("dev", 0o040_755, 0),
            ("dev/console", 0o020_600, 0),
        ];
        assert_eq!(names, expected.map(|(name, mode, len)| (name.to_owned(), mode, len)));
    }
}
