//! Pulls that are killed, cut, lied to and left without room, by the processes that do them on a server. Each time the cache has
//! what it had, whole, and the same pull succeeds when it is repeated, with what had come before.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Output;

use tokio::process::Command;

use super::*;
use crate::images::Digest;
use crate::images::registry::tests::Bench;
use crate::images::registry::tests::server::{
    Access, Fault, OCI_MANIFEST, TestImage, TestRegistry, layer, until,
};

/// Of a layer: some batches of a download, and long enough to be caught while it is built.
const BALLAST: usize = 6 << 20;
/// Where a download stalls, and how much of it is in its file by then.
const STALLED: usize = 3 << 20;
const KEPT: u64 = 1 << 20;

/// An appliance, a registry, and what root images are when nothing goes wrong.
struct Scene {
    native: Native,
    registry: TestRegistry,
    expected: BTreeMap<String, Vec<u8>>,
}

/// How far a pull is, as its files say.
struct Pull<'a> {
    images: PathBuf,
    image: &'a TestImage,
    name: String,
}

/// What a pull is doing, how the registry keeps it there, and how one sees that it has come there.
struct Step {
    does: &'static str,
    fault: fn(&str, &TestImage) -> Option<Fault>,
    reached: fn(&Pull, &TestRegistry) -> bool,
    /// What of the layer is asked for again.
    again: Again,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Again {
    All,
    Rest,
    Nothing,
    /// Of the layer, whatever has come while the step was waited for.
    Some,
}

const STEPS: [Step; 6] = [
    Step {
        does: "asks what the name means",
        fault: |line, _| {
            line.contains("/manifests/")
                .then(|| Fault::Hold(Arc::default()))
        },
        reached: |_, registry| registry.count("/manifests/") > 0,
        again: Again::All,
    },
    Step {
        does: "downloads the configuration",
        fault: |line, image| {
            let path = blob_path(&Digest::of(&image.blobs[0]));
            line.contains(&path).then_some(Fault::Stall(10))
        },
        reached: |pull, _| pull.partial(&Digest::of(&pull.image.blobs[0])).is_some(),
        again: Again::Some,
    },
    Step {
        does: "downloads a layer",
        fault: |line, image| {
            let path = blob_path(&image.layer_digest());
            line.contains(&path).then_some(Fault::Stall(STALLED))
        },
        reached: |pull, _| pull.partial(&pull.image.layer_digest()) >= Some(KEPT),
        again: Again::Rest,
    },
    Step {
        does: "begins to build",
        fault: |_, _| None,
        reached: |pull, _| pull.staged().is_some(),
        again: Again::Nothing,
    },
    Step {
        does: "publishes",
        fault: |_, _| None,
        reached: |pull, _| pull.images.join(pull.image.digest.hex()).exists(),
        again: Again::Nothing,
    },
    Step {
        does: "writes the name",
        fault: |_, _| None,
        reached: |pull, _| {
            let noted = std::fs::read_to_string(pull.images.join("pulled.json"));
            noted.is_ok_and(|noted| noted.contains(&pull.name))
        },
        again: Again::Nothing,
    },
];

fn blob_path(digest: &Digest) -> String {
    format!("/blobs/{digest}")
}

impl Pull<'_> {
    /// How much there is of a download that has begun.
    fn partial(&self, digest: &Digest) -> Option<u64> {
        let file = self.images.join(".blobs/sha256").join(digest.hex());
        let about = std::fs::metadata(file.with_extension("partial")).ok()?;
        Some(about.len())
    }

    /// How much there is of a root image that is being made.
    fn staged(&self) -> Option<u64> {
        let entries = std::fs::read_dir(self.images.join(".tmp")).ok()?;
        let mut roots = entries
            .flatten()
            .map(|entry| entry.path().join("root.squashfs"));
        roots.find_map(|root| Some(std::fs::metadata(root).ok()?.len()))
    }
}

impl Scene {
    async fn start(test: &str) -> Option<Self> {
        let native = Native::start(test).await?;
        Some(Self::with(native).await)
    }

