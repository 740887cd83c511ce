//! Where inputs are kept, for somebody to look at.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// The folder of one target in `CABANA_FUZZ_FOUND`.
pub struct Found {
    folder: PathBuf,
    current: File,
}

impl Found {
    pub fn open(root: &Path, target: &str) -> Self {
        let folder = root.join(target);
        fs::create_dir_all(&folder).expect("a folder for what is found");
        let current = File::create(folder.join("current")).expect("a file for the current input");
        Self { folder, current }
    }

    /// Writes down what is about to be tried, so that it is there even if the process is not.
    pub fn trying(&self, input: &[u8]) {
        let write = |()| {
            self.current.write_all_at(input, 0)?;
            self.current.set_len(input.len() as u64)
        };
        write(()).expect("the current input can be written");
    }

    /// Puts the input aside that did it.
    pub fn failed(&self, input: &[u8]) -> PathBuf {
        let path = self.folder.join(format!("failed-{}", name(input)));
        fs::write(&path, input).expect("an input can be written");
        path
    }

    pub fn corpus(&self) -> PathBuf {
        self.folder.join("corpus")
    }
}

/// Adds what is not there yet.
pub fn keep(folder: &Path, inputs: &[Vec<u8>]) {
    fs::create_dir_all(folder).expect("a folder for inputs");
    for input in inputs {
        fs::write(folder.join(name(input)), input).expect("an input can be written");
    }
}

/// The files of a folder, in the order of their names. None if it is not there.
pub fn read(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.expect("a folder can be read").path())
        .filter(|path| path.is_file())
        .collect();
    paths.sort();
    let file = |path: PathBuf| {
        let name = path.file_name().unwrap_or_default();
        let name = name.to_string_lossy().into_owned();
        (name, fs::read(path).expect("a file of the corpus"))
    };
    paths.into_iter().map(file).collect()
}

/// A name of an input by what it is (FNV-1a).
fn name(input: &[u8]) -> String {
    let hash = input.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    format!("{hash:016x}")
}
