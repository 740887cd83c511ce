//! Whether this host can run guests. `doctor` and `serve` ask here and say the same words.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use vmm::ProbeReport;

const DEVICE: &str = "/dev/kvm";
/// The only one there ever was since 2.6.22 (Documentation/virt/kvm/api.rst §4.1); `vmm` refuses others.
pub const API_VERSION: u32 = 12;

/// Why no guest can run here, with what to do about it.
#[derive(Debug)]
pub enum KvmError {
    Absent { path: PathBuf },
    Permission { path: PathBuf, uid: u32 },
    Open { path: PathBuf, why: io::Error },
    CannotRun { path: PathBuf, why: String },
}

/// Both in one line, which `serve` says.
impl fmt::Display for KvmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.cause(), self.remedy())
    }
}

impl std::error::Error for KvmError {}

impl KvmError {
    pub fn cause(&self) -> String {
        match self {
            Self::Absent { path } => format!("{} does not exist", path.display()),
            Self::Permission { path, uid } => {
                format!("uid {uid} may not open {}", path.display())
            }
            Self::Open { path, why } => format!("Cannot open {} ({why})", path.display()),
            Self::CannotRun { path, why } => {
                format!("{} opens but cannot run a guest: {why}", path.display())
            }
        }
    }

    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Absent { .. } => {
                "enable VT-x or AMD-V in the firmware (or nested virtualisation, when this is a virtual machine) and load kvm_intel or kvm_amd"
            }
            Self::Permission { .. } => {
                "add the user to the group kvm (`usermod -aG kvm NAME`, then log in again) or start as root"
            }
            Self::Open { .. } => {
                "see what the kernel's log says of kvm (`journalctl --dmesg --grep kvm`)"
            }
            Self::CannotRun { .. } => {
                "use a host whose CPU does the virtualisation, not one that emulates KVM in software"
            }
        }
    }
}

/// Opens `/dev/kvm` and proves that a guest runs on it.
pub fn open_usable() -> Result<File, KvmError> {
    let file = open(Path::new(DEVICE))?;
    probe(&file)?;
    Ok(file)
}

/// Digest of what guests are told of this CPU; the same on every core, and for as long as neither CPU,
/// firmware nor host kernel change.
pub fn cpu_digest(kvm: &File) -> Option<String> {
    match vmm::probe::cpu_description(kvm) {
        Ok(description) => Some(crate::golden::sha256(&description)),
        Err(error) => {
            tracing::warn!("Cannot describe this CPU: {}", crate::exit::chain(&error));
            None
        }
    }
}

pub fn check() -> Result<ProbeReport, KvmError> {
    probe(&open(Path::new(DEVICE))?)
}

fn open(path: &Path) -> Result<File, KvmError> {
    let path = path.to_owned();
    File::options()
        .read(true)
        .write(true)
        .open(&path)
        .map_err(|why| match why.kind() {
            io::ErrorKind::NotFound => KvmError::Absent { path },
            io::ErrorKind::PermissionDenied => KvmError::Permission {
                path,
                uid: rustix::process::geteuid().as_raw(),
            },
            // ENODEV and ENXIO: the node is there, the driver is not.
            _ if matches!(why.raw_os_error(), Some(6 | 19)) => KvmError::Absent { path },
            _ => KvmError::Open { path, why },
        })
}

fn probe(file: &File) -> Result<ProbeReport, KvmError> {
    vmm::probe(file).map_err(|error| KvmError::CannotRun {
        path: PathBuf::from(DEVICE),
        why: crate::exit::chain(&error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_device_and_missing_permission_have_different_remedies() {
        let folder = tempfile::tempdir().unwrap();
        let missing = open(&folder.path().join("kvm")).unwrap_err();
        assert!(
            matches!(&missing, KvmError::Absent { .. }) && missing.to_string().contains("firmware")
        );
        let denied = KvmError::Permission {
            path: DEVICE.into(),
            uid: 1000,
        }
        .to_string();
        assert!(denied.contains("usermod -aG kvm"), "{denied}");
    }

    #[test]
    fn device_that_is_no_kvm_cannot_run_a_guest() {
        let null = File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .unwrap();
        let error = probe(&null).unwrap_err();
        assert!(matches!(error, KvmError::CannotRun { .. }), "{error}");
    }
}
