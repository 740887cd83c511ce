//! The way of an archive from a request body into the cache.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Frame;

use crate::images::digest::Digest;
use crate::images::testing::{Layer, OciArchive};
use crate::images::{
    Cache, ImageError, ImageErrorCode, ImportRequest, Imported, Job, JobReport, JobRunner, Limits,
    Transport, import, worker,
};

/// Runs jobs on a thread of this process, and counts the builds.
#[derive(Default)]
struct Threads {
    builds: AtomicUsize,
}

impl JobRunner for Threads {
    async fn run(&self, job: Job, fds: Vec<OwnedFd>) -> Result<JobReport, ImageError> {
        if job.build {
            self.builds.fetch_add(1, Ordering::SeqCst);
        }
        tokio::task::spawn_blocking(move || worker::run(job, fds))
            .await
            .unwrap()
    }
}

fn request(name: Option<&str>) -> ImportRequest {
    ImportRequest {
        transport: Transport::OciArchive,
        reference: None,
        name: name.map(str::to_owned),
    }
}

fn archive() -> Bytes {
    OciArchive::of(&[Layer::new().file("a", b"x").finish()]).into()
}

async fn import_with(
    cache: &Cache,
    runner: &impl JobRunner,
    name: Option<&str>,
    bytes: Bytes,
) -> Result<Imported, ImageError> {
    let limits = Limits::default();
    import(cache, runner, request(name), &limits, Full::new(bytes)).await
}

fn is_empty(cache_directory: &Path) -> bool {
    let temporary = cache_directory.join(".tmp");
    let mut left = std::fs::read_dir(temporary).unwrap();
    let mut images = std::fs::read_dir(cache_directory).unwrap();
    left.next().is_none() && images.all(|entry| entry.unwrap().file_name() == ".tmp")
}

#[tokio::test]
async fn image_is_imported_once_and_named_twice() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::open(directory.path()).unwrap();
    let runner = Threads::default();
    let first = import_with(&cache, &runner, None, archive()).await.unwrap();
    assert!(!first.cached);
    assert_eq!(first.image.name, "latest", "the archive's own name");
    let again = import_with(&cache, &runner, Some("app"), archive())
        .await
        .unwrap();
    assert!(again.cached);
    assert_eq!(again.image.name, "app");
    assert_eq!(again.image.names, ["app", "latest"]);
    assert_eq!(again.image.digest, first.image.digest);
    assert_eq!(runner.builds.load(Ordering::SeqCst), 1);
    let bytes = std::fs::read(&again.image.root_image_path).unwrap();
    assert_eq!(bytes.len() as u64, again.image.root_image_bytes);
    assert!(crate::images::squash::reader::read_image(&bytes).contains("/a f"));
}

#[tokio::test(flavor = "multi_thread")]
async fn imports_of_one_image_at_the_same_time_build_it_once() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::open(directory.path()).unwrap();
    let runner = Threads::default();
    let (one, two, three) = tokio::join!(
        import_with(&cache, &runner, Some("one"), archive()),
        import_with(&cache, &runner, Some("two"), archive()),
        import_with(&cache, &runner, Some("three"), archive()),
    );
    let built = [one, two, three].map(|result| !result.unwrap().cached);
    assert_eq!(built.iter().filter(|&&built| built).count(), 1);
    assert_eq!(runner.builds.load(Ordering::SeqCst), 1);
    assert_eq!(cache.list()[0].names, ["one", "three", "two"]);
}

#[tokio::test]
async fn bad_archive_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::open(directory.path()).unwrap();
    let bad = OciArchive::of(&[Layer::new().file("../x", b"").finish()]);
    let error = import_with(&cache, &Threads::default(), Some("bad"), bad.into())
        .await
        .unwrap_err();
    assert_eq!(error.code, ImageErrorCode::ImageCorrupt);
    assert!(cache.get("bad").is_none());
    assert!(is_empty(directory.path()));
}

#[tokio::test]
async fn archive_over_the_limit_is_refused_while_it_streams() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::open(directory.path()).unwrap();
    let limits = Limits {
        archive_bytes: 3 << 20,
        ..Limits::default()
    };
    let body = Full::new(Bytes::from(vec![0; (3 << 20) + 1]));
    let error = import(&cache, &Threads::default(), request(None), &limits, body)
        .await
        .unwrap_err();
    assert_eq!(error.code, ImageErrorCode::ImageTooLarge);
    assert!(error.message.contains("3 MiB"), "{error}");
    assert!(is_empty(directory.path()));
}

