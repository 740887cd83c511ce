//! `cabana sessionpool`: the resource in ARM's shape, made from the flags of `az`.

mod show;

#[cfg(test)]
mod tests;

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use http::Method;
use serde_json::{Map, Value, json};

use super::args::{
    CreatePool, DeletePool, Life, LifecycleType, ListPools, PoolTarget, RateFlags, UpdatePool,
};
use super::client::{Payload, Wait, Whom, pool_path, pools_path};
use super::login::Login;
use super::output::{print, spinner, table};
use super::source::Source;
use super::{image, probes, secrets};
use crate::exit::{Exit, Failure};

/// As `az` has it.
const DEFAULT_READY_SESSIONS: u32 = 5;

pub fn create(create: Box<CreatePool>) -> Result<Exit, Failure> {
    let whom = create.appliance.whom()?;
    let probes = create.probe_yaml.as_deref().map(probes::read).transpose()?;
    let secrets = secrets::read(&create.secrets)?;
    let image = imported(&whom, &create.image)?;
    let login = Login::of(&create.registry, Some(&image))?;
    let path = pool_path(&create.group, &create.name);
    let mut body = resource(&create, &image, probes);
    keep_secrets(&mut body, login.as_ref(), &secrets, Vec::new());
    let what = format!("making pool {}", create.name);
    let pool = change(&whom, create.no_wait, &what, Method::PUT, &path, body)?;
    print(&create.output, &pool, |pool| {
        let (name, endpoint) = (&create.name, show::endpoint(pool));
        match create.no_wait {
            true => format!("Pool {name} is being made; it will be at {endpoint}\n"),
            false => format!("Pool {name} is ready at {endpoint}\n"),
        }
    })?;
    Ok(Exit::Ok)
}

pub fn update(update: Box<UpdatePool>) -> Result<Exit, Failure> {
    let whom = update.appliance.whom()?;
    let probes = update.probe_yaml.as_deref().map(probes::read).transpose()?;
    let secrets = secrets::read(&update.secrets)?;
    let path = pool_path(&update.group, &update.name);
    // Before an image is imported for a pool that is not there.
    let pool = whom.call(Method::GET, &path, Payload::Nothing)?;
    let image = match &update.image {
        Some(image) => Some(imported(&whom, image)?),
        None => None,
    };
    let container = &pool["properties"]["customContainerTemplate"]["containers"][0];
    let login = Login::of(
        &update.registry,
        image.as_deref().or(container["image"].as_str()),
    )?;
    let mut patch = patch(&update, &pool, image, probes);
    // A list is replaced whole; a name without a value keeps it.
    let kept = pool["properties"]["secrets"].as_array();
    let kept = kept.cloned().unwrap_or_default();
    keep_secrets(&mut patch, login.as_ref(), &secrets, kept);
    let what = format!("changing pool {}", update.name);
    let pool = change(&whom, update.no_wait, &what, Method::PATCH, &path, patch)?;
    print(&update.output, &pool, |pool| {
        let name = &update.name;
        match update.no_wait {
            true => format!("Pool {name} is being changed\n"),
            false => format!("Pool {name} is changed: {}\n", show::progress(pool)),
        }
    })?;
    Ok(Exit::Ok)
}

pub fn show(target: &PoolTarget) -> Result<Exit, Failure> {
    let path = pool_path(&target.group, &target.name);
    let whom = target.appliance.whom()?;
    let pool = whom.call(Method::GET, &path, Payload::Nothing)?;
    print(&target.output, &pool, show::details)?;
    Ok(Exit::Ok)
}

pub fn list(list: &ListPools) -> Result<Exit, Failure> {
    let groups = &list.groups;
    let path = pools_path(&groups.subscription, groups.resource_group.as_deref());
    let answer = list.appliance.whom()?;
    let answer = answer.call(Method::GET, &path, Payload::Nothing)?;
    let pools = match &answer["value"] {
        Value::Array(pools) => pools.clone(),
        _ => Vec::new(),
    };
    print(&list.output, &pools, |pools| {
        let rows: Vec<_> = pools.iter().map(show::row).collect();
        table(&show::COLUMNS, &rows)
    })?;
    Ok(Exit::Ok)
}

