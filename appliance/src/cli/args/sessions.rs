//! Flags of `session`.

use clap::{Args, Subcommand};

use super::{Appliance, Connection, Group, Output, PoolTarget};
use crate::cli::values;
use crate::pool::Identifier;

#[derive(Debug, Subcommand)]
pub enum SessionCommand {
    /// List the sessions of a pool
    List(PoolTarget),
    /// Show one session
    Show(OneSession),
    /// End one session; returns when nothing is left of it
    Stop(OneSession),
    /// Run a command beside the container of a session
    Exec(ExecSession),
    /// Show what the container of a session has printed
    Logs(SessionLogs),
}

/// Names one session.
#[derive(Debug, Args)]
pub struct SessionTarget {
    /// The pool
    #[arg(long, short)]
    pub name: String,
    /// What the caller calls its session
    #[arg(long, value_name = "ID", allow_hyphen_values = true)]
    pub identifier: Identifier,
    #[command(flatten)]
    pub group: Group,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cabana session show --name demo --identifier user-42
  cabana session stop --name demo --identifier user-42")]
pub struct OneSession {
    #[command(flatten)]
    pub target: SessionTarget,
    #[command(flatten)]
    pub appliance: Appliance,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Ends as the command did: with its exit code, 128 and the number of the signal that ended it, 125 \
if it could not be set up, 126 if its program cannot be executed, 127 if there is none. The command is ended when \
this one is. It keeps the session from becoming idle.

Examples:
  cabana session exec --name demo --identifier user-1 -- /bin/sh
  cabana session exec -n demo --identifier user-1 -it --env MODE=debug -- python3
  cabana session exec -n demo --identifier user-1 -- cat /var/log/app.log > app.log
  tar c folder | cabana session exec -n demo --identifier user-1 --interactive -- tar x -C /tmp"
)]
pub struct ExecSession {
    #[command(flatten)]
    pub target: SessionTarget,
    #[command(flatten)]
    pub connection: Connection,
    /// Give the command a terminal [default: if standard input and output are one]
    #[arg(long, short, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub tty: Option<bool>,
    /// Pass standard input on [default: if it is a terminal]
    #[arg(long, short, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub interactive: Option<bool>,
    /// Run it as this user: a name or number of the image, and perhaps `:` and a group [default: as the container]
    #[arg(long, short)]
    pub user: Option<String>,
    /// Run it in this folder [default: as the container]
    #[arg(long, short, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Add to the container's environment; may be repeated
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = values::env_var)]
    pub env: Vec<(String, String)>,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Standard output and error of the container come out as this command's own. The \
appliance keeps the last 64 KiB of a session's output, as long as the session is there.

Examples:
  cabana session logs --name demo --identifier user-1
  cabana session logs --name demo --identifier user-1 --follow --tail 10 --timestamps"
)]
pub struct SessionLogs {
    #[command(flatten)]
    pub target: SessionTarget,
    #[command(flatten)]
    pub connection: Connection,
    /// Go on with what comes, until the session ends
    #[arg(long, short)]
    pub follow: bool,
    /// Begin with the last N lines [default: all that are kept]
    #[arg(long, value_name = "N")]
    pub tail: Option<u64>,
    /// Print when the host got each line
    #[arg(long, short)]
    pub timestamps: bool,
    /// Leave control characters in lines; without this, they cannot change your terminal
    #[arg(long)]
    pub raw: bool,
    /// Print one JSON object per line
    #[arg(long)]
    pub json: bool,
}
