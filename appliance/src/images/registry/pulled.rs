//! What names of registries meant when they were last pulled: `<images>/pulled.json`.
//!
//! It tells a name that was pulled, and whose registry is asked again, from one that was imported, which
//! means what the operator gave it. And it saves the manifest of a tag that has not moved.
//!
//! Written before the cache learns the name. Who is killed in between leaves a name that means what it meant
//! before, and is still known as one that was pulled.

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
    /// What the name meant before that.
    #[serde(default)]
    pub before: Option<Digest>,
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

    /// Whether it was a pull that made the name mean this image.
    pub fn made(&self, name: &str, image: &Digest) -> bool {
        self.lock()
            .get(name)
            .is_some_and(|pulled| pulled.image == *image || pulled.before.as_ref() == Some(image))
    }

    /// Notes what a name is about to mean, and forgets names whose images are gone.
    pub fn set(
        &self,
        name: &str,
        source: Digest,
        image: Digest,
        is_there: impl Fn(&Digest) -> bool,
    ) -> Result<(), ImageError> {
        let mut names = self.lock();
        let before = match names.get(name) {
            Some(known) if known.source == source && known.image == image => return Ok(()),
            Some(known) if known.image == image => known.before.clone(),
            known => known.map(|known| known.image.clone()),
        };
        let meaning = PulledName {
            source,
            image,
            before,
        };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_is_known_as_pulled_whenever_the_process_is_killed() {
        let images = tempfile::tempdir().unwrap();
        fs::create_dir(images.path().join(".tmp")).unwrap();
        let [source, old, new, other] = [b"s", b"o", b"n", b"x"].map(|name| Digest::of(name));
        let names = PulledNames::open(images.path());
        names
            .set("a:1", source.clone(), old.clone(), |_| true)
            .unwrap();
        names
            .set("a:1", new.clone(), new.clone(), |_| true)
            .unwrap();
        // The cache may have been told, or not.
        for names in [names, PulledNames::open(images.path())] {
            assert!(names.made("a:1", &old) && names.made("a:1", &new));
            assert!(!names.made("a:1", &other) && !names.made("a:2", &new));
            assert_eq!(names.get("a:1").unwrap().source, new);
        }
        // Whatever is in the file.
        fs::write(images.path().join(FILE), "{").unwrap();
        assert_eq!(PulledNames::open(images.path()).get("a:1"), None);
    }

    #[test]
    fn names_of_images_that_are_gone_are_forgotten() {
        let images = tempfile::tempdir().unwrap();
        fs::create_dir(images.path().join(".tmp")).unwrap();
        let [old, new] = [b"o", b"n"].map(|name| Digest::of(name));
        let names = PulledNames::open(images.path());
        names
            .set("old", old.clone(), old.clone(), |_| true)
            .unwrap();
        names
            .set("new", new.clone(), new.clone(), |digest| *digest == new)
            .unwrap();
        assert_eq!(names.get("old"), None);
        assert_eq!(names.get("new").unwrap().image, new);
    }
}
