//! However the appliance ends: what shall end with it does, what shall outlive it does, nothing else is touched, and what was promised is
//! still there. That sessions answer again afterwards is tested in `restart`.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use e2e::appliance::{CONFIG, WITH_FEW_SPARES, ended_by, new_root, serve_command};
use e2e::cli::Ran;
use e2e::process::Process;
use e2e::{TestAppliance, process};
use rustix::process::Signal;

e2e::tests! {
    Own: [
        sigint_ends_every_session_and_leaves_nothing_behind,
        stop_command_ends_every_session_and_leaves_nothing_behind,
        sigterm_leaves_the_sessions_workers_running_and_nothing_else,
        killed_warden_takes_its_appliance_and_spares_with_it_and_leaves_the_sessions_workers,
        killed_appliance_process_is_started_again_and_the_sessions_workers_live_on,
        workers_that_nobody_adopts_end_after_the_orphan_limit,
        stop_command_ends_what_a_killed_appliance_has_left,
        process_with_the_pid_of_a_worker_that_is_gone_is_not_touched,
        second_appliance_on_the_same_root_is_refused_and_the_first_one_goes_on,
        port_in_use_is_named_in_one_line_and_nothing_is_left,
    ];
    Anywhere: [
        stop_command_where_nothing_runs_is_no_failure,
    ];
}

/// What processes of a killed warden may take to notice and to end, on an emulated processor.
const NOTICE_LIMIT: Duration = Duration::from_secs(20);
/// The least that the configuration takes.
const SHORT_ORPHAN_LIMIT: Duration = Duration::from_secs(10);

/// An appliance with a pool and one session in it.
fn with_session(config: &str) -> TestAppliance {
    let host = TestAppliance::start_with(config);
    host.pool("kept").create().session("user-1").boot_id();
    host
}

fn plain() -> TestAppliance {
    with_session(CONFIG)
}

/// The only process of this kind.
fn one(processes: &[Process], role: &str) -> u32 {
    let mut found = processes.iter().filter(|process| process.role == role);
    let pid = found.next().unwrap_or_else(|| panic!("no {role}")).pid;
    assert_eq!(found.count(), 0, "more than one {role}");
    pid
}

