//! What sessions and ready slots are after the appliance was killed, restarted or upgraded: what they were before.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use e2e::appliance::ended_by;
use e2e::cli::Ran;
use e2e::process::Process;
use e2e::{Pool, Session, TestAppliance, artifacts};
use hyper::Method;
use rustix::process::Signal;
use serde_json::Value;

e2e::tests! {
    Own: [
        session_answers_with_its_memory_and_a_ready_slot_is_handed_out_after_the_appliance_process_was_killed,
        session_and_ready_slot_are_there_after_warden_and_appliance_were_killed,
        session_and_ready_slot_are_there_after_an_orderly_restart_and_an_open_request_is_answered,
        idle_session_ends_at_its_time_although_the_appliance_was_killed_meanwhile,
        no_session_is_lost_and_none_is_mixed_up_when_the_appliance_is_killed_under_load,
        host_on_which_no_worker_survived_starts_without_sessions_and_fills_its_pools,
    ];
}

/// What filling a pool may take on an emulated processor.
const LIMIT: Duration = Duration::from_secs(90);
/// From the end of one appliance process until another one serves, on an emulated processor.
const BACK_LIMIT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(200);
const POOL: &str = "kept";

/// A pool with a session that holds something in its memory, and a slot that is ready.
struct Kept {
    boot: String,
    workers: Vec<Process>,
    /// The worker of the ready slot.
    ready: String,
}

const NOTE: &str = "what only this process knows";

fn create(host: &TestAppliance) -> Pool<'_> {
    let flags = ["--ready-sessions", "1", "--max-sessions", "4"];
    host.pool(POOL)
        .with(&flags)
        .with(&["--cooldown-period", "600"])
        .create()
}

fn kept(host: &TestAppliance) -> Kept {
    let pool = create(host);
    let session = pool.session("user-1");
    put_note(&session, NOTE);
    wait_for_counts(host, 1, 1);
    Kept {
        boot: session.boot_id(),
        workers: guests(host),
        ready: ready_worker(host),
    }
}

fn put_note(session: &Session, text: &str) {
    let answer = session.call(Method::PUT, "/stamp", text.to_owned());
    assert_eq!(answer.status, 200, "{answer:#?}");
}

fn note(session: &Session) -> String {
    let stamp = session.get("/stamp").json();
    stamp["note"].as_str().unwrap().to_owned()
}

/// Waits until the pool has what is said here, and nothing on its way.
#[track_caller]
fn wait_for_counts(host: &TestAppliance, ready: u64, allocated: u64) {
    let begun = Instant::now();
    loop {
        let shown = host.cli().json(&["sessionpool", "show", "--name", POOL]);
        let counts = &shown["properties"]["sessionCounts"];
        let are = |name: &str, wanted: u64| counts[name] == wanted;
        if are("ready", ready) && are("allocated", allocated) && are("pending", 0) {
            return;
        }
        assert!(begun.elapsed() < LIMIT, "{shown:#}\n{}", host.report(0));
        thread::sleep(PAUSE);
    }
}

/// The worker that is noted to be ready.
fn ready_worker(host: &TestAppliance) -> String {
    let folder = host.root().join("run/cabana/workers");
    let workers = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let mut ready = workers.filter(|worker| worker.path().join("ready.json").exists());
    let first = ready.next().expect("a worker is ready");
    assert!(ready.next().is_none(), "there are two");
    first.file_name().into_string().unwrap()
}

fn show(host: &TestAppliance, identifier: &str) -> Value {
    host.cli().json(&[
        "session",
        "show",
        "--name",
        POOL,
        "--identifier",
        identifier,
    ])
}

/// The workers with a guest, whoever has started them.
fn guests(host: &TestAppliance) -> Vec<Process> {
    let processes = host.processes().into_iter();
    processes.filter(Process::has_guest).collect()
}

fn pids(workers: &[Process]) -> BTreeSet<u32> {
    workers.iter().map(|worker| worker.pid).collect()
}

