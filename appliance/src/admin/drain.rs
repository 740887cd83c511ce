//! Calls that empty the host.

use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};

use super::Admin;
use crate::arm::call::Reply;
use crate::front::refusal::{Code, Refusal};
use crate::pool::Draining;

/// A day: a session that is in use for longer ends when the drain is said again, or is stopped by name.
const LONGEST_TIMEOUT_SECONDS: u64 = 86_400;

impl Admin {
    /// Begins to empty the host, and does not wait for it.
    pub(super) async fn drain(&self, body: &Value) -> Result<Reply, Refusal> {
        let timeout = timeout(body)?;
        tracing::info!(?timeout, "asked to drain");
        self.pools.drain(timeout);
        Ok(Reply::new(
            StatusCode::ACCEPTED,
            Some(self.draining().await),
        ))
    }

    pub(super) async fn end_drain(&self) -> Result<Reply, Refusal> {
        tracing::info!("asked to drain no more");
        self.pools.end_drain();
        Ok(Reply::ok(self.draining().await))
    }

    pub(super) async fn draining(&self) -> Value {
        let Draining {
            is_on,
            slots_in_use,
        } = self.pools.draining().await;
        json!({ "draining": is_on, "slotsInUse": slots_in_use })
    }
}

fn timeout(body: &Value) -> Result<Duration, Refusal> {
    let seconds = body["timeoutSeconds"].as_u64();
    let seconds = seconds.filter(|seconds| *seconds <= LONGEST_TIMEOUT_SECONDS);
    let seconds = seconds.ok_or_else(|| {
        let message =
            format!("timeoutSeconds must be a whole number from 0 to {LONGEST_TIMEOUT_SECONDS}");
        Refusal::new(Code::InvalidRequestContent, message).target("timeoutSeconds")
    })?;
    Ok(Duration::from_secs(seconds))
}
