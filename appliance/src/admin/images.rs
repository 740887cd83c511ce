//! Images: the way in for new ones.

use http::Request;
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::{Admin, Reply, query_value};
use crate::front::refusal::{Code, Refusal};
use crate::pool::container::ImageDefaults;
use crate::pool::launcher::BoxFuture;

/// The images of this appliance.
pub trait ImageService: Send + Sync + 'static {
    /// By name or digest.
    fn find(&self, reference: &str) -> Result<ImageSummary, Refusal>;

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

fn image_json(image: &ImageSummary) -> Value {
    json!({
        "name": image.name,
        "digest": image.digest,
        "rootImageBytes": image.root_image_bytes,
        "warnings": image.warnings,
    })
}
