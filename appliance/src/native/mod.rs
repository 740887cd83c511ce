//! The shipped binary without a hypervisor: `cabana appliance` as it is, with a warden whose workers are the agent as an
//! ordinary process. So everything above the VMM is tested and measured on any machine, whole: TLS, tokens,
//! pools, store, goldens, images, and the streams to containers.
//!
//! ```text
//! client ──HTTPS──▶ cabana appliance ──vsock.sock──▶ agent ──▶ 127.0.0.1:port of its container
//!                     │ socket of the warden           ▲
//!                     └─▶ warden (here) ──starts───────┘
//! ```
//!
//! What is not there: KVM, the worker's executable, control groups and users. A guest that is saved is not (a golden is files of
//! the right length), and one that is restored is a new agent. Since all guests share this machine's loopback, each
//! gets a port of its own: the warden puts it into the container's description on its way to the agent.

mod acme;
mod azure_sdk;
mod bench;
mod bench_images;
mod client;
mod document;
mod door;
mod endings;
mod front_door;
mod guest;
mod pull;
mod pull_faults;
mod recipes;
mod tests;
mod warden;

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::config::{self, Checked, Overrides, Paths};
use crate::images::testing::{Layer, OciArchive};
use crate::telemetry::{FILTER_VARIABLE, FORMAT_VARIABLE};
use crate::warden::channel;
use crate::warden::protocol::{ApplianceSetup, Ending, Event, Task};
use client::{Admin, Client};
use warden::Warden;

/// Nothing in these tests takes as long, on any machine.
const DEADLINE: Duration = Duration::from_secs(120);
/// Where the programs are, if not beside this test program. `cargo dev bench` names those of the release.
const PROGRAMS_VARIABLE: &str = "CABANA_NATIVE_PROGRAMS";
/// The machine is promised many times: guests here take a thousandth of what they would.
const CONFIG: &str = "min_cooldown_seconds = 1\nspare_workers = 0\nparallel_starts = 16\nmemory_overcommit = 100\ncpu_overcommit = 1000\n[limits]\nconnections_per_address = 20000\nhead_seconds = 3600\nidle_seconds = 3600\n";
const CONFIG_FILE: &str = "cabana.toml";
const IMAGE: &str = "native";

/// What is run.
#[derive(Clone)]
struct Programs {
    cabana: PathBuf,
    agent: PathBuf,
    demo: PathBuf,
}

impl Programs {
    /// `None`, and a line that says so: one of them was not built.
    fn find(test: &str) -> Option<Self> {
        let folder = std::env::var_os(PROGRAMS_VARIABLE).map_or_else(
            || {
                // target/<profile>/deps/<this>
                let this = std::env::current_exe().unwrap();
                this.parent().unwrap().parent().unwrap().to_owned()
            },
            PathBuf::from,
        );
        let programs = Self {
            cabana: folder.join("cabana"),
            agent: folder.join("agent"),
            demo: folder.join("demo"),
        };
        for program in [&programs.cabana, &programs.agent, &programs.demo] {
            if !program.exists() {
                eprintln!("SKIPPED: {test}: there is no {}", program.display());
                return None;
            }
        }
        Some(programs)
    }
}

/// A running appliance.
struct Native {
    programs: Programs,
    process: Child,
    warden: Warden,
    address: SocketAddr,
    paths: Paths,
    claims: Arc<Mutex<Vec<Duration>>>,
    plain: Option<TcpListener>,
    root: TempDir,
    _run: TempDir,
}

impl Native {
    /// With a root of its own and the image that pools are made of. `None`: programs are missing.
    async fn start(test: &str) -> Option<Self> {
        Self::start_with(test, |_| Vec::new(), None, Extra::none).await
    }

    /// With more in its configuration, which may need the address of the front door.
    async fn start_configured(
        test: &str,
        extra: impl AsyncFnOnce(SocketAddr) -> Extra,
    ) -> Option<Self> {
        Self::start_with(test, |_| Vec::new(), None, extra).await
    }

    /// With a command in front of the appliance's own, which ends with that in its place.
    async fn start_behind(test: &str, command: impl FnOnce(&Paths) -> Vec<String>) -> Option<Self> {
        Self::start_with(test, command, None, Extra::none).await
    }

    /// With a log that goes into a file, as on a server, and is not looked at.
    async fn start_logging(test: &str, log: File) -> Option<Self> {
        Self::start_with(test, |_| Vec::new(), Some(log), Extra::none).await
    }

