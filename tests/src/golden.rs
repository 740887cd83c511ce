//! The goldens of an appliance, as they lie on its disk.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde_json::Value;

/// One golden. What is done to its files here is what a crash, a bad disk or a stranger with root would do.
#[derive(Debug)]
pub struct Golden {
    pub folder: PathBuf,
}

impl Golden {
    /// Sorted by key. What is not finished has another name.
    pub fn all(root: &Path) -> Vec<Self> {
        let folder = root.join("var/lib/cabana/golden");
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let mut folders: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        folders.retain(|path| path.join("manifest.json").is_file());
        folders.retain(|path| !name(path).starts_with('.'));
        folders.sort();
        folders.into_iter().map(|folder| Self { folder }).collect()
    }

    /// Says what it was made of.
    pub fn key(&self) -> String {
        name(&self.folder)
    }

    /// Tells this golden from one that was made later of the same things.
    #[track_caller]
    pub fn made_at(&self) -> u64 {
        let text = fs::read(self.file("manifest.json")).expect("a golden has a manifest");
        let about: Value = serde_json::from_slice(&text).expect("a manifest is JSON");
        about["madeAtMs"].as_u64().expect("a manifest has a time")
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Changes one byte of a file.
    #[track_caller]
    pub fn flip(&self, name: &str, offset: u64) {
        let file = File::options().read(true).write(true).open(self.file(name));
        let file = file.expect("a golden has this file");
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset)
            .expect("the file is longer");
        file.write_all_at(&[byte[0] ^ 1], offset)
            .expect("tests may write it");
    }

    /// Cuts the second half of a file off.
    #[track_caller]
    pub fn truncate(&self, name: &str) {
        let file = File::options().write(true).open(self.file(name));
        let file = file.expect("a golden has this file");
        let length = file.metadata().expect("the file is open").size();
        file.set_len(length / 2).expect("tests may write it");
    }

    /// Replaces a text in the manifest.
    #[track_caller]
    pub fn edit_manifest(&self, from: &str, to: &str) {
        let path = self.file("manifest.json");
        let text = fs::read_to_string(&path).expect("a golden has a manifest");
        assert!(text.contains(from), "{from:?} is not in {text}");
        fs::write(path, text.replacen(from, to, 1)).expect("tests may write it");
    }
}

fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}
