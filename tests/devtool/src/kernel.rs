//! The guest kernel: Debian's source with the patches of `kernel-config/patches/`, `tinyconfig` and the fragments of `kernel-config/`.
//!
//! Fragments are the whole truth: they go on top of `allnoconfig` (which is what `tinyconfig` is, with two small files of its own),
//! so no default value switches anything on behind their back. Kconfig silently drops what it cannot fulfil; [`unfulfilled`]
//! turns that into an error.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::cache::{Cache, Key};
use crate::command;
use crate::packages;
use crate::progress::Step;
use crate::workspace::Workspace;

/// Changes when the steps below change their result.
const RECIPE: &str = "kernel 2";
/// What `make tinyconfig` puts on top of `allnoconfig`.
const TINY: &[&str] = &[
    "kernel/configs/tiny-base.config",
    "kernel/configs/tiny.config",
];
/// Symbols that stay in the image: those by which `vmm::boot::returns` writes the returns of this kernel ahead.
const KEPT_SYMBOLS: &[&str] = &[
    "return_was_guessed",
    "__x86_return_thunk",
    "retbleed_return_thunk",
    "srso_return_thunk",
    "srso_alias_return_thunk",
];
/// Everything that a kernel build takes from its surroundings, fixed.
const SURROUNDINGS: &[(&str, &str)] = &[
    ("KBUILD_BUILD_TIMESTAMP", "2020-01-01"),
    ("KBUILD_BUILD_USER", "cabana"),
    ("KBUILD_BUILD_HOST", "cabana"),
    ("KBUILD_BUILD_VERSION", "1"),
    ("LC_ALL", "C"),
];
/// Lines that make prints for this configuration, for the progress line only.
const EXPECTED_LINES: usize = 1_650;
/// The budget of the design: 4 MiB of the binary.
const LARGEST: u64 = 4 << 20;
pub const COMPRESSION: i32 = 19;

/// One `CONFIG_X=value` of a fragment.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    fragment: String,
    option: String,
    value: String,
}

/// The Debian package with the source, and the oldest version of it that will do.
struct Source {
    package: String,
    oldest: String,
}

/// What the kernel is made of, for who asks what is in the binary.
pub struct Origin {
    pub package: String,
    pub version: String,
    /// The source as Debian packs it.
    pub archive: PathBuf,
    pub patches: Vec<PathBuf>,
}

pub fn origin(workspace: &Workspace) -> Result<Origin> {
    let folder = workspace.path("kernel-config");
    let source = Source::read(&folder.join("SOURCE"))?;
    let patches = folder.join("patches");
    Ok(Origin {
        version: packages::version(&source.package)?,
        archive: source.archive(),
        patches: read_files(&patches, "patch")?
            .keys()
            .map(|name| patches.join(name))
            .collect(),
        package: source.package,
    })
}

/// A folder with `vmlinux`, `vmlinux.zst`, `System.map` and the final `config`.
pub fn ensure(workspace: &Workspace, cache: &Cache) -> Result<PathBuf> {
    let folder = workspace.path("kernel-config");
    let source = Source::read(&folder.join("SOURCE"))?;
    let version = packages::version(&source.package)?;
    if packages::is_older(&version, &source.oldest)? {
        bail!(
            "{} {version} is older than {}: run  apt-get update && apt-get install {}",
            source.package,
            source.oldest,
            source.package
        );
    }
    let fragments = read_files(&folder, "config")?;
    let patches = read_files(&folder.join("patches"), "patch")?;
    let compiler = command::output(Command::new("gcc").arg("--version"))?;
    let mut key = Key::new(RECIPE)
        .text("source", &version)
        .text("compiler", compiler.lines().next().unwrap_or_default());
    // Not the fragments' text: a better comment must not cost ten minutes.
    for Request { option, value, .. } in requests(&fragments)? {
        key = key.text(&option, &value);
    }
    for (name, patch) in &patches {
        key = key.text(name, patch);
    }
    cache.entry("kernel", key, |result| {
        build(workspace, &source, (&fragments, &patches), result)
    })
}

/// Compresses `from` to `to` as it will be embedded.
pub fn compress(from: &Path, to: &Path) -> Result<()> {
    let input = fs::read(from).with_context(|| format!("Cannot read {}", from.display()))?;
    let output = zstd::encode_all(input.as_slice(), COMPRESSION)
        .with_context(|| format!("Cannot compress {}", from.display()))?;
    fs::write(to, output).with_context(|| format!("Cannot write {}", to.display()))
}

