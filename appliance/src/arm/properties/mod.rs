//! From what a caller sent to a pool that is right, and back. Every message names the property and what
//! it may be. What this version cannot do is refused, not ignored: a pool that silently lacks its egress
//! rule is worse than none.

mod container;
mod lifecycle;
mod patch;
mod probes;
mod rates;
mod raw;
mod scale;
mod secrets;

use serde_json::{Value, json};
use uuid::Uuid;

use super::path::{self, Target};
use super::version::Shape;
use crate::admin::{ImageSummary, PullOrder};
use crate::front::refusal::{Code, Refusal};
use crate::openapi::schema::{Described, count, map, moment, nullable, object, text, word};
use crate::pool::{POOL_NAME_RULE, PoolName, unix_millis};
use crate::store::PoolRecord;
use crate::vault::Vault;
use crate::worker::spec::ForkPoint;
use raw::{Raw, dotted, unsupported, wrong};

pub use patch::patched;

const DEFAULT_LOCATION: &str = "local";
const FORK_POINT: &str = "/properties/forkPoint";
const ENVIRONMENT: &str = "/properties/environmentId";
/// Longest name of a subscription; a UUID has 36 characters.
const MAX_SUBSCRIPTION: usize = 64;
/// As resource manager has it.
const MAX_RESOURCE_GROUP: usize = 90;
const MCP_SERVER: &str = "/properties/mcpServerSettings/isMcpServerEnabled";

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

impl Address {
    pub fn of(pool: &PoolRecord) -> Self {
        Self {
            subscription: pool.subscription.clone(),
            resource_group: pool.resource_group.clone(),
            name: pool.name.to_string(),
        }
    }

    /// Whether the pool of this name is in this group.
    pub fn is_of(&self, pool: &PoolRecord) -> bool {
        let same = |one: &str, other: &str| one.eq_ignore_ascii_case(other);
        same(&self.subscription, &pool.subscription)
            && same(&self.resource_group, &pool.resource_group)
    }

    /// As the address of a new pool: subscriptions and resource groups need not be made, so any will do that looks like one.
    pub fn well_formed(self) -> Result<Self, Refusal> {
        let of = |text: &str, more: &str, most: usize| {
            text.len() <= most
                && text
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || more.contains(c))
        };
        let wrong = |target: &str, message: &str| {
            Err(Refusal::new(Code::SessionPoolInvalidProperty, message).target(target))
        };
        if !of(&self.subscription, "-_.", MAX_SUBSCRIPTION) {
            return wrong(
                "subscriptionId",
                "A subscription is 1 to 64 of A-Z a-z 0-9 - _ .",
            );
        }
        if !of(&self.resource_group, "-_.()", MAX_RESOURCE_GROUP)
            || self.resource_group.ends_with('.')
        {
            return wrong(
                "resourceGroupName",
                "A resource group is 1 to 90 of A-Z a-z 0-9 - _ . ( ), with no full stop at its end",
            );
        }
        Ok(self)
    }
}

/// A pool that is right but for its image, which has not been looked for.
#[derive(Debug, Clone)]
pub struct Draft {
    /// Without the digest of the image.
    pub pool: PoolRecord,
    /// Which image it is to be.
    pub order: PullOrder,
}

