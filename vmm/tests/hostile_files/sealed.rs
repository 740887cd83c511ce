//! Writes the files by their description, not by the code that is tested: a header whose checksums are
//! right, whatever else it says.

use sha2::{Digest, Sha256};

pub const HEADER_BYTES: usize = 104;

/// A file before it is sealed: everything that can be lied about.
#[derive(Debug, Clone)]
pub struct Sealed {
    pub magic: [u8; 8],
    pub version: u32,
    pub header_bytes: u32,
    pub fields: [u8; 16],
    /// `None`: as many as there are.
    pub payload_bytes: Option<u64>,
    pub payload: Vec<u8>,
}

impl Sealed {
    pub fn state(mem_mib: u32, vcpus: u8, disks: u8, payload: Vec<u8>) -> Self {
        let mut file = Self::of(*b"cabanaST", mem_mib, payload);
        file.fields[4] = vcpus;
        file.fields[5] = disks;
        file
    }

    /// Runs are first page, number of pages, and whether they were written.
    pub fn working_set(mem_mib: u32, runs: &[(u32, u32, bool)]) -> Self {
        let mut payload = Vec::new();
        for &(first, pages, written) in runs {
            payload.extend_from_slice(&first.to_le_bytes());
            payload.extend_from_slice(&(pages | u32::from(written) << 31).to_le_bytes());
        }
        Self::of(*b"cabanaWS", mem_mib, payload)
    }

    fn of(magic: [u8; 8], mem_mib: u32, payload: Vec<u8>) -> Self {
        let mut fields = [0; 16];
        fields[..4].copy_from_slice(&mem_mib.to_le_bytes());
        Self {
            magic,
            version: 1,
            header_bytes: 104,
            fields,
            payload_bytes: None,
            payload,
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let payload_bytes = self.payload_bytes.unwrap_or(self.payload.len() as u64);
        let mut bytes = [
            &self.magic[..],
            &self.version.to_le_bytes(),
            &self.header_bytes.to_le_bytes(),
            &self.fields,
            &payload_bytes.to_le_bytes(),
            &Sha256::digest(&self.payload),
        ]
        .concat();
        let sum = Sha256::digest(&bytes);
        bytes.extend_from_slice(&sum);
        assert_eq!(bytes.len(), HEADER_BYTES);
        bytes.extend_from_slice(&self.payload);
        bytes
    }
}
