//! Session pools as resources: make, change, show, list, delete.

use std::time::Duration;

use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::changes::Turn;
use super::images::{ImageSummary, PullOrder};
use super::properties::{Address, checked, image_order, image_target, patched};
use super::{Admin, Reply, allow, nothing_here, query_value, read_json, resource};
use crate::front::percent_decode;
use crate::front::refusal::{Code, Refusal};
use crate::images::registry::Reporter;
use crate::pool::launcher::PrepareFailure;
use crate::pool::{POOL_NAME_RULE, PoolChangeError, PoolName, Put};
use crate::store::PoolRecord;

const PROVIDER: &str = "Microsoft.App";
const RESOURCE: &str = "sessionPools";
const SESSIONS: &str = "sessions";

/// What a path is about.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Scope {
    Subscription(String),
    Group(String, String),
    Pool(Address),
    Sessions(Address),
    Session(Address, String),
}

impl Admin {
    pub(super) async fn pool_call(
        &self,
        request: Request<Incoming>,
        path: &str,
    ) -> Result<Reply, Refusal> {
        let scope = scope(path)?;
        check_version(query_value(request.uri().query(), "api-version").as_deref())?;
        match scope {
            Scope::Subscription(subscription) => {
                allow(&request, &[Method::GET])?;
                Ok(self.list_pools(&subscription, None).await)
            }
            Scope::Group(subscription, group) => {
                allow(&request, &[Method::GET])?;
                Ok(self.list_pools(&subscription, Some(&group)).await)
            }
            Scope::Pool(address) => self.one_pool(address, request).await,
            Scope::Sessions(address) => self.list_sessions(&address, &request).await,
            Scope::Session(address, identifier) => {
                self.one_session(&address, &identifier, &request).await
            }
        }
    }

    async fn one_pool(
        &self,
        address: Address,
        request: Request<Incoming>,
    ) -> Result<Reply, Refusal> {
        let methods = [Method::GET, Method::PUT, Method::PATCH, Method::DELETE];
        match *allow(&request, &methods)? {
            Method::GET => {
                let pool = self.find_pool(&address, false)?;
                let resource = self.resource(&pool).await;
                resource
                    .map(Reply::ok)
                    .ok_or_else(|| no_such_pool(&address))
            }
            Method::DELETE => self.delete_pool(&address).await,
            Method::PATCH => self.patch_pool(address, request).await,
            _ => self.put_pool(address, request).await,
        }
    }

    async fn list_pools(&self, subscription: &str, group: Option<&str>) -> Reply {
        let here = |pool: &PoolRecord| {
            pool.subscription.eq_ignore_ascii_case(subscription)
                && group.is_none_or(|group| pool.resource_group.eq_ignore_ascii_case(group))
        };
        let mut value = Vec::new();
        for pool in self.pools.list().iter().filter(|pool| here(pool)) {
            value.extend(self.resource(pool).await);
        }
        Reply::ok(json!({ "value": value, "nextLink": null }))
    }

    /// The resource; `None` if it has just been deleted.
    async fn resource(&self, pool: &PoolRecord) -> Option<Value> {
        let (_, driver) = self.pools.get(&pool.name)?;
        let status = driver.status().await;
        Some(resource::pool(pool, &status, &self.endpoints))
    }

    async fn put_pool(
        &self,
        address: Address,
        request: Request<Incoming>,
    ) -> Result<Reply, Refusal> {
        let body = read_json(request).await?;
        let turn = self.changes.begin(&address.name).await;
        let current = self.find_pool(&address, false).ok();
        self.change(&body, address, current.as_deref(), turn).await
    }

    async fn patch_pool(
        &self,
        address: Address,
        request: Request<Incoming>,
    ) -> Result<Reply, Refusal> {
        let patch = read_json(request).await?;
        let turn = self.changes.begin(&address.name).await;
        let current = self.find_pool(&address, false)?;
        let body = patched(&current, patch, &resource::id(&current))?;
        let address = Address {
            subscription: current.subscription.clone(),
            resource_group: current.resource_group.clone(),
            name: current.name.to_string(),
        };
        self.change(&body, address, Some(&current), turn).await
    }

    /// The image of a pool.
    async fn pull(&self, order: PullOrder) -> Result<ImageSummary, Refusal> {
        let pulled = self.images.pull(order, Reporter::default()).await;
        let (image, _) = pulled.map_err(|refusal| refusal.target(image_target()))?;
        Ok(image)
    }

