//! The guest's first file system, from `initramfs/files.list`, and the empty file system of a session's writable layer.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::cache::{Cache, Key};
use crate::command;
use crate::cpio::Archive;
use crate::kernel::compress;
use crate::packages;
use crate::workspace::Workspace;

/// Size of the writable layer's template. The disk of a session is a copy of it, made longer, and the agent grows the file system.
const SCRATCH_SIZE: &str = "64M";
/// Random by default; fixed, so that the same build gives the same bytes. Sessions never see each other's disks.
const SCRATCH_UUID: &str = "cab0a5c7-0000-4000-8000-000000000001";
/// Written out, so that no configuration file of the build machine has a say. What is not here, and why:
/// - No journal: a session's disk does not outlive its session, so there is nothing to recover.
/// - `uninit_bg` instead of metadata checksums: new groups need no zeroing when the file system grows, and sums on a disk that lives
///   in the host's page cache protect against nothing.
/// - `meta_bg` instead of `resize_inode`: new group descriptors lie with their groups. In blocks that are reserved for them at the
///   start, growing would have to read and to zero the copies of all reserved blocks, one request after the other.
const SCRATCH_FEATURES: &str = "none,ext_attr,dir_index,filetype,extent,flex_bg,sparse_super,large_file,huge_file,\
    dir_nlink,extra_isize,uninit_bg,meta_bg";
/// One inode per 8 KiB of the template is one per 16 KiB once it has grown, since groups of a larger disk are twice as long.
const SCRATCH_BYTES_PER_INODE: &str = "8192";

/// A folder with `initramfs.cpio` and `initramfs.cpio.zst` that holds `agent`.
pub fn ensure(workspace: &Workspace, cache: &Cache, agent: &Path) -> Result<PathBuf> {
    let list = workspace.path("initramfs/files.list");
    let list =
        fs::read_to_string(&list).with_context(|| format!("Cannot read {}", list.display()))?;
    let key = Key::new("initramfs 1")
        .text("list", &list)
        .file("agent", agent)?;
    cache.entry("initramfs", key, |folder| {
        let archive = pack(&list, agent)?;
        let path = folder.join("initramfs.cpio");
        fs::write(&path, archive).with_context(|| format!("Cannot write {}", path.display()))?;
        compress(&path, &folder.join("initramfs.cpio.zst"))
    })
}

/// A folder with `scratch.ext4` and `scratch.ext4.zst`.
pub fn ensure_scratch(workspace: &Workspace, cache: &Cache) -> Result<PathBuf> {
    let key = [
        SCRATCH_SIZE,
        SCRATCH_UUID,
        SCRATCH_FEATURES,
        SCRATCH_BYTES_PER_INODE,
    ]
    .iter()
    .fold(
        Key::new("scratch 2").text("mke2fs", &packages::version("e2fsprogs")?),
        |key, option| key.text("option", option),
    );
    cache.entry("scratch", key, |folder| {
        let path = folder.join("scratch.ext4");
        // The template's own inode table is zeroed at once: a table that is not would start a thread in every guest that zeroes
        // this one and then all those that growing adds.
        let extended =
            format!("hash_seed={SCRATCH_UUID},lazy_itable_init=0,root_owner=0:0,nodiscard");
        let mut mke2fs = Command::new("mke2fs");
        // Times in the file system come from this variable.
        mke2fs
            .env("SOURCE_DATE_EPOCH", "1")
            .env("E2FSPROGS_FAKE_TIME", "1");
        mke2fs.args([
            "-q",
            "-F",
            "-t",
            "ext4",
            "-b",
            "4096",
            "-m",
            "0",
            "-I",
            "256",
            "-i",
            SCRATCH_BYTES_PER_INODE,
        ]);
        mke2fs
            .args(["-O", SCRATCH_FEATURES, "-U", SCRATCH_UUID, "-E", &extended])
            .arg(&path)
            .arg(SCRATCH_SIZE);
        command::logged(&mut mke2fs, &workspace.logs().join("scratch.log"), |_| {})?;
        compress(&path, &folder.join("scratch.ext4.zst"))
    })
}

fn pack(list: &str, agent: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::new(Vec::new());
    for line in list
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        let words: Vec<&str> = line.split_whitespace().collect();
        let wrong = || format!("initramfs/files.list: cannot read {line:?}");
        match words.as_slice() {
            ["dir", path, mode] => archive.folder(path, octal(mode).with_context(wrong)?)?,
            ["nod", path, mode, "c", major, minor] => {
                let device = (
                    major.parse().with_context(wrong)?,
                    minor.parse().with_context(wrong)?,
                );
                archive.character_device(path, octal(mode).with_context(wrong)?, device)?;
            }
            ["file", path, mode, "agent"] => {
                let content =
                    fs::read(agent).with_context(|| format!("Cannot read {}", agent.display()))?;
                archive.file(
                    path,
                    octal(mode).with_context(wrong)?,
                    content.len() as u64,
                    content.as_slice(),
                )?;
            }
            _ => bail!(wrong()),
        }
    }
    archive.finish()
}

fn octal(text: &str) -> Result<u32> {
    u32::from_str_radix(text, 8).with_context(|| format!("{text:?} is not an octal mode"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initramfs_holds_the_agent_as_init_and_a_console() {
        let folder = tempfile::tempdir().unwrap();
        let agent = folder.path().join("agent");
        fs::write(&agent, "the agent").unwrap();
        let list = fs::read_to_string(
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../initramfs/files.list"),
        )
        .unwrap();
        let archive = pack(&list, &agent).unwrap();
        let text = String::from_utf8_lossy(&archive);
        assert!(
            text.contains("init\0") && text.contains("the agent"),
            "{text}"
        );
        assert!(text.contains("dev/console\0"), "{text}");
    }

    #[test]
    fn line_that_is_no_member_is_refused() {
        assert!(pack("file /init 0755 something-else\n", Path::new("/absent")).is_err());
        assert!(pack("dir /dev rwx\n", Path::new("/absent")).is_err());
    }
}
