//! Goldens: what sessions are forked from, and for whom.

use serde_json::{Value, json};

use super::Admin;
use crate::arm::call::Reply;
use crate::arm::resource::{memory, moment};

/// The goldens of this appliance.
pub trait GoldenService: Send + Sync + 'static {
    /// All of them, by key.
    fn list(&self) -> Vec<GoldenSummary>;
}

/// A golden, for people.
#[derive(Debug, Clone)]
pub struct GoldenSummary {
    pub key: String,
    pub fork_point: String,
    /// The name of the image, or its digest when it has none.
    pub image: String,
    pub image_digest: String,
    pub vcpus: u8,
    pub mem_mib: u32,
    pub disk_mib: u32,
    /// What it takes on the disk of the host.
    pub memory_bytes: u64,
    pub disk_bytes: u64,
    pub made_at_ms: u64,
    pub pools: Vec<String>,
}

impl Admin {
    pub(super) fn list_goldens(&self) -> Reply {
        let goldens: Vec<_> = self.goldens.list().iter().map(golden_json).collect();
        Reply::ok(json!({ "value": goldens }))
    }
}

fn golden_json(golden: &GoldenSummary) -> Value {
    json!({
        "key": golden.key,
        "forkPoint": golden.fork_point,
        "image": golden.image,
        "imageDigest": golden.image_digest,
        "vcpus": golden.vcpus,
        "memory": memory(golden.mem_mib),
        "ephemeralStorage": memory(golden.disk_mib),
        "memoryBytes": golden.memory_bytes,
        "diskBytes": golden.disk_bytes,
        "madeAt": moment(golden.made_at_ms),
        "pools": golden.pools,
    })
}