pub fn delete(delete: &DeletePool) -> Result<Exit, Failure> {
    let whom = delete.appliance.whom()?;
    let name = &delete.name;
    if !delete.yes && !sure(name)? {
        return Err(Failure::new(
            Exit::Failed,
            format!("Pool {name} is left alone"),
        ));
    }
    let path = pool_path(&delete.group, name);
    let what = format!("deleting pool {name}");
    let none = Payload::Nothing;
    waiting(&what, || {
        whom.call_and(wait(delete.no_wait), Method::DELETE, &path, none)
    })?;
    let answer = json!({ "name": name, "deleted": !delete.no_wait });
    print(&delete.output, &answer, |_| match delete.no_wait {
        true => format!("Pool {name} is being deleted\n"),
        false => format!("Pool {name} is deleted\n"),
    })?;
    Ok(Exit::Ok)
}

/// Asks where there is somebody to ask.
fn sure(name: &str) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Ok(true);
    }
    let failed = |error: io::Error| Failure::of(Exit::Failed, &error);
    let mut stderr = io::stderr();
    write!(stderr, "Delete pool {name} and end its sessions? (y/n) ").map_err(failed)?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(failed)?;
    Ok(matches!(
        answer.trim().to_ascii_lowercase().as_str(),
        "y" | "yes"
    ))
}

fn wait(no_wait: bool) -> Wait {
    match no_wait {
        true => Wait::Begun,
        false => Wait::Done,
    }
}

fn change(
    whom: &Whom,
    no_wait: bool,
    what: &str,
    method: Method,
    path: &str,
    body: Value,
) -> Result<Value, Failure> {
    let body = Payload::Json(body);
    waiting(what, || whom.call_and(wait(no_wait), method, path, body))
}

/// Says what is waited for, where somebody watches.
fn waiting<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let progress = spinner();
    progress.set_message(what.to_owned());
    let done = work();
    progress.finish_and_clear();
    done
}

/// The name of the image; an archive is imported first.
fn imported(whom: &Whom, image: &str) -> Result<String, Failure> {
    if !Source::is_meant_by(image) {
        return Ok(image.to_owned());
    }
    let source: Source = image
        .parse()
        .map_err(|line: String| Failure::new(Exit::Usage, line))?;
    let Whom::Local(root) = whom else {
        let line = "An archive is imported on the appliance's own host: name an image in a registry, or one that is there";
        return Err(Failure::new(Exit::Usage, line));
    };
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
    let mut resource = json!({
        "location": create.location,
        "properties": {
            "poolManagementType": "Dynamic",
            "containerType": create.container_type,
            "environmentId": create.environment,
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
            "sessionNetworkConfiguration": { "status": create.network_status },
        },
    });
    if let Some(limits) = rate_limits(create.rates) {
        resource["properties"]["rateLimits"] = limits;
    }
    resource
}

/// Those that were said; one that is to be none is null.
fn rate_limits(flags: RateFlags) -> Option<Value> {
    let mut limits = Map::new();
    set(&mut limits, "diskIops", flags.disk_iops);
    set(&mut limits, "diskBytesPerSecond", flags.disk_throughput);
    set(&mut limits, "streamBytesPerSecond", flags.stream_throughput);
    (!limits.is_empty()).then(|| limits.into())
}

/// Adds secrets to a body, that of a registry's user among them, beside those that are `kept`.
fn keep_secrets(
    body: &mut Value,
    login: Option<&Login>,
    named: &[(String, String)],
    kept: Vec<Value>,
) {
    let password = login.map(|login| (login.secret_name(), login.password.clone()));
    let secrets: Vec<_> = named.iter().cloned().chain(password).collect();
    if secrets.is_empty() {
        return;
    }
    let properties = &mut body["properties"];
    properties["secrets"] = secrets::merged(kept, &secrets).into();
    if let Some(login) = login {
        properties["customContainerTemplate"]["registryCredentials"] = login.credentials();
    }
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
    set(&mut properties, "rateLimits", rate_limits(update.rates));
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
    if let Some(status) = &update.network_status {
        let network = json!({ "status": status });
        properties.insert("sessionNetworkConfiguration".to_owned(), network);
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
        .map(|(name, value)| secrets::variable(name, value))
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
