//! The command `drayage`.
#![forbid(unsafe_code)]

mod cli;
mod commands;
mod manual;
mod top;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match commands::run(cli::Cli::parse()) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("drayage: {failure}");
            ExitCode::from(failure.kind.exit_code())
        }
    }
}