fn build(
    workspace: &Workspace,
    source: &Source,
    (fragments, patches): (&BTreeMap<String, String>, &BTreeMap<String, String>),
    result: &Path,
) -> Result<()> {
    let log = workspace.logs().join("kernel.log");
    let step = Step::start("Unpacking the kernel source");
    let tree = result.join("source");
    fs::create_dir(&tree).context("Cannot create the source folder")?;
    command::logged(
        Command::new("tar")
            .args(["--strip-components=1", "-xf"])
            .arg(source.archive())
            .arg("-C")
            .arg(&tree),
        &log,
        |_| {},
    )?;
    for name in patches.keys() {
        let patch = workspace.path("kernel-config/patches").join(name);
        apply(&patch, &tree, &log).with_context(|| format!("{name} does not fit this source"))?;
    }
    step.done("");

    // Inside the source, so that the paths in the image are relative and the same everywhere.
    let objects = tree.join("build");
    fs::create_dir(&objects).context("Cannot create the object folder")?;
    configure(
        &tree,
        &objects,
        fragments,
        &workspace.logs().join("kernel-config.log"),
    )?;

    let step = Step::start("Building the guest kernel (7 to 10 minutes, once)");
    let mut lines = 0_usize;
    let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    command::logged(
        make(&tree, &objects)
            .arg(format!("-j{jobs}"))
            .arg("vmlinux"),
        &log,
        |_| {
            lines += 1;
            step.note(&format!("{} %", (lines * 100 / EXPECTED_LINES).min(99)));
        },
    )?;
    let image = result.join("vmlinux");
    command::logged(
        Command::new("strip")
            .args(KEPT_SYMBOLS.iter().flat_map(|symbol| ["-K", symbol]))
            .arg("-o")
            .arg(&image)
            .arg(objects.join("vmlinux")),
        &log,
        |_| {},
    )?;
    for (from, to) in [(".config", "config"), ("System.map", "System.map")] {
        fs::copy(objects.join(from), result.join(to))
            .with_context(|| format!("Cannot copy {from}"))?;
    }
    fs::remove_dir_all(&tree).context("Cannot remove the source folder")?;
    let compressed = result.join("vmlinux.zst");
    compress(&image, &compressed)?;
    let size = fs::metadata(&compressed)
        .context("Cannot read vmlinux.zst")?
        .len();
    if size > LARGEST {
        bail!("The kernel has {size} bytes as zstd, the budget is {LARGEST}");
    }
    step.done(&format!("{} KiB as zstd", size >> 10));
    Ok(())
}

fn configure(
    tree: &Path,
    objects: &Path,
    fragments: &BTreeMap<String, String>,
    log: &Path,
) -> Result<()> {
    let mut all = String::new();
    for file in TINY {
        let text = fs::read_to_string(tree.join(file))
            .with_context(|| format!("The kernel source holds no {file}"))?;
        all.push_str(&text);
    }
    all.extend(fragments.values().map(String::as_str));
    let path = objects.join("all.config");
    fs::write(&path, all).context("Cannot write the joined fragments")?;
    command::logged(
        make(tree, objects)
            .env("KCONFIG_ALLCONFIG", &path)
            .arg("allnoconfig"),
        log,
        |_| {},
    )?;
    let config = fs::read_to_string(objects.join(".config")).context("make left no .config")?;
    let problems = unfulfilled(&requests(fragments)?, &config);
    if !problems.is_empty() {
        bail!(
            "Kconfig does not give what kernel-config/ asks for:\n  {}",
            problems.join("\n  ")
        );
    }
    Ok(())
}

fn make(tree: &Path, objects: &Path) -> Command {
    let mut command = Command::new("make");
    // Of our own caller: a job server that we do not take part in.
    command.env_remove("MAKEFLAGS").env_remove("MFLAGS");
    command.envs(SURROUNDINGS.iter().copied());
    command
        .arg("-C")
        .arg(tree)
        .arg(format!("O={}", objects.display()))
        .arg("ARCH=x86_64");
    command
}

/// Exactly as it was made: what has to be fitted in may be fitted in at the wrong place.
fn apply(patch: &Path, tree: &Path, log: &Path) -> Result<()> {
    let mut command = Command::new("patch");
    command.args(["--strip=1", "--fuzz=0", "--forward", "--batch"]);
    command.arg("--directory").arg(tree);
    command.arg("--input").arg(patch);
    command::logged(&mut command, log, |_| {})
}

