//! The outer tar: an index of its files, and windows into it. Blobs that come as files of their own look
//! the same from here.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use super::Blob;
use crate::images::Limits;
use crate::images::digest::Digest;
use crate::images::error::{ImageError, printable};
use crate::images::layer::{Compression, tar_error};
use crate::images::tar::{EntryKind, Skip, TarReader};
use crate::images::tree::components;

/// Symlinks from one file of a docker-archive to another; a layer that occurs twice is stored so.
const LINK_LIMIT: usize = 4;
/// The longest real ones are `blobs/sha256/<64 digits>` and `<64 digits>/layer.tar`.
const NAME_LIMIT: usize = 512;

/// Name → place, made in one pass over the headers.
pub struct Archive {
    /// The tar, or one for each blob.
    files: Vec<File>,
    members: HashMap<Vec<u8>, Member>,
}

enum Member {
    File(Place),
    /// Another name in this archive, from its root.
    Link(Vec<u8>),
}

/// Where the bytes of a member are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which of the archive's files.
    pub file: usize,
    pub offset: u64,
    pub length: u64,
}

impl Archive {
    /// Blobs that are not in a tar. Whether they are what they are called is checked where they are read.
    pub fn of_blobs(blobs: Vec<(Digest, File)>) -> Result<Self, ImageError> {
        let mut members = HashMap::new();
        let mut files = Vec::new();
        for (digest, file) in blobs {
            let about = file.metadata();
            let about = about.map_err(|error| ImageError::storage("read a blob", &error))?;
            let place = Place {
                file: files.len(),
                offset: 0,
                length: about.len(),
            };
            members.insert(blob_name(&digest).into_bytes(), Member::File(place));
            files.push(file);
        }
        Ok(Self { files, members })
    }

    pub fn index(file: File, limits: &Limits) -> Result<Self, ImageError> {
        let length = file
            .metadata()
            .map_err(|error| ImageError::storage("read the archive", &error))?
            .len();
        refuse_compressed(&file)?;
        let mut members = HashMap::new();
        let mut tar = TarReader::new(Section {
            file: &file,
            position: 0,
            end: length,
        });
        while let Some(entry) = tar
            .next_entry()
            .map_err(|error| tar_error(error).within("The archive"))?
        {
            if members.len() == limits.archive_members {
                return Err(ImageError::too_large(format!(
                    "The archive has more than {} files",
                    limits.archive_members
                )));
            }
            let name = components(&entry.path)?.join(&b'/');
            // Nothing that is looked up has such a name, and names stay in memory.
            if name.len() > NAME_LIMIT || entry.link.len() > NAME_LIMIT {
                continue;
            }
            let member = match entry.kind {
                EntryKind::File if entry.chunks.is_none() => Member::File(Place {
                    file: 0,
                    offset: entry.data_offset,
                    length: entry.stored,
                }),
                EntryKind::HardLink => Member::Link(components(&entry.link)?.join(&b'/')),
                EntryKind::Symlink => match symlink_target(&name, &entry.link) {
                    Some(target) => Member::Link(target),
                    None => continue,
                },
                _ => continue,
            };
            members.insert(name, member);
        }
        // Reading a header after the data proves that the data is there, except for the last file.
        let is_short = |member: &Member| match member {
            Member::File(place) => place.offset + place.length > length,
            Member::Link(_) => false,
        };
        if members.values().any(is_short) {
            return Err(ImageError::corrupt("The archive is truncated"));
        }
        let files = vec![file];
        Ok(Self { files, members })
    }

    pub fn contains(&self, name: &str) -> bool {
        self.find(name.as_bytes()).is_some()
    }

    pub fn place(&self, name: &str) -> Result<Place, ImageError> {
        self.find(name.as_bytes()).ok_or_else(|| {
            ImageError::corrupt(format!(
                "The archive has no file {}; it is incomplete",
                printable(name.as_bytes())
            ))
        })
    }

    pub fn section(&self, blob: &Blob) -> Section<'_> {
        self.window(blob.place)
    }

    fn window(&self, place: Place) -> Section<'_> {
        Section {
            file: &self.files[place.file],
            position: place.offset,
            end: place.offset.saturating_add(place.length),
        }
    }

    /// A whole small file.
    pub fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>, ImageError> {
        let place = self.place(name)?;
        if place.length > limit {
            let length = place.length;
            return Err(ImageError::too_large(format!(
                "{} has {length} bytes, at most {limit} are allowed",
                printable(name.as_bytes())
            )));
        }
        let mut bytes = Vec::new();
        self.window(place)
            .read_to_end(&mut bytes)
            .map_err(|error| ImageError::reading(printable(name.as_bytes()), &error))?;
        Ok(bytes)
    }

    /// A blob of an OCI layout, compared with the digest and size that its descriptor gives.
    pub fn read_blob(
        &self,
        digest: &Digest,
        size: u64,
        what: &str,
        limit: u64,
    ) -> Result<Vec<u8>, ImageError> {
        let bytes = self.read(&blob_name(digest), limit)?;
        if bytes.len() as u64 != size {
            return Err(wrong_size(what, size, bytes.len() as u64));
        }
        let found = Digest::of(&bytes);
        if found != *digest {
            return Err(ImageError::corrupt(format!(
                "The digest of the {what} should be {digest} but is {found}"
            )));
        }
        Ok(bytes)
    }

    fn find(&self, name: &[u8]) -> Option<Place> {
        let mut name = name.to_vec();
        for _ in 0..=LINK_LIMIT {
            match self.members.get(&name)? {
                Member::File(place) => return Some(*place),
                Member::Link(target) => name.clone_from(target),
            }
        }
        None
    }
}

pub fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

pub fn wrong_size(what: &str, expected: u64, found: u64) -> ImageError {
    ImageError::corrupt(format!(
        "The {what} should have {expected} bytes but has {found}"
    ))
}

/// A symlink's target from the archive's root; `None` when it leads out of it.
fn symlink_target(name: &[u8], target: &[u8]) -> Option<Vec<u8>> {
    let parent = match name.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => &name[..slash],
        None => b"",
    };
    let path = match target.starts_with(b"/") {
        true => target.to_vec(),
        false => [parent, b"/", target].concat(),
    };
    Some(components(&path).ok()?.join(&b'/'))
}

fn refuse_compressed(file: &File) -> Result<(), ImageError> {
    let mut start = [0; 6];
    let count = file
        .read_at(&mut start, 0)
        .map_err(|error| ImageError::storage("read the archive", &error))?;
    let name = match Compression::of(&start[..count]) {
        Compression::None if count == 0 => return Err(ImageError::corrupt("The archive is empty")),
        Compression::None => return Ok(()),
        Compression::Gzip => "gzip",
        Compression::Zstd => "zstd",
        Compression::Unsupported(name) => name,
    };
    Err(ImageError::unsupported(format!(
        "The archive itself is compressed with {name}; decompress it first"
    )))
}

/// A window into the archive. Has its own position, so that several can be read in turn.
pub struct Section<'a> {
    file: &'a File,
    position: u64,
    end: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.end.saturating_sub(self.position);
        let want = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let count = self.file.read_at(&mut buffer[..want], self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Skip for Section<'_> {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        match self.position.checked_add(bytes) {
            Some(position) if position <= self.end => {
                self.position = position;
                Ok(())
            }
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}
