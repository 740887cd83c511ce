//! For tests: layers and archives made by hand, and the root image read back as lines of text.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;

use sha2::{Digest as _, Sha256};

use super::digest::Digest;
use super::layout::ImageConfig;
use super::squash::reader::read_image;
use super::worker::{self, Input, Job, JobReport};
use super::{ImageError, Limits, Transport};

/// Builds a layer header by header, so that nothing keeps it from being nasty.
#[derive(Clone, Default)]
pub struct Layer {
    bytes: Vec<u8>,
}

/// One entry; defaults: mode 0644, root, time 0.
pub struct Item<'a> {
    pub path: &'a [u8],
    pub kind: u8,
    pub link: &'a [u8],
    pub data: &'a [u8],
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: u64,
    pub device: (u32, u32),
    /// PAX records in front of it.
    pub pax: &'a [(&'a str, &'a [u8])],
}

impl Default for Item<'_> {
    fn default() -> Self {
        Self {
            path: b"",
            kind: b'0',
            link: b"",
            data: b"",
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 0,
            device: (0, 0),
            pax: &[],
        }
    }
}

impl Layer {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn item(mut self, item: &Item<'_>) -> Self {
        if !item.pax.is_empty() {
            let records: Vec<u8> = item.pax.iter().flat_map(|(k, v)| pax(k, v)).collect();
            self = self.extension(b'x', &records);
        }
        if item.path.len() > 100 {
            self = self.extension(b'L', &[item.path, b"\0"].concat());
        }
        if item.link.len() > 100 {
            self = self.extension(b'K', &[item.link, b"\0"].concat());
        }
        let header = header(item);
        self.raw(&header).padded(item.data)
    }

    pub fn dir(self, path: &str) -> Self {
        self.item(&Item {
            path: path.as_bytes(),
            kind: b'5',
            mode: 0o755,
            ..Item::default()
        })
    }

    pub fn file(self, path: &str, data: &[u8]) -> Self {
        self.item(&Item {
            path: path.as_bytes(),
            data,
            ..Item::default()
        })
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.item(&Item {
            path: path.as_bytes(),
            kind: b'2',
            link: target.as_bytes(),
            mode: 0o777,
            ..Item::default()
        })
    }

    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.item(&Item {
            path: path.as_bytes(),
            kind: b'1',
            link: target.as_bytes(),
            ..Item::default()
        })
    }

    pub fn extension(self, kind: u8, data: &[u8]) -> Self {
        let header = header(&Item {
            path: b"extension",
            kind,
            data,
            ..Item::default()
        });
        self.raw(&header).padded(data)
    }

    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    pub fn padded(mut self, data: &[u8]) -> Self {
        self.bytes.extend_from_slice(data);
        let length = self.bytes.len().next_multiple_of(512);
        self.bytes.resize(length, 0);
        self
    }

    /// The bytes without the two blocks that end an archive.
    pub fn unfinished(self) -> Vec<u8> {
        self.bytes
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&[0; 1024]);
        self.bytes
    }
}

/// A header with the right checksum.
pub fn header(item: &Item<'_>) -> [u8; 512] {
    let mut header = tar::Header::new_gnu();
    let old = header.as_old_mut();
    let name = &item.path[..item.path.len().min(100)];
    old.name[..name.len()].copy_from_slice(name);
    old.linkflag = [item.kind];
    let link = &item.link[..item.link.len().min(100)];
    old.linkname[..link.len()].copy_from_slice(link);
    header.set_mode(item.mode);
    header.set_uid(item.uid);
    header.set_gid(item.gid);
    header.set_mtime(item.mtime);
    header.set_size(item.data.len() as u64);
    header.set_device_major(item.device.0).unwrap();
    header.set_device_minor(item.device.1).unwrap();
    header.set_cksum();
    *header.as_bytes()
}

