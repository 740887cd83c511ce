//! An image inside an archive: which manifest is meant, its config, and where its layers are.
//!
//! Two kinds of archive are read, both plain tar files, neither unpacked to disk:
//! - `oci-archive`: an OCI image layout (`index.json`, `blobs/sha256/...`), OCI image-spec
//!   "image-layout.md".
//! - `docker-archive`: what `docker save` writes (`manifest.json`, config and layer tars).
//!
//! # Digests
//! Everything read from an OCI archive is compared with the digest and the size that led there:
//! index, manifest, config here, layers in `layer`. A docker-archive has no manifest digest, so
//! its image gets that of the manifest which describes the same blobs; layers are checked against
//! the diff ids in the config, the config against its own name.
//!
//! # Not here
//! Foreign layers (to be fetched from a URL), encrypted layers, artifacts that are no images.

mod archive;
mod docker;
mod oci;
#[cfg(test)]
mod tests;

use oci_spec::image::{Arch, ImageConfiguration, Os};
use serde::{Deserialize, Serialize};

pub use self::archive::{Archive, Place, Section};
pub use self::oci::for_this_host;
use super::Limits;
use super::digest::Digest;
use super::error::ImageError;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    OciArchive,
    DockerArchive,
}

impl std::str::FromStr for Transport {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        match text {
            "oci-archive" => Ok(Self::OciArchive),
            "docker-archive" => Ok(Self::DockerArchive),
            other => Err(ImageError::unsupported(format!(
                "Transport '{other}' is unknown; use oci-archive or docker-archive"
            ))),
        }
    }
}

/// How the container is to be started: the part of the image config that the pool needs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// `NAME=value`, in the image's order.
    pub env: Vec<String>,
    pub working_dir: String,
    /// `user`, `uid`, `user:group` or `uid:gid`; empty means root.
    pub user: String,
    pub stop_signal: Option<String>,
    /// `8080/tcp`, sorted.
    pub exposed: Vec<String>,
}

/// A layer in the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    pub place: Place,
    /// Digest of the bytes as stored. `None` where the archive does not say (docker-archive).
    pub digest: Option<Digest>,
    /// Digest of the unpacked tar.
    pub diff_id: Digest,
}

/// The chosen image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Of the manifest.
    pub digest: Digest,
    /// What the archive calls it.
    pub names: Vec<String>,
    pub config: ImageConfig,
    /// From the lowest to the topmost.
    pub layers: Vec<Blob>,
}

/// Finds the image that `reference` means (or the only one) for this host's platform.
pub fn open(
    archive: &Archive,
    transport: Transport,
    reference: Option<&str>,
    limits: &Limits,
) -> Result<Image, ImageError> {
    match transport {
        Transport::OciArchive => oci::open(archive, reference, limits),
        Transport::DockerArchive => docker::open(archive, reference, limits),
    }
}

/// The image of one manifest, out of an archive of blobs.
pub fn open_manifest(
    archive: &Archive,
    manifest: Digest,
    limits: &Limits,
) -> Result<Image, ImageError> {
    oci::open_manifest(archive, manifest, limits)
}

/// A parsed config blob: what is kept of it, and the diff ids.
struct Config {
    config: ImageConfig,
    diff_ids: Vec<Digest>,
}

fn parse_config(bytes: &[u8], limits: &Limits) -> Result<Config, ImageError> {
    let parsed: ImageConfiguration = parse(bytes, "the image config")?;
    if *parsed.os() != Os::Linux || *parsed.architecture() != Arch::Amd64 {
        return Err(wrong_platform(&[platform_name(
            parsed.os(),
            parsed.architecture(),
        )]));
    }
    let diff_ids = parsed
        .rootfs()
        .diff_ids()
        .iter()
        .map(|text| {
            text.parse()
                .map_err(|error| ImageError::corrupt(format!("Diff id in the config: {error}")))
        })
        .collect::<Result<Vec<_>, _>>()?;
    if diff_ids.len() > limits.layers {
        return Err(too_many_layers(diff_ids.len(), limits));
    }
    let config = parsed.config().clone().unwrap_or_default();
    let mut exposed = config.exposed_ports().clone().unwrap_or_default();
    exposed.sort();
    Ok(Config {
        config: ImageConfig {
            entrypoint: config.entrypoint().clone().unwrap_or_default(),
            cmd: config.cmd().clone().unwrap_or_default(),
            env: config.env().clone().unwrap_or_default(),
            working_dir: config.working_dir().clone().unwrap_or_default(),
            user: config.user().clone().unwrap_or_default(),
            stop_signal: config.stop_signal().clone().filter(|name| !name.is_empty()),
            exposed,
        },
        diff_ids,
    })
}

fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, ImageError> {
    serde_json::from_slice(bytes)
        .map_err(|error| ImageError::corrupt(format!("Cannot understand {what}: {error}")))
}

fn platform_name(os: &Os, arch: &Arch) -> String {
    format!("{os}/{arch}")
}

fn wrong_platform(found: &[String]) -> ImageError {
    ImageError::platform(format!(
        "The image is for {}, this host needs linux/amd64; build or pull it for that platform",
        found.join(", ")
    ))
}

fn too_many_layers(found: usize, limits: &Limits) -> ImageError {
    ImageError::too_large(format!(
        "The image has {found} layers, at most {} are allowed",
        limits.layers
    ))
}

/// "No such image; the archive holds ...".
fn not_in_archive(reference: Option<&str>, mut names: Vec<String>) -> ImageError {
    /// Names worth listing in one line.
    const SHOWN: usize = 10;
    names.sort();
    names.dedup();
    let more = names.len().saturating_sub(SHOWN);
    names.truncate(SHOWN);
    let mut held = names.join(", ");
    if more > 0 {
        held.push_str(&format!(" and {more} more"));
    }
    ImageError::not_found(match (reference, held.is_empty()) {
        (Some(reference), false) => {
            format!("The archive has no image '{reference}'; it holds {held}")
        }
        (Some(reference), true) => format!("The archive has no image '{reference}'"),
        (None, false) => {
            format!("The archive holds several images, say which after the file name: {held}")
        }
        (None, true) => "The archive holds no image".into(),
    })
}
