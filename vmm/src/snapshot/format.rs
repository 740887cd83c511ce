//! The state file: everything of a paused microVM but its memory and its disks.
//!
//! An `envelope` whose fields say what the microVM is made of, so that a file can be
//! judged without decoding the rest:
//!
//! ```text
//!  0  4  memory in MiB
//!  4  1  vCPUs
//!  5  1  disks
//!  6 10  zero
//! ```
//!
//! The payload is a `postcard` encoding. There is one format at a time: a file of another one is made
//! again, never converted, since what it was made from is still there.

use std::fs::File;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::envelope::{Envelope, FIELD_BYTES, Kind};
use crate::config::{MAX_BLOCKS, MAX_MEM_MIB, MAX_VCPUS, MIN_MEM_MIB};

pub use super::envelope::SnapshotError;

/// The largest payload. The state of 32 vCPUs needs about a fifth of it.
pub const MAX_STATE_BYTES: u64 = 4 << 20;

/// Counts up with every change of a saved structure or of its meaning.
pub const VERSION: u32 = 1;

pub(super) const STATE_FILE: Kind = Kind {
    file: "state file",
    magic: *b"cabanaST",
    version: VERSION,
    max_payload: MAX_STATE_BYTES,
};

/// What a microVM is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeaderFields {
    pub mem_mib: u32,
    pub vcpus: u8,
    pub disks: u8,
}

/// The header of a state file, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub version: u32,
    /// Within the limits of [`crate::config`], as are the next two.
    pub mem_mib: u32,
    pub vcpus: u8,
    pub disks: u8,
    pub payload_bytes: u64,
    pub payload_sum: [u8; 32],
}

/// Writes a state file. What `file` held before is gone.
pub fn write<T: Serialize>(
    file: &File,
    header: HeaderFields,
    payload: &T,
) -> Result<(), SnapshotError> {
    let payload =
        postcard::to_stdvec(payload).map_err(|source| SnapshotError::Encode { source })?;
    STATE_FILE.write(file, header.to_bytes(), &payload)
}

/// Reads a state file. `T` must not turn few bytes into much memory: its lists are
/// [`bounded`](super::bounded()), and whatever they hold has been written by a stranger.
pub fn read<T: DeserializeOwned>(file: &File) -> Result<(Header, T), SnapshotError> {
    let (envelope, header) = open(file)?;
    let payload = decode(file, &envelope)?;
    Ok((header, payload))
}

/// Reads and checks the header alone.
pub(super) fn open(file: &File) -> Result<(Envelope, Header), SnapshotError> {
    let envelope = STATE_FILE.read_header(file)?;
    let fields = HeaderFields::from_bytes(envelope.fields)?;
    let header = Header {
        version: envelope.version,
        mem_mib: fields.mem_mib,
        vcpus: fields.vcpus,
        disks: fields.disks,
        payload_bytes: envelope.payload_bytes,
        payload_sum: envelope.payload_sum,
    };
    Ok((envelope, header))
}

/// Reads, checks and decodes the payload.
pub(super) fn decode<T: DeserializeOwned>(
    file: &File,
    envelope: &Envelope,
) -> Result<T, SnapshotError> {
    let bytes = STATE_FILE.read_payload(file, envelope)?;
    match postcard::take_from_bytes(&bytes) {
        Ok((payload, [])) => Ok(payload),
        Ok((_, rest)) => Err(STATE_FILE.nonsense(format!("{} bytes too many", rest.len()))),
        Err(error) => Err(STATE_FILE.nonsense(error.to_string())),
    }
}

impl HeaderFields {
    fn to_bytes(self) -> [u8; FIELD_BYTES] {
        let mut bytes = [0; FIELD_BYTES];
        bytes[..4].copy_from_slice(&self.mem_mib.to_le_bytes());
        bytes[4] = self.vcpus;
        bytes[5] = self.disks;
        bytes
    }

