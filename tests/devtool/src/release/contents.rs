//! What is in the binary: the crates that were compiled for it and for the two programs inside, and what is not Rust.
//!
//! Crates are those that cargo says it compiled for the target. The lock file and the metadata name more: what no feature switches on, and
//! what only ran in the build.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use cargo_metadata::{DependencyKind, Message, Metadata, MetadataCommand, PackageId};

use crate::kernel::{self, Origin};
use crate::workspace::{TRIPLE, Workspace};
use crate::{command, packages};

/// By the name in a release: cargo's profile and package.
const PROGRAMS: [(&str, &str, &str); 3] = [
    ("cabana", "release", "appliance"),
    ("cabana-worker", "worker", "worker"),
    ("agent", "agent", "agent"),
];

pub struct Contents {
    pub version: String,
    /// In the order of names and versions.
    pub crates: Vec<Crate>,
    pub agent: PathBuf,
    pub worker: PathBuf,
    pub kernel: Origin,
    /// The embedded files as they are before compression.
    pub vmlinux: PathBuf,
    pub initramfs: PathBuf,
    pub scratch: PathBuf,
    /// What the programs are linked with, beside crates.
    pub libraries: Vec<Library>,
}

pub struct Crate {
    pub name: String,
    pub version: String,
    pub licence: Option<String>,
    pub repository: Option<String>,
    /// SHA-256 of the published package; none for a crate of this checkout.
    pub checksum: Option<String>,
    pub folder: PathBuf,
    /// Which of the programs it is in.
    pub programs: BTreeSet<&'static str>,
    /// Those among `crates` that it calls, by name and version.
    pub calls: BTreeSet<(String, String)>,
}

pub struct Library {
    pub name: &'static str,
    pub version: String,
    pub licence: &'static str,
    pub purl: String,
}

impl Contents {
    /// Of what has just been built in `workspace`.
    pub fn of(workspace: &Workspace) -> Result<Self> {
        let metadata = metadata(workspace)?;
        let mut programs: BTreeMap<PackageId, BTreeSet<&'static str>> = BTreeMap::new();
        for (name, profile, package) in PROGRAMS {
            for id in compiled(workspace, profile, package)? {
                programs.entry(id).or_default().insert(name);
            }
        }
        let lock =
            fs::read_to_string(workspace.path("Cargo.lock")).context("Cannot read Cargo.lock")?;
        let appliance = metadata
            .packages
            .iter()
            .find(|package| package.name == "appliance")
            .context("There is no package `appliance`")?;
        let version = appliance.version.to_string();
        Ok(Self {
            version,
            crates: crates(&metadata, &programs, &checksums(&lock))?,
            agent: workspace.program("agent", "agent"),
            worker: workspace.program("worker", "cabana-worker"),
            kernel: kernel::origin(workspace)?,
            vmlinux: workspace.guest().join("vmlinux"),
            initramfs: workspace.guest().join("initramfs.cpio"),
            scratch: workspace.guest().join("scratch.ext4"),
            libraries: libraries()?,
        })
    }
}

/// Where the list of a program differs from the closure that cargo resolves for it, in words.
///
/// Two ways to the same answer: what the compiler was called for, and what the lock file and the features say.
pub fn differences(workspace: &Workspace, contents: &Contents) -> Result<Vec<String>> {
    let mut differences = Vec::new();
    for (program, _, package) in PROGRAMS {
        let listed: BTreeSet<(String, String)> = contents
            .crates
            .iter()
            .filter(|one| one.programs.contains(program))
            .map(|one| (one.name.clone(), one.version.clone()))
            .collect();
        let resolved = closure(workspace, package)?;
        for (name, version) in resolved.difference(&listed) {
            differences.push(format!(
                "{program} is resolved with {name} {version}, which is not listed"
            ));
        }
        for (name, version) in listed.difference(&resolved) {
            differences.push(format!(
                "{program} is listed with {name} {version}, which is not resolved"
            ));
        }
    }
    Ok(differences)
}

