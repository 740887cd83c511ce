//! What somebody who waits for a pull may want to see.

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::images::digest::Digest;

/// One step of a pull. Sent as a line of JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "event",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum Progress {
    /// The name means this image.
    Resolved { image: String, digest: Digest },
    /// Another pull of the same image is on its way; this one waits for it.
    Waiting,
    /// A layer has so many of its bytes; at first and at the end, and in between.
    Layer {
        digest: Digest,
        bytes: u64,
        total: u64,
    },
    /// A download failed and is tried again.
    Retry { digest: Digest, reason: String },
    /// Every layer is here; the root image is made.
    Building,
}

/// Where steps go. Nobody has to listen.
#[derive(Debug, Clone, Default)]
pub struct Reporter(Option<mpsc::UnboundedSender<Progress>>);

impl Reporter {
    /// With somebody who listens. Unbounded, because there is about one step for each mebibyte.
    pub fn channel() -> (Self, mpsc::UnboundedReceiver<Progress>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(Some(sender)), receiver)
    }

    pub fn report(&self, progress: Progress) {
        if let Some(sender) = &self.0 {
            let _ = sender.send(progress);
        }
    }
}
