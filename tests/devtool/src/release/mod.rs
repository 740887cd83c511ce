//! `cargo dev release`: the binary as it is given to others, with the list of what is in it and checksums.
//!
//! The same sources, compiler and Debian packages give the same bytes, wherever they are built. `--verify` builds them a second time in
//! another folder and compares.

mod contents;
mod copy;
mod leaks;
mod licences;
mod recipe;
mod sbom;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use self::contents::Contents;
use crate::cache::Cache;
use crate::workspace::Workspace;
use crate::{command, guest};

const CHECKSUMS: &str = "SHA256SUMS";
const SBOM: &str = "cabana.cdx.json";
const PROGRAM: &str = "cabana";
/// What is given as it is.
const AS_THEY_ARE: [&str; 3] = ["LICENSE", "appliance/cabana.service", "SECURITY.md"];

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Build it once more in another folder, and fail unless all files are the same
    #[arg(long)]
    verify: bool,
    /// Only make and check the list of what is in the binary, of an everyday build
    #[arg(long, conflicts_with = "verify")]
    list: bool,
}

/// `cargo dev release`
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let cache = Cache::open()?;
    if arguments.list {
        println!("{}", list_everyday(workspace, &cache)?);
        return Ok(ExitCode::SUCCESS);
    }
    let epoch = source_date(workspace)?;
    let folder = make(&workspace.path(""), &cache, epoch)?;
    let sums = fs::read_to_string(folder.join(CHECKSUMS)).context("Cannot read the checksums")?;
    if arguments.verify {
        let place = cache.path("release-verify");
        let copy = copy::Copy::make(workspace, &place)?;
        let again = make(copy.root(), &cache, epoch)?;
        let other =
            fs::read_to_string(again.join(CHECKSUMS)).context("Cannot read the checksums")?;
        let differing = differing(&sums, &other);
        if !differing.is_empty() {
            // The copy stays, to be looked at.
            let kept = copy.keep();
            bail!(
                "Not reproducible: {} in {} and {} differ",
                differing.join(", "),
                folder.display(),
                kept.display()
            );
        }
        eprintln!("Reproducible: built in two folders, and every file is the same");
    }
    print!("{sums}");
    println!("{}", folder.display());
    Ok(ExitCode::SUCCESS)
}

/// The list of an everyday build, checked: what a CI can do of a release without building everything once more.
pub fn list_everyday(workspace: &Workspace, cache: &Cache) -> Result<String> {
    let binary = guest::build_appliance(workspace, cache)?;
    let (_, text) = list(workspace, &binary, source_date(workspace)?)?;
    Ok(text)
}

/// What is in `binary`, which was just built in `workspace`, and the same as text: checked against what cargo resolves, and against the rules of
/// its form.
fn list(workspace: &Workspace, binary: &Path, epoch: u64) -> Result<(Contents, String)> {
    let contents = Contents::of(workspace)?;
    let document = sbom::document(&contents, &sha256(binary)?, epoch)?;
    let mut problems = sbom::problems(&document);
    problems.extend(contents::differences(workspace, &contents)?);
    if !problems.is_empty() {
        bail!(
            "The list of what is in the binary is wrong:\n  {}",
            problems.join("\n  ")
        );
    }
    let text = serde_json::to_string_pretty(&document).context("Cannot write the list")?;
    Ok((contents, text))
}

