//! Puts the service together: store, pools, front door, administration socket. And takes it apart
//! again in order.

mod housekeeping;
mod keeper;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};

use self::housekeeping::Housekeeping;
use self::keeper::Keeper;
use crate::access::{Audiences, Authority};
use crate::admin::{
    self, Admin, GoldenService, GoldenSummary, ImageKeeper, ImageService, ImageSummary,
    ImportOrder, PullOrder,
};
use crate::arm::{self, Arm, Endpoints, Rules};
use crate::config::{self, Checked};
use crate::exit::chain;
use crate::front::listener::DRAIN_DEADLINE;
use crate::front::refusal::{Code, Refusal};
use crate::front::tls::{self, Clock, ServedCertificate};
use crate::front::{Front, Limits, listener};
use crate::golden::{self, Goldens, HostLauncher, defaults};
use crate::images::registry::{Patience, PullRequest, Puller, Reference, Reporter};
use crate::images::{self, ImageError, ImageRecord};
use crate::pool::budget::{Budget, Size};
use crate::pool::launcher::BoxFuture;
use crate::pool::{FingerprintKey, Pools, Tools, Uses};
use crate::store::{HostStore, Records, Store};
use crate::vault::{self, Vault};
use crate::warden::client::ImageJobError;
use crate::warden::protocol::Ending;
use crate::worker::WorkerHost;
use crate::worker::spec::{MAX_MEM_MIB, MAX_VCPUS};

/// Every pool allows at least so much, as the cloud service does.
const LEAST_MAX_CPUS: usize = 2;
/// Beyond what stopping one session may take, since all are stopped at once.
const STOP_MARGIN: Duration = Duration::from_secs(3);
/// Those that have expired are good no more anyway.
const TIDY_TOKENS: Duration = Duration::from_secs(3600);
const FINGERPRINT_KEY_BYTES: usize = 64;
const VAULT_KEY: &str = "pool-secrets";

/// What the service is made of.
pub struct Context {
    pub config: Checked,
    /// The front door's, bound and listening.
    pub listener: std::net::TcpListener,
    /// Where challenges of an ACME server are answered without TLS.
    pub plain: Option<std::net::TcpListener>,
    pub workers: WorkerHost,
    pub images: images::Cache,
    pub host: golden::Host,
}

