//! The command line: what can be said, and how each command ends.
//!
//! The flags of `sessionpool` are those of `az containerapp sessionpool`. Client commands speak HTTP
//! over the appliance's admin socket and need no token.

mod args;
mod bench;
mod client;
mod drain;
mod exec;
mod formats;
mod golden;
mod greedy;
mod image;
mod login;
mod logs;
mod manual;
mod output;
mod probes;
mod pull;
mod query;
mod secrets;
mod session;
mod sessionpool;
mod source;
mod stop;
mod store;
mod terminal;
mod tls;
mod token;
mod values;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use crate::config::{self, Overrides};
use crate::exit::{Exit, Failure};
use crate::warden::{self, Task};
use crate::{appliance, doctor, openapi, telemetry, worker};
use args::{
    Cli, Command, GoldenCommand, ImageCommand, SessionCommand, SessionPoolCommand, StoreCommand,
};

/// Runs the command that the process was started with.
pub fn run() -> ExitCode {
    parse_and_run().unwrap_or_else(|Failure { exit, line }| {
        complain(&line);
        exit.into()
    })
}

fn complain(line: &str) {
    // stderr may be closed; there is no better place to say it.
    let _ = writeln!(std::io::stderr(), "cabana: {line}");
}

fn parse_and_run() -> Result<ExitCode, Failure> {
    let arguments = greedy::expand(std::env::args_os().collect());
    match Cli::try_parse_from(&arguments) {
        Ok(cli) => dispatch(cli),
        Err(error) => refuse(&error, &arguments).map(ExitCode::from),
    }
}

fn dispatch(cli: Cli) -> Result<ExitCode, Failure> {
    let ended = match cli.command {
        Command::Serve(serve) => {
            let overrides = Overrides {
                listen: serve.listen,
                unconfined: serve.unconfined,
            };
            let config = config::load(&serve.root, serve.config.as_deref(), &overrides)
                .map_err(|error| Failure::of(Exit::Usage, &error))?;
            run_warden(config, Task::Serve)
        }
        Command::Stop(command) => stop::stop(&command),
        Command::Drain(command) => drain::drain(&command),
        Command::Bench(command) => bench::run(command),
        Command::Doctor { output } => {
            let report = doctor::Report::make();
            output::print(&output, &report, |report| report.text())?;
            Ok(if report.can_run_guests {
                Exit::Ok
            } else {
                Exit::Failed
            })
        }
        Command::SessionPool(command) => match command {
            SessionPoolCommand::Create(create) => sessionpool::create(create),
            SessionPoolCommand::Update(update) => sessionpool::update(update),
            SessionPoolCommand::Show(target) => sessionpool::show(&target),
            SessionPoolCommand::List(list) => sessionpool::list(&list),
            SessionPoolCommand::Delete(delete) => sessionpool::delete(&delete),
        },
        Command::Session(SessionCommand::List(target)) => session::list(&target),
        Command::Session(SessionCommand::Show(show)) => session::show(&show),
        Command::Session(SessionCommand::Stop(stop)) => session::stop(&stop),
        Command::Session(SessionCommand::Exec(command)) => return exec::exec(&command),
        Command::Session(SessionCommand::Logs(logs)) => logs::logs(&logs),
        Command::Store(StoreCommand::Export(export)) => store::export(&export),
        Command::Store(StoreCommand::Import(import)) => store::import(&import),
        Command::Image(ImageCommand::Pull(command)) => pull::pull(&command),
        Command::Image(ImageCommand::Import(import)) => image::import(&import),
        Command::Image(ImageCommand::Ls(list)) => image::list(&list),
        Command::Image(ImageCommand::Inspect(inspect)) => image::inspect(&inspect),
        Command::Image(ImageCommand::Rm(remove)) => image::remove(&remove),
        Command::Image(ImageCommand::Prune(prune)) => image::prune(&prune),
        Command::Golden(GoldenCommand::Ls(list)) => golden::list(&list),
        Command::Golden(GoldenCommand::Inspect { file }) => golden::inspect(&file),
        Command::Token(command) => token::run(&command),
        Command::Tls(command) => tls::run(&command),
        Command::OpenApi => output::write(openapi::document()).map(|()| Exit::Ok),
        Command::Completion { shell } => manual::completion(shell),
        Command::Man { folder } => manual::pages(&folder),
        Command::ReleaseCgroup => warden::release_cgroup()
            .map(|()| Exit::Ok)
            .map_err(|error| Failure::of(Exit::Failed, &error)),
        Command::Appliance => appliance::run(),
        Command::ImageWorker => worker::image::run(),
    };
    ended.map(ExitCode::from)
}

