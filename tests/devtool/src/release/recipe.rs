//! How a release is built: everything that a compiler takes from its surroundings, fixed or given another name.
//!
//! What else could differ does not: kernel, initramfs and scratch file system have fixed times, users and ids (`kernel.rs`, `initramfs.rs`), and
//! the build id of a program is a digest of what was linked (`--build-id=sha1`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::command;
use crate::workspace::{Recipe, TRIPLE};

/// What the checkout, and the folder of published crates, are called in a release.
const CHECKOUT: &str = "/cabana";
const CRATES: &str = "/crates";

/// For the checkout at `root`, which has no symbolic link in it.
pub fn of(root: &Path, epoch: u64) -> Result<Recipe> {
    let names = names(root)?;
    let rust: Vec<String> = names
        .iter()
        .map(|(place, name)| format!("--remap-path-prefix={}={name}", place.display()))
        .collect();
    // Crates with C in them have file names in their assertions.
    let c: Vec<String> = names
        .iter()
        .map(|(place, name)| format!("-ffile-prefix-map={}={name}", place.display()))
        .collect();
    let flags = serde_json::to_string(&rust).context("Cannot write the flags")?;
    Ok(Recipe {
        // Apart from everyday builds, which have other flags.
        target: root.join("target/release-build"),
        // Joined to the flags of `.cargo/config.toml`, where RUSTFLAGS would be in their place.
        settings: vec![
            "--locked".to_owned(),
            "--config".to_owned(),
            format!("target.{TRIPLE}.rustflags={flags}"),
        ],
        environment: vec![
            ("CFLAGS".to_owned(), c.join(" ").into()),
            ("SOURCE_DATE_EPOCH".to_owned(), epoch.to_string().into()),
        ],
    })
}

/// Folders of this machine, none of which may be in a release.
pub fn places(root: &Path) -> Result<Vec<PathBuf>> {
    let mut places = vec![root.to_owned(), cargo_home()?, sysroot()?];
    places.extend(std::env::home_dir());
    // `/` is in everything.
    places.retain(|place| place.components().count() > 1);
    Ok(places)
}

/// A later one wins where two fit.
fn names(root: &Path) -> Result<Vec<(PathBuf, String)>> {
    let mut names = Vec::new();
    // One for each registry, named by a hash of its address: a mirror has another one.
    let sources = cargo_home()?.join("registry/src");
    let entries =
        fs::read_dir(&sources).with_context(|| format!("Cannot list {}", sources.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("Cannot list {}", sources.display()))?;
        names.push((entry.path(), CRATES.to_owned()));
    }
    names.sort();
    names.insert(0, (root.to_owned(), CHECKOUT.to_owned()));
    // Where its sources are installed, rustc says where; elsewhere it says this by itself.
    let commit = rustc(&["--version", "--verbose"])?;
    let commit = commit
        .lines()
        .find_map(|line| line.strip_prefix("commit-hash: "))
        .context("rustc does not say what it was built from")?;
    names.push((
        sysroot()?.join("lib/rustlib/src/rust"),
        format!("/rustc/{commit}"),
    ));
    Ok(names)
}

fn cargo_home() -> Result<PathBuf> {
    std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".cargo")))
        .context("Neither CARGO_HOME nor a home directory says where crates are")
}

fn sysroot() -> Result<PathBuf> {
    Ok(PathBuf::from(rustc(&["--print", "sysroot"])?.trim()))
}

fn rustc(arguments: &[&str]) -> Result<String> {
    command::output(Command::new("rustc").args(arguments))
}
