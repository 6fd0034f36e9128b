//! Waits for a line of a growing file, woken by inotify. Knows nothing of what the file is.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::sys::{self, Readiness};

/// A line found in a file.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// The line without its end.
    pub line: String,
    /// Offset behind it.
    pub next: u64,
}

/// Waits until a complete line behind `offset` contains one of the texts; `None` when time is up.
pub fn await_line(path: &Path, offset: u64, any_of: &[String], timeout: Duration) -> Result<Option<Found>> {
    let directory = path.parent().and_then(Path::to_str).filter(|name| !name.is_empty()).unwrap_or(".");
    // The watch comes first: what is written between the look and the wait then still wakes us.
    let mut events =
        sys::watch_directory(directory).with_context(|| format!("watching directory {directory:?}"))?;
    let deadline_ns = sys::monotonic_ns().saturating_add(timeout.as_nanos() as u64);
    loop {
        if let Some(found) = look(path, offset, any_of)? {
            return Ok(Some(found));
        }
        let left = Duration::from_nanos(deadline_ns.saturating_sub(sys::monotonic_ns()));
        if sys::wait_readable(&events, left)? == Readiness::TimedOut {
            return Ok(None);
        }
        let mut drained = [0; 4096];
        events.read(&mut drained).context("reading inotify events")?;
    }
}

fn look(path: &Path, offset: u64, any_of: &[String]) -> Result<Option<Found>> {
    let Ok(mut file) = File::open(path) else { return Ok(None) };
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).with_context(|| format!("reading {}", path.display()))?;
    Ok(find(&bytes, offset, any_of))
}

fn find(bytes: &[u8], offset: u64, any_of: &[String]) -> Option<Found> {
    let mut next = offset;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        next += line.len() as u64;
        let text = String::from_utf8_lossy(line);
        // What has no end yet may still grow.
        let line = text.strip_suffix('\n')?.trim_end_matches('\r');
        if any_of.iter().any(|wanted| line.contains(wanted.as_str())) {
            return Some(Found { line: line.to_owned(), next });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn only_complete_lines_count() {
        let wanted = ["ready".to_owned()];
        assert_eq!(find(b"one\nready", 10, &wanted), None);
        let found = find(b"one\nready 2\r\nthree\n", 10, &wanted);
        assert_eq!(found, Some(Found { line: "ready 2".into(), next: 23 }));
    }

    #[test]
    fn a_line_written_later_wakes_the_wait() {
        let path = std::env::temp_dir().join(format!("peer-watch-{}", std::process::id()));
        std::fs::remove_file(&path).ok();
        let writer = {
            let path = path.clone();
            std::thread::spawn(move || {
                let mut file = File::create(path).unwrap();
                file.write_all(b"not yet\n").unwrap();
                file.write_all(b"verdict: o").unwrap();
                file.write_all(b"k\n").unwrap();
            })
        };
        let wanted = ["verdict".to_owned()];
        let found = await_line(&path, 0, &wanted, Duration::from_secs(10)).unwrap().unwrap();
        writer.join().unwrap();
        assert_eq!(found, Found { line: "verdict: ok".into(), next: 20 });
        assert_eq!(await_line(&path, found.next, &wanted, Duration::from_millis(50)).unwrap(), None);
        std::fs::remove_file(&path).ok();
    }
}
