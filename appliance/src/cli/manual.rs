//! Completions and man pages, made from the same definition as the commands.

use std::fs;
use std::io;
use std::path::Path;

use clap::{Command, CommandFactory as _};
use clap_complete::Shell;

use super::args::Cli;
use super::output::write;
use crate::exit::{Exit, Failure};

const NAME: &str = "cabana";

pub fn completion(shell: Shell) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut public(&Cli::command()), NAME, &mut script);
    write(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Ok)
}

/// One page for each command: `cabana.1`, `cabana-sessionpool.1`, `cabana-sessionpool-create.1`.
pub fn pages(folder: &Path) -> Result<Exit, Failure> {
    let mut command = public(&Cli::command());
    command.build();
    let written = fs::create_dir_all(folder).and_then(|()| page(&command, NAME, folder));
    written.map_err(|error| {
        Failure::new(
            Exit::Failed,
            format!("Cannot write to {}: {error}", folder.display()),
        )
    })?;
    Ok(Exit::Ok)
}

fn page(command: &Command, name: &str, folder: &Path) -> io::Result<()> {
    let mut text = Vec::new();
    let titled = command
        .clone()
        .name(name.to_owned())
        .bin_name(name.replace('-', " "));
    clap_mangen::Man::new(titled).render(&mut text)?;
    fs::write(folder.join(format!("{name}.1")), text)?;
    for below in command.get_subcommands() {
        page(below, &format!("{name}-{}", below.get_name()), folder)?;
    }
    Ok(())
}

/// Without the commands that nobody types.
fn public(command: &Command) -> Command {
    let mut kept = Command::new(command.get_name().to_owned());
    for argument in command.get_arguments() {
        kept = kept.arg(argument.clone());
    }
    for group in command.get_groups() {
        kept = kept.group(group.clone());
    }
    let about = (
        command.get_about(),
        command.get_long_about(),
        command.get_after_help(),
    );
    if let (Some(about), ..) = about {
        kept = kept.about(about.clone());
    }
    if let (_, Some(about), _) = about {
        kept = kept.long_about(about.clone());
    }
    if let (.., Some(help)) = about {
        kept = kept.after_help(help.clone());
    }
    if let Some(version) = command.get_version() {
        kept = kept.version(version.to_owned());
    }
    let visible = command
        .get_subcommands()
        .filter(|below| !below.is_hide_set());
    kept.disable_help_subcommand(true)
        .subcommands(visible.map(public))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_that_is_shown_has_a_page() {
        let folder = tempfile::tempdir().unwrap();
        pages(folder.path()).unwrap();
        let read = |name: &str| fs::read_to_string(folder.path().join(name));
        assert!(read("cabana.1").unwrap().contains("Exit codes"));
        let create = read("cabana-sessionpool-create.1").unwrap();
        assert!(
            create.contains("target\\-port") && create.contains("Examples"),
            "{create}"
        );
        assert!(read("cabana-bench.1").is_err() && read("cabana-appliance.1").is_err());
    }

    #[test]
    fn completions_know_the_commands_and_not_the_hidden_ones() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut public(&Cli::command()), NAME, &mut script);
            let script = String::from_utf8(script).unwrap();
            assert!(script.contains("sessionpool"), "{shell}");
            assert!(!script.contains("image-worker"), "{shell}");
        }
    }
}
