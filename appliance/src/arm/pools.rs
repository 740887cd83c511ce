//! Calls about pools.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, Request, StatusCode, header};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::call::{Reply, read_json};
use super::caller::{scope_of, scope_of_group, scope_of_pool};
use super::change::{Ask, Wanted, not_changed};
use super::conditions::{Conditions, etag};
use super::operations::{Open, Ticket};
use super::path::Group;
use super::properties::{Address, new_name};
use super::resource::{self, Facts, State};
use super::{Arm, Call, Caller};
use crate::front::refusal::{Code, Refusal};
use crate::pool::{PoolHandle, PoolName, Put};
use crate::store::{OperationKind, PoolRecord};

const ASYNC_OPERATION: HeaderName = HeaderName::from_static("azure-asyncoperation");
/// Seconds after which a caller may ask how far an operation is. Without a word the SDKs wait thirty.
pub const RETRY_SECONDS: &str = "1";

/// What there is of a pool.
pub struct Found {
    made: Option<(Arc<PoolRecord>, PoolHandle)>,
    /// What is being done with it, in its order.
    open: Vec<Open>,
}

impl Found {
    /// The pool as it is.
    pub fn made(&self) -> Option<&Arc<PoolRecord>> {
        self.made.as_ref().map(|(pool, _)| pool)
    }

    /// The pool as it is, or is to be.
    fn shown(&self) -> Option<&Arc<PoolRecord>> {
        self.made().or(self.open.first().map(|open| &open.pool))
    }

    /// What the next change will find, if all goes well.
    fn next(&self) -> Option<&Arc<PoolRecord>> {
        match self.open.last() {
            Some(open) if open.kind == OperationKind::Delete => None,
            Some(open) => Some(&open.pool),
            None => self.made(),
        }
    }

    fn state(&self) -> State {
        match self.open.last() {
            None => State::Succeeded,
            Some(open) if open.kind == OperationKind::Delete => State::Deleting,
            Some(_) => State::InProgress,
        }
    }
}

impl Arm {
    /// The pool at this address. `Err`: its name belongs to another one.
    pub fn find(&self, address: &Address) -> Result<Found, Refusal> {
        let Ok(name) = PoolName::parse_ignoring_case(&address.name) else {
            return Ok(Found {
                made: None,
                open: Vec::new(),
            });
        };
        let found = Found {
            made: self.parts.pools.get(&name),
            open: self.operations.of(&name),
        };
        match found.shown() {
            Some(pool) if !address.is_of(pool) => {
                let message = format!(
                    "The name {name} belongs to a pool in another resource group or subscription"
                );
                Err(Refusal::new(Code::SessionPoolNameInUse, message))
            }
            _ => Ok(found),
        }
    }

    /// The pool at this address as it is.
    pub fn pool(&self, address: &Address) -> Result<Arc<PoolRecord>, Refusal> {
        let found = self.find(address).ok();
        found
            .and_then(|found| found.made().cloned())
            .ok_or_else(|| no_such_pool(address))
    }
}