/// Serves until it is said how to end. Returns when requests are finished or cut, and every session has ended or been
/// left to the next appliance, as it was said. After that nothing of it may be used any more.
pub async fn run(
    context: Context,
    mut ending: watch::Receiver<Option<Ending>>,
) -> anyhow::Result<()> {
    let Context {
        config,
        listener,
        plain,
        workers,
        images,
        host,
    } = context;
    // First: its lock tells whether another appliance serves from here.
    let records = open_store(&config).await?;
    let fingerprints = open_fingerprints(&records).await?;
    let vault = Arc::new(open_vault(&records).await?);
    let certificate = open_certificate(&config).await?;
    let tls = Arc::new(certificate.server_config()?);
    let public = listening(listener)?;
    let plain = plain.map(listening).transpose()?;
    let port = public
        .local_addr()
        .context("Cannot read the address of the listener")?
        .port();
    let endpoints = endpoints(&config, port);
    let authority = Arc::new(open_authority(&config, &endpoints, &records).await?);
    let puller = open_puller(&config, &images).await?;
    let goldens = open_goldens(&config, host, &workers, &images, Arc::clone(&vault)).await?;
    let tools = Tools {
        launcher: Arc::new(HostLauncher {
            machines: Arc::new(workers.clone()),
            goldens: goldens.clone(),
            fork_limit: config.start_timeout / 2,
        }),
        uses: Uses::keep(records.clone()),
        records: records.clone(),
        fingerprints,
        start_timeout: config.start_timeout,
        budget: budget(&config),
    };
    // Who finds the socket waits until everything is ready.
    let private = admin::bind(&config.paths.admin_socket)?;
    // Last of all that can fail: from here on there may be sessions, and they must not end with this process.
    let pools = Pools::open(tools)
        .await
        .context("Cannot read the pools from the store")?;
    let housekeeping = Housekeeping::new(images.clone(), pools.clone(), goldens.clone());
    let image_service: Arc<dyn ImageService> = Arc::new(CachedImages {
        cache: images.clone(),
        puller,
        workers: workers.clone(),
        limits: config.image_limits.clone(),
    });
    let keeper: Arc<dyn ImageKeeper> = Arc::new(Keeper {
        cache: images.clone(),
        housekeeping: housekeeping.clone(),
    });
    let arm = Arm::open(arm::Parts {
        pools: pools.clone(),
        records: records.clone(),
        images: Arc::clone(&image_service),
        keeper: Arc::clone(&keeper),
        rules: rules(&config),
        endpoints,
        vault,
    })
    .await
    .context("Cannot read the operations from the store")?;
    let front = Arc::new(Front {
        pools: pools.clone(),
        authority: Arc::clone(&authority),
        arm: Arc::clone(&arm),
        domain: config.domain.clone(),
        limits: Limits::new(config.limits.clone()),
        certificate: Arc::clone(&certificate),
    });
    let stop = Arc::<Notify>::default();
    let admin = Arc::new(Admin {
        pools: pools.clone(),
        authority: Arc::clone(&authority),
        goldens: Arc::new(NamedGoldens {
            goldens: goldens.clone(),
            images: images.clone(),
        }),
        images: image_service,
        keeper,
        arm: Arc::clone(&arm),
        certificate: Arc::clone(&certificate),
        stop: Arc::clone(&stop),
    });
    workers.settled().await;
    tracing::info!(listen = %config.listen, pools = pools.list().len(), "serving");
    authority.prepare().await;
    let challenges = certificate.challenges();
    let renewal = tokio::spawn(certificate.keep());
    let tidying = tokio::spawn(tidy(authority));
    let limit = config.image_cache_limit;
    let limiting = tokio::spawn(async move { housekeeping.keep_within(limit).await });
    let asked = tokio::spawn(async move {
        stop.notified().await;
        workers.request_stop().await;
    });
    let (stopping, shutdown) = watch::channel(false);
    tokio::join!(
        listener::serve(public, tls, front, shutdown.clone()),
        admin::serve(private, admin, shutdown.clone()),
        async {
            if let (Some(plain), Some(challenges)) = (plain, challenges) {
                tls::serve_plain(plain, challenges, shutdown).await;
            }
        },
        async {
            // An end of whoever would say it is one, too.
            let _ = ending.wait_for(Option::is_some).await;
            // At once: who waits for a golden is told that there will be none.
            goldens.close();
            arm.stop();
            stopping.send_replace(true);
        }
    );
    // What is still on its way must not come up behind our back.
    if tokio::time::timeout(DRAIN_DEADLINE, arm.settled())
        .await
        .is_err()
    {
        tracing::warn!("some changes of pools did not end in time; the next start settles them");
    }
    renewal.abort();
    tidying.abort();
    limiting.abort();
    asked.abort();
    // A client that comes now is told by the missing socket that nobody is there.
    let _ = std::fs::remove_file(&config.paths.admin_socket);
    let how = *ending.borrow();
    if how != Some(Ending::Stop) {
        pools.detach().await;
        tracing::info!("gone; sessions live on");
        return Ok(());
    }
    let deadline = wire::timing::HOST_KILL_AFTER + STOP_MARGIN;
    if tokio::time::timeout(deadline, pools.close()).await.is_err() {
        tracing::warn!("some sessions did not end in time; their workers end with the warden");
    }
    tracing::info!("stopped");
    Ok(())
}

fn listening(socket: std::net::TcpListener) -> anyhow::Result<TcpListener> {
    socket
        .set_nonblocking(true)
        .and_then(|()| TcpListener::from_std(socket))
        .context("Cannot use the listening socket")
}

async fn open_store(config: &Checked) -> anyhow::Result<Records> {
    let (kept, running) = (config.paths.store.clone(), config.paths.sessions.clone());
    let store = tokio::task::spawn_blocking(move || HostStore::open(&kept, &running)).await??;
    Ok(Records::new(Arc::new(store) as Arc<dyn Store>))
}

