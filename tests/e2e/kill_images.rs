//! `kill -9` of an image worker: the import is refused in clear words, nothing half made is left, and the same import succeeds when it
//! is tried again. And of the appliance above it, in a pull; the other steps of a pull are in `appliance/src/native/pull_faults.rs`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use e2e::cli::Ran;
use e2e::process::{self, Process};
use e2e::{Registry, TestAppliance, artifacts};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

e2e::tests! {
    Own: [
        import_whose_image_worker_is_killed_at_any_step_leaves_nothing_and_succeeds_afterwards,
        pull_whose_appliance_is_killed_ends_its_image_worker_and_succeeds_afterwards,
    ];
}

/// For the next step of a pull, or until the appliance is back, on an emulated processor.
const LIMIT: Duration = Duration::from_secs(60);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(1);
/// Enough to make it another image; an image worker is busy with the demo alone for a second.
const LAYER_BYTES: usize = 1 << 20;

/// In the middle of writing the root image, which is larger.
const WRITTEN: u64 = 512 << 10;

/// The demo image with one layer more, which holds a file of nothing in particular.
struct Larger {
    folder: TempDir,
}

impl Larger {
    fn new(seed: u8) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        tar(folder.path(), "-xf", &artifacts::demo_image(), &[]);
        let index = read_json(&path("index.json"));
        let manifest = read_json(&path(&blob(&index["manifests"][0])));

        // Neither all the same nor beyond compression.
        let numbers = (0..LAYER_BYTES / 4).map(|number| {
            let number = u32::try_from(number).unwrap();
            number.wrapping_mul(2_654_435_761).rotate_left(seed.into())
        });
        let content: Vec<u8> = numbers
            .flat_map(|number| (number >> 8).to_le_bytes())
            .collect();
        fs::write(path("ballast"), content).unwrap();
        tar(folder.path(), "-cf", &path("more.tar"), &["ballast"]);
        let digest = Sha256::digest(fs::read(path("more.tar")).unwrap());
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();

        let mut config = read_json(&path(&blob(&manifest["config"])));
        let known = config["rootfs"]["diff_ids"].as_array_mut().unwrap();
        known.push(json!(format!("sha256:{digest}")));
        fs::write(path("config.json"), config.to_string()).unwrap();
        let layers = manifest["layers"].as_array().unwrap().iter();
        let layers: Vec<String> = layers.map(blob).chain(["more.tar".to_owned()]).collect();
        let listing = json!([{
            "Config": "config.json",
            "RepoTags": [format!("larger:{seed}")],
            "Layers": layers,
        }]);
        fs::write(path("manifest.json"), listing.to_string()).unwrap();
        let parts = ["manifest.json", "config.json", "more.tar", "blobs"];
        tar(folder.path(), "-cf", &path("saved.tar"), &parts);
        Self { folder }
    }

    fn source(&self) -> String {
        format!(
            "docker-archive:{}",
            self.folder.path().join("saved.tar").display()
        )
    }
}

