//! Registries and networks at their worst.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::StatusCode;

use super::server::{Access, Fault, TestImage, TestRegistry, until};
use super::*;

/// Faults for requests of a blob, one after the other; then none.
fn script(registry: &TestRegistry, of: &str, faults: Vec<Fault>) {
    let (of, mut faults) = (of.to_owned(), faults.into_iter());
    registry.fail(move |line| {
        if line.contains(&of) {
            faults.next()
        } else {
            None
        }
    });
}

async fn with_image(ballast: usize) -> (TestRegistry, TestImage, String) {
    let registry = TestRegistry::start(Access::Everybody).await;
    let image = TestImage::simple("text", ballast);
    registry.put("app", "latest", &image);
    let name = format!("{}/app", registry.host());
    (registry, image, name)
}

#[tokio::test]
async fn download_that_breaks_off_goes_on_where_it_was() {
    let (registry, image, name) = with_image(4 << 20).await;
    script(
        &registry,
        &layer_path(&image),
        vec![Fault::Cut(1 << 20), Fault::Cut(1 << 20)],
    );
    assert_eq!(
        Bench::new().pull(&name).await.unwrap().image.digest,
        image.digest
    );
    let ranges: Vec<_> = registry
        .seen()
        .into_iter()
        .filter(|seen| seen.line.contains(&layer_path(&image)))
        .map(|seen| seen.range)
        .collect();
    assert_eq!(ranges.len(), 3);
    let start = |range: &Option<String>| -> u64 {
        let range = range.as_deref().unwrap();
        range
            .strip_prefix("bytes=")
            .unwrap()
            .strip_suffix('-')
            .unwrap()
            .parse()
            .unwrap()
    };
    assert_eq!(ranges[0], None);
    assert!(start(&ranges[1]) > 0 && start(&ranges[2]) > start(&ranges[1]));
}

#[tokio::test]
async fn registry_without_ranges_begins_again() {
    let (registry, image, name) = with_image(3 << 20).await;
    script(
        &registry,
        &layer_path(&image),
        vec![Fault::Cut(2 << 20), Fault::NoRange],
    );
    assert_eq!(
        Bench::new().pull(&name).await.unwrap().image.digest,
        image.digest
    );
}

#[tokio::test]
async fn registry_that_dies_in_a_layer_fails_the_pull_and_the_next_pull_goes_on() {
    let (registry, image, name) = with_image(3 << 20).await;
    let path = layer_path(&image);
    let mut requests = 0;
    registry.fail(move |line| {
        if !line.contains(&path) {
            return None;
        }
        requests += 1;
        Some(if requests == 1 {
            Fault::Cut(2 << 20)
        } else {
            Fault::Cut(0)
        })
    });
    let bench = Bench::new();
    let error = bench.error(&name).await;
    assert_eq!(error.code, ImageErrorCode::ImageRegistryUnreachable);
    assert!(bench.cache.list().is_empty());
    let left = bench.blobs();
    assert!(
        left.iter().any(|name| name.ends_with(".partial")),
        "{left:?}"
    );

    registry.fail(|_| None);
    registry.seen();
    bench.pull(&name).await.unwrap();
    let seen = registry.seen();
    let resumed = seen
        .iter()
        .find(|seen| seen.line.contains(&layer_path(&image)))
        .unwrap();
    assert!(resumed.range.is_some());
    assert!(bench.blobs().is_empty());
}

#[tokio::test]
async fn overloaded_registry_is_asked_again_and_a_broken_one_not_for_ever() {
    let (registry, _, name) = with_image(1000).await;
    script(
        &registry,
        "/v2/app/",
        vec![
            Fault::Status(StatusCode::SERVICE_UNAVAILABLE),
            Fault::Status(StatusCode::TOO_MANY_REQUESTS),
        ],
    );
    let bench = Bench::new();
    bench.pull(&name).await.unwrap();

    registry.fail(|line| {
        line.contains("/v2/app/")
            .then_some(Fault::Status(StatusCode::BAD_GATEWAY))
    });
    registry.seen();
    let error = bench.error(&format!("{name}:other")).await;
    assert_eq!(error.code, ImageErrorCode::ImageRegistryUnreachable);
    assert!(error.message.contains("502"), "{error}");
    assert_eq!(
        registry.count("/manifests/"),
        usize::try_from(PATIENCE.attempts).unwrap()
    );
}

#[tokio::test]
async fn answers_that_will_not_change_are_not_asked_for_again() {
    for (status, code) in [
        (StatusCode::NOT_FOUND, ImageErrorCode::ImageNotFound),
        (StatusCode::FORBIDDEN, ImageErrorCode::ImagePullUnauthorized),
        (
            StatusCode::UNAUTHORIZED,
            ImageErrorCode::ImagePullUnauthorized,
        ),
        (
            StatusCode::METHOD_NOT_ALLOWED,
            ImageErrorCode::ImageRegistryUnreachable,
        ),
    ] {
        let (registry, _, name) = with_image(0).await;
        registry.fail(move |line| line.contains("/v2/app/").then_some(Fault::Status(status)));
        assert_eq!(Bench::new().error(&name).await.code, code, "{status}");
        assert_eq!(registry.count("/manifests/"), 1, "{status}");
    }
}