/// Builds in `root` and answers with the folder of the release.
fn make(root: &Path, cache: &Cache, epoch: u64) -> Result<PathBuf> {
    let root = root
        .canonicalize()
        .with_context(|| format!("Cannot find {}", root.display()))?;
    let recipe = recipe::of(&root, epoch)?;
    let secrets = recipe::places(&root)?;
    let workspace = Workspace::with_recipe(root, recipe);
    let binary = guest::build_appliance(&workspace, cache)?;
    let (contents, text) = list(&workspace, &binary, epoch)?;
    for program in [&binary, &contents.agent, &contents.worker] {
        leaks::assert_none(program, &secrets)?;
    }

    let folder = workspace
        .path("target")
        .join(format!("release-{}", contents.version));
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("Cannot remove {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("Cannot create {}", folder.display()))?;
    let copy = |from: &Path, name: &str| {
        fs::copy(from, folder.join(name)).with_context(|| format!("Cannot copy {}", from.display()))
    };
    copy(&binary, PROGRAM)?;
    for path in AS_THEY_ARE {
        let name = path.rsplit('/').next().unwrap_or(path);
        copy(&workspace.path(path), name)?;
    }
    let write = |name: &str, text: &str| {
        fs::write(folder.join(name), text).with_context(|| format!("Cannot write {name}"))
    };
    write("THIRD-PARTY.txt", &licences::texts(&contents.crates)?)?;
    write(SBOM, &format!("{text}\n"))?;
    write(CHECKSUMS, &checksums(&folder)?)?;
    Ok(folder)
}

/// When the sources were last changed: all times in a release are this one.
fn source_date(workspace: &Workspace) -> Result<u64> {
    if let Some(given) = std::env::var_os("SOURCE_DATE_EPOCH") {
        return given
            .to_str()
            .and_then(|text| text.parse().ok())
            .context("SOURCE_DATE_EPOCH is not a number of seconds");
    }
    let mut git = Command::new("git");
    git.current_dir(workspace.path(""))
        .args(["log", "-1", "--format=%ct"]);
    command::output(&mut git)?
        .trim()
        .parse()
        .context("git gives no time of the last commit; set SOURCE_DATE_EPOCH")
}

/// As `sha256sum` writes it, so that `sha256sum -c SHA256SUMS` reads it.
fn checksums(folder: &Path) -> Result<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).context("Cannot list the release")? {
        let name = entry.context("Cannot list the release")?.file_name();
        names.push(name.to_string_lossy().into_owned());
    }
    names.sort();
    let mut text = String::new();
    for name in names.iter().filter(|name| *name != CHECKSUMS) {
        text.push_str(&format!("{}  {name}\n", sha256(&folder.join(name))?));
    }
    Ok(text)
}

fn sha256(path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    let mut file =
        fs::File::open(path).with_context(|| format!("Cannot open {}", path.display()))?;
    std::io::copy(&mut file, &mut hash)
        .with_context(|| format!("Cannot read {}", path.display()))?;
    Ok(hex(&hash.finalize()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The names of files whose lines differ, or that only one side has.
fn differing(left: &str, right: &str) -> Vec<String> {
    let name = |line: &str| {
        line.split_whitespace()
            .last()
            .unwrap_or_default()
            .to_owned()
    };
    let mut names: Vec<String> = left
        .lines()
        .filter(|line| !right.lines().any(|other| other == *line))
        .chain(
            right
                .lines()
                .filter(|line| !left.lines().any(|other| other == *line)),
        )
        .map(name)
        .collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_differ_or_are_missing_are_named_once() {
        let left = "aa  cabana\nbb  LICENSE\n";
        assert_eq!(differing(left, left), Vec::<String>::new());
        assert_eq!(differing(left, "ac  cabana\nbb  LICENSE\n"), ["cabana"]);
        assert_eq!(differing(left, "aa  cabana\n"), ["LICENSE"]);
    }

    #[test]
    fn checksums_are_what_sha256sum_reads() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("b"), "two").unwrap();
        fs::write(folder.path().join("a"), "one").unwrap();
        fs::write(folder.path().join(CHECKSUMS), "old").unwrap();
        fs::write(
            folder.path().join(CHECKSUMS),
            checksums(folder.path()).unwrap(),
        )
        .unwrap();
        let checked = Command::new("sha256sum")
            .current_dir(folder.path())
            .args(["--check", "--strict", CHECKSUMS])
            .output()
            .unwrap();
        assert!(checked.status.success(), "{checked:?}");
        assert_eq!(String::from_utf8_lossy(&checked.stdout), "a: OK\nb: OK\n");
    }
}
