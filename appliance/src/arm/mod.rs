//! Session pools as resources, in the shape of `Microsoft.App/sessionPools`: make, change, show, list, delete.
//!
//! There are two doors to it. On the administration socket nobody is asked who they are, and a change is answered when
//! it is done, unless `Prefer: respond-async` is said (RFC 7240, section 4.1). On the HTTPS port a token says what its bearer may see and change, and a change is answered at once with
//! the address of an operation. Behind the doors it is the same: [`Arm::handle`].
//!
//! ```text
//! path ─▶ caller (may it?) ─▶ properties (is it right?) ─▶ operations (its turn) ─▶ change ─▶ Pools
//! ```

pub mod call;
pub mod caller;
pub mod path;
pub mod properties;
pub mod resource;
pub mod version;

mod change;
mod conditions;
mod environments;
mod operations;
mod pools;
mod recovery;
mod results;

#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use http::{Method, Request};
use hyper::body::Incoming;

use crate::admin::{ImageKeeper, ImageService};
use crate::front::refusal::Refusal;
use crate::pool::Pools;
use crate::store::{Records, StoreError};
use crate::vault::Vault;
use call::{Reply, allow, nothing_here, query_value};
use caller::Caller;
use operations::Operations;
use path::Target;
use version::Version;

pub use pools::no_such_pool;
pub use properties::Rules;

/// What the resources are made of.
pub struct Parts {
    pub pools: Pools,
    pub records: Records,
    pub images: Arc<dyn ImageService>,
    pub keeper: Arc<dyn ImageKeeper>,
    pub rules: Rules,
    pub endpoints: Endpoints,
    /// What the secrets of pools are sealed with.
    pub vault: Arc<Vault>,
}

/// The resources of this appliance.
pub struct Arm {
    parts: Parts,
    operations: Arc<Operations>,
}

/// Where sessions are reached.
#[derive(Debug, Clone)]
pub struct Endpoints {
    /// With scheme and port.
    pub host: String,
    pub domain: Option<String>,
    pub port: u16,
}

/// Where a URL without a port leads.
const HTTPS_PORT: u16 = 443;

impl Endpoints {
    /// Addresses of the whole appliance, which tokens may be for.
    pub fn addresses(&self) -> impl Iterator<Item = String> {
        let port = match self.port {
            HTTPS_PORT => String::new(),
            port => format!(":{port}"),
        };
        let domain = self.domain.as_ref();
        let domain = domain.map(|domain| format!("https://{domain}{port}"));
        std::iter::once(self.host.clone()).chain(domain)
    }

    /// The base address of a pool's sessions: by host name if there is a domain, else by path.
    pub fn of(&self, subscription: &str, resource_group: &str, pool: &str) -> String {
        match &self.domain {
            Some(domain) if self.port == HTTPS_PORT => format!("https://{pool}.{domain}"),
            Some(domain) => format!("https://{pool}.{domain}:{}", self.port),
            None => format!(
                "{}/subscriptions/{subscription}/resourceGroups/{resource_group}/sessionPools/{pool}",
                self.host
            ),
        }
    }

    /// For a client that calls this host so. It has come through by this name and port, so it will again.
    fn seen_as(&self, host: &str) -> Self {
        let port = host.parse::<http::uri::Authority>().ok();
        let port = port.and_then(|authority| authority.port_u16());
        Self {
            host: format!("https://{host}"),
            domain: self.domain.clone(),
            port: port.unwrap_or(HTTPS_PORT),
        }
    }
}

impl Arm {
    /// Ends what an earlier run has left without an end.
    pub async fn open(parts: Parts) -> Result<Arc<Self>, StoreError> {
        let operations = Arc::new(Operations::open(parts.records.clone()).await?);
        let this = Arc::new(Self { parts, operations });
        this.recover().await;
        Ok(this)
    }

    /// From now on nothing is made or changed.
    pub fn stop(&self) {
        self.operations.stop();
    }

    /// Resolves when all that was begun has ended, but for deletions: those go on in the next run.
    pub async fn settled(&self) {
        self.operations.settled().await;
    }

    /// Where this host is reached by who asks on it.
    pub fn host(&self) -> &str {
        &self.parts.endpoints.host
    }

    /// Answers one call about a resource.
    pub async fn handle(
        self: &Arc<Self>,
        caller: Caller<'_>,
        request: Request<Incoming>,
    ) -> Result<Reply, Refusal> {
        let target = path::target(request.uri().path())?;
        let named = query_value(request.uri().query(), "api-version");
        let version = caller.version(named.as_deref())?;
        let call = Call {
            arm: self,
            caller,
            version,
            waits: caller.waits(request.headers()),
        };
        if let Target::Pool(address) = target {
            let methods = [Method::GET, Method::PUT, Method::PATCH, Method::DELETE];
            return match *allow(&request, &methods)? {
                Method::GET => call.get(&address).await,
                Method::DELETE => call.delete(&address, request.headers()).await,
                Method::PATCH => call.patch(address, request).await,
                _ => call.put(address, request).await,
            };
        }
        allow(&request, &[Method::GET])?;
        match target {
            Target::Pools(group) => call.list(&group).await,
            Target::Environments(group) => call.environments(&group),
            Target::Environment(group, name) => call.environment(&group, &name),
            Target::OperationStatus(subscription, id) => call.operation(&subscription, id),
            Target::OperationResult(subscription, id) => call.result(&subscription, id).await,
            Target::Pool(_) | Target::Sessions(_) | Target::Session(..) => Err(nothing_here()),
        }
    }
}

/// One call.
struct Call<'a> {
    arm: &'a Arc<Arm>,
    caller: Caller<'a>,
    version: Version,
    /// Whether a change is answered when it is done.
    waits: bool,
}