#[tokio::test]
async fn manifest_of_another_digest_is_corrupt() {
    let (registry, _, name) = with_image(0).await;
    let other = TestImage::simple("other", 0);
    registry.fail(move |line| {
        line.contains("/manifests/")
            .then(|| Fault::Body(other.manifest.clone()))
    });
    let bench = Bench::new();
    let error = bench.error(&name).await;
    assert_eq!(error.code, ImageErrorCode::ImageCorrupt);
    assert!(bench.cache.list().is_empty());
}

#[tokio::test]
async fn layer_of_another_digest_or_size_is_corrupt_and_leaves_nothing_to_build_on() {
    let (registry, image, name) = with_image(100_000).await;
    let right = image.layer();
    let mut flipped = right.to_vec();
    flipped[right.len() / 2] ^= 1;
    let longer = [right, b"more"].concat();
    let shorter = right[..right.len() - 1].to_vec();
    for (what, body) in [
        ("flipped", flipped),
        ("longer", longer),
        ("shorter", shorter),
    ] {
        let path = layer_path(&image);
        registry.fail(move |line| line.contains(&path).then(|| Fault::Body(body.clone())));
        let bench = Bench::new();
        let error = bench.error(&name).await;
        assert_eq!(error.code, ImageErrorCode::ImageCorrupt, "{what}: {error}");
        assert_eq!(bench.builds(), 0, "{what}");
        registry.fail(|_| None);
        assert!(
            bench.pull(&name).await.is_ok(),
            "{what}: a right one is taken afterwards"
        );
    }
}

#[tokio::test]
async fn damaged_part_of_an_earlier_attempt_does_not_spoil_the_pull() {
    let (registry, image, name) = with_image(100_000).await;
    let bench = Bench::new();
    let part = bench
        .folder
        .path()
        .join(".blobs/sha256")
        .join(image.layer_digest().hex());
    std::fs::write(part.with_extension("partial"), vec![9; 5000]).unwrap();
    bench.pull(&name).await.unwrap();
    // One that is whole and wrong is found out by the worker, and not by the next attempt again.
    let other = TestImage::simple("other", 1000);
    registry.put("other", "latest", &other);
    let whole = bench
        .folder
        .path()
        .join(".blobs/sha256")
        .join(other.layer_digest().hex());
    std::fs::write(&whole, vec![9; other.layer().len()]).unwrap();
    let name = format!("{}/other", registry.host());
    assert_eq!(bench.error(&name).await.code, ImageErrorCode::ImageCorrupt);
    bench.pull(&name).await.unwrap();
}

#[tokio::test]
async fn manifest_without_an_end_is_cut_at_the_limit() {
    let (registry, _, name) = with_image(0).await;
    let limits = Limits {
        manifest_bytes: 10_000,
        ..Limits::default()
    };
    registry.fail(|line| {
        line.contains("/manifests/")
            .then(|| Fault::Body(vec![b' '; 1 << 20]))
    });
    let bench = Bench::with(Registries::default(), limits);
    assert_eq!(bench.error(&name).await.code, ImageErrorCode::ImageTooLarge);
}

#[tokio::test]
async fn redirects_are_followed_without_the_password_and_not_for_ever() {
    let (registry, storage) = (
        TestRegistry::start(Access::Basic).await,
        TestRegistry::start(Access::Everybody).await,
    );
    let image = TestImage::simple("moved", 100_000);
    registry.put("app", "latest", &image);
    storage.put("app", "latest", &image);
    let (path, elsewhere) = (layer_path(&image), storage.host());
    let signed = format!("http://{elsewhere}/v2/app{path}?signature=hunter2");
    let to = signed.clone();
    registry.fail(move |line| line.contains(&path).then(|| Fault::Redirect(to.clone())));
    let name = format!("{}/app", registry.host());
    let held = || Some(credentials(&registry.host(), PASSWORD));
    Bench::new().pull_as(&name, held()).await.unwrap();
    let seen = storage.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].authorization, None);

    // Round and round, and the signed address in no message.
    storage.fail(move |_| Some(Fault::Redirect(signed.clone())));
    let error = Bench::new().pull_as(&name, held()).await.unwrap_err();
    assert_eq!(error.code, ImageErrorCode::ImageRegistryUnreachable);
    assert!(error.message.contains("redirects too often"), "{error}");
    assert!(!error.message.contains("hunter2"), "{error}");
}

