//! One running `cabana serve`, with a root and a port of its own.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use std::{fs, thread};

use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

use crate::client::{Answer, Client, full, within};
use crate::golden::Golden;
use crate::log::Log;
use crate::pool::{Pool, PoolBuilder, Session};
use crate::process::Process;
use crate::traces::Traces;
use crate::{Cli, artifacts, process, traces};

/// The appliance unpacks the guest kernel first, which an emulated processor does slowly.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Longer than the appliance gives its sessions, so that its own deadline is seen to work.
const STOP_LIMIT: Duration = Duration::from_secs(45);
/// Longer than the guest gets for an orderly end (`wire::timing::HOST_KILL_AFTER`).
const GONE_LIMIT: Duration = Duration::from_secs(30);
/// What a process that is killed may take to be gone; a worker gives its guest's memory back first.
const KILLED_LIMIT: Duration = Duration::from_secs(20);
/// Making a golden: a boot, a snapshot and a first fork, perhaps of two goldens at once.
const GOLDEN_LIMIT: Duration = Duration::from_secs(90);
/// A second is the least that the configuration takes; the tests have no five minutes. Workers that are made ahead
/// come and go by themselves, and these tests look at everything that does: without them each session has one worker.
/// The lab is small, and its pools are of the default size.
pub const CONFIG: &str =
    "min_cooldown_seconds = 1\nspare_workers = 0\nmemory_overcommit = 100\ncpu_overcommit = 100\n";
/// With everything as it is by default, spare workers among it.
pub const WITH_SPARES: &str =
    "min_cooldown_seconds = 1\nmemory_overcommit = 100\ncpu_overcommit = 100\n";
/// The same with no more spare workers than it takes to see what becomes of them.
pub const WITH_FEW_SPARES: &str =
    "min_cooldown_seconds = 1\nspare_workers = 2\nmemory_overcommit = 100\ncpu_overcommit = 100\n";
/// The pool whose one session all forwarding tests share: each boot takes seconds.
const SHARED_POOL: &str = "shared";

/// Appliances that run now, for the harness: what they say belongs to every failure, and none may outlive it.
static RUNNING: Mutex<Vec<Running>> = Mutex::new(Vec::new());

struct Running {
    pid: u32,
    root: PathBuf,
    log: Log,
}

/// A running appliance. [`TestAppliance::stop`] is the test of its end; dropping it only cleans up.
pub struct TestAppliance {
    root: TempDir,
    cli: Cli,
    serve: Child,
    log: Log,
    address: SocketAddr,
    runtime: Runtime,
    token: OnceLock<String>,
    demo: OnceLock<String>,
    pools: Mutex<Vec<String>>,
    /// The host before the appliance was started.
    before: Traces,
    /// The host with the appliance running and no session but the shared one.
    idle: Mutex<Traces>,
}

impl TestAppliance {
    pub fn start() -> Self {
        Self::start_with(CONFIG)
    }

    /// `config` is the text of `cabana.toml`.
    pub fn start_with(config: &str) -> Self {
        Self::start_by(config, |_, _| {})
    }

    /// The same with another command, which `change` makes of the usual one; it is told the root.
    pub fn start_by(config: &str, change: impl FnOnce(&mut Command, &Path)) -> Self {
        let root = new_root();
        let folder = root.path().join("etc/cabana");
        fs::create_dir_all(&folder).expect("the root is ours");
        fs::write(folder.join("cabana.toml"), config).expect("the root is ours");
        let before = Traces::take(root.path());
        let address = free_address();
        let (serve, log) = spawn(root.path(), address, change);
        let host = Self {
            cli: Cli::with_root(root.path()),
            root,
            serve,
            log,
            address,
            runtime: Runtime::new().expect("an async runtime starts"),
            token: OnceLock::new(),
            demo: OnceLock::new(),
            pools: Mutex::default(),
            before,
            idle: Mutex::default(),
        };
        host.wait_until_ready();
        host
    }

    /// Starts it again on the same root, after it has ended.
    pub fn restart(&mut self) {
        running().retain(|running| running.pid != self.serve.id());
        (self.serve, self.log) = spawn(self.root.path(), self.address, |_, _| {});
        self.wait_until_ready();
    }