/// Where the warden writes down what it has started.
fn records(host: &TestAppliance) -> Vec<PathBuf> {
    let folder = host.root().join("var/lib/cabana/warden");
    let entries = fs::read_dir(folder).expect("the folder is there");
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn sigint_ends_every_session_and_leaves_nothing_behind() {
    let host = TestAppliance::start();
    let pool = host.pool("ended").create();
    let sessions = ["user-1", "user-2"].map(|identifier| pool.session(identifier));
    let boots = sessions.each_ref().map(e2e::Session::boot_id);
    assert_ne!(boots[0], boots[1]);
    assert_eq!(host.workers().len(), 2);
    assert_eq!(records(&host).len(), 3, "two workers and the appliance");
    host.stop();
}

fn stop_command_ends_every_session_and_leaves_nothing_behind() {
    let mut host = plain();
    let said = host.cli().ok(&["stop"]);
    assert!(said.contains("has ended"), "{said}");
    // It returns when everything has ended.
    assert_eq!(host.processes().iter().filter(|it| it.runs()).count(), 0);
    assert_eq!(host.wait().code(), Some(0));
    assert!(records(&host).is_empty());
    host.assert_nothing_is_left();
    let said = host.cli().ok(&["stop"]);
    assert_eq!(said, "Nothing runs\n");
}

fn sigterm_leaves_the_sessions_workers_running_and_nothing_else() {
    let mut host = with_session(WITH_FEW_SPARES);
    let before = host.processes();
    host.detach();
    let worker = one(&host.workers(), "worker");
    for process in before.iter().filter(|process| process.pid != worker) {
        process.assert_ends_within(NOTICE_LIMIT);
    }
    let left = host.processes();
    assert_eq!(one(&left, "worker"), worker);
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(records(&host).len(), 1);
    host.cli().ok(&["stop"]);
    left[0].assert_ends_within(NOTICE_LIMIT);
    host.assert_nothing_is_left();
}

fn killed_warden_takes_its_appliance_and_spares_with_it_and_leaves_the_sessions_workers() {
    let mut host = with_session(WITH_FEW_SPARES);
    let before = host.processes();
    let worker = one(&host.workers(), "worker");
    assert!(before.len() >= 3, "warden, appliance, worker: {before:?}");
    host.signal(Signal::KILL);
    assert!(ended_by(host.wait(), Signal::KILL));
    for process in before.iter().filter(|process| process.pid != worker) {
        process.assert_ends_within(NOTICE_LIMIT);
    }
    let left = host.processes();
    assert_eq!(one(&left, "worker"), worker);
    assert!(left[0].has_guest() && left.len() == 1, "{left:?}");

    host.restart();
    let shown = host.cli().json(&["sessionpool", "show", "--name", "kept"]);
    assert_eq!(shown["name"], "kept");
    host.stop();
}

fn killed_appliance_process_is_started_again_and_the_sessions_workers_live_on() {
    let mut host = plain();
    let position = host.log().position();
    let (warden, first) = (host.pid(), host.appliance());
    first.kill();
    first.assert_ends_within(NOTICE_LIMIT);
    host.wait_for_line(position, NOTICE_LIMIT, "that it serves again", |line| {
        line.contains("serving")
    });
    assert_eq!(host.pid(), warden);
    assert_ne!(host.appliance().pid, first.pid);
    let said = host.log().since(position);
    let started = said
        .iter()
        .position(|line| line.contains("is started again"));
    let serving = said.iter().position(|line| line.contains("serving"));
    assert!(started.is_some() && started < serving, "{said:#?}");
    // Whether it lives on from here is the next appliance's affair: until then nothing has ended it.
    let ended = said.iter().position(|line| line.contains("Worker ended"));
    assert!(ended.is_none_or(|ended| Some(ended) > serving), "{said:#?}");
    host.cli().ok(&["sessionpool", "list"]);
    // Even one that was started again ends in order.
    host.cli().ok(&["stop"]);
    assert_eq!(host.wait().code(), Some(0));
    host.assert_nothing_is_left();
}

fn workers_that_nobody_adopts_end_after_the_orphan_limit() {
    let seconds = SHORT_ORPHAN_LIMIT.as_secs();
    let mut host = with_session(&format!("{CONFIG}orphan_limit_seconds = {seconds}\n"));
    let workers = host.workers();
    host.signal(Signal::KILL);
    assert!(ended_by(host.wait(), Signal::KILL));
    let appliance_gone = std::time::Instant::now();
    assert!(workers[0].runs());
    workers[0].assert_ends_within(SHORT_ORPHAN_LIMIT + NOTICE_LIMIT);
    let lived = appliance_gone.elapsed();
    // The warden had died a little before it was waited for.
    let least = SHORT_ORPHAN_LIMIT - Duration::from_secs(1);
    assert!(lived >= least, "it ended after {lived:?}");
    // Its cgroup and its folder are for whoever comes next.
    assert_eq!(host.cli().ok(&["stop"]), "Nothing runs\n");
    host.assert_nothing_is_left();
}

fn stop_command_ends_what_a_killed_appliance_has_left() {
    let mut host = plain();
    let workers = host.workers();
    host.signal(Signal::KILL);
    assert!(ended_by(host.wait(), Signal::KILL));
    assert!(workers[0].runs());
    let said = host.cli().ok(&["stop"]);
    assert!(said.contains("1 worker that was left behind"), "{said}");
    assert!(!workers[0].runs(), "it returned too early");
    host.assert_nothing_is_left();
}

/// The kernel gives a pid out again. Whatever runs under it then is no worker of ours and must live.
fn process_with_the_pid_of_a_worker_that_is_gone_is_not_touched() {
    let mut host = plain();
    let worker = &host.workers()[0];
    host.signal(Signal::KILL);
    assert!(ended_by(host.wait(), Signal::KILL));
    worker.kill();
    worker.assert_ends_within(NOTICE_LIMIT);
    let mut stranger = std::process::Command::new("sleep");
    let mut stranger = stranger.arg("600").spawn().expect("sleep is there");
    let pidfd = process::open(stranger.id()).expect("it is our child");
    let mut changed = 0;
    for path in records(&host) {
        let text = fs::read_to_string(&path).unwrap();
        let of = |pid: u32| format!("\"pid\":{pid},");
        let other = text.replace(&of(worker.pid), &of(stranger.id()));
        changed += usize::from(other != text);
        fs::write(&path, other).unwrap();
    }
    assert_eq!(changed, 1, "the worker was not written down");
    host.restart();
    host.stop();
    let lives = !process::ends_within(&pidfd, Duration::ZERO);
    stranger.kill().expect("it is our child");
    stranger.wait().expect("it is our child");
    assert!(lives, "a stranger was killed");
}

fn second_appliance_on_the_same_root_is_refused_and_the_first_one_goes_on() {
    let host = TestAppliance::start();
    let before = host.traces();
    let second = Ran::of(&mut serve_command(
        host.root(),
        e2e::appliance::free_address(),
    ));
    second.assert_refused(
        1,
        &["Another appliance", &host.root().display().to_string()],
    );
    assert_eq!(
        host.traces().since(&before),
        [""; 0],
        "the refused one has left something"
    );
    host.cli().ok(&["sessionpool", "list"]);
    host.stop();
}

fn port_in_use_is_named_in_one_line_and_nothing_is_left() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let root = new_root();
    let before = e2e::traces::Traces::take(root.path());
    let ran = Ran::of(&mut serve_command(root.path(), address));
    ran.assert_refused(1, &[&address.to_string()]);
    assert_eq!(
        e2e::traces::Traces::take(root.path()).since(&before),
        [""; 0],
        "the refused one has left something"
    );
}

fn stop_command_where_nothing_runs_is_no_failure() {
    let root = new_root();
    let ran = e2e::Cli::with_root(root.path()).run(&["stop"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(ran.stdout, "Nothing runs\n");
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
}
