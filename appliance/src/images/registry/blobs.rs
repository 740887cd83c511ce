//! What is being downloaded: `<images>/.blobs/sha256/<hex>`, with `.partial` behind the name until it is
//! whole. A pull that breaks off leaves what it has, and a later one goes on from there.
//!
//! Nothing is synced: the bytes are hashed again when a download goes on, and by the image worker when the
//! image is built, so after a power cut a damaged file is noticed and fetched anew.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};

use super::platform::Wanted;
use super::turns::{Turn, Turns};
use crate::images::blocking;
use crate::images::digest::Digest;
use crate::images::error::ImageError;

const FOLDER: &str = ".blobs/sha256";
const PARTIAL: &str = "partial";
/// Who comes back after a night finds what was there.
const KEPT: Duration = Duration::from_secs(24 * 3600);
const READ_BYTES: usize = 256 << 10;

/// The folder. Cheap to clone; all clones share the turns.
#[derive(Debug, Clone)]
pub struct Blobs {
    folder: PathBuf,
    turns: Arc<Turns>,
}

/// What is there of a blob.
pub enum Found {
    /// Ready to be read.
    Whole(File),
    Part(Box<Part>),
}

/// A blob on its way. Has the turn of its digest, also while a thread writes to it.
pub struct Part {
    wanted: Wanted,
    path: PathBuf,
    file: File,
    hash: Sha256,
    length: u64,
    /// Some of it is from an earlier attempt.
    resumed: bool,
    _turn: Turn,
}

/// What became of a blob of which every byte has come.
pub enum Finished {
    Whole(File),
    /// It is another one, and has been thrown away. It began with bytes of an earlier attempt.
    Wrong {
        part: Box<Part>,
        resumed: bool,
    },
}

impl Blobs {
    /// Opens the folder below the images, and removes what nobody came back for.
    pub fn open(images: &Path) -> Result<Self, ImageError> {
        let folder = images.join(FOLDER);
        let failed = |error| ImageError::storage(format_args!("open {}", folder.display()), &error);
        fs::create_dir_all(&folder).map_err(failed)?;
        clean(&folder).map_err(failed)?;
        Ok(Self {
            folder,
            turns: Arc::default(),
        })
    }

    /// Removes what nobody came back for.
    pub async fn clean(&self) -> Result<(), ImageError> {
        let folder = self.folder.clone();
        let cleaned = move || {
            clean(&folder).map_err(|error| ImageError::storage("remove old layers", &error))
        };
        blocking(cleaned).await
    }

    /// The blob as far as it is here. Waits while another pull downloads it.
    pub async fn find(&self, wanted: &Wanted) -> Result<Found, ImageError> {
        let turn = self.turns.begin(&wanted.digest).await;
        let (whole, wanted) = (self.path(&wanted.digest), wanted.clone());
        blocking(move || {
            let failed = |error| ImageError::storage("open a layer", &error);
            match File::open(&whole) {
                Ok(file) if file.metadata().map_err(failed)?.len() == wanted.bytes => {
                    return Ok(Found::Whole(file));
                }
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
            let mut options = File::options();
            let file = options.read(true).append(true).create(true);
            let file = file.open(whole.with_extension(PARTIAL)).map_err(failed)?;
            let mut part = Part {
                wanted,
                path: whole,
                file,
                hash: Sha256::new(),
                length: 0,
                resumed: false,
                _turn: turn,
            };
            part.read_again().map_err(failed)?;
            Ok(Found::Part(Box::new(part)))
        })
        .await
    }

    /// Forgets blobs: the image that they are for is there, or they are no good. Who reads one still can.
    pub async fn remove(&self, digests: Vec<Digest>) {
        for digest in &digests {
            // Whoever has the turn needs the blob, and removes it later.
            let Some(turn) = self.turns.take(digest) else {
                continue;
            };
            let path = self.path(digest);
            let removed = blocking(move || {
                for path in [path.with_extension(PARTIAL), path] {
                    match fs::remove_file(&path) {
                        Err(error) if error.kind() != io::ErrorKind::NotFound => {
                            return Err(ImageError::storage("remove a layer", &error));
                        }
                        _ => {}
                    }
                }
                drop(turn);
                Ok(())
            });
            if let Err(error) = removed.await {
                tracing::warn!(%digest, "{error}");
            }
        }
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(digest.hex())
    }
}

/// What is written to is young: of a download that goes on, nothing is old.
fn clean(folder: &Path) -> io::Result<()> {
    let now = SystemTime::now();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let gone = |error: io::Error| match error.kind() {
            // By the pull that it was for.
            io::ErrorKind::NotFound => Ok(None),
            _ => Err(error),
        };
        let written = entry.metadata().and_then(|about| about.modified());
        let Some(written) = written.map(Some).or_else(gone)? else {
            continue;
        };
        if now.duration_since(written).unwrap_or_default() >= KEPT {
            fs::remove_file(entry.path())
                .map(Some)
                .or_else(|error| gone(error).map(|_| None))?;
        }
    }
    Ok(())
}

impl Part {
    /// Where the next byte belongs.
    pub fn length(&self) -> u64 {
        self.length
    }