    async fn start_with(
        test: &str,
        command: impl FnOnce(&Paths) -> Vec<String>,
        log: Option<File>,
        extra: impl AsyncFnOnce(SocketAddr) -> Extra,
    ) -> Option<Self> {
        let programs = Programs::find(test)?;
        raise_descriptor_limit();
        // The state on a disk and the run folder in memory, as on a server.
        let root = tempfile::tempdir_in("/var/tmp").unwrap();
        let run = tempfile::tempdir_in("/dev/shm").unwrap();
        std::os::unix::fs::symlink(run.path(), root.path().join("run")).unwrap();
        let listener = bind();
        let address = listener.local_addr().unwrap();
        let Extra { text, plain } = extra(address).await;
        let text = format!("{CONFIG}{text}");
        std::fs::write(root.path().join(CONFIG_FILE), text).unwrap();
        let config = configure(root.path(), address);
        let paths = config.paths.clone();
        for folder in paths.kept().into_iter().chain([paths.run.as_path()]) {
            let made = std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder);
            made.unwrap();
        }
        let claims = Arc::default();
        let command = command(&paths);
        let listeners: Vec<_> = [&listener].into_iter().chain(&plain).collect();
        let (process, warden) = launch(&programs, command, config, &listeners, log, &claims);
        let this = Self {
            warden,
            programs,
            process,
            address,
            paths,
            claims,
            plain,
            root,
            _run: run,
        };
        this.until("it serves", || this.paths.admin_socket.exists())
            .await;
        this.import().await;
        Some(this)
    }

    /// Again on the same root, after its end.
    async fn restart(&mut self) {
        std::fs::remove_file(&self.paths.admin_socket).unwrap();
        let listener = bind();
        self.address = listener.local_addr().unwrap();
        let config = configure(self.root.path(), self.address);
        let listeners: Vec<_> = [&listener].into_iter().chain(&self.plain).collect();
        (self.process, self.warden) = launch(
            &self.programs,
            Vec::new(),
            config,
            &listeners,
            None,
            &self.claims,
        );
        self.until("it serves again", || self.paths.admin_socket.exists())
            .await;
    }

    async fn import(&self) {
        let archive = OciArchive::of(&[Layer::new().dir("data").finish()]);
        let path = format!("/images?transport=oci-archive&name={IMAGE}");
        let (status, answer) = self.admin().send("POST", &path, archive).await;
        assert_eq!(status, 200, "{answer}");
    }

    /// A pool of the demo server.
    fn body(&self, max_sessions: usize, ready_sessions: usize) -> Value {
        let container = json!({
            "name": "main",
            "image": IMAGE,
            "command": [self.programs.demo],
            "resources": { "cpu": 0.25, "memory": "0.5Gi", "ephemeralStorage": "1Gi" },
        });
        json!({ "location": "local", "properties": {
            "scaleConfiguration": {
                "maxConcurrentSessions": max_sessions,
                "readySessionInstances": ready_sessions,
            },
            "dynamicPoolConfiguration": { "lifecycleConfiguration": {
                "lifecycleType": "Timed", "cooldownPeriodInSeconds": 3600,
            } },
            "customContainerTemplate": {
                "containers": [container],
                // Each guest is given another one instead.
                "ingress": { "targetPort": 8080 },
            },
        } })
    }

    /// Makes it, or gives it another size.
    async fn pool(&self, name: &str, max_sessions: usize, ready_sessions: usize) {
        let body = self.body(max_sessions, ready_sessions).to_string();
        let (status, answer) = self.admin().send("PUT", &client::pool(name), body).await;
        assert!(matches!(status, 200 | 201), "{status}: {answer}");
    }

    async fn delete_pool(&self, name: &str) {
        let (status, answer) = self.admin().send("DELETE", &client::pool(name), "").await;
        assert_eq!(status, 204, "{answer}");
    }

    /// What the pool holds now.
    async fn counts(&self, name: &str) -> Value {
        let (status, answer) = self.admin().send("GET", &client::pool(name), "").await;
        assert_eq!(status, 200, "{answer}");
        answer["properties"]["sessionCounts"].clone()
    }

    /// Its sessions, as an operator sees them.
    async fn sessions(&self, name: &str) -> Value {
        let path = format!("{}/sessions", client::pool(name));
        let (status, answer) = self.admin().send("GET", &path, "").await;
        assert_eq!(status, 200, "{answer}");
        answer["value"].clone()
    }

    /// Waits until so many slots are ready, and none is on its way.
    async fn until_ready(&self, name: &str, ready: usize) {
        let begun = Instant::now();
        loop {
            let counts = self.counts(name).await;
            if counts["ready"] == ready && counts["pending"] == 0 && counts["draining"] == 0 {
                return;
            }
            assert!(
                begun.elapsed() < DEADLINE,
                "{ready} are not ready but {counts}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn admin(&self) -> Admin<'_> {
        Admin(&self.paths.admin_socket)
    }

    /// One that may ask for sessions of every pool.
    async fn client(&self) -> Client {
        let token = self.token("session-executor").await;
        Client::new(self.address, &self.paths.tls.join("ca.pem"), token)
    }

    /// For every pool.
    async fn token(&self, role: &str) -> String {
        let body = json!({ "role": role, "ttlSeconds": 3600 }).to_string();
        let (status, answer) = self.admin().send("POST", "/tokens", body).await;
        assert_eq!(status, 200, "{answer}");
        answer["token"].as_str().unwrap().to_owned()
    }

    /// How long each request has waited for its session, as the appliance's log has it, since this was last asked. Waits
    /// until there are `count`.
    async fn claims(&self, count: usize) -> Vec<Duration> {
        self.until("it has logged its requests", || {
            self.claims.lock().unwrap().len() >= count
        })
        .await;
        std::mem::take(&mut *self.claims.lock().unwrap())
    }

    /// Bytes that the appliance's process has for itself.
    fn memory(&self) -> u64 {
        let path = format!("/proc/{}/smaps_rollup", self.process.id());
        let text = std::fs::read_to_string(path).unwrap();
        let private = text.lines().filter(|line| line.starts_with("Private_"));
        let kib = private.map(|line| {
            line.split_whitespace()
                .nth(1)
                .unwrap()
                .parse::<u64>()
                .unwrap()
        });
        kib.sum::<u64>() << 10
    }

    async fn until(&self, what: &str, mut reached: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !reached() {
            assert!(begun.elapsed() < DEADLINE, "too long until {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends it in order.
    fn stop(mut self) -> (ExitStatus, Self) {
        self.warden.tell(&Event::End { how: Ending::Stop });
        let status = self.process.wait().unwrap();
        (status, self)
    }

    /// As a crash would.
    fn kill(mut self) -> Self {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What an appliance is configured with beside the ordinary.
struct Extra {
    text: String,
    /// Where challenges are answered without TLS.
    plain: Option<TcpListener>,
}

impl Extra {
    async fn none(_: SocketAddr) -> Self {
        Self {
            text: String::new(),
            plain: None,
        }
    }
}

/// What the appliance listens on.
fn bind() -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::net::listen(&listener, 1024).unwrap();
    listener
}

/// What the appliance is told.
fn configure(root: &Path, address: SocketAddr) -> Checked {
    let overrides = Overrides {
        unconfined: false,
        listen: Some(address.to_string()),
    };
    let config = config::load(root, Some(&root.join(CONFIG_FILE)), &overrides);
    config.unwrap()
}

/// Starts the appliance's process, with `command` in front of its own, and its warden.
fn launch(
    programs: &Programs,
    command: Vec<String>,
    config: Checked,
    listeners: &[&TcpListener],
    log: Option<File>,
    claims: &Arc<Mutex<Vec<Duration>>>,
) -> (Child, Warden) {
    let (ours, theirs) = channel::pair().unwrap();
    let words = command.into_iter().map(OsString::from);
    let words: Vec<OsString> = words.chain([programs.cabana.clone().into()]).collect();
    let mut process = Command::new(&words[0])
        .args(&words[1..])
        .arg("appliance")
        .env(FORMAT_VARIABLE, "json")
        .env_remove(FILTER_VARIABLE)
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(log.map_or_else(Stdio::piped, Stdio::from))
        .spawn()
        .unwrap();
    let setup = ApplianceSetup {
        config,
        uid: None,
        confined: true,
        cpu: Some("native".to_owned()),
        task: Task::Serve,
    };
    let setup = serde_json::to_vec(&setup).unwrap();
    let listeners: Vec<_> = listeners.iter().map(AsFd::as_fd).collect();
    channel::send(ours.as_fd(), &setup, &listeners, false).unwrap();
    if let Some(log) = process.stderr.take() {
        read_log(log, Arc::clone(claims));
    }
    (process, Warden::start(ours, programs.clone()))
}

/// Keeps how long requests waited for their sessions; shows what is not well.
fn read_log(log: ChildStderr, claims: Arc<Mutex<Vec<Duration>>>) {
    std::thread::spawn(move || {
        for line in BufReader::new(log).lines().map_while(Result::ok) {
            let entry: Value = serde_json::from_str(&line).unwrap_or_default();
            let claim = entry["fields"]["claim_ms"].as_str();
            if let Some(millis) = claim.and_then(|text| text.parse::<f64>().ok()) {
                claims
                    .lock()
                    .unwrap()
                    .push(Duration::from_secs_f64(millis / 1000.0));
            }
            if !matches!(entry["level"].as_str(), Some("INFO" | "DEBUG")) {
                eprintln!("{line}");
            }
        }
    });
}

/// As the warden does: a session takes a few descriptors in the appliance, which inherits the limit.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
}

/// Entries of a folder; none if it is not there.
fn entries(folder: &Path) -> usize {
    std::fs::read_dir(folder).map_or(0, Iterator::count)
}
