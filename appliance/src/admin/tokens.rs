//! Making tokens.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Admin, MAX_TOKEN_TTL};
use crate::access::{Grant, Role};
use crate::arm::call::Reply;
use crate::front::refusal::{Code, Refusal};
use crate::pool::PoolName;

const DEFAULT_TTL_SECONDS: u64 = 3600;

impl Admin {
    pub(super) fn create_token(&self, body: &Value) -> Result<Reply, Refusal> {
        let wrong = |target: &str, message: String| {
            Refusal::new(Code::InvalidRequestContent, message).target(target)
        };
        match &body["role"] {
            Value::Null => {}
            Value::String(role) if role == Role::SessionExecutor.as_str() => {}
            other => {
                let message = format!("role must be \"{}\", not {other}", Role::SessionExecutor);
                return Err(wrong("role", message));
            }
        }
        let most = MAX_TOKEN_TTL.as_secs();
        let ttl = match &body["ttlSeconds"] {
            Value::Null => DEFAULT_TTL_SECONDS,
            value => value
                .as_u64()
                .filter(|ttl| (1..=most).contains(ttl))
                .ok_or_else(|| {
                    wrong(
                        "ttlSeconds",
                        format!("ttlSeconds must be a whole number from 1 to {most}, not {value}"),
                    )
                })?,
        };
        let pools = self.pools_of_token(&body["pools"])?;
        let grant = Grant {
            pools,
            ..Grant::of(Role::SessionExecutor)
        };
        let issued = self
            .authority
            .sign(&grant, Duration::from_secs(ttl))
            .map_err(|error| Refusal::internal("The token could not be signed", error))?;
        let expires_at = i64::try_from(issued.expires_at).ok();
        let expires_at = expires_at.and_then(|seconds| Timestamp::from_second(seconds).ok());
        let expires_at = expires_at.map(|at| at.to_string());
        Ok(Reply::ok(
            json!({ "token": issued.token, "expiresAt": expires_at }),
        ))
    }

    /// Only pools that exist: a misspelt name would make a token that never works.
    fn pools_of_token(&self, value: &Value) -> Result<Vec<PoolName>, Refusal> {
        let names = match value {
            Value::Null => &[][..],
            Value::Array(names) => names,
            other => {
                let message = format!("pools must be a list of names, not {other}");
                return Err(Refusal::new(Code::InvalidRequestContent, message).target("pools"));
            }
        };
        let known = |name: &Value| {
            let parsed = name
                .as_str()
                .and_then(|name| PoolName::parse_ignoring_case(name).ok());
            parsed
                .filter(|name| self.pools.get(name).is_some())
                .ok_or_else(|| {
                    let message = format!("There is no session pool {name}");
                    Refusal::new(Code::SessionPoolNotFound, message).target("pools")
                })
        };
        names.iter().map(known).collect()
    }
}
