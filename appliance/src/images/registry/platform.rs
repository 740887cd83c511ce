//! Which manifest of a registry is this host's, and which blobs it needs. The worker reads manifest and
//! config again, for what they mean: here nothing is believed but digests and sizes.

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::client::Document;
use crate::images::Limits;
use crate::images::digest::Digest;
use crate::images::error::{ImageError, printable};
use crate::images::layout::for_this_host;

const MANIFEST_TYPES: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
const INDEX_TYPES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// Where a document leads.
#[derive(Debug)]
pub enum Next {
    /// To the manifest of this host's platform.
    Manifest(Digest),
    /// To the blobs of an image.
    Blobs(Needed),
}

/// What is to be downloaded, each blob once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needed {
    pub config: Wanted,
    pub layers: Vec<Wanted>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub digest: Digest,
    pub bytes: u64,
}

impl Needed {
    pub fn all(&self) -> impl Iterator<Item = &Wanted> {
        std::iter::once(&self.config).chain(&self.layers)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    media_type: Option<String>,
    manifests: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
}

/// Reads an index or a manifest.
pub fn read(document: &Document, limits: &Limits) -> Result<Next, ImageError> {
    let shape: Shape = parse(&document.bytes)?;
    // One that is both would be another image to another reader (CVE-2021-41190).
    if shape.manifests.is_some() && shape.layers.is_some() {
        return Err(ImageError::corrupt("The manifest is an index as well"));
    }
    let kind = shape
        .media_type
        .or_else(|| document.media_type.clone())
        .unwrap_or_default();
    if INDEX_TYPES.contains(&kind.as_str()) {
        let index: ImageIndex = parse(&document.bytes)?;
        let entries: Vec<_> = index.manifests().iter().collect();
        return Ok(Next::Manifest(sha256(for_this_host(&entries)?)?));
    }
    if MANIFEST_TYPES.contains(&kind.as_str()) {
        return needed(&parse(&document.bytes)?, limits).map(Next::Blobs);
    }
    Err(ImageError::unsupported(format!(
        "Manifests of type '{}' are not supported",
        printable(kind.as_bytes())
    )))
}

fn needed(manifest: &ImageManifest, limits: &Limits) -> Result<Needed, ImageError> {
    let count = manifest.layers().len();
    if count > limits.layers {
        return Err(ImageError::too_large(format!(
            "The image has {count} layers, at most {} are allowed",
            limits.layers
        )));
    }
    let config = wanted(manifest.config())?;
    check("config", config.bytes, limits.config_bytes)?;
    let mut layers: Vec<Wanted> = Vec::new();
    let mut total = 0_u64;
    for layer in manifest.layers() {
        let layer = wanted(layer)?;
        check("layer", layer.bytes, limits.layer_bytes)?;
        match layers.iter().find(|known| known.digest == layer.digest) {
            Some(known) if known.bytes != layer.bytes => {
                return Err(ImageError::corrupt(format!(
                    "The manifest gives layer {} two sizes",
                    layer.digest
                )));
            }
            Some(_) => {}
            None => {
                total = total.saturating_add(layer.bytes);
                layers.push(layer);
            }
        }
    }
    check("image", total, limits.archive_bytes)?;
    Ok(Needed { config, layers })
}

fn check(what: &str, bytes: u64, limit: u64) -> Result<(), ImageError> {
    if bytes <= limit {
        return Ok(());
    }
    Err(ImageError::too_large(format!(
        "The {what} has {} MiB to download, at most {} are allowed",
        bytes.div_ceil(1 << 20),
        limit >> 20
    )))
}

fn wanted(descriptor: &Descriptor) -> Result<Wanted, ImageError> {
    Ok(Wanted {
        digest: sha256(descriptor)?,
        bytes: descriptor.size(),
    })
}

fn sha256(descriptor: &Descriptor) -> Result<Digest, ImageError> {
    let text: &str = descriptor.digest().as_ref();
    text.parse()
        .map_err(|error| ImageError::unsupported(format!("Only sha256 is supported: {error}")))
}

fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, ImageError> {
    serde_json::from_slice(bytes)
        .map_err(|error| ImageError::corrupt(format!("Cannot understand the manifest: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::ImageErrorCode;
    use serde_json::{Value, json};

    fn document(media_type: Option<&str>, value: &Value) -> Document {
        let bytes = value.to_string().into_bytes();
        Document {
            digest: Digest::of(&bytes),
            media_type: media_type.map(str::to_owned),
            bytes,
        }
    }

    fn descriptor(name: &str, size: u64) -> Value {
        json!({ "mediaType": "application/octet-stream", "digest": Digest::of(name.as_bytes()), "size": size })
    }

    fn manifest(layers: &[Value]) -> Value {
        json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPES[0],
            "config": descriptor("config", 10),
            "layers": layers,
        })
    }

    fn entry(name: &str, os: &str, architecture: &str) -> Value {
        let mut entry = descriptor(name, 1);
        entry["platform"] = json!({ "os": os, "architecture": architecture });
        entry
    }

    fn error(value: &Value) -> ImageError {
        read(&document(None, value), &Limits::default()).unwrap_err()
    }

    #[test]
    fn index_leads_to_the_manifest_of_this_host_and_says_what_there_is_if_none() {
        let index = |entries: &[Value]| json!({ "schemaVersion": 2, "mediaType": INDEX_TYPES[1], "manifests": entries });
        let arm = entry("arm", "linux", "arm64");
        let attestation = entry("at", "unknown", "unknown");
        let both = index(&[
            arm.clone(),
            attestation.clone(),
            entry("amd", "linux", "amd64"),
        ]);
        let Next::Manifest(digest) = read(&document(None, &both), &Limits::default()).unwrap()
        else {
            panic!("no manifest");
        };
        assert_eq!(digest, Digest::of(b"amd"));
        let error = error(&index(&[arm, entry("w", "windows", "amd64"), attestation]));
        assert_eq!(error.code, ImageErrorCode::ImagePlatformUnsupported);
        assert!(
            error.message.contains("linux/arm64, windows/amd64"),
            "{error}"
        );
    }

    #[test]
    fn each_blob_is_needed_once() {
        let layers = [descriptor("a", 5), descriptor("b", 6), descriptor("a", 5)];
        let read = read(&document(None, &manifest(&layers)), &Limits::default()).unwrap();
        let Next::Blobs(needed) = read else {
            panic!("no image")
        };
        assert_eq!(needed.layers.len(), 2);
        assert_eq!(needed.all().map(|wanted| wanted.bytes).sum::<u64>(), 21);
        let error = error(&manifest(&[descriptor("a", 5), descriptor("a", 6)]));
        assert_eq!(error.code, ImageErrorCode::ImageCorrupt);
    }

    #[test]
    fn caps_are_checked_before_anything_is_downloaded() {
        let limits = Limits {
            layer_bytes: 10,
            archive_bytes: 15,
            layers: 2,
            ..Limits::default()
        };
        let too_large = |layers: &[Value]| {
            let error = read(&document(None, &manifest(layers)), &limits).unwrap_err();
            assert_eq!(error.code, ImageErrorCode::ImageTooLarge);
            error.message
        };
        assert!(too_large(&[descriptor("a", 11)]).contains("layer"));
        assert!(too_large(&[descriptor("a", 8), descriptor("b", 8)]).contains("image"));
        assert!(
            too_large(&[descriptor("a", 1), descriptor("b", 1), descriptor("c", 1)])
                .contains("layers")
        );
        assert!(too_large(&[descriptor("a", u64::MAX >> 1)]).contains("layer"));
    }

    #[test]
    fn documents_that_are_no_image_are_refused() {
        for (value, code) in [
            (json!([]), ImageErrorCode::ImageCorrupt),
            (
                json!({ "schemaVersion": 1 }),
                ImageErrorCode::ImageUnsupported,
            ),
            (
                json!({ "mediaType": MANIFEST_TYPES[0], "manifests": [], "layers": [] }),
                ImageErrorCode::ImageCorrupt,
            ),
            (
                json!({ "mediaType": MANIFEST_TYPES[0] }),
                ImageErrorCode::ImageCorrupt,
            ),
            (
                json!({ "schemaVersion": 2, "mediaType": INDEX_TYPES[0], "manifests": [] }),
                ImageErrorCode::ImageCorrupt,
            ),
        ] {
            assert_eq!(error(&value).code, code, "{value}");
        }
        let mut untyped = manifest(&[]);
        untyped.as_object_mut().unwrap().remove("mediaType");
        assert_eq!(error(&untyped).code, ImageErrorCode::ImageUnsupported);
        read(
            &document(Some(MANIFEST_TYPES[1]), &untyped),
            &Limits::default(),
        )
        .unwrap();
    }
}
