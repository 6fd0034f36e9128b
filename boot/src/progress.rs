//! Says what is being done and for how long: a spinner on a terminal, plain lines elsewhere, always
//! on standard error. Knows nothing of the work.

use std::io::IsTerminal;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

/// How much is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verbosity {
    /// Steps only.
    Normal,
    /// Command lines too.
    Verbose,
}

/// A piece of work that takes a while.
#[derive(Debug)]
pub struct Step {
    what: String,
    started: Instant,
    bar: Option<ProgressBar>,
}

impl Step {
    /// Begins a piece of work.
    pub fn begin(what: impl Into<String>) -> Self {
        let what = what.into();
        let bar = std::io::stderr().is_terminal().then(|| spinner(&what));
        if bar.is_none() {
            eprintln!("{what} ...");
        }
        Step { what, started: Instant::now(), bar }
    }

    /// Says how far the work is.
    pub fn update(&self, detail: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(format!("{}: {detail}", self.what)),
            None => eprintln!("  {detail} ({:.1} s)", self.started.elapsed().as_secs_f64()),
        }
    }

    /// Ends the work and says how long it took.
    pub fn done(self, result: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let took_s = self.started.elapsed().as_secs_f64();
        let colon = if result.is_empty() { "" } else { ": " };
        eprintln!("{}{colon}{result} ({took_s:.1} s)", self.what);
    }
}

fn spinner(what: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_message(what.to_owned());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} [{elapsed}]") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// Returns a command as a line that a shell would take.
pub fn command_line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| quote(&word.to_string_lossy())).collect::<Vec<_>>().join(" ")
}

fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Runs a command quietly and returns what it printed; its errors become ours.
pub fn run(command: &mut Command, verbosity: Verbosity) -> Result<String> {
    let output = start(command, verbosity)?.output().with_context(|| command_line(command))?;
    ensure_success(command, output.status, &String::from_utf8_lossy(&output.stderr))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Prepares a command to run without input, echoing it when asked to.
fn start(command: &mut Command, verbosity: Verbosity) -> Result<&mut Command> {
    if verbosity == Verbosity::Verbose {
        eprintln!("+ {}", command_line(command));
    }
    Ok(command.stdin(Stdio::null()))
}

/// Returns an error that shows the end of what a failed command said.
pub fn ensure_success(command: &Command, status: ExitStatus, said: &str) -> Result<()> {
    if !status.success() {
        bail!("{}: {status}\n{}", command_line(command), last_lines(said, 20));
    }
    Ok(())
}

/// Returns the last lines of a text.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_are_quoted() {
        let mut command = Command::new("qemu");
        command.args(["-append", "com1=115200 it's", "", "a,b=c"]);
        assert_eq!(command_line(&command), r"qemu -append 'com1=115200 it'\''s' '' a,b=c");
    }

    #[test]
    fn last_lines_of_short_and_long_texts() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc");
        assert_eq!(last_lines("a", 2), "a");
        assert_eq!(last_lines("", 2), "");
    }

    #[test]
    fn a_failing_command_shows_what_it_said() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo why >&2; exit 4"]);
        let error = run(&mut command, Verbosity::Normal).unwrap_err().to_string();
        assert!(error.contains("why") && error.contains('4'), "{error}");
    }
}
