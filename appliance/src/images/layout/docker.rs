//! docker-archive: `manifest.json` lists config and layer files by name.

use oci_spec::image::{Descriptor, ImageManifestBuilder, MediaType, SCHEMA_VERSION};
use serde::Deserialize;

use super::archive::Archive;
use super::{Blob, Image, not_in_archive, parse, parse_config, too_many_layers};
use crate::images::Limits;
use crate::images::digest::Digest;
use crate::images::error::ImageError;

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl SavedImage {
    fn tags(&self) -> &[String] {
        self.repo_tags.as_deref().unwrap_or_default()
    }
}

pub fn open(
    archive: &Archive,
    reference: Option<&str>,
    limits: &Limits,
) -> Result<Image, ImageError> {
    if !archive.contains("manifest.json") {
        return Err(ImageError::corrupt(if archive.contains("index.json") {
            "This is not a docker-archive but an OCI archive; import it as oci-archive:FILE"
        } else {
            "This is not a docker-archive: manifest.json is missing"
        }));
    }
    let saved: Vec<SavedImage> = parse(
        &archive.read("manifest.json", limits.manifest_bytes)?,
        "manifest.json",
    )?;
    let saved = choose(&saved, reference)?;
    let config_bytes = archive.read(&saved.config, limits.config_bytes)?;
    let config_digest = Digest::of(&config_bytes);
    check_config_name(&saved.config, &config_digest)?;
    let config = parse_config(&config_bytes, limits)?;
    if saved.layers.len() > limits.layers {
        return Err(too_many_layers(saved.layers.len(), limits));
    }
    if saved.layers.len() != config.diff_ids.len() {
        return Err(ImageError::corrupt(format!(
            "manifest.json has {} layers, the config {}",
            saved.layers.len(),
            config.diff_ids.len()
        )));
    }
    let mut layers = Vec::new();
    for (name, diff_id) in saved.layers.iter().zip(config.diff_ids) {
        let place = archive.place(name)?;
        layers.push(Blob {
            place,
            digest: None,
            diff_id,
        });
    }
    Ok(Image {
        digest: manifest_digest(&config_digest, config_bytes.len() as u64, &layers)?,
        names: saved.tags().to_vec(),
        config: config.config,
        layers,
    })
}

fn choose<'a>(
    saved: &'a [SavedImage],
    reference: Option<&str>,
) -> Result<&'a SavedImage, ImageError> {
    let all_names = || saved.iter().flat_map(|image| image.tags().to_vec());
    match reference {
        None => match saved {
            [only] => Ok(only),
            _ => Err(not_in_archive(None, all_names().collect())),
        },
        Some(wanted) => saved
            .iter()
            .find(|image| {
                let config = image.config.trim_end_matches(".json");
                let is_image_id = wanted
                    .parse::<Digest>()
                    .is_ok_and(|digest| config.ends_with(digest.hex()));
                is_image_id || image.tags().iter().any(|tag| is_same_tag(tag, wanted))
            })
            .ok_or_else(|| not_in_archive(reference, all_names().collect())),
    }
}

/// Docker leaves out `docker.io/library/` when it saves, people leave out `:latest`.
fn is_same_tag(tag: &str, wanted: &str) -> bool {
    let short = |name: &str| -> String {
        let name = name.strip_prefix("docker.io/").unwrap_or(name);
        let name = name.strip_prefix("library/").unwrap_or(name);
        let last = name.rsplit('/').next().unwrap_or(name);
        match last.contains(':') {
            true => name.to_owned(),
            false => format!("{name}:latest"),
        }
    };
    short(tag) == short(wanted)
}

/// `<hex>.json` (docker save) or `blobs/sha256/<hex>` (since Docker 25).
fn check_config_name(name: &str, found: &Digest) -> Result<(), ImageError> {
    let file = name.rsplit('/').next().unwrap_or(name);
    match Digest::from_hex(file.trim_end_matches(".json")) {
        Ok(expected) if expected != *found => Err(ImageError::corrupt(format!(
            "The digest of the config should be {expected} but is {found}"
        ))),
        _ => Ok(()),
    }
}

/// The archive has no manifest with a digest, so the image is known by this one: plain layers
/// under their diff ids, sizes as stored. The same archive always gives the same digest.
fn manifest_digest(config: &Digest, size: u64, layers: &[Blob]) -> Result<Digest, ImageError> {
    let internal =
        |error: String| ImageError::corrupt(format!("Cannot describe the image: {error}"));
    let descriptor = |kind: MediaType, size: u64, digest: &Digest| {
        let digest: oci_spec::image::Digest = digest
            .as_str()
            .parse()
            .map_err(|error: oci_spec::OciSpecError| internal(error.to_string()))?;
        Ok::<_, ImageError>(Descriptor::new(kind, size, digest))
    };
    let layers = layers
        .iter()
        .map(|blob| descriptor(MediaType::ImageLayer, blob.place.length, &blob.diff_id))
        .collect::<Result<Vec<_>, _>>()?;
    let manifest = ImageManifestBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .media_type(MediaType::ImageManifest)
        .config(descriptor(MediaType::ImageConfig, size, config)?)
        .layers(layers)
        .build()
        .map_err(|error| internal(error.to_string()))?;
    let text = manifest
        .to_string()
        .map_err(|error| internal(error.to_string()))?;
    Ok(Digest::of(text.as_bytes()))
}
