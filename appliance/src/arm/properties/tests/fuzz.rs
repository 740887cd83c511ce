//! Bodies of pools, changed at random: see the crate `fuzz`. What is accepted is a pool within the rules, and the same when it is shown and
//! sent again; what is not is refused by the name of a property.

use ::fuzz::Target;
use ::fuzz::allocation::within;

use super::*;

/// Of a run without `CABANA_FUZZ_SECONDS`.
const INPUTS: u64 = 6000;

const WORDS: &[&str] = &[
    "null",
    "-1",
    "0",
    "0.25",
    "1e308",
    "1e999",
    "18446744073709551616",
    "\"\"",
    "\"\\ud800\"",
    "\"\\u0000\"",
    "{}",
    "[]",
    "[[[[[[[[",
    "}",
    ",",
    "\"properties\":",
    "\"location\":\"local\",",
    "\"tags\":{\"a\":\"b\"},",
    "\"scaleConfiguration\":{\"maxConcurrentSessions\":8},",
    "\"readySessionInstances\":2,",
    "\"secrets\":[{\"name\":\"s\",\"value\":\"v\"}],",
    "\"secretRef\":\"s\",",
    "\"env\":[{\"name\":\"A\",\"value\":\"1\"}],",
    "\"resources\":{\"cpu\":0.5,\"memory\":\"1Gi\"},",
    "\"command\":[\"a\"],",
    "\"args\":[],",
    "\"1024Gi\"",
    "\"0.1Mi\"",
    "\"forkPoint\":\"AfterReady\",",
    "\"lifecycleConfiguration\":{\"lifecycleType\":\"OnContainerExit\",\"maxAlivePeriodInSeconds\":600},",
    "\"probes\":[{\"type\":\"Liveness\",\"httpGet\":{\"port\":80}}],",
    "\"sessionNetworkConfiguration\":{\"status\":\"EgressEnabled\"},",
    "\"identity\":{\"type\":\"SystemAssigned\"},",
];

fn seeds() -> Vec<Vec<u8>> {
    let full = json!({ "location": "local", "tags": { "a": "b" }, "properties": {
        "scaleConfiguration": { "maxConcurrentSessions": 8, "readySessionInstances": 2 },
        "dynamicPoolConfiguration": { "lifecycleConfiguration": { "lifecycleType": "Timed", "cooldownPeriodInSeconds": 301 } },
        "secrets": [{ "name": "key", "value": "hidden" }],
        "customContainerTemplate": {
            "containers": [{
                "image": "demo", "name": "main", "command": ["/a"], "args": ["b"],
                "env": [{ "name": "A", "value": "1" }, { "name": "B", "secretRef": "key" }],
                "resources": { "cpu": 0.5, "memory": "1Gi" },
                "probes": [{ "type": "Liveness", "httpGet": { "path": "/", "port": 8080 }, "periodSeconds": 5 }],
            }],
            "ingress": { "targetPort": 8080 },
        },
    } });
    [body(), full]
        .iter()
        .map(|body| body.to_string().into_bytes())
        .collect()
}

fn assert_within_rules(pool: &PoolRecord) {
    assert!(pool.cpu_millis > 0 && pool.cpu_millis <= RULES.max_cpu_millis);
    assert!(pool.mem_mib > 0 && pool.mem_mib <= RULES.max_mem_mib);
    assert!(pool.max_sessions > 0 && pool.ready_sessions <= pool.max_sessions);
    assert!(pool.target_port > 0);
}

#[test]
fn fuzz_bodies_of_pools() {
    Target::new("bodies_of_pools")
        .seeds(seeds())
        .words(WORDS)
        .run(INPUTS, |input| {
            let Ok(value) = serde_json::from_slice::<Value>(input) else {
                return false;
            };
            match within(4 << 20, || check(&value)) {
                Ok(pool) => {
                    assert_within_rules(&pool);
                    let address = Address::of(&pool);
                    let again = look_up_and_check(&shown(&pool), address, Some(&pool));
                    assert_eq!(shown(&again.unwrap()), shown(&pool));
                    true
                }
                Err(refusal) => {
                    assert!(!refusal.message.is_empty());
                    // What is secret is never said again.
                    assert!(!refusal.message.contains("hidden"), "{}", refusal.message);
                    false
                }
            }
        });
}

#[test]
fn fuzz_patches_of_pools() {
    let pool = check(&serde_json::from_slice(&seeds()[1]).unwrap()).unwrap();
    Target::new("patches_of_pools")
        .seeds(seeds())
        .words(WORDS)
        .run(INPUTS, |input| {
            let Ok(patch) = serde_json::from_slice::<Value>(input) else {
                return false;
            };
            let id = crate::arm::resource::id(&pool);
            let changed = within(4 << 20, || {
                let body = patched(&pool, patch, &id)?;
                look_up_and_check(&body, Address::of(&pool), Some(&pool))
            });
            changed.inspect(assert_within_rules).is_ok()
        });
}
