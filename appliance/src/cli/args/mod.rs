//! Every command, flag and default.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::source::Source;
use super::values;

mod appliance;
mod bench;
mod images;
mod pools;
mod registry;
mod sessions;
mod tls;
mod tokens;

pub use appliance::{Appliance, Connection, Format, Group, Groups, Output};
pub use bench::{BenchCommand, BenchDistinct, BenchFork, BenchImage};
pub use images::{InspectImage, ListImages, PruneImages, RemoveImages};
pub use pools::{
    CreatePool, DeletePool, Life, LifecycleType, ListPools, PoolTarget, RateFlags, SecretFlags,
    SessionPoolCommand, UpdatePool,
};
pub use registry::RegistryFlags;
pub use sessions::{ExecSession, OneSession, SessionCommand, SessionLogs, SessionTarget};
pub use tls::{ShowTls, TlsAuthority, TlsCommand};
pub use tokens::{CreateToken, ListTokens, OneToken, RevokeToken, RotateKey, TokenCommand};

/// A pool of hardware-isolated sessions on one Linux host.
#[derive(Debug, Parser)]
#[command(name = "cabana", version, disable_help_subcommand = true)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 64 bad flag or configuration, 69 appliance not \
reachable or host without KVM, 70 a process of the appliance died, 77 no permission. `session exec` \
ends as its command did.

