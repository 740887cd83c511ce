//! Images as the administration API shows them.

use std::time::{SystemTime, UNIX_EPOCH};

use super::housekeeping::{Housekeeping, Kept, Removed};
use super::image_refusal;
use crate::admin::{ImageHold, ImageKeeper, KeptImage, RemovedImage};
use crate::front::refusal::Refusal;
use crate::images::{self, Digest};
use crate::pool::launcher::BoxFuture;

/// The image cache and its housekeeping.
pub struct Keeper {
    pub cache: images::Cache,
    pub housekeeping: Housekeeping,
}

impl ImageKeeper for Keeper {
    fn list(&self) -> BoxFuture<'_, Vec<KeptImage>> {
        Box::pin(async move {
            let kept = self.housekeeping.list().await;
            kept.into_iter().map(shown).collect()
        })
    }

    fn inspect(&self, reference: String) -> BoxFuture<'_, Result<KeptImage, Refusal>> {
        Box::pin(async move {
            let kept = self.housekeeping.inspect(&reference).await;
            kept.map(shown).map_err(image_refusal)
        })
    }

    fn remove(&self, reference: String) -> BoxFuture<'_, Result<RemovedImage, Refusal>> {
        Box::pin(async move {
            let removed = self.housekeeping.remove(reference).await;
            removed.map(removal).map_err(image_refusal)
        })
    }

    fn prune(&self, dry_run: bool) -> BoxFuture<'_, Result<Vec<RemovedImage>, Refusal>> {
        Box::pin(async move {
            let removed = self.housekeeping.prune(dry_run).await;
            let removed = removed.map_err(image_refusal)?;
            Ok(removed.into_iter().map(removal).collect())
        })
    }

    fn hold(&self, digest: &str) -> ImageHold {
        // What is no digest is not in the cache either.
        let digest = digest.parse::<Digest>().ok();
        Box::new(digest.map(|digest| self.cache.hold(&digest)))
    }
}

fn shown(kept: Kept) -> KeptImage {
    let Kept {
        image,
        pools,
        is_held,
        ..
    } = kept;
    KeptImage {
        last_used_ms: millis(image.last_used),
        // Plain lists and strings; there is nothing that JSON could not hold.
        config: serde_json::to_value(&image.config).unwrap_or_default(),
        name: image.name,
        names: image.names,
        digest: image.digest.to_string(),
        root_image_bytes: image.root_image_bytes,
        warnings: image.warnings,
        layers: image.layers,
        made_at_ms: image.made_at_ms,
        pools: pools.iter().map(ToString::to_string).collect(),
        is_held,
    }
}

fn removal(removed: Removed) -> RemovedImage {
    let Removed {
        name,
        digest,
        names_left,
        goldens,
        bytes,
        warnings,
    } = removed;
    RemovedImage {
        name,
        digest,
        names_left,
        freed_bytes: bytes,
        goldens,
        warnings,
    }
}

fn millis(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
