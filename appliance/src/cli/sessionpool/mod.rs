//! `cabana sessionpool`: the resource in ARM's shape, made from the flags of `az`.

mod show;

#[cfg(test)]
mod tests;

use std::path::Path;

use http::Method;
use serde_json::{Map, Value, json};

use super::args::{CreatePool, Life, LifecycleType, ListPools, PoolTarget, UpdatePool};
use super::client::{Payload, call, pool_path};
use super::login::Login;
use super::output::{print, table};
use super::source::Source;
use super::{image, probes};
use crate::exit::{Exit, Failure};

/// As `az` has it.
const DEFAULT_READY_SESSIONS: u32 = 5;

pub fn create(create: Box<CreatePool>) -> Result<Exit, Failure> {
    let root = &create.connection.root;
    let probes = create.probe_yaml.as_deref().map(probes::read).transpose()?;
    let image = imported(root, &create.image)?;
    let login = Login::of(&create.registry, Some(&image))?;
    let path = pool_path(&create.resource_group, Some(&create.name));
    let mut body = resource(&create, &image, probes);
    if let Some(login) = &login {
        log_in(&mut body, login, Vec::new());
    }
    let body = Payload::Json(body);
    let pool = call(root, Method::PUT, &path, body)?;
    print(create.json, &pool, |pool| {
        format!(
            "Pool {} is ready at {}\n",
            create.name,
            show::endpoint(pool)
        )
    })?;
    Ok(Exit::Ok)
}

pub fn update(update: Box<UpdatePool>) -> Result<Exit, Failure> {
    let root = &update.connection.root;
    let probes = update.probe_yaml.as_deref().map(probes::read).transpose()?;
    let path = pool_path(&update.resource_group, Some(&update.name));
    // Before an image is imported for a pool that is not there.
    let pool = call(root, Method::GET, &path, Payload::Nothing)?;
    let image = match &update.image {
        Some(image) => Some(imported(root, image)?),
        None => None,
    };
    let container = &pool["properties"]["customContainerTemplate"]["containers"][0];
    let login = Login::of(
        &update.registry,
        image.as_deref().or(container["image"].as_str()),
    )?;
    let mut patch = patch(&update, &pool, image, probes);
    if let Some(login) = &login {
        // A list is replaced whole; a name without a value keeps it.
        let kept = pool["properties"]["secrets"].as_array();
        log_in(&mut patch, login, kept.cloned().unwrap_or_default());
    }
    let pool = call(root, Method::PATCH, &path, Payload::Json(patch))?;
    print(update.json, &pool, |pool| {
        format!(
            "Pool {} is changed: {}\n",
            update.name,
            show::progress(pool)
        )
    })?;
    Ok(Exit::Ok)
}

pub fn show(target: &PoolTarget) -> Result<Exit, Failure> {
    let path = pool_path(&target.resource_group, Some(&target.name));
    let pool = call(
        &target.connection.root,
        Method::GET,
        &path,
        Payload::Nothing,
    )?;
    print(target.json, &pool, show::details)?;
    Ok(Exit::Ok)
}

pub fn list(list: &ListPools) -> Result<Exit, Failure> {
    let path = pool_path(&list.resource_group, None);
    let answer = call(&list.connection.root, Method::GET, &path, Payload::Nothing)?;
    let pools = match &answer["value"] {
        Value::Array(pools) => pools.clone(),
        _ => Vec::new(),
    };
    print(list.json, &pools, |pools| {
        let rows: Vec<_> = pools.iter().map(show::row).collect();
        table(&show::COLUMNS, &rows)
    })?;
    Ok(Exit::Ok)
}

pub fn delete(target: &PoolTarget) -> Result<Exit, Failure> {
    let path = pool_path(&target.resource_group, Some(&target.name));
    call(
        &target.connection.root,
        Method::DELETE,
        &path,
        Payload::Nothing,
    )?;
    let answer = json!({ "name": target.name, "deleted": true });
    print(target.json, &answer, |_| {
        format!("Pool {} is deleted\n", target.name)
    })?;
    Ok(Exit::Ok)
}

/// The name of the image; an archive is imported first.
fn imported(root: &Path, image: &str) -> Result<String, Failure> {
    if !Source::is_meant_by(image) {
        return Ok(image.to_owned());
    }
    let source: Source = image
        .parse()
        .map_err(|line: String| Failure::new(Exit::Usage, line))?;
    Ok(image::send(root, &source, None)?.name)
}

