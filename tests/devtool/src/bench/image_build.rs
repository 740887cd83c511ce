//! A root image of a real image: ours against `umoci unpack` and `mksquashfs`, which need root, a folder and two programs for it.
//!
//! Same image, same compression, same host, in turns. Both begin with the start of a process and end with a file. Ours reads the
//! archive; the others get it as a folder of blobs, which is not timed.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::{Bench, Row};
use crate::cache::Cache;
use crate::{command, images, packages};

const ROUNDS: u32 = 3;
/// Of the others' time.
const MOST: f64 = 1.0;
/// As `images::squash::Shape` has it by default, and the same for the others.
const SHAPE: &str = "zstd3/128K";
const SAME: [&str; 10] = [
    "-comp",
    "zstd",
    "-Xcompression-level",
    "3",
    "-b",
    "128K",
    "-noappend",
    "-quiet",
    "-no-progress",
    "-xattrs",
];

pub fn image_build(bench: &Bench) -> Result<Row> {
    let workspace = bench.runner.workspace();
    packages::ensure(workspace, &[packages::IMAGES, &["squashfs-tools"]])?;
    let archive = images::python(workspace, &Cache::open()?)?;
    let folder = tempfile::tempdir().context("Cannot make a folder")?;
    let [layout, bundle, image] = ["layout", "bundle", "image"].map(|it| folder.path().join(it));
    fs::create_dir(&layout).context("Cannot make a folder")?;
    let log = workspace.logs().join("image-build.log");
    let run = |command: &mut Command| command::logged(command, &log, |_| {});
    run(Command::new("tar")
        .arg("-xf")
        .arg(&archive)
        .arg("-C")
        .arg(&layout))?;
    let (mut ours, mut unpacked, mut packed) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let started = Instant::now();
        run(Command::new(bench.binary)
            .args([
                "bench", "image", "--rounds", "0", "--shapes", SHAPE, "--image",
            ])
            .arg(format!("oci-archive:{}", archive.display())))?;
        ours.push(started.elapsed());

        let started = Instant::now();
        run(Command::new("umoci")
            .args(["unpack", "--image"])
            .arg(format!("{}:python", layout.display()))
            .arg(&bundle))?;
        unpacked.push(started.elapsed());
        let started = Instant::now();
        run(Command::new("mksquashfs")
            .arg(bundle.join("rootfs"))
            .arg(&image)
            .args(SAME))?;
        packed.push(started.elapsed());
        fs::remove_dir_all(&bundle).context("Cannot remove the unpacked image")?;
    }
    let [ours, unpacked, packed] = [ours, unpacked, packed].map(median);
    let theirs = unpacked + packed;
    let row = Row::checked("image_build", ours / theirs, "ratio", MOST);
    let detail = format!(
        "archive to root image / umoci unpack + mksquashfs of the same, median of {ROUNDS} in turns"
    );
    let note = format!("ours {ours:.2} s; umoci {unpacked:.2} s + mksquashfs {packed:.2} s");
    Ok(row.with(detail, vec![note]))
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64()
}