/// The files with this extension, by name and in the order of their names.
fn read_files(folder: &Path, wanted: &str) -> Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    for entry in
        fs::read_dir(folder).with_context(|| format!("Cannot list {}", folder.display()))?
    {
        let path = entry
            .with_context(|| format!("Cannot list {}", folder.display()))?
            .path();
        if path
            .extension()
            .is_some_and(|extension| extension == wanted)
        {
            let text = fs::read_to_string(&path)
                .with_context(|| format!("Cannot read {}", path.display()))?;
            files.insert(
                path.file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned(),
                text,
            );
        }
    }
    Ok(files)
}

/// Every request, each option at most once.
fn requests(fragments: &BTreeMap<String, String>) -> Result<Vec<Request>> {
    let mut homes = BTreeMap::new();
    let mut requests = Vec::new();
    for (fragment, text) in fragments {
        for line in text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            let (option, value) = line
                .split_once('=')
                .with_context(|| format!("{fragment}: {line:?} is not CONFIG_X=value"))?;
            if let Some(other) = homes.insert(option.to_owned(), fragment.clone()) {
                bail!("{option} is in {other} and in {fragment}: one home for each option");
            }
            requests.push(Request {
                fragment: fragment.clone(),
                option: option.to_owned(),
                value: value.to_owned(),
            });
        }
    }
    Ok(requests)
}

/// Requests that the final configuration does not fulfil, as text for a person.
fn unfulfilled(requests: &[Request], config: &str) -> Vec<String> {
    let given: BTreeMap<&str, &str> = config
        .lines()
        .filter_map(|line| line.split_once('='))
        .collect();
    let mut problems = Vec::new();
    for Request {
        fragment,
        option,
        value,
    } in requests
    {
        // An option that is off, or that cannot even be chosen, has no line of its own.
        let given = given.get(option.as_str()).copied().unwrap_or("n");
        if given != value {
            problems.push(format!(
                "{fragment}: {option}={value} was asked for, {given} is what came out"
            ));
        }
    }
    problems
}

// === impl Source ===

impl Source {
    /// Where the package puts it.
    fn archive(&self) -> PathBuf {
        PathBuf::from(format!("/usr/src/{}.tar.xz", self.package))
    }

    fn read(path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("Cannot read {}", path.display()))?;
        let line = text
            .lines()
            .find(|line| !line.starts_with('#') && !line.trim().is_empty())
            .unwrap_or_default();
        let (package, oldest) = line
            .split_once(' ')
            .with_context(|| format!("{}: expected PACKAGE VERSION", path.display()))?;
        Ok(Self {
            package: package.to_owned(),
            oldest: oldest.trim().to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str) -> Vec<Request> {
        requests(&BTreeMap::from([(
            "10-test.config".to_owned(),
            text.to_owned(),
        )]))
        .unwrap()
    }

    #[test]
    fn option_that_kconfig_dropped_or_changed_is_a_problem() {
        let problems = unfulfilled(
            &asked("CONFIG_SMP=y\nCONFIG_NR_CPUS=64\n"),
            "# CONFIG_SMP is not set\nCONFIG_NR_CPUS=8\n",
        );
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].contains("CONFIG_SMP=y"), "{problems:?}");
    }

    #[test]
    fn option_that_was_refused_but_came_anyway_is_a_problem() {
        assert_eq!(
            unfulfilled(&asked("CONFIG_MODULES=n\n"), "CONFIG_MODULES=y\n").len(),
            1
        );
    }

    #[test]
    fn options_as_asked_and_refused_ones_without_a_line_are_fine() {
        let asked = asked("# why\nCONFIG_SMP=y\nCONFIG_LSM=\"landlock\"\nCONFIG_MODULES=n\n");
        assert_eq!(
            unfulfilled(&asked, "CONFIG_SMP=y\nCONFIG_LSM=\"landlock\"\n"),
            Vec::<String>::new()
        );
    }

    #[test]
    fn option_with_two_homes_is_refused() {
        let fragments = BTreeMap::from([
            ("10-a.config".to_owned(), "CONFIG_SMP=y\n".to_owned()),
            ("20-b.config".to_owned(), "CONFIG_SMP=n\n".to_owned()),
        ]);
        assert!(requests(&fragments).is_err());
    }

    #[test]
    fn every_option_of_our_fragments_has_a_reason_above_it() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernel-config");
        for (name, text) in read_files(&folder, "config").unwrap() {
            let mut reasoned = false;
            for line in text.lines() {
                match line.chars().next() {
                    Some('#') => reasoned = true,
                    Some(_) => assert!(reasoned, "{name}: {line} has no comment above it"),
                    None => reasoned = false,
                }
            }
        }
    }
}
