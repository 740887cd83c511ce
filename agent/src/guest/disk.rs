//! The container's root: the image, read-only, below a writable disk that dies with the session.

use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use rustix::fs::{ext4_ioc_resize_fs, fstatvfs};
use rustix::mount::{MountFlags, mount, mount_remount};

use crate::attempt::{Attempt, SetupError};

/// Where the parts are mounted in the agent's own tree.
pub const IMAGE: &str = "/image";
pub const SCRATCH: &str = "/scratch";
pub const CONTAINER_ROOT: &str = "/container";

const IMAGE_DISK: &str = "/dev/vda";
const SCRATCH_DISK: &str = "/dev/vdb";
/// Directory of the scratch disk in sysfs.
const SCRATCH_SYSFS: &str = "/sys/class/block/vdb";
/// Unit of `size` in sysfs, whatever the disk's own.
const SECTOR_BYTES: u64 = 512;
/// Up to this size it is told of every inode table that it is zeroes: a request for each 128 MiB, 63 for a disk of 8 GiB, which move no
/// data and take some 20 µs each. A larger disk would be waited for.
const ZEROED_AT_ONCE: u64 = 64 << 30;
/// The layer that holds what the container changes, and overlayfs's own directory beside it.
const UPPER: &str = "/scratch/upper";
const WORK: &str = "/scratch/work";

/// Mounts both disks and the overlay of them.
pub fn mount_container_root() -> Result<(), SetupError> {
    mount(
        IMAGE_DISK,
        IMAGE,
        "squashfs",
        MountFlags::RDONLY | MountFlags::NODEV,
        None,
    )
    .attempt(|| format!("mount the image {IMAGE_DISK}"))?;
    mount_scratch()?;
    make_upper()?;
    // Without `volatile`, each fsync in the container would wait for the host's disk, to protect files that
    // nobody sees again if this guest ends. `redirect_dir` lets a directory of the image be
    // renamed, `xino` gives files of both layers distinct inode numbers.
    let options = format!(
        "lowerdir={IMAGE},upperdir={UPPER},workdir={WORK},volatile,redirect_dir=on,xino=on"
    );
    let options = CString::new(options).attempt(|| "write down the overlay's options".into())?;
    mount(
        "overlay",
        CONTAINER_ROOT,
        "overlay",
        MountFlags::empty(),
        options.as_c_str(),
    )
    .attempt(|| format!("mount the overlay on {CONTAINER_ROOT}"))
}

fn mount_scratch() -> Result<(), SetupError> {
    let bytes = scratch_bytes()?;
    // Nothing is to be done behind somebody's back: without either of these options the kernel starts a thread (`ext4lazyinit`) that ends
    // some seconds later, which is after the snapshot, so that each fork pays for it: 86 pages, and an eighth of the processor time of a
    // fork in a burst.
    let mut options = "no_prefetch_block_bitmaps".to_owned();
    let at_once = bytes <= ZEROED_AT_ONCE;
    if at_once {
        // The call that grows then says of each new inode table that it is zeroes (`REQ_OP_WRITE_ZEROES`).
        options += ",noinit_itable";
    }
    if can_discard() {
        options += ",discard";
    }
    let options = CString::new(options).attempt(|| "write down the disk's options".into())?;
    mount(
        SCRATCH_DISK,
        SCRATCH,
        "ext4",
        MountFlags::NODEV,
        options.as_c_str(),
    )
    .attempt(|| format!("mount the writable disk {SCRATCH_DISK}"))?;
    grow(bytes)?;
    if at_once {
        return Ok(());
    }
    // Nobody must ever write zeroes into inode tables that are zeroes already, since the disk is a sparse
    // file. `noinit_itable` keeps the kernel's background thread from it, but makes the call that
    // grows do it (fs/ext4/resize.c, ext4_setup_next_flex_gd), hence only now.
    mount_remount(SCRATCH, MountFlags::NODEV, c"noinit_itable")
        .attempt(|| format!("remount {SCRATCH_DISK} with noinit_itable"))
}

/// Whether deleted files give their space back to the host.
fn can_discard() -> bool {
    let limit = fs::read_to_string(format!("{SCRATCH_SYSFS}/queue/discard_max_bytes"));
    limit.is_ok_and(|limit| limit.trim() != "0")
}

fn scratch_bytes() -> Result<u64, SetupError> {
    let path = format!("{SCRATCH_SYSFS}/size");
    let read = || format!("read the size of {SCRATCH_DISK}");
    let sectors = fs::read_to_string(path).attempt(read)?;
    let sectors: u64 = sectors
        .trim()
        .parse()
        .map_err(std::io::Error::other)
        .attempt(read)?;
    Ok(sectors * SECTOR_BYTES)
}

/// Grows the file system to the disk: it is made small once, and copied for each session.
fn grow(bytes: u64) -> Result<(), SetupError> {
    let root = File::open(SCRATCH).attempt(|| format!("open {SCRATCH}"))?;
    let statistics = fstatvfs(&root).attempt(|| format!("look at {SCRATCH}"))?;
    let blocks = bytes / statistics.f_frsize.max(1);
    // Asking for the size that it has already does nothing.
    ext4_ioc_resize_fs(&root, blocks).attempt(|| format!("grow {SCRATCH_DISK} to {blocks} blocks"))
}

/// The container's root directory is the upper one, so that must look like the image's.
fn make_upper() -> Result<(), SetupError> {
    for directory in [UPPER, WORK] {
        fs::create_dir(directory).attempt(|| format!("make the directory {directory}"))?;
    }
    let image = fs::metadata(IMAGE).attempt(|| format!("look at {IMAGE}"))?;
    chown(UPPER, Some(image.uid()), Some(image.gid()))
        .and_then(|()| fs::set_permissions(UPPER, Permissions::from_mode(image.mode() & 0o7777)))
        .attempt(|| format!("give {UPPER} the owner and mode of the image's root"))
}
