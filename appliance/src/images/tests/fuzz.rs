//! Layers and documents of images, changed at random for a while. Whatever comes in, the job ends with an error or with an image that
//! can be read, and never with a panic.
//!
//! `corpus/` holds what the changes begin with: layers, and the index, manifest and config of an image. Digests and checksums
//! are put right again after each change, so that the changes get past them. Both targets, and that of the answers of registries
//! (`registry::tests::fuzz`), run for a moment in every test run, always the same; for as long as one likes with
//!
//! ```text
//! CABANA_FUZZ_SECONDS=3600 cargo test --release -p appliance fuzz -- --nocapture
//! ```
//!
//! and from another place with `CABANA_FUZZ_SEED=<number>`. A failure names the seed that has it as its first one. Why it is no `cargo
//! fuzz`: `vmm/decisions/fuzzing.md`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::images::squash::reader::read_image;
use crate::images::testing::{Layer, OciArchive, build_with, sha256};
use crate::images::{ImageError, ImageErrorCode, JobReport, Limits, Transport};

/// Inputs of a run without `CABANA_FUZZ_SECONDS`: some seconds where nothing is optimised.
const INPUTS: u64 = 1500;
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

#[test]
fn fuzz_layers() {
    // What is refused as it is hides what stands behind the reason.
    let mut layers = corpus("layers");
    layers.retain(|(name, _)| name.starts_with("read."));
    fuzz(|random| {
        let (_, layer) = &layers[random.below(layers.len())];
        let mut layer = layer.clone();
        for _ in 0..=random.below(4) {
            change(&mut layer, random, &[]);
        }
        if random.below(8) != 0 {
            seal_headers(&mut layer);
        }
        of_layer(&layer)
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

#[test]
fn fuzz_documents() {
    let documents = Documents::read();
    fuzz(|random| {
        let mut documents = documents.clone();
        documents.changed = random.below(3);
        documents.archive(|bytes| {
            for _ in 0..=random.below(3) {
                change(bytes, random, &TOKENS);
            }
        })
    });
}

#[test]
fn documents_of_the_corpus_make_an_image() {
    let (report, image) = run(&Documents::read().archive(|_| {})).unwrap();
    assert_eq!(report.config.entrypoint, ["/demo"]);
    assert!(read_image(&image).contains("/demo f 0755"));
}

/// An image's config, manifest and index, with places for the digest and the length of what each leads to.
#[derive(Clone)]
struct Documents {
    parts: [Vec<u8>; 3],
    /// Which of them is changed; what leads to it has the digest of the change.
    changed: usize,
}

impl Documents {
    fn read() -> Self {
        let files = corpus("documents");
        let names: Vec<_> = files.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["1-config.json", "2-manifest.json", "3-index.json"]);
        let parts: Vec<_> = files.into_iter().map(|(_, bytes)| bytes).collect();
        Self {
            parts: parts.try_into().unwrap(),
            changed: usize::MAX,
        }
    }

    fn archive(&self, mut change: impl FnMut(&mut Vec<u8>)) -> Vec<u8> {
        let mut layer = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_size(1);
        layer.append_data(&mut header, "demo", &b"x"[..]).unwrap();
        let layer = layer.into_inner().unwrap();
        let mut blobs = vec![("LAYER", layer)];
        for (index, (name, part)) in ["CONFIG", "MANIFEST", "INDEX"]
            .iter()
            .zip(&self.parts)
            .enumerate()
        {
            let mut text = String::from_utf8(part.clone()).unwrap();
            for (target, bytes) in &blobs {
                text = text.replace(
                    &format!("{target}_DIGEST"),
                    &format!("sha256:{}", sha256(bytes)),
                );
                text = text.replace(&format!("\"{target}_LENGTH\""), &bytes.len().to_string());
            }
            let mut bytes = text.into_bytes();
            if index == self.changed {
                change(&mut bytes);
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

/// Runs archives until it is time to stop.
fn fuzz(mut input: impl FnMut(&mut Random) -> Vec<u8>) {
    repeat(INPUTS, |random| {
        let result = run(&input(random));
        match &result {
            Ok((_, image)) => drop(read_image(image)),
            Err(error) => assert_blames_the_input(error),
        }
        result.is_ok()
    });
}

/// Neither the host nor the worker is to blame for what a stranger wrote.
pub fn assert_blames_the_input(error: &ImageError) {
    use ImageErrorCode::{ImageStorageFailed, ImageWorkerFailed};
    let ours = matches!(error.code, ImageStorageFailed | ImageWorkerFailed);
    assert!(!ours, "{error}");
}

/// Runs inputs until it is time to stop: so many, if no time is said. `try_one` answers whether its input was taken.
pub fn repeat(inputs: u64, mut try_one: impl FnMut(&mut Random) -> bool) {
    let first = number("CABANA_FUZZ_SEED").unwrap_or(1);
    let duration = number("CABANA_FUZZ_SECONDS").map(Duration::from_secs);
    let started = Instant::now();
    let mut counts = [0_u64; 2];
    for seed in first.. {
        let done = match duration {
            Some(duration) => started.elapsed() >= duration,
            None => seed - first >= inputs,
        };
        if done {
            break;
        }
        let blame = Blame(seed);
        let taken = try_one(&mut Random(seed));
        std::mem::forget(blame);
        counts[usize::from(taken)] += 1;
    }
    println!("{} inputs refused, {} read", counts[0], counts[1]);
    assert!(
        counts[0] > 0 && counts[1] > 0,
        "the changes are neither all fatal nor all harmless"
    );
}

/// Says which input it was, should reading it panic.
struct Blame(u64);

impl Drop for Blame {
    fn drop(&mut self) {
        eprintln!("to see this again: CABANA_FUZZ_SEED={}", self.0);
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is not a number: {text}")),
    )
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

/// One change of the kinds that find faults in parsers: flipped bits, bytes and numbers at their limits, lost, doubled and moved
/// parts, whole blocks of them, and words of the format.
pub fn change(bytes: &mut Vec<u8>, random: &mut Random, tokens: &[&str]) {
    if bytes.is_empty() {
        bytes.push(random.byte());
        return;
    }
    let at = random.below(bytes.len());
    let len = 1 + random.below((bytes.len() - at).min(64));
    match random.below(8) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = random.byte(),
        2 => {
            let edge = [0, 1, b'0', b'7', b'/', b'.', 0x80, 0xff][random.below(8)];
            bytes[at..at + len].fill(edge);
        }
        3 => drop(bytes.drain(at..at + len)),
        4 => {
            let part = bytes[at..at + len].to_vec();
            bytes.splice(at..at, part);
        }
        5 => {
            let part = bytes[at..at + len].to_vec();
            let to = random.below(bytes.len() - len + 1);
            bytes[to..to + len].copy_from_slice(&part);
        }
        6 => {
            // A header somewhere else, or twice.
            let from = at / BLOCK * BLOCK;
            let block = bytes[from..bytes.len().min(from + BLOCK)].to_vec();
            let to = random.below(bytes.len()) / BLOCK * BLOCK;
            bytes.splice(to..to, block);
        }
        _ => match tokens {
            [] => {
                // A number in octal, as headers have them.
                let number = format!("{:o}\0", random.next() >> random.below(64));
                let end = bytes.len().min(at + number.len());
                bytes[at..end].copy_from_slice(&number.as_bytes()[..end - at]);
            }
            tokens => {
                let token = tokens[random.below(tokens.len())];
                bytes.splice(at..at + len.min(8), token.bytes());
            }
        },
    }
}

/// Numbers that look random and depend on the seed alone (splitmix64).
pub struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).expect("smaller than a usize")
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }
}
