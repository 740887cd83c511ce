//! The whole of a pull.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::auth::Credentials;
use super::blobs::Blobs;
use super::client::{Document, Repository};
use super::download;
use super::name::Reference;
use super::patience::{Asking, Patience};
use super::platform::{self, Needed, Next, Wanted};
use super::progress::{Progress, Reporter};
use super::pulled::PulledNames;
use super::settings::Registries;
use super::turns::Turns;
use crate::images::digest::Digest;
use crate::images::error::{ImageError, ImageErrorCode};
use crate::images::worker::{Input, Job};
use crate::images::{self, Cache, ImageRecord, Imported, JobRunner, Limits, blocking};

/// Layers of one image that are downloaded at the same time, as Docker does.
const PARALLEL_LAYERS: usize = 3;
/// Indexes inside each other; buildx writes two.
const INDEX_DEPTH: usize = 4;

/// Pulls images. Cheap to clone.
#[derive(Clone)]
pub struct Puller {
    inner: Arc<Inner>,
}

struct Inner {
    cache: Cache,
    blobs: Blobs,
    pulled: PulledNames,
    turns: Turns,
    registries: Arc<Registries>,
    limits: Limits,
    patience: Patience,
}

/// What is to be pulled, and by whom.
#[derive(Debug, Clone)]
pub struct PullRequest {
    /// As it was said: short, full, or the name or digest of what is in the cache.
    pub image: String,
    pub credentials: Option<Credentials>,
}

