//! What the appliance tells a worker to do, over the worker's orders socket.
//!
//! One message is one order with its descriptors, and every order gets one answer, in the framing
//! of [`channel`](crate::channel). The socket listens for as long as the worker lives, so
//! that a later appliance can connect as well; orders are carried out one after the other.
//!
//! # Trust
//! Only the appliance can enter the folder of the socket. Both sides check each order's
//! descriptors all the same: the worker because it lives on them, the appliance because a
//! descriptor that can be written to, once handed to a worker, could spoil what every later fork
//! is made of.

mod lifelines;
pub mod server;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, OFlags};
use serde::{Deserialize, Serialize};

use crate::channel::MAX_MESSAGE_BYTES;
use crate::spec::WorkerSpec;

/// An answer's text is cut to this.
const MAX_TEXT_BYTES: usize = 2 << 10;
/// Steps of an answer; a start has about ten.
const MAX_STEPS: usize = 64;

/// What a worker shall do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "order",
    rename_all = "camelCase",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum Order {
    /// Run a guest from its kernel's first instruction. This or [`Order::Restore`] comes first, and once.
    Boot {
        spec: WorkerSpec,
    },
    /// Run a guest from a snapshot.
    Restore {
        spec: WorkerSpec,
        first_pages: FirstPages,
    },
    Pause,
    Resume,
    /// Write a paused guest to files.
    Save,
    /// Write down which pages a paused guest has touched since it was restored.
    SaveWorkingSet,
}

/// What is done about the pages that a guest touches first after it was restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FirstPages {
    /// Nothing.
    AsNeeded,
    /// A working set comes along, to be read before the guest needs it.
    Prefetched,
    /// [`Order::SaveWorkingSet`] will ask for them.
    Recorded,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "camelCase")]
pub enum Answer {
    /// With where the time went, in microseconds.
    Done {
        steps: Vec<(String, u64)>,
    },
    Failed {
        message: String,
    },
}

/// What a descriptor of an order is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrderFd {
    Kernel,
    Initramfs,
    RootImage,
    /// The writable disk of a boot, with a file system on it.
    Scratch,
    State,
    Memory,
    /// The disk of the snapshot.
    BaseDisk,
    /// The writable disk of a fork, empty.
    Disk,
    WorkingSet,
    /// Empty files to write to.
    SavedState,
    SavedMemory,
    SavedDisk,
    SavedWorkingSet,
}

impl OrderFd {
    /// Shared by many guests, so it must not be possible to write to it.
    pub fn is_shared(self) -> bool {
        matches!(
            self,
            Self::State | Self::Memory | Self::BaseDisk | Self::WorkingSet
        )
    }
}

/// What is wrong with a message that should be an order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadOrder {
    #[error("A message of {length} bytes is not an order")]
    NotAnOrder { length: usize },
    #[error("The order came with {found} descriptors and needs {expected}")]
    Count { expected: usize, found: usize },
    #[error("The descriptor for {role:?} is not a regular file")]
    NotAFile { role: OrderFd },
    #[error("The descriptor for {role:?} can be written to")]
    Writable { role: OrderFd },
}

impl Order {
    pub fn parse(bytes: &[u8]) -> Result<Self, BadOrder> {
        serde_json::from_slice(bytes).map_err(|_| BadOrder::NotAnOrder {
            length: bytes.len(),
        })
    }

    /// The descriptors that belong to it, in the order in which they travel.
    pub fn roles(&self) -> &'static [OrderFd] {
        use OrderFd::*;
        match self {
            Self::Boot { .. } => &[Kernel, Initramfs, RootImage, Scratch],
            Self::Restore { first_pages, .. } => match first_pages {
                FirstPages::AsNeeded | FirstPages::Recorded => {
                    &[State, Memory, RootImage, BaseDisk, Disk]
                }
                FirstPages::Prefetched => &[State, Memory, RootImage, BaseDisk, Disk, WorkingSet],
            },
            Self::Pause | Self::Resume => &[],
            Self::Save => &[SavedState, SavedMemory, SavedDisk],
            Self::SaveWorkingSet => &[SavedWorkingSet],
        }
    }

    pub fn check(&self, fds: &[OwnedFd]) -> Result<(), BadOrder> {
        let roles = self.roles();
        if fds.len() != roles.len() {
            return Err(BadOrder::Count {
                expected: roles.len(),
                found: fds.len(),
            });
        }
        roles
            .iter()
            .zip(fds)
            .try_for_each(|(role, fd)| check_descriptor(*role, fd))
    }

    /// For sentences like "cannot {what}".
    pub fn what(&self) -> &'static str {
        match self {
            Self::Boot { .. } => "boot its guest",
            Self::Restore { .. } => "restore its guest",
            Self::Pause => "pause its guest",
            Self::Resume => "resume its guest",
            Self::Save => "save its guest",
            Self::SaveWorkingSet => "save its guest's working set",
        }
    }
}

fn check_descriptor(role: OrderFd, fd: &OwnedFd) -> Result<(), BadOrder> {
    match rustix::fs::fstat(fd.as_fd()) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {}
        _ => return Err(BadOrder::NotAFile { role }),
    }
    let read_only = || {
        rustix::fs::fcntl_getfl(fd.as_fd())
            .is_ok_and(|flags| flags & OFlags::RWMODE == OFlags::RDONLY)
    };
    if role.is_shared() && !read_only() {
        return Err(BadOrder::Writable { role });
    }
    Ok(())
}

impl Answer {
    /// As bytes of one message, cut to fit.
    pub fn encode(&self) -> Vec<u8> {
        let cut = match self {
            Self::Done { steps } => Self::Done {
                steps: steps.iter().take(MAX_STEPS).cloned().collect(),
            },
            Self::Failed { message } => Self::Failed {
                message: tame(message),
            },
        };
        serde_json::to_vec(&cut).unwrap_or_default()
    }
}

/// Six bytes of JSON at most for each that is kept.
fn tame(text: &str) -> String {
    const _: () = assert!(MAX_TEXT_BYTES * 6 < MAX_MESSAGE_BYTES);
    text.chars()
        .filter(|c| !c.is_control())
        .take(MAX_TEXT_BYTES / 4)
        .collect()
}

/// The descriptors of an order as files, once their number is known to be right.
pub fn files<const N: usize>(fds: Vec<OwnedFd>) -> Result<[File; N], BadOrder> {
    let found = fds.len();
    let files: Vec<File> = fds.into_iter().map(File::from).collect();
    files
        .try_into()
        .map_err(|_| BadOrder::Count { expected: N, found })
}
