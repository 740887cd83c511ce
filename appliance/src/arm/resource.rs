//! A pool as the resource that callers see.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::properties;
use super::version::Shape;
use crate::pool::view::{Counts, PoolStatus, RevisionStatus};
use crate::store::PoolRecord;

pub const TYPE: &str = "Microsoft.App/sessionPools";

/// What is said of a pool beside what it was asked to be.
pub struct Facts<'a> {
    /// `None`: none of its slots is there yet, or any more.
    pub status: Option<&'a PoolStatus>,
    pub state: State,
    /// Where its sessions are reached.
    pub endpoint: String,
}

/// How far the pool is, as resource manager calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    InProgress,
    Succeeded,
    Deleting,
}

impl State {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InProgress => "InProgress",
            Self::Succeeded => "Succeeded",
            Self::Deleting => "Deleting",
        }
    }
}

/// The resource, as an api-version of this shape has it.
pub fn pool(pool: &PoolRecord, facts: &Facts<'_>, shape: &Shape) -> Value {
    let mut resource = properties::render(pool, shape);
    resource["id"] = id(pool).into();
    resource["name"] = pool.name.as_str().into();
    resource["type"] = TYPE.into();
    resource["systemData"] = json!({
        "createdAt": moment(pool.created_at_ms),
        "lastModifiedAt": moment(pool.modified_at_ms),
    });
    let properties = &mut resource["properties"];
    properties["provisioningState"] = facts.state.as_str().into();
    properties["nodeCount"] = 1.into();
    properties["poolManagementEndpoint"] = facts.endpoint.as_str().into();
    if let Some(status) = facts.status {
        properties["sessionCounts"] = session_counts(status);
        if shape.update_status {
            properties["templateUpdateStatus"] = update_status(status, shape);
        }
    }
    resource
}

/// As resource manager writes it.
pub fn id(pool: &PoolRecord) -> String {
    let PoolRecord {
        subscription,
        resource_group,
        name,
        ..
    } = pool;
    format!("/subscriptions/{subscription}/resourceGroups/{resource_group}/providers/{TYPE}/{name}")
}

/// Our own: what the pool holds now, of whatever revision.
fn session_counts(status: &PoolStatus) -> Value {
    let revisions = || std::iter::once(&status.active).chain(&status.desired);
    let sum = |count: fn(&Counts) -> u32| -> u32 {
        let current: u32 = revisions().map(|revision| count(&revision.counts)).sum();
        current + count(&status.earlier)
    };
    json!({
        "ready": sum(|counts| counts.ready),
        "pending": sum(|counts| counts.pending),
        "allocated": sum(|counts| counts.allocated),
        "draining": sum(|counts| counts.draining),
        "failed": sum(|counts| counts.failed),
    })
}

fn update_status(status: &PoolStatus, shape: &Shape) -> Value {
    let mut update = json!({ "activeTemplate": template_status(&status.active, shape) });
    if let Some(desired) = &status.desired {
        update["desiredTemplate"] = template_status(desired, shape);
    }
    update
}

/// `TemplateStatus` of the preview api-versions. An image is pulled before a pool is made of it, so
/// its pull cannot fail here.
fn template_status(revision: &RevisionStatus, shape: &Shape) -> Value {
    let counts = &revision.counts;
    let mut template = properties::render_template(&revision.record, shape);
    template["details"] = revision.last_failure.clone().unwrap_or_default().into();
    template["createdTime"] = moment(revision.record.modified_at_ms).into();
    template["revision"] = revision.revision.to_string().into();
    template["status"] = json!({
        "expectedCount": counts.expected,
        "readyCount": counts.ready,
        "pendingCount": counts.pending,
        "imagePullFailCount": 0,
        "crashCount": counts.failed,
        "allocatedCount": counts.allocated,
        "drainingCount": counts.draining,
    });
    template
}

/// `512` → `0.5Gi`.
pub fn memory(mib: u32) -> String {
    format!("{}Gi", f64::from(mib) / 1024.0)
}

/// As [`moment`], of a time that has no fraction.
pub fn moment_in_seconds(seconds: u64) -> Option<String> {
    moment(seconds.checked_mul(1000)?)
}

/// As RFC 3339.
pub fn moment(millis: u64) -> Option<String> {
    let at = i64::try_from(millis)
        .ok()
        .and_then(|millis| Timestamp::from_millisecond(millis).ok());
    at.map(|at| at.to_string())
}
