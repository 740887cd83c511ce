//! The benchmarks `image_pull` and `pool_create`: a real image from its registry, beside the programs that do the same by steps.

use std::collections::BTreeMap;
use std::time::Instant;

use super::*;

const ROUNDS: usize = 3;
/// An image in a registry on loopback that has no password.
const IMAGE_VARIABLE: &str = "CABANA_BENCH_IMAGE";
const OUTPUT_VARIABLE: &str = "CABANA_BENCH_OUTPUT";
const POOL: &str = "pulled";
/// As `images::squash::Shape` has it by default.
const SAME: [&str; 9] = [
    "-comp",
    "zstd",
    "-Xcompression-level",
    "3",
    "-b",
    "128K",
    "-noappend",
    "-quiet",
    "-no-progress",
];

struct Bench {
    native: Native,
    image: String,
    folder: TempDir,
}

impl Bench {
    fn run(command: &mut Command) -> Duration {
        let started = Instant::now();
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{command:?}: {output:?}");
        started.elapsed()
    }

    fn pull(&self) -> Duration {
        let mut command = Command::new(&self.native.programs.cabana);
        command
            .args(["image", "pull", &self.image, "--root"])
            .arg(self.native.root.path());
        Self::run(&mut command)
    }

    /// Copy, unpack, pack, and the bytes of layers and root image.
    fn others(&self) -> ([Duration; 3], [u64; 2]) {
        let [layout, bundle, packed] =
            ["layout", "bundle", "packed"].map(|name| self.folder.path().join(name));
        let copy = Self::run(
            Command::new("skopeo")
                .args(["--insecure-policy", "copy", "--quiet"])
                .args(["--preserve-digests", "--src-tls-verify=false"])
                .arg(format!("docker://{}", self.image))
                .arg(format!("oci:{}:image", layout.display())),
        );
        let unpack = Self::run(
            Command::new("umoci")
                .args(["unpack", "--image"])
                .arg(format!("{}:image", layout.display()))
                .arg(&bundle),
        );
        let pack = Self::run(
            Command::new("mksquashfs")
                .arg(bundle.join("rootfs"))
                .arg(&packed)
                .args(SAME),
        );
        let blobs = std::fs::read_dir(layout.join("blobs/sha256")).unwrap();
        let layers = blobs.map(|blob| blob.unwrap().metadata().unwrap().len());
        let bytes = [layers.sum(), std::fs::metadata(&packed).unwrap().len()];
        for folder in [&layout, &bundle] {
            std::fs::remove_dir_all(folder).unwrap();
        }
        ([copy, unpack, pack], bytes)
    }

    async fn create(&self) -> Duration {
        let pool = json!({ "location": "local", "properties": {
            "scaleConfiguration": { "maxConcurrentSessions": 1, "readySessionInstances": 0 },
            "customContainerTemplate": {
                "containers": [{
                    "name": "main",
                    "image": self.image,
                    "command": [self.native.programs.demo],
                }],
                "ingress": { "targetPort": 8080 },
            },
        } });
        let started = Instant::now();
        let admin = self.native.admin();
        let (status, answer) = admin
            .send("PUT", &client::pool(POOL), pool.to_string())
            .await;
        let took = started.elapsed();
        assert_eq!(status, 201, "{answer}");
        self.native.delete_pool(POOL).await;
        took
    }

    /// How large its root image was.
    async fn remove(&self) -> u64 {
        let name = self.image.replace('/', "%2F");
        let admin = self.native.admin();
        let (status, answer) = admin.send("DELETE", &format!("/images/{name}"), "").await;
        assert_eq!(status, 200, "{answer}");
        answer["freedBytes"].as_u64().unwrap()
    }
}

fn seconds(times: &[Duration]) -> Value {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let all: Vec<f64> = sorted.iter().map(Duration::as_secs_f64).collect();
    json!({ "median": all[all.len() / 2], "all": all })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: cargo dev bench --only image_pull --only pool_create"]
async fn pulls_and_pools() {
    let image = std::env::var(IMAGE_VARIABLE).expect("an image is named");
    let native = Native::start("pulls_and_pools").await;
    let bench = Bench {
        native: native.expect("all programs are there"),
        image,
        folder: tempfile::tempdir_in("/var/tmp").unwrap(),
    };
    let mut times: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    let (mut root_image, mut others) = (0, [0; 2]);
    for _ in 0..ROUNDS {
        times.entry("pull").or_default().push(bench.pull());
        times
            .entry("createCached")
            .or_default()
            .push(bench.create().await);
        root_image = bench.remove().await;
        let (steps, bytes) = bench.others();
        for (name, step) in ["copy", "unpack", "pack"].into_iter().zip(steps) {
            times.entry(name).or_default().push(step);
        }
        others = bytes;
        times
            .entry("createNotCached")
            .or_default()
            .push(bench.create().await);
        bench.remove().await;
    }
    let mut result = json!({
        "rounds": ROUNDS,
        "layerBytes": others[0],
        "packedBytes": others[1],
        "rootImageBytes": root_image,
    });
    for (name, times) in &times {
        result[*name] = seconds(times);
    }
    match std::env::var_os(OUTPUT_VARIABLE) {
        Some(path) => std::fs::write(path, result.to_string()).unwrap(),
        None => println!("{result:#}"),
    }
}
