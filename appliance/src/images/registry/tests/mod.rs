//! Pulls against a registry on loopback: what works, what fails, and what is left afterwards.

mod debian;
mod faults;
mod fuzz;
pub mod server;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::images::ImageRecord;
use crate::images::testing::{gzip, zstd};
use crate::images::{
    Cache, ImageError, ImageErrorCode, Imported, Job, JobReport, JobRunner, Limits, worker,
};
use server::{
    Access, DOCKER_MANIFEST, OCI_MANIFEST, PASSWORD, TestImage, TestRegistry, USER, layer,
};

/// Fast enough for a test, patient enough to count.
const PATIENCE: Patience = Patience {
    attempts: 4,
    first_wait: Duration::from_millis(1),
    longest_wait: Duration::from_millis(2),
};

/// Runs jobs on a thread of this process, and counts the builds.
#[derive(Default)]
struct Threads {
    builds: AtomicUsize,
}

impl JobRunner for Threads {
    async fn run(&self, job: Job, fds: Vec<OwnedFd>) -> Result<JobReport, ImageError> {
        self.builds.fetch_add(1, Ordering::SeqCst);
        tokio::task::spawn_blocking(move || worker::run(job, fds))
            .await
            .unwrap()
    }
}

/// A cache, and what pulls into it.
pub struct Bench {
    folder: TempDir,
    cache: Cache,
    puller: Puller,
    runner: Threads,
}

impl Bench {
    pub fn new() -> Self {
        Self::with(Registries::default(), Limits::default())
    }

    fn with(registries: Registries, limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        let puller =
            Puller::open(cache.clone(), folder.path(), registries, limits, PATIENCE).unwrap();
        Self {
            folder,
            cache,
            puller,
            runner: Threads::default(),
        }
    }

    pub async fn pull(&self, image: &str) -> Result<Imported, ImageError> {
        self.pull_as(image, None).await
    }

    async fn pull_as(
        &self,
        image: &str,
        credentials: Option<Credentials>,
    ) -> Result<Imported, ImageError> {
        let request = PullRequest {
            image: image.to_owned(),
            credentials,
        };
        self.puller
            .pull(&self.runner, &request, &Reporter::default())
            .await
    }

    async fn error(&self, image: &str) -> ImageError {
        self.pull(image).await.unwrap_err()
    }

    fn builds(&self) -> usize {
        self.runner.builds.load(Ordering::SeqCst)
    }