    fn wait_until_ready(&self) {
        let listening = format!("listen={} ", self.address);
        self.wait_for_line(0, START_LIMIT, "that it is serving", |line| {
            line.contains("serving") && line.contains(&listening)
        });
        *lock(&self.idle) = self.traces();
    }

    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// The warden's process id.
    pub fn pid(&self) -> u32 {
        self.serve.id()
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn cli(&self) -> &Cli {
        &self.cli
    }

    pub fn log(&self) -> &Log {
        &self.log
    }

    pub fn client(&self) -> Client {
        Client::new(self.address, &self.root().join("var/lib/cabana/tls/ca.pem"))
    }

    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// A token for all pools.
    pub fn token(&self) -> &str {
        self.token
            .get_or_init(|| self.cli.ok(&["token", "create"]).trim_end().to_owned())
    }

    /// One request on the admin socket.
    pub fn admin(&self, method: Method, target: &str, body: &Value) -> Answer {
        let socket = self.root().join("run/cabana/admin.sock");
        let request = Request::builder()
            .method(method)
            .uri(target)
            .header(HOST, "localhost")
            .header(CONTENT_TYPE, "application/json")
            .body(full(body.to_string()))
            .expect("the parts of the request are well formed");
        self.block_on(async {
            let stream = UnixStream::connect(&socket)
                .await
                .unwrap_or_else(|e| panic!("cannot connect to {}: {e}", socket.display()));
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
                .await
                .expect("an HTTP/1.1 connection needs no handshake");
            tokio::spawn(connection);
            let answer = within(
                "an answer of the admin socket",
                sender.send_request(request),
            );
            let answer = answer.await.expect("the request is answered");
            Answer::collect(answer).await
        })
    }

    /// The name of the demo image, imported at first use.
    pub fn demo_image(&self) -> &str {
        self.demo.get_or_init(|| {
            let source = format!("oci-archive:{}", artifacts::demo_image().display());
            self.cli.ok(&["image", "import", &source, "--name", "demo"]);
            "demo".to_owned()
        })
    }

    /// A pool to be made. What a test makes and does not delete is deleted after it.
    pub fn pool(&self, name: &str) -> PoolBuilder<'_> {
        PoolBuilder::new(self, name)
    }

