//! The outside of every file of a snapshot that is parsed: a header of fixed size, then a payload.
//!
//! ```text
//!   0   8  magic, one per kind of file
//!   8   4  version of header and payload together
//!  12   4  bytes of this header
//!  16  16  fields of the kind of file
//!  32   8  bytes of the payload, which ends the file
//!  40  32  SHA-256 of the payload
//!  72  32  SHA-256 of the 72 bytes before
//! ```
//!
//! All numbers are little endian. The header is read by hand and says how long the payload is; the
//! file must be exactly that long, and the payload must have its checksum, before anybody else sees a
//! byte of it. The checksums find damage, they do not prove who wrote the file: whoever can write it
//! can seal what he wrote, so the payload's parser has to expect anything all the same.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};

/// Bytes of a header.
pub const HEADER_BYTES: usize = 104;
/// Bytes that a kind of file has for itself in the header.
pub const FIELD_BYTES: usize = 16;

const MAGIC: std::ops::Range<usize> = 0..8;
const VERSION: usize = 8;
const SIZE: usize = 12;
const FIELDS: usize = 16;
const PAYLOAD_BYTES: usize = 32;
const PAYLOAD_SUM: usize = 40;
const HEADER_SUM: usize = 72;

/// Why a file of a snapshot could not be written or read. `file` names it.
///
/// Nobody can repair such a file, and what it was made from is still there: hence the remedy.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("Cannot read {what} of the {file}")]
    Read {
        file: &'static str,
        what: &'static str,
        source: io::Error,
    },
    #[error("Cannot write the {file}")]
    Write {
        file: &'static str,
        source: io::Error,
    },
    #[error("Cannot turn the state of the microVM into bytes")]
    Encode { source: postcard::Error },
    #[error("The {file} would need {bytes} bytes, {limit} is the limit")]
    TooLarge {
        file: &'static str,
        bytes: u64,
        limit: u64,
    },
    #[error("This is not a {file}; make the golden again")]
    Magic { file: &'static str },
    #[error(
        "The {file} has format {found}, this build reads format {expected}; make the golden again"
    )]
    Version {
        file: &'static str,
        found: u32,
        expected: u32,
    },
    #[error("The {part} of the {file} is damaged; make the golden again")]
    Damaged {
        file: &'static str,
        part: &'static str,
    },
    #[error("The {file} promises {promised} bytes, {limit} is the limit; make the golden again")]
    Limit {
        file: &'static str,
        promised: u64,
        limit: u64,
    },
    #[error(
        "The {file} holds {found} bytes, its header promises {promised}; make the golden again"
    )]
    Length {
        file: &'static str,
        found: u64,
        promised: u64,
    },
    /// The checksums hold, so somebody wrote this on purpose or with a fault.
    #[error("The {file} makes no sense: {what}; make the golden again")]
    Nonsense { file: &'static str, what: String },
}

/// One kind of file.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// Its name in messages.
    pub file: &'static str,
    pub magic: [u8; 8],
    pub version: u32,
    /// The most bytes a payload can have. As much is allocated to read one.
    pub max_payload: u64,
}

/// A header whose own checksum holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    pub version: u32,
    pub fields: [u8; FIELD_BYTES],
    /// At most the kind's limit, and exactly what the file has behind the header.
    pub payload_bytes: u64,
    pub payload_sum: [u8; 32],
}

impl Kind {
    /// Writes header and payload, and nothing else, to a file.
    pub fn write(
        &self,
        to: &File,
        fields: [u8; FIELD_BYTES],
        payload: &[u8],
    ) -> Result<(), SnapshotError> {
        if payload.len() as u64 > self.max_payload {
            return Err(SnapshotError::TooLarge {
                file: self.file,
                bytes: payload.len() as u64,
                limit: self.max_payload,
            });
        }
        let header = self.header(fields, payload);
        let write = || {
            to.set_len(0)?;
            to.write_all_at(&header, 0)?;
            to.write_all_at(payload, HEADER_BYTES as u64)
        };
        write().map_err(|source| SnapshotError::Write {
            file: self.file,
            source,
        })
    }

