//! The guest that is inside this binary: kernel, initramfs and an empty writable file system.
//!
//! Each is unpacked once, into memory that is sealed afterwards, and every worker gets the same
//! descriptors: one copy per host, and no worker can change what the next one boots.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;
use vmm::boot::returns::{self, Returns};

static KERNEL: &[u8] = include_bytes!(concat!(env!("CABANA_GUEST_DIR"), "/vmlinux.zst"));
static INITRAMFS: &[u8] = include_bytes!(concat!(env!("CABANA_GUEST_DIR"), "/initramfs.cpio.zst"));
static SCRATCH: &[u8] = include_bytes!(concat!(env!("CABANA_GUEST_DIR"), "/scratch.ext4.zst"));

/// What is looked at for zeros at a time; the block size of the file system.
const BLOCK: usize = 4096;

/// Why the guest could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    #[error("Cannot unpack the embedded {what}")]
    Unpack {
        what: &'static str,
        source: io::Error,
    },
    #[error("Cannot make a disk in {folder}")]
    Disk { folder: String, source: io::Error },
    #[error("Cannot write to a new disk")]
    Fill { source: io::Error },
}

impl GuestError {
    pub fn fill(source: io::Error) -> Self {
        Self::Fill { source }
    }
}

/// The unpacked artefacts. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Guest {
    inner: Arc<Artefacts>,
}

#[derive(Debug)]
struct Artefacts {
    kernel: File,
    initramfs: File,
    /// Kept as it will be written: only its blocks that are not zero.
    scratch: Vec<(u64, Vec<u8>)>,
}

impl Guest {
    pub fn unpack() -> Result<Self, GuestError> {
        let kernel = seal(
            "kernel",
            &kernel_for_this_host().map_err(unpacking("kernel"))?[..],
        )
        .map_err(unpacking("kernel"))?;
        let initramfs = zstd::Decoder::new(INITRAMFS)
            .and_then(|unpacked| seal("initramfs", unpacked))
            .map_err(unpacking("initramfs"))?;
        let scratch = extents(zstd::Decoder::new(SCRATCH).map_err(unpacking("file system"))?)
            .map_err(unpacking("file system"))?;
        Ok(Self {
            inner: Arc::new(Artefacts {
                kernel,
                initramfs,
                scratch,
            }),
        })
    }

    /// Kernel, initramfs and file system as they are embedded, to be told from others.
    pub fn packed() -> [&'static [u8]; 3] {
        [KERNEL, INITRAMFS, SCRATCH]
    }

    pub fn kernel(&self) -> &File {
        &self.inner.kernel
    }

    pub fn initramfs(&self) -> &File {
        &self.inner.initramfs
    }

    /// Makes a disk of `bytes` of an empty file: with a file system on it that its guest lets grow.
    /// Blocks are only taken when they are written.
    pub fn format_disk(&self, disk: &File, bytes: u64) -> Result<(), GuestError> {
        for (offset, run) in &self.inner.scratch {
            disk.write_all_at(run, *offset).map_err(GuestError::fill)?;
        }
        disk.set_len(bytes).map_err(GuestError::fill)
    }
}

/// An empty file in `folder` for a guest's disk.
pub fn nameless_disk(folder: &Path) -> Result<File, GuestError> {
    nameless_file(folder).map_err(|source| GuestError::Disk {
        folder: folder.display().to_string(),
        source,
    })
}

/// An empty file in `folder`. It has no name, so it is gone with its last descriptor.
pub fn nameless_file(folder: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => Ok(File::from(file)),
        // Some file systems (NFS, older overlayfs) have no nameless files.
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => tempfile::tempfile_in(folder),
        Err(error) => Err(error.into()),
    }
}

fn unpacking(what: &'static str) -> impl Fn(io::Error) -> GuestError {
    move |source| GuestError::Unpack { what, source }
}

/// The kernel, with what it would otherwise do to its own code in every guest that boots here.
fn kernel_for_this_host() -> io::Result<Vec<u8>> {
    let mut kernel = zstd::decode_all(KERNEL)?;
    let returns = Returns::of_this_processor();
    let written = returns::write_ahead(&mut kernel, returns);
    tracing::debug!(?returns, written, "The kernel's returns are written ahead");
    Ok(kernel)
}

fn seal(name: &str, mut content: impl Read) -> io::Result<File> {
    let mut file = memory_file(name)?;
    io::copy(&mut content, &mut file)?;
    file.rewind()?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(file.as_fd(), seals)?;
    Ok(file)
}

/// A file in memory that nothing is ever executed from, and that can be sealed.
pub fn memory_file(name: &str) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = match rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        // Linux before 6.3 does not know the flag. With `vm.memfd_noexec = 2` there is no file without it
        // (Documentation/userspace-api/mfd_noexec.rst).
        Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags),
        made => made,
    };
    Ok(File::from(file?))
}

/// The runs of blocks that are not zero, with their offsets.
fn extents(mut image: impl Read) -> io::Result<Vec<(u64, Vec<u8>)>> {
    let mut runs: Vec<(u64, Vec<u8>)> = Vec::new();
    let mut offset = 0u64;
    let mut block = Vec::with_capacity(BLOCK);
    loop {
        block.clear();
        (&mut image).take(BLOCK as u64).read_to_end(&mut block)?;
        if block.is_empty() {
            return Ok(runs);
        }
        if block.iter().any(|byte| *byte != 0) {
            match runs.last_mut() {
                Some((start, run)) if *start + run.len() as u64 == offset => {
                    run.extend_from_slice(&block);
                }
                _ => runs.push((offset, block.clone())),
            }
        }
        offset += block.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn unpacked_kernel_cannot_be_changed_through_its_descriptor() {
        let guest = Guest::unpack().unwrap();
        let mut kernel = guest.kernel().try_clone().unwrap();
        kernel.write_all(b"x").unwrap_err();
        kernel.set_len(0).unwrap_err();
        assert!(kernel.metadata().unwrap().len() > 0);
    }

    #[test]
    fn zero_blocks_of_the_template_are_not_kept() {
        let mut image = vec![0; 5 * BLOCK + 7];
        image[BLOCK + 1] = 1;
        image[2 * BLOCK] = 2;
        image[5 * BLOCK + 6] = 3;
        let runs = extents(image.as_slice()).unwrap();
        let places: Vec<_> = runs
            .iter()
            .map(|(offset, run)| (*offset, run.len()))
            .collect();
        assert_eq!(places, [(BLOCK as u64, 2 * BLOCK), (5 * BLOCK as u64, 7)]);
        let mut again = vec![0; image.len()];
        for (offset, run) in runs {
            let start = usize::try_from(offset).unwrap();
            again[start..start + run.len()].copy_from_slice(&run);
        }
        assert_eq!(again, image);
    }

    #[test]
    fn disk_has_the_size_asked_for_takes_little_room_and_leaves_no_name() {
        let folder = tempfile::tempdir().unwrap();
        let guest = Guest::unpack().unwrap();
        for bytes in [1 << 30, 1 << 40] {
            let disk = nameless_disk(folder.path()).unwrap();
            assert_eq!(disk.metadata().unwrap().len(), 0);
            guest.format_disk(&disk, bytes).unwrap();
            let metadata = disk.metadata().unwrap();
            assert_eq!(metadata.len(), bytes);
            let taken = metadata.blocks() * 512;
            assert!((1..64 << 20).contains(&taken), "{taken} bytes");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
