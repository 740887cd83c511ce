//! What names of registries meant when they were last pulled: `<images>/pulled.json`.
//!
//! It tells a name that was pulled, and whose registry is asked again, from one that was imported, which
//! means what the operator gave it. And it saves the manifest of a tag that has not moved.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::images::digest::Digest;
use crate::images::error::ImageError;

const FILE: &str = "pulled.json";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PulledName {
    /// What the registry said: of an index, if there is one.
    pub source: Digest,
    /// The manifest for this host.
    pub image: Digest,
}

/// By full name.
#[derive(Debug)]
pub struct PulledNames {
    path: PathBuf,
    names: Mutex<BTreeMap<String, PulledName>>,
}

impl PulledNames {
    /// Reads the file. A damaged one is as good as none: every name is asked for again.
    pub fn open(images: &Path) -> Self {
        let path = images.join(FILE);
        let names = match fs::read(&path).map(|bytes| serde_json::from_slice(&bytes)) {
            Ok(Ok(names)) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            damaged => {
                tracing::warn!(path = %path.display(), "cannot read what was pulled: {damaged:?}");
                BTreeMap::new()
            }
        };
        Self {
            path,
            names: Mutex::new(names),
        }
    }

    pub fn get(&self, name: &str) -> Option<PulledName> {
        self.lock().get(name).cloned()
    }

    /// Notes what a name means, and forgets names whose images are gone.
    pub fn set(
        &self,
        name: &str,
        meaning: PulledName,
        is_there: impl Fn(&Digest) -> bool,
    ) -> Result<(), ImageError> {
        let mut names = self.lock();
        if names.get(name) == Some(&meaning) {
            return Ok(());
        }
        names.insert(name.to_owned(), meaning);
        names.retain(|_, pulled| is_there(&pulled.image));
        self.save(&names)
            .map_err(|error| ImageError::storage("save what was pulled", &error))
    }

    fn save(&self, names: &BTreeMap<String, PulledName>) -> io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(folder.join(".tmp"))?;
        serde_json::to_writer_pretty(&mut file, names)?;
        file.write_all(b"\n")?;
        file.as_file().sync_all()?;
        file.persist(&self.path)?;
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, PulledName>> {
        // Changed in single steps, so it is whole even after a panic elsewhere.
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
