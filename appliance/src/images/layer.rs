//! One layer: blob in the archive → decompressed tar → tree and spool, both digests checked.
//!
//! ```text
//! section of the archive ─▶ SHA-256 (blob digest) ─▶ gzip | zstd | nothing ─▶ SHA-256 (diff id)
//!                                                                              ─▶ tar ─▶ tree, spool
//! ```
//!
//! The compression is known by its first bytes, as in Docker and containerd: docker-archives do
//! not say, and media types have been wrong.
//!
//! # Trust
//! A layer is read to its end before its digests are compared, so a lying layer has by then been
//! parsed; it has not been published. The unpacked size is limited while it streams (a bomb stops
//! at the limit), and a zstd frame may not ask for a window above 128 MiB.

use std::io::{self, BufReader, Read};

use super::digest::{Digest, HashingReader};
use super::error::ImageError;
use super::flatten::Flattener;
use super::layout::{Blob, Section};
use super::spool::Spool;
use super::tar::{Entry, EntryKind, Skip, TarError, TarReader};
use super::tree::Extent;

/// zstd's own default limit; windows above need `--long` on the writer's side too.
const ZSTD_WINDOW_LOG: u32 = 27;
const READ_BUFFER: usize = 128 * 1024;

/// Where layers go.
pub struct Unpacker {
    pub flattener: Flattener,
    pub spool: Spool,
    /// Bytes that layers may still unpack to, tar headers and holes included.
    pub budget: Budget,
}

#[derive(Clone, Copy)]
pub struct Budget {
    pub limit: u64,
    pub left: u64,
}

impl Budget {
    pub fn new(limit: u64) -> Self {
        Self { limit, left: limit }
    }

    fn exceeded(self) -> ImageError {
        ImageError::too_large(format!(
            "The image unpacks to more than {} MiB, the limit",
            self.limit >> 20
        ))
    }
}

impl Unpacker {
    /// Applies the layer on top of those before.
    pub fn apply(&mut self, section: Section<'_>, blob: &Blob) -> Result<(), ImageError> {
        self.flattener.begin_layer();
        let mut raw = HashingReader::new(BufReader::with_capacity(READ_BUFFER, section));
        let diff_id = {
            let mut decoded = decode(&mut raw)?;
            let limit = self.budget.left;
            let mut tar = TarReader::new(Plain {
                inner: HashingReader::new(decoded.as_mut().take(limit.saturating_add(1))),
            });
            let result = self.entries(&mut tar);
            let mut plain = tar.into_inner();
            // The digest covers what follows the end of the archive, too.
            let rest = match &result {
                Ok(()) => io::copy(&mut plain.inner, &mut io::sink()),
                Err(_) => Ok(0),
            };
            let (diff_id, bytes) = plain.inner.finish();
            if bytes > limit {
                return Err(self.budget.exceeded());
            }
            result?;
            rest.map_err(|error| ImageError::reading("the layer", &error))?;
            self.budget.left -= bytes;
            diff_id
        };
        // zstd and gzip decoders may leave a few bytes after the last frame unread.
        io::copy(&mut raw, &mut io::sink())
            .map_err(|error| ImageError::reading("the layer", &error))?;
        let (digest, _) = raw.finish();
        check("digest", blob.digest.as_ref(), &digest)?;
        check("diff id", Some(&blob.diff_id), &diff_id)
    }

    fn entries<R: Skip>(&mut self, tar: &mut TarReader<R>) -> Result<(), ImageError> {
        while let Some(entry) = tar.next_entry().map_err(tar_error)? {
            let extent = match entry.kind {
                EntryKind::File => self.store(tar, &entry)?,
                _ => Extent::default(),
            };
            self.flattener.apply(entry, extent)?;
        }
        Ok(())
    }

