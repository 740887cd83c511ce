//! The administration API: HTTP on a Unix socket that only its owner may open.
//!
//! There is no token here: who may open the socket may do everything. Pools have the shape of
//! `Microsoft.App/sessionPools`; images, goldens, tokens and health are our own.

mod drain;
mod goldens;
mod images;
mod inside;
mod keeper;
mod listener;
mod sessions;
mod tls;
mod tokens;

#[cfg(test)]
pub mod tests;

use std::sync::Arc;

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::json;
use tokio::sync::Notify;

pub use goldens::{GoldenService, GoldenSummary};
pub use images::{ImageService, ImageSummary, ImportOrder, PullOrder};
pub use inside::EXEC_PROTOCOL;
pub use keeper::{ImageHold, ImageKeeper, KeptImage, RemovedImage};
pub use listener::{bind, serve};

use crate::access::Authority;
use crate::arm::Arm;
use crate::arm::call::{Reply, allow, read_json};
use crate::arm::caller::Caller;
use crate::arm::path::{self, Target};
use crate::front::answer::{AnswerBody, RequestLog, refuse};
use crate::front::refusal::Refusal;
use crate::front::tls::ServedCertificate;
use crate::pool::Pools;

/// Answers requests on the administration socket.
pub struct Admin {
    pub pools: Pools,
    pub authority: Arc<Authority>,
    pub images: Arc<dyn ImageService>,
    pub keeper: Arc<dyn ImageKeeper>,
    pub goldens: Arc<dyn GoldenService>,
    /// Pools as resources.
    pub arm: Arc<Arm>,
    pub certificate: Arc<ServedCertificate>,
    /// Told when an operator asks for the end of everything.
    pub stop: Arc<Notify>,
}

impl Admin {
    /// Answers one request; always with an answer, never with an error.
    pub async fn handle(&self, request: Request<Incoming>) -> Response<AnswerBody> {
        let log = RequestLog::new(request.method().clone(), request.version());
        let trace = log.trace.clone();
        if let Some(place) = inside::Place::of(request.uri().path()) {
            return self.look_inside(request, &place, log).await;
        }
        if request.uri().path() == images::PULL {
            return self.pull_image(request, log).await;
        }
        match self.answer(request).await {
            Ok(reply) => reply.into_response(&trace, log),
            Err(refusal) => refuse(refusal, &trace, log),
        }
    }

    async fn resource_call(
        &self,
        request: Request<Incoming>,
        path: &str,
    ) -> Result<Reply, Refusal> {
        match path::target(path)? {
            Target::Sessions(pool) => self.list_sessions(&pool, &request).await,
            Target::Session(pool, identifier) => {
                self.one_session(&pool, &identifier, &request).await
            }
            _ => self.arm.handle(Caller::Local, request).await,
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Reply, Refusal> {
        let path = request.uri().path().to_owned();
        match path.as_str() {
            "/healthz" => {
                allow(&request, &[Method::GET])?;
                Ok(Reply::ok(
                    json!({ "status": "ok", "endpoint": self.arm.host() }),
                ))
            }
            "/stop" => {
                allow(&request, &[Method::POST])?;
                tracing::info!("asked to stop");
                self.stop.notify_one();
                Ok(Reply::new(StatusCode::ACCEPTED, None))
            }
            "/drain" => match *allow(&request, &[Method::GET, Method::POST, Method::DELETE])? {
                Method::POST => self.drain(&read_json(request).await?).await,
                Method::DELETE => self.end_drain().await,
                _ => Ok(Reply::ok(self.draining().await)),
            },
            "/tokens" => self.token_call(request, None).await,
            _ if path.starts_with("/tokens/") => {
                self.token_call(request, path.strip_prefix("/tokens/"))
                    .await
            }
            "/images" => match *allow(&request, &[Method::GET, Method::POST])? {
                Method::POST => self.import_image(request).await,
                _ => Ok(self.list_images().await),
            },
            "/tls" => {
                allow(&request, &[Method::GET])?;
                Ok(Reply::ok(self.certificate.report()))
            }
            "/tls/ca" => {
                allow(&request, &[Method::GET])?;
                self.tls_authority()
            }
            "/tls/renew" => {
                allow(&request, &[Method::POST])?;
                self.renew_tls().await
            }
            "/goldens" => {
                allow(&request, &[Method::GET])?;
                Ok(self.list_goldens())
            }
            _ => match path.strip_prefix("/images/") {
                Some(reference) => self.image_call(request, reference).await,
                None => self.resource_call(request, &path).await,
            },
        }
    }
}
