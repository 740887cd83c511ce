//! How many sessions there may be, and how many slots wait for them.

use serde_json::{Value, json};

use super::raw::{Raw, dotted, wrong};
use crate::front::refusal::Refusal;
use crate::openapi::schema::{Described, integer, nullable, object};
use crate::store::PoolRecord;

const MAX_SESSIONS: u32 = 100_000;
const DEFAULT_MAX_SESSIONS: u32 = 10;

pub struct Scale {
    pub max_sessions: u32,
    pub ready_sessions: u32,
}

/// The cloud service wants `0 < ready < max`. Here a pool may have no ready session, which takes
/// nothing while nobody asks, and every session of a pool may be ready.
pub fn read(raw: &Raw<'_>) -> Result<Scale, Refusal> {
    let max_path = "/properties/scaleConfiguration/maxConcurrentSessions";
    let max_sessions = raw
        .small(max_path, 1..=MAX_SESSIONS)?
        .unwrap_or(DEFAULT_MAX_SESSIONS);
    let ready_path = "/properties/scaleConfiguration/readySessionInstances";
    let ready_sessions = match raw.get(ready_path) {
        None => 0,
        Some(value) => {
            let ready = value.as_u64().and_then(|ready| u32::try_from(ready).ok());
            ready
                .filter(|ready| *ready <= max_sessions)
                .ok_or_else(|| {
                    let most = dotted(max_path);
                    let expected =
                        format!("a whole number from 0 to {max_sessions}, which is {most}");
                    wrong(ready_path, &expected, value)
                })?
        }
    };
    Ok(Scale {
        max_sessions,
        ready_sessions,
    })
}

/// For the OpenAPI document.
pub fn schema() -> Described {
    let most = u64::from(MAX_SESSIONS);
    let sessions =
        integer("Sessions at the same time", 1..=most).default(Some(DEFAULT_MAX_SESSIONS.into()));
    let ready = integer(
        "Sessions that wait for a caller; at most maxConcurrentSessions",
        0..=most,
    )
    .default(Some(0.into()));
    object("How many sessions there may be")
        .property("maxConcurrentSessions", nullable(sessions))
        .property("readySessionInstances", nullable(ready))
        .into()
}

pub fn render(pool: &PoolRecord) -> Value {
    json!({
        "maxConcurrentSessions": pool.max_sessions,
        "readySessionInstances": pool.ready_sessions,
    })
}
