//! A pool as the resource that callers see.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::Endpoints;
use crate::store::PoolRecord;

/// The resource, in the nested form of api-version 2025-01-01 and later.
pub fn pool(pool: &PoolRecord, endpoints: &Endpoints) -> Value {
    let PoolRecord {
        subscription,
        resource_group,
        name,
        ..
    } = pool;
    let env: Vec<_> = pool
        .env
        .iter()
        .map(|var| json!({ "name": var.name, "value": var.value }))
        .collect();
    let mut container = json!({
        "name": pool.container_name,
        "image": pool.image,
        "env": env,
        "resources": {
            "cpu": f64::from(pool.cpu_millis) / 1000.0,
            "memory": memory(pool.mem_mib),
            "ephemeralStorage": memory(pool.disk_mib),
        },
    });
    if !pool.command.is_empty() {
        container["command"] = json!(pool.command);
    }
    if !pool.args.is_empty() {
        container["args"] = json!(pool.args);
    }
    json!({
        "id": format!(
            "/subscriptions/{subscription}/resourceGroups/{resource_group}/providers/Microsoft.App/sessionPools/{name}"
        ),
        "name": name.as_str(),
        "type": "Microsoft.App/sessionPools",
        "location": pool.location,
        "tags": pool.tags,
        "systemData": {
            "createdAt": moment(pool.created_at_ms),
            "lastModifiedAt": moment(pool.modified_at_ms),
        },
        "properties": {
            "provisioningState": "Succeeded",
            "poolManagementType": "Dynamic",
            "containerType": "CustomContainer",
            "nodeCount": 1,
            "forkPoint": pool.fork_point.to_string(),
            "poolManagementEndpoint": endpoints.of(subscription, resource_group, name.as_str()),
            "scaleConfiguration": {
                "maxConcurrentSessions": pool.max_sessions,
                "readySessionInstances": 0,
            },
            "dynamicPoolConfiguration": { "lifecycleConfiguration": {
                "lifecycleType": "Timed",
                "cooldownPeriodInSeconds": pool.cooldown_seconds,
            } },
            "customContainerTemplate": {
                "containers": [container],
                "ingress": { "targetPort": pool.target_port },
            },
            "sessionNetworkConfiguration": { "status": "EgressDisabled" },
        },
    })
}

/// `512` → `0.5Gi`.
pub fn memory(mib: u32) -> String {
    format!("{}Gi", f64::from(mib) / 1024.0)
}

/// As RFC 3339.
pub fn moment(millis: u64) -> Option<String> {
    let at = i64::try_from(millis)
        .ok()
        .and_then(|millis| Timestamp::from_millisecond(millis).ok());
    at.map(|at| at.to_string())
}
