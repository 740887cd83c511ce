//! Layers and documents of images, changed at random for a while. Whatever comes in, the job ends with an error or with an image that
//! can be read, and never with a panic.
//!
//! `corpus/` holds what the changes begin with: layers, and the index, manifest and config of an image. Digests and checksums
//! are put right again after each change, so that the changes get past them. See the crate `fuzz`.

use std::fs;
use std::path::{Path, PathBuf};

use ::fuzz::Target;

use crate::images::squash::reader::read_image;
use crate::images::testing::{Layer, OciArchive, build_with, sha256};
use crate::images::{ImageError, ImageErrorCode, JobReport, Limits, Transport};

/// Inputs of a run without `CABANA_FUZZ_SECONDS`: some seconds where nothing is optimised.
const INPUTS: u64 = 600;
const BLOCK: usize = 512;

/// So small that no input takes long.
fn limits() -> Limits {
    Limits {
        archive_bytes: 1 << 20,
        layer_bytes: 1 << 20,
        unpacked_bytes: 4 << 20,
        archive_members: 100,
        files: 1000,
        metadata_bytes: 1 << 20,
        path_bytes: 1 << 10,
        layers: 8,
        manifest_bytes: 64 << 10,
        config_bytes: 64 << 10,
    }
}

fn run(archive: &[u8]) -> Result<(JobReport, Vec<u8>), ImageError> {
    build_with(archive, Transport::OciArchive, None, limits())
}

/// The files of a folder of the corpus, by name.
pub fn corpus(folder: &str) -> Vec<(String, Vec<u8>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/images/tests/corpus");
    let mut paths: Vec<PathBuf> = fs::read_dir(root.join(folder))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    let file = |path: PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        (name, fs::read(path).unwrap())
    };
    paths.into_iter().map(file).collect()
}

fn of_layer(layer: &[u8]) -> Vec<u8> {
    OciArchive::of(&[layer.to_vec()])
}

/// `<what becomes of it>.<name>`: `read` or an error's code.
#[test]
fn each_layer_of_the_corpus_is_read_or_has_the_error_in_its_name() {
    for (name, layer) in corpus("layers") {
        let (expected, _) = name.split_once('.').unwrap();
        let found = match run(&of_layer(&layer)) {
            Ok((_, image)) => {
                read_image(&image);
                "read"
            }
            Err(error) => error.code.as_str(),
        };
        assert_eq!(found, expected, "{name}");
    }
}

/// The first byte of an input says whether the checksums of a layer, which is the rest, are put right.
const SEALED: u8 = 0;

#[test]
fn fuzz_layers() {
    // What is refused as it is hides what stands behind the reason.
    let mut layers = corpus("layers");
    layers.retain(|(name, _)| name.starts_with("read."));
    Target::new("layers")
        .seeds(
            layers
                .iter()
                .map(|(_, layer)| [&[SEALED], &layer[..]].concat()),
        )
        .max_bytes(1 << 16)
        .run(INPUTS, |input| {
            let (seal, layer) = input.split_first().unwrap_or((&SEALED, &[]));
            let mut layer = layer.to_vec();
            if *seal == SEALED {
                seal_headers(&mut layer);
            }
            read(&of_layer(&layer))
        });
}

/// Parts of a document that break parsers.
pub const TOKENS: [&str; 16] = [
    "null",
    "-1",
    "18446744073709551615",
    "18446744073709551616",
    "1e999",
    "0.5",
    "\"\"",
    "\"\\ud800\"",
    "{}",
    "[]",
    "[[[[[[[[[[[[[[[[",
    "}",
    ",",
    "\"sha256:\"",
    "\"layers\":[],",
    "\"../../x\"",
];

/// The first byte of an input says which document the rest is.
#[test]
fn fuzz_documents() {
    let documents = Documents::read();
    let numbered = (0_u8..).zip(&documents.parts);
    Target::new("documents")
        .seeds(numbered.map(|(number, part)| [&[number], &part[..]].concat()))
        .words(&TOKENS)
        .run(INPUTS, |input| {
            let (number, document) = input.split_first().unwrap_or((&0, &[]));
            let mut documents = documents.clone();
            let number = usize::from(*number) % documents.parts.len();
            documents.parts[number] = document.to_vec();
            read(&documents.archive())
        });
}

