//! Flags of `sessionpool`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{Appliance, Group, Groups, Output, RegistryFlags};
use crate::cli::values::{self, Limit};
use crate::worker::spec::ForkPoint;

#[derive(Debug, Subcommand)]
pub enum SessionPoolCommand {
    /// Create a pool, or change one of the same name
    Create(Box<CreatePool>),
    /// Change what is named of a pool, and nothing else
    Update(Box<UpdatePool>),
    /// Show one pool, and what it holds now
    Show(PoolTarget),
    /// List the pools
    List(ListPools),
    /// Delete a pool and end its sessions
    Delete(DeletePool),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cabana sessionpool create --name demo --image demo --target-port 8080
  cabana sessionpool create -n jobs -i demo --target-port 8080 --lifecycle-type OnContainerExit --max-alive-period 600
  cabana sessionpool create -n app -i registry.example/team/app:1 --target-port 8080 \\
      --registry-username ci --registry-password-stdin < password
  cabana sessionpool create -n py -i oci-archive:python.tar --target-port 8000 --cpu 1 --memory 1Gi \\
      --command python3 --args -m http.server 8000 --env-vars MODE=prod TZ=UTC")]
pub struct CreatePool {
    /// 3 to 63 lower-case letters, digits and hyphens
    #[arg(long, short)]
    pub name: String,
    /// Name of an image in a registry, name or digest of one that is here, or an archive to import:
    /// oci-archive:FILE, docker-archive:FILE, oci:DIR
    #[arg(long, short, value_name = "REF")]
    pub image: String,
    #[command(flatten)]
    pub registry: RegistryFlags,
    /// What the container is called [default: the pool's name]
    #[arg(long, value_name = "NAME")]
    pub container_name: Option<String>,
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
    #[command(flatten)]
    pub rates: RateFlags,
    /// The port on which the container serves HTTP
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub target_port: u16,
    /// Environment of the container; `NAME=secretref:SECRET` takes the value from a secret
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
    /// Sessions that wait for a caller, with their container up; with 0 each starts when it is asked for
    /// [default: 5, or --max-sessions if that is less]
    #[arg(long)]
    pub ready_sessions: Option<u32>,
    #[command(flatten)]
    pub life: Life,
    /// YAML or JSON with the list `probes`, as the cloud service has it
    #[arg(long, value_name = "FILE")]
    pub probe_yaml: Option<PathBuf>,
    #[command(flatten)]
    pub secrets: SecretFlags,
    /// What sessions may reach: EgressDisabled or EgressEnabled
    #[arg(long, value_name = "STATUS", default_value = "EgressDisabled")]
    pub network_status: String,
    /// What kind of pool: CustomContainer
    #[arg(long, value_name = "TYPE", default_value = "CustomContainer")]
    pub container_type: String,
    /// Written down with the pool; there is one place
    #[arg(long, short, default_value = "local")]
    pub location: String,
    /// Written down with the pool; there is one environment
    #[arg(long, value_name = "ID")]
    pub environment: Option<String>,
    /// Return when it is begun; `sessionpool show` says how far it is
    #[arg(long)]
    pub no_wait: bool,
    #[command(flatten)]
    pub group: Group,
    #[command(flatten)]
    pub appliance: Appliance,
    #[command(flatten)]
    pub output: Output,
}

/// Values that the appliance keeps sealed and never shows.
#[derive(Debug, Clone, Default, Args)]
pub struct SecretFlags {
    /// Secrets of the pool, to be named by --env-vars; other users of this host can see them while the command runs
    #[arg(long = "secrets", short = 's', value_name = "NAME=VALUE", num_args = 1.., value_parser = values::env_var)]
    pub named: Vec<(String, String)>,
    /// More secrets, a line NAME=VALUE each, from a file or, with -, from standard input
    #[arg(long, value_name = "FILE")]
    pub secrets_file: Option<PathBuf>,
}

/// How much a session may do in a second.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct RateFlags {
    /// Requests to its disks that a session may make in a second: 100 to 1000000, or none for no limit
    #[arg(long, value_name = "NUMBER", value_parser = values::limit)]
    pub disk_iops: Option<Limit>,
    /// Bytes that a session may read from and write to its disks in a second, like 50Mi, or none for no limit
    #[arg(long, value_name = "BYTES", value_parser = values::limit)]
    pub disk_throughput: Option<Limit>,
    /// Bytes that may go to a session in a second, and as many from it, like 10Mi, or none for no limit
    #[arg(long, value_name = "BYTES", value_parser = values::limit)]
    pub stream_throughput: Option<Limit>,
}