fn run_warden(config: config::Checked, task: Task) -> Result<Exit, Failure> {
    telemetry::start();
    warden::serve(config, task).map_err(|error| Failure::of(error.exit(), &error))
}

/// Help and version go out as they are; a mistake becomes one line with a hint.
fn refuse(error: &clap::Error, arguments: &[std::ffi::OsString]) -> Result<Exit, Failure> {
    use clap::error::ErrorKind::{DisplayHelp, DisplayVersion};
    if matches!(error.kind(), DisplayHelp | DisplayVersion) {
        let _ = error.print();
        return Ok(Exit::Ok);
    }
    Err(Failure::new(Exit::Usage, usage_line(error, arguments)))
}

fn usage_line(error: &clap::Error, arguments: &[std::ffi::OsString]) -> String {
    use clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand as MissingSubcommand;
    let path = command_path(arguments);
    if error.kind() == MissingSubcommand {
        return format!("A command is needed after `{path}` (see `{path} --help`)");
    }
    let text = error.render().to_string();
    // The first paragraph says what is wrong; the others repeat the usage.
    let what: Vec<&str> = text
        .lines()
        .take_while(|line| !line.trim().is_empty())
        .map(str::trim)
        .collect();
    let what = what.join(" ");
    let what = what.strip_prefix("error: ").unwrap_or(&what);
    let mut letters = what.chars();
    let first = letters
        .next()
        .map(|letter| letter.to_ascii_uppercase())
        .unwrap_or_default();
    format!("{first}{} (see `{path} --help`)", letters.as_str())
}

