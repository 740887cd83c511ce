//! The job of an image worker: archive or blobs in, root image out, by descriptors alone.
//!
//! # Trust
//! Runs in a process of its own (`cabana image-worker`) because everything it parses was written
//! by a stranger. It opens nothing by path, needs no privilege and no network, and its memory
//! does not grow with the image: file data goes to the spool. The caller believes the report no
//! further than it must: see `images::import`.
//!
//! # Not here
//! Starting and confining the process, and the way of job and report: `warden`.

use std::fs::File;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use super::Limits;
use super::digest::Digest;
use super::error::ImageError;
use super::flatten::Flattener;
use super::layer::{Budget, Unpacker};
use super::layout::{self, Archive, Image, ImageConfig, Transport};
use super::spool::Spool;
use super::squash::{self, Shape};

/// Longest report as JSON. It travels in one message over a socket.
pub const REPORT_LIMIT: usize = 64 * 1024;

/// Comes with these descriptors, in this order: those of `input`, and to build an image, an empty output
/// file and an empty spool file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    pub input: Input,
    /// Without it, the job only says which image it is, so that a known one need not be built again.
    pub build: bool,
    pub limits: Limits,
}

/// What an image is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// One file.
    Archive {
        transport: Transport,
        /// Which image of the archive; needed only when it holds several.
        reference: Option<String>,
    },
    /// A file for each of `blobs`: the manifest, the config, and layers.
    Blobs {
        manifest: Digest,
        blobs: Vec<Digest>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobReport {
    /// Of the image's manifest.
    pub digest: Digest,
    pub config: ImageConfig,
    /// What the archive calls the image.
    pub names: Vec<String>,
    /// What could not be kept, one line each.
    pub warnings: Vec<String>,
    /// Length of the root image; 0 after `Inspect`.
    pub bytes: u64,
    /// How many layers the image has.
    pub layers: usize,
}

/// Does the job. Blocks for as long as it takes.
pub fn run(job: Job, fds: Vec<OwnedFd>) -> Result<JobReport, ImageError> {
    run_shaped(job, fds, Shape::default())
}

/// The same with a root image of another shape, to be measured.
pub fn run_shaped(job: Job, fds: Vec<OwnedFd>, shape: Shape) -> Result<JobReport, ImageError> {
    let mut files = fds.into_iter().map(File::from);
    let mut next = |what: &str| {
        files
            .next()
            .ok_or_else(|| ImageError::worker_failed(format!("The job came without its {what}")))
    };
    let limits = &job.limits;
    let (archive, image) = match job.input {
        Input::Archive {
            transport,
            reference,
        } => {
            let archive = Archive::index(next("archive")?, limits)?;
            let image = layout::open(&archive, transport, reference.as_deref(), limits)?;
            (archive, image)
        }
        Input::Blobs { manifest, blobs } => {
            let files = blobs.into_iter().map(|digest| Ok((digest, next("blob")?)));
            let archive = Archive::of_blobs(files.collect::<Result<_, ImageError>>()?)?;
            let image = layout::open_manifest(&archive, manifest, limits)?;
            (archive, image)
        }
    };
    let (warnings, bytes) = match job.build {
        false => (Vec::new(), 0),
        true => {
            let output = next("output file")?;
            let spool = next("spool file")?;
            build(&archive, &image, &output, spool, limits, shape)?
        }
    };
    let report = JobReport {
        layers: image.layers.len(),
        digest: image.digest,
        config: image.config,
        names: image.names,
        warnings,
        bytes,
    };
    check_length(&report)?;
    Ok(report)
}

fn build(
    archive: &Archive,
    image: &Image,
    output: &File,
    spool: File,
    limits: &Limits,
    shape: Shape,
) -> Result<(Vec<String>, u64), ImageError> {
    let mut unpacker = Unpacker {
        flattener: Flattener::new(limits),
        spool: Spool::new(spool),
        budget: Budget::new(limits.unpacked_bytes),
    };
    for (index, blob) in image.layers.iter().enumerate() {
        let section = archive.section(blob);
        unpacker.apply(section, blob).map_err(|error| {
            let name = blob.digest.as_ref().unwrap_or(&blob.diff_id);
            error.within(format_args!("Layer {} ({name})", index + 1))
        })?;
    }
    let spool = unpacker
        .spool
        .finish()
        .map_err(|error| ImageError::storage("write to the temporary file", &error))?;
    let (tree, warnings) = unpacker.flattener.finish();
    let bytes = squash::write(&tree, &spool, output, shape)?;
    Ok((warnings, bytes))
}

/// A config of megabytes is possible by the limits, but nothing could start such a container.
fn check_length(report: &JobReport) -> Result<(), ImageError> {
    let length = serde_json::to_vec(report)
        .map_err(|error| ImageError::worker_failed(format!("Cannot write the report: {error}")))?
        .len();
    if length > REPORT_LIMIT {
        return Err(ImageError::too_large(format!(
            "Names, environment and command of the image take {length} bytes, at most {REPORT_LIMIT} are allowed"
        )));
    }
    Ok(())
}