impl Kept {
    /// The session is what it was, the next identifier gets the slot that was ready, and nothing was started or lost.
    fn assert_is_there(&self, host: &TestAppliance) {
        let pool = host.existing_pool(POOL);
        let session = pool.session("user-1");
        assert_eq!(session.boot_id(), self.boot);
        assert_eq!(note(&session), NOTE);
        wait_for_counts(host, 1, 1);
        assert_eq!(pids(&guests(host)), pids(&self.workers));
        assert!(self.workers.iter().all(Process::runs));

        let other = pool.session("user-2");
        assert_ne!(other.boot_id(), self.boot);
        assert_eq!(note(&other), "");
        let given = show(host, "user-2")["worker"].as_str().unwrap().to_owned();
        assert_eq!(given.replace('-', ""), self.ready);
        // Refilled as ever, with a worker that is new.
        wait_for_counts(host, 1, 2);
        let now = pids(&guests(host));
        assert!(now.is_superset(&pids(&self.workers)) && now.len() == 3);
        // An operator can look into a session whose worker another appliance has started.
        let mut command = Command::new(artifacts::cabana());
        command.args(["session", "exec", "--name", POOL, "--identifier", "user-1"]);
        command.arg("--root").arg(host.root());
        let ran = Ran::of(command.args(["--", "no-such-program"]));
        assert_eq!(ran.code, Some(127), "{ran:?}");
        pool.delete();
        assert!(guests(host).is_empty());
    }
}

/// Kills the appliance process and waits until another one serves.
fn kill_appliance(host: &TestAppliance) {
    let position = host.log().position();
    host.appliance().kill();
    host.wait_for_line(position, BACK_LIMIT, "that it serves again", |line| {
        line.contains("serving") && line.contains("listen=")
    });
}

fn session_answers_with_its_memory_and_a_ready_slot_is_handed_out_after_the_appliance_process_was_killed()
 {
    let host = TestAppliance::start();
    let kept = kept(&host);
    kill_appliance(&host);
    kept.assert_is_there(&host);
    host.stop();
}

fn session_and_ready_slot_are_there_after_warden_and_appliance_were_killed() {
    let mut host = TestAppliance::start();
    let kept = kept(&host);
    let appliance = host.appliance();
    host.signal(Signal::KILL);
    appliance.kill();
    assert!(ended_by(host.wait(), Signal::KILL));
    host.restart();
    kept.assert_is_there(&host);
    host.stop();
}

fn session_and_ready_slot_are_there_after_an_orderly_restart_and_an_open_request_is_answered() {
    let mut host = TestAppliance::start();
    let kept = kept(&host);
    let session = host.existing_pool(POOL).session("user-1");
    thread::scope(|scope| {
        // Shorter than what requests are given, and longer than it takes to be told to end.
        let asking = scope.spawn(|| session.get("/slow?ms=3000"));
        let begun = Instant::now();
        while show(&host, "user-1")["openRequests"] != 1 {
            assert!(begun.elapsed() < LIMIT, "the request never came");
            thread::sleep(PAUSE);
        }
        host.signal(Signal::TERM);
        let answer = asking.join().unwrap();
        assert_eq!(answer.status, 200, "{answer:#?}");
    });
    drop(session);
    assert_eq!(host.wait().code(), Some(0));
    assert!(kept.workers.iter().all(Process::runs));
    host.restart();
    kept.assert_is_there(&host);
    host.stop();
}

fn idle_session_ends_at_its_time_although_the_appliance_was_killed_meanwhile() {
    const COOLDOWN: Duration = Duration::from_secs(40);
    const IDLE: Duration = Duration::from_secs(30);
    /// How late the store may be, and what ending a guest takes on an emulated processor.
    const LATE: Duration = Duration::from_secs(15);
    let host = TestAppliance::start();
    let seconds = COOLDOWN.as_secs().to_string();
    let pool = host
        .pool(POOL)
        .with(&["--cooldown-period", &seconds])
        .create();
    let position = host.log().position();
    pool.session("user-1").boot_id();
    let used = Instant::now();
    // Time that passes without a request is what this is about.
    thread::sleep(IDLE);
    kill_appliance(&host);
    assert_eq!(show(&host, "user-1")["state"], "active");
    let expires = show(&host, "user-1")["expiresAt"]
        .as_str()
        .unwrap()
        .to_owned();
    host.wait_until_gone(&pool, position);
    let lived = used.elapsed();
    let limits = COOLDOWN..COOLDOWN + LATE;
    assert!(
        limits.contains(&lived),
        "it ended {lived:?} after its last use; it was to end at {expires}, and now is {:?}",
        SystemTime::now().duration_since(UNIX_EPOCH)
    );
    assert!(guests(&host).is_empty());
    host.stop();
}