    fn store<R: Skip>(
        &mut self,
        tar: &mut TarReader<R>,
        entry: &Entry,
    ) -> Result<Extent, ImageError> {
        // Holes cost no bytes in the stream, so they are charged here.
        let holes = entry.size.saturating_sub(entry.stored);
        self.budget.left = self
            .budget
            .left
            .checked_sub(holes)
            .ok_or_else(|| self.budget.exceeded())?;
        let offset = self.spool.position();
        match &entry.chunks {
            None => self.copy(tar, entry.stored)?,
            Some(chunks) => {
                let mut end = 0;
                for chunk in chunks {
                    self.spool
                        .skip(chunk.offset - end)
                        .map_err(|error| spool_error(&error))?;
                    self.copy(tar, chunk.length)?;
                    end = chunk.offset + chunk.length;
                }
                self.spool
                    .skip(entry.size - end)
                    .map_err(|error| spool_error(&error))?;
            }
        }
        Ok(Extent {
            offset,
            length: entry.size,
        })
    }

    fn copy<R: Skip>(&mut self, tar: &mut TarReader<R>, mut left: u64) -> Result<(), ImageError> {
        let mut buffer = [0; 16 * 1024];
        while left > 0 {
            let want = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
            let count = tar.read_data(&mut buffer[..want]).map_err(tar_error)?;
            if count == 0 {
                return Err(ImageError::corrupt("the layer is truncated"));
            }
            self.spool
                .write(&buffer[..count])
                .map_err(|error| spool_error(&error))?;
            left -= count as u64;
        }
        Ok(())
    }
}

/// The decompressed layer, hashed; skipping means reading.
struct Plain<R> {
    inner: HashingReader<R>,
}

impl<R: Read> Read for Plain<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer)
    }
}

impl<R: Read> Skip for Plain<R> {}

fn decode<'a>(raw: &'a mut (impl Read + 'a)) -> Result<Box<dyn Read + 'a>, ImageError> {
    let mut magic = [0; 6];
    let mut have = 0;
    while have < magic.len() {
        match raw.read(&mut magic[have..]) {
            Ok(0) => break,
            Ok(count) => have += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(ImageError::reading("the layer", &error)),
        }
    }
    let compression = Compression::of(&magic[..have]);
    let whole = io::Cursor::new(magic).take(have as u64).chain(raw);
    let init = |error: io::Error| ImageError::reading("the layer", &error);
    Ok(match compression {
        Compression::None => Box::new(whole),
        Compression::Gzip => Box::new(BufReader::with_capacity(
            READ_BUFFER,
            // Several members after each other are one stream; pigz and stargz write such.
            flate2::read::MultiGzDecoder::new(whole),
        )),
        Compression::Zstd => {
            let mut decoder = zstd::Decoder::new(whole).map_err(init)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(init)?;
            Box::new(BufReader::with_capacity(READ_BUFFER, decoder))
        }
        Compression::Unsupported(name) => {
            return Err(ImageError::unsupported(format!(
                "the layer is compressed with {name}; gzip, zstd and plain tar are supported"
            )));
        }
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
    Unsupported(&'static str),
}

impl Compression {
    pub fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A zstd stream may begin with a frame that carries no data (RFC 8878, 3.1.2).
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [b'B', b'Z', b'h', ..] => Self::Unsupported("bzip2"),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Unsupported("xz"),
            _ => Self::None,
        }
    }
}

fn check(what: &str, expected: Option<&Digest>, found: &Digest) -> Result<(), ImageError> {
    match expected {
        Some(expected) if expected != found => Err(ImageError::corrupt(format!(
            "the {what} should be {expected} but is {found}"
        ))),
        _ => Ok(()),
    }
}

pub fn tar_error(error: TarError) -> ImageError {
    match error {
        TarError::Read(error) => ImageError::reading("the tar archive", &error),
        TarError::Malformed { .. } => {
            ImageError::corrupt(format!("not a valid tar archive, {error}"))
        }
    }
}

fn spool_error(error: &io::Error) -> ImageError {
    ImageError::storage("write to the temporary file", error)
}
