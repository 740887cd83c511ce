//! What one process may use up by itself, whoever has taken it over. Memory and processor time are its control group's.

use rustix::io;
use rustix::process::{Resource, Rlimit, setrlimit};
use vmm::config::{MAX_MEM_MIB, MAX_VCPUS};

/// Open files of a worker: 1024 connections of its guest, a vCPU's two for each of 32, some ten of each device, and as many again.
const WORKER_FILES: u64 = 2048;
/// Of an image worker: the descriptors of one job, at most 136 (`channel::MAX_FDS`), and its own few.
const IMAGE_WORKER_FILES: u64 = 256;
/// Threads of a worker besides its vCPUs: its own are a handful.
pub const OTHER_THREADS: u32 = 32;
/// No file of a worker is longer than the largest guest's memory, in bytes. A gibibyte more, for what is written around it.
const WORKER_FILE_BYTES: u64 = (MAX_MEM_MIB as u64 + 1024) << 20;

/// The limits of one process, each in the unit of `getrlimit(2)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The highest number of an open file, and one.
    files: u64,
    /// The longest file that it may write to, in bytes; `None`: what it was told says that better.
    file_bytes: Option<u64>,
    /// Threads of its user; only where nobody else is that user.
    threads: Option<u64>,
}

impl Limits {
    pub fn worker(own_user: bool) -> Self {
        Self {
            files: WORKER_FILES,
            file_bytes: Some(WORKER_FILE_BYTES),
            threads: own_user.then_some(u64::from(MAX_VCPUS) + u64::from(OTHER_THREADS)),
        }
    }

    /// `threads`: how many it may have.
    pub fn image_worker(own_user: bool, threads: u32) -> Self {
        Self {
            files: IMAGE_WORKER_FILES,
            file_bytes: None,
            threads: own_user.then_some(threads.into()),
        }
    }

    /// Sets them for this process, for good.
    pub fn set(self) -> io::Result<()> {
        lower(Resource::Nofile, self.files)?;
        if let Some(bytes) = self.file_bytes {
            lower(Resource::Fsize, bytes)?;
        }
        if let Some(threads) = self.threads {
            lower(Resource::Nproc, threads)?;
        }
        // A core holds the memory of a guest.
        lower(Resource::Core, 0)?;
        // It keeps no memory from being moved or written out, waits for nobody's file, and takes no part in message queues.
        lower(Resource::Memlock, 0)?;
        lower(Resource::Locks, 0)?;
        lower(Resource::Msgqueue, 0)?;
        // It runs before nobody else: no real time, and no better nice value than the usual one.
        lower(Resource::Rtprio, 0)?;
        lower(Resource::Nice, 0)
    }
}

/// Never raises one: that would need a privilege, and who started us may have wanted less.
fn lower(resource: Resource, most: u64) -> io::Result<()> {
    let now = rustix::process::getrlimit(resource);
    let limit = Some(now.maximum.map_or(most, |maximum| maximum.min(most)));
    let new = Rlimit {
        current: limit,
        maximum: limit,
    };
    setrlimit(resource, new)
}