/// The body of the PUT.
fn resource(create: &CreatePool, image: &str, probes: Option<Value>) -> Value {
    let mut container = json!({
        "name": create.container_name.as_ref().unwrap_or(&create.name),
        "image": image,
        "env": env(&create.env_vars),
        "resources": {
            "cpu": create.cpu,
            "memory": create.memory,
            "ephemeralStorage": create.ephemeral_storage,
        },
    });
    // Absent means the image's own; an empty list would replace it by nothing.
    if !create.command.is_empty() {
        container["command"] = json!(create.command);
    }
    if !create.args.is_empty() {
        container["args"] = json!(create.args);
    }
    if let Some(probes) = probes {
        container["probes"] = probes;
    }
    let ready = create
        .ready_sessions
        .unwrap_or(DEFAULT_READY_SESSIONS.min(create.max_sessions));
    json!({
        "location": "local",
        "properties": {
            "poolManagementType": "Dynamic",
            "containerType": "CustomContainer",
            "forkPoint": create.fork_point.to_string(),
            "scaleConfiguration": {
                "maxConcurrentSessions": create.max_sessions,
                "readySessionInstances": ready,
            },
            "dynamicPoolConfiguration": { "lifecycleConfiguration": lifecycle(create.life) },
            "customContainerTemplate": {
                "containers": [container],
                "ingress": { "targetPort": create.target_port },
            },
            "sessionNetworkConfiguration": { "status": "EgressDisabled" },
        },
    })
}

/// Adds user and password to a body; the password is a secret beside those that are `kept`.
fn log_in(body: &mut Value, login: &Login, kept: Vec<Value>) {
    let name = login.secret_name();
    let mut secrets = kept;
    secrets.retain(|secret| secret["name"] != name.as_str());
    secrets.push(json!({ "name": name, "value": login.password }));
    let properties = &mut body["properties"];
    properties["secrets"] = secrets.into();
    properties["customContainerTemplate"]["registryCredentials"] = login.credentials();
}

/// The body of the PATCH: what was said, and nothing else. The container is in a list, which a patch
/// replaces whole, so it is sent as it is in `pool` with what was said of it.
fn patch(update: &UpdatePool, pool: &Value, image: Option<String>, probes: Option<Value>) -> Value {
    let mut scale = Map::new();
    set(&mut scale, "maxConcurrentSessions", update.max_sessions);
    set(&mut scale, "readySessionInstances", update.ready_sessions);
    let mut template = Map::new();
    let before = &pool["properties"]["customContainerTemplate"]["containers"][0];
    let container = container(update, before, image, probes);
    if container != *before {
        template.insert("containers".to_owned(), json!([container]));
    }
    if let Some(port) = update.target_port {
        template.insert("ingress".to_owned(), json!({ "targetPort": port }));
    }
    let mut properties = Map::new();
    let point = update.fork_point.map(|point| point.to_string());
    set(&mut properties, "forkPoint", point);
    for (name, part) in [
        ("scaleConfiguration", scale),
        ("customContainerTemplate", template),
    ] {
        set(&mut properties, name, (!part.is_empty()).then_some(part));
    }
    let life = lifecycle(update.life);
    if life.as_object().is_some_and(|life| !life.is_empty()) {
        let life = json!({ "lifecycleConfiguration": life });
        properties.insert("dynamicPoolConfiguration".to_owned(), life);
    }
    json!({ "properties": properties })
}

fn container(
    update: &UpdatePool,
    before: &Value,
    image: Option<String>,
    probes: Option<Value>,
) -> Value {
    let mut container = before.clone();
    let Some(members) = container.as_object_mut() else {
        return container;
    };
    if image.is_some() {
        // What the name meant so far; now it shall mean what it means.
        members.remove("imageDigest");
    }
    set(members, "image", image);
    set(members, "name", update.container_name.clone());
    set(members, "env", update.env_vars.as_deref().map(env));
    set(members, "probes", probes);
    for (name, words) in [("command", &update.command), ("args", &update.args)] {
        match words.as_deref() {
            None => {}
            Some([empty]) if empty.is_empty() => drop(members.remove(name)),
            Some(words) => drop(members.insert(name.to_owned(), json!(words))),
        }
    }
    let resources = &mut container["resources"];
    if let Some(cpu) = update.cpu {
        resources["cpu"] = cpu.into();
    }
    if let Some(memory) = &update.memory {
        resources["memory"] = memory.as_str().into();
    }
    if let Some(storage) = &update.ephemeral_storage {
        resources["ephemeralStorage"] = storage.as_str().into();
    }
    container
}

fn env(vars: &[(String, String)]) -> Value {
    vars.iter()
        .map(|(name, value)| json!({ "name": name, "value": value }))
        .collect()
}

fn lifecycle(life: Life) -> Value {
    let mut members = Map::new();
    let kind = life.lifecycle_type.map(|kind| match kind {
        LifecycleType::Timed => "Timed",
        LifecycleType::OnContainerExit => "OnContainerExit",
    });
    set(&mut members, "lifecycleType", kind);
    set(
        &mut members,
        "cooldownPeriodInSeconds",
        life.cooldown_period,
    );
    set(
        &mut members,
        "maxAlivePeriodInSeconds",
        life.max_alive_period,
    );
    members.into()
}

fn set(members: &mut Map<String, Value>, name: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        members.insert(name.to_owned(), value.into());
    }
}

/// A value without its quotes.
pub fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
