//! The first process of a Linux guest: mounts, inserts modules, runs the script that the kernel
//! command line carries, reaps. Knows nothing of what the script does.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::sys;

/// Key on the kernel command line; its dot keeps Linux from handing it to us as an argument.
const SCRIPT_KEY: &str = "peer.script=";

/// List of modules in order of insertion, one path a line.
const MODULE_LIST: &str = "/modules/list";

/// Runs a guest; returns only when something failed.
pub fn run() -> Result<()> {
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/run")] {
        fs::create_dir_all(target)?;
        sys::mount(kind, target)?;
    }
    let modules = fs::read_to_string(MODULE_LIST).unwrap_or_default();
    for path in modules.lines() {
        insert(Path::new(path))?;
    }
    let command_line = fs::read_to_string("/proc/cmdline").context("reading the kernel command line")?;
    let Some(script) = script_of(&command_line)? else {
        bail!("the kernel command line has no {SCRIPT_KEY}")
    };
    Command::new("/bin/busybox").args(["sh", "-c", &script]).spawn().context("starting the script")?;
    while sys::reap_any().is_some() {}
    bail!("the script and all that it started have ended")
}

/// Inserts one module and says so when that fails.
pub fn insert(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("opening module {}", path.display()))?;
    sys::insert_module(&file).with_context(|| format!("inserting module {}", path.display()))
}

/// Returns a script as one word for a kernel command line.
pub fn encode(script: &str) -> String {
    let mut word = String::from(SCRIPT_KEY);
    for byte in script.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'/' | b':' | b',' => {
                word.push(char::from(byte));
            }
            other => word.push_str(&format!("%{other:02x}")),
        }
    }
    word
}

fn script_of(command_line: &str) -> Result<Option<String>> {
    let Some(word) = command_line.split_whitespace().find_map(|word| word.strip_prefix(SCRIPT_KEY)) else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    let mut rest = word.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let Some(byte) = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) else {
            bail!("{SCRIPT_KEY} has a % without two hexadecimal digits behind it")
        };
        bytes.push(byte);
        rest = &tail[2..];
    }
    Ok(Some(String::from_utf8(bytes).context("the script is not UTF-8")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_survives_the_command_line() {
        let script = "ip addr add 10.0.0.2/24 dev eth0\necho \"100% ü\" & wait; exit $?";
        let line = format!("console=hvc0 {} quiet\n", encode(script));
        assert_eq!(line.split_whitespace().count(), 3, "{line}");
        assert_eq!(script_of(&line).unwrap().as_deref(), Some(script));
    }

    #[test]
    fn what_is_malformed_is_an_error() {
        assert_eq!(script_of("console=hvc0").unwrap(), None);
        assert!(script_of("peer.script=a%2").is_err());
        assert!(script_of("peer.script=a%zz").is_err());
    }
}
