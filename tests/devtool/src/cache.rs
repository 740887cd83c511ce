//! Built artefacts, kept outside the checkout under the hash of everything that went into them.
//!
//! An entry is a folder that appears by one rename when it is complete, so a reader never sees half of one. One builder per kind
//! works at a time; others wait for it and then find its entry.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

/// Entries of one kind that are kept; older ones are removed when a new one is made.
const KEPT: usize = 5;

pub struct Cache {
    root: PathBuf,
}

/// Collects the inputs of an artefact.
pub struct Key(Sha256);

impl Cache {
    pub fn open() -> Result<Self> {
        let base = std::env::var_os("XDG_CACHE_HOME")
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
            .or_else(|| std::env::home_dir().map(|home| home.join(".cache")))
            .context("Neither XDG_CACHE_HOME nor a home directory says where the cache is")?;
        let root = base.join("cabana");
        fs::create_dir_all(&root)
            .with_context(|| format!("Cannot create the cache {}", root.display()))?;
        Ok(Self { root })
    }

    /// A file beside the entries.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The folder of `kind` made from `key`; `build` fills an empty folder when there is none yet.
    pub fn entry(
        &self,
        kind: &str,
        key: Key,
        build: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let folder = self.root.join(kind);
        let entry = folder.join(key.finish());
        if is_complete(&entry) {
            return Ok(entry);
        }
        fs::create_dir_all(&folder)
            .with_context(|| format!("Cannot create {}", folder.display()))?;
        let _lock = lock(kind, &folder.join(".lock"))?;
        if is_complete(&entry) {
            return Ok(entry);
        }
        // Under the lock nobody else builds this kind: whatever lies here was left by a builder that was killed.
        let unfinished = folder.join(".unfinished");
        remove(&unfinished)?;
        fs::create_dir(&unfinished)
            .with_context(|| format!("Cannot create {}", unfinished.display()))?;
        build(&unfinished)?;
        fs::rename(&unfinished, &entry).with_context(|| {
            format!(
                "Cannot move {} to {}",
                unfinished.display(),
                entry.display()
            )
        })?;
        prune(&folder, &entry)?;
        Ok(entry)
    }
}

// === impl Key ===

impl Key {
    /// `recipe` changes when the way of building changes.
    pub fn new(recipe: &str) -> Self {
        Self(Sha256::new()).text("recipe", recipe)
    }

    pub fn text(mut self, name: &str, value: &str) -> Self {
        self.part(name.as_bytes());
        self.part(value.as_bytes());
        self
    }

    pub fn file(mut self, name: &str, path: &Path) -> Result<Self> {
        let mut hash = Sha256::new();
        let mut file =
            File::open(path).with_context(|| format!("Cannot open {}", path.display()))?;
        std::io::copy(&mut file, &mut hash)
            .with_context(|| format!("Cannot read {}", path.display()))?;
        self.part(name.as_bytes());
        self.part(&hash.finalize());
        Ok(self)
    }

    /// Lengths separate the parts, so that two lists of inputs never run together to the same bytes.
    fn part(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn finish(self) -> String {
        self.0
            .finalize()
            .iter()
            .take(16)
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

/// Copies `from` to `to` unless it is there already with the same bytes: a fresh time stamp would make cargo embed it again.
/// Holes stay holes.
pub fn place(from: &Path, to: &Path) -> Result<()> {
    if same_content(from, to)? {
        return Ok(());
    }
    let partial = to.with_added_extension("partial");
    remove(&partial)?;
    crate::command::output(
        std::process::Command::new("cp")
            .args(["--sparse=always", "--"])
            .arg(from)
            .arg(&partial),
    )?;
    fs::rename(&partial, to).with_context(|| format!("Cannot write {}", to.display()))
}

fn same_content(left: &Path, right: &Path) -> Result<bool> {
    let length = |path: &Path| fs::metadata(path).map(|metadata| metadata.len()).ok();
    if length(left) != length(right) {
        return Ok(false);
    }
    let hash = |path: &Path| Key::new("").file("", path).map(Key::finish);
    Ok(hash(left)? == hash(right)?)
}

fn is_complete(entry: &Path) -> bool {
    if !entry.is_dir() {
        return false;
    }
    // Marks it as used, for `prune`. A cache that cannot be written to still serves.
    let _ = File::open(entry).and_then(|folder| folder.set_modified(SystemTime::now()));
    true
}

fn lock(kind: &str, path: &Path) -> Result<File> {
    let file = File::create(path).with_context(|| format!("Cannot create {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            eprintln!("Another process builds the {kind}; waiting for it");
            file.lock()
                .with_context(|| format!("Cannot lock {}", path.display()))?;
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("Cannot lock {}", path.display()));
        }
    }
    Ok(file)
}

fn prune(folder: &Path, keep: &Path) -> Result<()> {
    let mut entries = Vec::new();
    for entry in
        fs::read_dir(folder).with_context(|| format!("Cannot list {}", folder.display()))?
    {
        let entry = entry.with_context(|| format!("Cannot list {}", folder.display()))?;
        let path = entry.path();
        if path.is_dir() && path != keep && !entry.file_name().as_encoded_bytes().starts_with(b".")
        {
            let used = entry
                .metadata()
                .and_then(|metadata| metadata.modified())
                .unwrap_or(SystemTime::UNIX_EPOCH);
            entries.push((used, path));
        }
    }
    entries.sort();
    let surplus = (entries.len() + 1).saturating_sub(KEPT);
    for (_, path) in entries.into_iter().take(surplus) {
        remove(&path)?;
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    let result = if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("Cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
