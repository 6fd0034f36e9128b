//! Turns a parsed command line into work. Knows how the parts are put together, none of their
//! insides.

use std::process::ExitCode;

use anyhow::{Error, Result};

use crate::cli::{BuildArgs, Cli, Command, SetupArgs};
use crate::progress::Verbosity;
use crate::setup::{Placement, provide};
use crate::workspace::Workspace;
use crate::{bench, count, demo, package, products, run, testing};

/// What every command needs to know.
#[derive(Debug, Clone)]
pub struct Context {
    /// Where things are.
    pub workspace: Workspace,
    /// How much is said.
    pub verbosity: Verbosity,
}

/// Performs a command.
pub fn perform(cli: Cli) -> Result<ExitCode> {
    let verbosity = if cli.verbose { Verbosity::Verbose } else { Verbosity::Normal };
    let context = Context { workspace: Workspace::find()?, verbosity };
    match cli.command {
        Command::Setup(args) => setup(&context, &args)?,
        Command::Build(args) => build(&context, &args)?,
        Command::Package(args) => {
            println!("{}", package::build(&context, args.out.as_deref())?.display());
        }
        Command::Run(args) => run::run(&context, &args)?,
        Command::Demo(args) => return demo::demo(&context, &args),
        Command::Bench(args) => return bench::bench(&context, &args),
        Command::Count(args) => return count::count(&context, &args),
        Command::Test(args) => return testing::test(&context, &args),
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns an error with its causes, the way a person reads it.
pub fn describe(error: &Error) -> String {
    let mut parts = error.chain().map(ToString::to_string);
    let mut text = parts.next().unwrap_or_default();
    for part in parts {
        let separator = if text.contains('\n') { "\n" } else { ": " };
        text.push_str(separator);
        text.push_str(&part);
    }
    text
}

fn setup(context: &Context, args: &SetupArgs) -> Result<()> {
    let placement = if args.unpack { Placement::Unpacked } else { Placement::Installed };
    let provisions = provide(&context.workspace, placement, context.verbosity)?;
    println!("QEMU: {}", provisions.emulator.program.display());
    println!(
        "Xen {} and Linux {}: {}",
        provisions.versions.xen,
        provisions.versions.linux,
        provisions.root.display()
    );
    Ok(())
}

fn build(context: &Context, args: &BuildArgs) -> Result<()> {
    let programs = products::programs(&context.workspace, context.verbosity)?;
    let (kernel, drayage) = (programs.guest, programs.drayage);
    if args.json {
        println!("{}", serde_json::json!({ "kernel": kernel, "drayage": drayage }));
    } else {
        println!("guest image: {}\nbackend: {}", kernel.display(), drayage.display());
    }
    Ok(())
}
