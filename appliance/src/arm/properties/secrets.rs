//! The secrets of a pool, and what its image is pulled with. Values are written and never read: an answer
//! has their names, and a body that has no value for a name keeps the one that is there.

use serde_json::{Value, json};

use super::Shape;
use super::raw::{Raw, dotted, invalid, missing, unsupported};
use crate::front::refusal::Refusal;
use crate::images::registry::{Credentials, RegistryHost};
use crate::openapi::schema::{Described, list, nullable, object, text};
use crate::store::{PoolRecord, PoolSecret, RegistryLogin};
use crate::vault::Vault;

pub const SECRETS: &str = "/properties/secrets";
pub const REGISTRY: &str = "/properties/customContainerTemplate/registryCredentials";
const NAME_LIMIT: usize = 253;
/// Longest value: a password or a token, not a file.
const VALUE_LIMIT: usize = 64 << 10;

/// The secrets as they are to be kept.
pub fn read(
    raw: &Raw<'_>,
    pool: &str,
    current: Option<&PoolRecord>,
    vault: &Vault,
) -> Result<Vec<PoolSecret>, Refusal> {
    let mut secrets: Vec<PoolSecret> = Vec::new();
    for path in raw.items(SECRETS, "a list of {name, value}")? {
        let at = format!("{path}/name");
        let name = raw.required_text(&at)?;
        if !is_name(&name) {
            return Err(invalid(
                &at,
                format!(
                    "{} must be lower-case letters, digits, '-' and '.'",
                    dotted(&at)
                ),
            ));
        }
        if secrets.iter().any(|secret| secret.name == name) {
            return Err(invalid(&at, format!("{} is there twice", dotted(&at))));
        }
        let at = format!("{path}/value");
        let held = current.and_then(|pool| pool.secrets.iter().find(|secret| secret.name == name));
        // No message repeats a value, however wrong it is.
        let secret = match raw.get(&at) {
            Some(Value::String(value)) if value.len() <= VALUE_LIMIT && !value.contains('\0') => {
                let same = |held: &&PoolSecret| {
                    let opened = vault.open(pool, held);
                    opened.is_ok_and(|opened| opened.expose() == value)
                };
                match held.filter(same) {
                    // Sealed anew it would look like another one, and sessions would be made anew for it.
                    Some(held) => held.clone(),
                    None => vault
                        .seal(pool, &name, value)
                        .map_err(|error| Refusal::internal("A secret cannot be sealed", error))?,
                }
            }
            Some(_) => {
                let message = format!(
                    "{} must be a string of at most {VALUE_LIMIT} bytes",
                    dotted(&at)
                );
                return Err(invalid(&at, message));
            }
            None => held
                .cloned()
                .ok_or_else(|| missing(&at, "a new secret needs one"))?,
        };
        secrets.push(secret);
    }
    Ok(secrets)
}

/// For the OpenAPI document.
pub fn schema() -> Described {
    let name = text("Lower-case letters, digits, - and .")
        .min_length(Some(1))
        .max_length(Some(NAME_LIMIT))
        .pattern(Some("^[a-z0-9.-]+$"));
    let value = text("Never answered; a name without one keeps it")
        .max_length(Some(VALUE_LIMIT))
        .write_only(true);
    let secret = object("A secret")
        .property("name", name)
        .required("name")
        .property("value", nullable(value));
    list("Values that are kept sealed", secret).into()
}

/// For the OpenAPI document: who the image is pulled as.
pub fn login_schema() -> Described {
    object("Who the image is pulled as")
        .property("server", nullable(text("The registry, HOST[:PORT]")))
        .property(
            "registryServer",
            nullable(text("Its name up to 2024-02-02-preview")),
        )
        .property("username", nullable(text("The user")))
        .property(
            "passwordSecretRef",
            nullable(text("Which of the secrets is the password")),
        )
        .property("identity", nullable(text("Not supported")))
        .into()
}

/// The names; values are not told to anybody.
pub fn render(pool: &PoolRecord) -> Value {
    pool.secrets
        .iter()
        .map(|secret| json!({ "name": secret.name }))
        .collect()
}

/// Which user of which registry, and which of `secrets` is the password.
pub fn login(raw: &Raw<'_>, secrets: &[PoolSecret]) -> Result<Option<RegistryLogin>, Refusal> {
    if raw.get(REGISTRY).is_none() {
        return Ok(None);
    }
    let identity = format!("{REGISTRY}/identity");
    if raw
        .text(&identity)?
        .is_some_and(|identity| !identity.is_empty())
    {
        let message = format!("{} is not supported by this version", dotted(&identity));
        return Err(unsupported(&identity, message));
    }
    let (server, old) = (
        format!("{REGISTRY}/server"),
        format!("{REGISTRY}/registryServer"),
    );
    let at = if raw.get(&server).is_none() && raw.get(&old).is_some() {
        old
    } else {
        server
    };
    let host: RegistryHost = raw
        .required_text(&at)?
        .trim_start_matches("https://")
        .trim_end_matches('/')
        .parse()
        .map_err(|why| invalid(&at, format!("{}: {why}", dotted(&at))))?;
    let username = raw.required_text(&format!("{REGISTRY}/username"))?;
    let at = format!("{REGISTRY}/passwordSecretRef");
    let password = reference(raw, &at, secrets)?;
    let password = password.ok_or_else(|| missing(&at, "a string that is not empty"))?;
    Ok(Some(RegistryLogin {
        server: host.as_str().to_owned(),
        username,
        password_secret_ref: password,
    }))
}

/// The name of a secret that is there, if one is named at `path`.
pub fn reference(
    raw: &Raw<'_>,
    path: &str,
    secrets: &[PoolSecret],
) -> Result<Option<String>, Refusal> {
    let name = raw.text(path)?.filter(|name| !name.is_empty());
    let known = |name: &String| secrets.iter().any(|secret| secret.name == *name);
    match name {
        Some(name) if !known(&name) => {
            let message = format!("{} names no secret of {}", dotted(path), dotted(SECRETS));
            Err(invalid(path, message))
        }
        name => Ok(name),
    }
}

pub fn render_login(pool: &PoolRecord, shape: &Shape) -> Option<Value> {
    let server = if shape.registry_server {
        "registryServer"
    } else {
        "server"
    };
    pool.registry.as_ref().map(|login| {
        json!({
            server: login.server,
            "username": login.username,
            "passwordSecretRef": login.password_secret_ref,
        })
    })
}

/// What to say to the registry.
pub fn credentials(
    pool: &str,
    login: &RegistryLogin,
    secrets: &[PoolSecret],
    vault: &Vault,
) -> Result<Option<Credentials>, Refusal> {
    let named = secrets
        .iter()
        .find(|secret| secret.name == login.password_secret_ref);
    let (Some(secret), Ok(server)) = (named, login.server.parse()) else {
        return Ok(None);
    };
    let password = vault.open(pool, secret).map_err(|error| {
        let message = format!(
            "The secret {:?} cannot be read, {error}: give its value again",
            secret.name
        );
        invalid(SECRETS, message)
    })?;
    Ok(Some(Credentials {
        server,
        username: login.username.clone(),
        password,
    }))
}

fn is_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    name.len() <= NAME_LIMIT && name.bytes().all(allowed)
}