impl Puller {
    pub fn open(
        cache: Cache,
        images: &Path,
        registries: Registries,
        limits: Limits,
        patience: Patience,
    ) -> Result<Self, ImageError> {
        let inner = Inner {
            blobs: Blobs::open(images)?,
            pulled: PulledNames::open(images),
            turns: Turns::default(),
            registries: Arc::new(registries),
            cache,
            limits,
            patience,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The image that is meant if no registry has to be asked: see the rules of this module.
    pub fn local(&self, image: &str) -> Option<ImageRecord> {
        let Inner { cache, pulled, .. } = &*self.inner;
        if image.parse::<Digest>().is_ok() {
            return cache.get(image);
        }
        let known = |name: &str| {
            let record = cache.get(name)?;
            (!pulled.made(name, &record.digest)).then_some(record)
        };
        if let Some(imported) = known(image) {
            return Some(imported);
        }
        let reference: Reference = image.parse().ok()?;
        let full = reference.to_string();
        match &reference.digest {
            Some(digest) => cache.get(&full).filter(|record| {
                record.digest == *digest || pulled.get(&full).is_some_and(|p| p.source == *digest)
            }),
            None => known(&full),
        }
    }

    /// Gets the image, from the cache if it is there and up to date.
    pub async fn pull(
        &self,
        runner: &impl JobRunner,
        request: &PullRequest,
        reporter: &Reporter,
    ) -> Result<Imported, ImageError> {
        if let Some(image) = self.local(&request.image) {
            return Ok(Imported {
                image,
                cached: true,
            });
        }
        if request.image.parse::<Digest>().is_ok() {
            // A digest alone says no place to look.
            return Err(self
                .inner
                .cache
                .require(&request.image)
                .err()
                .unwrap_or_else(|| ImageError::not_found(format!("No image {}", request.image))));
        }
        let reference: Reference = request.image.parse()?;
        let credentials = request.credentials.as_ref();
        let pulled = self
            .ask_registry(runner, &reference, credentials, reporter)
            .await;
        pulled.map_err(|error| explained(error, request, &reference))
    }

    async fn ask_registry(
        &self,
        runner: &impl JobRunner,
        reference: &Reference,
        credentials: Option<&Credentials>,
        reporter: &Reporter,
    ) -> Result<Imported, ImageError> {
        let inner = &*self.inner;
        let name = reference.to_string();
        let repositories = Repository::all_of(reference, credentials, &inner.registries).await?;
        let repositories = Arc::new(repositories);
        let pulled = inner.pulled.get(&name);
        // Nobody may remove it while the registry is asked.
        let _held = pulled.as_ref().map(|it| inner.cache.hold(&it.image));
        if let Some(pulled) = pulled
            && let Some(image) = inner.cache.get(pulled.image.as_str())
            && inner.source(&repositories, reference).await? == Some(pulled.source.clone())
        {
            let digest = pulled.image.clone();
            reporter.report(Progress::Resolved {
                image: name.clone(),
                digest,
            });
            return self.named(name, image.digest, pulled.source, true).await;
        }
        let (source, document, needed) = inner.resolve(&repositories, reference).await?;
        let digest = document.digest.clone();
        // Until it has its name.
        let _held = inner.cache.hold(&digest);
        reporter.report(Progress::Resolved {
            image: name.clone(),
            digest: digest.clone(),
        });
        let _turn = match inner.turns.take(&digest) {
            Some(turn) => turn,
            None => {
                reporter.report(Progress::Waiting);
                inner.turns.begin(&digest).await
            }
        };
        let cached = inner.cache.get(digest.as_str()).is_some();
        if cached {
            // Left by a pull that was killed when it had just published.
            let digests = needed.all().map(|wanted| wanted.digest.clone());
            inner.blobs.remove(digests.collect()).await;
        } else {
            self.make(runner, &repositories, document, needed, reporter)
                .await?;
        }
        self.named(name, digest, source, cached).await
    }

    /// Downloads, builds, publishes.
    async fn make(
        &self,
        runner: &impl JobRunner,
        repositories: &Arc<Vec<Repository>>,
        document: Document,
        needed: Needed,
        reporter: &Reporter,
    ) -> Result<(), ImageError> {
        let inner = &*self.inner;
        inner.blobs.clean().await?;
        let files = self.download(repositories, &needed, reporter).await?;
        let permit = inner.cache.build_permit().await?;
        reporter.report(Progress::Building);
        let mut manifest = inner.cache.temporary_file()?;
        let bytes = document.bytes;
        let manifest = blocking(move || {
            let written = manifest.write_all(&bytes);
            written.map_err(|error| ImageError::storage("store the manifest", &error))?;
            Ok(manifest)
        })
        .await?;
        let mut blobs = vec![document.digest.clone()];
        let mut fds = vec![OwnedFd::from(manifest)];
        for (wanted, file) in files {
            blobs.push(wanted.digest);
            fds.push(OwnedFd::from(file));
        }
        let input = Input::Blobs {
            manifest: document.digest.clone(),
            blobs,
        };
        let job = Job {
            input,
            build: true,
            limits: inner.limits.clone(),
        };
        let built = images::build(&inner.cache, runner, job, &document.digest, fds).await;
        drop(permit);
        // Good blobs are in the image now, and those of an image that cannot be built are of no use. Only if this
        // host failed will another attempt want them.
        let is_done = built.as_ref().err().is_none_or(|error| {
            use ImageErrorCode::{ImageStorageFailed, ImageWorkerFailed};
            !matches!(error.code, ImageStorageFailed | ImageWorkerFailed)
        });
        if is_done {
            let digests = needed.all().map(|wanted| wanted.digest.clone());
            inner.blobs.remove(digests.collect()).await;
        }
        built.map(|_| ())
    }

    async fn download(
        &self,
        repositories: &Arc<Vec<Repository>>,
        needed: &Needed,
        reporter: &Reporter,
    ) -> Result<Vec<(Wanted, File)>, ImageError> {
        let free = Arc::new(Semaphore::new(PARALLEL_LAYERS));
        let mut downloads = JoinSet::new();
        for wanted in &needed.layers {
            let (digest, total) = (wanted.digest.clone(), wanted.bytes);
            reporter.report(Progress::Layer {
                digest,
                bytes: 0,
                total,
            });
        }
        for wanted in needed.all() {
            // The config is not worth a bar.
            let reporter = match wanted == &needed.config {
                true => Reporter::default(),
                false => reporter.clone(),
            };
            let (puller, wanted) = (self.clone(), wanted.clone());
            let (repositories, free) = (Arc::clone(repositories), Arc::clone(&free));
            downloads.spawn(async move {
                // Never closed.
                let _free = free.acquire().await;
                let Inner {
                    blobs, patience, ..
                } = &*puller.inner;
                let file =
                    download::fetch(blobs, &repositories, &wanted, patience, &reporter).await?;
                Ok((wanted, file))
            });
        }
        let mut files = Vec::new();
        while let Some(download) = downloads.join_next().await {
            // The first that fails ends the others: a set that is dropped aborts its tasks.
            files.push(download.map_err(|error| {
                ImageError::worker_failed(format!("A download died: {error}"))
            })??);
        }
        Ok(files)
    }

    async fn named(
        &self,
        name: String,
        digest: Digest,
        source: Digest,
        cached: bool,
    ) -> Result<Imported, ImageError> {
        let puller = self.clone();
        blocking(move || {
            let Inner { cache, pulled, .. } = &*puller.inner;
            let is_there = |digest: &Digest| cache.get(digest.as_str()).is_some();
            pulled.set(&name, source, digest.clone(), is_there)?;
            cache.set_name(&name, &digest)?;
            let image = cache.require(&name)?;
            Ok(Imported { image, cached })
        })
        .await
    }
}

impl Inner {
    /// What the name means now, if a registry says so without more.
    async fn source(
        &self,
        repositories: &[Repository],
        reference: &Reference,
    ) -> Result<Option<Digest>, ImageError> {
        let mut asking = Asking::new(repositories, self.patience)?;
        loop {
            match asking.place.manifest_digest(reference.version()).await {
                Ok(digest) => return Ok(digest),
                Err(trouble) => asking.failed(trouble).await?,
            }
        }
    }

    async fn document(
        &self,
        repositories: &[Repository],
        version: &str,
    ) -> Result<Document, ImageError> {
        let mut asking = Asking::new(repositories, self.patience)?;
        loop {
            match asking
                .place
                .manifest(version, self.limits.manifest_bytes)
                .await
            {
                Ok(document) => return Ok(document),
                Err(trouble) => asking.failed(trouble).await?,
            }
        }
    }

    /// What the name means, the manifest for this host, and what that needs.
    async fn resolve(
        &self,
        repositories: &[Repository],
        reference: &Reference,
    ) -> Result<(Digest, Document, Needed), ImageError> {
        let mut version = reference.version().to_owned();
        let mut source = None;
        for _ in 0..INDEX_DEPTH {
            let document = self.document(repositories, &version).await?;
            let source = source.get_or_insert_with(|| document.digest.clone());
            match platform::read(&document, &self.limits)? {
                Next::Blobs(needed) => return Ok((source.clone(), document, needed)),
                Next::Manifest(digest) => version = digest.to_string(),
            }
        }
        Err(ImageError::corrupt("Image indexes are nested too deep"))
    }
}

/// Says what the caller may have meant instead.
fn explained(error: ImageError, request: &PullRequest, reference: &Reference) -> ImageError {
    use ImageErrorCode::{ImageNotFound, ImagePullUnauthorized, ImageRegistryUnreachable};
    let ImageError { code, mut message } = error;
    if let Some(held) = &request.credentials
        && held.server != reference.host
        && code == ImagePullUnauthorized
    {
        message.push_str(&format!(" (the credentials given are for {})", held.server));
    }
    let is_short = !reference.to_string().starts_with(&request.image);
    let may_be_local = matches!(
        code,
        ImageNotFound | ImagePullUnauthorized | ImageRegistryUnreachable
    );
    if is_short && may_be_local {
        message.push_str(&format!(
            "; no image '{}' has been imported either",
            request.image
        ));
    }
    ImageError::new(code, message)
}
