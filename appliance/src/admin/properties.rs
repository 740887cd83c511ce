//! From what a caller sent to a pool that is right. Every message names the property and what it
//! may be. What this version cannot do is refused, not ignored: a pool that silently lacks a probe or
//! its egress rule is worse than none.

use std::ops::RangeInclusive;

use serde_json::Value;
use uuid::Uuid;
use wire::{HostMessage, frame};

use super::images::{ImageService, ImageSummary};
use super::pools::new_name;
use super::resource::memory;
use crate::front::refusal::{Code, Refusal};
use crate::pool::{container, unix_millis};
use crate::store::{DEFAULT_DISK_MIB, EnvVar, PoolRecord};
use crate::worker::spec::ForkPoint;

const CPU_STEP_MILLIS: u32 = 250;
const MIN_MEM_MIB: u32 = 512;
/// The writable layer is sparse: what it may grow to, not what it takes.
const DISK_MIB: RangeInclusive<u32> = 1 << 10..=1024 << 10;
/// What the cloud service allows at most.
const MAX_COOLDOWN_SECONDS: u64 = 3600;
const MAX_SESSIONS: u64 = 100_000;
const DEFAULT_MAX_SESSIONS: u64 = 10;
const DEFAULT_COOLDOWN_SECONDS: u64 = 300;
const DEFAULT_CPU: f64 = 0.25;
const DEFAULT_MEM_MIB: u32 = 512;
const DEFAULT_LOCATION: &str = "local";

const CONTAINER: &str = "/properties/customContainerTemplate/containers/0";

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

/// Checks everything and looks up the image.
pub fn checked(
    body: &Value,
    address: Address,
    rules: &Rules,
    images: &dyn ImageService,
) -> Result<PoolRecord, Refusal> {
    let name = new_name(&address.name)?;
    let raw = Raw(body);
    if !body.is_object() {
        return Err(Refusal::new(
            Code::InvalidRequestContent,
            "The body is not a JSON object",
        ));
    }
    refuse_unsupported(&raw)?;
    let image = raw.required_text(&format!("{CONTAINER}/image"))?;
    let found = images
        .find(&image)
        .map_err(|refusal| refusal.target(dotted(&format!("{CONTAINER}/image"))))?;
    let now = unix_millis();
    let pool = PoolRecord {
        subscription: address.subscription,
        resource_group: address.resource_group,
        location: raw
            .text("/location")?
            .unwrap_or_else(|| DEFAULT_LOCATION.to_owned()),
        tags: raw.tags()?,
        revision: Uuid::new_v4(),
        container_name: raw
            .text(&format!("{CONTAINER}/name"))?
            .unwrap_or_else(|| name.to_string()),
        image,
        image_digest: found.digest.clone(),
        cpu_millis: raw.cpu(rules)?,
        mem_mib: raw.memory(rules)?,
        disk_mib: raw.storage()?,
        fork_point: raw.fork_point()?,
        target_port: raw.target_port()?,
        command: raw.words(&format!("{CONTAINER}/command"))?,
        args: raw.words(&format!("{CONTAINER}/args"))?,
        env: raw.env()?,
        max_sessions: raw.max_sessions()?,
        cooldown_seconds: raw.cooldown(rules)?,
        created_at_ms: now,
        modified_at_ms: now,
        name,
    };
    check_container(&pool, &found)?;
    Ok(pool)
}

/// The container must have something to run, and what there is to say about it must fit the one
/// frame that carries it to the agent.
fn check_container(pool: &PoolRecord, image: &ImageSummary) -> Result<(), Refusal> {
    let spec = container::spec(&image.defaults, pool);
    let spec = spec.map_err(|error| invalid(&format!("{CONTAINER}/command"), error.to_string()))?;
    if frame::encode(&HostMessage::Start(Box::new(spec))).is_err() {
        let message = format!(
            "command, args and env together, with those of the image, exceed {} bytes",
            wire::MAX_FRAME_BYTES
        );
        return Err(invalid(CONTAINER, message));
    }
    Ok(())
}