    /// Makes the pool what `body` says. The turn is held until that is done, even if the caller goes
    /// away.
    async fn change(
        &self,
        body: &Value,
        address: Address,
        current: Option<&PoolRecord>,
        turn: Turn,
    ) -> Result<Reply, Refusal> {
        let order = image_order(body, &address, current, &self.vault)?;
        let image = self.pull(order.clone()).await?;
        let pool = checked(body, address, current, &self.rules, &image, &self.vault)?;
        // Until the pools know that it is needed, and the other one that it is not.
        let digests = [Some(&pool), current].map(|pool| pool.map(|it| it.image_digest.as_str()));
        let held = digests.map(|digest| digest.map(|digest| self.keeper.hold(digest)));
        // Once more, which is nothing to do if it is there: somebody may have removed it before it was held.
        let digest = Some(pool.image_digest.clone());
        self.pull(PullOrder { digest, ..order }).await?;
        let (pools, name) = (self.pools.clone(), pool.name.clone());
        let change = tokio::spawn(async move {
            let put = pools.put(pool).await;
            drop((turn, held));
            put
        });
        let lost = |error| Refusal::internal("The change of the pool was lost", error);
        let (pool, put) = change.await.map_err(lost)?.map_err(not_changed)?;
        let status = match put {
            Put::Created => StatusCode::CREATED,
            Put::Updated => StatusCode::OK,
        };
        let body = self.resource(&pool).await;
        let gone = || not_changed(PoolChangeError::Withdrawn { name });
        Ok(Reply {
            status,
            body: Some(body.ok_or_else(gone)?),
        })
    }

    /// Answers when nothing is left of the pool. One that is still being made is not made.
    async fn delete_pool(&self, address: &Address) -> Result<Reply, Refusal> {
        let pool = self.find_pool(address, true)?;
        let _held = self.keeper.hold(&pool.image_digest);
        if self
            .pools
            .delete(pool.name.clone())
            .await
            .map_err(not_changed)?
        {
            Ok(Reply {
                status: StatusCode::NO_CONTENT,
                body: None,
            })
        } else {
            Err(no_such_pool(address))
        }
    }

    pub(super) fn find_pool(
        &self,
        address: &Address,
        pending_too: bool,
    ) -> Result<std::sync::Arc<PoolRecord>, Refusal> {
        let found = PoolName::parse_ignoring_case(&address.name).ok();
        let found = found.and_then(|name| {
            let made = self.pools.get(&name).map(|(record, _)| record);
            made.or_else(|| pending_too.then(|| self.pools.pending(&name)).flatten())
        });
        let here = |pool: &PoolRecord| {
            pool.subscription
                .eq_ignore_ascii_case(&address.subscription)
                && pool
                    .resource_group
                    .eq_ignore_ascii_case(&address.resource_group)
        };
        found
            .filter(|pool| here(pool))
            .ok_or_else(|| no_such_pool(address))
    }
}

pub(super) fn no_such_pool(address: &Address) -> Refusal {
    let Address {
        name,
        resource_group,
        ..
    } = address;
    let message = format!("There is no session pool {name:?} in resource group {resource_group:?}");
    Refusal::new(Code::ResourceNotFound, message)
}

fn not_changed(error: PoolChangeError) -> Refusal {
    let message = error.to_string();
    match error {
        PoolChangeError::NameInUse { .. } => Refusal::new(Code::SessionPoolNameInUse, message),
        PoolChangeError::TooLarge { source, .. } => {
            Refusal::new(Code::SessionPoolInvalidProperty, message).target(source.property)
        }
        PoolChangeError::NotPrepared { failure, .. } => not_prepared(&failure),
        PoolChangeError::Withdrawn { .. } => closing(message),
        PoolChangeError::Store { .. } => Refusal::internal(message, error),
    }
}

fn not_prepared(failure: &PrepareFailure) -> Refusal {
    match failure {
        PrepareFailure::Container(failure) => Refusal::new(
            Code::SessionPoolContainerFailed,
            failure.describe(&failure.cause.to_string()),
        )
        .target("properties.customContainerTemplate.containers[0]"),
        PrepareFailure::Host { message } => {
            Refusal::new(Code::SessionPoolGoldenFailed, message.clone())
        }
        PrepareFailure::Closing => closing("The appliance is stopping"),
    }
}

fn closing(message: impl Into<String>) -> Refusal {
    Refusal::new(Code::SessionPoolClosing, message).retry_after(Duration::from_secs(1))
}

