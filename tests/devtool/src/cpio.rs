//! Writes `newc` archives, the format of an initramfs: fixed owners, times and inode numbers, so that the same members give the same bytes.
//!
//! Format: Linux, `Documentation/driver-api/early-userspace/buffer-format.rst`.

use std::collections::BTreeSet;
use std::io::{Read, Write};

use anyhow::{Context as _, Result, bail};

const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

/// Everything is padded to this.
const ALIGNMENT: u64 = 4;

pub struct Archive<W: Write> {
    out: W,
    next_inode: u32,
    folders: BTreeSet<String>,
}

struct Member<'a> {
    path: &'a str,
    mode: u32,
    size: u64,
    device: (u32, u32),
}

impl<W: Write> Archive<W> {
    pub fn new(out: W) -> Self {
        Self {
            out,
            next_inode: 1,
            folders: BTreeSet::new(),
        }
    }

    /// Adds a folder and those above it, once.
    pub fn folder(&mut self, path: &str, mode: u32) -> Result<()> {
        let path = path.trim_matches('/');
        if path.is_empty() || self.folders.contains(path) {
            return Ok(());
        }
        self.parents(path)?;
        self.folders.insert(path.to_owned());
        self.header(&Member {
            path,
            mode: DIRECTORY | mode,
            size: 0,
            device: (0, 0),
        })
    }

    /// Adds a file of exactly `size` bytes.
    pub fn file(&mut self, path: &str, mode: u32, size: u64, content: impl Read) -> Result<()> {
        let path = path.trim_matches('/');
        self.parents(path)?;
        self.header(&Member {
            path,
            mode: REGULAR | mode,
            size,
            device: (0, 0),
        })?;
        let copied = std::io::copy(&mut content.take(size), &mut self.out)
            .context("Cannot write the archive")?;
        if copied != size {
            bail!("{path} ended after {copied} of {size} bytes");
        }
        self.pad(size)
    }

    pub fn symlink(&mut self, path: &str, target: &str) -> Result<()> {
        let path = path.trim_matches('/');
        self.parents(path)?;
        let size = target.len() as u64;
        self.header(&Member {
            path,
            mode: SYMLINK | 0o777,
            size,
            device: (0, 0),
        })?;
        self.out
            .write_all(target.as_bytes())
            .context("Cannot write the archive")?;
        self.pad(size)
    }

    pub fn character_device(&mut self, path: &str, mode: u32, device: (u32, u32)) -> Result<()> {
        let path = path.trim_matches('/');
        self.parents(path)?;
        self.header(&Member {
            path,
            mode: CHARACTER | mode,
            size: 0,
            device,
        })
    }

    /// Writes the end mark and gives the writer back.
    pub fn finish(mut self) -> Result<W> {
        self.next_inode = 0;
        self.header(&Member {
            path: "TRAILER!!!",
            mode: 0,
            size: 0,
            device: (0, 0),
        })?;
        self.out.flush().context("Cannot write the archive")?;
        Ok(self.out)
    }

    fn parents(&mut self, path: &str) -> Result<()> {
        match path.rsplit_once('/') {
            Some((parent, _)) => self.folder(parent, 0o755),
            None => Ok(()),
        }
    }

    fn header(&mut self, member: &Member) -> Result<()> {
        let size = u32::try_from(member.size)
            .with_context(|| format!("{} is larger than a newc archive can hold", member.path))?;
        let name_size = u32::try_from(member.path.len() + 1).context("A path is too long")?;
        let links = if member.mode & DIRECTORY == DIRECTORY {
            2
        } else {
            1
        };
        let (major, minor) = member.device;
        // Inode, mode, uid, gid, links, time, size, device of the file system (2), device (2), name length, check.
        let fields = [
            self.next_inode,
            member.mode,
            0,
            0,
            links,
            0,
            size,
            0,
            0,
            major,
            minor,
            name_size,
            0,
        ];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        header.push_str(member.path);
        header.push('\0');
        self.next_inode += 1;
        self.out
            .write_all(header.as_bytes())
            .context("Cannot write the archive")?;
        self.pad(header.len() as u64)
    }

    fn pad(&mut self, written: u64) -> Result<()> {
        let zeros = [0; 3];
        let missing = (ALIGNMENT - written % ALIGNMENT) % ALIGNMENT;
        self.out
            .write_all(zeros.get(..usize::try_from(missing)?).unwrap_or_default())
            .context("Cannot write the archive")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut archive = Archive::new(Vec::new());
        archive
            .character_device("/dev/console", 0o600, (5, 1))
            .unwrap();
        archive.file("init", 0o755, 5, &b"hello"[..]).unwrap();
        archive.symlink("bin/sh", "busybox").unwrap();
        archive.finish().unwrap()
    }

    #[test]
    fn archive_of_the_same_members_has_the_same_bytes() {
        assert_eq!(sample(), sample());
    }

    #[test]
    fn archive_holds_parents_before_members_and_ends_with_the_trailer() {
        let bytes = sample();
        let position = |name: &str| {
            let name = format!("{name}\0");
            bytes
                .windows(name.len())
                .position(|window| window == name.as_bytes())
                .expect("member is there")
        };
        assert!(position("dev") < position("dev/console"));
        assert!(position("bin") < position("bin/sh"));
        assert!(position("bin/sh") < position("TRAILER!!!"));
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn file_that_is_shorter_than_announced_is_an_error() {
        let mut archive = Archive::new(Vec::new());
        let error = archive
            .file("init", 0o755, 6, &b"hello"[..])
            .expect_err("five bytes are not six");
        assert!(error.to_string().contains("5 of 6"), "{error}");
    }
}
