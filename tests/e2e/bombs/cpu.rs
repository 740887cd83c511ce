//! Processor time: a session gets the share of its pool, no more, and no less while the host has it.

use std::time::{Duration, Instant};

use e2e::TestAppliance;

use super::{Leaf, QUARTER, is_limited, run};

e2e::tests! {
    Shared: [quarter_of_a_processor_is_a_quarter_beside_busy_neighbours_too];
}

/// As long as the promise says.
const TIME_MS: &str = "10000";
/// Longer than anything here: an hour.
const FOR_EVER_MS: &str = "3600000";
/// How far from a quarter of a processor the share may be.
const TOLERANCE: f64 = 0.03;
/// By how much of itself neighbours may change it.
const CHANGE: f64 = 0.05;

/// Workers have the same weight, whatever their pools' shares are: whoever wants least is served first, up to its share. Here three want two and a
/// quarter of one processor, each may have a third of it, and who wants less than that gets what it wants. Weights by share would give a
/// quarter of a processor a ninth of this one.
fn quarter_of_a_processor_is_a_quarter_beside_busy_neighbours_too(host: &TestAppliance) {
    if !is_limited() {
        return;
    }
    let pool = host.pool("quarter").with(QUARTER).create();
    let session = pool.session("measured");
    session.boot_id();
    let leaf = Leaf::of(&pool, "measured");
    assert_eq!(leaf.read("cpu.max").trim(), "25000 100000");
    let share = || {
        let (begun, before) = (Instant::now(), leaf.used());
        let ran = run(&session, &["spin", TIME_MS]);
        assert_eq!(ran["code"], 0, "{ran}");
        let used = leaf.used() - before;
        let share = used.as_secs_f64() / begun.elapsed().as_secs_f64();
        println!("share of a processor: {share:.4}");
        share
    };
    let alone = share();
    assert!((alone - 0.25).abs() <= TOLERANCE, "alone: {alone}");

    let whole = host.pool("whole").with(&["--cpu", "1.0"]).create();
    let neighbours = ["first", "second"].map(|name| whole.session(name));
    neighbours.iter().for_each(|it| drop(it.boot_id()));
    let leaves = ["first", "second"].map(|name| Leaf::of(&whole, name));
    for neighbour in &neighbours {
        super::start(neighbour, &["spin", FOR_EVER_MS]);
    }
    let before: Vec<Duration> = leaves.iter().map(Leaf::used).collect();
    let begun = Instant::now();
    let beside = share();
    for (leaf, before) in leaves.iter().zip(before) {
        let used = (leaf.used() - before).as_secs_f64() / begun.elapsed().as_secs_f64();
        println!("share of a neighbour: {used:.4}");
        assert!(used > beside, "the neighbours are not busy: {used}");
    }
    whole.delete();
    assert!((beside - 0.25).abs() <= TOLERANCE, "beside: {beside}");
    let change = (beside - alone).abs() / alone;
    assert!(change <= CHANGE, "{alone} became {beside}");
}