    async fn with(native: Native) -> Self {
        Self {
            native,
            registry: TestRegistry::start(Access::Everybody).await,
            expected: BTreeMap::new(),
        }
    }

    /// Puts an image into the registry.
    async fn image(&mut self, tag: &str, layers: usize) -> (TestImage, String) {
        let plain = |at| layer(&format!("{tag}, layer {at}"), BALLAST);
        let layers: Vec<_> = (0..layers).map(|at| (plain(at), plain(at))).collect();
        let image = TestImage::of(OCI_MANIFEST, &layers);
        self.registry.put("app", tag, &image);
        let name = format!("{}/app:{tag}", self.registry.host());
        let made = Bench::new();
        let made = made.pull(&name).await.unwrap().image;
        let root = std::fs::read(&made.root_image_path).unwrap();
        self.expected.insert(image.digest.to_string(), root);
        self.registry.seen();
        (image, name)
    }

    /// Runs `cabana image pull`.
    fn pull(&self, name: &str) -> impl Future<Output = Output> + Send + 'static {
        let mut command = Command::new(&self.native.programs.cabana);
        command
            .args(["image", "pull", name, "--json", "--root"])
            .arg(self.native.root.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        async move { command.output().await.unwrap() }
    }

    async fn pulled(&self, name: &str) -> Value {
        let output = self.pull(name).await;
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The line of a pull that is refused.
    async fn refused(&self, name: &str) -> String {
        let output = self.pull(name).await;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Ends appliance and image worker at once, as nobody expects, and starts the appliance again.
    async fn crash(&mut self) {
        self.native.process.kill().unwrap();
        self.native.warden.kill_children();
        self.native.process.wait().unwrap();
        self.native.restart().await;
    }

    /// What the appliance has, by digest. Each image is byte for byte what it is when nothing goes wrong, and nothing else is there.
    async fn listed(&self) -> BTreeMap<String, Value> {
        let (status, answer) = self.native.admin().send("GET", "/images", "").await;
        assert_eq!(status, 200, "{answer}");
        let images = answer["value"].as_array().unwrap().iter();
        let listed: BTreeMap<String, Value> = images
            .map(|image| {
                let mut image = image.clone();
                // What a crash may forget.
                image["lastUsedAt"].take();
                (image["digest"].as_str().unwrap().to_owned(), image)
            })
            .collect();
        let folder = self.images();
        for (digest, image) in &listed {
            let hex = digest.strip_prefix("sha256:").unwrap();
            let root = std::fs::read(folder.join(hex).join("root.squashfs")).unwrap();
            assert_eq!(image["rootImageBytes"], root.len());
            if let Some(expected) = self.expected.get(digest) {
                assert!(root == *expected, "{image} is not what it should be");
            }
        }
        let names = std::fs::read_dir(&folder).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let folders = names.filter(|name| Digest::from_hex(name).is_ok()).count();
        assert_eq!(folders, listed.len());
        assert_eq!(entries(&folder.join(".tmp")), 0);
        listed
    }

    /// As the appliance sees it, which may have file systems that nobody else has.
    fn images(&self) -> PathBuf {
        let folder = self.native.paths.images.strip_prefix("/").unwrap();
        Path::new("/proc")
            .join(self.native.process.id().to_string())
            .join("root")
            .join(folder)
    }

    /// Asserts that a pull gets the image now, and that it asks for no more of the layer than that.
    async fn assert_succeeds(&self, name: &str, image: &TestImage, again: Again) {
        self.registry.fail(|_| None);
        self.registry.seen();
        let pulled = self.pulled(name).await;
        assert_eq!(pulled["digest"], image.digest.to_string());
        let listed = self.listed().await;
        assert_eq!(listed[&image.digest.to_string()]["names"], json!([name]));
        assert_eq!(entries(&self.images().join(".blobs/sha256")), 0);
        let path = blob_path(&image.layer_digest());
        let seen = self.registry.seen();
        let asked = seen.iter().filter(|seen| seen.line.contains(&path));
        let asked: Vec<_> = asked.map(|seen| seen.range.clone()).collect();
        match again {
            Again::All => assert_eq!(asked, [None]),
            Again::Nothing => assert!(asked.is_empty(), "{asked:?}"),
            Again::Some => {}
            Again::Rest => {
                let [Some(range)] = asked.as_slice() else {
                    panic!("{asked:?}");
                };
                let from = range.strip_prefix("bytes=").unwrap();
                let from: u64 = from.strip_suffix('-').unwrap().parse().unwrap();
                assert!(from >= KEPT, "{range}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pull_whose_appliance_is_killed_at_any_step_leaves_a_correct_cache_and_succeeds_afterwards()
{
    let Some(mut scene) = Scene::start("pull_whose_appliance_is_killed").await else {
        return;
    };
    for (number, step) in STEPS.iter().enumerate() {
        let (image, name) = scene.image(&format!("step-{number}"), 1).await;
        let (fault, wanted) = (step.fault, image.clone());
        scene.registry.fail(move |line| fault(line, &wanted));
        let before = scene.listed().await;
        let pulling = tokio::spawn(scene.pull(&name));
        let pull = Pull {
            images: scene.images(),
            image: &image,
            name: name.clone(),
        };
        until(|| (step.reached)(&pull, &scene.registry)).await;
        scene.crash().await;
        let output = pulling.await.unwrap();
        let after = scene.listed().await;
        let published = after.contains_key(&image.digest.to_string());
        println!(
            "killed while it {}: exit {:?}, image {}",
            step.does,
            output.status.code(),
            if published { "there" } else { "not there" }
        );
        if output.status.success() {
            // It was over before the kill.
            assert!(published, "{output:?}");
        }
        if !published {
            assert_eq!(after, before, "{}", step.does);
        }
        scene.assert_succeeds(&name, &image, step.again).await;
    }
    let (status, _) = scene.native.stop();
    assert!(status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pull_whose_image_worker_is_killed_fails_and_the_next_one_downloads_nothing_again() {
    let Some(mut scene) = Scene::start("pull_whose_image_worker_is_killed").await else {
        return;
    };
    let (image, name) = scene.image("worker", 1).await;
    let before = scene.listed().await;
    let pulling = tokio::spawn(scene.pull(&name));
    let pull = Pull {
        images: scene.images(),
        image: &image,
        name: name.clone(),
    };
    until(|| pull.staged().is_some() && scene.native.warden.children() > 0).await;
    scene.native.warden.kill_children();
    let output = pulling.await.unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("image worker"), "{output:?}");
    assert_eq!(scene.listed().await, before);
    scene.assert_succeeds(&name, &image, Again::Nothing).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registry_that_dies_or_lies_leaves_a_correct_cache_and_a_good_one_is_taken_afterwards() {
    let Some(mut scene) = Scene::start("registry_that_dies_or_lies").await else {
        return;
    };
    let (image, name) = scene.image("dies", 1).await;
    let before = scene.listed().await;
    let path = blob_path(&image.layer_digest());
    let mut asked = 0;
    scene.registry.fail(move |line| {
        let after = if asked == 0 { STALLED } else { 0 };
        line.contains(&path).then(|| {
            asked += 1;
            Fault::Cut(after)
        })
    });
    let error = scene.refused(&name).await;
    assert!(error.contains("ImageRegistryUnreachable"), "{error}");
    assert_eq!(scene.listed().await, before);
    // What has come outlives even the appliance.
    scene.crash().await;
    scene.assert_succeeds(&name, &image, Again::Rest).await;

    let (image, name) = scene.image("lies", 1).await;
    let before = scene.listed().await;
    let mut other = image.layer().to_vec();
    other[BALLAST / 2] ^= 1;
    let manifest = TestImage::simple("other", 0).manifest;
    let lies = [
        (blob_path(&image.layer_digest()), other),
        (format!("/manifests/{}", image.digest), manifest),
    ];
    let by_digest = format!("{}@{}", name.replace(":lies", ""), image.digest);
    for (path, bytes) in lies {
        scene
            .registry
            .fail(move |line| line.contains(&path).then(|| Fault::Body(bytes.clone())));
        let error = scene.refused(&by_digest).await;
        assert!(error.contains("ImageCorrupt"), "{error}");
        assert_eq!(scene.listed().await, before);
    }
    scene.assert_succeeds(&name, &image, Again::All).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pull_that_is_given_up_is_taken_over_by_who_waits_for_the_same_image() {
    let Some(mut scene) = Scene::start("pull_that_is_given_up").await else {
        return;
    };
    let (image, name) = scene.image("shared", 1).await;
    let path = blob_path(&image.layer_digest());
    scene
        .registry
        .fail(move |line| line.contains(&path).then_some(Fault::Stall(STALLED)));
    let first = tokio::spawn(scene.pull(&name));
    let pull = Pull {
        images: scene.images(),
        image: &image,
        name: name.clone(),
    };
    let layer = image.layer_digest();
    until(|| pull.partial(&layer) >= Some(KEPT)).await;
    scene.registry.seen();
    let second = tokio::spawn(scene.pull(&name));
    until(|| scene.registry.count("/manifests/") > 0).await;
    scene.registry.fail(|_| None);
    // With it goes the command, and with that the connection.
    first.abort();
    let output = second.await.unwrap();
    assert!(output.status.success(), "{output:?}");
    let path = blob_path(&layer);
    let seen = scene.registry.seen();
    let asked: Vec<_> = seen.iter().filter(|it| it.line.contains(&path)).collect();
    assert!(
        asked.len() == 1 && asked[0].range.is_some(),
        "it goes on where the first one was: {asked:?}"
    );
    scene.assert_succeeds(&name, &image, Again::Nothing).await;
}

/// Root, and not in a container that forbids it.
fn can_mount() -> bool {
    let tried = std::process::Command::new("unshare")
        .args(["--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"])
        .stderr(Stdio::null())
        .status();
    tried.is_ok_and(|status| status.success())
}

/// What there is for images, in MiB: too little for two layers of 6, for their files beside them, for a root image of 6 beside all
/// of these (the files of the second layer take the place of the first's); and enough.
const ROOMS: [(u32, Option<&str>); 4] = [
    (9, Some("layer")),
    (20, Some("temporary file")),
    (27, Some("root image")),
    (64, None),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disk_that_is_full_at_any_step_fails_the_pull_and_room_is_all_that_the_next_one_needs() {
    if !can_mount() {
        eprintln!("SKIPPED: disk_that_is_full: no file system can be mounted here");
        return;
    }
    let smallest = ROOMS[0].0;
    // For this process alone, so that it is gone with it.
    let command = |paths: &Paths| {
        let script =
            format!("mount -t tmpfs -o size={smallest}m,mode=0700 tmpfs \"$0\" && exec \"$@\"");
        let images = paths.images.to_str().unwrap();
        let words = ["unshare", "--mount", "sh", "-c", &script, images];
        words.map(str::to_owned).to_vec()
    };
    let Some(native) = Native::start_behind("disk_that_is_full", command).await else {
        return;
    };
    let mut scene = Scene::with(native).await;
    let (image, name) = scene.image("large", 2).await;
    let before = scene.listed().await;
    for (mib, fails) in ROOMS {
        let resized = std::process::Command::new("nsenter")
            .args(["--mount", "--target"])
            .arg(scene.native.process.id().to_string())
            .args(["mount", "-o", &format!("remount,size={mib}m")])
            .arg(&scene.native.paths.images)
            .status();
        assert!(resized.unwrap().success());
        let Some(what) = fails else {
            break;
        };
        let error = scene.refused(&name).await;
        println!("{mib} MiB: {}", error.trim());
        for part in ["ImageStorageFailed", what, "free disk space"] {
            assert!(error.contains(part), "{mib} MiB, {part}: {error}");
        }
        assert_eq!(scene.listed().await, before);
    }
    scene.assert_succeeds(&name, &image, Again::Nothing).await;
}
