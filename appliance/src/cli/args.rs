//! Every command, flag and default.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::source::Source;
use super::values;
use crate::worker::spec::ForkPoint;

/// A pool of hardware-isolated sessions on one Linux host.
#[derive(Debug, Parser)]
#[command(name = "cabana", version, disable_help_subcommand = true)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 64 bad flag or configuration, 69 appliance not \
reachable or host without KVM, 70 a process of the appliance died, 77 no permission.

Examples:
  cabana doctor
  cabana serve
  cabana image import oci-archive:demo.tar --name demo
  cabana sessionpool create --name demo --image demo --target-port 8080
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
    /// Say whether this host can run guests, and what to change if not
    #[command(
        after_help = "Exit code 0: guests can run here. 1: they cannot, and the line says why."
    )]
    Doctor {
        #[arg(long, help = JSON_HELP)]
        json: bool,
    },
    /// Create, show, list and delete session pools
    #[command(subcommand, name = "sessionpool")]
    SessionPool(SessionPoolCommand),
    /// Import and list container images
    #[command(subcommand)]
    Image(ImageCommand),
    /// Look at the snapshots that sessions are forked from
    #[command(subcommand)]
    Golden(GoldenCommand),
    /// Make bearer tokens
    #[command(subcommand)]
    Token(TokenCommand),
    /// Measure this host
    #[command(subcommand, hide = true)]
    Bench(BenchCommand),
    /// The process that talks to the world; started by `serve`
    #[command(hide = true)]
    Appliance,
    /// The process that unpacks one image; started by `serve`
    #[command(hide = true)]
    ImageWorker,
}

const JSON_HELP: &str = "Print JSON";
const SPARES_HELP: &str = "Workers made ahead [default: as the service has]; with 0 every measurement begins with the start of a process";
const DEFAULT_GROUP: &str = "default";

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cabana serve
  cabana serve --root /srv/test --listen 127.0.0.1:9443

Started as root, the appliance and every worker run as users of their own. Stop it with SIGTERM or \
Ctrl-C: sessions are ended in order. A second one ends everything at once.")]
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
}

/// Flags of every command that talks to the appliance.
#[derive(Debug, Clone, Args)]
pub struct Connection {
    /// The root that the appliance was started with
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,
}

