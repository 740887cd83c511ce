//! `--command` and `--args` take values that look like flags, as `sh -c` needs it.
//!
//! clap either ends such a list at anything with a hyphen or swallows the flags that follow it. So
//! the values are joined to their flag here, `--args=-c`, up to the next long flag of the command.

use std::ffi::OsString;

use clap::CommandFactory as _;

use super::args::Cli;

const GREEDY: [&str; 2] = ["--command", "--args"];

/// Rewrites the arguments of `sessionpool create` and `update`; all others stay as they are.
pub fn expand(arguments: Vec<OsString>) -> Vec<OsString> {
    let named = |at: usize, name: &str| arguments.get(at).is_some_and(|argument| argument == name);
    let command = ["create", "update"]
        .into_iter()
        .find(|command| named(1, "sessionpool") && named(2, command));
    let Some(command) = command else {
        return arguments;
    };
    let known = long_flags(command);
    let mut expanded = Vec::with_capacity(arguments.len());
    let mut rest = arguments.into_iter().peekable();
    while let Some(argument) = rest.next() {
        let Some(flag) = GREEDY.into_iter().find(|flag| argument == *flag) else {
            expanded.push(argument);
            continue;
        };
        let before = expanded.len();
        while let Some(value) = rest.next_if(|value| !is_known(&known, value)) {
            let mut joined = OsString::from(flag);
            joined.push("=");
            joined.push(value);
            expanded.push(joined);
        }
        if expanded.len() == before {
            // Left for clap to complain about.
            expanded.push(argument);
        }
    }
    expanded
}

fn long_flags(command: &str) -> Vec<String> {
    let mut cli = Cli::command();
    cli.build();
    let flags = cli
        .find_subcommand("sessionpool")
        .and_then(|pools| pools.find_subcommand(command))
        .into_iter()
        .flat_map(clap::Command::get_arguments);
    flags
        .filter_map(clap::Arg::get_long)
        .map(|long| format!("--{long}"))
        .collect()
}

fn is_known(known: &[String], argument: &OsString) -> bool {
    let text = argument.to_string_lossy();
    let name = text.split_once('=').map_or(text.as_ref(), |(name, _)| name);
    known.iter().any(|flag| flag == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(arguments: &str) -> String {
        let words = arguments.split(' ').map(OsString::from).collect();
        let words = expand(words)
            .into_iter()
            .map(|word| word.into_string().unwrap());
        words.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn list_ends_at_the_next_long_flag_and_holds_everything_else() {
        assert_eq!(
            expanded("cabana sessionpool create --command sh -c --args -n --x --cpu=1 --json -n p"),
            "cabana sessionpool create --command=sh --command=-c --args=-n --args=--x --cpu=1 --json -n p"
        );
        assert_eq!(
            expanded("cabana sessionpool update --args -c --probe-yaml f --command  --name p"),
            "cabana sessionpool update --args=-c --probe-yaml f --command= --name p"
        );
    }

    #[test]
    fn list_without_values_and_other_commands_stay_as_they_are() {
        for unchanged in [
            "cabana sessionpool create --args --json",
            "cabana sessionpool create --args",
            "cabana sessionpool show --args -c",
            "cabana",
        ] {
            assert_eq!(expanded(unchanged), unchanged);
        }
    }
}