    /// What lies in the folder of downloads.
    fn blobs(&self) -> Vec<String> {
        let folder = self.folder.path().join(".blobs/sha256");
        let names = std::fs::read_dir(folder).unwrap();
        names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

fn settings(host: &str, settings: RegistrySettings) -> Registries {
    Registries(BTreeMap::from([(host.to_owned(), settings)]))
}

fn credentials(server: &str, password: &str) -> Credentials {
    Credentials {
        server: server.parse().unwrap(),
        username: USER.to_owned(),
        password: Secret::new(password),
    }
}

fn text_of(image: &ImageRecord) -> String {
    crate::images::squash::reader::read_image(&std::fs::read(&image.root_image_path).unwrap())
}

#[tokio::test]
async fn image_is_pulled_and_named_in_full_and_the_second_time_costs_one_manifest_request() {
    let registry = TestRegistry::start(Access::Everybody).await;
    let image = TestImage::simple("hello", 10_000);
    registry.put("team/app", "1", &image);
    let bench = Bench::new();
    let name = format!("{}/team/app:1", registry.host());
    let pulled = bench.pull(&name).await.unwrap();
    assert!(!pulled.cached);
    assert_eq!(
        (pulled.image.digest.clone(), pulled.image.name.clone()),
        (image.digest.clone(), name.clone())
    );
    assert_eq!(pulled.image.config.cmd, ["/run"]);
    assert!(text_of(&pulled.image).contains("/text f"));
    assert!(
        bench.blobs().is_empty(),
        "the image is there, so its layers go"
    );
    registry.seen();

    let again = bench.pull(&name).await.unwrap();
    assert!(again.cached);
    assert!(again.image.last_used > pulled.image.last_used);
    let as_before = ImageRecord {
        last_used: pulled.image.last_used,
        ..again.image
    };
    assert_eq!(as_before, pulled.image);
    let lines: Vec<_> = registry.seen().into_iter().map(|seen| seen.line).collect();
    assert_eq!(lines, ["GET /v2/", "HEAD /v2/team/app/manifests/1"]);
    assert_eq!(bench.builds(), 1);
}

#[tokio::test]
async fn tag_that_moved_is_noticed_and_both_images_stay() {
    let registry = TestRegistry::start(Access::Everybody).await;
    let (old, new) = (TestImage::simple("old", 0), TestImage::simple("new", 0));
    registry.put("app", "latest", &old);
    let bench = Bench::new();
    let name = format!("{}/app", registry.host());
    assert_eq!(bench.pull(&name).await.unwrap().image.digest, old.digest);
    registry.put("app", "latest", &new);
    assert_eq!(bench.pull(&name).await.unwrap().image.digest, new.digest);
    assert_eq!(bench.cache.list().len(), 2);
    // The tag back again: the image is still there.
    registry.put("app", "latest", &old);
    assert!(bench.pull(&name).await.unwrap().cached);
    assert_eq!(bench.builds(), 2);
}

#[tokio::test]
async fn digest_in_a_name_is_asked_for_once() {
    let registry = TestRegistry::start(Access::Everybody).await;
    let (arm, amd) = (TestImage::simple("arm", 0), TestImage::simple("amd", 0));
    let index = TestImage::index(&[(&arm, "arm64"), (&amd, "amd64")]);
    for image in [&arm, &amd, &index] {
        registry.put("app", image.digest.as_str(), image);
    }
    let bench = Bench::new();
    for (digest, means) in [(&index.digest, &amd.digest), (&amd.digest, &amd.digest)] {
        let name = format!("{}/app@{digest}", registry.host());
        assert_eq!(bench.pull(&name).await.unwrap().image.digest, *means);
        registry.seen();
        assert!(bench.pull(&name).await.unwrap().cached);
        assert_eq!(registry.count(""), 0);
    }
    assert_eq!(bench.builds(), 1);
}

#[tokio::test]
async fn index_without_this_platform_says_what_there_is() {
    let registry = TestRegistry::start(Access::Everybody).await;
    let arm = TestImage::simple("arm", 0);
    registry.put(
        "app",
        "latest",
        &TestImage::index(&[(&arm, "arm64"), (&arm, "s390x")]),
    );
    let error = Bench::new()
        .error(&format!("{}/app", registry.host()))
        .await;
    assert_eq!(error.code, ImageErrorCode::ImagePlatformUnsupported);
    assert!(
        error.message.contains("linux/arm64, linux/s390x"),
        "{error}"
    );
}

#[tokio::test]
async fn docker_and_oci_manifests_and_all_compressions_give_the_same_tree() {
    let registry = TestRegistry::start(Access::Everybody).await;
    let plain = layer("same", 5000);
    let bench = Bench::new();
    let mut trees = Vec::new();
    for (at, (kind, stored)) in [
        (OCI_MANIFEST, plain.clone()),
        (OCI_MANIFEST, gzip(&plain)),
        (OCI_MANIFEST, zstd(&plain)),
        (DOCKER_MANIFEST, gzip(&plain)),
    ]
    .into_iter()
    .enumerate()
    {
        let tag = format!("t{at}");
        registry.put(
            "app",
            &tag,
            &TestImage::of(kind, &[(stored, plain.clone())]),
        );
        let pulled = bench
            .pull(&format!("{}/app:{tag}", registry.host()))
            .await
            .unwrap();
        trees.push(text_of(&pulled.image));
    }
    trees.dedup();
    assert_eq!((trees.len(), bench.builds()), (1, 4));
}

#[tokio::test]
async fn layers_come_in_any_number_and_order() {
    let registry = TestRegistry::start(Access::Everybody).await;
    let layers: Vec<_> = (0..20)
        .map(|at| layer(&format!("text {at}"), at * 50_000))
        .collect();
    let mut stored: Vec<_> = layers
        .iter()
        .map(|plain| (gzip(plain), plain.clone()))
        .collect();
    // The same layer twice is one blob.
    stored.push(stored[3].clone());
    registry.put("app", "latest", &TestImage::of(OCI_MANIFEST, &stored));
    let bench = Bench::new();
    let (reporter, mut steps) = Reporter::channel();
    let request = PullRequest {
        image: format!("{}/app", registry.host()),
        credentials: None,
    };
    let pulled = bench
        .puller
        .pull(&bench.runner, &request, &reporter)
        .await
        .unwrap();
    assert!(text_of(&pulled.image).contains("/text f"));
    assert_eq!(registry.count("/blobs/"), 21, "20 layers and the config");
    drop(reporter);
    let mut whole = BTreeMap::new();
    let mut seen = Vec::new();
    while let Some(step) = steps.recv().await {
        if let Progress::Layer {
            digest,
            bytes,
            total,
        } = &step
        {
            whole.insert(digest.clone(), bytes == total);
        }
        seen.push(step);
    }
    assert!(matches!(seen.first(), Some(Progress::Resolved { .. })));
    assert!(matches!(seen.last(), Some(Progress::Building)));
    assert_eq!(
        (whole.len(), whole.values().all(|whole| *whole)),
        (20, true)
    );
}

#[tokio::test]
async fn image_of_128_layers_reaches_the_worker_and_of_129_is_refused() {
    let registry = TestRegistry::start(Access::Everybody).await;
    let image = |count: usize| {
        let plain = |at| layer(&format!("text {at}"), 0);
        let layers: Vec<_> = (0..count).map(|at| (plain(at), plain(at))).collect();
        TestImage::of(OCI_MANIFEST, &layers)
    };
    registry.put("app", "most", &image(128));
    registry.put("app", "more", &image(129));
    let bench = Bench::new();
    bench
        .pull(&format!("{}/app:most", registry.host()))
        .await
        .unwrap();
    let error = bench.error(&format!("{}/app:more", registry.host())).await;
    assert_eq!(error.code, ImageErrorCode::ImageTooLarge);
}

#[tokio::test]
async fn password_is_sent_to_its_own_registry_only() {
    let registry = TestRegistry::start(Access::Basic).await;
    registry.put("app", "latest", &TestImage::simple("secret", 0));
    let bench = Bench::new();
    let host = registry.host();
    let name = format!("{host}/app");
    let error = bench.error(&name).await;
    assert_eq!(error.code, ImageErrorCode::ImagePullUnauthorized);
    assert!(error.message.contains("--registry-username"), "{error}");

    let wrong = bench
        .pull_as(&name, Some(credentials(&host, "wrong")))
        .await
        .unwrap_err();
    assert_eq!(wrong.code, ImageErrorCode::ImagePullUnauthorized);
    assert!(
        wrong.message.contains(USER) && !wrong.message.contains("wrong"),
        "{wrong}"
    );

    registry.seen();
    let other = credentials("127.0.0.1:1", PASSWORD);
    let error = bench.pull_as(&name, Some(other)).await.unwrap_err();
    assert!(error.message.contains("are for 127.0.0.1:1"), "{error}");
    assert!(
        registry
            .seen()
            .iter()
            .all(|seen| seen.authorization.is_none())
    );

    bench
        .pull_as(&name, Some(credentials(&host, PASSWORD)))
        .await
        .unwrap();
}

#[tokio::test]
async fn token_is_asked_for_once_with_the_password_or_without() {
    for (access, password) in [(Access::Bearer, Some(PASSWORD)), (Access::Anonymous, None)] {
        let registry = TestRegistry::start(access).await;
        let plain = layer("x", 100);
        let layers: Vec<_> = [0, 1, 2, 3]
            .map(|at| layer(&format!("{at}"), 10))
            .into_iter()
            .chain([plain])
            .map(|plain| (plain.clone(), plain))
            .collect();
        registry.put("team/app", "latest", &TestImage::of(OCI_MANIFEST, &layers));
        let held = password.map(|password| credentials(&registry.host(), password));
        Bench::new()
            .pull_as(&format!("{}/team/app", registry.host()), held)
            .await
            .unwrap();
        let seen = registry.seen();
        let tokens: Vec<_> = seen
            .iter()
            .filter(|seen| seen.line.contains("/token"))
            .collect();
        assert_eq!(tokens.len(), 1);
        assert_eq!(
            tokens[0].line,
            "GET /token?service=test&scope=repository%3Ateam%2Fapp%3Apull"
        );
        assert_eq!(tokens[0].authorization.is_some(), password.is_some());
        let passwords = seen.iter().filter(|seen| {
            let value = seen.authorization.as_deref().unwrap_or_default();
            value.starts_with("Basic") && !seen.line.contains("/token")
        });
        assert_eq!(
            passwords.count(),
            0,
            "the registry itself sees the token only"
        );
    }
}

#[tokio::test]
async fn token_that_ends_during_a_pull_is_asked_for_again() {
    let registry = TestRegistry::start(Access::Anonymous).await;
    let image = TestImage::simple("x", 100);
    registry.put("app", "latest", &image);
    let mut expired = false;
    registry.fail(move |line| {
        let now = line.contains("/blobs/") && !std::mem::replace(&mut expired, true);
        now.then_some(server::Fault::Expired)
    });
    Bench::new()
        .pull(&format!("{}/app", registry.host()))
        .await
        .unwrap();
    assert_eq!(registry.count("/token"), 2);
}

#[tokio::test]
async fn private_certificate_is_believed_if_it_is_named_and_else_not() {
    let (tls, ca) = private_tls();
    let registry = TestRegistry::start_tls(Access::Basic, tls).await;
    registry.put("app", "latest", &TestImage::simple("tls", 1000));
    let host = format!("localhost:{}", registry.address.port());
    let name = format!("{host}/app");

    let error = Bench::new().error(&name).await;
    assert_eq!(error.code, ImageErrorCode::ImageRegistryUnreachable);
    assert!(error.message.contains("certificate"), "{error}");

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), ca).unwrap();
    let trusting = |path: &std::path::Path| {
        let ca_file = Some(path.to_owned());
        Bench::with(
            settings(
                &host,
                RegistrySettings {
                    ca_file,
                    ..Default::default()
                },
            ),
            Limits::default(),
        )
    };
    let held = Some(credentials(&host, PASSWORD));
    trusting(file.path()).pull_as(&name, held).await.unwrap();
    let error = trusting(std::path::Path::new("/nothing.pem"))
        .error(&name)
        .await;
    assert!(error.message.contains("/nothing.pem"), "{error}");
}