fn tar(folder: &Path, how: &str, archive: &Path, members: &[&str]) {
    let mut tar = Command::new("tar");
    tar.arg(how)
        .arg(archive)
        .arg("-C")
        .arg(folder)
        .args(members);
    assert!(tar.status().unwrap().success());
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// `blobs/sha256/...` of a descriptor.
fn blob(descriptor: &Value) -> String {
    let digest = descriptor["digest"].as_str().unwrap();
    format!("blobs/{}", digest.replace(':', "/"))
}

/// How much there is of the root image that is being made.
fn staged(host: &TestAppliance) -> Option<u64> {
    let staging = host.root().join("var/lib/cabana/images/.tmp");
    let mut entries = fs::read_dir(staging).ok()?.flatten();
    entries.find_map(|entry| Some(fs::metadata(entry.path().join("root.squashfs")).ok()?.len()))
}

/// The warden starts them. They may be there for some ten milliseconds only, and a look at all processes takes as long.
fn image_worker(host: &TestAppliance) -> Option<Process> {
    let mut processes = process::children(host.pid()).into_iter();
    processes.find(|process| process.role == "image-worker")
}

/// A step of an import, and who is at work then, if it has come so far.
type Step = (&'static str, fn(&TestAppliance) -> Option<Process>);

const LOOKS: Step = ("looks into the archive", image_worker);
const BEGINS: Step = ("begins to build", |host| {
    staged(host).and_then(|_| image_worker(host))
});
const WRITES: Step = ("writes", |host| {
    staged(host).filter(|length| *length > WRITTEN)?;
    image_worker(host)
});
/// Some steps are over before everybody has seen them.
const TRIES: usize = 10;

/// Kills the image worker at a step of what `run` does, and asserts that nothing came of it. `Err`: it was too late, and
/// everything has come of it.
#[track_caller]
fn kill(host: &TestAppliance, step: Step, run: impl FnOnce() -> Ran + Send) -> Result<(), Ran> {
    let (step, victim) = step;
    let before = (host.traces(), listed(host), kept(host));
    let ran = thread::scope(|scope| {
        let running = scope.spawn(run);
        while !running.is_finished() {
            if let Some(victim) = victim(host) {
                victim.kill();
                break;
            }
            thread::sleep(PAUSE);
        }
        running.join().expect("the command ends")
    });
    if ran.code == Some(0) {
        return Err(ran);
    }
    println!("killed while it {step}: {}", ran.stderr.trim());
    ran.assert_refused(1, &["image worker", "signal 9"]);
    assert_eq!(host.traces().since(&before.0), [""; 0], "while it {step}");
    assert_eq!(listed(host), before.1, "while it {step}");
    assert_eq!(kept(host), before.2, "while it {step}");
    Ok(())
}

fn listed(host: &TestAppliance) -> Value {
    host.cli().json(&["image", "ls"])
}

/// What there is in the cache's folder.
fn kept(host: &TestAppliance) -> Vec<PathBuf> {
    let entries = fs::read_dir(host.root().join("var/lib/cabana/images")).unwrap();
    let mut entries: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    entries
}

/// The archive is looked into whenever it is imported, so this can be tried again.
#[track_caller]
fn kill_while_it_looks(host: &TestAppliance, run: impl Fn() -> Ran + Sync, undo: impl Fn()) {
    for tries in 1..=TRIES {
        match kill(host, LOOKS, &run) {
            Ok(()) => return println!("hit at try {tries}"),
            Err(_) => undo(),
        }
    }
    panic!("not once in {TRIES} tries was the image worker killed in time");
}

fn import_whose_image_worker_is_killed_at_any_step_leaves_nothing_and_succeeds_afterwards() {
    let host = TestAppliance::start();
    let (first, second) = (Larger::new(1), Larger::new(2));
    let import = ["image", "import", &first.source(), "--name", "first"];
    let import = || host.cli().run(&import);
    for step in [BEGINS, WRITES] {
        kill(&host, step, import).expect("there is time enough");
    }
    let imported = import();
    assert_eq!(imported.code, Some(0), "{imported:#?}");
    kill_while_it_looks(&host, import, || {});

    let source = second.source();
    let create = || host.pool("second").with(&["--image", &source]).run();
    let pool = || host.existing_pool("second");
    kill(&host, WRITES, create).expect("there is time enough");
    assert_eq!(pool().properties(), None);
    let created = create();
    assert_eq!(created.code, Some(0), "{created:#?}");
    assert_eq!(pool().session("user-1").get("/").status, 200);
    pool().delete();
    kill_while_it_looks(&host, create, || pool().delete());
    assert_eq!(pool().properties(), None);
    host.stop();
}

/// Looks until there is something to be seen.
#[track_caller]
fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < LIMIT, "no {what} within {LIMIT:?}");
        thread::sleep(PAUSE);
    }
}

fn pull_whose_appliance_is_killed_ends_its_image_worker_and_succeeds_afterwards() {
    let host = TestAppliance::start();
    let registry = Registry::start();
    let image = registry.image("debian");
    let pull = ["image", "pull", &image];
    let worker = thread::scope(|scope| {
        let pulling = scope.spawn(|| host.cli().run(&pull));
        let worker = wait_for("build", || staged(&host).and_then(|_| image_worker(&host)));
        host.appliance().kill();
        let ran = pulling.join().expect("the command ends");
        assert_ne!(ran.code, Some(0), "{ran:#?}");
        worker
    });
    worker.assert_ends_within(LIMIT);
    let listed = wait_for("appliance", || {
        let ran = host.cli().run(&["image", "ls", "--json"]);
        (ran.code == Some(0)).then(|| serde_json::from_str::<Value>(&ran.stdout).unwrap())
    });
    assert_eq!(listed, json!([]));
    let unfinished = host.root().join("var/lib/cabana/images/.tmp");
    assert_eq!(fs::read_dir(unfinished).unwrap().count(), 0);

    let pulled = host.cli().json(&pull);
    assert_eq!(pulled["cached"], false, "{pulled}");
    let blobs = host.root().join("var/lib/cabana/images/.blobs/sha256");
    assert_eq!(fs::read_dir(blobs).unwrap().count(), 0);
    host.stop();
}