/// A body that breaks off after some bytes.
struct Broken(bool);

impl hyper::body::Body for Broken {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let first = !std::mem::replace(&mut self.0, true);
        std::task::Poll::Ready(Some(match first {
            true => Ok(Frame::data(Bytes::from_static(b"some"))),
            false => Err(std::io::ErrorKind::ConnectionReset.into()),
        }))
    }
}

#[tokio::test]
async fn upload_that_breaks_off_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::open(directory.path()).unwrap();
    let limits = Limits::default();
    let error = import(
        &cache,
        &Threads::default(),
        request(None),
        &limits,
        Broken(false),
    )
    .await
    .unwrap_err();
    assert!(error.message.contains("broke off"), "{error}");
    assert!(is_empty(directory.path()));
}

/// A worker that something in a layer has taken over.
struct Liar;

impl JobRunner for Liar {
    async fn run(&self, job: Job, fds: Vec<OwnedFd>) -> Result<JobReport, ImageError> {
        let is_build = job.build;
        let mut report = worker::run(job, fds)?;
        if is_build {
            report.digest = Digest::of(b"another image");
        }
        Ok(report)
    }
}

#[tokio::test]
async fn report_that_changes_its_mind_is_not_published() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::open(directory.path()).unwrap();
    let error = import_with(&cache, &Liar, Some("app"), archive())
        .await
        .unwrap_err();
    assert_eq!(error.code, ImageErrorCode::ImageWorkerFailed);
    assert!(is_empty(directory.path()));
}

/// A host whose disk is full while one of the files of the build is written.
struct FullDisk {
    threads: Threads,
    /// A place as `Job` says it, which builds from an archive; `None`: there is room again.
    full: Option<usize>,
}

impl JobRunner for FullDisk {
    async fn run(&self, job: Job, mut fds: Vec<OwnedFd>) -> Result<JobReport, ImageError> {
        if let (true, Some(full)) = (job.build, self.full) {
            // Every write to it fails with ENOSPC, as on a full file system.
            let device = std::fs::File::options()
                .read(true)
                .write(true)
                .open("/dev/full");
            fds[full] = device.unwrap().into();
        }
        self.threads.run(job, fds).await
    }
}

#[tokio::test]
async fn disk_that_is_full_in_the_middle_leaves_the_cache_as_it_was_and_the_retry_works() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::open(directory.path()).unwrap();
    let threads = Threads::default();
    import_with(&cache, &threads, Some("good"), archive())
        .await
        .unwrap();
    let before = cache.list();
    let layer = Layer::new().file("b", &[7; 5000]).finish();
    let other = Bytes::from(OciArchive::of(&[layer]));
    let mut runner = FullDisk {
        threads,
        full: None,
    };
    const OUTPUT: usize = 1;
    const SPOOL: usize = 2;
    for full in [OUTPUT, SPOOL] {
        runner.full = Some(full);
        let error = import_with(&cache, &runner, Some("other"), other.clone())
            .await
            .unwrap_err();
        assert_eq!(error.code, ImageErrorCode::ImageStorageFailed, "{error}");
        assert!(error.message.contains("free disk space"), "{error}");
        assert_eq!(cache.list(), before);
        assert_eq!(
            std::fs::read_dir(directory.path().join(".tmp"))
                .unwrap()
                .count(),
            0
        );
    }
    runner.full = None;
    let imported = import_with(&cache, &runner, Some("other"), other).await;
    assert!(!imported.unwrap().cached);
    assert_eq!(cache.list().len(), 2);
}

#[tokio::test]
async fn image_is_held_while_it_is_imported() {
    /// Tries to remove the image while it is built.
    struct Remover<'a>(Threads, &'a Cache);

    impl JobRunner for Remover<'_> {
        async fn run(&self, job: Job, fds: Vec<OwnedFd>) -> Result<JobReport, ImageError> {
            let is_build = job.build;
            let report = self.0.run(job, fds).await?;
            if is_build {
                assert!(self.1.begin_removal(&report.digest).is_none());
            }
            Ok(report)
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::open(directory.path()).unwrap();
    let runner = Remover(Threads::default(), &cache);
    let imported = import_with(&cache, &runner, None, archive()).await.unwrap();
    assert!(cache.begin_removal(&imported.image.digest).is_some());
}
