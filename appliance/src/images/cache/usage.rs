//! Who needs an image, and when it was used last.
//!
//! A [`Hold`] keeps an image from being removed for as long as it lives: that of an import, of a pool that is being made, of a
//! session that starts. It may be taken before the image is there, so that whoever first takes it and then looks cannot lose the
//! image in between.
//!
//! # Durability
//! The time of the last use is that of `image.json`, as with goldens. It is written once a minute at most, because sessions may
//! start a hundred times a second; a host that crashes forgets the last half minute of it, which changes nothing but the order
//! of eviction.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::{Cache, Digest, RECORD};

/// How old the time on the disk may become while an image is in use.
const NOTE_EVERY: Duration = Duration::from_secs(60);

/// When an image was used.
#[derive(Debug, Clone, Copy)]
pub(super) struct LastUse {
    pub at: SystemTime,
    /// What the disk says.
    noted: SystemTime,
}

impl LastUse {
    pub fn noted(at: SystemTime) -> Self {
        Self { at, noted: at }
    }

    /// `true`: the disk is to be told.
    fn renew(&mut self, now: SystemTime) -> bool {
        self.at = now;
        // A clock that was set back counts as a long time.
        let due = now
            .duration_since(self.noted)
            .map_or(true, |age| age >= NOTE_EVERY);
        if due {
            self.noted = now;
        }
        due
    }
}

/// Nobody removes the image while this lives. It is used when the hold begins and when it ends.
pub struct Hold {
    cache: Cache,
    digest: Digest,
}

impl std::fmt::Debug for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Hold").field(&self.digest).finish()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.cache.touch(&self.digest);
        let mut index = self.cache.index();
        if let Some(count) = index.holds.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                index.holds.remove(&self.digest);
            }
        }
    }
}

impl Cache {
    /// Keeps the image from being removed, whether it is there yet or not. Look for it afterwards.
    pub fn hold(&self, digest: &Digest) -> Hold {
        {
            let mut index = self.index();
            *index.holds.entry(digest.clone()).or_default() += 1;
            // A removal that has not come to its end by now is given up.
            index.removing.take_if(|removing| removing == digest);
        }
        self.touch(digest);
        Hold {
            cache: self.clone(),
            digest: digest.clone(),
        }
    }

    /// Whether somebody holds it now.
    pub fn is_held(&self, digest: &Digest) -> bool {
        self.index().holds.contains_key(digest)
    }

    /// The image is used now.
    pub fn touch(&self, digest: &Digest) {
        let now = SystemTime::now();
        let due = self
            .index()
            .images
            .get_mut(digest)
            .is_some_and(|entry| entry.used.renew(now));
        if due {
            note(&self.inner.directory.join(digest.hex()), now);
        }
    }
}

/// Should the file system refuse, nothing is lost but the order of eviction after a restart.
fn note(directory: &Path, at: SystemTime) {
    if let Ok(file) = File::options().write(true).open(directory.join(RECORD)) {
        let _ = file.set_modified(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_use_is_written_once_a_minute_and_when_the_clock_was_set_back() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let mut used = LastUse::noted(start);
        assert!(!used.renew(start + NOTE_EVERY / 2));
        assert_eq!(used.at, start + NOTE_EVERY / 2);
        assert!(used.renew(start + NOTE_EVERY));
        assert!(!used.renew(start + NOTE_EVERY + NOTE_EVERY / 2));
        assert!(used.renew(start - NOTE_EVERY));
    }
}
