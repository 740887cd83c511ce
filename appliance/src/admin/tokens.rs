//! Making tokens, listing and ending them. What a token is bound to is shown here and nowhere else.

use std::time::Duration;

use http::{Method, Request};
use hyper::body::Incoming;
use serde_json::{Map, Value, json};

use super::Admin;
use crate::access::{ChangeError, Grant, IdentifierRule, MAX_TOKEN_TTL, Role, TokenOrder};
use crate::arm::call::{Reply, allow, nothing_here, read_json};
use crate::arm::resource::moment_in_seconds as moment;
use crate::front::refusal::{Code, Refusal};
use crate::pool::PoolName;
use crate::store::TokenRecord;

const DEFAULT_TTL_SECONDS: u64 = 3600;
/// Longest label, and longest name of a subscription or resource group.
const MAX_NAME: usize = 128;
/// Limits of one kind in one token: with all of them it still fits in a header.
const MAX_LIMITS: usize = 16;

/// What an order may say. Anything else is refused: a limit that was misspelt must not be left out.
const KNOWN: [&str; 8] = [
    "role",
    "roles",
    "pools",
    "subscriptions",
    "resourceGroups",
    "identifiers",
    "ttlSeconds",
    "label",
];

impl Admin {
    /// Everything under `/tokens`; `rest` is what follows, without the slash.
    pub(super) async fn token_call(
        &self,
        request: Request<Incoming>,
        rest: Option<&str>,
    ) -> Result<Reply, Refusal> {
        match rest {
            None => match *allow(&request, &[Method::GET, Method::POST])? {
                Method::POST => self.create_token(&read_json(request).await?).await,
                _ => Ok(self.list_tokens()),
            },
            Some("rotate") => {
                allow(&request, &[Method::POST])?;
                self.rotate_key(&read_json(request).await?).await
            }
            Some(id) => {
                let method = allow(&request, &[Method::GET, Method::DELETE])?.clone();
                self.one_token(&method, id).await
            }
        }
    }

    async fn create_token(&self, body: &Value) -> Result<Reply, Refusal> {
        let order = self.order(body)?;
        let issued = self.authority.issue(order).await.map_err(failed)?;
        let record = issued.record;
        tracing::info!(token = %record.id, key = record.key, "token issued");
        Ok(Reply::ok(json!({
            "id": record.id, "token": issued.token, "expiresAt": moment(record.expires_at),
        })))
    }

    fn list_tokens(&self) -> Reply {
        let tokens: Vec<_> = self.authority.tokens().iter().map(shown).collect();
        Reply::ok(json!({ "value": tokens }))
    }

    async fn one_token(&self, method: &Method, id: &str) -> Result<Reply, Refusal> {
        let id = id.parse().map_err(|_| nothing_here())?;
        let found = match *method {
            Method::DELETE => {
                let revoked = self.authority.revoke(id).await.map_err(failed)?;
                if revoked.is_some() {
                    tracing::info!(token = %id, "token revoked");
                }
                revoked
            }
            _ => self.authority.token(id),
        };
        let found = found.ok_or_else(|| {
            let message =
                "There is no record of a token with this id; records end with their tokens";
            Refusal::new(Code::TokenNotFound, message)
        })?;
        Ok(Reply::ok(shown(&found)))
    }

    async fn rotate_key(&self, body: &Value) -> Result<Reply, Refusal> {
        let fields = fields(body, &["revokeOld"])?;
        let revoke_old = match fields.get("revokeOld") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(revoke)) => *revoke,
            Some(_) => return Err(wrong("revokeOld", "revokeOld must be true or false")),
        };
        let rotated = self.authority.rotate(revoke_old).await.map_err(failed)?;
        tracing::info!(
            key = rotated.key,
            older = rotated.older,
            revoked = rotated.revoked,
            "signing key of tokens rotated"
        );
        Ok(Reply::ok(json!({
            "keyId": rotated.key, "olderKeys": rotated.older, "revokedTokens": rotated.revoked,
        })))
    }

    fn order(&self, body: &Value) -> Result<TokenOrder, Refusal> {
        let fields = fields(body, &KNOWN)?;
        let roles = roles(fields)?;
        let grant = Grant {
            pools: self.pools_of_token(fields.get("pools"), &roles)?,
            subscriptions: names(fields, "subscriptions")?,
            resource_groups: names(fields, "resourceGroups")?,
            identifiers: identifiers(fields, &roles)?,
            roles,
        };
        Ok(TokenOrder {
            label: label(fields.get("label"))?,
            grant,
            ttl: ttl(fields.get("ttlSeconds"))?,
        })
    }

    /// Pools that exist, since a misspelt name would make a token that never works; but who may make pools may be
    /// given the names of those to come.
    fn pools_of_token(
        &self,
        value: Option<&Value>,
        roles: &[Role],
    ) -> Result<Vec<PoolName>, Refusal> {
        let may_come = roles.contains(&Role::PoolContributor);
        let known = |name: &Value| {
            let parsed = name
                .as_str()
                .and_then(|name| PoolName::parse_ignoring_case(name).ok());
            parsed
                .filter(|name| may_come || self.pools.get(name).is_some())
                .ok_or_else(|| {
                    let message = format!("There is no session pool {name}");
                    Refusal::new(Code::SessionPoolNotFound, message).target("pools")
                })
        };
        list(value, "pools")?.iter().map(known).collect()
    }
}

