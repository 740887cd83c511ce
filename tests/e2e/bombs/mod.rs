//! A session that takes all it can get of one thing. It gets what its pool allows, and its neighbours are served as before.
//!
//! # What is measured
//! Times in the lab are those of one emulated processor, so each is compared with the same a moment before. A bomb has the default pool's quarter of a
//! processor: together with the neighbour it wants less than there is, as on a host that is not oversubscribed. Where more is
//! wanted than there is, shares decide (`cpu.rs`), and nobody is promised the time of a quiet host.

mod cpu;
mod disk;
mod floods;
mod memory;

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use e2e::client::{Answer, Connection, empty};
use e2e::harness::Test;
use e2e::pool::{Pool, Session};
use e2e::{TestAppliance, artifacts, harness};
use hyper::Method;
use rustix::fs::{FallocateFlags, fallocate};
use serde_json::Value;

pub const TESTS: &[&[Test]] = &[cpu::TESTS, memory::TESTS, floods::TESTS, disk::TESTS];

/// The demo server's own program, which is also the bombs.
const PROGRAM: &str = "/proc/self/exe";
/// Requests of which the slowest but one counts: their 99th percentile.
const REQUESTS: usize = 100;
/// Times that they are asked for, without a bomb and with it, at most.
const ROUNDS: usize = 4;
/// The promise: no more than so many times what it was before.
const FACTOR: u32 = 2;
/// Below this nothing counts as slow. A quarter of a processor is 25 ms in each period of 100 ms (`cpu.max`), and with one processor
/// they may lie in front of a request as a whole; a second one would have taken it. Measured, and not assumed: requests of a few
/// milliseconds would otherwise be judged by whether such a slice happened to be in their way.
const ONE_SLICE: Duration = Duration::from_millis(25);
/// A quarter of a processor, as pools have it by default.
const QUARTER: &[&str] = &["--cpu", "0.25"];

/// A session that is asked all the time.
struct Neighbour<'a> {
    host: &'a TestAppliance,
    session: Session<'a>,
    connection: Connection,
    boot: String,
}

impl<'a> Neighbour<'a> {
    fn new(host: &'a TestAppliance, session: Session<'a>) -> Self {
        Self {
            host,
            boot: session.boot_id(),
            connection: host.block_on(session.client().http1()),
            session,
        }
    }

    fn ask(&mut self) -> Duration {
        let request = self.session.request(Method::GET, "/").body(empty());
        let request = request.expect("the parts of the request are well formed");
        let begun = Instant::now();
        let answer = self.host.block_on(async {
            let answer = self.connection.send(request).await;
            Answer::collect(answer).await
        });
        let took = begun.elapsed();
        assert_eq!(answer.status, 200, "{answer:#?}");
        took
    }

    /// The 99th percentile of its answers' times.
    fn p99(&mut self) -> Duration {
        let mut times: Vec<Duration> = (0..REQUESTS).map(|_| self.ask()).collect();
        times.sort();
        let median = times[REQUESTS / 2];
        let p99 = times[REQUESTS * 99 / 100 - 1];
        println!(
            "neighbour: p50 {median:?}, p99 {p99:?}, max {:?}",
            times[REQUESTS - 1]
        );
        p99
    }

    /// It is asked with the bomb held still and with the bomb at work, in turn: so the two are measured a moment apart, and what else the
    /// machine does that emulates this one is in both. Once more where that was not enough; what the bomb does stays. Answers what share of a processor the
    /// bomb had meanwhile.
    #[track_caller]
    fn assert_as_fast_beside(&mut self, bomb: &Leaf, what: &str) -> f64 {
        let mut slow = Vec::new();
        for _ in 0..ROUNDS {
            bomb.hold(true);
            let quiet = self.p99();
            bomb.hold(false);
            let (since, before) = (Instant::now(), bomb.used());
            let beside = self.p99();
            let share = (bomb.used() - before).as_secs_f64() / since.elapsed().as_secs_f64();
            if beside <= (quiet * FACTOR).max(quiet + ONE_SLICE) {
                self.assert_same_guest();
                return share;
            }
            slow.push((quiet, beside));
        }
        panic!("p99 without {what} and beside it: {slow:?}");
    }

    #[track_caller]
    fn assert_same_guest(&self) {
        assert_eq!(self.session.boot_id(), self.boot, "it is another guest");
    }
}

/// What the host counts of a session's worker.
pub struct Leaf(PathBuf);

impl Leaf {
    pub fn of(pool: &Pool, identifier: &str) -> Self {
        let look = pool.look(identifier);
        let look = look.unwrap_or_else(|| panic!("{identifier} has no session"));
        let worker = look["worker"].as_str().expect("a session has a worker");
        Self(PathBuf::from("/sys/fs/cgroup/cabana").join(worker.replace('-', "")))
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn read(&self, file: &str) -> String {
        let path = self.file(file);
        fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// Whether the session is there.
    fn exists(&self) -> bool {
        self.0.join("cgroup.procs").exists()
    }

    fn number(&self, file: &str) -> u64 {
        let text = self.read(file);
        let number = text.trim().parse();
        number.unwrap_or_else(|e| panic!("{file} is {text:?}: {e}"))
    }

    /// Of a file with a name and a number in each line.
    fn count(&self, file: &str, name: &str) -> u64 {
        let text = self.read(file);
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        let found = lines.find(|(found, _)| *found == name);
        let (_, count) = found.unwrap_or_else(|| panic!("no {name} in {file}: {text}"));
        count.parse().expect("it counts")
    }

    /// Stops all of it where it is, or lets it go on.
    fn hold(&self, held: bool) {
        let text = if held { "1" } else { "0" };
        fs::write(self.0.join("cgroup.freeze"), text).expect("the test is root, as the warden is");
    }

    /// All processor time that it has had.
    fn used(&self) -> Duration {
        Duration::from_micros(self.count("cpu.stat", "usage_usec"))
    }
}

/// Runs the demo program in the session with these arguments, and answers what it printed.
#[track_caller]
fn run(session: &Session, arguments: &[&str]) -> Value {
    session.exec(&[&[PROGRAM], arguments].concat())
}

/// The same of one that does not end by itself: it runs until its session ends.
#[track_caller]
fn start(session: &Session, arguments: &[&str]) {
    let started = run(session, &[&["start"], arguments].concat());
    assert_eq!(started["code"], 0, "{started}");
}

/// A fork's memory is that of its golden until it is written to, and what the golden has no pages of is a hole in its file. The first fork that comes
/// to a hole has a page of it in the host's page cache, which counts as its own, is given back when there is need, and takes no room on a
/// disk. The lab's disk is memory, where such a page stays and takes room: so all of them are there before somebody takes all there is.
fn fill_holes(host: &TestAppliance) {
    for golden in host.goldens() {
        let file = File::options().write(true).open(golden.file("memory"));
        let file = file.expect("the test is root");
        let bytes = file.metadata().expect("it is open").len();
        fallocate(&file, FallocateFlags::empty(), 0, bytes).expect("there is room");
    }
}

/// Whether the host limits workers; a developer's machine need not.
fn is_limited() -> bool {
    let limited = artifacts::kvm_is_required() || rustix::process::geteuid().is_root();
    if !limited {
        harness::skipped("without root there are no limits");
    }
    limited
}