Examples:
  cabana doctor
  cabana serve
  cabana image pull python:3.12
  cabana sessionpool create --name demo --image registry.example/demo:1 --target-port 8080
  cabana token create --pool demo"
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the appliance until it is told to stop
    Serve(Serve),
    /// End the appliance with all its sessions, or what one has left behind
    Stop(Stop),
    /// End all sessions as they become idle, and begin no new ones
    Drain(Drain),
    /// Say whether this host can run guests, how well it keeps them apart, and what to change
    #[command(
        after_help = "Each finding is ok, unknown (the host does not tell), weaker (low, medium or high) or fails, with a remedy below it.\n\
                      Exit code 0: guests can run here, however much is weaker. 1: they cannot, and a line says why."
    )]
    Doctor {
        #[command(flatten)]
        output: Output,
    },
    /// Create, change, show, list and delete session pools
    #[command(subcommand, name = "sessionpool")]
    SessionPool(SessionPoolCommand),
    /// Look at the sessions of a pool and into them, and stop them
    #[command(subcommand)]
    Session(SessionCommand),
    /// Pull, import, look at and remove container images
    #[command(subcommand)]
    Image(ImageCommand),
    /// Look at the snapshots that sessions are forked from
    #[command(subcommand)]
    Golden(GoldenCommand),
    /// Make, list and revoke bearer tokens, and change the key that signs them
    #[command(subcommand)]
    Token(TokenCommand),
    /// Look at the certificates of the front door
    #[command(subcommand)]
    Tls(TlsCommand),
    /// Save what the appliance keeps, and bring it back
    #[command(subcommand)]
    Store(StoreCommand),
    /// Print what is served over HTTPS, as an OpenAPI 3.1 document
    #[command(name = "openapi")]
    OpenApi,
    /// Print completions for a shell
    #[command(after_help = "Examples:
  cabana completion bash > /usr/share/bash-completion/completions/cabana
  source <(cabana completion zsh)")]
    Completion {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Write the man pages of all commands into a folder
    #[command(after_help = "Examples:
  cabana man /usr/local/share/man/man1")]
    Man {
        /// It is made if it is not there
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
    /// Measure this host
    #[command(subcommand, hide = true)]
    Bench(BenchCommand),
    /// Make room for `serve` in the cgroup of its service; called by the systemd unit
    #[command(hide = true)]
    ReleaseCgroup,
    /// The process that talks to the world; started by `serve`
    #[command(hide = true)]
    Appliance,
    /// The process that unpacks one image; started by `serve`
    #[command(hide = true)]
    ImageWorker,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cabana serve
  cabana serve --root /srv/test --listen 127.0.0.1:9443

Started as root, the appliance and every worker run as users of their own. SIGTERM ends it and leaves the \
sessions to the next `cabana serve`; Ctrl-C or `cabana stop` end the sessions in order as well. A second \
signal does not wait.")]
pub struct Serve {
    /// Configuration file [default: etc/cabana/cabana.toml below the root, which may be absent]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Put etc, var and run below this folder
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,
    /// Address of the HTTPS front door; wins over the configuration file
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<String>,
    /// For development, on hosts that forbid namespaces: whoever breaks out of a guest sees the host's files, network and processes
    #[arg(long)]
    pub unconfined: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cabana stop
  cabana stop --root /srv/test

Sessions end in order, and the command returns when nothing is left. When no appliance runs, it ends the workers \
that one has left behind. Nothing to end is no failure.")]
pub struct Stop {
    #[command(flatten)]
    pub connection: Connection,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cabana drain
  cabana drain --timeout 10m
  cabana drain --cancel

Requests with new identifiers are answered 503 HostDraining from then on, ready sessions are given up, idle ones end at \
once, and those that are in use end with their last request, or when the time is up. The command returns when nothing is \
left. The appliance stays up and begins no sessions until `--cancel`, or until it is started again.

Exit code 0: nothing is left. 1: something is, and the line says how much.")]
pub struct Drain {
    /// How long sessions in use are left alone: a number with s, m, h or d, at most a day
    #[arg(long, default_value = "60s", value_parser = values::duration_seconds)]
    pub timeout: u64,
    /// Begin sessions again
    #[arg(long, conflicts_with = "timeout")]
    pub cancel: bool,
    #[command(flatten)]
    pub connection: Connection,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Get an image from its registry and make a root image of it
    Pull(PullImage),
    /// Turn an image archive into a root image
    Import(ImportImage),
    /// List the images that are there, and who needs them
    #[command(visible_alias = "list")]
    Ls(ListImages),
    /// Say all that is known of an image
    Inspect(InspectImage),
    /// Remove images, or names of them
    Rm(RemoveImages),
    /// Remove every image that no pool needs
    Prune(PruneImages),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cabana image import oci-archive:demo.tar --name demo
  cabana image import docker-archive:saved.tar:python:3.13
  cabana image import oci:layout-folder:latest")]
pub struct ImportImage {
    /// `oci-archive:FILE[:REF]`, `docker-archive:FILE[:REF]` or `oci:DIR[:REF]`
    pub source: Source,
    /// The name by which pools refer to it [default: the reference, the name in a docker archive, or the file's name]
    #[arg(long, value_name = "REF")]
    pub name: Option<String>,
    #[command(flatten)]
    pub connection: Connection,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cabana image pull python:3.12
  cabana image pull registry.example:5000/team/app@sha256:...
  cabana image pull registry.example/team/app:1 --registry-username ci --registry-password-stdin < password

A name without a registry is one of docker.io. What was downloaded of a pull that fails is kept for a day, and the \
next one goes on from there.")]
pub struct PullImage {
    /// `[HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]`
    pub image: String,
    #[command(flatten)]
    pub registry: RegistryFlags,
    #[command(flatten)]
    pub connection: Connection,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Subcommand)]
pub enum GoldenCommand {
    /// List the goldens of the appliance and the pools that fork from them
    Ls(ListGoldens),
    /// Print what a golden's state file holds
    #[command(after_help = "Examples:
  cabana golden inspect /var/lib/cabana/golden/0123456789abcdef0123456789abcdef/state")]
    Inspect {
        /// The file `state` of a golden
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
pub struct ListGoldens {
    #[command(flatten)]
    pub connection: Connection,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Print every record, one per line, as JSON; the appliance must be stopped
    Export(ExportStore),
    /// Bring back what was exported; all of it, or nothing
    Import(ImportStore),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cabana store export --output cabana-store.jsonl
  cabana store export --with-keys --output backup.jsonl
  cabana store export --salvage --output saved.jsonl

An export holds the identifiers of sessions; whoever knows one and has a token owns the session.")]
pub struct ExportStore {
    /// Write to this new file, readable for its owner only, instead of stdout
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Export the appliance's own keys, too: who has them can sign tokens
    #[arg(long)]
    pub with_keys: bool,
    /// Find the pools in a store that does not open any more. Look at what it prints: a pool may be older than it
    /// was, or have been deleted
    #[arg(long, conflicts_with = "with_keys")]
    pub salvage: bool,
    #[command(flatten)]
    pub connection: Connection,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cabana store import cabana-store.jsonl
  cabana store import - --replace < backup.jsonl

Without keys in the export, those of the store stay, and tokens with them.")]
pub struct ImportStore {
    /// What `store export` wrote, or - for stdin
    pub file: PathBuf,
    /// Remove what the store holds
    #[arg(long)]
    pub replace: bool,
    #[command(flatten)]
    pub connection: Connection,
    #[command(flatten)]
    pub output: Output,
}