async fn open_authority(
    config: &Checked,
    endpoints: &Endpoints,
    records: &Records,
) -> anyhow::Result<Authority> {
    let audiences = config
        .audiences
        .iter()
        .cloned()
        .chain(endpoints.addresses());
    let opened = Authority::open(
        records.clone(),
        Audiences::new(audiences),
        config.issuers.clone(),
    )
    .await;
    opened.context("Cannot read the tokens from the store")
}

/// Records of tokens end with them.
async fn tidy(authority: Arc<Authority>) {
    let mut turns = tokio::time::interval(TIDY_TOKENS);
    loop {
        turns.tick().await;
        if let Err(error) = authority.tidy().await {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "cannot forget the tokens that have expired");
        }
    }
}

fn random(bytes: usize) -> anyhow::Result<Vec<u8>> {
    let mut fresh = vec![0; bytes];
    let filled = rustix::rand::getrandom(&mut fresh, rustix::rand::GetRandomFlags::empty())
        .context("Cannot read random bytes")?;
    anyhow::ensure!(filled == bytes, "The kernel gave too few random bytes");
    Ok(fresh)
}

async fn open_vault(records: &Records) -> anyhow::Result<Vault> {
    let fresh = random(vault::KEY_BYTES)?;
    let key = records.ensure_key(VAULT_KEY, || fresh).await?;
    Vault::new(&key).context("The key of the pools' secrets is of no use")
}

async fn open_puller(config: &Checked, images: &images::Cache) -> anyhow::Result<Puller> {
    let (images, folder) = (images.clone(), config.paths.images.clone());
    let (registries, limits) = (config.registries.clone(), config.image_limits.clone());
    let open = move || Puller::open(images, &folder, registries, limits, Patience::default());
    let puller = tokio::task::spawn_blocking(open).await?;
    puller.context("Cannot open the folder of downloads")
}

async fn open_fingerprints(records: &Records) -> anyhow::Result<FingerprintKey> {
    let fresh = random(FINGERPRINT_KEY_BYTES)?;
    Ok(FingerprintKey::new(
        &records
            .ensure_key("identifier-fingerprint", || fresh)
            .await?,
    ))
}

async fn open_goldens(
    config: &Checked,
    host: golden::Host,
    workers: &WorkerHost,
    images: &images::Cache,
    vault: Arc<Vault>,
) -> anyhow::Result<Goldens> {
    let (folder, of) = (config.paths.golden.clone(), host.clone());
    let store = tokio::task::spawn_blocking(move || golden::Store::open(&folder, &of)).await?;
    let builder = golden::Builder {
        machines: Arc::new(workers.clone()),
        store: store.context("Cannot open the goldens")?,
        start_timeout: config.start_timeout,
    };
    let images = images.clone();
    Ok(Goldens::new(
        builder,
        Arc::new(golden::Kitchen {
            images,
            host,
            vault,
        }),
    ))
}

async fn open_certificate(config: &Checked) -> anyhow::Result<Arc<ServedCertificate>> {
    let (source, dir) = (config.tls.clone(), config.paths.tls.clone());
    let names = tls::names(config.domain.as_deref(), config.listen.ip());
    let open = move || ServedCertificate::open(&source, &dir, names, Clock::of_the_host());
    Ok(tokio::task::spawn_blocking(open).await??)
}

/// What sessions may take of this host.
fn budget(config: &Checked) -> Budget {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let host = Size {
        mem_mib: config::host_mib(),
        cpu_millis: cpus as u64 * 1000,
    };
    Budget::of_host(host, config.memory_overcommit, config.cpu_overcommit)
}

fn rules(config: &Checked) -> Rules {
    let cpus = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .max(LEAST_MAX_CPUS);
    let cpus = cpus.min(MAX_VCPUS.into());
    Rules {
        min_cooldown_seconds: config.min_cooldown.as_secs(),
        max_cpu_millis: u32::try_from(cpus * 1000).unwrap_or(u32::MAX),
        max_mem_mib: u32::try_from(config::host_mib())
            .unwrap_or(u32::MAX)
            .min(MAX_MEM_MIB),
    }
}

/// The address that is right for whoever asks on this host. Others use a domain, or put the host's
/// name in its place: the certificate has it.
fn endpoints(config: &Checked, port: u16) -> Endpoints {
    let ip = config.listen.ip();
    let host = if ip.is_unspecified() || ip.is_loopback() {
        format!("localhost:{port}")
    } else {
        std::net::SocketAddr::new(ip, port).to_string()
    };
    Endpoints {
        host: format!("https://{host}"),
        domain: config.domain.clone(),
        port,
    }
}

