//! Takes images and names out of the cache.
//!
//! # Crash safety
//! An image's directory is renamed into `.tmp` before anything in it is touched, so that it is there whole or not at all; what is
//! left of it goes at the next start. Its names are taken back after that: a name that points to no image means nothing.
//!
//! # Order
//! Whoever wants to remove an image announces it ([`Cache::begin_removal`]), finds out who needs it, and finishes. A hold that
//! anybody takes in between ends the removal, even if it is over by then: who had it may have made a pool.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::{Cache, Digest, Index, sync_directory};
use crate::images::error::ImageError;

/// An announced removal. Nothing is removed unless it is finished.
pub struct Removal {
    cache: Cache,
    digest: Digest,
}

impl Drop for Removal {
    fn drop(&mut self) {
        let digest = &self.digest;
        let mut index = self.cache.index();
        index.removing.take_if(|removing| removing == digest);
    }
}

impl Cache {
    /// Announces a removal; `None`: somebody holds the image. There is one at a time.
    pub fn begin_removal(&self, digest: &Digest) -> Option<Removal> {
        let mut index = self.index();
        if index.holds.contains_key(digest) {
            return None;
        }
        index.removing = Some(digest.clone());
        Some(Removal {
            cache: self.clone(),
            digest: digest.clone(),
        })
    }

    /// Takes a name away; its image stays. `false`: there is no such name.
    pub fn remove_name(&self, name: &str) -> Result<bool, ImageError> {
        let mut index = self.index();
        let mut names = index.names.clone();
        if names.remove(name).is_none() {
            return Ok(false);
        }
        self.save_names(&names)
            .map_err(|error| ImageError::storage("save the image names", &error))?;
        index.names = names;
        Ok(true)
    }
}

impl Removal {
    /// Removes the image; `None`: somebody took hold of it, or it is not there. Blocks on the disk.
    pub fn finish(self) -> Result<Option<u64>, ImageError> {
        let failed = |error| ImageError::storage("remove the image", &error);
        let Some((grave, bytes)) = self.bury().map_err(failed)? else {
            return Ok(None);
        };
        // Its room first: the names are a file to be written, and the disk may be full.
        fs::remove_dir_all(&grave).map_err(failed)?;
        let index = self.cache.index();
        if let Err(error) = self.cache.save_names(&index.names) {
            tracing::warn!(%error, "names of a removed image stay in the file until the next start");
        }
        Ok(Some(bytes))
    }

    /// From then on it is not there, whatever happens.
    fn bury(&self) -> io::Result<Option<(PathBuf, u64)>> {
        let (cache, digest) = (&self.cache, &self.digest);
        let mut index = cache.index();
        if index.removing.as_ref() != Some(digest) {
            return Ok(None);
        }
        let Some(entry) = index.images.get(digest) else {
            return Ok(None);
        };
        let bytes = entry.record.root_image_bytes;
        let directory = cache.inner.directory.join(digest.hex());
        // A grave that could not be emptied may have this name already.
        let grave = tempfile::Builder::new()
            .prefix("removed-")
            .tempdir_in(cache.temporary())?
            .keep();
        fs::rename(&directory, grave.join(digest.hex()))?;
        index.forget(digest);
        sync_directory(&cache.inner.directory)?;
        Ok(Some((grave, bytes)))
    }
}

impl Index {
    fn forget(&mut self, digest: &Digest) {
        self.images.remove(digest);
        self.names.retain(|_, named| named != digest);
    }
}
