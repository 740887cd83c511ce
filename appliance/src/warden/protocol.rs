//! What appliance and warden say to each other, and the warden's judgement of it.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::FileType;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::channel::{MAX_FDS, Message};
use crate::bench;
use crate::config::Checked;
use crate::worker::spec::{WorkerFd, WorkerSpec};

/// The warden's first message to the appliance process. The socket of the front door comes with [`Task::Serve`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApplianceSetup {
    pub config: Checked,
    /// The user and group to become; absent when the warden is not root.
    pub uid: Option<u32>,
    /// Whether it may ask the kernel only for what a process that faces the network needs (`network_filter`).
    pub confined: bool,
    /// Digest of what guests are told of this CPU, which only who opened `/dev/kvm` can know; absent when
    /// KVM does not say.
    pub cpu: Option<String>,
    pub task: Task,
}

/// What the appliance process is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Task {
    Serve,
    /// Measure this host and print what came out.
    Bench(bench::Plan),
}

/// From the appliance.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "camelCase", deny_unknown_fields)]
pub enum Request {
    /// With the descriptors of [`WorkerFd::FROM_APPLIANCE`]. The worker has room for itself, and
    /// none for a guest.
    SpawnWorker { id: Uuid },
    /// Gives a worker room for a guest of this shape, once.
    Shape { id: Uuid, spec: WorkerSpec },
    /// From now on the worker gets its share of CPU and no more. Until then it starts at full speed.
    LimitCpu { id: Uuid },
    /// How much memory the worker's process takes.
    Usage { id: Uuid },
    /// A worker or an image worker.
    Kill { id: Uuid },
    /// The last descriptor takes the report.
    SpawnImageWorker { id: Uuid, job: String },
    /// Takes a worker over that an earlier appliance had. From then on it is as if it had been spawned by this one.
    Adopt { id: Uuid },
    /// This appliance serves. Workers that were there before it and that it has not adopted end now.
    Settled,
    /// An operator asked for the end of everything: answered with [`Ending::Stop`].
    Stop,
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
    Shaped {
        id: Uuid,
    },
    ShapeFailed {
        id: Uuid,
        message: String,
    },
    Adopted {
        id: Uuid,
    },
    AdoptFailed {
        id: Uuid,
        message: String,
    },
    /// The answer to [`Request::Usage`]; empty when there is no such worker any more.
    Usage {
        id: Uuid,
        usage: Option<Usage>,
    },
    /// Always the last about this id: the process is reaped and its cgroup is gone.
    Exited {
        id: Uuid,
        status: Status,
        report: Option<String>,
    },
    /// End, in this way. May be said again when it is meant more severely than before.
    End {
        how: Ending,
    },
}

/// How an end of the appliance is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Ending {
    /// For good: end all sessions in order, then exit.
    Stop,
    /// Another appliance will take over: leave the sessions as they are, and exit soon.
    Detach,
}

/// What one process takes: its memory in bytes, from `/proc/<pid>/smaps_rollup` (proc(5)), and processor time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Every page that it has in memory, shared ones too.
    pub rss: u64,
    /// Each shared page divided by the number of those who share it.
    pub pss: u64,
    /// Pages that nobody else has: what the host gets back when the process ends.
    pub private: u64,
    /// Pages that no file stands behind.
    pub anonymous: u64,
    /// How long its threads have run so far; `None` on a kernel that does not count it.
    pub cpu_ns: Option<u64>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Status {
    Code(i32),
    Signal(i32),
    /// It was no child of this warden, and the kernel tells the status to nobody else.
    Unknown,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit status {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Unknown => f.write_str("a status that nobody was told"),
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
    #[error("There is no such worker")]
    NoSuchWorker,
    #[error("The worker has its shape already")]
    ShapedAlready,
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
            Self::SpawnWorker { .. } => {
                let roles = WorkerFd::FROM_APPLIANCE;
                expect(roles.len(), fds)?;
                roles
                    .iter()
                    .zip(fds)
                    .try_for_each(|(role, fd)| check_kind(*role, fd))
            }
            Self::Shape { spec, .. } => {
                expect(0, fds)?;
                spec.objection()
                    .map_or(Ok(()), |objection| Err(Refused::Spec(objection)))
            }
            Self::LimitCpu { .. }
            | Self::Kill { .. }
            | Self::Usage { .. }
            | Self::Adopt { .. }
            | Self::Settled
            | Self::Stop => expect(0, fds),
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
        WorkerFd::Vsock | WorkerFd::Orders => FileType::Socket,
        WorkerFd::Console => FileType::RegularFile,
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
        Request::SpawnWorker { id: Uuid::nil() }
    }

    fn shape(spec: WorkerSpec) -> Request {
        Request::Shape {
            id: Uuid::nil(),
            spec,
        }
    }

    const SMALL: WorkerSpec = WorkerSpec {
        vcpus: 1,
        cpu_millis: 250,
        mem_mib: 128,
        limits: crate::worker::spec::RateLimits::NONE,
    };

    fn message(text: &str) -> Message {
        Message {
            bytes: text.as_bytes().to_vec(),
            fds: Vec::new(),
        }
    }

    #[test]
    fn request_written_and_read_back_is_the_same() {
        let id = Uuid::nil();
        for request in [
            spawn(),
            shape(SMALL),
            Request::Usage { id },
            Request::Adopt { id },
            Request::Settled,
            Request::Stop,
        ] {
            let text = serde_json::to_string(&request).unwrap();
            assert_eq!(Request::parse(&message(&text)).unwrap(), request);
        }
    }

    #[test]
    fn worker_with_the_right_descriptors_is_accepted() {
        assert_eq!(spawn().check(&[socket(), file(), socket()]), Ok(()));
    }

    #[test]
    fn worker_with_missing_surplus_or_wrong_descriptors_is_refused() {
        let folder = || OwnedFd::from(std::fs::File::open("/").unwrap());
        let cases = [
            vec![],
            vec![socket(), file()],
            vec![socket(), file(), socket(), file()],
            vec![file(), file(), socket()],
            vec![socket(), folder(), socket()],
            vec![socket(), socket(), socket()],
            vec![socket(), file(), file()],
        ];
        for fds in cases {
            assert!(spawn().check(&fds).is_err(), "{fds:?}");
        }
    }

    #[test]
    fn request_that_takes_no_descriptor_is_refused_with_one() {
        let id = Uuid::nil();
        for request in [
            Request::Kill { id },
            Request::Usage { id },
            Request::Adopt { id },
            Request::Settled,
            Request::Stop,
            shape(SMALL),
        ] {
            assert_eq!(request.check(&[]), Ok(()));
            assert!(matches!(
                request.check(&[file()]),
                Err(Refused::Descriptors { .. })
            ));
        }
    }

    #[test]
    fn impossible_shape_is_refused() {
        for spec in [
            WorkerSpec { vcpus: 0, ..SMALL },
            WorkerSpec {
                cpu_millis: u32::MAX,
                ..SMALL
            },
            WorkerSpec {
                mem_mib: u32::MAX,
                ..SMALL
            },
        ] {
            let refused = shape(spec).check(&[]);
            assert!(matches!(refused, Err(Refused::Spec(_))), "{refused:?}");
        }
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
