//! From what a caller sent to a pool that is right, and back. Every message names the property and what
//! it may be. What this version cannot do is refused, not ignored: a pool that silently lacks its egress
//! rule is worse than none.

mod container;
mod lifecycle;
mod patch;
mod probes;
mod raw;
mod scale;
mod secrets;

use serde_json::{Value, json};
use uuid::Uuid;

use super::images::{ImageSummary, PullOrder};
use super::pools::new_name;
use super::vault::Vault;
use crate::front::refusal::{Code, Refusal};
use crate::pool::unix_millis;
use crate::store::PoolRecord;
use crate::worker::spec::ForkPoint;
use raw::{Raw, dotted, unsupported, wrong};

pub use patch::patched;

const DEFAULT_LOCATION: &str = "local";
const FORK_POINT: &str = "/properties/forkPoint";

/// What this host allows.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    pub min_cooldown_seconds: u64,
    pub max_cpu_millis: u32,
    pub max_mem_mib: u32,
}

/// Which pool is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub subscription: String,
    pub resource_group: String,
    pub name: String,
}

/// What must be known to look the image up. `current` is the pool of this name, if there is one: a
/// body that was made from it may mean its image.
pub fn image_order(
    body: &Value,
    address: &Address,
    current: Option<&PoolRecord>,
    vault: &Vault,
) -> Result<PullOrder, Refusal> {
    let name = new_name(&address.name)?;
    let raw = Raw(body);
    if !body.is_object() {
        return Err(not_an_object());
    }
    refuse_unsupported(&raw)?;
    let secrets = secrets::read(&raw, name.as_str(), current, vault)?;
    let credentials = match secrets::login(&raw, &secrets)? {
        Some(login) => secrets::credentials(name.as_str(), &login, &secrets, vault)?,
        None => None,
    };
    let (image, digest) = container::image(&raw, current)?;
    Ok(PullOrder {
        image,
        digest,
        credentials,
    })
}

/// What an error about the image is about.
pub fn image_target() -> String {
    dotted(&format!("{}/image", container::CONTAINER))
}

/// Checks everything. `image` is what [`image_order`] led to.
pub fn checked(
    body: &Value,
    address: Address,
    current: Option<&PoolRecord>,
    rules: &Rules,
    image: &ImageSummary,
    vault: &Vault,
) -> Result<PoolRecord, Refusal> {
    let name = new_name(&address.name)?;
    let raw = Raw(body);
    if !body.is_object() {
        return Err(not_an_object());
    }
    refuse_unsupported(&raw)?;
    let (image_name, _) = container::image(&raw, current)?;
    let secrets = secrets::read(&raw, name.as_str(), current, vault)?;
    let scale = scale::read(&raw)?;
    let (lifecycle, cooldown_seconds) = lifecycle::read(&raw, rules)?;
    let now = unix_millis();
    let pool = PoolRecord {
        subscription: address.subscription,
        resource_group: address.resource_group,
        location: raw
            .text("/location")?
            .unwrap_or_else(|| DEFAULT_LOCATION.to_owned()),
        tags: tags(&raw)?,
        revision: Uuid::new_v4(),
        container_name: container::name(&raw)?.unwrap_or_else(|| name.to_string()),
        image: image_name,
        image_digest: image.digest.clone(),
        cpu_millis: container::cpu(&raw, rules)?,
        mem_mib: container::memory(&raw, rules)?,
        disk_mib: container::storage(&raw)?,
        fork_point: fork_point(&raw)?,
        target_port: container::target_port(&raw)?,
        command: container::command(&raw)?,
        args: container::args(&raw)?,
        env: container::env(&raw)?,
        max_sessions: scale.max_sessions,
        ready_sessions: scale.ready_sessions,
        lifecycle,
        cooldown_seconds,
        probes: container::probes(&raw)?,
        registry: secrets::login(&raw, &secrets)?,
        secrets,
        created_at_ms: now,
        modified_at_ms: now,
        name,
    };
    container::check(&pool, image)?;
    Ok(pool)
}

/// What a caller may set of a pool. Read again by [`checked`] it gives the same pool.
pub fn render(pool: &PoolRecord) -> Value {
    let mut body = json!({
        "location": pool.location,
        "tags": pool.tags,
        "properties": {
            "poolManagementType": "Dynamic",
            "containerType": "CustomContainer",
            "forkPoint": pool.fork_point.to_string(),
            "scaleConfiguration": scale::render(pool),
            "dynamicPoolConfiguration": lifecycle::render(pool),
            "customContainerTemplate": container::render(pool),
            "sessionNetworkConfiguration": { "status": "EgressDisabled" },
        },
    });
    if !pool.secrets.is_empty() {
        body["properties"]["secrets"] = secrets::render(pool);
    }
    body
}

/// The part of a pool that its slots are made of, as the resource has it.
pub fn render_template(pool: &PoolRecord) -> Value {
    container::render(pool)
}

fn not_an_object() -> Refusal {
    Refusal::new(Code::InvalidRequestContent, "The body is not a JSON object")
}

fn refuse_unsupported(raw: &Raw<'_>) -> Result<(), Refusal> {
    for (path, only) in [
        ("/properties/containerType", "CustomContainer"),
        ("/properties/poolManagementType", "Dynamic"),
        (
            "/properties/sessionNetworkConfiguration/status",
            "EgressDisabled",
        ),
        ("/identity/type", "None"),
    ] {
        if let Some(found) = raw.text(path)?
            && !found.eq_ignore_ascii_case(only)
        {
            let message = format!(
                "{} {found:?} is not supported by this version, only {only:?}",
                dotted(path)
            );
            return Err(unsupported(path, message));
        }
    }
    let path = "/properties/managedIdentitySettings";
    let empty = match raw.get(path) {
        None => true,
        Some(Value::Array(items)) => items.is_empty(),
        Some(_) => false,
    };
    if !empty {
        return Err(unsupported(
            path,
            format!("{} is not supported by this version", dotted(path)),
        ));
    }
    let containers = "/properties/customContainerTemplate/containers";
    if raw
        .get(containers)
        .and_then(Value::as_array)
        .is_some_and(|list| list.len() > 1)
    {
        let message = format!("{} may hold one container only", dotted(containers));
        return Err(unsupported(containers, message));
    }
    Ok(())
}

fn tags(raw: &Raw<'_>) -> Result<std::collections::BTreeMap<String, String>, Refusal> {
    let Some(value) = raw.get("/tags") else {
        return Ok(Default::default());
    };
    let expected = "an object of strings";
    let tags = value
        .as_object()
        .ok_or_else(|| wrong("/tags", expected, value))?;
    let tag = |(name, value): (&String, &Value)| {
        let text = value
            .as_str()
            .ok_or_else(|| wrong("/tags", expected, value))?;
        Ok((name.clone(), text.to_owned()))
    };
    tags.iter().map(tag).collect()
}

/// Our own; the cloud service has nothing like it.
fn fork_point(raw: &Raw<'_>) -> Result<ForkPoint, Refusal> {
    let Some(text) = raw.text(FORK_POINT)? else {
        return Ok(ForkPoint::default());
    };
    text.parse().map_err(|_| {
        let (first, second) = (ForkPoint::BeforeStart, ForkPoint::AfterReady);
        wrong(
            FORK_POINT,
            &format!("\"{first}\" or \"{second}\""),
            &text.into(),
        )
    })
}

#[cfg(test)]
mod tests;
