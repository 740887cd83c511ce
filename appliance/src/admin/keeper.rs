//! What the appliance keeps of images, and taking them out.

use std::any::Any;

use http::{Method, Request};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::Admin;
use crate::arm::call::{Reply, allow, nothing_here, read_json};
use crate::arm::resource::moment;
use crate::front::percent_decode;
use crate::front::refusal::{Code, Refusal};
use crate::pool::launcher::BoxFuture;

const PRUNE: &str = "prune";

/// Keeps images, and knows who needs them.
pub trait ImageKeeper: Send + Sync + 'static {
    /// All images, by name.
    fn list(&self) -> BoxFuture<'_, Vec<KeptImage>>;

    /// By name or digest.
    fn inspect(&self, reference: String) -> BoxFuture<'_, Result<KeptImage, Refusal>>;

    /// A name, or an image that nobody needs.
    fn remove(&self, reference: String) -> BoxFuture<'_, Result<RemovedImage, Refusal>>;

    /// Every image that nobody needs; `dry_run`: only says which.
    fn prune(&self, dry_run: bool) -> BoxFuture<'_, Result<Vec<RemovedImage>, Refusal>>;

    /// Keeps the image from being removed for as long as the answer lives, and notes that it is used.
    fn hold(&self, digest: &str) -> ImageHold;
}

/// See [`ImageKeeper::hold`].
pub type ImageHold = Box<dyn Any + Send + Sync>;

/// An image, for people.
#[derive(Debug, Clone)]
pub struct KeptImage {
    pub name: String,
    pub names: Vec<String>,
    pub digest: String,
    pub root_image_bytes: u64,
    pub warnings: Vec<String>,
    pub layers: Option<usize>,
    pub made_at_ms: Option<u64>,
    pub last_used_ms: u64,
    /// Those that need it.
    pub pools: Vec<String>,
    /// It is being imported, or something is being made of it.
    pub is_held: bool,
    /// As the image has it.
    pub config: Value,
}

/// What a removal has done, or would do.
#[derive(Debug, Clone, Default)]
pub struct RemovedImage {
    pub name: String,
    pub digest: String,
    /// Not empty: only a name was removed.
    pub names_left: Vec<String>,
    pub freed_bytes: u64,
    pub goldens: usize,
    pub warnings: Vec<String>,
}

impl Admin {
    pub(super) async fn list_images(&self) -> Reply {
        let images = self.keeper.list().await;
        let images: Vec<_> = images.iter().map(kept_json).collect();
        Reply::ok(json!({ "value": images }))
    }

    /// `/images/<name or digest>`, percent-encoded, and `/images/prune`.
    pub(super) async fn image_call(
        &self,
        request: Request<Incoming>,
        reference: &str,
    ) -> Result<Reply, Refusal> {
        let reference = percent_decode(reference).and_then(|bytes| String::from_utf8(bytes).ok());
        let reference = reference
            .filter(|text| !text.is_empty())
            .ok_or_else(nothing_here)?;
        let methods = match reference.as_str() {
            PRUNE => &[Method::POST, Method::GET, Method::DELETE][..],
            _ => &[Method::GET, Method::DELETE],
        };
        match *allow(&request, methods)? {
            Method::POST => self.prune_images(&read_json(request).await?).await,
            Method::DELETE => {
                let removed = self.keeper.remove(reference).await?;
                Ok(Reply::ok(removed_json(&removed)))
            }
            _ => {
                let image = self.keeper.inspect(reference).await?;
                let mut answer = kept_json(&image);
                answer["config"] = image.config;
                Ok(Reply::ok(answer))
            }
        }
    }

    async fn prune_images(&self, body: &Value) -> Result<Reply, Refusal> {
        let dry_run = match &body["dryRun"] {
            Value::Null => false,
            Value::Bool(dry_run) => *dry_run,
            _ => {
                let message = "dryRun must be true or false";
                return Err(Refusal::new(Code::InvalidRequestContent, message).target("dryRun"));
            }
        };
        let removed = self.keeper.prune(dry_run).await?;
        let freed: u64 = removed.iter().map(|image| image.freed_bytes).sum();
        let removed: Vec<_> = removed.iter().map(removed_json).collect();
        Ok(Reply::ok(
            json!({ "value": removed, "freedBytes": freed, "dryRun": dry_run }),
        ))
    }
}

fn kept_json(image: &KeptImage) -> Value {
    json!({
        "name": image.name,
        "names": image.names,
        "digest": image.digest,
        "rootImageBytes": image.root_image_bytes,
        "warnings": image.warnings,
        "layers": image.layers,
        "madeAt": image.made_at_ms.map(moment),
        "lastUsedAt": moment(image.last_used_ms),
        "pools": image.pools,
        "held": image.is_held,
    })
}

fn removed_json(image: &RemovedImage) -> Value {
    json!({
        "name": image.name,
        "digest": image.digest,
        "namesLeft": image.names_left,
        "freedBytes": image.freed_bytes,
        "goldens": image.goldens,
        "warnings": image.warnings,
    })
}
