//! Flags of the commands about images that are there.

use clap::Args;

use super::{Connection, Output};

#[derive(Debug, Args)]
pub struct ListImages {
    #[command(flatten)]
    pub connection: Connection,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cabana image inspect demo
  cabana image inspect sha256:... --json")]
pub struct InspectImage {
    /// Its name or digest
    #[arg(value_name = "NAME|DIGEST")]
    pub image: String,
    #[command(flatten)]
    pub connection: Connection,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cabana image rm demo:1 demo:2

A name goes alone while the image has another one. The last name, or the digest, takes the image with it, its other names, and \
the goldens that no pool forks from. An image that a pool needs is left alone, and so is one that has sessions of an earlier revision.

Exit code 0: all of them are removed. 1: at least one is not, and a line says why.")]
pub struct RemoveImages {
    /// Names or digests
    #[arg(value_name = "NAME|DIGEST", required = true)]
    pub images: Vec<String>,
    #[command(flatten)]
    pub connection: Connection,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cabana image prune --dry-run
  cabana image prune

Removes every image that no pool needs, with its names and goldens. Importing them again makes the same root images.")]
pub struct PruneImages {
    /// Only say what would be removed
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub connection: Connection,
    #[command(flatten)]
    pub output: Output,
}
