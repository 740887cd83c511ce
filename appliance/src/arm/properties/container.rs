//! The one container of a pool: its image, size, environment and port.

use std::ops::RangeInclusive;

use serde_json::{Value, json};
use wire::{HostMessage, frame};

use super::raw::{Raw, dotted, invalid, wrong};
use super::{Rules, Shape, probes, secrets};
use crate::admin::ImageSummary;
use crate::arm::resource;
use crate::front::refusal::Refusal;
use crate::openapi::schema::{Described, integer, list, nullable, number, object, text};
use crate::pool::container::{self, SpecError};
use crate::pool::probe::Probes;
use crate::store::{DEFAULT_DISK_MIB, EnvVar, PoolRecord, PoolSecret};
use crate::vault::Vault;

const CPU_STEP_MILLIS: u32 = 250;
const MIN_MEM_MIB: u32 = 512;
/// The writable layer is sparse: what it may grow to, not what it takes.
const DISK_MIB: RangeInclusive<u32> = 1 << 10..=1024 << 10;
const DEFAULT_CPU: f64 = 0.25;
const DEFAULT_MEM_MIB: u32 = 512;

pub const CONTAINER: &str = "/properties/customContainerTemplate/containers/0";
const TARGET_PORT: &str = "/properties/customContainerTemplate/ingress/targetPort";

/// The image as it is named, and the digest that it is to keep. `imageDigest` beside the same name keeps what
/// the name meant to `current`, so that who sends a pool back with another limit does not roll it to another
/// image.
pub fn image(
    raw: &Raw<'_>,
    current: Option<&PoolRecord>,
) -> Result<(String, Option<String>), Refusal> {
    let path = format!("{CONTAINER}/image");
    let name = raw.required_text(&path)?;
    let digest = raw.text(&format!("{CONTAINER}/imageDigest"))?;
    let kept = current
        .filter(|pool| pool.image == name && digest.as_ref() == Some(&pool.image_digest))
        .map(|pool| pool.image_digest.clone());
    Ok((name, kept))
}

/// The container must have something to run, and what there is to say about it must fit the one
/// frame that carries it to the agent.
pub fn check(pool: &PoolRecord, image: &ImageSummary, vault: &Vault) -> Result<(), Refusal> {
    let spec = container::spec(&image.defaults, pool, vault).map_err(|error| {
        let path = match error {
            SpecError::NothingToRun(_) => format!("{CONTAINER}/command"),
            SpecError::Secret { .. } => secrets::SECRETS.to_owned(),
        };
        invalid(&path, error.to_string())
    })?;
    if frame::encode(&HostMessage::Start(Box::new(spec))).is_err() {
        let message = format!(
            "command, args and env together, with those of the image, exceed {} bytes",
            wire::MAX_FRAME_BYTES
        );
        return Err(invalid(CONTAINER, message));
    }
    Ok(())
}

pub fn name(raw: &Raw<'_>) -> Result<Option<String>, Refusal> {
    raw.text(&format!("{CONTAINER}/name"))
}

pub fn command(raw: &Raw<'_>) -> Result<Vec<String>, Refusal> {
    raw.words(&format!("{CONTAINER}/command"))
}

pub fn args(raw: &Raw<'_>) -> Result<Vec<String>, Refusal> {
    raw.words(&format!("{CONTAINER}/args"))
}

/// Who speaks a version without probes does not mean that there shall be none.
pub fn probes(
    raw: &Raw<'_>,
    shape: &Shape,
    current: Option<&PoolRecord>,
) -> Result<Probes, Refusal> {
    let path = format!("{CONTAINER}/probes");
    match current {
        Some(current) if !shape.probes && raw.get(&path).is_none() => Ok(current.probes.clone()),
        _ => probes::read(raw, &path),
    }
}

pub fn target_port(raw: &Raw<'_>) -> Result<u16, Refusal> {
    raw.required_port(TARGET_PORT)
}

pub fn env(raw: &Raw<'_>, secrets: &[PoolSecret]) -> Result<Vec<EnvVar>, Refusal> {
    let var = |path: &String| {
        let name = raw.required_text(&format!("{path}/name"))?;
        if name.contains('=') {
            let path = format!("{path}/name");
            return Err(wrong(&path, "a name without \"=\"", &name.into()));
        }
        let value = raw.text(&format!("{path}/value"))?.unwrap_or_default();
        let secret_ref = secrets::reference(raw, &format!("{path}/secretRef"), secrets)?;
        if secret_ref.is_some() && !value.is_empty() {
            let message = format!("{} must have value or secretRef, not both", dotted(path));
            return Err(invalid(path, message));
        }
        Ok(EnvVar {
            name,
            value,
            secret_ref,
        })
    };
    let expected = "a list of {name, value} or {name, secretRef}";
    let items = raw.items(&format!("{CONTAINER}/env"), expected)?;
    items.iter().map(var).collect()
}

