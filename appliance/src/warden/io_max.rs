//! What the kernel lets a worker do with the disk that sessions' disks are on, for pools that limit that.
//!
//! The worker's own devices keep to the limits (`vmm`, `devices::rate`), and they are what callers notice. This is for a worker that has been
//! taken over and keeps to nothing: `io.max` (Documentation/admin-guide/cgroup-v2.rst, "IO Interface Files").

use std::fs;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use rustix::fs::{major, minor};

use crate::worker::spec::RateLimits;

/// Where the kernel describes each block device under its numbers.
const DEVICES: &str = "/sys/dev/block";
/// Of file systems that are on no device (tmpfs, overlay), or on several (btrfs).
const NO_DEVICE: u32 = 0;

/// A whole disk, by its numbers as the kernel writes them (`8:0`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk(String);

impl Disk {
    /// The one that a folder's file system is on. `None`: there is not one, and the kernel cannot limit it.
    pub fn under(folder: &Path) -> Option<Self> {
        let device = rustix::fs::stat(folder).ok()?.st_dev;
        let (major, minor) = (major(device), minor(device));
        (major != NO_DEVICE)
            .then(|| Self::whole(Path::new(DEVICES), &format!("{major}:{minor}")))?
    }

    /// Limits hold for whole disks, and the kernel refuses partitions (`blkg_conf_open_bdev` in block/blk-cgroup.c).
    fn whole(devices: &Path, numbers: &str) -> Option<Self> {
        let device = devices.join(numbers).canonicalize().ok()?;
        let disk: PathBuf = match device.join("partition").exists() {
            true => device.parent()?.to_owned(),
            false => device,
        };
        let numbers = fs::read_to_string(disk.join("dev")).ok()?;
        Some(Self(numbers.trim().to_owned()))
    }

    /// A line for `io.max`; `None` when nothing is limited. Reads and writes have a limit each there, and are one in ours.
    pub fn limited_to(&self, limits: &RateLimits) -> Option<String> {
        let RateLimits {
            disk_bytes_per_second: bytes,
            disk_iops: operations,
            ..
        } = limits;
        if bytes.is_none() && operations.is_none() {
            return None;
        }
        let value =
            |limit: &Option<NonZeroU64>| limit.map_or("max".to_owned(), |it| it.to_string());
        let (bytes, operations) = (value(bytes), value(operations));
        let Self(disk) = self;
        Some(format!(
            "{disk} rbps={bytes} wbps={bytes} riops={operations} wiops={operations}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder like the kernel's: a disk with a partition, and the links to both.
    fn devices() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let partition = root.path().join("devices/sda/sda1");
        fs::create_dir_all(&partition).unwrap();
        fs::create_dir(root.path().join("block")).unwrap();
        fs::write(root.path().join("devices/sda/dev"), "8:0\n").unwrap();
        fs::write(partition.join("dev"), "8:1\n").unwrap();
        fs::write(partition.join("partition"), "1\n").unwrap();
        for (numbers, device) in [("8:0", "sda"), ("8:1", "sda/sda1")] {
            let link = root.path().join("block").join(numbers);
            std::os::unix::fs::symlink(format!("../devices/{device}"), link).unwrap();
        }
        root
    }

    #[test]
    fn partition_is_limited_by_its_disk() {
        let root = devices();
        let devices = root.path().join("block");
        for numbers in ["8:0", "8:1"] {
            let disk = Disk::whole(&devices, numbers);
            assert_eq!(disk, Some(Disk("8:0".to_owned())), "{numbers}");
        }
        assert_eq!(Disk::whole(&devices, "8:2"), None);
    }

    #[test]
    fn file_system_without_a_device_has_no_disk() {
        assert_eq!(Disk::under(Path::new("/proc")), None);
        assert_eq!(Disk::under(Path::new("/is not there")), None);
    }

    #[test]
    fn only_what_a_pool_limits_is_limited() {
        let disk = Disk("8:0".to_owned());
        let limits = |bytes, operations| RateLimits {
            disk_bytes_per_second: NonZeroU64::new(bytes),
            disk_iops: NonZeroU64::new(operations),
            stream_bytes_per_second: NonZeroU64::new(5),
        };
        let line = |bytes, operations| disk.limited_to(&limits(bytes, operations));
        assert_eq!(line(0, 0), None);
        assert_eq!(
            line(1000, 0).unwrap(),
            "8:0 rbps=1000 wbps=1000 riops=max wiops=max"
        );
        assert_eq!(
            line(1000, 20).unwrap(),
            "8:0 rbps=1000 wbps=1000 riops=20 wiops=20"
        );
    }
}
