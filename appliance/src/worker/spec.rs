//! What appliance, warden and the processes that they start agree on.

use serde::{Deserialize, Serialize};

pub use ::worker::spec::{
    MAX_MEM_MIB, MAX_REPORT_BYTES, MAX_VCPUS, RateLimits, WorkerFd, WorkerReport, WorkerSetup,
    WorkerSpec,
};

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

/// The first message to an image worker. The last descriptor takes the report.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageWorkerSetup {
    pub uid: Option<u32>,
    /// As of a worker.
    pub confined: bool,
    /// How many threads it may have.
    pub threads: u32,
    /// `images::Job` as JSON. The warden does not look into it.
    pub job: String,
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
}
