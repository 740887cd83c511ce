//! Where file data waits between unpacking and the root image: one temporary file, written once
//! from start to end, so that memory stays small however large the image is.
//!
//! Layers are compressed streams: a file in them cannot be read again later without unpacking
//! everything before it. The spool is not fsynced and has no name; it dies with its descriptor.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::tree::Extent;

/// Small files are collected before they are written.
const BUFFER: usize = 1 << 20;

pub struct Spool {
    file: File,
    buffer: Vec<u8>,
    /// Where the buffer's first byte goes.
    start: u64,
}

impl Spool {
    pub fn new(file: File) -> Self {
        Self {
            file,
            buffer: Vec::with_capacity(BUFFER),
            start: 0,
        }
    }

    pub fn position(&self) -> u64 {
        self.start + self.buffer.len() as u64
    }

    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.buffer.len() + bytes.len() > BUFFER {
            self.flush()?;
        }
        if bytes.len() >= BUFFER {
            self.file.write_all_at(bytes, self.start)?;
            self.start += bytes.len() as u64;
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        Ok(())
    }

    /// Leaves a hole of zeros.
    pub fn skip(&mut self, bytes: u64) -> io::Result<()> {
        if bytes > 0 {
            self.flush()?;
            self.start += bytes;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.buffer, self.start)?;
        self.start += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// No more writes; from now on the spool is read.
    pub fn finish(mut self) -> io::Result<SpoolReader> {
        self.flush()?;
        // A hole at the very end has no bytes behind it yet.
        self.file.set_len(self.start)?;
        Ok(SpoolReader { file: self.file })
    }
}

pub struct SpoolReader {
    file: File,
}

impl SpoolReader {
    /// Fills `buffer` with the bytes of `extent` that start at `offset`.
    pub fn read(&self, extent: Extent, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        debug_assert!(offset + buffer.len() as u64 <= extent.length);
        self.file.read_exact_at(buffer, extent.offset + offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_holes_come_back_where_they_were_put() {
        let mut spool = Spool::new(tempfile::tempfile().unwrap());
        spool.write(b"first").unwrap();
        spool.skip(BUFFER as u64).unwrap();
        let big = vec![7; BUFFER + 1];
        let at = spool.position();
        spool.write(&big).unwrap();
        spool.skip(10).unwrap();
        let length = spool.position();
        let spool = spool.finish().unwrap();
        let all = Extent { offset: 0, length };
        let mut bytes = vec![1; usize::try_from(length).unwrap()];
        spool.read(all, 0, &mut bytes).unwrap();
        let at = usize::try_from(at).unwrap();
        assert_eq!(&bytes[..5], b"first");
        assert!(bytes[5..at].iter().all(|&byte| byte == 0));
        assert_eq!(&bytes[at..at + big.len()], &big);
        assert_eq!(&bytes[at + big.len()..], &[0; 10]);
    }
}