fn no_session_is_lost_and_none_is_mixed_up_when_the_appliance_is_killed_under_load() {
    const SESSIONS: usize = 4;
    const KILLS: usize = 3;
    /// Answers in between, from everybody together.
    const ANSWERS: usize = 40;
    let host = TestAppliance::start();
    let flags = ["--ready-sessions", "2", "--max-sessions", "10"];
    let pool = host
        .pool(POOL)
        .with(&flags)
        .with(&["--cooldown-period", "600"])
        .create();
    wait_for_counts(&host, 2, 0);
    let boots: Vec<String> = (0..SESSIONS)
        .map(|n| {
            let session = pool.session(&format!("user-{n}"));
            put_note(&session, &secret(n));
            session.boot_id()
        })
        .collect();
    let (done, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let asking: Vec<_> = (0..SESSIONS)
            .map(|n| {
                let session = pool.session(&format!("user-{n}"));
                let (done, answered) = (&done, &answered);
                scope.spawn(move || {
                    while !done.load(Ordering::SeqCst) {
                        assert_eq!(retried_note(&session), secret(n), "of user-{n}");
                        answered.fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        let newcomers = scope.spawn(|| newcomers(&pool, &done));
        for _ in 0..KILLS {
            let before = answered.load(Ordering::SeqCst);
            let begun = Instant::now();
            while answered.load(Ordering::SeqCst) < before + ANSWERS {
                assert!(begun.elapsed() < LIMIT, "nobody is answered");
                if asking.iter().any(|asking| asking.is_finished()) {
                    break;
                }
                thread::sleep(PAUSE);
            }
            kill_appliance(&host);
        }
        done.store(true, Ordering::SeqCst);
        for asked in asking {
            asked.join().expect("every client sees its own data");
        }
        newcomers.join().expect("nobody gets a guest that was used");
    });
    for (n, boot) in boots.iter().enumerate() {
        let session = pool.session(&format!("user-{n}"));
        assert_eq!(
            (session.boot_id(), note(&session)),
            (boot.clone(), secret(n))
        );
    }
    pool.delete();
    assert!(guests(&host).is_empty());
    host.stop();
}

fn secret(n: usize) -> String {
    format!("the secret of user {n}")
}

/// As a client does that tries again until it is answered.
fn retried_note(session: &Session) -> String {
    let begun = Instant::now();
    loop {
        if let Some(answer) = session.try_call(Method::GET, "/stamp", "")
            && answer.status == 200
        {
            return answer.json()["note"].as_str().unwrap().to_owned();
        }
        assert!(begun.elapsed() < LIMIT, "it is not answered");
        thread::sleep(PAUSE);
    }
}

/// New identifiers come while the appliance is killed: each finds a guest that nobody had, or its own.
fn newcomers(pool: &Pool, done: &AtomicBool) {
    for n in 0..4 {
        let session = pool.session(&format!("new-user-{n}"));
        assert_eq!(retried_note(&session), "", "somebody else had it");
        let own = format!("new secret {n}");
        while session
            .try_call(Method::PUT, "/stamp", own.clone())
            .is_none_or(|answer| answer.status != 200)
        {
            thread::sleep(PAUSE);
        }
        for _ in 0..10 {
            assert_eq!(retried_note(&session), own);
        }
        if done.load(Ordering::SeqCst) {
            return;
        }
    }
}

fn host_on_which_no_worker_survived_starts_without_sessions_and_fills_its_pools() {
    let mut host = TestAppliance::start();
    let kept = kept(&host);
    let appliance = host.appliance();
    host.signal(Signal::KILL);
    appliance.kill();
    kept.workers.iter().for_each(Process::kill);
    assert!(ended_by(host.wait(), Signal::KILL));
    for process in &kept.workers {
        process.assert_ends_within(BACK_LIMIT);
    }
    host.restart();
    wait_for_counts(&host, 1, 0);
    let pool = host.existing_pool(POOL);
    let session = pool.session("user-1");
    assert_ne!(session.boot_id(), kept.boot);
    assert_eq!(note(&session), "");
    drop((session, pool));
    host.stop();
}
