//! Memory: who wants more than its guest has ends, alone, and is told why.

use std::time::{Duration, Instant};

use e2e::TestAppliance;

use super::{Leaf, Neighbour, fill_holes, is_limited, start};

e2e::tests! {
    Own: [memory_bomb_ends_its_own_session_for_a_reason_that_is_told];
}

/// Memory of the guest, as pools of the tests have it.
const GUEST_BYTES: u64 = 512 << 20;
/// Between two looks at how far it is. Short enough for one near its end.
const LOOK: Duration = Duration::from_secs(1);
/// Until the guest's kernel has given half a gibibyte away, page by page, on an emulated processor.
const LIMIT: Duration = Duration::from_secs(240);

fn memory_bomb_ends_its_own_session_for_a_reason_that_is_told() {
    if !is_limited() {
        return;
    }
    let host = TestAppliance::start();
    let pool = host
        .pool("hungry")
        .with(&["--cooldown-period", "600"])
        .create();
    let mut neighbour = Neighbour::new(&host, pool.session("calm"));
    fill_holes(&host);
    let session = pool.session("bomb");
    let boot = session.boot_id();
    let leaf = Leaf::of(&pool, "bomb");
    let (most, position) = (leaf.number("memory.max"), host.log().position());

    // A child of the server's, so that the whole container ends for what one of its processes does.
    start(&session, &["bomb", "memory"]);
    // It has a whole processor, which is all there is in the lab: its neighbour is served, and how fast is for the other bombs to say.
    let (begun, mut peak, mut killed) = (Instant::now(), 0, 0);
    let told = loop {
        let ends = |line: &str| line.contains("session ends") && line.contains("pool=hungry ");
        if let Ok(told) = host.log().wait_for(position, LOOK, ends) {
            break told;
        }
        assert!(begun.elapsed() < LIMIT, "the bomb has {peak} bytes");
        neighbour.ask();
        if !leaf.exists() {
            continue;
        }
        (peak, killed) = (
            leaf.number("memory.peak"),
            leaf.count("memory.events", "oom_kill"),
        );
    };
    println!("memory: {} MiB of {} MiB; {told}", peak >> 20, most >> 20);
    assert!(told.contains("OutOfMemory"), "{told}");
    // The host was not asked for more than it had promised.
    assert_eq!(killed, 0);
    assert!((GUEST_BYTES / 2..=most).contains(&peak), "{peak} of {most}");
    host.wait_until_gone(&pool, position);
    neighbour.ask();
    neighbour.assert_same_guest();
    assert_ne!(session.boot_id(), boot, "the guest that ended has answered");
    host.stop();
}