/// `<length> <key>=<value>\n`, where the length counts itself.
pub fn pax(key: &str, value: &[u8]) -> Vec<u8> {
    let body = key.len() + value.len() + 3;
    let mut length = body + 1;
    while body + length.to_string().len() != length {
        length = body + length.to_string().len();
    }
    let mut record = format!("{length} {key}=").into_bytes();
    record.extend_from_slice(value);
    record.push(b'\n');
    record
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

pub fn sha256(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An OCI layout in the making.
#[derive(Default)]
pub struct OciArchive {
    blobs: Vec<(String, Vec<u8>)>,
    index: Vec<serde_json::Value>,
}

impl OciArchive {
    /// An archive with one image of these plain layers.
    pub fn of(layers: &[Vec<u8>]) -> Vec<u8> {
        let layers: Vec<_> = layers.iter().map(|l| (l.clone(), l.clone())).collect();
        let mut archive = Self::default();
        let manifest = archive.image(&layers, "amd64", &serde_json::json!({}));
        archive.list(&manifest, Some("latest"), None);
        archive.finish()
    }

    /// Adds blobs of an image whose layers are given as stored and as unpacked.
    pub fn image(
        &mut self,
        layers: &[(Vec<u8>, Vec<u8>)],
        architecture: &str,
        config: &serde_json::Value,
    ) -> serde_json::Value {
        let diff_ids: Vec<_> = layers
            .iter()
            .map(|(_, plain)| format!("sha256:{}", sha256(plain)))
            .collect();
        let config = serde_json::json!({
            "architecture": architecture,
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [{"empty_layer": true}],
        });
        let config = self.blob(
            "application/vnd.oci.image.config.v1+json",
            config.to_string().as_bytes(),
        );
        let layers: Vec<_> = layers
            .iter()
            .map(|(stored, _)| self.blob("application/vnd.oci.image.layer.v1.tar+gzip", stored))
            .collect();
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "config": config,
            "layers": layers,
        });
        self.blob(
            "application/vnd.oci.image.manifest.v1+json",
            manifest.to_string().as_bytes(),
        )
    }

    /// Adds a blob; returns its descriptor.
    pub fn blob(&mut self, media_type: &str, bytes: &[u8]) -> serde_json::Value {
        let hex = sha256(bytes);
        self.blobs
            .push((format!("blobs/sha256/{hex}"), bytes.to_vec()));
        serde_json::json!({
            "mediaType": media_type,
            "digest": format!("sha256:{hex}"),
            "size": bytes.len(),
        })
    }

    /// Puts a descriptor into index.json.
    pub fn list(
        &mut self,
        descriptor: &serde_json::Value,
        name: Option<&str>,
        architecture: Option<&str>,
    ) {
        let mut entry = descriptor.clone();
        if let Some(name) = name {
            entry["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": name});
        }
        if let Some(architecture) = architecture {
            entry["platform"] = serde_json::json!({"os": "linux", "architecture": architecture});
        }
        self.index.push(entry);
    }

    pub fn finish(self) -> Vec<u8> {
        let index = serde_json::json!({"schemaVersion": 2, "manifests": self.index}).to_string();
        let mut archive = Layer::new()
            .file("./oci-layout", b"{\"imageLayoutVersion\":\"1.0.0\"}")
            .file("./index.json", index.as_bytes());
        for (name, bytes) in &self.blobs {
            archive = archive.file(name, bytes);
        }
        archive.finish()
    }
}

/// A temporary file that holds `bytes`.
pub fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// Runs the whole job in this process.
pub fn build_with(
    archive: &[u8],
    transport: Transport,
    reference: Option<&str>,
    limits: Limits,
) -> Result<(JobReport, Vec<u8>), ImageError> {
    let job = Job {
        input: Input::Archive {
            transport,
            reference: reference.map(str::to_owned),
        },
        build: true,
        limits,
    };
    let mut output = tempfile::tempfile().unwrap();
    let fds = vec![
        OwnedFd::from(file_of(archive)),
        OwnedFd::from(output.try_clone().unwrap()),
        OwnedFd::from(tempfile::tempfile().unwrap()),
    ];
    let report = worker::run(job, fds)?;
    let mut image = Vec::new();
    output.rewind().unwrap();
    output.read_to_end(&mut image).unwrap();
    assert_eq!(report.bytes, image.len() as u64);
    Ok((report, image))
}

pub fn build(archive: &[u8]) -> Result<(JobReport, Vec<u8>), ImageError> {
    build_with(archive, Transport::OciArchive, None, Limits::default())
}

/// The tree that these layers make, one line per name: see `squash::reader`.
pub fn tree_of(layers: &[Layer]) -> String {
    let layers: Vec<_> = layers.iter().map(|layer| layer.clone().finish()).collect();
    let (_, image) = build(&OciArchive::of(&layers)).unwrap();
    read_image(&image)
}

/// The error that these layers make.
pub fn error_of(layers: &[Layer]) -> ImageError {
    let layers: Vec<_> = layers.iter().map(|layer| layer.clone().finish()).collect();
    match build(&OciArchive::of(&layers)) {
        Err(error) => error,
        Ok((_, image)) => panic!("accepted:\n{}", read_image(&image)),
    }
}

/// What an image worker says of a root image with this content.
pub fn report(content: &[u8]) -> JobReport {
    JobReport {
        digest: Digest::of(content),
        config: ImageConfig {
            cmd: vec!["run".into()],
            ..ImageConfig::default()
        },
        names: Vec::new(),
        warnings: vec!["something was lost".into()],
        bytes: content.len() as u64,
        layers: 3,
    }
}
