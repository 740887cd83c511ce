//! What appliance and warden say to each other, and the warden's judgement of it.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::FileType;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::channel::{MAX_FDS, Message};
use crate::config::Checked;
use crate::worker::spec::{WorkerFd, WorkerSpec};

/// The longest report of a child that is passed on.
pub const MAX_REPORT_BYTES: usize = 4 << 10;

/// The warden's first message to the appliance process. The socket of the front door comes with [`Task::Serve`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApplianceSetup {
    pub config: Checked,
    /// The user and group to become; absent when the warden is not root.
    pub uid: Option<u32>,
    pub task: Task,
}

/// What the appliance process is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Task {
    Serve,
    /// Boot this many guests one after the other and print how long each took.
    BenchColdBoot {
        count: u32,
        json: bool,
    },
}

/// From the appliance.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "camelCase", deny_unknown_fields)]
pub enum Request {
    /// With the descriptors of [`WorkerFd::FROM_APPLIANCE`].
    SpawnWorker { id: Uuid, spec: WorkerSpec },
    /// From now on the worker gets its share of CPU and no more. Until then it boots at full speed.
    LimitCpu { id: Uuid },
    /// A worker or an image worker.
    Kill { id: Uuid },
    /// The last descriptor takes the report.
    SpawnImageWorker { id: Uuid, job: String },
}

/// To the appliance, after [`ApplianceSetup`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "camelCase")]
pub enum Event {
    Spawned {
        id: Uuid,
    },
    SpawnFailed {
        id: Uuid,
        message: String,
    },
    /// Always the last about this id: the process is reaped and its cgroup is gone.
    Exited {
        id: Uuid,
        status: Status,
        report: Option<String>,
    },
    /// End all sessions in order, then exit.
    Stop,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Status {
    Code(i32),
    Signal(i32),
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit status {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// Why a request is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refused {
    /// Nobody can be answered: the appliance is broken or hostile and is stopped.
    #[error("A message of {length} bytes is not a request")]
    NotARequest { length: usize },
    #[error("The id is in use")]
    IdInUse,
    #[error("There are {limit} processes, which is the limit")]
    TooMany { limit: usize },
    #[error("The request came with {found} descriptors and needs {expected}")]
    Descriptors { expected: usize, found: usize },
    #[error("The descriptor for {what} is of the wrong kind")]
    Kind { what: String },
    #[error("{0}")]
    Spec(String),
}

impl Request {
    pub fn parse(message: &Message) -> Result<Self, Refused> {
        serde_json::from_slice(&message.bytes).map_err(|_| Refused::NotARequest {
            length: message.bytes.len(),
        })
    }

    /// Whether the request with these descriptors may be carried out at all.
    pub fn check(&self, fds: &[OwnedFd]) -> Result<(), Refused> {
        match self {
            Self::SpawnWorker { spec, .. } => {
                let roles = WorkerFd::FROM_APPLIANCE;
                expect(roles.len(), fds)?;
                roles
                    .iter()
                    .zip(fds)
                    .try_for_each(|(role, fd)| check_kind(*role, fd))?;
                spec.objection()
                    .map_or(Ok(()), |objection| Err(Refused::Spec(objection)))
            }
            Self::LimitCpu { .. } | Self::Kill { .. } => expect(0, fds),
            Self::SpawnImageWorker { .. } if fds.is_empty() || fds.len() > MAX_FDS => {
                Err(Refused::Descriptors {
                    expected: MAX_FDS,
                    found: fds.len(),
                })
            }
            Self::SpawnImageWorker { .. } => Ok(()),
        }
    }
}

fn expect(expected: usize, fds: &[OwnedFd]) -> Result<(), Refused> {
    if fds.len() == expected {
        Ok(())
    } else {
        Err(Refused::Descriptors {
            expected,
            found: fds.len(),
        })
    }
}

/// A folder or a device in the place of a file would give a worker more than it should hold.
fn check_kind(role: WorkerFd, fd: &OwnedFd) -> Result<(), Refused> {
    let wanted = match role {
        WorkerFd::Vsock => FileType::Socket,
        WorkerFd::Kvm => FileType::CharacterDevice,
        WorkerFd::Kernel
        | WorkerFd::Initramfs
        | WorkerFd::RootImage
        | WorkerFd::Scratch
        | WorkerFd::Console => FileType::RegularFile,
    };
    match rustix::fs::fstat(fd.as_fd()) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == wanted => Ok(()),
        _ => Err(Refused::Kind {
            what: format!("{role:?}"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file() -> OwnedFd {
        tempfile::tempfile().unwrap().into()
    }

    fn socket() -> OwnedFd {
        crate::warden::channel::pair().unwrap().0
    }

    fn spawn() -> Request {
        let spec = WorkerSpec {
            vcpus: 1,
            cpu_millis: 250,
            mem_mib: 128,
        };
        Request::SpawnWorker {
            id: Uuid::nil(),
            spec,
        }
    }

    fn message(text: &str) -> Message {
        Message {
            bytes: text.as_bytes().to_vec(),
            fds: Vec::new(),
        }
    }

    #[test]
    fn request_written_and_read_back_is_the_same() {
        let text = serde_json::to_string(&spawn()).unwrap();
        assert_eq!(Request::parse(&message(&text)).unwrap(), spawn());
    }

    #[test]
    fn worker_with_the_right_descriptors_is_accepted() {
        let fds = [file(), file(), file(), file(), socket(), file()];
        assert_eq!(spawn().check(&fds), Ok(()));
    }

    #[test]
    fn worker_with_missing_surplus_or_wrong_descriptors_is_refused() {
        let folder = || OwnedFd::from(std::fs::File::open("/").unwrap());
        let cases = [
            vec![],
            vec![file(), file(), file(), file(), socket()],
            vec![file(), file(), file(), file(), socket(), file(), file()],
            vec![file(), file(), file(), file(), file(), file()],
            vec![folder(), file(), file(), file(), socket(), file()],
            vec![file(), file(), file(), file(), socket(), socket()],
        ];
        for fds in cases {
            assert!(spawn().check(&fds).is_err(), "{fds:?}");
        }
    }

    #[test]
    fn request_that_takes_no_descriptor_is_refused_with_one() {
        let kill = Request::Kill { id: Uuid::nil() };
        assert_eq!(kill.check(&[]), Ok(()));
        assert!(matches!(
            kill.check(&[file()]),
            Err(Refused::Descriptors { .. })
        ));
    }

    #[test]
    fn worker_of_an_impossible_shape_is_refused() {
        let spec = WorkerSpec {
            vcpus: 0,
            cpu_millis: 250,
            mem_mib: 128,
        };
        let fds = [file(), file(), file(), file(), socket(), file()];
        let request = Request::SpawnWorker {
            id: Uuid::nil(),
            spec,
        };
        assert!(matches!(request.check(&fds), Err(Refused::Spec(_))));
    }

    #[test]
    fn unknown_request_or_field_is_not_a_request() {
        let id = Uuid::nil();
        for text in [
            "{}".to_owned(),
            "null".to_owned(),
            format!(r#"{{"request":"exec","id":"{id}"}}"#),
            format!(r#"{{"request":"kill","id":"{id}","signal":9}}"#),
            r#"{"request":"kill","id":"1"}"#.to_owned(),
        ] {
            assert!(Request::parse(&message(&text)).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = Request::parse(&Message { bytes, fds: Vec::new() });
        }
    }
}
