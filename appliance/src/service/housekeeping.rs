//! Which images may go: what is in use, what an operator removes, what the limit of the cache takes.
//!
//! An image is in use while a pool needs it (for what it makes sessions of, is to make them of, or still has sessions of), and
//! while somebody holds it: an import, a golden that is being made, a session that starts. Goldens of an image that no pool forks
//! from go with it.
//!
//! # Limit
//! Looked at when the appliance starts and after each image that comes. The least recently used go first. Images in use count and
//! stay, so that they alone may exceed the limit. What was used a few minutes ago stays as well, for whoever imports an image
//! makes a pool of it next; the limit is looked at again when that time is over.
//!
//! # Races
//! The order of `images::cache::removal`: announce, look who needs it, finish. One removal at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::Mutex;

use crate::exit::chain;
use crate::golden::Goldens;
use crate::images::{Cache, ImageError, ImageErrorCode, ImageRecord};
use crate::pool::{PoolName, Pools};

/// How long an image that nobody uses is left alone by the limit.
const GRACE: Duration = Duration::from_secs(600);
/// The share of the file system that root images may take when the configuration says nothing.
const DEFAULT_SHARE: u64 = 4;

/// Cheap to clone.
#[derive(Clone)]
pub struct Housekeeping {
    inner: Arc<Inner>,
}

struct Inner {
    cache: Cache,
    pools: Pools,
    goldens: Goldens,
    removing: Mutex<()>,
}

/// An image and who needs it.
#[derive(Debug)]
pub struct Kept {
    pub image: ImageRecord,
    pub pools: BTreeSet<PoolName>,
    /// Something is being made of it right now, or it is being imported.
    pub is_held: bool,
    /// Goldens that no pool forks from, and their bytes.
    pub unused_goldens: (usize, u64),
}

/// What a removal has done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// As it was called.
    pub name: String,
    pub digest: String,
    /// Not empty: only a name was removed, and the image is still called so.
    pub names_left: Vec<String>,
    pub goldens: usize,
    /// Root image and goldens.
    pub bytes: u64,
    /// What could not be removed with it, one line each.
    pub warnings: Vec<String>,
}

impl Kept {
    fn is_in_use(&self) -> bool {
        self.is_held || !self.pools.is_empty()
    }

    /// As if it were removed.
    fn removed(&self) -> Removed {
        let (goldens, bytes) = self.unused_goldens;
        Removed {
            name: self.image.name.clone(),
            digest: self.image.digest.to_string(),
            goldens,
            bytes: self.image.root_image_bytes + bytes,
            ..Removed::default()
        }
    }
}

impl Housekeeping {
    pub fn new(cache: Cache, pools: Pools, goldens: Goldens) -> Self {
        Self {
            inner: Arc::new(Inner {
                cache,
                pools,
                goldens,
                removing: Mutex::default(),
            }),
        }
    }

    /// All images, by name.
    pub async fn list(&self) -> Vec<Kept> {
        let needs = self.inner.pools.images().await;
        let images = self.inner.cache.list();
        images
            .into_iter()
            .map(|image| self.kept(image, &needs))
            .collect()
    }

    /// By name or digest.
    pub async fn inspect(&self, reference: &str) -> Result<Kept, ImageError> {
        let needs = self.inner.pools.images().await;
        let image = self.inner.cache.require(reference)?;
        Ok(self.kept(image, &needs))
    }

    fn kept(&self, image: ImageRecord, needs: &BTreeMap<String, BTreeSet<PoolName>>) -> Kept {
        let Inner { cache, goldens, .. } = &*self.inner;
        let digest = image.digest.as_str();
        Kept {
            pools: needs.get(digest).cloned().unwrap_or_default(),
            is_held: cache.is_held(&image.digest),
            unused_goldens: goldens.unused_of(digest),
            image,
        }
    }

    /// Removes a name, or an image that nobody needs. Runs to its end even if the caller goes away.
    pub async fn remove(&self, reference: String) -> Result<Removed, ImageError> {
        let this = self.clone();
        lost(tokio::spawn(async move { this.remove_now(&reference).await }).await)
    }

    async fn remove_now(&self, reference: &str) -> Result<Removed, ImageError> {
        let _removing = self.inner.removing.lock().await;
        let cache = &self.inner.cache;
        let mut image = cache.require(reference)?;
        if image.names.len() > 1 && image.names.contains(&image.name) && image.name == reference {
            let (cache, name) = (cache.clone(), image.name.clone());
            lost(tokio::task::spawn_blocking(move || cache.remove_name(&name)).await)?;
            image.names.retain(|name| name != reference);
            return Ok(Removed {
                name: image.name,
                digest: image.digest.to_string(),
                names_left: image.names,
                ..Removed::default()
            });
        }
        self.try_remove(&image).await
    }

    /// Removes every image that nobody needs. Runs to its end even if the caller goes away.
    pub async fn prune(&self, dry_run: bool) -> Result<Vec<Removed>, ImageError> {
        let this = self.clone();
        lost(tokio::spawn(async move { this.prune_now(dry_run).await }).await)
    }

