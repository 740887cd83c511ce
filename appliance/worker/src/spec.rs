//! What a worker is told at its start and what it says at its end.

use serde::{Deserialize, Serialize};
use uuid::Uuid;
pub use vmm::config::{MAX_MEM_MIB, MAX_VCPUS, MIN_MEM_MIB, RateLimits};

/// The shape of one microVM, as the appliance asks for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkerSpec {
    pub vcpus: u8,
    /// Thousandths of a host CPU, for `cpu.max`.
    pub cpu_millis: u32,
    pub mem_mib: u32,
    /// Held by the worker's devices; those of its disks by the kernel, too, where it can.
    #[serde(default, skip_serializing_if = "RateLimits::is_none")]
    pub limits: RateLimits,
}

impl WorkerSpec {
    /// Why no worker of this shape may run; `None` when it may.
    pub fn objection(&self) -> Option<String> {
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return Some(format!(
                "{} vCPUs are not between 1 and {MAX_VCPUS}",
                self.vcpus
            ));
        }
        if !(1..=u32::from(self.vcpus) * 1000).contains(&self.cpu_millis) {
            let Self {
                vcpus, cpu_millis, ..
            } = self;
            return Some(format!(
                "{cpu_millis} thousandths of a CPU do not fit {vcpus} vCPUs"
            ));
        }
        if !(MIN_MEM_MIB..=MAX_MEM_MIB).contains(&self.mem_mib) {
            let found = self.mem_mib;
            return Some(format!(
                "{found} MiB are not between {MIN_MEM_MIB} and {MAX_MEM_MIB}"
            ));
        }
        None
    }
}

/// The descriptors that a worker is born with, in the order in which they travel. The warden adds
/// `/dev/kvm`, and behind it the worker's own pagemap if it can. What its guest is made of comes later, with an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerFd {
    /// Listening; the host's side of the guest's vsock.
    Vsock,
    /// Takes the text of the serial console.
    Console,
    /// Listening; see `orders`.
    Orders,
}

impl WorkerFd {
    pub const FROM_APPLIANCE: [Self; 3] = [Self::Vsock, Self::Console, Self::Orders];
}

/// The first message to a worker.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkerSetup {
    pub id: Uuid,
    /// The user and group to become; absent when the warden is not root.
    pub uid: Option<u32>,
    /// Whether it gives up what a process can give up by itself (`process.rs`, `confine`), and its threads may ask the kernel only for what they
    /// need (`vmm::sandbox`). Only a developer's appliance does without.
    pub confined: bool,
    /// How long it lives with a guest when neither a warden nor an appliance is there.
    pub orphan_limit_seconds: u32,
}

/// The longest report that the warden passes on.
pub const MAX_REPORT_BYTES: usize = 4 << 10;

/// The last word of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "end", rename_all = "camelCase")]
pub enum WorkerReport {
    PowerOff,
    Reset,
    TripleFault,
    /// The host asked for it.
    Stopped,
    Failed {
        what: String,
    },
    /// The guest never ran.
    NotStarted {
        what: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shape_outside_its_limits_is_objected_to() {
        let good = WorkerSpec {
            vcpus: 2,
            cpu_millis: 1500,
            mem_mib: 512,
            limits: RateLimits::NONE,
        };
        assert_eq!(good.objection(), None);
        let bad = [
            WorkerSpec {
                vcpus: 0,
                ..good.clone()
            },
            WorkerSpec {
                vcpus: 33,
                ..good.clone()
            },
            WorkerSpec {
                cpu_millis: 0,
                ..good.clone()
            },
            WorkerSpec {
                cpu_millis: 2001,
                ..good.clone()
            },
            WorkerSpec {
                mem_mib: MIN_MEM_MIB - 1,
                ..good.clone()
            },
            WorkerSpec {
                mem_mib: u32::MAX,
                ..good
            },
        ];
        for spec in bad {
            assert!(spec.objection().is_some(), "{spec:?}");
        }
    }
}