/// A certificate for localhost, its key, and the certificate that signed it, in PEM.
fn private_certificate() -> (String, String, String) {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let certificate = CertificateParams::new(names)
        .unwrap()
        .signed_by(&key, &issuer)
        .unwrap();
    (certificate.pem(), key.serialize_pem(), issuer.pem())
}

/// To serve with, and what to trust for it.
fn private_tls() -> (TlsAcceptor, String) {
    let (certificate, key, ca) = private_certificate();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap();
    (TlsAcceptor::from(std::sync::Arc::new(config)), ca)
}

#[tokio::test]
async fn plain_http_is_refused_where_it_is_not_allowed() {
    let registry = TestRegistry::start(Access::Everybody).await;
    registry.put("app", "latest", &TestImage::simple("x", 0));
    let host = registry.host();
    let allow_http = Some(false);
    let strict = settings(
        &host,
        RegistrySettings {
            allow_http,
            ..Default::default()
        },
    );
    let error = Bench::with(strict, Limits::default())
        .error(&format!("{host}/app"))
        .await;
    assert_eq!(error.code, ImageErrorCode::ImageRegistryUnreachable);
    assert_eq!(registry.count(""), 0);
}

#[tokio::test]
async fn mirror_is_asked_first_without_credentials_and_the_registry_when_it_fails() {
    let (origin, mirror) = (
        TestRegistry::start(Access::Basic).await,
        TestRegistry::start(Access::Everybody).await,
    );
    let image = TestImage::simple("mirrored", 300_000);
    let host = origin.host();
    let mirrors = vec![Mirror::try_from(format!("{}/cache/hub", mirror.host())).unwrap()];
    let bench = || {
        Bench::with(
            settings(
                &host,
                RegistrySettings {
                    mirrors: mirrors.clone(),
                    ..Default::default()
                },
            ),
            Limits::default(),
        )
    };
    let name = format!("{host}/team/app:1");
    let held = || Some(credentials(&host, PASSWORD));

    mirror.put("cache/hub/team/app", "1", &image);
    let pulled = bench().pull_as(&name, held()).await.unwrap();
    assert_eq!(
        (pulled.image.name.as_str(), origin.count("")),
        (name.as_str(), 0)
    );
    assert!(
        mirror
            .seen()
            .iter()
            .all(|seen| seen.authorization.is_none())
    );

    // A mirror that has the manifest and breaks in the layer, lies, or is not there.
    origin.put("team/app", "1", &image);
    let layer = image.layer_digest();
    for fault in [
        server::Fault::Cut(1000),
        server::Fault::Body(vec![7; image.layer().len()]),
        server::Fault::Status(http::StatusCode::NOT_FOUND),
    ] {
        let layer = layer.clone();
        mirror.fail(move |line| line.contains(layer.as_str()).then(|| fault.clone()));
        assert_eq!(
            bench().pull_as(&name, held()).await.unwrap().image.digest,
            image.digest
        );
        assert!(origin.count(&layer_path(&image)) > 0);
    }
    mirror.fail(|_| Some(server::Fault::Status(http::StatusCode::NOT_FOUND)));
    assert_eq!(
        bench().pull_as(&name, held()).await.unwrap().image.digest,
        image.digest
    );
}