#[tokio::test]
async fn redirect_to_an_address_without_tls_is_not_followed() {
    let (registry, image, name) = with_image(0).await;
    let path = layer_path(&image);
    registry.fail(move |line| {
        line.contains(&path)
            .then(|| Fault::Redirect("http://storage.invalid/x".to_owned()))
    });
    let error = Bench::new().error(&name).await;
    assert!(error.message.contains("without TLS"), "{error}");
}

#[tokio::test]
async fn slow_registry_is_waited_for() {
    let (registry, image, name) = with_image(1000).await;
    let (held, count) = (
        Arc::new(tokio::sync::Notify::new()),
        Arc::new(AtomicUsize::new(0)),
    );
    let (path, hold, counter) = (layer_path(&image), Arc::clone(&held), Arc::clone(&count));
    registry.fail(move |line| {
        line.contains(&path).then(|| {
            counter.fetch_add(1, Ordering::SeqCst);
            Fault::Hold(Arc::clone(&hold))
        })
    });
    let bench = Bench::new();
    let (pulled, ()) = tokio::join!(bench.pull(&name), async {
        until(|| count.load(Ordering::SeqCst) > 0).await;
        held.notify_one();
    });
    pulled.unwrap();
    assert_eq!(count.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_pulls_at_the_same_time_download_and_build_once() {
    let (registry, image, name) = with_image(1 << 20).await;
    registry.put("app", "other", &image);
    let bench = Bench::new();
    let other = format!("{name}:other");
    let (one, two, three) = tokio::join!(bench.pull(&name), bench.pull(&name), bench.pull(&other));
    let cached = [one, two, three].map(|pulled| pulled.unwrap().cached);
    assert_eq!(cached.iter().filter(|cached| !**cached).count(), 1);
    assert_eq!((bench.builds(), registry.count("/blobs/")), (1, 2));
    assert_eq!(bench.cache.list()[0].names.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_share_a_layer_download_it_once_at_a_time() {
    let registry = TestRegistry::start(Access::Everybody).await;
    let (base, one, two) = (layer("base", 1 << 20), layer("one", 0), layer("two", 0));
    let image = |top: &Vec<u8>| {
        TestImage::of(
            OCI_MANIFEST,
            &[(base.clone(), base.clone()), (top.clone(), top.clone())],
        )
    };
    registry.put("app", "one", &image(&one));
    registry.put("app", "two", &image(&two));
    let bench = Bench::new();
    let name = |tag: &str| format!("{}/app:{tag}", registry.host());
    let (first, second) = (name("one"), name("two"));
    let (first, second) = tokio::join!(bench.pull(&first), bench.pull(&second));
    first.unwrap();
    second.unwrap();
    assert_eq!(bench.builds(), 2);
    assert!(bench.blobs().is_empty(), "{:?}", bench.blobs());
}

#[tokio::test]
async fn pull_that_is_given_up_leaves_a_part_that_the_next_one_uses() {
    let (registry, image, name) = with_image(3 << 20).await;
    let (path, hold) = (layer_path(&image), Arc::new(tokio::sync::Notify::new()));
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    let fault = Fault::Hold(hold);
    registry.fail(move |line| {
        line.contains(&path).then(|| {
            counter.fetch_add(1, Ordering::SeqCst);
            fault.clone()
        })
    });
    let bench = Bench::new();
    tokio::select! {
        pulled = bench.pull(&name) => panic!("{pulled:?}"),
        () = until(|| count.load(Ordering::SeqCst) > 0) => {}
    }
    registry.fail(|_| None);
    bench.pull(&name).await.unwrap();
    assert_eq!(bench.builds(), 1);
}

/// A worker that something in a layer has taken over.
struct Liar;

impl JobRunner for Liar {
    async fn run(&self, job: Job, fds: Vec<OwnedFd>) -> Result<JobReport, ImageError> {
        let mut report = worker::run(job, fds)?;
        report.digest = crate::images::digest::Digest::of(b"another image");
        Ok(report)
    }
}

#[tokio::test]
async fn worker_cannot_publish_under_another_digest() {
    let (_registry, _, name) = with_image(0).await;
    let bench = Bench::new();
    let request = PullRequest {
        image: name,
        credentials: None,
    };
    let error = bench
        .puller
        .pull(&Liar, &request, &Reporter::default())
        .await
        .unwrap_err();
    assert_eq!(error.code, ImageErrorCode::ImageWorkerFailed);
    assert!(bench.cache.list().is_empty());
}

#[tokio::test]
async fn registry_that_is_not_there_is_unreachable() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap();
    drop(listener);
    let error = Bench::new().error(&format!("{host}/app")).await;
    assert_eq!(error.code, ImageErrorCode::ImageRegistryUnreachable);
    assert!(error.message.contains(&host.to_string()), "{error}");
}
