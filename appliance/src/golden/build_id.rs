//! The GNU build id of the running binary: a digest that the linker made of what it linked.
//!
//! It is a note in a segment that is loaded (`man 5 elf`, "Notes"), so stripping keeps it. `build.rs`
//! asks the linker for it.

use std::fs::File;
use std::os::unix::fs::FileExt;

const SELF: &str = "/proc/self/exe";
const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
const PT_NOTE: u32 = 4;
const NT_GNU_BUILD_ID: u32 = 3;
/// A linker writes well below a hundred headers, and notes of a few hundred bytes.
const MAX_PROGRAM_HEADERS: u16 = 256;
const MAX_NOTE_BYTES: u64 = 64 << 10;

/// The id, unless this binary has none or cannot be read.
pub fn of_this_process() -> Option<Vec<u8>> {
    of_file(&File::open(SELF).ok()?)
}

/// The id of a 64-bit little-endian ELF file.
fn of_file(file: &File) -> Option<Vec<u8>> {
    let header = read(file, 0, HEADER_BYTES)?;
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = u64_at(&header, 32)?;
    let size = u16_at(&header, 54)?;
    let count = u16_at(&header, 56)?;
    if usize::from(size) != PROGRAM_HEADER_BYTES || count > MAX_PROGRAM_HEADERS {
        return None;
    }
    (0..u64::from(count)).find_map(|index| {
        let at = table.checked_add(index * u64::from(size))?;
        let program = read(file, at, PROGRAM_HEADER_BYTES)?;
        if u32_at(&program, 0)? != PT_NOTE {
            return None;
        }
        let (offset, length) = (u64_at(&program, 8)?, u64_at(&program, 32)?);
        let align = if u64_at(&program, 48)? == 8 { 8 } else { 4 };
        let length = usize::try_from(length.min(MAX_NOTE_BYTES)).ok()?;
        in_notes(&read(file, offset, length)?, align)
    })
}

/// Notes follow each other: name length, description length, type, name, description, each padded.
fn in_notes(mut notes: &[u8], align: usize) -> Option<Vec<u8>> {
    loop {
        let name_length = usize::try_from(u32_at(notes, 0)?).ok()?;
        let length = usize::try_from(u32_at(notes, 4)?).ok()?;
        let kind = u32_at(notes, 8)?;
        let name = notes.get(12..12usize.checked_add(name_length)?)?;
        let start = (12 + name_length).checked_next_multiple_of(align)?;
        let end = start.checked_add(length)?;
        let description = notes.get(start..end)?;
        if kind == NT_GNU_BUILD_ID && name == b"GNU\0" && !description.is_empty() {
            return Some(description.to_vec());
        }
        notes = notes.get(end.checked_next_multiple_of(align)?..)?;
    }
}

fn read(file: &File, offset: u64, length: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset).ok()?;
    Some(bytes)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn note(kind: u32, name: &[u8], description: &[u8], align: usize) -> Vec<u8> {
        let mut note = Vec::new();
        for word in [name.len(), description.len(), kind as usize] {
            note.extend(u32::try_from(word).unwrap().to_le_bytes());
        }
        for part in [name, description] {
            note.extend(part);
            note.resize(note.len().next_multiple_of(align), 0);
        }
        note
    }

    /// An ELF file with one segment of notes.
    fn elf(notes: &[u8], align: u64) -> File {
        let mut bytes = vec![0; HEADER_BYTES + PROGRAM_HEADER_BYTES];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[32..40].copy_from_slice(&64u64.to_le_bytes());
        bytes[54..56].copy_from_slice(&56u16.to_le_bytes());
        bytes[56..58].copy_from_slice(&1u16.to_le_bytes());
        bytes[64..68].copy_from_slice(&PT_NOTE.to_le_bytes());
        bytes[72..80].copy_from_slice(&120u64.to_le_bytes());
        bytes[96..104].copy_from_slice(&(notes.len() as u64).to_le_bytes());
        bytes[112..120].copy_from_slice(&align.to_le_bytes());
        bytes.extend(notes);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        file
    }

    #[test]
    fn id_is_found_among_other_notes_whatever_their_padding() {
        for align in [4, 8] {
            let notes = [
                note(1, b"GNU\0", b"abi", align),
                note(NT_GNU_BUILD_ID, b"other\0", b"xx", align),
                note(NT_GNU_BUILD_ID, b"GNU\0", b"\x01\x02\x03", align),
            ];
            let file = elf(&notes.concat(), align as u64);
            assert_eq!(of_file(&file).unwrap(), [1, 2, 3], "alignment {align}");
        }
    }

    #[test]
    fn binary_without_an_id_and_what_is_no_binary_have_none() {
        assert_eq!(of_file(&elf(&note(1, b"GNU\0", b"abi", 4), 4)), None);
        assert_eq!(of_file(&elf(&[], 4)), None);
        assert_eq!(of_file(&elf(&[0xff; 12], 4)), None);
        assert_eq!(of_file(&elf(&[0xff; 64], 8)), None);
        assert_eq!(of_file(&tempfile::tempfile().unwrap()), None);
    }
}
