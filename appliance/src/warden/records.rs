//! What the warden writes down about each process that it starts, for the warden that comes after it.
//!
//! One small file per worker and one for the appliance, in a folder that only the warden may enter. Nothing of it outlives a boot of
//! the host, so nothing is flushed to the disk. A file is always written in one piece and of one size, over what was there: a warden
//! that is killed leaves the old text or the new one.

use std::fs::{DirBuilder, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::proof::{self, Identity};
use crate::worker::spec::WorkerSpec;

/// Of the text. What another version has written is nobody's.
const VERSION: u32 = 1;
/// Every file is so long; the rest of the text is spaces. Twice of what the longest record takes.
const FILE_BYTES: usize = 1024;
const EXTENSION: &str = "json";
const APPLIANCE: &str = "appliance";
/// For opening a file: what is a link is nobody's record.
const NO_LINK: i32 = OFlags::NOFOLLOW.bits().cast_signed();

/// One process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Record {
    version: u32,
    pub identity: Identity,
    pub subject: Subject,
}

/// What a process is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "role",
    rename_all = "camelCase",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum Subject {
    Appliance,
    Worker {
        id: Uuid,
        /// Of a worker that has or may have a guest.
        spec: Option<WorkerSpec>,
        cpu_limited: bool,
    },
}

impl Subject {
    pub fn spare(id: Uuid) -> Self {
        Self::Worker {
            id,
            spec: None,
            cpu_limited: false,
        }
    }

    fn file_name(&self) -> String {
        let stem = match self {
            Self::Appliance => APPLIANCE.to_owned(),
            Self::Worker { id, .. } => id.simple().to_string(),
        };
        format!("{stem}.{EXTENSION}")
    }
}

/// The folder.
#[derive(Debug)]
pub struct Records {
    folder: PathBuf,
    boot: String,
}

/// The file of a process that runs, or ran. It stays when this is dropped.
#[derive(Debug)]
pub struct Entry {
    file: File,
    path: PathBuf,
    record: Record,
}

impl Records {
    /// Makes the folder if it is not there.
    pub fn open(folder: &Path) -> io::Result<Self> {
        match DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        // Nobody but us may have put it there, and no link is followed.
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(folder, flags, Mode::empty())?;
        let owner = rustix::fs::fstat(&opened)?.st_uid;
        if owner != rustix::process::geteuid().as_raw() {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("{} belongs to uid {owner}", folder.display()),
            ));
        }
        rustix::fs::fchmod(&opened, Mode::RWXU)?;
        Ok(Self {
            folder: folder.to_owned(),
            boot: proof::boot()?,
        })
    }

    /// The boot of the host that processes of this warden belong to.
    pub fn boot(&self) -> &str {
        &self.boot
    }

    /// `uid`: what the process becomes.
    pub fn write(&self, subject: Subject, pid: u32, uid: Option<u32>) -> io::Result<Entry> {
        let path = self.folder.join(subject.file_name());
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(NO_LINK)
            .open(&path)?;
        let record = Record {
            version: VERSION,
            identity: Identity {
                boot: self.boot.clone(),
                pid,
                start_time: proof::start_time(pid)?,
                uid: uid.unwrap_or_else(|| rustix::process::geteuid().as_raw()),
            },
            subject,
        };
        let entry = Entry { file, path, record };
        match entry.save() {
            Ok(()) => Ok(entry),
            Err(error) => {
                entry.remove();
                Err(error)
            }
        }
    }

    /// All that earlier wardens have left. What cannot be read is removed: nobody is proved by it.
    pub fn left(&self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for file in std::fs::read_dir(&self.folder)? {
            let path = file?.path();
            match read(&path) {
                Ok(entry) => entries.push(entry),
                Err(error) => {
                    tracing::warn!("Cannot use {}, which is removed: {error}", path.display());
                    let _ = std::fs::remove_file(&path);
                }
            }
        }
        Ok(entries)
    }
}

fn read(path: &Path) -> io::Result<Entry> {
    let mut options = File::options();
    let file = options.read(true).write(true).custom_flags(NO_LINK);
    let file = file.open(path)?;
    let mut text = Vec::new();
    (&file).take(FILE_BYTES as u64).read_to_end(&mut text)?;
    let record: Record = serde_json::from_slice(&text)?;
    let named = path.file_name().and_then(|name| name.to_str());
    if record.version != VERSION || named != Some(&record.subject.file_name()) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(Entry {
        file,
        path: path.to_owned(),
        record,
    })
}

impl Entry {
    pub fn identity(&self) -> &Identity {
        &self.record.identity
    }

    pub fn subject(&self) -> &Subject {
        &self.record.subject
    }

    /// The worker has room for a guest of this shape.
    pub fn shaped(&mut self, shape: &WorkerSpec) -> io::Result<()> {
        if let Subject::Worker { spec, .. } = &mut self.record.subject {
            *spec = Some(shape.clone());
        }
        self.save()
    }

    /// The worker has its share of CPU and no more.
    pub fn limited(&mut self) -> io::Result<()> {
        if let Subject::Worker { cpu_limited, .. } = &mut self.record.subject {
            *cpu_limited = true;
        }
        self.save()
    }