    fn from_bytes(bytes: [u8; FIELD_BYTES]) -> Result<Self, SnapshotError> {
        let [m0, m1, m2, m3, vcpus, disks, zero @ ..] = bytes;
        let mem_mib = u32::from_le_bytes([m0, m1, m2, m3]);
        let within = (MIN_MEM_MIB..=MAX_MEM_MIB).contains(&mem_mib)
            && (1..=MAX_VCPUS).contains(&vcpus)
            && usize::from(disks) <= MAX_BLOCKS
            && zero == [0; 10];
        if within {
            Ok(Self {
                mem_mib,
                vcpus,
                disks,
            })
        } else {
            Err(STATE_FILE.nonsense(format!(
                "{mem_mib} MiB of memory, {vcpus} vCPUs, {disks} disks"
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::snapshot::envelope::HEADER_BYTES;

    const FIELDS: HeaderFields = HeaderFields {
        mem_mib: 128,
        vcpus: 2,
        disks: 1,
    };

    fn written<T: Serialize>(fields: HeaderFields, payload: &T) -> File {
        let file = tempfile::tempfile().unwrap();
        write(&file, fields, payload).unwrap();
        file
    }

    #[test]
    fn state_file_gives_back_what_was_written() {
        let payload = (7_u64, vec![1_u16, 2, 3], "text".to_owned());
        let file = written(FIELDS, &payload);
        let (header, found) = read::<(u64, Vec<u16>, String)>(&file).unwrap();
        assert_eq!(found, payload);
        assert_eq!((header.mem_mib, header.vcpus, header.disks), (128, 2, 1));
        assert_eq!(
            file.metadata().unwrap().len(),
            HEADER_BYTES as u64 + header.payload_bytes
        );
    }

    #[test]
    fn file_that_held_something_longer_holds_the_new_state_alone() {
        let file = written(FIELDS, &"a longer one".to_owned());
        write(&file, FIELDS, &1_u8).unwrap();
        assert_eq!(read::<u8>(&file).unwrap().1, 1);
    }

    #[test]
    fn state_file_without_a_payload_is_whole() {
        assert_eq!(
            read::<()>(&written(FIELDS, &())).unwrap().0.payload_bytes,
            0
        );
    }

    #[test]
    fn payload_above_the_limit_is_not_written() {
        let payload = vec![0_u8; usize::try_from(MAX_STATE_BYTES).unwrap()];
        let file = tempfile::tempfile().unwrap();
        let error = write(&file, FIELDS, &payload).unwrap_err();
        assert!(matches!(error, SnapshotError::TooLarge { .. }), "{error}");
        assert_eq!(file.metadata().unwrap().len(), 0);
    }

    #[test]
    fn bytes_behind_what_was_decoded_are_refused() {
        let error = read::<(u8, u8)>(&written(FIELDS, &(1_u8, 2_u8, 3_u8))).unwrap_err();
        assert!(error.to_string().contains("1 bytes too many"), "{error}");
    }

    #[test]
    fn payload_that_ends_early_is_refused() {
        let error = read::<(u8, u8)>(&written(FIELDS, &1_u8)).unwrap_err();
        assert!(matches!(error, SnapshotError::Nonsense { .. }), "{error}");
    }

    #[test]
    fn microvm_outside_of_all_limits_is_refused() {
        for fields in [
            HeaderFields {
                mem_mib: 0,
                ..FIELDS
            },
            HeaderFields {
                mem_mib: MAX_MEM_MIB + 1,
                ..FIELDS
            },
            HeaderFields { vcpus: 0, ..FIELDS },
            HeaderFields {
                vcpus: MAX_VCPUS + 1,
                ..FIELDS
            },
            HeaderFields {
                disks: u8::MAX,
                ..FIELDS
            },
        ] {
            let error = read::<u8>(&written(fields, &1_u8)).unwrap_err();
            assert!(
                matches!(error, SnapshotError::Nonsense { .. }),
                "{fields:?}"
            );
        }
    }

    #[test]
    fn damaged_payload_is_never_decoded() {
        #[derive(Debug)]
        struct Untouchable;
        impl<'de> serde::Deserialize<'de> for Untouchable {
            fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
                panic!("decoded before the checksum held");
            }
        }
        let file = written(FIELDS, &1_u8);
        file.write_all_at(&[2], HEADER_BYTES as u64).unwrap();
        let error = read::<Untouchable>(&file).unwrap_err();
        assert!(
            matches!(
                error,
                SnapshotError::Damaged {
                    part: "payload",
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn every_message_about_an_unusable_file_says_what_to_do() {
        let file = written(FIELDS, &1_u8);
        file.write_all_at(b"x", 0).unwrap();
        let error = read::<u8>(&file).unwrap_err().to_string();
        assert_eq!(error, "This is not a state file; make the golden again");
    }
}