/// The goldens, with the names of their images.
struct NamedGoldens {
    goldens: Goldens,
    images: images::Cache,
}

impl GoldenService for NamedGoldens {
    fn list(&self) -> Vec<GoldenSummary> {
        let named = |golden::Summary { golden, pools }: golden::Summary| {
            let template = &golden.about.manifest.template;
            let digest = template.root_image.clone();
            let image = self.images.get(&digest);
            GoldenSummary {
                key: golden.key.to_string(),
                fork_point: template.fork_point.to_string(),
                image: image.map_or_else(|| digest.clone(), |image| image.name),
                image_digest: digest,
                vcpus: template.vcpus,
                mem_mib: template.mem_mib,
                disk_mib: u32::try_from(template.disk_bytes >> 20).unwrap_or(u32::MAX),
                memory_bytes: golden.memory_bytes,
                disk_bytes: golden.disk_bytes,
                made_at_ms: golden.about.made_at_ms,
                pools: pools.iter().map(ToString::to_string).collect(),
            }
        };
        self.goldens.list().into_iter().map(named).collect()
    }
}

/// The image cache, and image workers to fill it.
struct CachedImages {
    cache: images::Cache,
    puller: Puller,
    workers: WorkerHost,
    limits: images::Limits,
}

impl ImageService for CachedImages {
    fn pull(
        &self,
        order: PullOrder,
        reporter: Reporter,
    ) -> BoxFuture<'_, Result<(ImageSummary, bool), Refusal>> {
        Box::pin(async move {
            let kept = order
                .digest
                .as_deref()
                .and_then(|digest| self.cache.get(digest));
            if let Some(image) = kept {
                return Ok((summary(image), true));
            }
            let request = PullRequest {
                image: pinned(order.image, order.digest.as_deref()),
                credentials: order.credentials,
            };
            let jobs = ImageWorkers(self.workers.clone());
            let pulled = self.puller.pull(&jobs, &request, &reporter).await;
            let pulled = pulled.map_err(image_refusal)?;
            Ok((summary(pulled.image), pulled.cached))
        })
    }

    fn import(
        &self,
        order: ImportOrder,
        archive: Incoming,
    ) -> BoxFuture<'_, Result<(ImageSummary, bool), Refusal>> {
        Box::pin(async move {
            let transport = order.transport.parse().map_err(image_refusal)?;
            let ImportOrder {
                reference, name, ..
            } = order;
            let request = images::ImportRequest {
                transport,
                reference,
                name,
            };
            let jobs = ImageWorkers(self.workers.clone());
            let imported = images::import(&self.cache, &jobs, request, &self.limits, archive).await;
            let imported = imported.map_err(image_refusal)?;
            Ok((summary(imported.image), imported.cached))
        })
    }
}

struct ImageWorkers(WorkerHost);

impl images::JobRunner for ImageWorkers {
    async fn run(
        &self,
        job: images::Job,
        fds: Vec<OwnedFd>,
    ) -> Result<images::JobReport, ImageError> {
        self.0
            .run_image_job(job, fds)
            .await
            .map_err(|error| match error {
                ImageJobError::Job(error) => error,
                other => ImageError::worker_failed(chain(&other)),
            })
    }
}

/// The name with the digest that it meant, so that a registry can be asked for an image that is gone from here.
fn pinned(image: String, digest: Option<&str>) -> String {
    let parsed = (image.parse::<Reference>(), digest.map(str::parse));
    match parsed {
        (Ok(reference), Some(Ok(digest))) => reference.pinned(&digest).to_string(),
        _ => image,
    }
}

fn summary(image: ImageRecord) -> ImageSummary {
    let defaults = defaults(&image);
    ImageSummary {
        name: image.name,
        digest: image.digest.to_string(),
        root_image_bytes: image.root_image_bytes,
        warnings: image.warnings,
        defaults,
    }
}

fn image_refusal(error: ImageError) -> Refusal {
    Refusal::new(Code::Image(error.code), error.message)
}