fn refuse_unsupported(raw: &Raw<'_>) -> Result<(), Refusal> {
    for (path, only) in [
        ("/properties/containerType", "CustomContainer"),
        ("/properties/poolManagementType", "Dynamic"),
        (
            "/properties/dynamicPoolConfiguration/lifecycleConfiguration/lifecycleType",
            "Timed",
        ),
        (
            "/properties/dynamicPoolConfiguration/executionType",
            "Timed",
        ),
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
    for path in [
        "/properties/secrets",
        "/properties/managedIdentitySettings",
        "/properties/customContainerTemplate/registryCredentials",
        "/properties/dynamicPoolConfiguration/lifecycleConfiguration/maxAlivePeriodInSeconds",
        "/properties/customContainerTemplate/containers/0/probes",
    ] {
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
    let ready = "/properties/scaleConfiguration/readySessionInstances";
    if raw
        .integer(ready, 0..=u64::MAX)?
        .is_some_and(|ready| ready > 0)
    {
        let message = format!(
            "{} must be 0: this version starts each session when it is first asked for",
            dotted(ready)
        );
        return Err(unsupported(ready, message));
    }
    Ok(())
}

/// The body, read property by property. A null is an absent property.
struct Raw<'a>(&'a Value);

impl<'a> Raw<'a> {
    fn get(&self, path: &str) -> Option<&'a Value> {
        self.0.pointer(path).filter(|value| !value.is_null())
    }

    fn text(&self, path: &str) -> Result<Option<String>, Refusal> {
        let Some(value) = self.get(path) else {
            return Ok(None);
        };
        let text = value
            .as_str()
            .ok_or_else(|| wrong(path, "a string", value))?;
        if text.contains('\0') {
            Err(wrong(path, "a string without zero bytes", value))
        } else {
            Ok(Some(text.to_owned()))
        }
    }

    fn required_text(&self, path: &str) -> Result<String, Refusal> {
        let text = self.text(path)?.filter(|text| !text.is_empty());
        text.ok_or_else(|| invalid(path, format!("{} is missing", dotted(path))))
    }

    fn integer(&self, path: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, Refusal> {
        let Some(value) = self.get(path) else {
            return Ok(None);
        };
        let number = value.as_u64().filter(|number| range.contains(number));
        let expected = || format!("a whole number from {} to {}", range.start(), range.end());
        number
            .map(Some)
            .ok_or_else(|| wrong(path, &expected(), value))
    }

    fn words(&self, path: &str) -> Result<Vec<String>, Refusal> {
        let Some(value) = self.get(path) else {
            return Ok(Vec::new());
        };
        let items = value
            .as_array()
            .ok_or_else(|| wrong(path, "a list of strings", value))?;
        let count = items.len();
        let item = |index: usize| {
            let path = format!("{path}/{index}");
            self.text(&path)?
                .ok_or_else(|| wrong(&path, "a string", &items[index]))
        };
        (0..count).map(item).collect()
    }

    fn tags(&self) -> Result<std::collections::BTreeMap<String, String>, Refusal> {
        let Some(value) = self.get("/tags") else {
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

    fn env(&self) -> Result<Vec<EnvVar>, Refusal> {
        let path = format!("{CONTAINER}/env");
        let Some(value) = self.get(&path) else {
            return Ok(Vec::new());
        };
        let items = value
            .as_array()
            .ok_or_else(|| wrong(&path, "a list of {name, value}", value))?;
        let var = |index: usize| {
            let path = format!("{path}/{index}");
            if self.get(&format!("{path}/secretRef")).is_some() {
                let message = format!(
                    "{}.secretRef is not supported by this version",
                    dotted(&path)
                );
                return Err(unsupported(&path, message));
            }
            let name = self.required_text(&format!("{path}/name"))?;
            if name.contains('=') {
                return Err(wrong(
                    &format!("{path}/name"),
                    "a name without \"=\"",
                    &name.into(),
                ));
            }
            let value = self.text(&format!("{path}/value"))?.unwrap_or_default();
            Ok(EnvVar { name, value })
        };
        (0..items.len()).map(var).collect()
    }

    fn cpu(&self, rules: &Rules) -> Result<u32, Refusal> {
        let path = format!("{CONTAINER}/resources/cpu");
        let default = DEFAULT_CPU.into();
        let value = self.get(&path).unwrap_or(&default);
        let steps = value
            .as_f64()
            .map(|cpu| cpu * 1000.0 / f64::from(CPU_STEP_MILLIS));
        let most = rules.max_cpu_millis / CPU_STEP_MILLIS;
        let found = (1..=most).find(|step| steps == Some(f64::from(*step)));
        found.map(|step| step * CPU_STEP_MILLIS).ok_or_else(|| {
            let expected = format!(
                "a multiple of 0.25 from 0.25 to {}",
                f64::from(most * CPU_STEP_MILLIS) / 1000.0
            );
            wrong(&path, &expected, value)
        })
    }

    fn memory(&self, rules: &Rules) -> Result<u32, Refusal> {
        let range = MIN_MEM_MIB..=rules.max_mem_mib;
        let amount = self.amount("memory", range)?;
        Ok(amount.unwrap_or(DEFAULT_MEM_MIB))
    }

    fn storage(&self) -> Result<u32, Refusal> {
        let amount = self.amount("ephemeralStorage", DISK_MIB)?;
        Ok(amount.unwrap_or(DEFAULT_DISK_MIB))
    }

    /// One of the container's resources, in MiB.
    fn amount(&self, resource: &str, range: RangeInclusive<u32>) -> Result<Option<u32>, Refusal> {
        let path = format!("{CONTAINER}/resources/{resource}");
        let Some(text) = self.text(&path)? else {
            return Ok(None);
        };
        let mib = parse_memory(&text).filter(|mib| range.contains(mib));
        mib.map(Some).ok_or_else(|| {
            let expected = format!(
                "an amount from {} to {}, in Gi or Mi",
                memory(*range.start()),
                memory(*range.end())
            );
            wrong(&path, &expected, &text.into())
        })
    }

    /// Our own; the cloud service has nothing like it.
    fn fork_point(&self) -> Result<ForkPoint, Refusal> {
        let path = "/properties/forkPoint";
        let Some(text) = self.text(path)? else {
            return Ok(ForkPoint::default());
        };
        text.parse().map_err(|_| {
            let (first, second) = (ForkPoint::BeforeStart, ForkPoint::AfterReady);
            wrong(path, &format!("\"{first}\" or \"{second}\""), &text.into())
        })
    }

    fn target_port(&self) -> Result<u16, Refusal> {
        let path = "/properties/customContainerTemplate/ingress/targetPort";
        let port = self.integer(path, 1..=u64::from(u16::MAX))?;
        let port = port.and_then(|port| u16::try_from(port).ok());
        port.ok_or_else(|| {
            invalid(
                path,
                format!("{} is missing: a port from 1 to 65535", dotted(path)),
            )
        })
    }

    fn max_sessions(&self) -> Result<u32, Refusal> {
        let path = "/properties/scaleConfiguration/maxConcurrentSessions";
        let max = self
            .integer(path, 1..=MAX_SESSIONS)?
            .unwrap_or(DEFAULT_MAX_SESSIONS);
        Ok(u32::try_from(max).unwrap_or(u32::MAX))
    }

    /// Nested as in 2025-01-01 and later, or flat as before.
    fn cooldown(&self, rules: &Rules) -> Result<u64, Refusal> {
        let range = rules.min_cooldown_seconds..=MAX_COOLDOWN_SECONDS;
        let base = "/properties/dynamicPoolConfiguration";
        let nested = format!("{base}/lifecycleConfiguration/cooldownPeriodInSeconds");
        let flat = format!("{base}/cooldownPeriodInSeconds");
        let nested = self.integer(&nested, range.clone())?;
        let flat = self.integer(&flat, range.clone())?;
        Ok(nested
            .or(flat)
            .unwrap_or(DEFAULT_COOLDOWN_SECONDS.max(*range.start())))
    }
}

/// `0.5Gi`, `2Gi`, `512Mi` → MiB. A whole number of MiB, or nothing.
fn parse_memory(text: &str) -> Option<u32> {
    let (number, factor) = match (text.strip_suffix("Gi"), text.strip_suffix("Mi")) {
        (Some(number), _) => (number, 1024),
        (None, Some(number)) => (number, 1),
        (None, None) => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| {
        !text.is_empty() && text.len() <= 9 && text.bytes().all(|b| b.is_ascii_digit())
    };
    if !digits(whole) || !digits(fraction) {
        return None;
    }
    let scale = 10_u64.pow(u32::try_from(fraction.len()).ok()?);
    let scaled = (whole.parse::<u64>().ok()? * scale + fraction.parse::<u64>().ok()?) * factor;
    (scaled % scale == 0)
        .then(|| u32::try_from(scaled / scale).ok())
        .flatten()
}

/// `/properties/containers/0/image` → `properties.containers[0].image`.
fn dotted(path: &str) -> String {
    let mut text = String::new();
    for part in path.split('/').skip(1) {
        if part.bytes().all(|byte| byte.is_ascii_digit()) {
            text.push_str(&format!("[{part}]"));
        } else {
            if !text.is_empty() {
                text.push('.');
            }
            text.push_str(part);
        }
    }
    text
}

fn invalid(path: &str, message: impl Into<String>) -> Refusal {
    Refusal::new(Code::SessionPoolInvalidProperty, message).target(dotted(path))
}

fn wrong(path: &str, expected: &str, found: &Value) -> Refusal {
    let found: String = found.to_string().chars().take(80).collect();
    invalid(
        path,
        format!("{} must be {expected}, not {found}", dotted(path)),
    )
}

fn unsupported(path: &str, message: String) -> Refusal {
    Refusal::new(Code::SessionPoolNotSupported, message).target(dotted(path))
}

#[cfg(test)]
#[path = "properties_tests.rs"]
mod tests;
