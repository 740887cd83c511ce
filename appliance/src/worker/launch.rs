//! What a launch is given, and why it may fail.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use wire::ContainerSpec;

use super::exit::WorkerExit;
use super::orders::OrderError;
use super::spec::{ForkPoint, RateLimits, WorkerSpec};
use crate::guest::GuestError;
use crate::warden::client::SpawnError;

/// What somebody needs from a worker. Its id is the host's choice and comes with the worker.
#[derive(Debug)]
pub struct LaunchRequest {
    pub source: Source,
    pub vcpus: u8,
    pub cpu_millis: u32,
    pub mem_mib: u32,
    pub limits: RateLimits,
    pub purpose: Purpose,
    pub urgency: Urgency,
}

/// Who waits for a launch. Those that somebody waits for come up first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Urgency {
    /// A caller does.
    Claim,
    /// Nobody yet: it is to be ready when somebody comes.
    Refill,
}

/// Where the guest comes from.
#[derive(Debug)]
pub enum Source {
    /// From its kernel's first instruction, with a new disk.
    Boot {
        /// The read-only squashfs.
        root_image: File,
        /// The size of the session's writable layer.
        disk_bytes: u64,
    },
    /// From a snapshot, with a disk that lies over the snapshot's own.
    Fork {
        snapshot: Snapshot,
        /// The same that the snapshot's guest had.
        root_image: File,
    },
}

/// The files of a snapshot. Every descriptor is read-only: many guests live on the same ones, and
/// none may change what the next one is made of.
#[derive(Debug)]
pub struct Snapshot {
    pub state: File,
    pub memory: File,
    pub disk: File,
    pub working_set: WorkingSet,
    pub disk_bytes: u64,
}

/// The pages that a guest touches first.
#[derive(Debug)]
pub enum WorkingSet {
    Unknown,
    /// They are read before the guest needs them.
    Known(File),
    /// They will be asked for with [`Worker::save_working_set`](super::Worker::save_working_set).
    Wanted,
}

/// What a guest is launched for, and so how far it is led.
#[derive(Debug, Clone)]
pub enum Purpose {
    /// To serve somebody. The container is started, unless the fork point says that it runs.
    Session {
        container: ContainerSpec,
        /// Of the snapshot; without meaning for a boot.
        point: ForkPoint,
    },
    /// To be saved once it is [`WorkerEvent::Held`](super::WorkerEvent::Held) at `point`. After
    /// ready, it is held when [`Worker::freeze_when_ready`](super::Worker::freeze_when_ready) was called.
    Golden {
        point: ForkPoint,
        container: ContainerSpec,
    },
    /// To find out whether and how a guest comes up. It gets an identity and nothing to start.
    Trial,
}

/// How many workers there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Workers made ahead that wait for something to run.
    pub spares: usize,
    /// Guests that come up at the same time; others wait for their turn, so that a burst does not
    /// take the CPUs from sessions that run.
    pub parallel_starts: usize,
}

/// Empty files to save a guest into.
#[derive(Debug)]
pub struct SaveFiles {
    pub state: File,
    pub memory: File,
    pub disk: File,
}

/// Why there is no worker. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("Cannot prepare the worker's folder {}", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("No worker can have this shape: {0}")]
    Shape(String),
    #[error("Cannot prepare the worker's disk")]
    Disk(#[from] GuestError),
    #[error("Cannot copy a descriptor")]
    Descriptor(#[source] io::Error),
    #[error("Cannot spawn the worker")]
    Spawn(#[from] SpawnError),
    #[error("The worker could not start its guest")]
    Order(#[from] OrderError),
    #[error("The worker ended before its guest ran")]
    Died(#[source] WorkerExit),
    #[error("The launch was interrupted")]
    Interrupted,
}

impl LaunchError {
    /// Whether a fork failed for a reason that lies in its snapshot, so that the next fork of it
    /// would fail as well.
    pub fn blames_snapshot(&self) -> bool {
        match self {
            Self::Order(OrderError::Refused { .. }) => true,
            Self::Order(
                OrderError::Gone | OrderError::TimedOut { .. } | OrderError::Descriptors(_),
            )
            | Self::Folder { .. }
            | Self::Shape(_)
            | Self::Disk(_)
            | Self::Descriptor(_)
            | Self::Spawn(_)
            | Self::Died(_)
            | Self::Interrupted => false,
        }
    }
}

impl Purpose {
    pub(super) fn into_container(self) -> Option<ContainerSpec> {
        match self {
            Self::Session { container, .. } | Self::Golden { container, .. } => Some(container),
            Self::Trial => None,
        }
    }
}

impl LaunchRequest {
    pub(super) fn spec(&self) -> WorkerSpec {
        WorkerSpec {
            vcpus: self.vcpus,
            cpu_millis: self.cpu_millis,
            mem_mib: self.mem_mib,
            limits: self.limits,
        }
    }
}
