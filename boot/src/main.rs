//! The launcher behind `cargo boot`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use drayage_boot::cli::Cli;

fn main() -> ExitCode {
    match drayage_boot::commands::perform(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            // The backtrace of an error that a user can mend is noise, so not {:?}.
            eprintln!("\nerror: {}", drayage_boot::commands::describe(&error));
            ExitCode::FAILURE
        }
    }
}
