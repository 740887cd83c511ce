//! However the appliance ends, nothing of it keeps running, and what was promised is still there.

use std::net::TcpListener;
use std::time::Duration;

use e2e::TestAppliance;
use e2e::appliance::{ended_by, new_root, serve_command};
use e2e::cli::Ran;
use e2e::process;
use rustix::process::Signal;

e2e::tests! {
    Own: [
        sigterm_ends_every_session_and_leaves_nothing_behind,
        killed_warden_takes_everything_with_it_and_the_next_start_has_the_pools,
        killed_appliance_process_ends_the_warden_and_every_worker,
        second_appliance_on_the_same_root_is_refused_and_the_first_one_goes_on,
        port_in_use_is_named_in_one_line_and_nothing_is_left,
    ];
}

/// What the processes of a killed appliance may take to notice and to end.
const ORPHAN_LIMIT: Duration = Duration::from_secs(20);

fn sigterm_ends_every_session_and_leaves_nothing_behind() {
    let host = TestAppliance::start();
    let pool = host.pool("ended").create();
    let sessions = ["user-1", "user-2"].map(|identifier| pool.session(identifier));
    let boots = sessions.each_ref().map(e2e::Session::boot_id);
    assert_ne!(boots[0], boots[1]);
    assert_eq!(host.workers().len(), 2);
    host.stop();
}

fn killed_warden_takes_everything_with_it_and_the_next_start_has_the_pools() {
    let mut host = TestAppliance::start();
    let boot = host.pool("kept").create().session("user-1").boot_id();
    let processes = process::tree(host.pid());
    assert!(
        processes.len() >= 3,
        "warden, appliance and worker: {processes:?}"
    );
    host.signal(Signal::KILL);
    assert!(ended_by(host.wait(), Signal::KILL));
    processes
        .iter()
        .for_each(|process| process.assert_ends_within(ORPHAN_LIMIT));

    host.restart();
    let shown = host.cli().json(&["sessionpool", "show", "--name", "kept"]);
    assert_eq!(shown["name"], "kept");
    let pool = host.existing_pool("kept");
    assert_ne!(
        pool.session("user-1").boot_id(),
        boot,
        "a guest that was killed has answered"
    );
    host.stop();
}

fn killed_appliance_process_ends_the_warden_and_every_worker() {
    let mut host = TestAppliance::start();
    host.pool("lost").create().session("user-1").boot_id();
    let processes = process::tree(host.pid());
    let appliance = processes
        .iter()
        .find(|process| process.role == "appliance")
        .unwrap();
    appliance.kill();
    let status = host.wait();
    // EX_SOFTWARE: systemd restarts it.
    assert_eq!(status.code(), Some(70), "{status}");
    processes
        .iter()
        .for_each(|process| process.assert_ends_within(ORPHAN_LIMIT));
    host.assert_nothing_is_left();
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
