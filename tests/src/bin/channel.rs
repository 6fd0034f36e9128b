//! Brings so many frames of one size one way to an application, and ends: a program to be counted by valgrind.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use drayage_tests::channel::{Setup, Way};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let Some((way, frame_bytes, count)) = parse(&words) else {
        let ways = Way::ALL.map(|(_, name)| name).join("|");
        eprintln!("channel: {words:?} is not {ways} FRAME-BYTES COUNT");
        return ExitCode::from(2);
    };
    Setup::new(way, frame_bytes).run(count);
    ExitCode::SUCCESS
}

fn parse(words: &[String]) -> Option<(Way, usize, u64)> {
    let [way, frame_bytes, count] = words else { return None };
    let (way, _) = Way::ALL.into_iter().find(|(_, name)| name == way)?;
    Some((way, frame_bytes.parse().ok()?, count.parse().ok()?))
}