fn layer_path(image: &TestImage) -> String {
    format!("/blobs/{}", image.layer_digest())
}

#[tokio::test]
async fn imported_name_wins_over_the_registry_that_it_looks_like() {
    let registry = TestRegistry::start(Access::Everybody).await;
    let image = TestImage::simple("remote", 0);
    registry.put("app", "1", &image);
    let bench = Bench::new();
    let name = format!("{}/app:1", registry.host());
    let pulled = bench.pull(&name).await.unwrap();
    assert!(
        bench.puller.local(&name).is_none(),
        "a pulled tag may have moved"
    );
    // What `image import --name` does, with another image under it.
    registry.put("other", "1", &TestImage::simple("other", 0));
    let other = format!("{}/other:1", registry.host());
    let other = bench.pull(&other).await.unwrap().image.digest;
    bench.cache.set_name(&name, &other).unwrap();
    bench.cache.set_name("my own name", &other).unwrap();
    registry.seen();
    assert_eq!(bench.pull(&name).await.unwrap().image.digest, other);
    assert_eq!(bench.pull("my own name").await.unwrap().image.digest, other);
    let digest = pulled.image.digest.to_string();
    assert_eq!(
        bench.pull(&digest).await.unwrap().image.digest,
        pulled.image.digest
    );
    assert_eq!(registry.count(""), 0, "nothing of this needs a registry");
    let unknown = crate::images::digest::Digest::of(b"unknown").to_string();
    assert_eq!(
        bench.error(&unknown).await.code,
        ImageErrorCode::ImageNotFound
    );
    assert_eq!(
        bench.error("not a name").await.code,
        ImageErrorCode::ImageNameInvalid
    );
}
