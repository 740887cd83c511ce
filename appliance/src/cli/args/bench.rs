//! Flags of `bench`.

use clap::{Args, Subcommand};

const JSON_HELP: &str = "Print JSON";
use crate::cli::source::Source;
use crate::images::Shape;
use crate::worker::spec::ForkPoint;

const SPARES_HELP: &str = "Workers made ahead [default: as the service has]; with 0 every measurement begins with the start of a process";

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
    /// Build the root image of an archive in several shapes, and start a container from each
    Image(BenchImage),
    /// Start workers with confinement and without it, and print what both take; needs root and no KVM
    Jail {
        /// One after the other
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        count: u32,
        /// At once
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
        parallel: u32,
        #[arg(long, help = JSON_HELP)]
        json: bool,
    },
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

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cabana bench image --image oci-archive:/python.tar --target-port 8000
  cabana bench image --image oci-archive:/python.tar --rounds 0 --shapes zstd1/128K,zstd19/1024K")]
pub struct BenchImage {
    /// oci-archive:FILE or docker-archive:FILE. The appliance's user must be able to read it
    #[arg(long, value_name = "SOURCE")]
    pub image: Source,
    /// The port on which the container serves HTTP
    #[arg(long, value_name = "PORT", default_value_t = 8080, value_parser = clap::value_parser!(u16).range(1..))]
    pub target_port: u16,
    /// zstdLEVEL/BLOCK or stored/BLOCK
    #[arg(
        long,
        value_name = "SHAPES",
        value_delimiter = ',',
        default_value = "zstd1/128K,zstd3/32K,zstd3/64K,zstd3/128K,zstd3/256K,zstd3/1024K,zstd9/128K,zstd15/128K,stored/128K"
    )]
    pub shapes: Vec<Shape>,
    /// Containers started from each; with 0 only the builds are measured, which needs no KVM
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub rounds: u32,
    #[arg(long, help = JSON_HELP)]
    pub json: bool,
}
