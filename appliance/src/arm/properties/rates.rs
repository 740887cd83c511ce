//! How much a session may do in a second. Our own; the cloud service has nothing like it.

use std::num::NonZeroU64;
use std::ops::RangeInclusive;

use serde_json::{Value, json};

use super::raw::{Raw, wrong};
use crate::front::refusal::Refusal;
use crate::openapi::schema::{Described, integer, nullable, object};
use crate::store::PoolRecord;
use crate::worker::spec::RateLimits;

/// In `properties`.
pub const RATE_LIMITS: &str = "rateLimits";
const PLACE: &str = "/properties/rateLimits";
/// With fewer a guest takes minutes to start a container; the fastest disks do not do more.
const DISK_IOPS: RangeInclusive<u64> = 100..=1_000_000;
/// One request of Linux may be as large as the least of these, and no disk is as fast as the most.
const DISK_BYTES: RangeInclusive<u64> = 1 << 20..=16 << 30;
/// The least still carries what the agent itself has to say, and an output of some lines.
const STREAM_BYTES: RangeInclusive<u64> = 64 << 10..=16 << 30;

pub fn read(raw: &Raw<'_>) -> Result<RateLimits, Refusal> {
    if let Some(value) = raw.get(PLACE).filter(|value| !value.is_object()) {
        return Err(wrong(PLACE, "an object of limits", value));
    }
    let limit = |name: &str, range| {
        let number = raw.integer(&format!("{PLACE}/{name}"), range)?;
        Ok::<_, Refusal>(number.and_then(NonZeroU64::new))
    };
    Ok(RateLimits {
        disk_iops: limit("diskIops", DISK_IOPS)?,
        disk_bytes_per_second: limit("diskBytesPerSecond", DISK_BYTES)?,
        stream_bytes_per_second: limit("streamBytesPerSecond", STREAM_BYTES)?,
    })
}

/// `None`: there is no limit.
pub fn render(pool: &PoolRecord) -> Option<Value> {
    let limits = pool.rate_limits;
    (limits != RateLimits::default()).then(|| json!(limits))
}

/// For the OpenAPI document.
pub fn schema() -> Described {
    object("How much a session may do in a second: what is absent is not limited; our own")
        .property(
            "diskIops",
            nullable(integer("Requests to its disks", DISK_IOPS)),
        )
        .property(
            "diskBytesPerSecond",
            nullable(integer("Read from and written to its disks", DISK_BYTES)),
        )
        .property(
            "streamBytesPerSecond",
            nullable(integer(
                "To it and from it, in each direction: requests, answers, logs, exec",
                STREAM_BYTES,
            )),
        )
        .into()
}
