//! What a worker is told and what it says at its end. Shared by appliance, warden and worker.

use serde::{Deserialize, Serialize};
use uuid::Uuid;
pub use vmm::config::{MAX_MEM_MIB, MAX_VCPUS, MIN_MEM_MIB};

/// The shape of one microVM, as the appliance asks for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkerSpec {
    pub vcpus: u8,
    /// Thousandths of a host CPU, for `cpu.max`.
    pub cpu_millis: u32,
    pub mem_mib: u32,
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

/// When the snapshot is taken that sessions are forked from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ForkPoint {
    /// The guest is up and nothing of the image has run: sessions share no state of user space.
    #[default]
    BeforeStart,
    /// The container accepts connections: sessions share what its processes had in memory, the
    /// seeds of their own random generators among it.
    AfterReady,
}

impl ForkPoint {
    const BEFORE_START: &str = "beforeStart";
    const AFTER_READY: &str = "afterReady";
}

impl std::fmt::Display for ForkPoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::BeforeStart => Self::BEFORE_START,
            Self::AfterReady => Self::AFTER_READY,
        })
    }
}

/// A text that names no fork point.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("A fork point is `beforeStart` or `afterReady`")]
pub struct ForkPointError;

impl std::str::FromStr for ForkPoint {
    type Err = ForkPointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            Self::BEFORE_START => Ok(Self::BeforeStart),
            Self::AFTER_READY => Ok(Self::AfterReady),
            _ => Err(ForkPointError),
        }
    }
}

/// The descriptors that a worker is born with, in the order in which they travel. The warden adds
/// `/dev/kvm` as the last one. What its guest is made of comes later, with an order.
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
}

/// The first message to an image worker. The last descriptor takes the report.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageWorkerSetup {
    pub uid: Option<u32>,
    /// `images::Job` as JSON. The warden does not look into it.
    pub job: String,
}

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
    fn fork_point_has_one_spelling_in_text_and_in_json() {
        for (point, text) in [
            (ForkPoint::BeforeStart, "beforeStart"),
            (ForkPoint::AfterReady, "afterReady"),
        ] {
            assert_eq!(point.to_string(), text);
            assert_eq!(text.parse(), Ok(point));
            assert_eq!(serde_json::to_value(point).unwrap(), text);
        }
        assert_eq!("BeforeStart".parse::<ForkPoint>(), Err(ForkPointError));
        assert_eq!(ForkPoint::default(), ForkPoint::BeforeStart);
    }

    #[test]
    fn shape_outside_its_limits_is_objected_to() {
        let good = WorkerSpec {
            vcpus: 2,
            cpu_millis: 1500,
            mem_mib: 512,
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