    fn header(&self, fields: [u8; FIELD_BYTES], payload: &[u8]) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(MAGIC.start, &self.magic);
        put(VERSION, &self.version.to_le_bytes());
        put(SIZE, &header_size().to_le_bytes());
        put(FIELDS, &fields);
        put(PAYLOAD_BYTES, &(payload.len() as u64).to_le_bytes());
        put(PAYLOAD_SUM, &Sha256::digest(payload));
        let sum = Sha256::digest(&header[..HEADER_SUM]);
        header[HEADER_SUM..].copy_from_slice(&sum);
        header
    }

    /// Reads and checks the header, and that the file has the length it promises. No byte of the payload is read.
    pub fn read_header(&self, from: &File) -> Result<Envelope, SnapshotError> {
        let found = self.length(from)?;
        let mut bytes = [0; HEADER_BYTES];
        if found < HEADER_BYTES as u64 {
            return Err(SnapshotError::Length {
                file: self.file,
                found,
                promised: HEADER_BYTES as u64,
            });
        }
        self.read_exact(from, "the header", &mut bytes, 0)?;
        let header = self.parse(&bytes)?;
        let promised = HEADER_BYTES as u64 + header.payload_bytes;
        if found != promised {
            return Err(SnapshotError::Length {
                file: self.file,
                found,
                promised,
            });
        }
        Ok(header)
    }

    /// Pure: what the bytes of a header say, if they can be believed.
    fn parse(&self, bytes: &[u8; HEADER_BYTES]) -> Result<Envelope, SnapshotError> {
        if bytes[MAGIC] != self.magic {
            return Err(SnapshotError::Magic { file: self.file });
        }
        // Before the checksum: the header of another version may have it elsewhere.
        let version = u32::from_le_bytes(field(bytes, VERSION));
        if version != self.version {
            return Err(SnapshotError::Version {
                file: self.file,
                found: version,
                expected: self.version,
            });
        }
        let sum: [u8; 32] = field(bytes, HEADER_SUM);
        let size = u32::from_le_bytes(field(bytes, SIZE));
        if Sha256::digest(&bytes[..HEADER_SUM]).as_slice() != sum || size != header_size() {
            return Err(SnapshotError::Damaged {
                file: self.file,
                part: "header",
            });
        }
        let payload_bytes = u64::from_le_bytes(field(bytes, PAYLOAD_BYTES));
        if payload_bytes > self.max_payload {
            return Err(SnapshotError::Limit {
                file: self.file,
                promised: payload_bytes,
                limit: self.max_payload,
            });
        }
        Ok(Envelope {
            version,
            fields: field(bytes, FIELDS),
            payload_bytes,
            payload_sum: field(bytes, PAYLOAD_SUM),
        })
    }

    /// Reads the payload that `header` promises and checks it.
    pub fn read_payload(&self, from: &File, header: &Envelope) -> Result<Vec<u8>, SnapshotError> {
        let bytes =
            usize::try_from(header.payload_bytes).expect("limited where the header was read");
        let mut payload = vec![0; bytes];
        self.read_exact(from, "the payload", &mut payload, HEADER_BYTES as u64)?;
        if Sha256::digest(&payload).as_slice() != header.payload_sum {
            return Err(SnapshotError::Damaged {
                file: self.file,
                part: "payload",
            });
        }
        Ok(payload)
    }

    /// An error about what a payload or the kind's own fields say.
    pub fn nonsense(&self, what: impl Into<String>) -> SnapshotError {
        SnapshotError::Nonsense {
            file: self.file,
            what: what.into(),
        }
    }

    fn length(&self, file: &File) -> Result<u64, SnapshotError> {
        let metadata = file.metadata().map_err(|source| SnapshotError::Read {
            file: self.file,
            what: "the length",
            source,
        })?;
        Ok(metadata.len())
    }

    fn read_exact(
        &self,
        from: &File,
        what: &'static str,
        to: &mut [u8],
        offset: u64,
    ) -> Result<(), SnapshotError> {
        from.read_exact_at(to, offset)
            .map_err(|source| SnapshotError::Read {
                file: self.file,
                what,
                source,
            })
    }
}

fn field<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    std::array::from_fn(|index| bytes[at + index])
}

fn header_size() -> u32 {
    u32::try_from(HEADER_BYTES).expect("a small constant")
}
