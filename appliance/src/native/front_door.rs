//! The benchmark `front_door`: what the front door costs, beside nginx as a TLS proxy and beside nothing.
//!
//! ```text
//! ours    wrk ──TLS──▶ cabana appliance ──vsock.sock──▶ agent ──TCP──▶ demo
//! nginx   wrk ──TLS──▶ nginx ─────────────────────────────TCP──▶ demo
//! direct  wrk ────────────────────────────────────────────TCP──▶ demo
//! ```
//!
//! The three take turns, so that what else happens on the machine meets all of them. Everything runs on the same processors, so a
//! rate is what is left of them beside load generator and upstream; processor time per request is free of that.
//! `wrk` makes the load because it takes less of the processors than anything on tokio would: its share is measured, too.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::*;

const POOL: &str = "door";
const ROUNDS: usize = 3;
/// One measurement. `wrk` takes whole seconds.
const SECONDS: &str = "2";
const CONNECTIONS: [usize; 3] = [1, 16, 256];
/// Name, path, and what the length of a body is counted in; short ones are counted as they are.
const BODIES: [(&str, &str, Option<f64>); 2] = [
    ("small", "/", None),
    ("1 MiB", "/download?bytes=1048576", Some(1_048_576.0)),
];
/// Where the figures are written, as JSON.
const OUTPUT_VARIABLE: &str = "CABANA_BENCH_OUTPUT";
/// Instead of all of [`CONNECTIONS`]: for a look at one of them.
const CONNECTIONS_VARIABLE: &str = "CABANA_BENCH_CONNECTIONS";
/// What `wrk` prints at its end. It counts in microseconds.
const REPORT: &str = r#"
done = function(summary, latency)
    local errors = summary.errors
    print(string.format('{"requests":%d,"bytes":%d,"micros":%d,"p50":%d,"p99":%d,"errors":%d}',
        summary.requests, summary.bytes, summary.duration, latency:percentile(50), latency:percentile(99),
        errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"#;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Ours,
    Nginx,
    Direct,
}

const WAYS: [Way; 3] = [Way::Ours, Way::Nginx, Way::Direct];

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Nginx => "nginx",
            Self::Direct => "direct",
        }
    }
}

/// What one run of `wrk` has found.
struct Run {
    rate: f64,
    p50: f64,
    p99: f64,
    /// Of the proxy, in microseconds per request.
    cpu: f64,
    /// Of the agent, which is the guest's.
    agent: f64,
    /// How much of one processor the load generator took.
    load: f64,
}

struct Stage {
    native: Native,
    nginx: Nginx,
    token: String,
    /// The port of the session's container.
    port: u16,
    agent: u32,
    report: tempfile::NamedTempFile,
}

impl Stage {
    async fn set(log: &Path) -> Self {
        let log = std::fs::File::create(log).unwrap();
        let native = Native::start_logging("front_door", log)
            .await
            .expect("all programs are there");
        native.pool(POOL, 1, 0).await;
        let client = native.client().await;
        let answer = client.get(POOL, "/env", "user").await.unwrap();
        let environment: Value = serde_json::from_slice(&answer.body).unwrap();
        let port = environment["PORT"].as_str().unwrap().parse().unwrap();
        let agents = children_of(std::process::id(), "agent");
        let [agent] = agents[..] else {
            panic!("there is one session, and these agents: {agents:?}")
        };
        let report = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&report, REPORT).unwrap();
        Self {
            nginx: Nginx::start(port, &native.paths.tls),
            token: native.token("session-executor").await,
            native,
            port,
            agent,
            report,
        }
    }

    fn run(&self, way: Way, connections: usize, path: &str, unit: Option<f64>) -> Run {
        let pool = client::endpoint(POOL);
        let mark = if path.contains('?') { '&' } else { '?' };
        let url = match way {
            Way::Ours => format!(
                "https://localhost:{}{pool}{path}{mark}identifier=user",
                self.native.address.port()
            ),
            Way::Nginx => format!("https://localhost:{}{path}", self.nginx.port),
            Way::Direct => format!("http://127.0.0.1:{}{path}", self.port),
        };
        let proxies = match way {
            Way::Ours => vec![self.native.process.id()],
            Way::Nginx => children_of(self.nginx.process.id(), "nginx"),
            Way::Direct => Vec::new(),
        };
        let proxy = || proxies.iter().map(|pid| spent(*pid, OWN)).sum::<Duration>();
        let before = (
            proxy(),
            spent(self.agent, OWN),
            spent(std::process::id(), WAITED),
        );
        let output = Command::new("wrk")
            .args(["--threads", "1", "--duration", SECONDS, "--connections"])
            .arg(connections.to_string())
            .arg("--script")
            .arg(self.report.path())
            .args(["--timeout", "30s", "--header"])
            .arg(format!("Authorization: Bearer {}", self.token))
            .arg(&url)
            .output()
            .expect("wrk is installed");
        let text = String::from_utf8_lossy(&output.stdout);
        let last = text.lines().last().unwrap_or_default();
        let found: Value = serde_json::from_str(last)
            .unwrap_or_else(|_| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)));
        let figure = |name: &str| found[name].as_f64().unwrap();
        // What is under way at the end counts as well: it may be most of it.
        let requests = unit.map_or_else(|| figure("requests"), |unit| figure("bytes") / unit);
        let micros = figure("micros");
        assert!(
            requests > 0.0 && figure("errors") == 0.0,
            "{}: {last}",
            way.name()
        );
        let each = |now: Duration, then: Duration| (now - then).as_secs_f64() * 1e6 / requests;
        Run {
            rate: requests / micros * 1e6,
            p50: figure("p50"),
            p99: figure("p99"),
            cpu: each(proxy(), before.0),
            agent: each(spent(self.agent, OWN), before.1),
            load: (spent(std::process::id(), WAITED) - before.2).as_secs_f64() * 1e6 / micros,
        }
    }

    /// All three in turns; the median of each figure.
    fn compare(&self, connections: usize, path: &str, unit: Option<f64>) -> Value {
        let mut runs = WAYS.map(|way| (way, Vec::new()));
        for _ in 0..ROUNDS {
            for (way, runs) in &mut runs {
                runs.push(self.run(*way, connections, path, unit));
            }
        }
        let figures = |runs: &[Run]| {
            let median = |of: fn(&Run) -> f64| {
                let mut all: Vec<f64> = runs.iter().map(of).collect();
                all.sort_unstable_by(f64::total_cmp);
                all[all.len() / 2]
            };
            json!({
                "perSecond": median(|run| run.rate),
                "p50Micros": median(|run| run.p50),
                "p99Micros": median(|run| run.p99),
                "cpuMicros": median(|run| run.cpu),
                "agentCpuMicros": median(|run| run.agent),
                "loadCpus": median(|run| run.load),
            })
        };
        let named = runs
            .iter()
            .map(|(way, runs)| (way.name().to_owned(), figures(runs)));
        Value::Object(named.collect())
    }
}

