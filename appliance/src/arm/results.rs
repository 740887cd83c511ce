//! What those who began an operation are told of it.

use http::{StatusCode, header};
use serde_json::json;
use uuid::Uuid;

use super::call::Reply;
use super::path::PROVIDER;
use super::pools::RETRY_SECONDS;
use super::properties::Address;
use super::resource::moment;
use super::{Call, Caller};
use crate::access::Scope;
use crate::front::refusal::{Code, Refusal};
use crate::store::{OperationEnd, OperationFailure, OperationKind, OperationRecord, PoolRecord};

/// In the addresses of operations, for pools whose location is none that could be there.
const LOCATION: &str = "local";

impl Call<'_> {
    /// `operationStatuses`: how far it is, always with 200.
    pub fn operation(&self, subscription: &str, id: Uuid) -> Result<Reply, Refusal> {
        let record = self.record(subscription, id)?;
        let status = match &record.end {
            None => "InProgress",
            Some(OperationEnd { failure: None, .. }) => "Succeeded",
            Some(_) => "Failed",
        };
        let mut body = json!({
            "id": self.path("operationStatuses", id, &record.subscription, LOCATION),
            "name": id.to_string(),
            "status": status,
            "startTime": moment(record.begun_at_ms),
        });
        let Some(end) = record.end else {
            return Ok(Reply::ok(body).header(header::RETRY_AFTER, RETRY_SECONDS));
        };
        body["endTime"] = json!(moment(end.at_ms));
        if let Some(OperationFailure {
            code,
            message,
            target,
        }) = end.failure
        {
            body["error"] = json!({ "code": code, "message": message });
            if let Some(target) = target {
                body["error"]["target"] = target.into();
            }
        }
        Ok(Reply::ok(body))
    }

    /// `operationResults`: 202 until it has ended; then what the call would have been answered with, had it waited.
    pub async fn result(&self, subscription: &str, id: Uuid) -> Result<Reply, Refusal> {
        let record = self.record(subscription, id)?;
        match &record.end {
            None => {
                let url = self.url("operationResults", id, &record.subscription, LOCATION);
                let reply = Reply::new(StatusCode::ACCEPTED, None)
                    .header(header::LOCATION, &url)
                    .header(header::RETRY_AFTER, RETRY_SECONDS);
                Ok(reply)
            }
            Some(OperationEnd {
                failure: Some(failure),
                ..
            }) => Err(refusal(failure)),
            Some(_) if record.kind == OperationKind::Delete => {
                Ok(Reply::new(StatusCode::NO_CONTENT, None))
            }
            Some(_) => {
                let address = Address {
                    subscription: record.subscription,
                    resource_group: record.resource_group,
                    name: record.pool.to_string(),
                };
                self.resource(&address).await
            }
        }
    }

    /// Whoever may not see the pool is told that there is no such operation.
    fn record(&self, subscription: &str, id: Uuid) -> Result<OperationRecord, Refusal> {
        let seen = |record: &OperationRecord| {
            let scope = Scope {
                subscription: &record.subscription,
                resource_group: Some(&record.resource_group),
                pool: Some(record.pool.as_str()),
            };
            record.subscription.eq_ignore_ascii_case(subscription) && self.caller.sees(scope)
        };
        self.arm.operations.get(id).filter(seen).ok_or_else(|| {
            let message = format!("There is no operation {id}; they are kept for 24 hours");
            Refusal::new(Code::ResourceNotFound, message)
        })
    }

    pub fn operation_url(&self, kind: &str, id: Uuid, pool: &PoolRecord) -> String {
        let plain = pool
            .location
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric());
        let location = if plain && !pool.location.is_empty() {
            pool.location.as_str()
        } else {
            LOCATION
        };
        self.url(kind, id, &pool.subscription, location)
    }

    fn url(&self, kind: &str, id: Uuid, subscription: &str, location: &str) -> String {
        let path = self.path(kind, id, subscription, location);
        let host = match self.caller {
            Caller::Local => self.arm.host().to_owned(),
            Caller::Remote { host, .. } => format!("https://{host}"),
        };
        match self.version.name.as_str() {
            "" => format!("{host}{path}"),
            version => format!("{host}{path}?api-version={version}"),
        }
    }

    /// The subscription of a pool is made of characters that a path may have.
    fn path(&self, kind: &str, id: Uuid, subscription: &str, location: &str) -> String {
        format!(
            "/subscriptions/{subscription}/providers/{PROVIDER}/locations/{location}/{kind}/{id}"
        )
    }
}

/// With a status below 500: clients ask again after a larger one, and would hear the same.
fn refusal(failure: &OperationFailure) -> Refusal {
    let named = |code: &&Code| code.as_str() == failure.code;
    let code = Code::ALL.iter().find(named).copied();
    let mut refusal = Refusal::new(code.unwrap_or(Code::InternalError), failure.message.clone());
    if let Some(target) = &failure.target {
        refusal = refusal.target(target.clone());
    }
    if refusal.code.status().is_server_error() {
        refusal.status = Some(StatusCode::CONFLICT);
    }
    refusal
}
