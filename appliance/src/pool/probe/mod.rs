//! What a pool asks of its container to find out how it is.
//!
//! The names, ranges and meanings are those of Kubernetes and of `Microsoft.App/sessionPools`: the startup probe says when
//! a slot is ready, the liveness probe when it is not any more. Values here are in range already.
//!
//! The host asks, not the agent in the guest: a guest that hangs cannot answer for itself. `schedule` is
//! when to ask and what follows, and pure; `check` asks once; `runner` puts the two together. Asking
//! goes past the front door, so it is no use of a session and never touches its idle clock.

mod check;
#[cfg(test)]
mod pool_tests;
mod runner;
mod schedule;

pub use runner::{Prober, Unhealthy};

use serde::{Deserialize, Serialize};

/// At most one of each kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Probes {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub startup: Option<Probe>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub liveness: Option<Probe>,
}

/// One question that is asked again and again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Probe {
    pub check: Check,
    /// Before the first question.
    pub initial_delay_seconds: u32,
    /// From one question to the next.
    pub period_seconds: u32,
    /// An answer that takes longer is a failure.
    pub timeout_seconds: u32,
    /// So many failures in a row are one too many.
    pub failure_threshold: u32,
    /// So many successes in a row make up for failures.
    pub success_threshold: u32,
    /// How long the container may take to end when this probe failed; `None`: as always.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub termination_grace_seconds: Option<u64>,
}

/// How it is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Check {
    /// Healthy is a status from 200 to 399.
    #[serde(rename_all = "camelCase")]
    HttpGet {
        scheme: Scheme,
        /// The `Host` header; the connection always goes to the container.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<String>,
        path: String,
        port: u16,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        headers: Vec<(String, String)>,
    },
    /// Healthy is a connection that is accepted.
    TcpSocket { port: u16 },
}

/// The certificate behind `Https` is not verified, as in Kubernetes: it is the container's own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Scheme {
    #[default]
    Http,
    Https,
}