/// nginx with the appliance's own certificate, as many workers as the appliance has threads, and a line per request in a file.
struct Nginx {
    process: Child,
    port: u16,
    _folder: TempDir,
}

impl Nginx {
    fn start(upstream: u16, tls: &Path) -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = port.local_addr().unwrap().port();
        let cpus = std::thread::available_parallelism().unwrap();
        let (at, tls) = (folder.path().display(), tls.display());
        let mut text = String::new();
        write!(
            text,
            "daemon off; worker_processes {cpus}; pid {at}/pid; error_log {at}/error.log;\n\
             events {{ worker_connections 4096; }}\n\
             http {{\n\
               access_log {at}/access.log; keepalive_requests 1000000000; tcp_nodelay on;\n\
               client_body_temp_path {at}/body; proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/fastcgi;\n\
               uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;\n\
               upstream app {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 1000000000; }}\n\
               server {{\n\
                 listen 127.0.0.1:{port} ssl backlog=1024;\n\
                 ssl_certificate {tls}/server.pem; ssl_certificate_key {tls}/server.key;\n\
                 ssl_protocols TLSv1.2 TLSv1.3; ssl_session_cache shared:tls:1m;\n\
                 location / {{\n\
                   proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_buffering off; proxy_buffer_size 64k; proxy_buffers 4 64k; proxy_busy_buffers_size 128k;\n\
                   proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header Authorization \"\";\n\
                 }}\n\
               }}\n\
             }}\n"
        )
        .unwrap();
        let file = folder.path().join("nginx.conf");
        std::fs::write(&file, text).unwrap();
        let mut process = Command::new("nginx")
            .arg("-c")
            .arg(&file)
            .arg("-p")
            .arg(folder.path())
            .arg("-e")
            .arg(folder.path().join("error.log"))
            .stdin(Stdio::null())
            .spawn()
            .expect("nginx is installed");
        let begun = Instant::now();
        while std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            assert!(begun.elapsed() < DEADLINE, "nginx does not accept");
            assert!(process.try_wait().unwrap().is_none(), "nginx has ended");
            std::thread::sleep(Duration::from_millis(5));
        }
        Self {
            process,
            port,
            _folder: folder,
        }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Its master ends its workers, which a kill would leave behind.
        if let Some(pid) = rustix::process::Pid::from_raw(self.process.id().cast_signed()) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.process.wait();
    }
}

/// Processes of this name that `parent` has started.
fn children_of(parent: u32, name: &str) -> Vec<u32> {
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| {
        stat(*pid).is_some_and(|(comm, fields)| comm == name && fields[1] == parent.to_string())
    })
    .collect()
}

/// `utime` and `stime` of proc(5), counted from the state, which is the first after the name.
const OWN: usize = 11;
/// `cutime` and `cstime`: of the children that have ended.
const WAITED: usize = 13;

/// What proc(5) counts in, on every Linux of this architecture.
const TICK_MILLIS: u64 = 10;

/// Processor time, to the hundredth of a second.
fn spent(pid: u32, field: usize) -> Duration {
    let (_, fields) = stat(pid).expect("the process is there");
    let ticks = |at: usize| fields[at].parse::<u64>().unwrap();
    Duration::from_millis((ticks(field) + ticks(field + 1)) * TICK_MILLIS)
}

fn stat(pid: u32) -> Option<(String, Vec<String>)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (head, fields) = text.rsplit_once(") ")?;
    let (_, comm) = head.split_once('(')?;
    let fields = fields.split_whitespace().map(str::to_owned).collect();
    Some((comm.to_owned(), fields))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: cargo dev bench --only front_door"]
async fn front_door() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let stage = Stage::set(&folder.path().join("log")).await;
    let only = std::env::var(CONNECTIONS_VARIABLE).ok();
    let only = only.map(|text| text.parse::<usize>().unwrap());
    let mut rows = Vec::new();
    for connections in CONNECTIONS {
        if only.is_some_and(|only| only != connections) {
            continue;
        }
        for (body, path, unit) in BODIES {
            let mut row = stage.compare(connections, path, unit);
            row["connections"] = connections.into();
            row["body"] = body.into();
            rows.push(row);
        }
    }
    let result = json!({ "seconds": SECONDS, "rounds": ROUNDS, "rows": rows });
    match std::env::var_os(OUTPUT_VARIABLE) {
        Some(path) => std::fs::write(path, result.to_string()).unwrap(),
        None => println!("{result:#}"),
    }
}