    /// A session that is already there. Tests that use it must leave it as it was.
    pub fn shared_session(&self) -> Session<'_> {
        if !lock(&self.pools).iter().any(|name| name == SHARED_POOL) {
            let before = self.traces();
            let pool = self
                .pool(SHARED_POOL)
                .with(&["--cooldown-period", "3600"])
                .create();
            pool.session("shared").boot_id();
            lock(&self.idle).accept(&before, &self.traces());
        }
        self.existing_pool(SHARED_POOL).session("shared")
    }

    /// A pool that was there before.
    pub fn existing_pool(&self, name: &str) -> Pool<'_> {
        Pool::existing(self, name)
    }

    pub(crate) fn pool_was_made(&self, name: &str) {
        lock(&self.pools).push(name.to_owned());
    }

    pub(crate) fn pool_was_deleted(&self, name: &str) {
        lock(&self.pools).retain(|made| made != name);
    }

    pub fn traces(&self) -> Traces {
        Traces::take(self.root())
    }

    /// Waits until the appliance has logged a line, from `position` of the log on.
    #[track_caller]
    pub fn wait_for_line(
        &self,
        position: usize,
        limit: Duration,
        what: &str,
        fits: impl Fn(&str) -> bool,
    ) -> String {
        match self.log.wait_for(position, limit, fits) {
            Ok(line) => line,
            Err(why) => panic!(
                "waiting for the appliance to say {what}: {why}\n{}",
                self.report(position)
            ),
        }
    }

    /// After a failure: deletes the pools and takes what else there is for granted.
    pub fn forget_leftovers(&self) {
        self.delete_pools();
        *lock(&self.idle) = self.traces();
    }

    fn delete_pools(&self) {
        let left: Vec<String> = lock(&self.pools)
            .iter()
            .filter(|name| *name != SHARED_POOL)
            .cloned()
            .collect();
        for name in left {
            // Once: a pool that cannot be deleted must not fail all tests after this one.
            self.pool_was_deleted(&name);
            self.existing_pool(&name).delete();
        }
    }

    /// Waits until a session of this pool has ended and nothing of it is left.
    #[track_caller]
    pub fn wait_until_gone(&self, pool: &Pool, position: usize) {
        let pool = format!("pool={} ", pool.name);
        self.wait_for_line(position, GONE_LIMIT, "that the session is gone", |line| {
            line.contains("session gone") && line.contains(&pool)
        });
    }

    /// All its processes, also those that an earlier warden has started.
    pub fn processes(&self) -> Vec<Process> {
        process::of(self.root())
    }

    /// The process that talks to the world.
    pub fn appliance(&self) -> Process {
        let processes = self.processes().into_iter();
        let mut appliances = processes.filter(|process| process.role == "appliance");
        appliances.next().expect("there is an appliance process")
    }

    /// The workers that have a guest now, without that of the shared session.
    pub fn workers(&self) -> Vec<Process> {
        let idle = lock(&self.idle);
        let processes = self.processes().into_iter();
        processes
            .filter(|process| process.has_guest() && !idle.has(process))
            .collect()
    }

    /// The workers that were made ahead and have no guest yet.
    pub fn spares(&self) -> Vec<Process> {
        let processes = self.processes().into_iter();
        processes
            .filter(|process| process.role == "worker" && !process.has_guest())
            .collect()
    }

    /// The goldens that lie ready.
    pub fn goldens(&self) -> Vec<Golden> {
        Golden::all(self.root())
    }

    /// Waits until a golden has been made, from `position` of the log on.
    #[track_caller]
    pub fn wait_for_golden(&self, position: usize) {
        self.wait_for_line(position, GOLDEN_LIMIT, "that a golden is made", |line| {
            line.contains("golden made")
        });
    }

    /// What the guests' kernels have written, by worker.
    pub fn consoles(&self) -> Vec<String> {
        let files = files_below(&self.root().join("run/cabana/workers"));
        let consoles = files
            .iter()
            .filter(|file| file.extension().is_some_and(|extension| extension == "log"));
        consoles
            .map(|file| String::from_utf8_lossy(&fs::read(file).unwrap_or_default()).into_owned())
            .collect()
    }

    /// Deletes the pools that a test has left, and asserts that nothing else is left of it.
    pub fn assert_idle(&self) {
        self.delete_pools();
        let left = self.traces().since(&lock(&self.idle));
        assert!(
            left.is_empty(),
            "without a session there is still: {left:#?}"
        );
    }

    /// Asks for an orderly end with all sessions, as Ctrl-C does, and asserts that it is one.
    pub fn stop(mut self) {
        self.end_in_order();
        self.assert_nothing_is_left();
    }

    /// Ends it with all sessions, and it can be started again.
    pub fn end_in_order(&mut self) {
        self.end(Signal::INT);
    }

    /// Asks for an orderly end that leaves the sessions to the next start, as systemd does, and asserts that it is one.
    pub fn detach(&mut self) {
        self.end(Signal::TERM);
    }

    fn end(&mut self, signal: Signal) {
        self.signal(signal);
        let status = self.wait();
        assert_eq!(
            status.code(),
            Some(0),
            "after {signal:?} the appliance ended with {status}\n{}",
            self.report(0)
        );
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid())
            .ok()
            .and_then(rustix::process::Pid::from_raw)
            .expect("a pid is positive");
        rustix::process::kill_process(pid, signal)
            .expect("the appliance is our child and not reaped");
    }

    /// Waits for the end of the warden, however it comes.
    pub fn wait(&mut self) -> ExitStatus {
        let pidfd = process::open(self.pid()).expect("the appliance is our child and not reaped");
        let ended = process::ends_within(&pidfd, STOP_LIMIT);
        assert!(
            ended,
            "the appliance still runs {STOP_LIMIT:?} after it was told to end\n{}",
            self.report(0)
        );
        self.serve.wait().expect("the appliance is our child")
    }

    /// Asserts that the host is as it was before the start. Folders that keep state stay.
    pub fn assert_nothing_is_left(&self) {
        let left = self.traces().since(&self.before);
        assert!(
            left.is_empty(),
            "after its end there is still: {left:#?}\n{}",
            self.report(0)
        );
    }

    /// The log from `position` on, and what the guests wrote to their consoles.
    pub fn report(&self, position: usize) -> String {
        let mut report = log_text(self.pid(), &self.log, position);
        for folder in ["run/cabana/workers", "var/lib/cabana/logs"] {
            for file in files_below(&self.root().join(folder)) {
                if file.extension().is_some_and(|extension| extension == "log") {
                    let text = fs::read(&file).unwrap_or_default();
                    report += &format!(
                        "--- {}\n{}\n",
                        file.display(),
                        String::from_utf8_lossy(&text)
                    );
                }
            }
        }
        report
    }
}