#[test]
fn documents_of_the_corpus_make_an_image() {
    let (report, image) = run(&Documents::read().archive()).unwrap();
    assert_eq!(report.config.entrypoint, ["/demo"]);
    assert!(read_image(&image).contains("/demo f 0755"));
}

/// An image's config, manifest and index, with places for the digest and the length of what each leads to.
#[derive(Clone)]
struct Documents {
    parts: [Vec<u8>; 3],
}

impl Documents {
    fn read() -> Self {
        let files = corpus("documents");
        let names: Vec<_> = files.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["1-config.json", "2-manifest.json", "3-index.json"]);
        let parts: Vec<_> = files.into_iter().map(|(_, bytes)| bytes).collect();
        Self {
            parts: parts.try_into().unwrap(),
        }
    }

    fn archive(&self) -> Vec<u8> {
        let mut layer = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_size(1);
        layer.append_data(&mut header, "demo", &b"x"[..]).unwrap();
        let layer = layer.into_inner().unwrap();
        let mut blobs = vec![("LAYER", layer)];
        for (name, part) in ["CONFIG", "MANIFEST", "INDEX"].iter().zip(&self.parts) {
            let mut bytes = part.clone();
            for (target, blob) in &blobs {
                let digest = format!("sha256:{}", sha256(blob));
                bytes = replaced(bytes, &format!("{target}_DIGEST"), &digest);
                bytes = replaced(
                    bytes,
                    &format!("\"{target}_LENGTH\""),
                    &blob.len().to_string(),
                );
            }
            blobs.push((name, bytes));
        }
        let (_, index) = blobs.pop().unwrap();
        let mut archive = Layer::new()
            .file("oci-layout", b"{\"imageLayoutVersion\":\"1.0.0\"}")
            .file("index.json", &index);
        for (_, bytes) in &blobs {
            archive = archive.file(&format!("blobs/sha256/{}", sha256(bytes)), bytes);
        }
        archive.finish()
    }
}

/// With each `from` that is there as `to`; what is around it may be anything.
fn replaced(bytes: Vec<u8>, from: &str, to: &str) -> Vec<u8> {
    let mut rest = &bytes[..];
    let mut out = Vec::new();
    while let Some(at) = rest
        .windows(from.len())
        .position(|part| part == from.as_bytes())
    {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(to.as_bytes());
        rest = &rest[at + from.len()..];
    }
    out.extend_from_slice(rest);
    out
}

/// Whether an archive becomes an image, which then can be read.
fn read(archive: &[u8]) -> bool {
    match run(archive) {
        Ok((_, image)) => {
            read_image(&image);
            true
        }
        Err(error) => {
            assert_blames_the_input(&error);
            false
        }
    }
}

/// Neither the host nor the worker is to blame for what a stranger wrote.
pub fn assert_blames_the_input(error: &ImageError) {
    use ImageErrorCode::{ImageStorageFailed, ImageWorkerFailed};
    let ours = matches!(error.code, ImageStorageFailed | ImageWorkerFailed);
    assert!(!ours, "{error}");
}

/// Puts the checksums of headers right, as far as one leads to the next.
fn seal_headers(layer: &mut [u8]) {
    let mut at = 0;
    while at + BLOCK <= layer.len() {
        let mut header = tar::Header::from_byte_slice(&layer[at..at + BLOCK]).clone();
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            return;
        }
        header.set_cksum();
        layer[at..at + BLOCK].copy_from_slice(header.as_bytes());
        let size = header
            .entry_size()
            .ok()
            .and_then(|size| usize::try_from(size).ok());
        let next = size
            .and_then(|size| size.checked_next_multiple_of(BLOCK))
            .and_then(|size| at.checked_add(BLOCK + size));
        match next {
            Some(next) if next > at => at = next,
            _ => return,
        }
    }
}