fn roles(fields: &Map<String, Value>) -> Result<Vec<Role>, Refusal> {
    let named = match (fields.get("role"), fields.get("roles")) {
        (Some(one), None | Some(Value::Null)) if !one.is_null() => std::slice::from_ref(one),
        (None | Some(Value::Null), several) => list(several, "roles")?,
        _ => return Err(wrong("roles", "Say either role or roles")),
    };
    let target = if fields.contains_key("roles") {
        "roles"
    } else {
        "role"
    };
    let parse = |role: &Value| {
        let parsed = role.as_str().and_then(|role| role.parse().ok());
        parsed.ok_or_else(|| {
            let known = Role::ALL.map(Role::as_str).join(", ");
            wrong(target, &format!("A role is one of {known}, not {role}"))
        })
    };
    let mut roles = named.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    roles.sort_unstable();
    roles.dedup();
    if roles.is_empty() {
        roles.push(Role::SessionExecutor);
    }
    Ok(roles)
}

/// Messages hold no identifier.
fn identifiers(
    fields: &Map<String, Value>,
    roles: &[Role],
) -> Result<Vec<IdentifierRule>, Refusal> {
    let parse = |rule: &Value| {
        let parsed = rule.as_str().and_then(|rule| rule.parse().ok());
        parsed.ok_or_else(|| {
            let message = "identifiers must hold identifiers (4 to 128 characters), or beginnings of them with a * behind";
            wrong("identifiers", message)
        })
    };
    let rules: Vec<_> = list(fields.get("identifiers"), "identifiers")?
        .iter()
        .map(parse)
        .collect::<Result<_, _>>()?;
    if !rules.is_empty() && !roles.contains(&Role::SessionExecutor) {
        let message = "identifiers limit the role session-executor, which the token is not to have";
        return Err(wrong("identifiers", message));
    }
    Ok(rules)
}

fn names(fields: &Map<String, Value>, key: &'static str) -> Result<Vec<String>, Refusal> {
    let parse = |name: &Value| {
        let fits = |name: &&str| {
            (1..=MAX_NAME).contains(&name.len()) && !name.chars().any(char::is_control)
        };
        let named = name.as_str().filter(fits).map(str::to_owned);
        named.ok_or_else(|| wrong(key, &format!("{key} must hold names, not {name}")))
    };
    list(fields.get(key), key)?.iter().map(parse).collect()
}

fn label(value: Option<&Value>) -> Result<Option<String>, Refusal> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(label))
            if (1..=MAX_NAME).contains(&label.len()) && !label.chars().any(char::is_control) =>
        {
            Ok(Some(label.clone()))
        }
        Some(_) => {
            let message = format!("label must be a text of 1 to {MAX_NAME} bytes on one line");
            Err(wrong("label", &message))
        }
    }
}

fn ttl(value: Option<&Value>) -> Result<Duration, Refusal> {
    let most = MAX_TOKEN_TTL.as_secs();
    let seconds = match value {
        None | Some(Value::Null) => DEFAULT_TTL_SECONDS,
        Some(value) => value
            .as_u64()
            .filter(|ttl| (1..=most).contains(ttl))
            .ok_or_else(|| {
                let message =
                    format!("ttlSeconds must be a whole number from 1 to {most}, not {value}");
                wrong("ttlSeconds", &message)
            })?,
    };
    Ok(Duration::from_secs(seconds))
}

fn list<'a>(value: Option<&'a Value>, key: &'static str) -> Result<&'a [Value], Refusal> {
    match value {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(list)) if list.len() <= MAX_LIMITS => Ok(list),
        Some(_) => Err(wrong(
            key,
            &format!("{key} must be a list of at most {MAX_LIMITS}"),
        )),
    }
}

/// The object, if it has no other fields than these.
fn fields<'a>(body: &'a Value, known: &[&str]) -> Result<&'a Map<String, Value>, Refusal> {
    let Some(fields) = body.as_object() else {
        let message = "The body must be an object";
        return Err(Refusal::new(Code::InvalidRequestContent, message));
    };
    match fields.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(fields),
        Some(other) => {
            let known = known.join(", ");
            Err(wrong(
                other,
                &format!("There is no {other:?} here; there are {known}"),
            ))
        }
    }
}

fn wrong(target: &str, message: &str) -> Refusal {
    Refusal::new(Code::InvalidRequestContent, message).target(target)
}

fn failed(error: ChangeError) -> Refusal {
    Refusal::internal("The change of tokens could not be made or written", error)
}

fn shown(record: &TokenRecord) -> Value {
    let grant = &record.grant;
    json!({
        "id": record.id,
        "label": record.label,
        "roles": grant.roles,
        "subscriptions": grant.subscriptions,
        "resourceGroups": grant.resource_groups,
        "pools": grant.pools,
        "identifiers": grant.identifiers,
        "keyId": record.key,
        "createdAt": moment(record.made_at),
        "expiresAt": moment(record.expires_at),
        "revokedAt": record.revoked_at.and_then(moment),
    })
}