impl Drop for TestAppliance {
    fn drop(&mut self) {
        if thread::panicking() {
            println!("{}", self.report(0));
        }
        running().retain(|running| running.pid != self.serve.id());
        // The warden first, so that it starts nothing again. Fails when it has ended already, which is the usual case.
        let _ = self.serve.kill();
        let _ = self.serve.wait();
        // Its workers outlive it.
        end_all(self.root());
        if thread::panicking() {
            // What else there is of it, cgroups and sockets: it has failed, and shall not be why the leak audit fails, too.
            let _ = self.cli.run(&["stop"]);
        }
    }
}

fn spawn(
    root: &Path,
    address: SocketAddr,
    change: impl FnOnce(&mut Command, &Path),
) -> (Child, Log) {
    let mut command = serve_command(root, address);
    change(&mut command, root);
    let mut serve = command
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let log = Log::follow(serve.stderr.take().expect("it is a pipe"));
    running().push(Running {
        pid: serve.id(),
        root: root.to_owned(),
        log: log.clone(),
    });
    (serve, log)
}

/// Kills whatever of an appliance is still there.
fn end_all(root: &Path) {
    let processes = process::of(root);
    // All at once first, so that they die side by side; wardens before what they could start again.
    for role in ["serve", "appliance", "image-worker", "worker"] {
        let with_role = processes.iter().filter(|process| process.role == role);
        with_role.for_each(Process::kill);
    }
    for process in processes {
        process.assert_ends_within(KILLED_LIMIT);
    }
}

/// `cabana serve`, ready to be started.
pub fn serve_command(root: &Path, listen: SocketAddr) -> Command {
    let mut command = bare_serve_command(root);
    command.arg("--listen").arg(listen.to_string());
    command
}

/// The same, with everything else from the configuration.
pub fn bare_serve_command(root: &Path) -> Command {
    let mut command = Command::new(artifacts::cabana());
    command.arg("serve").arg("--root").arg(root);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// A folder that other users may enter, since the appliance becomes one of them.
pub fn new_root() -> TempDir {
    use std::os::unix::fs::PermissionsExt;
    let mut builder = tempfile::Builder::new();
    builder
        .prefix("cabana-")
        .permissions(fs::Permissions::from_mode(0o755));
    let root = builder.tempdir().expect("a temporary folder can be made");
    traces::root_was_made(root.path());
    root
}

/// A loopback address that nobody listens on.
pub fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback is up");
    let address = listener.local_addr().expect("the listener is bound");
    traces::port_was_chosen(address.port());
    address
}

/// Whether a status is the end by this signal.
pub fn ended_by(status: ExitStatus, signal: Signal) -> bool {
    status.signal() == Some(signal.as_raw())
}

/// Kills every appliance that still runs and answers what they have logged. For a test that hangs.
pub fn abandon_all() -> String {
    let mut report = String::new();
    for Running { pid, root, log } in running().drain(..) {
        end_all(&root);
        report += &log_text(pid, &log, 0);
    }
    report
}

fn log_text(pid: u32, log: &Log, position: usize) -> String {
    format!(
        "--- log of the appliance (pid {pid})\n{}\n",
        log.since(position).join("\n")
    )
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files.extend(files_below(&entry.path())),
            Ok(kind) if kind.is_file() => files.push(entry.path()),
            _ => {}
        }
    }
    files
}

fn running() -> MutexGuard<'static, Vec<Running>> {
    lock(&RUNNING)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
