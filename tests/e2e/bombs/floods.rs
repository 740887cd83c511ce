//! Processes, lines and connections without end.

use std::time::{Duration, Instant};

use e2e::TestAppliance;

use super::{Leaf, Neighbour, QUARTER, is_limited, start};

e2e::tests! {
    Shared: [
        fork_bomb_stays_in_its_guest,
        flood_of_lines_is_bounded_and_what_is_lost_is_counted,
        flood_of_connections_to_the_host_is_refused,
    ];
}

/// What a bomb has had of its quarter when it counts as one.
const BUSY: f64 = 0.12;
/// Until a command of an operator is there, on an emulated processor.
const BEGUN: Duration = Duration::from_secs(30);

/// Runs the bomb and measures its neighbour before and meanwhile. `look` is asked when both have been at it for a while.
fn beside(host: &TestAppliance, name: &str, bomb: &[&str], look: impl FnOnce(&Leaf)) {
    if !is_limited() {
        return;
    }
    let begun = Instant::now();
    let pool = host.pool(name).with(QUARTER).create();
    let mut neighbour = Neighbour::new(host, host.shared_session());
    let session = pool.session("bomb");
    session.boot_id();
    let leaf = Leaf::of(&pool, "bomb");
    let threads = leaf.number("pids.current");
    start(&session, bomb);
    // As much as coming up takes, and more than an idle guest ever does.
    let before = leaf.used();
    let due = Instant::now() + BEGUN;
    while leaf.used() < before + Duration::from_millis(250) {
        assert!(Instant::now() < due, "the bomb does nothing");
        neighbour.ask();
    }
    let used = neighbour.assert_as_fast_beside(&leaf, &bomb.join(" "));
    println!(
        "{name}: share of a processor {used:.3}, threads {}",
        leaf.number("pids.current")
    );
    assert!(used >= BUSY, "it is no bomb: {used}");
    assert!(used <= 0.28, "it has more than its quarter: {used}");
    // Whatever happens in a guest, its worker has the threads that it had.
    assert_eq!(leaf.number("pids.current"), threads);
    assert!(leaf.number("memory.peak") <= leaf.number("memory.max"));
    look(&leaf);
    pool.delete();
    println!("{name}: {:?} in all", begun.elapsed());
}

fn fork_bomb_stays_in_its_guest(host: &TestAppliance) {
    beside(host, "forks", &["bomb", "forks"], |_| ());
}

/// What the appliance keeps of a session's output (`worker/console.rs`), and as much again for what the lines are wrapped in.
const KEPT_BYTES: usize = 2 * (64 << 10);

fn flood_of_lines_is_bounded_and_what_is_lost_is_counted(host: &TestAppliance) {
    beside(host, "lines", &["bomb", "lines"], |_| {
        let flags = ["--name", "lines", "--identifier", "bomb"];
        let log = host.cli().ok(&[&["session", "logs"], &flags[..]].concat());
        assert!(log.contains("xxxxxxxx"), "there is no flood: {log:.200}");
        assert!(log.len() <= KEPT_BYTES, "{} bytes are kept", log.len());
    });
}

fn flood_of_connections_to_the_host_is_refused(host: &TestAppliance) {
    beside(host, "vsock", &["bomb", "vsock"], |_| ());
}
