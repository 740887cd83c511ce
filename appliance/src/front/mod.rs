//! The front door: TLS, bearer token, pool, identifier, session, and the request goes through.
//!
//! ```text
//! listener (tls) ─▶ Front::handle ─▶ auth ─▶ route ─▶ pool claim ─▶ forward ─▶ container
//!                        │         │           └─ /.management ─▶ management
//!                        │         └─ /subscriptions/…/providers/… ─▶ arm
//!                        ├─ /ca.pem, before auth: it is public
//!                        └─ anything wrong ─▶ refusal
//! ```
//!
//! # Trust
//! Everything that comes in is hostile until the token is checked, and the container's answers stay
//! so: they are framed anew, their hop-by-hop headers are dropped, and only one request at a time is
//! on a connection to a container, whose connections serve no other session.

pub mod answer;
pub mod listener;
pub mod refusal;
pub mod tls;

mod forward;
mod headers;
mod limit;
mod management;
mod paced;
mod route;

pub use headers::upgrade_wanted;
pub use route::percent_decode;

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, Response, Version, header};
use hyper::body::{Body as _, Incoming};
use uuid::Uuid;

use answer::{AnswerBody, RequestLog};
use forward::{Outgoing, forward};
use limit::Gauge;
use management::{Asked, Caller, Reply};
use paced::Busy;
use refusal::{Code, OPERATION_ID_HEADER, Refusal};
use tls::ServedCertificate;

use crate::access::{Authority, Role, TokenHash};
use crate::arm::call::Reply as ArmReply;
use crate::arm::{self, Arm};
use crate::config::FrontLimits;
use crate::openapi;
use crate::pool::{BodyLimits, Pools};

/// Longest `operation-id` of a client that is repeated in the answer.
const MAX_OPERATION_ID: usize = 64;

/// When somebody who has too many requests open may try again: one of them may have ended by then.
const RETRY: Duration = Duration::from_secs(1);

/// Answers requests. One for the whole process.
pub struct Front {
    pub pools: Pools,
    pub authority: Arc<Authority>,
    /// Answers for pools as resources.
    pub arm: Arc<Arm>,
    pub domain: Option<String>,
    pub limits: Limits,
    /// What is shown to clients, and what they trust.
    pub certificate: Arc<ServedCertificate>,
}

/// What clients may take, and what they have taken.
pub struct Limits {
    rules: FrontLimits,
    tokens: Gauge<TokenHash>,
    sessions: Gauge<Uuid>,
}

impl Limits {
    pub fn new(rules: FrontLimits) -> Self {
        Self {
            tokens: Gauge::new(rules.requests_per_token),
            sessions: Gauge::new(rules.requests_per_session),
            rules,
        }
    }

    fn of_bodies(&self) -> BodyLimits {
        BodyLimits {
            most_bytes: self.rules.body_bytes,
            stall: Some(self.rules.stall),
        }
    }
}

impl Front {
    /// Answers one request; always with an answer, never with an error.
    pub async fn handle(
        &self,
        request: Request<Incoming>,
        peer: IpAddr,
        busy: Busy,
    ) -> Response<AnswerBody> {
        let mut log = RequestLog::new(request.method().clone(), request.version());
        log.takes.connection = Some(busy);
        log.takes.deadline = self
            .limits
            .rules
            .request
            .map(|time| tokio::time::Instant::now() + time);
        let operation = operation_id(request.headers()).unwrap_or_else(|| log.trace.clone());
        match self.clear(request, peer, &operation, &mut log).await {
            Ok(Cleared::Forward(outgoing)) => forward(*outgoing, log).await,
            Ok(Cleared::Managed(reply)) => reply.into_response(&operation, log),
            Ok(Cleared::Resource(reply)) => reply.into_response(&operation, log),
            Err(refusal) => answer::refuse(refusal, &operation, log),
        }
    }