pub fn cpu(raw: &Raw<'_>, rules: &Rules) -> Result<u32, Refusal> {
    let path = format!("{CONTAINER}/resources/cpu");
    let default = DEFAULT_CPU.into();
    let value = raw.get(&path).unwrap_or(&default);
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

pub fn memory(raw: &Raw<'_>, rules: &Rules) -> Result<u32, Refusal> {
    let amount = amount(raw, "memory", MIN_MEM_MIB..=rules.max_mem_mib)?;
    Ok(amount.unwrap_or(DEFAULT_MEM_MIB))
}

pub fn storage(raw: &Raw<'_>) -> Result<u32, Refusal> {
    let amount = amount(raw, "ephemeralStorage", DISK_MIB)?;
    Ok(amount.unwrap_or(DEFAULT_DISK_MIB))
}

/// One of the container's resources, in MiB.
fn amount(
    raw: &Raw<'_>,
    resource: &str,
    range: RangeInclusive<u32>,
) -> Result<Option<u32>, Refusal> {
    let path = format!("{CONTAINER}/resources/{resource}");
    let Some(text) = raw.text(&path)? else {
        return Ok(None);
    };
    let mib = parse_memory(&text).filter(|mib| range.contains(mib));
    mib.map(Some).ok_or_else(|| {
        let expected = format!(
            "an amount from {} to {}, in Gi or Mi",
            resource::memory(*range.start()),
            resource::memory(*range.end())
        );
        wrong(&path, &expected, &text.into())
    })
}

/// For the OpenAPI document.
pub fn schema() -> Described {
    let amount = |about: &str, default: u32| {
        let amount = text(about).pattern(Some(r"^[0-9]+(\.[0-9]+)?[GM]i$"));
        nullable(amount.default(Some(resource::memory(default).into())))
    };
    let step = f64::from(CPU_STEP_MILLIS) / 1000.0;
    let cpu = number("CPUs per session; up to the host's")
        .minimum(Some(step))
        .multiple_of(Some(step))
        .default(Some(DEFAULT_CPU.into()));
    let resources = object("What a session has")
        .property("cpu", nullable(cpu))
        .property(
            "memory",
            amount("From 0.5Gi up to the host's", DEFAULT_MEM_MIB),
        )
        .property(
            "ephemeralStorage",
            amount(
                "What the writable layer may grow to: 1Gi to 1024Gi",
                DEFAULT_DISK_MIB,
            ),
        );
    let variable = object("A variable, with a value or that of a secret")
        .property("name", text("Without =").min_length(Some(1)))
        .required("name")
        .property("value", nullable(text("Its value")))
        .property("secretRef", nullable(text("The name of a secret")));
    let words = |about| nullable(list(about, text("A word")));
    let container = object("What runs in a session")
        .property(
            "image",
            text("A name in a registry, or name or digest of an image here").min_length(Some(1)),
        )
        .required("image")
        .property(
            "imageDigest",
            nullable(text(
                "What the name means; sent back beside the same name it keeps that",
            )),
        )
        .property(
            "name",
            nullable(text("What it is called; the pool's name by default")),
        )
        .property("command", words("Replaces the image's entrypoint"))
        .property("args", words("Replaces the image's command"))
        .property("env", nullable(list("The environment", variable)))
        .property("resources", nullable(resources))
        .property("probes", nullable(probes::schema()));
    let port = integer("Where the container serves HTTP", 1..=u64::from(u16::MAX));
    object("What a session is made of")
        .property(
            "containers",
            list("One", container).min_items(Some(1)).max_items(Some(1)),
        )
        .required("containers")
        .property(
            "ingress",
            object("")
                .property("targetPort", port)
                .required("targetPort"),
        )
        .required("ingress")
        .property("registryCredentials", nullable(secrets::login_schema()))
        .into()
}

pub fn render(pool: &PoolRecord, shape: &Shape) -> Value {
    let var = |var: &EnvVar| match &var.secret_ref {
        Some(reference) => json!({ "name": var.name, "secretRef": reference }),
        None => json!({ "name": var.name, "value": var.value }),
    };
    let env: Vec<_> = pool.env.iter().map(var).collect();
    let mut container = json!({
        "name": pool.container_name,
        "image": pool.image,
        "env": env,
        "resources": {
            "cpu": f64::from(pool.cpu_millis) / 1000.0,
            "memory": resource::memory(pool.mem_mib),
            "ephemeralStorage": resource::memory(pool.disk_mib),
        },
    });
    // Not known before the image is here.
    if !pool.image_digest.is_empty() {
        container["imageDigest"] = pool.image_digest.as_str().into();
    }
    // Absent means the image's own; an empty list would replace it by nothing.
    if !pool.command.is_empty() {
        container["command"] = json!(pool.command);
    }
    if !pool.args.is_empty() {
        container["args"] = json!(pool.args);
    }
    if let Some(probes) = probes::render(&pool.probes).filter(|_| shape.probes) {
        container["probes"] = probes;
    }
    let mut template =
        json!({ "containers": [container], "ingress": { "targetPort": pool.target_port } });
    if let Some(login) = secrets::render_login(pool, shape) {
        template["registryCredentials"] = login;
    }
    template
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
