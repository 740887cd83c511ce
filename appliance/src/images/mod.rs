//! Container images: from an archive to a root image in the cache.
//!
//! ```text
//! body ─▶ temporary file ─┐
//!                          ├─▶ image worker: layout ─▶ layer* ─▶ flatten ─▶ squash ─▶ cache
//! registry ─▶ blob files ──┘
//! ```
//!
//! `import` and `registry` are the ways in. They run in the appliance and never look into layers: they
//! store the bytes, hand descriptors to an image worker (a process of its own, see `worker`),
//! and publish what the worker made.
//!
//! # Trust
//! The worker's report is plain data and is checked for length where it arrives. A worker that a
//! crafted layer took over could lie about the digest of an archive; it can neither reach the
//! cache nor replace an image that is there. What is pulled is published under the digest that the
//! registry gave, whatever the worker says.
//!
//! # Not here
//! Signatures, platforms other than linux/amd64.

pub mod cache;
mod digest;
mod error;
mod flatten;
mod layer;
mod layout;
pub mod registry;
mod spool;
mod squash;
mod tar;
#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;
mod tree;
pub mod worker;

use std::fmt::Display;
use std::fs::File;
use std::future::Future;
use std::io::Write;
use std::os::fd::OwnedFd;

use bytes::{Buf, Bytes};
use http_body_util::BodyExt;
use hyper::body::Body;
use serde::{Deserialize, Serialize};

pub use self::cache::{Cache, Hold, ImageRecord};
pub use self::digest::Digest;
pub use self::error::{ImageError, ImageErrorCode};
pub use self::layout::Transport;
pub use self::squash::Shape;
pub use self::tree::PATH_LIMIT;
pub use self::worker::{Input, Job, JobReport};

/// What an import may use up. Part of the job: the worker enforces most of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// The archive as uploaded, or all layers as they are downloaded.
    pub archive_bytes: u64,
    /// One layer as it is downloaded.
    pub layer_bytes: u64,
    /// All layers together, decompressed.
    pub unpacked_bytes: u64,
    /// Files in the archive itself.
    pub archive_members: usize,
    /// Files in the image, over all layers.
    pub files: u32,
    /// The path of a file in the image.
    pub path_bytes: usize,
    /// Names, link targets and attributes of those files. This part of an image is in memory
    /// while it is imported; a distribution with 100,000 files takes about 20 MiB.
    pub metadata_bytes: usize,
    pub layers: usize,
    pub manifest_bytes: u64,
    pub config_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            archive_bytes: 16 << 30,
            layer_bytes: 16 << 30,
            unpacked_bytes: 32 << 30,
            archive_members: 1 << 16,
            files: 2_000_000,
            path_bytes: PATH_LIMIT,
            metadata_bytes: 512 << 20,
            // Overlay file systems stop at 128 as well, so no real image has more.
            layers: 128,
            // Registries limit manifests to 4 MiB.
            manifest_bytes: 4 << 20,
            config_bytes: 8 << 20,
        }
    }
}

/// Runs a job in an image worker. The descriptors are listed at `Job`.
pub trait JobRunner: Sync {
    fn run(
        &self,
        job: Job,
        fds: Vec<OwnedFd>,
    ) -> impl Future<Output = Result<JobReport, ImageError>> + Send;
}

#[derive(Debug, Clone)]
pub struct ImportRequest {
    pub transport: Transport,
    /// Which image of the archive, when it holds several.
    pub reference: Option<String>,
    /// Name in the cache; without one, the names the archive gives.
    pub name: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    pub image: ImageRecord,
    /// The image was there already; only the name may be new.
    pub cached: bool,
}

/// Takes an archive as a stream of bytes.
pub async fn import<B>(
    cache: &Cache,
    runner: &impl JobRunner,
    request: ImportRequest,
    limits: &Limits,
    body: B,
) -> Result<Imported, ImageError>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Display,
{
    let archive = receive(cache, limits, body).await?;
    import_archive(cache, runner, request, limits, archive).await
}

/// Takes an archive from an open file.
pub async fn import_archive(
    cache: &Cache,
    runner: &impl JobRunner,
    request: ImportRequest,
    limits: &Limits,
    archive: File,
) -> Result<Imported, ImageError> {
    let mut job = Job {
        input: Input::Archive {
            transport: request.transport,
            reference: request.reference.clone(),
        },
        build: false,
        limits: limits.clone(),
    };
    let found = runner.run(job.clone(), vec![duplicate(&archive)?]).await?;
    // From here to its name nobody removes it, whether it was there or not.
    let _held = cache.hold(&found.digest);
    let permit = cache.build_permit().await?;
    // Asked only now: an import of the same image may have held the permit before.
    let known = cache.get(found.digest.as_str());
    let cached = known.is_some();
    let image = match known {
        Some(image) => image,
        None => {
            job.build = true;
            build(cache, runner, job, &found.digest, vec![archive.into()]).await?
        }
    };
    drop(permit);
    let names = match request.name {
        Some(name) => vec![name],
        None => found.names,
    };
    let cache = cache.clone();
    blocking(move || {
        for name in &names {
            cache.set_name(name, &image.digest)?;
        }
        let asked = names.first().map_or(image.digest.as_str(), String::as_str);
        let image = cache.require(asked)?;
        Ok(Imported { image, cached })
    })
    .await
}

/// Builds the image whose manifest has this digest, and no other, out of `inputs`. Have a permit.
async fn build(
    cache: &Cache,
    runner: &impl JobRunner,
    job: Job,
    digest: &Digest,
    inputs: Vec<OwnedFd>,
) -> Result<ImageRecord, ImageError> {
    let staging = cache.stage()?;
    let output = staging.create_root_image()?;
    let mut fds = inputs;
    fds.push(duplicate(&output)?);
    fds.push(OwnedFd::from(cache.temporary_file()?));
    let report = runner.run(job, fds).await?;
    let length = output
        .metadata()
        .map_err(|error| ImageError::storage("read the root image", &error))?
        .len();
    if report.digest != *digest || report.bytes != length {
        return Err(ImageError::worker_failed(
            "The image worker's report does not describe what it made",
        ));
    }
    for warning in &report.warnings {
        tracing::warn!(digest = %report.digest, "{warning}");
    }
    let cache = cache.clone();
    blocking(move || cache.publish(staging, &report)).await
}

/// Stores the body in a file without a name; nothing of it is kept in memory.
async fn receive<B>(cache: &Cache, limits: &Limits, mut body: B) -> Result<File, ImageError>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Display,
{
    let mut file = cache.temporary_file()?;
    let mut left = limits.archive_bytes;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            ImageError::corrupt(format!("The upload of the archive broke off: {error}"))
        })?;
        let Ok(mut data) = frame.into_data() else {
            continue;
        };
        left = left.checked_sub(data.remaining() as u64).ok_or_else(|| {
            ImageError::too_large(format!(
                "The archive is larger than {} MiB, the limit",
                limits.archive_bytes >> 20
            ))
        })?;
        // On the blocking pool: a full disk may hold a write for long.
        file = blocking(move || {
            while data.has_remaining() {
                let count = file
                    .write(data.chunk())
                    .map_err(|error| ImageError::storage("store the archive", &error))?;
                data.advance(count);
            }
            Ok(file)
        })
        .await?;
    }
    Ok(file)
}

fn duplicate(file: &File) -> Result<OwnedFd, ImageError> {
    file.try_clone()
        .map(OwnedFd::from)
        .map_err(|error| ImageError::storage("duplicate a descriptor", &error))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| ImageError::worker_failed(format!("A task of the import died: {error}")))?
}