/// The commands that were named, as far as they exist.
fn command_path(arguments: &[std::ffi::OsString]) -> String {
    let mut path = "cabana".to_owned();
    let mut command = Cli::command();
    for argument in arguments
        .iter()
        .skip(1)
        .filter_map(|argument| argument.to_str())
    {
        let Some(next) = command.find_subcommand(argument).cloned() else {
            break;
        };
        path.push(' ');
        path.push_str(next.get_name());
        command = next;
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(arguments: &[&str]) -> String {
        let arguments: Vec<_> = ["cabana"]
            .iter()
            .chain(arguments)
            .map(std::ffi::OsString::from)
            .collect();
        let error = Cli::try_parse_from(&arguments).unwrap_err();
        let failure = refuse(&error, &arguments).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        failure.line
    }

    #[test]
    fn definition_of_the_commands_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_mistake_is_one_line_with_a_hint_and_exit_64() {
        let create = ["sessionpool", "create", "--name", "p", "--image", "i"];
        let with = |more: &[&'static str]| [&create[..], more].concat();
        let cases: Vec<(Vec<&str>, &str)> = vec![
            (vec![], "A command is needed"),
            (vec!["sessionpool"], "A command is needed"),
            (vec!["fly"], "fly"),
            (vec!["serve", "--lissten", "x"], "--lissten"),
            (vec!["sessionpool", "create", "--name", "p"], "--image"),
            (
                vec![
                    "sessionpool",
                    "create",
                    "--image",
                    "i",
                    "--target-port",
                    "80",
                ],
                "--name",
            ),
            (with(&[]), "--target-port"),
            (with(&["--target-port", "0"]), "--target-port"),
            (with(&["--target-port", "65536"]), "--target-port"),
            (with(&["--target-port", "80", "--cpu", "-1"]), "--cpu"),
            (with(&["--target-port", "80", "--cpu", "NaN"]), "--cpu"),
            (
                with(&["--target-port", "80", "--memory", "half"]),
                "--memory",
            ),
            (
                with(&["--target-port", "80", "--env-vars", "NAME"]),
                "--env-vars",
            ),
            (
                with(&["--target-port", "80", "--env-vars", "=x"]),
                "--env-vars",
            ),
            (
                with(&["--target-port", "80", "--max-sessions", "0"]),
                "--max-sessions",
            ),
            (
                with(&["--target-port", "80", "--cooldown-period", "x"]),
                "--cooldown-period",
            ),
            (
                with(&["--target-port", "80", "--fork-point", "later"]),
                "`beforeStart` or `afterReady`",
            ),
            (
                with(&["--target-port", "80", "--ephemeral-storage", "big"]),
                "--ephemeral-storage",
            ),
            (
                with(&["--target-port", "80", "--disk-throughput", "fast"]),
                "--disk-throughput",
            ),
            (
                with(&["--target-port", "80", "--lifecycle-type", "Eternal"]),
                "OnContainerExit",
            ),
            (
                with(&[
                    "--target-port",
                    "80",
                    "--cooldown-period",
                    "1",
                    "--max-alive-period",
                    "1",
                ]),
                "cannot be used with",
            ),
            (
                with(&["--target-port", "80", "--ready-sessions", "-1"]),
                "-1",
            ),
            (vec!["sessionpool", "update", "--cpu", "1"], "--name"),
            (
                vec!["sessionpool", "update", "--name", "p", "--cpu", "0"],
                "--cpu",
            ),
            (vec!["session", "list"], "--name"),
            (vec!["session", "show", "--name", "p"], "--identifier"),
            (
                vec!["session", "stop", "--name", "p", "--identifier", "abc"],
                "4 to 128 characters",
            ),
            (
                vec!["session", "exec", "--name", "p", "--identifier", "user"],
                "COMMAND",
            ),
            (vec!["session", "logs", "--name", "p"], "--identifier"),
            (vec!["store"], "A command is needed"),
            (vec!["store", "import"], "FILE"),
            (
                vec!["store", "export", "--salvage", "--with-keys"],
                "cannot be used with",
            ),
            (vec!["golden", "inspect"], "FILE"),
            (vec!["token", "create", "--ttl", "soon"], "--ttl"),
            (vec!["token", "create", "--role", "king"], "--role"),
            (
                vec!["token", "create", "--identifier", "abc"],
                "--identifier",
            ),
            (vec!["token", "revoke"], "ID"),
            (vec!["token", "revoke", "x"], "ID"),
            (vec!["image", "import", "ftp:x"], "oci-archive:FILE"),
            (vec!["image", "pull"], "IMAGE"),
            (
                vec!["image", "pull", "a", "--registry-password", "p"],
                "--registry-username",
            ),
            (
                with(&["--target-port", "80", "--registry-server", "r.example"]),
                "--registry-username",
            ),
        ];
        for (arguments, named) in cases {
            let line = line(&arguments);
            assert!(line.contains(named), "{arguments:?}: {line}");
            assert!(
                !line.contains('\n') && line.contains("--help`)"),
                "{arguments:?}: {line}"
            );
        }
    }

    #[test]
    fn hint_names_the_command_that_was_meant() {
        assert!(line(&["token", "create", "--x"]).ends_with("(see `cabana token create --help`)"));
    }

    #[test]
    fn flags_of_the_cloud_service_are_taken() {
        let arguments = [
            "cabana",
            "sessionpool",
            "create",
            "-n",
            "p",
            "-g",
            "rg",
            "-i",
            "img",
            "--cpu",
            "0.5",
            "--memory",
            "1Gi",
            "--target-port",
            "8080",
            "--env-vars",
            "A=1",
            "B=x=y",
            "--command",
            "/bin/sh",
            "-c",
            "--args",
            "echo",
            "-n",
            "--max-sessions",
            "3",
            "--cooldown-period",
            "300",
            "--json",
        ];
        let arguments = greedy::expand(arguments.map(std::ffi::OsString::from).to_vec());
        let cli = Cli::try_parse_from(arguments).unwrap();
        let Command::SessionPool(SessionPoolCommand::Create(create)) = cli.command else {
            panic!("another command");
        };
        assert_eq!(create.command, ["/bin/sh", "-c"]);
        assert_eq!(create.args, ["echo", "-n"]);
        assert_eq!(create.env_vars.len(), 2);
        assert_eq!(
            (create.cpu, create.target_port, create.max_sessions),
            (0.5, 8080, 3)
        );
        assert!(create.output.json);
    }
}
