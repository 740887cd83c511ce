//! What an earlier warden has left running: who of it is proved, and what becomes of it.

use std::io;
use std::time::Duration;

use super::records::{Entry, Records, Subject};
use super::spawn::Process;

/// How long a process may take to be gone once it is killed.
const KILLED_LIMIT: Duration = Duration::from_secs(5);

/// A worker with a guest that runs without a warden.
#[derive(Debug)]
pub struct Survivor {
    pub process: Process,
    pub entry: Entry,
}

/// What there was.
#[derive(Debug, Default)]
pub struct Left {
    pub workers: Vec<Survivor>,
    /// An appliance that may have had the port and the store, killed here or on its way out.
    pub appliance: bool,
}

/// Takes over the workers with a guest and ends everything else that is proved. What is not proved is not touched.
pub fn take_over(records: &Records) -> io::Result<Left> {
    let mut left = Left::default();
    let mut ending = Vec::new();
    for entry in records.left()? {
        let identity = entry.identity();
        left.appliance |= *entry.subject() == Subject::Appliance && identity.boot == records.boot();
        let Some(pidfd) = identity.prove(records.boot()) else {
            tracing::debug!(
                pid = identity.pid,
                "A process that was written down is gone"
            );
            entry.remove();
            continue;
        };
        let process = Process::found(identity.pid, pidfd);
        match entry.subject() {
            Subject::Worker { spec: Some(_), .. } => {
                left.workers.push(Survivor { process, entry });
            }
            // A spare ends by itself as well, but its user id is free only then.
            Subject::Worker { spec: None, .. } | Subject::Appliance => {
                process.kill();
                ending.push((process, entry));
            }
        }
    }
    for (mut process, entry) in ending {
        if process.ends_within(KILLED_LIMIT)? {
            entry.remove();
        } else {
            tracing::warn!(pid = process.id(), "It was killed, and is still there");
        }
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::warden::protocol::Status;
    use crate::worker::spec::WorkerSpec;
    use std::process::{Child, Command, Stdio};
    use uuid::Uuid;

    const SPEC: WorkerSpec = WorkerSpec {
        vcpus: 1,
        cpu_millis: 250,
        mem_mib: 128,
        limits: crate::worker::spec::RateLimits::NONE,
    };

    /// A process that runs until its input ends, which is when this is dropped.
    struct Cat(Child);

    impl Cat {
        fn start() -> Self {
            Self(
                Command::new("/bin/cat")
                    .stdin(Stdio::piped())
                    .spawn()
                    .unwrap(),
            )
        }

        fn runs(&mut self) -> bool {
            self.0.try_wait().unwrap().is_none()
        }
    }

    impl Drop for Cat {
        fn drop(&mut self) {
            drop(self.0.stdin.take());
            let _ = self.0.wait();
        }
    }

    struct Setting {
        state: tempfile::TempDir,
        records: Records,
    }

    impl Setting {
        fn new() -> Self {
            let state = tempfile::tempdir().unwrap();
            let records = Records::open(state.path()).unwrap();
            Self { state, records }
        }

        fn worker(&self, cat: &Cat, uid: Option<u32>) -> Entry {
            let subject = Subject::spare(Uuid::new_v4());
            let mut entry = self.records.write(subject, cat.0.id(), uid).unwrap();
            entry.shaped(&SPEC).unwrap();
            entry
        }

        fn files(&self) -> usize {
            std::fs::read_dir(self.state.path()).unwrap().count()
        }

        /// Changes what was written down.
        fn edit(&self, change: impl Fn(&str) -> String) {
            for file in std::fs::read_dir(self.state.path()).unwrap() {
                let path = file.unwrap().path();
                let text = std::fs::read_to_string(&path).unwrap();
                let changed = change(text.trim_end());
                assert_ne!(changed, text.trim_end());
                std::fs::write(path, changed).unwrap();
            }
        }
    }

    #[test]
    fn worker_with_a_guest_is_taken_over_and_keeps_its_record() {
        let setting = Setting::new();
        let mut cat = Cat::start();
        setting.worker(&cat, None);
        let left = take_over(&setting.records).unwrap();
        assert_eq!((left.workers.len(), left.appliance), (1, false));
        assert_eq!(left.workers[0].process.id(), cat.0.id());
        drop(left);
        assert!(cat.runs(), "it was ended");
        assert_eq!(setting.files(), 1);
    }

    #[test]
    fn spare_and_appliance_are_ended_and_forgotten() {
        let setting = Setting::new();
        let (mut spare, mut appliance) = (Cat::start(), Cat::start());
        let subject = Subject::spare(Uuid::new_v4());
        setting.records.write(subject, spare.0.id(), None).unwrap();
        setting
            .records
            .write(Subject::Appliance, appliance.0.id(), None)
            .unwrap();
        let left = take_over(&setting.records).unwrap();
        assert_eq!((left.workers.len(), left.appliance), (0, true));
        assert!(!spare.runs() && !appliance.runs());
        assert_eq!(setting.files(), 0);
    }

    /// The pid was used again: another process has it now, which must live on, whatever it is.
    #[test]
    fn process_with_a_recycled_pid_is_not_touched() {
        let mut stranger = Cat::start();
        let began = super::super::proof::start_time(stranger.0.id()).unwrap();
        let subjects = [Subject::spare(Uuid::new_v4()), Subject::Appliance];
        for subject in subjects {
            let setting = Setting::new();
            setting
                .records
                .write(subject, stranger.0.id(), None)
                .unwrap();
            let field = |time: u64| format!("\"startTime\":{time}");
            setting.edit(|text| text.replace(&field(began), &field(began - 1)));
            let left = take_over(&setting.records).unwrap();
            assert_eq!(left.workers.len(), 0);
            assert!(stranger.runs(), "a stranger was killed");
            assert_eq!(setting.files(), 0, "the record is still there");
        }
    }

    #[test]
    fn process_of_another_user_is_not_touched() {
        let setting = Setting::new();
        let mut stranger = Cat::start();
        let other = rustix::process::geteuid().as_raw() + 1;
        setting.worker(&stranger, Some(other));
        let left = take_over(&setting.records).unwrap();
        assert_eq!(left.workers.len(), 0);
        assert!(stranger.runs());
        assert_eq!(setting.files(), 0);
    }

    #[test]
    fn records_of_another_boot_count_for_nothing() {
        let setting = Setting::new();
        let mut stranger = Cat::start();
        setting.worker(&stranger, None);
        setting
            .records
            .write(Subject::Appliance, stranger.0.id(), None)
            .unwrap();
        let boot = setting.records.boot().to_owned();
        setting.edit(|text| text.replace(&boot, &Uuid::nil().to_string()));
        let left = take_over(&setting.records).unwrap();
        assert_eq!((left.workers.len(), left.appliance), (0, false));
        assert!(stranger.runs());
        assert_eq!(setting.files(), 0);
    }

    #[test]
    fn end_of_a_process_that_is_no_child_is_seen_and_has_no_status() {
        let mut cat = Cat::start();
        let pidfd = super::super::proof::open(cat.0.id()).unwrap();
        let mut process = Process::found(cat.0.id(), pidfd);
        assert_eq!(process.try_wait().unwrap(), None);
        drop(cat.0.stdin.take());
        process.wait().unwrap();
        assert_eq!(process.try_wait().unwrap(), Some(Status::Unknown));
    }
}