/// What `package` is linked with, itself among it; macros are not.
fn closure(workspace: &Workspace, package: &str) -> Result<BTreeSet<(String, String)>> {
    let mut cargo = workspace.cargo();
    cargo.args(["tree", "--quiet", "--prefix", "none", "--format", "{p}"]);
    cargo.args(["--edges", "normal,no-proc-macro", "--target", TRIPLE]);
    cargo.args(["--package", package]);
    Ok(command::output(&mut cargo)?
        .lines()
        .filter_map(|line| {
            // `name v1.2.3`, and where it is if it is of this checkout.
            let mut words = line.split_whitespace();
            let name = words.next()?.to_owned();
            let version = words.next()?.strip_prefix('v')?.to_owned();
            Some((name, version))
        })
        .collect())
}

fn metadata(workspace: &Workspace) -> Result<Metadata> {
    let mut cargo = workspace.cargo();
    cargo.args([
        "metadata",
        "--format-version=1",
        "--filter-platform",
        TRIPLE,
    ]);
    MetadataCommand::parse(command::output(&mut cargo)?).context("Cannot read cargo's metadata")
}

/// The packages whose code is in a program. Nothing is built for this any more.
fn compiled(workspace: &Workspace, profile: &str, package: &str) -> Result<BTreeSet<PackageId>> {
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--quiet", "--message-format=json"]);
    cargo.args(["--profile", profile, "--package", package]);
    let messages = command::output(&mut cargo)?;
    for_the_target(messages.as_bytes())
}

/// What build scripts and macros are made of lies elsewhere.
fn for_the_target(messages: &[u8]) -> Result<BTreeSet<PackageId>> {
    let mut ids = BTreeSet::new();
    for message in Message::parse_stream(messages) {
        let message = message.context("Cannot read what cargo says of its build")?;
        if let Message::CompilerArtifact(artifact) = message {
            let here = |path: &cargo_metadata::camino::Utf8PathBuf| {
                path.components().any(|part| part.as_str() == TRIPLE)
            };
            if artifact.filenames.iter().any(here) {
                ids.insert(artifact.package_id);
            }
        }
    }
    Ok(ids)
}

fn crates(
    metadata: &Metadata,
    programs: &BTreeMap<PackageId, BTreeSet<&'static str>>,
    checksums: &BTreeMap<(String, String), String>,
) -> Result<Vec<Crate>> {
    let known: BTreeMap<&PackageId, (String, String)> = metadata
        .packages
        .iter()
        .filter(|package| programs.contains_key(&package.id))
        .map(|package| {
            let key = (package.name.to_string(), package.version.to_string());
            (&package.id, key)
        })
        .collect();
    if let Some(unknown) = programs.keys().find(|id| !known.contains_key(id)) {
        bail!("{unknown} was compiled, and cargo's metadata does not have it");
    }
    let nodes = &metadata
        .resolve
        .as_ref()
        .context("cargo resolved nothing")?
        .nodes;
    let mut crates = Vec::new();
    for package in &metadata.packages {
        let Some(key) = known.get(&package.id) else {
            continue;
        };
        let checksum = checksums.get(key).cloned();
        if package.source.is_some() && checksum.is_none() {
            bail!("{} {} has no checksum in Cargo.lock", key.0, key.1);
        }
        let node = nodes.iter().find(|node| node.id == package.id);
        let calls = node
            .into_iter()
            .flat_map(|node| &node.deps)
            .filter(|dependency| {
                dependency
                    .dep_kinds
                    .iter()
                    .any(|kind| kind.kind == DependencyKind::Normal)
            })
            .filter_map(|dependency| known.get(&dependency.pkg).cloned())
            .collect();
        let manifest = package.manifest_path.as_std_path();
        crates.push(Crate {
            name: key.0.clone(),
            version: key.1.clone(),
            licence: package.license.clone(),
            repository: package.repository.clone(),
            checksum,
            folder: manifest.parent().unwrap_or(Path::new("/")).to_owned(),
            programs: programs[&package.id].clone(),
            calls,
        });
    }
    crates.sort_by(|left, right| (&left.name, &left.version).cmp(&(&right.name, &right.version)));
    Ok(crates)
}