impl Call<'_> {
    pub async fn get(&self, address: &Address) -> Result<Reply, Refusal> {
        self.caller.may_read(scope_of(address))?;
        let found = self.arm.find(address).ok();
        let found = found.ok_or_else(|| no_such_pool(address))?;
        let pool = found.shown().ok_or_else(|| no_such_pool(address))?;
        let reply = Reply::ok(self.shown(pool, &found).await);
        Ok(match found.made() {
            Some(made) => reply.header(header::ETAG, &etag(made)),
            None => reply,
        })
    }

    pub async fn list(&self, group: &Group) -> Result<Reply, Refusal> {
        self.caller.may_read(scope_of_group(group))?;
        let mut value = Vec::new();
        for pool in self.pools_in(group) {
            let address = Address::of(&pool);
            if let Ok(found) = self.arm.find(&address)
                && found.shown().is_some()
            {
                value.push(self.shown(&pool, &found).await);
            }
        }
        Ok(Reply::ok(json!({ "value": value, "nextLink": null })))
    }

    /// The pools of this group that the caller sees, by name: those that are there, and those that are being made.
    pub fn pools_in(&self, group: &Group) -> Vec<Arc<PoolRecord>> {
        let mut pools = self.arm.parts.pools.list();
        let made: Vec<_> = pools.iter().map(|pool| pool.name.clone()).collect();
        let open = self.arm.operations.first_of_all();
        let open = open.into_iter().map(|open| open.pool);
        pools.extend(open.filter(|pool| !made.contains(&pool.name)));
        pools.sort_by(|one, other| one.name.cmp(&other.name));
        let resource_group = group.resource_group.as_deref();
        pools.retain(|pool| {
            pool.subscription.eq_ignore_ascii_case(&group.subscription)
                && resource_group.is_none_or(|it| pool.resource_group.eq_ignore_ascii_case(it))
                && self.caller.sees(scope_of_pool(pool))
        });
        pools
    }

    pub async fn put(
        &self,
        address: Address,
        request: Request<Incoming>,
    ) -> Result<Reply, Refusal> {
        self.caller.may_write(scope_of(&address))?;
        let conditions = Conditions::of(request.headers());
        let ask = Ask::Put(read_json(request).await?);
        let found = self.arm.find(&address)?;
        let address = match found.shown() {
            Some(pool) => Address::of(pool),
            None => {
                new_name(&address.name)?;
                address.well_formed()?
            }
        };
        self.change(found, address, conditions, ask).await
    }

    pub async fn patch(
        &self,
        address: Address,
        request: Request<Incoming>,
    ) -> Result<Reply, Refusal> {
        self.caller.may_write(scope_of(&address))?;
        let conditions = Conditions::of(request.headers());
        let ask = Ask::Patch(read_json(request).await?);
        let found = self.arm.find(&address).ok();
        let found = found.filter(|found| found.next().is_some());
        let found = found.ok_or_else(|| no_such_pool(&address))?;
        self.change(found, address, conditions, ask).await
    }

    async fn change(
        &self,
        found: Found,
        address: Address,
        conditions: Conditions,
        ask: Ask,
    ) -> Result<Reply, Refusal> {
        conditions.check(found.shown().map(Arc::as_ref))?;
        let kind = match found.next() {
            None => OperationKind::Create,
            Some(_) => OperationKind::Update,
        };
        let wanted = Wanted {
            ask,
            shape: self.version.shape,
            address,
            conditions,
        };
        // Whatever can be said at once is said at once.
        let draft = self.arm.draft(&wanted, found.next().map(Arc::as_ref))?;
        let admitted = self.arm.parts.pools.admit(&draft.pool);
        admitted.map_err(not_changed)?;
        let pool = Arc::new(draft.pool);
        let lasting = !self.waits;
        let ticket = self.arm.operations.begin(kind, Arc::clone(&pool), lasting);
        let ticket = ticket.await?;
        if !lasting {
            let (pool, put) = self.arm.start_change(wanted, ticket).await?;
            let status = match put {
                Put::Created => StatusCode::CREATED,
                Put::Updated => StatusCode::OK,
            };
            return self.made(&pool, status).await;
        }
        let reply = match (&wanted.ask, kind) {
            (Ask::Patch(_), _) => self.accepted(&ticket, &pool),
            (Ask::Put(_), kind) => {
                let status = match kind {
                    OperationKind::Create => StatusCode::CREATED,
                    _ => StatusCode::OK,
                };
                let body = self.rendered(&pool, None, State::InProgress);
                self.tracked(Reply::new(status, Some(body)), &ticket, &pool)
            }
        };
        // It goes on, whoever listens.
        drop(self.arm.start_change(wanted, ticket));
        Ok(reply)
    }

    pub async fn delete(&self, address: &Address, headers: &HeaderMap) -> Result<Reply, Refusal> {
        self.caller.may_write(scope_of(address))?;
        let found = self.arm.find(address).ok();
        let pool = found.and_then(|found| found.shown().cloned());
        let Some(pool) = pool else {
            Conditions::of(headers).check(None)?;
            return if self.is_remote() {
                Ok(Reply::new(StatusCode::NO_CONTENT, None))
            } else {
                Err(no_such_pool(address))
            };
        };
        Conditions::of(headers).check(Some(&pool))?;
        let lasting = !self.waits;
        let operations = &self.arm.operations;
        let ticket = operations.begin(OperationKind::Delete, Arc::clone(&pool), lasting);
        let ticket = ticket.await?;
        if !lasting {
            self.arm.start_delete(pool, ticket).await?;
            return Ok(Reply::new(StatusCode::NO_CONTENT, None));
        }
        let reply = self.accepted(&ticket, &pool);
        drop(self.arm.start_delete(pool, ticket));
        Ok(reply)
    }

    fn is_remote(&self) -> bool {
        matches!(self.caller, Caller::Remote { .. })
    }

    /// 202: what comes of it is at `Location`.
    fn accepted(&self, ticket: &Ticket, pool: &PoolRecord) -> Reply {
        let result = self.operation_url("operationResults", ticket.id(), pool);
        let reply = Reply::new(StatusCode::ACCEPTED, None).header(header::LOCATION, &result);
        self.tracked(reply, ticket, pool)
    }

    /// The address of the operation, and when to look.
    fn tracked(&self, reply: Reply, ticket: &Ticket, pool: &PoolRecord) -> Reply {
        let status = self.operation_url("operationStatuses", ticket.id(), pool);
        reply
            .header(ASYNC_OPERATION, &status)
            .header(header::RETRY_AFTER, RETRY_SECONDS)
    }

    /// A pool that has just been made or changed.
    async fn made(&self, pool: &PoolRecord, status: StatusCode) -> Result<Reply, Refusal> {
        let address = Address::of(pool);
        let found = self.arm.find(&address)?;
        let made = found.made().ok_or_else(|| no_such_pool(&address))?;
        let body = self.shown(made, &found).await;
        Ok(Reply::new(status, Some(body)).header(header::ETAG, &etag(made)))
    }

    /// The resource as it is now.
    pub async fn resource(&self, address: &Address) -> Result<Reply, Refusal> {
        let pool = self.arm.pool(address)?;
        self.made(&pool, StatusCode::OK).await
    }

    async fn shown(&self, pool: &PoolRecord, found: &Found) -> Value {
        let status = match &found.made {
            Some((_, driver)) => Some(driver.status().await),
            None => None,
        };
        self.rendered(pool, status.as_ref(), found.state())
    }

    fn rendered(
        &self,
        pool: &PoolRecord,
        status: Option<&crate::pool::view::PoolStatus>,
        state: State,
    ) -> Value {
        let endpoints = &self.arm.parts.endpoints;
        let endpoints = match self.caller {
            Caller::Local => endpoints.clone(),
            Caller::Remote { host, .. } => endpoints.seen_as(host),
        };
        let facts = Facts {
            status,
            state,
            endpoint: endpoints.of(&pool.subscription, &pool.resource_group, pool.name.as_str()),
        };
        resource::pool(pool, &facts, &self.version.shape)
    }
}

/// As resource manager says it.
pub fn no_such_pool(address: &Address) -> Refusal {
    let Address {
        name,
        resource_group,
        ..
    } = address;
    let message = format!(
        "The resource '{}/{name}' under resource group '{resource_group}' was not found",
        resource::TYPE
    );
    Refusal::new(Code::ResourceNotFound, message)
}