    pub fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    pub fn is_complete(&self) -> bool {
        self.length == self.wanted.bytes
    }

    /// Hashes what an earlier attempt left.
    fn read_again(&mut self) -> io::Result<()> {
        if self.file.metadata()?.len() > self.wanted.bytes {
            return self.empty();
        }
        let mut buffer = vec![0; READ_BYTES];
        loop {
            match self.file.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    self.hash.update(&buffer[..count]);
                    self.length += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.resumed = self.length > 0;
        Ok(())
    }

    fn empty(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.hash = Sha256::new();
        self.length = 0;
        self.resumed = false;
        Ok(())
    }

    /// Throws away what there is.
    pub async fn restart(mut self: Box<Self>) -> Result<Box<Self>, ImageError> {
        blocking(move || {
            let emptied = self.empty();
            emptied.map_err(|error| ImageError::storage("empty a file", &error))?;
            Ok(self)
        })
        .await
    }

    /// Adds bytes. A disk that is full keeps none of them: they would be in the way of everybody else.
    pub async fn append(mut self: Box<Self>, bytes: Vec<u8>) -> Result<Box<Self>, ImageError> {
        blocking(move || {
            if let Err(error) = self.file.write_all(&bytes) {
                let _ = fs::remove_file(self.path.with_extension(PARTIAL));
                return Err(ImageError::storage("store a layer", &error));
            }
            self.hash.update(&bytes);
            self.length += bytes.len() as u64;
            Ok(self)
        })
        .await
    }

    /// Every byte is here: are they the right ones?
    pub async fn finish(mut self: Box<Self>) -> Result<Finished, ImageError> {
        blocking(move || {
            let failed = |error| ImageError::storage("store a layer", &error);
            let found = Digest::from_sha256(&self.hash.clone().finalize().into());
            if found != self.wanted.digest {
                let resumed = self.resumed;
                self.empty().map_err(failed)?;
                return Ok(Finished::Wrong {
                    part: self,
                    resumed,
                });
            }
            fs::rename(self.path.with_extension(PARTIAL), &self.path).map_err(failed)?;
            // Opened anew: the image worker is to read it and no more.
            File::open(&self.path).map(Finished::Whole).map_err(failed)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(content: &[u8]) -> Wanted {
        Wanted {
            digest: Digest::of(content),
            bytes: content.len() as u64,
        }
    }

    async fn part(blobs: &Blobs, wanted: &Wanted) -> Box<Part> {
        match blobs.find(wanted).await.unwrap() {
            Found::Part(part) => part,
            Found::Whole(_) => panic!("the blob is whole"),
        }
    }

    #[tokio::test]
    async fn download_goes_on_where_an_earlier_one_broke_off() {
        let images = tempfile::tempdir().unwrap();
        let wanted = wanted(b"hello world");
        let blobs = Blobs::open(images.path()).unwrap();
        let first = part(&blobs, &wanted).await;
        drop(first.append(b"hello ".to_vec()).await.unwrap());
        // As after a crash.
        let blobs = Blobs::open(images.path()).unwrap();
        let second = part(&blobs, &wanted).await;
        assert_eq!((second.length(), second.is_complete()), (6, false));
        let whole = second.append(b"world".to_vec()).await.unwrap();
        let Finished::Whole(mut file) = whole.finish().await.unwrap() else {
            panic!("another digest");
        };
        assert_eq!(io::read_to_string(&mut file).unwrap(), "hello world");
        assert!(file.write_all(b"x").is_err(), "opened read-only");
        assert!(matches!(
            blobs.find(&wanted).await.unwrap(),
            Found::Whole(_)
        ));
        blobs.remove(vec![wanted.digest.clone()]).await;
        assert_eq!(fs::read_dir(images.path().join(FOLDER)).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn wrong_bytes_are_thrown_away() {
        let images = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(images.path()).unwrap();
        let wanted = wanted(b"right");
        let part = part(&blobs, &wanted)
            .await
            .append(b"wrong".to_vec())
            .await
            .unwrap();
        let Finished::Wrong { part, resumed } = part.finish().await.unwrap() else {
            panic!("accepted");
        };
        assert_eq!((part.length(), resumed), (0, false));
    }

    #[tokio::test]
    async fn part_that_is_too_long_is_begun_again() {
        let images = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(images.path()).unwrap();
        let wanted = wanted(b"short");
        let path = images.path().join(FOLDER).join(wanted.digest.hex());
        fs::write(path.with_extension(PARTIAL), "much too long").unwrap();
        assert_eq!(part(&blobs, &wanted).await.length(), 0);
    }

    #[tokio::test]
    async fn leftovers_are_kept_for_a_day() {
        let images = tempfile::tempdir().unwrap();
        drop(Blobs::open(images.path()).unwrap());
        let folder = images.path().join(FOLDER);
        for (name, age) in [("old", KEPT), ("young", KEPT - Duration::from_secs(3600))] {
            let file = File::create(folder.join(name)).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
        }
        Blobs::open(images.path()).unwrap();
        let left: Vec<_> = fs::read_dir(&folder)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(left, ["young"]);
    }
}