    async fn prune_now(&self, dry_run: bool) -> Result<Vec<Removed>, ImageError> {
        let _removing = self.inner.removing.lock().await;
        let mut unused = self.list().await;
        unused.retain(|kept| !kept.is_in_use());
        if dry_run {
            return Ok(unused.iter().map(Kept::removed).collect());
        }
        let mut all = Vec::new();
        for kept in unused {
            match self.try_remove(&kept.image).await {
                Ok(removed) => all.push(removed),
                // Somebody has come to need it.
                Err(error) if error.code == ImageErrorCode::ImageInUse => {}
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    /// Keeps the cache within its limit. Never returns.
    pub async fn keep_within(&self, limit: Option<u64>) {
        let limit = limit.unwrap_or_else(|| default_limit(&self.inner.cache));
        tracing::debug!(limit, "limit of the image cache");
        loop {
            let again = self.evict(limit).await;
            let later = async {
                match again {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.inner.cache.grown() => {}
                () = later => {}
            }
        }
    }

    /// Removes what is too much; answers when it is worth another look.
    async fn evict(&self, limit: u64) -> Option<Duration> {
        let _removing = self.inner.removing.lock().await;
        let kept = self.list().await;
        let Eviction {
            images,
            excess,
            again,
        } = Eviction::of(&kept, limit, SystemTime::now());
        for image in images {
            match self.try_remove(image).await {
                Ok(Removed { digest, bytes, .. }) => {
                    tracing::info!(%digest, bytes, "image that was not used for longest is removed from the full cache");
                }
                Err(error) => {
                    tracing::warn!(digest = %image.digest, %error, "image stays in the full cache");
                }
            }
        }
        if excess > 0 {
            tracing::warn!(
                limit,
                excess,
                "image cache is over its limit: what is in it is in use"
            );
        }
        again
    }

    async fn try_remove(&self, image: &ImageRecord) -> Result<Removed, ImageError> {
        let Inner {
            cache,
            pools,
            goldens,
            ..
        } = &*self.inner;
        let ImageRecord { digest, name, .. } = image;
        let held = || {
            ImageError::in_use(format!(
                "Image {name} is in use: it is being imported, or something is being made of it"
            ))
        };
        let removal = cache.begin_removal(digest).ok_or_else(held)?;
        if let Some(pools) = pools.images().await.get(digest.as_str()) {
            return Err(ImageError::in_use(in_use(name, pools)));
        }
        let removed = lost(tokio::task::spawn_blocking(move || removal.finish()).await)?;
        let bytes = removed.ok_or_else(held)?;
        // After it: nobody can make another golden of it any more.
        let forgotten = goldens.forget_image(digest.as_str()).await;
        for warning in &forgotten.kept {
            tracing::warn!(%digest, "{warning}");
        }
        Ok(Removed {
            name: name.clone(),
            digest: digest.to_string(),
            names_left: Vec::new(),
            goldens: forgotten.goldens,
            bytes: bytes + forgotten.bytes,
            warnings: forgotten.kept,
        })
    }
}

/// What has to go for the cache to be within its limit.
struct Eviction<'a> {
    images: Vec<&'a ImageRecord>,
    /// Bytes that cannot go now.
    excess: u64,
    /// When some of them may.
    again: Option<Duration>,
}

impl<'a> Eviction<'a> {
    fn of(kept: &'a [Kept], limit: u64, now: SystemTime) -> Self {
        let all: u64 = kept.iter().map(|it| it.image.root_image_bytes).sum();
        let mut eviction = Self {
            images: Vec::new(),
            excess: all.saturating_sub(limit),
            again: None,
        };
        let mut unused: Vec<_> = kept.iter().filter(|it| !it.is_in_use()).collect();
        unused.sort_by_key(|it| it.image.last_used);
        for Kept { image, .. } in unused {
            if eviction.excess == 0 {
                break;
            }
            // One that will be used in the future was used before the clock was set back.
            let age = now.duration_since(image.last_used).unwrap_or_default();
            if age < GRACE {
                eviction.again = Some(GRACE - age);
                break;
            }
            eviction.excess = eviction.excess.saturating_sub(image.root_image_bytes);
            eviction.images.push(image);
        }
        eviction
    }
}

fn default_limit(cache: &Cache) -> u64 {
    match cache.room() {
        Ok(room) => room / DEFAULT_SHARE,
        Err(error) => {
            tracing::warn!(%error, "size of the file system of the images is unknown; they are kept without limit");
            u64::MAX
        }
    }
}

fn in_use(name: &str, pools: &BTreeSet<PoolName>) -> String {
    let names: Vec<_> = pools.iter().map(PoolName::as_str).collect();
    let noun = match names.len() {
        1 => "pool",
        _ => "pools",
    };
    format!("Image {name} is in use by the {noun} {}", names.join(", "))
}

fn lost<T>(done: Result<Result<T, ImageError>, tokio::task::JoinError>) -> Result<T, ImageError> {
    done.unwrap_or_else(|error| {
        Err(ImageError::worker_failed(format!(
            "A task of the removal died: {}",
            chain(&error)
        )))
    })
}

#[cfg(test)]
#[path = "housekeeping_tests.rs"]
mod tests;
