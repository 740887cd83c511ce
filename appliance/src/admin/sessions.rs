//! The sessions of a pool, for its operator: what `/.management/` is for its callers.

use http::{Method, Request};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::Admin;
use crate::arm::call::{Reply, allow};
use crate::arm::no_such_pool;
use crate::arm::properties::Address;
use crate::arm::resource::moment;
use crate::front::refusal::{Code, Refusal};
use crate::pool::view::SessionView;
use crate::pool::{Identifier, PoolHandle};

impl Admin {
    /// `.../sessionPools/<name>/sessions`.
    pub(super) async fn list_sessions(
        &self,
        address: &Address,
        request: &Request<Incoming>,
    ) -> Result<Reply, Refusal> {
        allow(request, &[Method::GET])?;
        let sessions = self.driver(address)?.sessions().await;
        let value: Vec<_> = sessions.into_iter().map(session_json).collect();
        Ok(Reply::ok(
            json!({ "count": value.len(), "value": value, "nextLink": null }),
        ))
    }

    /// `.../sessionPools/<name>/sessions/<identifier>`. DELETE answers when nothing is left of the
    /// session, with what it was.
    pub(super) async fn one_session(
        &self,
        address: &Address,
        identifier: &str,
        request: &Request<Incoming>,
    ) -> Result<Reply, Refusal> {
        let method = allow(request, &[Method::GET, Method::DELETE])?;
        let driver = self.driver(address)?;
        let found = checked(identifier)?;
        let view = match *method {
            Method::DELETE => driver.stop(found).await,
            _ => driver.session(found).await,
        };
        let view = view.ok_or_else(|| no_such_session(address, identifier))?;
        Ok(Reply::ok(session_json(view)))
    }

    pub(super) fn driver(&self, address: &Address) -> Result<PoolHandle, Refusal> {
        let pool = self.arm.pool(address)?;
        let found = self.pools.get(&pool.name);
        found
            .map(|(_, driver)| driver)
            .ok_or_else(|| no_such_pool(address))
    }
}

/// The identifier that a path names.
pub(super) fn checked(identifier: &str) -> Result<Identifier, Refusal> {
    identifier.parse().map_err(|error| {
        Refusal::new(Code::SessionRequestValidationFailed, format!("{error}")).target("identifier")
    })
}

pub(super) fn no_such_session(address: &Address, identifier: &str) -> Refusal {
    let message = format!(
        "There is no session {identifier:?} in session pool {:?}",
        address.name
    );
    Refusal::new(Code::SessionWithIdentifierNotFound, message).target("identifier")
}

/// The fields of `SessionView`, and what an operator asks next.
fn session_json(view: SessionView) -> Value {
    json!({
        "identifier": String::from(view.identifier),
        "session": view.session.to_string(),
        "worker": view.worker.to_string(),
        "revision": view.revision.to_string(),
        "state": view.state,
        "createdAt": moment(view.created_at_ms),
        "lastAccessedAt": moment(view.last_accessed_at_ms),
        "expiresAt": view.expires_at_ms.and_then(moment),
        "openRequests": view.open_requests,
    })
}
