//! Writes a small OCI archive: one layer, fixed times and order, so that the same program gives the same bytes and the same digest.
//!
//! Format: OCI image specification 1.1, image layout and image manifest.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

/// A single-layer image.
pub struct Image<'a> {
    /// Path in the image, mode, content.
    pub files: &'a [(&'a str, u32, &'a [u8])],
    pub folders: &'a [&'a str],
    /// The `config` object of the image configuration.
    pub config: Value,
    /// The tag in the archive.
    pub reference: &'a str,
}

struct Blob {
    digest: String,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Self {
        let hash = Sha256::digest(&bytes);
        let digest = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        Self { digest, bytes }
    }

    fn json(value: &Value) -> Self {
        Self::new(value.to_string().into_bytes())
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": format!("sha256:{}", self.digest), "size": self.bytes.len()})
    }
}

/// Writes the image as an OCI archive to `path`.
pub fn write(path: &Path, image: &Image) -> Result<()> {
    let layer = Blob::new(layer(image)?);
    let config = Blob::json(&json!({
        "architecture": "amd64",
        "os": "linux",
        "config": image.config,
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", layer.digest)]},
    }));
    let manifest = Blob::json(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config.descriptor("application/vnd.oci.image.config.v1+json"),
        "layers": [layer.descriptor("application/vnd.oci.image.layer.v1.tar")],
    }));
    let mut entry = manifest.descriptor("application/vnd.oci.image.manifest.v1+json");
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": image.reference});
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]});

    let file = File::create(path).with_context(|| format!("Cannot create {}", path.display()))?;
    let mut archive = Builder::new(file);
    let write = |archive: &mut Builder<File>| -> std::io::Result<()> {
        append(
            archive,
            "oci-layout",
            0o644,
            json!({"imageLayoutVersion": "1.0.0"})
                .to_string()
                .as_bytes(),
        )?;
        append(archive, "index.json", 0o644, index.to_string().as_bytes())?;
        for blob in [&manifest, &config, &layer] {
            append(
                archive,
                &format!("blobs/sha256/{}", blob.digest),
                0o644,
                &blob.bytes,
            )?;
        }
        archive.finish()
    };
    write(&mut archive).with_context(|| format!("Cannot write {}", path.display()))
}

fn layer(image: &Image) -> Result<Vec<u8>> {
    let mut archive = Builder::new(Vec::new());
    for folder in image.folders {
        let mut header = header(EntryType::Directory, 0o755, 0);
        archive
            .append_data(&mut header, format!("{folder}/"), std::io::empty())
            .context("Cannot build the layer")?;
    }
    for (path, mode, content) in image.files {
        append(&mut archive, path, *mode, content).context("Cannot build the layer")?;
    }
    archive.into_inner().context("Cannot build the layer")
}

fn append<W: Write>(
    archive: &mut Builder<W>,
    path: &str,
    mode: u32,
    content: &[u8],
) -> std::io::Result<()> {
    archive.append_data(
        &mut header(EntryType::Regular, mode, content.len() as u64),
        path,
        content,
    )
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read as _;

    use super::*;

    fn written() -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.tar");
        let image = Image {
            files: &[("demo", 0o755, b"program")],
            folders: &["tmp"],
            config: json!({"Entrypoint": ["/demo"]}),
            reference: "demo:latest",
        };
        write(&path, &image).unwrap();
        std::fs::read(path).unwrap()
    }

    fn members(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut members = BTreeMap::new();
        for entry in tar::Archive::new(archive).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            members.insert(
                entry.path().unwrap().to_string_lossy().into_owned(),
                content,
            );
        }
        members
    }

    #[test]
    fn archive_of_the_same_image_has_the_same_bytes() {
        assert_eq!(written(), written());
    }

    #[test]
    fn every_descriptor_leads_to_a_blob_of_that_digest_and_size() {
        let members = members(&written());
        let follow = |descriptor: &Value| {
            let digest = descriptor["digest"]
                .as_str()
                .unwrap()
                .strip_prefix("sha256:")
                .unwrap();
            let blob = &members[&format!("blobs/sha256/{digest}")];
            assert_eq!(Blob::new(blob.clone()).digest, digest);
            assert_eq!(descriptor["size"], blob.len());
            blob.clone()
        };
        let index: Value = serde_json::from_slice(&members["index.json"]).unwrap();
        let manifest: Value = serde_json::from_slice(&follow(&index["manifests"][0])).unwrap();
        let config: Value = serde_json::from_slice(&follow(&manifest["config"])).unwrap();
        let layer = follow(&manifest["layers"][0]);
        assert_eq!(config["config"]["Entrypoint"][0], "/demo");
        assert_eq!(
            config["rootfs"]["diff_ids"][0],
            manifest["layers"][0]["digest"]
        );
        assert!(layer.windows(7).any(|window| window == b"program"));
    }
}
