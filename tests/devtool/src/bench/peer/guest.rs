//! What the peer's guest runs: a first process that says something for ever.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::cpio::Archive;

/// What it says. Nothing else that comes out of the peer's serial port or its log looks like it.
pub const MARK: u8 = b'~';

/// Between two marks. A guest that is resumed somewhere in between says the next one so much later at most.
const PAUSE_NS: u32 = 5_000_000;

const PAGE: u64 = 0x1000;
const ADDRESS: u64 = 0x40_0000;
const ELF_HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;

/// Writes the initramfs.
pub fn write_initramfs(path: &Path) -> Result<()> {
    let program = program();
    let mut archive = Archive::new(Vec::new());
    // The kernel opens it as the standard output of the first process.
    archive.character_device("/dev/console", 0o600, (5, 1))?;
    archive.file("init", 0o755, program.len() as u64, program.as_slice())?;
    let archive = archive.finish()?;
    fs::write(path, archive).with_context(|| format!("Cannot write {}", path.display()))
}

/// A whole ELF file: a loop of write(1, "~", 1) and nanosleep(2).
fn program() -> Vec<u8> {
    let code: [u8; 42] = [
        0xb8, 1, 0, 0, 0, // again: mov eax, 1 (write)
        0xbf, 1, 0, 0, 0, // mov edi, 1
        0x48, 0x8d, 0x35, 25, 0, 0, 0, // lea rsi, [rip + mark]
        0xba, 1, 0, 0, 0, // mov edx, 1
        0x0f, 0x05, // syscall
        0xb8, 35, 0, 0, 0, // mov eax, 35 (nanosleep)
        0x48, 0x8d, 0x3d, 12, 0, 0, 0, // lea rdi, [rip + pause]
        0x31, 0xf6, // xor esi, esi
        0x0f, 0x05, // syscall
        0xeb, 0xd6, // jmp again
    ];
    let entry = ADDRESS + (ELF_HEADER + PROGRAM_HEADER) as u64;
    let mut file = vec![0; ELF_HEADER + PROGRAM_HEADER];
    file.extend_from_slice(&code);
    // mark, and padding up to the pause: seconds and nanoseconds of eight bytes each.
    file.extend_from_slice(&[MARK, 0, 0, 0, 0, 0]);
    file.extend_from_slice(&0_u64.to_le_bytes());
    file.extend_from_slice(&u64::from(PAUSE_NS).to_le_bytes());
    let length = file.len() as u64;
    let mut put = |at: usize, value: &[u8]| {
        if let Some(place) = file.get_mut(at..at + value.len()) {
            place.copy_from_slice(value);
        }
    };
    // System V ABI, "ELF Header" and "Program Header": 64-bit, little endian, executable, x86-64; one segment, the whole file.
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[2, 0, 62, 0, 1]);
    put(24, &entry.to_le_bytes());
    put(32, &(ELF_HEADER as u64).to_le_bytes());
    put(52, &[64, 0, 56, 0, 1, 0]);
    put(ELF_HEADER, &[1, 0, 0, 0, 5]);
    put(ELF_HEADER + 16, &ADDRESS.to_le_bytes());
    put(ELF_HEADER + 24, &ADDRESS.to_le_bytes());
    put(ELF_HEADER + 32, &length.to_le_bytes());
    put(ELF_HEADER + 40, &length.to_le_bytes());
    put(ELF_HEADER + 48, &PAGE.to_le_bytes());
    file
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn program_says_its_mark_again_and_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("init");
        fs::write(&path, program()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let mut child = Command::new(&path).stdout(Stdio::piped()).spawn().unwrap();
        let mut marks = [0; 3];
        let mut output = child.stdout.take().unwrap();
        let read = output.read_exact(&mut marks);
        child.kill().unwrap();
        child.wait().unwrap();
        read.unwrap();
        assert_eq!(marks, [MARK; 3]);
    }
}
