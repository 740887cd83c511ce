//! Images: the way in for new ones.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, header};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::Admin;
use crate::arm::call::{Reply, allow, query_value, read_json};
use crate::front::answer::{AnswerBody, RequestLog, refuse};
use crate::front::refusal::{Code, OPERATION_ID_HEADER, Refusal};
use crate::images::registry::{Credentials, Progress, Reporter, Secret};
use crate::pool::container::ImageDefaults;
use crate::pool::launcher::BoxFuture;

/// The call that pulls an image.
pub const PULL: &str = "/images/pull";
/// Lines that wait for their reader; a pull does not wait for who reads about it.
const LINES: usize = 64;

/// The images of this appliance.
pub trait ImageService: Send + Sync + 'static {
    /// By name or digest; from its registry if it is not here, or may be another one by now. `true`: nothing
    /// had to be done.
    fn pull(
        &self,
        order: PullOrder,
        reporter: Reporter,
    ) -> BoxFuture<'_, Result<(ImageSummary, bool), Refusal>>;

    /// Takes an archive as it comes. `true`: it was there already.
    fn import(
        &self,
        order: ImportOrder,
        archive: Incoming,
    ) -> BoxFuture<'_, Result<(ImageSummary, bool), Refusal>>;
}

/// An image that sessions can be made from.
#[derive(Debug, Clone)]
pub struct ImageSummary {
    pub name: String,
    pub digest: String,
    pub root_image_bytes: u64,
    /// What could not be kept of the image.
    pub warnings: Vec<String>,
    pub defaults: ImageDefaults,
}

/// Which image is needed.
#[derive(Debug, Clone)]
pub struct PullOrder {
    pub image: String,
    /// What the name is to mean, whatever it has come to mean since.
    pub digest: Option<String>,
    pub credentials: Option<Credentials>,
}

/// The body of a call for a pull.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PullBody {
    image: String,
    registry: Option<PullLogin>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PullLogin {
    server: String,
    username: String,
    password: String,
}

/// What is to be imported.
#[derive(Debug, Clone)]
pub struct ImportOrder {
    pub transport: String,
    /// Which image of the archive, when it holds several.
    pub reference: Option<String>,
    /// What it is to be called here.
    pub name: Option<String>,
}

impl Admin {
    pub(super) async fn import_image(&self, request: Request<Incoming>) -> Result<Reply, Refusal> {
        let query = request.uri().query();
        let order = ImportOrder {
            transport: query_value(query, "transport").ok_or_else(|| {
                let message =
                    "The query parameter transport is missing: oci-archive or docker-archive";
                Refusal::new(Code::InvalidRequestContent, message).target("transport")
            })?,
            reference: query_value(query, "ref"),
            name: query_value(query, "name"),
        };
        let (image, cached) = self.images.import(order, request.into_body()).await?;
        let mut answer = image_json(&image);
        answer["cached"] = cached.into();
        Ok(Reply::ok(answer))
    }
}

impl Admin {
    /// Answers with a line of JSON for each step; the last one is the image or the error. Who hangs up ends the
    /// pull, and the next one goes on where it was.
    pub(super) async fn pull_image(
        &self,
        request: Request<Incoming>,
        log: RequestLog,
    ) -> Response<AnswerBody> {
        let trace = log.trace.clone();
        let order = match pull_order(request).await {
            Ok(order) => order,
            Err(refusal) => return refuse(refusal, &trace, log),
        };
        let (sender, lines) = mpsc::channel(LINES);
        tokio::spawn(send_steps(Arc::clone(&self.images), order, sender));
        let mut response = Response::new(AnswerBody::lines(lines, log));
        let headers = response.headers_mut();
        let kind = HeaderValue::from_static("application/x-ndjson");
        headers.insert(header::CONTENT_TYPE, kind);
        if let Ok(trace) = trace.parse() {
            headers.insert(OPERATION_ID_HEADER, trace);
        }
        response
    }
}

async fn pull_order(request: Request<Incoming>) -> Result<PullOrder, Refusal> {
    allow(&request, &[Method::POST])?;
    let body = read_json(request).await?;
    // Not serde's own words, which may repeat a value: it could be the password.
    let body: PullBody = serde_json::from_value(body).map_err(|_| {
        let message = "The body must be {image, registry?: {server, username, password}}";
        Refusal::new(Code::InvalidRequestContent, message)
    })?;
    let credentials = body.registry.map(|login| {
        let server = login.server.parse().map_err(|why: String| {
            Refusal::new(Code::InvalidRequestContent, why).target("registry.server")
        })?;
        Ok::<_, Refusal>(Credentials {
            server,
            username: login.username,
            password: Secret::new(login.password),
        })
    });
    Ok(PullOrder {
        image: body.image,
        digest: None,
        credentials: credentials.transpose()?,
    })
}

async fn send_steps(images: Arc<dyn ImageService>, order: PullOrder, sender: mpsc::Sender<Bytes>) {
    let (reporter, mut steps) = Reporter::channel();
    let mut pull = images.pull(order, reporter);
    let result = loop {
        tokio::select! {
            biased;
            Some(step) = steps.recv() => {
                // A reader that is slow misses steps, not the end.
                let _ = sender.try_send(step_line(&step));
            }
            result = &mut pull => break result,
            () = sender.closed() => return,
        }
    };
    // Those that were reported last.
    while let Ok(step) = steps.try_recv() {
        let _ = sender.try_send(step_line(&step));
    }
    let last = match result {
        Ok((image, cached)) => {
            let mut answer = image_json(&image);
            answer["cached"] = cached.into();
            answer["event"] = "done".into();
            answer
        }
        Err(refusal) => json!({
            "event": "failed",
            "error": { "code": refusal.code.as_str(), "message": refusal.message },
        }),
    };
    let _ = sender.send(line(&last)).await;
}

fn step_line(step: &Progress) -> Bytes {
    line(&serde_json::to_value(step).unwrap_or_default())
}

fn line(value: &Value) -> Bytes {
    format!("{value}\n").into()
}

fn image_json(image: &ImageSummary) -> Value {
    json!({
        "name": image.name,
        "digest": image.digest,
        "rootImageBytes": image.root_image_bytes,
        "warnings": image.warnings,
    })
}
