//! Files with holes: finding what is in them, and writing none of the zeros.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// The grain of holes: a page of memory, and a block of the file systems that sparse files live on.
pub const GRAIN: usize = 4096;

/// Bytes moved at a time.
pub const CHUNK: usize = 256 * 1024;

const ZEROS: [u8; GRAIN] = [0; GRAIN];

/// The next part of `range` that the file may have data in; the rest before it reads as zero. `None`: there is
/// no more. A file that cannot tell is all data.
///
/// Moves the common position of the descriptor, which nobody may rely on anyway.
pub fn next_data(file: &File, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
    if range.is_empty() {
        return Ok(None);
    }
    let start = match seek(file, SeekFrom::Data(range.start)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        // Block devices and some file systems do not know holes.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(range)),
        Err(error) => return Err(error.into()),
    };
    if start >= range.end {
        return Ok(None);
    }
    let end = match seek(file, SeekFrom::Hole(start)) {
        Ok(end) => end,
        // The file became shorter meanwhile.
        Err(Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Ok(Some(start..end.min(range.end)))
}

/// Writes `bytes` to `offset`, but the pages of the file that would be all zeros. They stay as they are,
/// which in a new file is a hole.
pub fn write_nonzero(to: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let mut at = 0;
    // What has been seen and has to be written, not yet written.
    let mut pending = 0..0;
    while at < bytes.len() {
        let misaligned = usize::try_from((offset + at as u64) % GRAIN as u64).unwrap_or(0);
        let end = bytes.len().min(at + GRAIN - misaligned);
        // Compared as a whole: also fast where nothing is optimised.
        if bytes[at..end] == ZEROS[..end - at] {
            flush(to, offset, bytes, &pending)?;
            pending = end..end;
        } else {
            pending.end = end;
        }
        at = end;
    }
    flush(to, offset, bytes, &pending)
}

fn flush(to: &File, offset: u64, bytes: &[u8], pending: &Range<usize>) -> io::Result<()> {
    if pending.is_empty() {
        return Ok(());
    }
    to.write_all_at(&bytes[pending.clone()], offset + pending.start as u64)
}

/// Makes `file` one hole of `len` bytes, whatever it was before: what is left out later must read as zero.
pub fn clear(file: &File, len: u64) -> io::Result<()> {
    file.set_len(0)?;
    file.set_len(len)
}

/// Copies `range` of one file to the same place of another, without its zeros. What lies beyond the end of
/// `from` counts as zeros.
pub fn copy(from: &File, to: &File, range: Range<u64>) -> io::Result<()> {
    let mut buffer = Vec::new();
    let mut rest = range;
    while let Some(data) = next_data(from, rest.clone())? {
        // Not before there is something to copy.
        buffer.resize(CHUNK, 0);
        let mut at = data.start;
        while at < data.end {
            let want =
                usize::try_from(data.end - at).map_or(buffer.len(), |left| left.min(buffer.len()));
            match from.read_at(&mut buffer[..want], at) {
                Ok(0) => return Ok(()),
                Ok(count) => {
                    write_nonzero(to, at, &buffer[..count])?;
                    at += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        rest.start = data.end;
    }
    Ok(())
}

/// What tests want to know of a file.
#[cfg(test)]
pub mod testing {
    use std::fs::File;
    use std::os::unix::fs::{FileExt, MetadataExt};

    pub fn content(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    /// Bytes that it takes on its disk.
    pub fn allocated(file: &File) -> u64 {
        file.metadata().unwrap().blocks() * 512
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{allocated, content};

    use super::*;

    const MIB: u64 = 1 << 20;

    fn sparse_file(len: u64, parts: &[(u64, &[u8])]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        for (offset, bytes) in parts {
            file.write_all_at(bytes, *offset).unwrap();
        }
        file
    }

    #[test]
    fn data_of_a_sparse_file_is_found_and_its_holes_are_not() {
        let file = sparse_file(64 * MIB, &[(MIB, &[1; 4096]), (9 * MIB, &[2; 8192])]);
        let first = next_data(&file, 0..64 * MIB).unwrap().unwrap();
        assert_eq!(first, MIB..MIB + 4096);
        let second = next_data(&file, first.end..64 * MIB).unwrap().unwrap();
        assert_eq!(second, 9 * MIB..9 * MIB + 8192);
        assert_eq!(next_data(&file, second.end..64 * MIB).unwrap(), None);
    }

    #[test]
    fn data_is_cut_to_what_was_asked_for() {
        let file = sparse_file(MIB, &[(0, &[1; 65536])]);
        assert_eq!(next_data(&file, 5..100).unwrap(), Some(5..100));
        assert_eq!(next_data(&file, 100..100).unwrap(), None);
        assert_eq!(next_data(&file, 2 * MIB..3 * MIB).unwrap(), None);
    }

    #[test]
    fn zero_pages_are_not_written_wherever_they_are() {
        let mut bytes = vec![0; 10 * GRAIN];
        for page in [0, 3, 4, 9] {
            bytes[page * GRAIN + 17] = 1;
        }
        let file = sparse_file(10 * GRAIN as u64, &[]);
        write_nonzero(&file, 0, &bytes).unwrap();
        assert_eq!(content(&file), bytes);
        assert_eq!(allocated(&file), 4 * GRAIN as u64);
    }

    #[test]
    fn pages_are_those_of_the_file_whatever_the_offset() {
        let mut bytes = vec![0; 3 * GRAIN];
        bytes[0] = 1;
        let file = sparse_file(5 * GRAIN as u64, &[]);
        write_nonzero(&file, GRAIN as u64 - 1, &bytes).unwrap();
        assert_eq!(content(&file)[GRAIN - 1], 1);
        assert_eq!(allocated(&file), GRAIN as u64);
    }

    #[test]
    fn copy_is_equal_and_has_no_more_than_the_data() {
        let mut mixed = vec![0; 3 * CHUNK + 100];
        mixed[0] = 1;
        mixed[CHUNK] = 2;
        mixed[3 * CHUNK + 99] = 3;
        let from = sparse_file(64 * MIB + 123, &[(5 * MIB, &mixed), (64 * MIB + 122, &[9])]);
        let to = sparse_file(64 * MIB + 123, &[]);
        copy(&from, &to, 0..64 * MIB + 123).unwrap();
        assert!(content(&to) == content(&from));
        assert_eq!(allocated(&to), 4 * GRAIN as u64);
    }

    #[test]
    fn cleared_file_has_nothing_of_what_it_was() {
        let file = sparse_file(100, &[(0, &[7; 100])]);
        clear(&file, MIB).unwrap();
        assert_eq!(content(&file), vec![0; 1 << 20]);
        assert_eq!(allocated(&file), 0);
    }

    #[test]
    fn copy_of_a_range_leaves_the_rest_alone() {
        let from = sparse_file(MIB, &[(0, &[1; 65536])]);
        let to = sparse_file(MIB, &[]);
        copy(&from, &to, 100..200).unwrap();
        let mut expected = [vec![0; 100], vec![1; 100]].concat();
        expected.resize(1 << 20, 0);
        assert!(content(&to) == expected);
    }

    #[test]
    fn copy_beyond_the_end_of_the_source_is_zeros() {
        let from = sparse_file(100, &[(0, &[7; 100])]);
        let to = sparse_file(MIB, &[]);
        copy(&from, &to, 0..MIB).unwrap();
        assert_eq!(content(&to)[..101], [vec![7; 100], vec![0]].concat());
    }
}