/// `/subscriptions/{s}[/resourceGroups/{rg}]/providers/Microsoft.App/sessionPools[/{name}[/sessions[/{identifier}]]]`.
pub(super) fn scope(path: &str) -> Result<Scope, Refusal> {
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let is = |segment: &str, word: &str| segment.eq_ignore_ascii_case(word);
    let value = |segment: &str| {
        let decoded = percent_decode(segment).and_then(|bytes| String::from_utf8(bytes).ok());
        decoded
            .filter(|text| !text.is_empty())
            .ok_or_else(nothing_here)
    };
    match segments[..] {
        [a, s, d, e, f]
            if is(a, "subscriptions")
                && is(d, "providers")
                && is(e, PROVIDER)
                && is(f, RESOURCE) =>
        {
            Ok(Scope::Subscription(value(s)?))
        }
        [a, s, b, g, d, e, f, ref rest @ ..]
            if is(a, "subscriptions")
                && is(b, "resourceGroups")
                && is(d, "providers")
                && is(e, PROVIDER)
                && is(f, RESOURCE) =>
        {
            let (subscription, resource_group) = (value(s)?, value(g)?);
            match rest {
                [] => Ok(Scope::Group(subscription, resource_group)),
                [name, rest @ ..] => {
                    let pool = Address {
                        subscription,
                        resource_group,
                        name: value(name)?,
                    };
                    match rest {
                        [] => Ok(Scope::Pool(pool)),
                        [word] if is(word, SESSIONS) => Ok(Scope::Sessions(pool)),
                        [word, identifier] if is(word, SESSIONS) => {
                            Ok(Scope::Session(pool, value(identifier)?))
                        }
                        _ => Err(nothing_here()),
                    }
                }
            }
        }
        _ => Err(nothing_here()),
    }
}

/// `YYYY-MM-DD` with an optional `-preview`; any of them will do, and none at all.
pub(super) fn check_version(version: Option<&str>) -> Result<(), Refusal> {
    let Some(version) = version else {
        return Ok(());
    };
    let date = version.strip_suffix("-preview").unwrap_or(version);
    if date.len() == 10 && date.parse::<jiff::civil::Date>().is_ok() {
        return Ok(());
    }
    let message =
        format!("api-version must look like 2025-07-01 or 2025-07-01-preview, not {version:?}");
    Err(Refusal::new(Code::InvalidRequestContent, message).target("api-version"))
}

/// A name for a new pool.
pub(super) fn new_name(name: &str) -> Result<PoolName, Refusal> {
    name.parse()
        .map_err(|_| Refusal::new(Code::SessionPoolInvalidProperty, POOL_NAME_RULE).target("name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_a_subscription_a_group_or_a_pool_whatever_their_case() {
        let group = "/subscriptions/S/resourcegroups/my%20rg/PROVIDERS/microsoft.app/sessionpools";
        assert_eq!(
            scope(group).unwrap(),
            Scope::Group("S".into(), "my rg".into())
        );
        let Scope::Pool(address) = scope(&format!("{group}/alpha")).unwrap() else {
            panic!()
        };
        assert_eq!(
            (address.name.as_str(), address.resource_group.as_str()),
            ("alpha", "my rg")
        );
        let all = "/subscriptions/s/providers/Microsoft.App/sessionPools";
        assert_eq!(scope(all).unwrap(), Scope::Subscription("s".into()));
        for path in [
            "/",
            "",
            "/subscriptions/s/resourceGroups/rg/providers/Microsoft.Web/sessionPools",
            "/subscriptions//resourceGroups/rg/providers/Microsoft.App/sessionPools",
            "/subscriptions/s/resourceGroups/rg/providers/Microsoft.App/sessionPools/",
            "/subscriptions/s/resourceGroups/rg/providers/Microsoft.App/sessionPools/a/b",
            "/subscriptions/s/resourceGroups/rg/sessionPools/alpha",
        ] {
            assert!(scope(path).is_err(), "{path}");
        }
    }

    #[test]
    fn any_well_formed_version_will_do() {
        for good in [None, Some("2025-07-01"), Some("2026-03-02-preview")] {
            assert!(check_version(good).is_ok(), "{good:?}");
        }
        for bad in ["", "1", "2025-13-01", "2025-07-01-beta", "latest"] {
            assert!(check_version(Some(bad)).is_err(), "{bad}");
        }
    }
}
