//! A pool for people.

use serde_json::Value;

use super::cell;

pub const COLUMNS: [&str; 10] = [
    "NAME",
    "IMAGE",
    "CPU",
    "MEMORY",
    "PORT",
    "MAX",
    "READY",
    "IN USE",
    "LIFECYCLE",
    "STATE",
];

pub fn endpoint(pool: &Value) -> &str {
    pool["properties"]["poolManagementEndpoint"]
        .as_str()
        .unwrap_or("(no endpoint)")
}

pub fn row(pool: &Value) -> Vec<String> {
    let properties = &pool["properties"];
    let template = &properties["customContainerTemplate"];
    let container = &template["containers"][0];
    let counts = &properties["sessionCounts"];
    let scale = &properties["scaleConfiguration"];
    vec![
        cell(&pool["name"]),
        cell(&container["image"]),
        cell(&container["resources"]["cpu"]),
        cell(&container["resources"]["memory"]),
        cell(&template["ingress"]["targetPort"]),
        cell(&scale["maxConcurrentSessions"]),
        format!(
            "{}/{}",
            cell(&counts["ready"]),
            cell(&scale["readySessionInstances"])
        ),
        cell(&counts["allocated"]),
        lifecycle(properties),
        cell(&properties["provisioningState"]),
    ]
}

pub fn details(pool: &Value) -> String {
    let properties = &pool["properties"];
    let template = &properties["customContainerTemplate"];
    let container = &template["containers"][0];
    let scale = &properties["scaleConfiguration"];
    let rows = [
        ("name", cell(&pool["name"])),
        ("image", cell(&container["image"])),
        ("digest", cell(&container["imageDigest"])),
        ("cpu", cell(&container["resources"]["cpu"])),
        ("memory", cell(&container["resources"]["memory"])),
        ("storage", cell(&container["resources"]["ephemeralStorage"])),
        ("registry", registry(&template["registryCredentials"])),
        ("target port", cell(&template["ingress"]["targetPort"])),
        ("fork point", cell(&properties["forkPoint"])),
        ("rate limits", rates(&properties["rateLimits"])),
        ("max sessions", cell(&scale["maxConcurrentSessions"])),
        ("ready wanted", cell(&scale["readySessionInstances"])),
        ("lifecycle", lifecycle(properties)),
        ("probes", probes(&container["probes"])),
        ("state", cell(&properties["provisioningState"])),
        ("sessions now", counts(&properties["sessionCounts"])),
        ("update", progress(pool)),
        ("endpoint", endpoint(pool).to_owned()),
    ];
    rows.map(|(name, value)| format!("{name:<14}{value}\n"))
        .concat()
}

fn rates(limits: &Value) -> String {
    let words = [
        ("diskIops", "disk requests"),
        ("diskBytesPerSecond", "disk bytes"),
        ("streamBytesPerSecond", "stream bytes"),
    ];
    let said = words.iter().filter_map(|(name, word)| {
        let number = limits[*name].as_u64()?;
        Some(format!("{number} {word}"))
    });
    match said.collect::<Vec<_>>().join(", ") {
        none if none.is_empty() => "-".to_owned(),
        said => format!("{said} a second"),
    }
}

fn registry(login: &Value) -> String {
    match login {
        Value::Null => "-".to_owned(),
        login => format!("{} as {}", cell(&login["server"]), cell(&login["username"])),
    }
}

fn lifecycle(properties: &Value) -> String {
    let life = &properties["dynamicPoolConfiguration"]["lifecycleConfiguration"];
    let period = match &life["cooldownPeriodInSeconds"] {
        Value::Null => &life["maxAlivePeriodInSeconds"],
        cooldown => cooldown,
    };
    format!("{} {}s", cell(&life["lifecycleType"]), cell(period))
}

fn probes(probes: &Value) -> String {
    let kinds: Vec<_> = probes
        .as_array()
        .into_iter()
        .flatten()
        .map(|probe| cell(&probe["type"]))
        .collect();
    if kinds.is_empty() {
        "-".to_owned()
    } else {
        kinds.join(", ")
    }
}

fn counts(counts: &Value) -> String {
    let names = [
        ("ready", "ready"),
        ("pending", "pending"),
        ("allocated", "allocated"),
        ("draining", "draining"),
        ("failed", "failed"),
    ];
    names
        .map(|(name, field)| format!("{} {name}", cell(&counts[field])))
        .join(", ")
}

/// Whether the pool serves what it is set to, and how far it is else.
pub fn progress(pool: &Value) -> String {
    let update = &pool["properties"]["templateUpdateStatus"];
    let (template, what) = match &update["desiredTemplate"] {
        Value::Null => (&update["activeTemplate"], "up to date"),
        desired => (desired, "another revision warms up"),
    };
    let status = &template["status"];
    let mut text = what.to_owned();
    if !update["desiredTemplate"].is_null() {
        let count = |name: &str| cell(&status[name]);
        text.push_str(&format!(
            ": {} of {} ready, {} pending",
            count("readyCount"),
            count("expectedCount"),
            count("pendingCount")
        ));
    }
    if let Some(failed) = status["crashCount"].as_u64().filter(|failed| *failed > 0) {
        // The rest is the container's output; `--json` has it.
        let details = template["details"].as_str().unwrap_or_default();
        let details = details.lines().next().unwrap_or_default();
        text.push_str(&format!("; the last {failed} starts failed: {details}"));
    }
    text
}
