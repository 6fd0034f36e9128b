//! Manual pages and shell completions, made of the command line's own definition.
//!
//! It knows clap's description of the command line, and nothing of what the commands do.

use std::io;
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::cli::Cli;

/// Commands of the system's administration.
const SECTION: &str = "8";

/// Writes the completions of a shell.
pub(crate) fn completions(shell: Shell, out: &mut dyn io::Write) -> io::Result<()> {
    // clap_complete writes into memory here: it panics where a write fails.
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "drayage", &mut text);
    out.write_all(&text)
}

/// Writes a page for the program and one for each command into a folder, which is made when it is missing.
pub(crate) fn pages(folder: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut root = Cli::command().name("drayage").disable_help_subcommand(true);
    root.build();
    page(&root, folder)
}

fn page(command: &Command, folder: &Path) -> io::Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let mut text = Vec::new();
    // Neither a date nor anything else of the machine that builds: the same source makes the same pages.
    Man::new(command.clone())
        .section(SECTION)
        .title(name.to_uppercase())
        .manual("Drayage")
        .source(format!("drayage {}", env!("CARGO_PKG_VERSION")))
        .render(&mut text)?;
    std::fs::write(folder.join(format!("{name}.{SECTION}")), text)?;
    command.get_subcommands().filter(|c| !c.is_hide_set()).try_for_each(|c| page(c, folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_is_completed() {
        let folder = std::env::temp_dir().join(format!("drayage-man-{}", std::process::id()));
        pages(&folder).unwrap();
        let main = std::fs::read_to_string(folder.join("drayage.8")).unwrap();
        assert!(main.contains(".TH DRAYAGE 8"), "{main}");
        assert!(main.contains("the daemon does not run"), "exit codes are in it: {main}");
        let mut shells = Vec::new();
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut text = Vec::new();
            completions(shell, &mut text).unwrap();
            shells.push(String::from_utf8(text).unwrap());
        }
        for command in Cli::command().get_subcommands() {
            let name = command.get_name();
            let page = std::fs::read_to_string(folder.join(format!("drayage-{name}.8"))).unwrap();
            assert!(page.contains(&format!("drayage\\-{name}")), "{page}");
            assert!(main.contains(&format!("drayage\\-{name}(8)")), "{name} is not in {main}");
            for argument in command.get_arguments().filter_map(clap::Arg::get_long) {
                let argument = argument.replace('-', "\\-");
                assert!(page.contains(&argument), "{argument} is not in {page}");
            }
            assert!(shells.iter().all(|text| text.contains(name)), "{name}");
        }
        let count = std::fs::read_dir(&folder).unwrap().count();
        assert_eq!(
            count,
            Cli::command().get_subcommands().count() + 1,
            "no page for clap's own help command"
        );
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