/// When sessions end by themselves.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct Life {
    /// When a session ends by itself [a new pool: Timed]
    #[arg(long, value_enum, ignore_case = true, value_name = "TYPE")]
    pub lifecycle_type: Option<LifecycleType>,
    /// Timed: seconds without a request after which a session ends [a new pool: 300]
    #[arg(long, value_name = "SECONDS", conflicts_with = "max_alive_period")]
    pub cooldown_period: Option<u32>,
    /// OnContainerExit: seconds after which a session ends at the latest [a new pool: 3600]
    #[arg(long, value_name = "SECONDS")]
    pub max_alive_period: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LifecycleType {
    /// After a while without a request
    #[value(name = "Timed")]
    Timed,
    /// When its container exits
    #[value(name = "OnContainerExit")]
    OnContainerExit,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cabana sessionpool update --name demo --ready-sessions 20 --max-sessions 100
  cabana sessionpool update --name demo --image demo:2
  cabana sessionpool update --name demo --command \"\" --env-vars MODE=test

Sessions that are in use go on as they are. What they are made of changes for new ones, when the first of \
them is ready; `sessionpool show` says how far that is.")]
pub struct UpdatePool {
    #[arg(long, short)]
    pub name: String,
    /// Also rolls a name that means another image by now; without this flag the image stays as it is
    #[arg(long, short, value_name = "REF")]
    pub image: Option<String>,
    #[command(flatten)]
    pub registry: RegistryFlags,
    /// What the container is called
    #[arg(long, value_name = "NAME")]
    pub container_name: Option<String>,
    /// CPUs per session
    #[arg(long, value_parser = values::cpu, allow_negative_numbers = true)]
    pub cpu: Option<f64>,
    /// Memory per session
    #[arg(long, value_parser = values::memory)]
    pub memory: Option<String>,
    /// The writable layer per session: what it may grow to
    #[arg(long, value_name = "SIZE", value_parser = values::memory)]
    pub ephemeral_storage: Option<String>,
    /// beforeStart or afterReady, see `sessionpool create --help`
    #[arg(long, value_name = "POINT")]
    pub fork_point: Option<ForkPoint>,
    #[command(flatten)]
    pub rates: RateFlags,
    /// The port on which the container serves HTTP
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub target_port: Option<u16>,
    /// Environment of the container, all of it; `NAME=secretref:SECRET` takes a value from a secret
    #[arg(long, value_name = "NAME=VALUE", num_args = 1.., value_parser = values::env_var)]
    pub env_vars: Option<Vec<(String, String)>>,
    /// Replaces the image's entrypoint; \"\" brings that back
    #[arg(long, num_args = 1..)]
    pub command: Option<Vec<String>>,
    /// Replaces the image's command; \"\" brings that back
    #[arg(long, num_args = 1..)]
    pub args: Option<Vec<String>>,
    /// Sessions at the same time
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_sessions: Option<u32>,
    /// Sessions that wait for a caller, with their container up
    #[arg(long)]
    pub ready_sessions: Option<u32>,
    #[command(flatten)]
    pub life: Life,
    /// YAML or JSON with the list `probes`, as the cloud service has it; replaces all probes
    #[arg(long, value_name = "FILE")]
    pub probe_yaml: Option<PathBuf>,
    #[command(flatten)]
    pub secrets: SecretFlags,
    /// What sessions may reach: EgressDisabled or EgressEnabled
    #[arg(long, value_name = "STATUS")]
    pub network_status: Option<String>,
    /// Return when it is begun; `sessionpool show` says how far it is
    #[arg(long)]
    pub no_wait: bool,
    #[command(flatten)]
    pub group: Group,
    #[command(flatten)]
    pub appliance: Appliance,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct PoolTarget {
    #[arg(long, short)]
    pub name: String,
    #[command(flatten)]
    pub group: Group,
    #[command(flatten)]
    pub appliance: Appliance,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct DeletePool {
    #[arg(long, short)]
    pub name: String,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
    /// Return when it is begun
    #[arg(long)]
    pub no_wait: bool,
    #[command(flatten)]
    pub group: Group,
    #[command(flatten)]
    pub appliance: Appliance,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct ListPools {
    #[command(flatten)]
    pub groups: Groups,
    #[command(flatten)]
    pub appliance: Appliance,
    #[command(flatten)]
    pub output: Output,
}