/// Of the published packages in a lock file, by name and version. They are lines of a form of their own, which cargo writes.
pub fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let value = |block: &str, name: &str| {
        block.lines().find_map(|line| {
            let value = line.strip_prefix(name)?.strip_prefix(" = \"")?;
            Some(value.strip_suffix('"')?.to_owned())
        })
    };
    lock.split("[[package]]")
        .filter_map(|block| {
            let key = (value(block, "name")?, value(block, "version")?);
            Some((key, value(block, "checksum")?))
        })
        .collect()
}

/// The programs are static, so these are in them.
fn libraries() -> Result<Vec<Library>> {
    let rust = command::output(Command::new("rustc").arg("--version"))?;
    let rust = rust
        .split_whitespace()
        .nth(1)
        .unwrap_or_default()
        .to_owned();
    let glibc = packages::version("libc6-dev")?;
    let gcc = command::output(Command::new("gcc").arg("-dumpfullversion"))?;
    let gcc = gcc.trim().to_owned();
    Ok(vec![
        Library {
            name: "rust-std",
            purl: format!("pkg:generic/rust-std@{rust}"),
            version: rust,
            licence: "MIT OR Apache-2.0",
        },
        Library {
            name: "glibc",
            purl: format!("pkg:deb/debian/libc6-dev@{}?arch=amd64", escaped(&glibc)),
            version: glibc,
            licence: "LGPL-2.1-or-later",
        },
        Library {
            name: "libgcc",
            purl: format!("pkg:generic/libgcc@{gcc}"),
            version: gcc,
            licence: "GPL-3.0-or-later WITH GCC-exception-3.1",
        },
    ])
}

/// A version in a package URL: `+`, `~` and `:` of Debian's are not plain there.
pub fn escaped(version: &str) -> String {
    let mut text = String::new();
    for character in version.chars() {
        match character {
            '+' | ':' | '~' => text.push_str(&format!("%{:02X}", u32::from(character))),
            _ => text.push(character),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ours: each crate with a source has a checksum, and those of the checkout have none.
    #[test]
    fn lock_file_gives_the_checksum_of_every_published_crate() {
        let lock = include_str!("../../../../Cargo.lock");
        let sums = checksums(lock);
        let published = lock.matches("\nsource = ").count();
        assert!(published > 100, "{published}");
        assert_eq!(sums.len(), published);
        assert!(sums.values().all(|sum| sum.len() == 64), "{sums:?}");
        assert!(!sums.keys().any(|(name, _)| name == "appliance"));
    }

    #[test]
    fn crate_counts_where_it_was_compiled_for_the_target_and_not_for_the_build() {
        let artifact = |id: &str, file: &str| {
            serde_json::json!({
                "reason": "compiler-artifact",
                "package_id": id,
                "manifest_path": "/x/Cargo.toml",
                "target": {"kind": ["lib"], "crate_types": ["lib"], "name": "x", "src_path": "/x/lib.rs", "edition": "2024"},
                "profile": {"opt_level": "3", "debuginfo": 0, "debug_assertions": false, "overflow_checks": false, "test": false},
                "features": [], "filenames": [file], "executable": null, "fresh": true,
            })
            .to_string()
        };
        let messages = [
            artifact("in", &format!("/t/{TRIPLE}/release/deps/libin.rlib")),
            artifact("out", "/t/release/deps/libout.so"),
            r#"{"reason":"build-finished","success":true}"#.to_owned(),
        ];
        let ids = for_the_target(messages.join("\n").as_bytes()).unwrap();
        let ids: Vec<&str> = ids.iter().map(|id| id.repr.as_str()).collect();
        assert_eq!(ids, ["in"]);
    }

    #[test]
    fn versions_of_debian_are_escaped_in_package_urls() {
        assert_eq!(escaped("6.12.117-1~deb12u1"), "6.12.117-1%7Edeb12u1");
        assert_eq!(escaped("2:1.0+b1"), "2%3A1.0%2Bb1");
    }
}