    /// Everything that must be right before the request may go to a container, or the answer if it is
    /// not for one.
    async fn clear(
        &self,
        request: Request<Incoming>,
        peer: IpAddr,
        operation: &str,
        log: &mut RequestLog,
    ) -> Result<Cleared, Refusal> {
        let version = request.version();
        limit::refuse_long_head(request.uri(), request.headers(), &self.limits.rules)?;
        headers::refuse_ambiguous(request.method(), request.headers(), version).map_err(
            |refusal| {
                // Where this request ends may be in doubt too, so nothing after it is read.
                let closes = version < Version::HTTP_2;
                if closes {
                    refusal.header(header::CONNECTION, "close")
                } else {
                    refusal
                }
            },
        )?;
        if let Some(reply) = self.public(&request)? {
            return Ok(Cleared::Managed(reply));
        }
        let claims = self.authority.admit(request.headers(), peer).await?;
        let host = authority_of(&request)?;
        let slash = PathAndQuery::from_static("/");
        let target = request.uri().path_and_query().unwrap_or(&slash);
        log.takes.token = Some(self.limits.tokens.take(claims.token()).ok_or_else(|| {
            let most = self.limits.rules.requests_per_token;
            let message =
                format!("{most} requests with this token are open, and more there may not be");
            Refusal::new(Code::TokenRequestLimitReached, message).retry_after(RETRY)
        })?);
        if route::is_document(
            host_name(&host),
            request.uri().path(),
            self.domain.as_deref(),
        ) {
            arm::call::allow(&request, &[Method::GET])?;
            return Ok(Cleared::Resource(ArmReply::ok(openapi::value().clone())));
        }
        if route::is_resource(
            host_name(&host),
            request.uri().path(),
            self.domain.as_deref(),
        ) {
            let caller = arm::caller::Caller::Remote {
                claims: &claims,
                host: &host,
            };
            let reply = self.arm.handle(caller, request).await?;
            return Ok(Cleared::Resource(reply));
        }
        let route = route::route(host_name(&host), target, self.domain.as_deref())?;
        let found = self.pools.get(&route.pool);
        let scope = route.scope(found.as_ref().map(|(record, _)| &**record));
        // Before anything is said about the pool, so that a token cannot be used to look around.
        claims.permit(&[Role::SessionExecutor], scope)?;
        let (_, handle) = found
            .as_ref()
            .filter(|(record, _)| route.is_of(record))
            .ok_or_else(|| route::no_pool(route.pool.as_str()))?;
        log.pool = Some(route.pool.clone());
        if route.management().is_some() {
            let asked = Asked {
                route: &route,
                host: &host,
                uri: request.uri(),
                pool: handle,
                caller: Caller {
                    claims: &claims,
                    scope,
                },
            };
            let reply = management::answer(&request, asked, log).await?;
            return Ok(Cleared::Managed(reply));
        }
        let identifier = route::identifier(route.rest.query())?;
        claims.permit_session(scope, &identifier)?;
        if let (Some(most), Some(length)) =
            (self.limits.rules.body_bytes, request.size_hint().exact())
            && length > most
        {
            let message = format!("The body of the request has more than {most} bytes");
            return Err(Refusal::new(Code::PayloadTooLarge, message));
        }
        let asked = Instant::now();
        let claimed = handle.claim(identifier).await;
        log.claim = Some(asked.elapsed());
        let lease = claimed?;
        log.session = Some(lease.session);
        log.takes.session = Some(self.limits.sessions.take(lease.session).ok_or_else(|| {
            let most = self.limits.rules.requests_per_session;
            let message =
                format!("{most} requests to this session are open, and more there may not be");
            Refusal::new(Code::SessionRequestLimitReached, message).retry_after(RETRY)
        })?);
        let operation = operation.to_owned();
        Ok(Cleared::Forward(Box::new(Outgoing {
            request,
            lease,
            target: route.rest,
            host,
            peer,
            operation,
            body_limits: self.limits.of_bodies(),
        })))
    }
}

impl Front {
    /// What everybody may have, without a token.
    fn public(&self, request: &Request<Incoming>) -> Result<Option<Reply>, Refusal> {
        let Ok(host) = authority_of(request) else {
            return Ok(None);
        };
        let path = request.uri().path();
        if !route::is_authority(host_name(&host), path, self.domain.as_deref()) {
            return Ok(None);
        }
        arm::call::allow(request, &[Method::GET])?;
        match self.certificate.authority() {
            Some(pem) => Ok(Some(Reply::certificate(pem))),
            None => Err(Refusal::new(
                Code::ResourceNotFound,
                "The certificate here is the operator's own, and the appliance has no authority of its own",
            )),
        }
    }
}

/// What becomes of a request that is as it should be.
enum Cleared {
    Forward(Box<Outgoing>),
    Managed(Reply),
    Resource(ArmReply),
}

/// Host and port that the client asked for. Where it says so twice, both must be the same.
fn authority_of<B>(request: &Request<B>) -> Result<String, Refusal> {
    let in_header = request
        .headers()
        .get(header::HOST)
        .map(|host| host.to_str().unwrap_or_default());
    let in_target = request
        .uri()
        .authority()
        .map(|authority| authority.as_str());
    let named = match (in_target, in_header) {
        (Some(target), Some(header)) if !target.eq_ignore_ascii_case(header) => None,
        (Some(host), _) | (None, Some(host)) => Some(host),
        (None, None) => None,
    };
    named
        .filter(|host| is_authority(host))
        .map(str::to_owned)
        .ok_or_else(|| {
            let message = "The host is missing, malformed, or named twice with different values";
            Refusal::new(Code::SessionRequestValidationFailed, message).target("host")
        })
}

/// Host and optional port, nothing else: in particular no user information.
fn is_authority(text: &str) -> bool {
    !text.contains('@')
        && text
            .parse::<http::uri::Authority>()
            .is_ok_and(|parsed| !parsed.host().is_empty())
}

fn host_name(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

fn operation_id(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(OPERATION_ID_HEADER)?.to_str().ok()?;
    let fits = (1..=MAX_OPERATION_ID).contains(&value.len())
        && value
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    fits.then(|| value.to_owned())
}