    pub fn remove(self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!("Cannot remove {}: {error}", self.path.display());
        }
    }

    fn save(&self) -> io::Result<()> {
        let mut text = serde_json::to_vec(&self.record)?;
        if text.len() > FILE_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        text.resize(FILE_BYTES, b' ');
        self.file.write_all_at(&text, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    const SPEC: WorkerSpec = WorkerSpec {
        vcpus: 32,
        cpu_millis: 32_000,
        mem_mib: u32::MAX,
        limits: crate::worker::spec::RateLimits::NONE,
    };

    fn records() -> (tempfile::TempDir, Records) {
        let state = tempfile::tempdir().unwrap();
        let records = Records::open(&state.path().join("warden")).unwrap();
        (state, records)
    }

    fn written(records: &Records) -> Vec<Record> {
        let entries = records.left().unwrap();
        entries.into_iter().map(|entry| entry.record).collect()
    }

    #[test]
    fn record_is_read_back_as_it_was_written_at_every_step_of_its_life() {
        let (_state, records) = records();
        let id = Uuid::new_v4();
        let own = std::process::id();
        let mut entry = records.write(Subject::spare(id), own, Some(7)).unwrap();
        assert_eq!(written(&records), [entry.record.clone()]);
        assert_eq!(entry.identity().uid, 7);
        entry.shaped(&SPEC).unwrap();
        assert_eq!(written(&records), [entry.record.clone()]);
        entry.limited().unwrap();
        let limited = Subject::Worker {
            id,
            spec: Some(SPEC),
            cpu_limited: true,
        };
        assert_eq!(*entry.subject(), limited);
        assert_eq!(written(&records), [entry.record.clone()]);
        records.write(Subject::Appliance, own, None).unwrap();
        assert_eq!(written(&records).len(), 2);
        entry.remove();
        assert_eq!(written(&records)[0].subject, Subject::Appliance);
    }

    #[test]
    fn longest_record_leaves_room_in_its_file() {
        let (_state, records) = records();
        let mut entry = records
            .write(Subject::spare(Uuid::new_v4()), std::process::id(), None)
            .unwrap();
        entry.record.identity.start_time = u64::MAX;
        entry.record.identity.pid = u32::MAX;
        entry.record.identity.uid = u32::MAX;
        entry.shaped(&SPEC).unwrap();
        let text = std::fs::read_to_string(&entry.path).unwrap();
        assert!(text.trim_end().len() < FILE_BYTES / 2, "{text}");
    }

    #[test]
    fn damaged_record_counts_for_nothing_and_is_removed() {
        let (_state, records) = records();
        let id = Uuid::new_v4();
        let good = records
            .write(Subject::spare(id), std::process::id(), None)
            .unwrap();
        let text = std::fs::read_to_string(&good.path).unwrap();
        let name = format!("{}.json", Uuid::new_v4().simple());
        let cases = [
            ("empty.json".to_owned(), String::new()),
            ("cut.json".to_owned(), text[..40].to_owned()),
            ("zeros.json".to_owned(), "\0".repeat(FILE_BYTES)),
            // Of another worker than its name says.
            (name, text.clone()),
            (
                good.path.file_name().unwrap().to_str().unwrap().to_owned(),
                text.replace("\"version\":1", "\"version\":2"),
            ),
            ("more.json".to_owned(), text.replace('{', "{\"more\":1,")),
        ];
        for (name, text) in cases {
            let path = records.folder.join(&name);
            std::fs::write(&path, text).unwrap();
            assert!(
                !written(&records)
                    .iter()
                    .any(|record| record.version != VERSION)
            );
            assert!(!path.exists(), "{name} is still there");
        }
        assert_eq!(written(&records), []);
    }

    #[test]
    fn process_that_is_gone_has_no_record() {
        let (_state, records) = records();
        // Linux has no pid above 2^22.
        let error = records
            .write(Subject::Appliance, 1 << 23, None)
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn folder_is_private_even_if_it_was_made_otherwise() {
        let state = tempfile::tempdir().unwrap();
        let folder = state.path().join("warden");
        std::fs::create_dir(&folder).unwrap();
        std::fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
        Records::open(&folder).unwrap();
        let mode = std::fs::metadata(&folder).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o700);
    }

    #[test]
    fn cve_2026_1386_link_in_the_place_of_the_folder_or_of_a_record_is_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        let state = tempfile::tempdir().unwrap();
        let link = state.path().join("warden");
        symlink(outside.path(), &link).unwrap();
        Records::open(&link).unwrap_err();

        let precious = outside.path().join("precious");
        std::fs::write(&precious, "x").unwrap();
        let (folder, records) = records();
        symlink(&precious, folder.path().join("warden/appliance.json")).unwrap();
        let write = || records.write(Subject::Appliance, std::process::id(), None);
        write().unwrap_err();
        assert_eq!(records.left().unwrap().len(), 0);
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "x");
        // The link is removed with what could not be read.
        write().unwrap();
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "x");
    }
}
