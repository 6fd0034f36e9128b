//! Pages of our own that outlive this process: a file of one page each in a folder, mapped.
//!
//! It knows files, and not what is kept in them. The names begin with the number of the domain whose business they
//! are, so that what belongs to a domain that is gone can be removed.
#![allow(unsafe_code)]

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use drayage_shared::SharedPage;
use drayage_wire::PAGE_SIZE;

use super::DomainId;

/// The folder.
#[derive(Clone, Debug)]
pub struct KeptPages {
    folder: PathBuf,
}

/// A kept page, mapped until it is dropped.
#[derive(Debug)]
pub(super) struct KeptPage {
    at: NonNull<u8>,
    words: SharedPage,
}

// SAFETY: the address is only used through `SharedPage`, which may be used from whichever thread owns it.
unsafe impl Send for KeptPage {}

impl KeptPages {
    /// Keeps pages in a folder, which is made when it is needed.
    pub fn in_folder(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Maps the page of a name, zeroed if it is new.
    pub(super) fn open(&self, name: &str) -> io::Result<KeptPage> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let path = self.folder.join(name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)?;
        file.set_len(PAGE_SIZE as u64)?;
        KeptPage::map(&file)
    }

    /// Removes the page of a name.
    pub(super) fn remove(&self, name: &str) {
        // One that is not there is as good as removed.
        let _ = std::fs::remove_file(self.folder.join(name));
    }

    /// Removes the pages of all domains that are not `alive`.
    pub fn sweep(&self, alive: impl Fn(DomainId) -> bool) {
        for entry in std::fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let domain = name.to_str().and_then(|name| name.split('-').next()?.parse().ok()).map(DomainId);
            if domain.is_none_or(|domain| !alive(domain)) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    /// Returns the folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl KeptPage {
    fn map(file: &File) -> io::Result<Self> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a mapping at an address of the kernel's choice replaces nothing.
        let at = unsafe {
            libc::mmap(std::ptr::null_mut(), PAGE_SIZE, prot, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let at = NonNull::new(at.cast::<u8>()).ok_or(io::ErrorKind::InvalidData)?;
        // SAFETY: the page was just mapped, page-aligned, for reading and writing; it stays so until `drop`, which
        // drops this value with it, and nothing else in the program knows the address.
        let words = unsafe { SharedPage::new(at) };
        Ok(Self { at, words })
    }

    /// Returns the page's words.
    pub(super) fn words(&self) -> &SharedPage {
        &self.words
    }
}

impl Drop for KeptPage {
    fn drop(&mut self) {
        // SAFETY: the range is the one that `map` mapped; its only user is dropped with it.
        unsafe { libc::munmap(self.at.as_ptr().cast(), PAGE_SIZE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use drayage_wire::ring::SharedWords;
    use std::sync::atomic::Ordering;

    #[test]
    fn a_page_is_the_same_again_until_it_is_removed_or_its_domain_is_gone() {
        let folder = std::env::temp_dir().join(format!("drayage-kept-{}", std::process::id()));
        let pages = KeptPages::in_folder(folder.join("rings"));
        let read = |name| pages.open(name).unwrap().words().load(7, Ordering::Relaxed);
        for name in ["5-8-tx", "6-8-tx"] {
            assert_eq!(read(name), 0);
            pages.open(name).unwrap().words().store(7, 42, Ordering::Relaxed);
            assert_eq!(read(name), 42);
        }
        pages.remove("5-8-tx");
        assert_eq!(read("5-8-tx"), 0);
        std::fs::write(pages.folder().join("rubbish"), "").unwrap();
        pages.sweep(|domain| domain == DomainId(5));
        let left: Vec<_> =
            std::fs::read_dir(pages.folder()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["5-8-tx"]);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