/// Checks all that can be checked without the image. `current` is the pool of this name, if there is one: a body that
/// was made from it may mean its image, and cannot change what a pool keeps for good.
pub fn draft(
    body: &Value,
    shape: &Shape,
    address: &Address,
    current: Option<&PoolRecord>,
    rules: &Rules,
    vault: &Vault,
) -> Result<Draft, Refusal> {
    let name = new_name(&address.name)?;
    let raw = Raw(body);
    if !body.is_object() {
        return Err(not_an_object());
    }
    refuse_unsupported(&raw)?;
    if let Some(current) = current {
        patch::refuse_other_identity(body, current, &["/location", ENVIRONMENT])?;
    }
    let (image, digest) = container::image(&raw, current)?;
    let secrets = secrets::read(&raw, name.as_str(), current, vault)?;
    let registry = secrets::login(&raw, &secrets)?;
    let credentials = match &registry {
        Some(login) => secrets::credentials(name.as_str(), login, &secrets, vault)?,
        None => None,
    };
    let scale = scale::read(&raw)?;
    let (lifecycle, cooldown_seconds) = lifecycle::read(&raw, rules)?;
    let now = unix_millis();
    let kept = |kept: fn(&PoolRecord) -> String| current.map(kept);
    let location = raw.text("/location")?.filter(|text| !text.is_empty());
    let pool = PoolRecord {
        subscription: kept(|pool| pool.subscription.clone())
            .unwrap_or_else(|| address.subscription.clone()),
        resource_group: kept(|pool| pool.resource_group.clone())
            .unwrap_or_else(|| address.resource_group.clone()),
        location: kept(|pool| pool.location.clone())
            .or(location)
            .unwrap_or_else(|| DEFAULT_LOCATION.to_owned()),
        tags: tags(&raw)?,
        revision: Uuid::new_v4(),
        container_name: container::name(&raw)?.unwrap_or_else(|| name.to_string()),
        image: image.clone(),
        image_digest: String::new(),
        cpu_millis: container::cpu(&raw, rules)?,
        mem_mib: container::memory(&raw, rules)?,
        disk_mib: container::storage(&raw)?,
        fork_point: fork_point(&raw)?,
        rate_limits: rates::read(&raw)?,
        target_port: container::target_port(&raw)?,
        command: container::command(&raw)?,
        args: container::args(&raw)?,
        env: container::env(&raw, &secrets)?,
        max_sessions: scale.max_sessions,
        ready_sessions: scale.ready_sessions,
        lifecycle,
        cooldown_seconds,
        probes: container::probes(&raw, shape, current)?,
        registry,
        secrets,
        environment_id: environment(&raw)?
            .or_else(|| current.and_then(|pool| pool.environment_id.clone())),
        created_at_ms: now,
        modified_at_ms: now,
        name,
    };
    let order = PullOrder {
        image,
        digest,
        credentials,
    };
    Ok(Draft { pool, order })
}

/// The pool with its image, if the two go together.
pub fn finished(
    draft: PoolRecord,
    image: &ImageSummary,
    vault: &Vault,
) -> Result<PoolRecord, Refusal> {
    let pool = PoolRecord {
        image_digest: image.digest.clone(),
        ..draft
    };
    container::check(&pool, image, vault)?;
    Ok(pool)
}

/// What an error about the image is about.
pub fn image_target() -> String {
    dotted(&format!("{}/image", container::CONTAINER))
}

/// A name for a new pool.
pub fn new_name(name: &str) -> Result<PoolName, Refusal> {
    name.parse()
        .map_err(|_| Refusal::new(Code::SessionPoolInvalidProperty, POOL_NAME_RULE).target("name"))
}

/// What a caller may set of a pool. Read again by [`draft`] it gives the same pool.
pub fn render(pool: &PoolRecord, shape: &Shape) -> Value {
    let mut body = json!({
        "location": pool.location,
        "tags": pool.tags,
        "identity": { "type": "None" },
        "properties": {
            "poolManagementType": "Dynamic",
            "containerType": "CustomContainer",
            "forkPoint": pool.fork_point.to_string(),
            "scaleConfiguration": scale::render(pool),
            "dynamicPoolConfiguration": lifecycle::render(pool, shape),
            "customContainerTemplate": container::render(pool, shape),
            "sessionNetworkConfiguration": { "status": "EgressDisabled" },
        },
    });
    let properties = &mut body["properties"];
    if let Some(limits) = rates::render(pool) {
        properties[rates::RATE_LIMITS] = limits;
    }
    if let Some(environment) = &pool.environment_id {
        properties["environmentId"] = environment.as_str().into();
    }
    if !pool.secrets.is_empty() {
        properties["secrets"] = secrets::render(pool);
    }
    if shape.managed_identity {
        properties["managedIdentitySettings"] = json!([]);
    }
    if shape.mcp_server {
        properties["mcpServerSettings"] = json!({ "isMcpServerEnabled": false });
    }
    body
}