#[derive(Debug, Subcommand)]
pub enum SessionPoolCommand {
    /// Create a pool, or change one of the same name
    Create(Box<CreatePool>),
    /// Show one pool
    Show(PoolTarget),
    /// List the pools
    List(ListPools),
    /// Delete a pool and end its sessions
    Delete(PoolTarget),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cabana sessionpool create --name demo --image demo --target-port 8080
  cabana sessionpool create -n py -i oci-archive:python.tar --target-port 8000 --cpu 1 --memory 1Gi \\
      --command python3 --args -m http.server 8000 --env-vars MODE=prod TZ=UTC")]
pub struct CreatePool {
    /// 3 to 63 lower-case letters, digits and hyphens
    #[arg(long, short)]
    pub name: String,
    /// Name or digest of an imported image, or an archive to import: oci-archive:FILE,
    /// docker-archive:FILE, oci:DIR
    #[arg(long, short, value_name = "REF")]
    pub image: String,
    /// CPUs per session
    #[arg(long, default_value = "0.25", value_parser = values::cpu, allow_negative_numbers = true)]
    pub cpu: f64,
    /// Memory per session
    #[arg(long, default_value = "0.5Gi", value_parser = values::memory)]
    pub memory: String,
    /// The writable layer per session: what it may grow to
    #[arg(long, value_name = "SIZE", default_value = "8Gi", value_parser = values::memory)]
    pub ephemeral_storage: String,
    /// When the snapshot is taken that sessions are forked from: beforeStart (each session starts its container
    /// itself) or afterReady (the container runs already: fastest, but sessions share what its
    /// processes had in memory, the seeds of their own random generators among it)
    #[arg(long, value_name = "POINT", default_value_t = ForkPoint::default())]
    pub fork_point: ForkPoint,
    /// The port on which the container serves HTTP
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub target_port: u16,
    /// Environment of the container
    #[arg(long, value_name = "NAME=VALUE", num_args = 1.., value_parser = values::env_var)]
    pub env_vars: Vec<(String, String)>,
    /// Replaces the image's entrypoint; takes everything up to the next long flag of this command
    #[arg(long, num_args = 1..)]
    pub command: Vec<String>,
    /// Replaces the image's command; takes everything up to the next long flag of this command
    #[arg(long, num_args = 1..)]
    pub args: Vec<String>,
    /// Sessions at the same time
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_sessions: u32,
    /// Seconds without a request after which a session ends
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub cooldown_period: u32,
    #[arg(long, short = 'g', default_value = DEFAULT_GROUP)]
    pub resource_group: String,
    #[command(flatten)]
    pub connection: Connection,
    #[arg(long, help = JSON_HELP)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct PoolTarget {
    #[arg(long, short)]
    pub name: String,
    #[arg(long, short = 'g', default_value = DEFAULT_GROUP)]
    pub resource_group: String,
    #[command(flatten)]
    pub connection: Connection,
    #[arg(long, help = JSON_HELP)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ListPools {
    #[arg(long, short = 'g', default_value = DEFAULT_GROUP)]
    pub resource_group: String,
    #[command(flatten)]
    pub connection: Connection,
    #[arg(long, help = JSON_HELP)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Turn an image archive into a root image
    Import(ImportImage),
    /// List the imported images
    Ls(ListImages),
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
    #[arg(long, help = JSON_HELP)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ListImages {
    #[command(flatten)]
    pub connection: Connection,
    #[arg(long, help = JSON_HELP)]
    pub json: bool,
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
    #[arg(long, help = JSON_HELP)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Print a new token and nothing else
    Create(CreateToken),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cabana token create --pool demo --ttl 8h
  TOKEN=$(cabana token create)")]
pub struct CreateToken {
    /// Only good for this pool; may be repeated. Without it: for every pool
    #[arg(long = "pool", value_name = "NAME")]
    pub pools: Vec<String>,
    /// How long it is good for: a number with s, m, h or d
    #[arg(long, default_value = "1h", value_parser = values::duration_seconds)]
    pub ttl: u64,
    #[arg(long, value_enum, default_value_t = Role::SessionExecutor)]
    pub role: Role,
    #[command(flatten)]
    pub connection: Connection,
    #[arg(long, help = JSON_HELP)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// May send requests to sessions
    SessionExecutor,
}

#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Boot guests one after the other and print the times
    ColdBoot {
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
        count: u32,
        #[arg(long, value_name = "N", help = SPARES_HELP, value_parser = clap::value_parser!(u32).range(0..=64))]
        spares: Option<u32>,
        #[arg(long, help = JSON_HELP)]
        json: bool,
    },
    /// Fork guests from a golden snapshot, one after the other and many at once, and print where the time goes
    Fork(BenchFork),
    /// Ask forks of one golden the same question; fails when two give the same answer
    Distinct(BenchDistinct),
    /// Print what idle forks take of this host's memory
    Memory {
        /// How many forks to look at
        #[arg(long, value_delimiter = ',', default_value = "1,10,50",
            value_parser = clap::value_parser!(u32).range(1..=1000))]
        forks: Vec<u32>,
        #[arg(long, help = JSON_HELP)]
        json: bool,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cabana bench fork
  cabana bench fork --image oci-archive:/demo.tar --fork-point afterReady --count 20")]
pub struct BenchFork {
    /// Forks one after the other
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub count: u32,
    /// Forks at once
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=200))]
    pub parallel: u32,
    #[arg(long, value_name = "N", help = SPARES_HELP, value_parser = clap::value_parser!(u32).range(0..=64))]
    pub spares: Option<u32>,
    /// When the golden is saved: beforeStart or afterReady
    #[arg(long, value_name = "POINT", default_value_t = ForkPoint::default())]
    pub fork_point: ForkPoint,
    /// An archive whose container's first byte is waited for, too: oci-archive:FILE or docker-archive:FILE. The
    /// appliance's user must be able to read it
    #[arg(long, value_name = "SOURCE")]
    pub image: Option<Source>,
    /// The port on which the container serves HTTP
    #[arg(long, value_name = "PORT", default_value_t = 8080, value_parser = clap::value_parser!(u16).range(1..))]
    pub target_port: u16,
    #[arg(long, help = JSON_HELP)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cabana bench distinct --image oci-archive:/demo.tar --path /random --fork-point afterReady")]
pub struct BenchDistinct {
    /// Forks in all
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    pub forks: u32,
    /// Forks at once
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=200))]
    pub parallel: u32,
    /// When the golden is saved: beforeStart or afterReady
    #[arg(long, value_name = "POINT", default_value_t = ForkPoint::default())]
    pub fork_point: ForkPoint,
    /// oci-archive:FILE or docker-archive:FILE. The appliance's user must be able to read it
    #[arg(long, value_name = "SOURCE")]
    pub image: Source,
    /// The port on which the container serves HTTP
    #[arg(long, value_name = "PORT", default_value_t = 8080, value_parser = clap::value_parser!(u16).range(1..))]
    pub target_port: u16,
    /// The question
    #[arg(long, default_value = "/")]
    pub path: String,
    #[arg(long, help = JSON_HELP)]
    pub json: bool,
}