/// For the OpenAPI document: a pool as it is answered, and as it is asked for.
pub fn schema() -> Described {
    let read_only = |about: &str| text(about).read_only(true);
    let points = [ForkPoint::BeforeStart, ForkPoint::AfterReady].map(|point| point.to_string());
    let points: Vec<&str> = points.iter().map(String::as_str).collect();
    let only = |about: &str, words: &[&str]| nullable(word(about, words));
    let counts = ["ready", "pending", "allocated", "draining", "failed"];
    let counts = counts.into_iter().fold(
        object("What the pool holds now; our own").read_only(true),
        |counts, name| counts.property(name, count("Of these")),
    );
    let network = object("What sessions may reach")
        .property("status", only("Nothing, so far", &["EgressDisabled"]));
    let properties = object("What the pool is")
        .property("customContainerTemplate", container::schema())
        .required("customContainerTemplate")
        .property("scaleConfiguration", nullable(scale::schema()))
        .property("dynamicPoolConfiguration", nullable(lifecycle::schema()))
        .property("secrets", nullable(secrets::schema()))
        .property(
            "containerType",
            only("What kind of pool", &["CustomContainer"]),
        )
        .property(
            "poolManagementType",
            only("How it is managed", &["Dynamic"]),
        )
        .property("sessionNetworkConfiguration", nullable(network))
        .property(
            "environmentId",
            nullable(text("The id of a managed environment; any will do")),
        )
        .property(
            "forkPoint",
            only(
                "When the snapshot is taken that sessions are forked from; our own",
                &points,
            ),
        )
        .property(rates::RATE_LIMITS, nullable(rates::schema()))
        .property(
            "managedIdentitySettings",
            nullable(
                crate::openapi::schema::list("Not supported: empty", object("")).max_items(Some(0)),
            ),
        )
        .property("mcpServerSettings", nullable(object("Not supported: off")))
        .property("nodeCount", count("Hosts"))
        .property(
            "poolManagementEndpoint",
            read_only("Where its sessions are reached"),
        )
        .property(
            "provisioningState",
            read_only("InProgress, Succeeded or Deleting"),
        )
        .property("sessionCounts", counts)
        .property(
            "templateUpdateStatus",
            object("How far a change is").read_only(true),
        );
    let system = object("When it was made and changed")
        .read_only(true)
        .property("createdAt", moment("When it was made"))
        .property("lastModifiedAt", moment("When it was last changed"));
    object("A pool")
        .property("id", read_only("Its address"))
        .property("name", read_only("Its name"))
        .property("type", read_only("Microsoft.App/sessionPools"))
        .property(
            "location",
            nullable(text("Any; cannot be changed").default(Some(DEFAULT_LOCATION.into()))),
        )
        .property("tags", nullable(map("The caller's own", text("A value"))))
        .property("identity", nullable(object("Not supported: type None")))
        .property("properties", properties)
        .required("properties")
        .property("systemData", system)
        .into()
}

/// For the OpenAPI document: a patch of a pool.
pub fn update_schema() -> Described {
    object("What is to change of a pool: a JSON merge patch of it. Lists are replaced whole, null is the default")
        .property("tags", nullable(map("The caller's own", nullable(text("A value")))))
        .property("properties", nullable(object("As in SessionPool, each of them optional")))
        .into()
}

/// The part of a pool that its slots are made of, as the resource has it.
pub fn render_template(pool: &PoolRecord, shape: &Shape) -> Value {
    container::render(pool, shape)
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
    if raw.get(MCP_SERVER).is_some_and(|found| *found != false) {
        let message = format!("{} is not supported by this version", dotted(MCP_SERVER));
        return Err(unsupported(MCP_SERVER, message));
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

/// The id of a managed environment. There is nothing here that it could be checked against, so any will do.
fn environment(raw: &Raw<'_>) -> Result<Option<String>, Refusal> {
    let Some(id) = raw.text(ENVIRONMENT)?.filter(|id| !id.is_empty()) else {
        return Ok(None);
    };
    match path::target(&id) {
        Ok(Target::Environment(..)) => Ok(Some(id)),
        _ => {
            let expected = "\"/subscriptions/<s>/resourceGroups/<rg>/providers/Microsoft.App/\
                            managedEnvironments/<name>\"";
            Err(wrong(ENVIRONMENT, expected, &id.into()))
        }
    }
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
