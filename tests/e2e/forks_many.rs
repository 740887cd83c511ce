//! Many forks at once, what they cost, and that nothing of them is left.

use std::collections::BTreeSet;
use std::thread;

use e2e::appliance::WITH_SPARES;
use e2e::{Cli, TestAppliance, artifacts};
use serde_json::Value;

e2e::tests! {
    Own: [
        burst_of_twenty_new_identifiers_is_answered_and_leaves_no_worker,
        idle_forks_share_their_clean_pages_and_cost_the_same_each,
        breakdown_of_a_fork_explains_at_least_95_percent_of_its_time,
    ];
}

const BURST: usize = 20;

fn burst_of_twenty_new_identifiers_is_answered_and_leaves_no_worker() {
    let host = TestAppliance::start_with(WITH_SPARES);
    let count = BURST.to_string();
    let pool = host
        .pool("burst")
        .with(&["--max-sessions", &count, "--cooldown-period", "600"])
        .create();
    let answers: BTreeSet<String> = thread::scope(|scope| {
        let asking: Vec<_> = (0..BURST)
            .map(|number| {
                let session = pool.session(&format!("user-{number}"));
                scope.spawn(move || session.text("/random"))
            })
            .collect();
        asking
            .into_iter()
            .map(|thread| thread.join().expect("every request is answered"))
            .collect()
    });
    assert_eq!(answers.len(), BURST, "two sessions gave the same answer");
    assert_eq!(host.workers().len(), BURST, "one session, one worker");
    pool.delete();
    let left = host.workers();
    assert!(left.is_empty(), "a deleted pool has left {left:?}");
    // Those that wait for a guest are ended with the appliance, like everything else.
    host.stop();
}

#[track_caller]
fn bench(arguments: &[&str]) -> Value {
    let stdout = Cli::without_root().ok(&[&["bench"], arguments, &["--json"]].concat());
    serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("no JSON ({e}): {stdout}"))
}

fn idle_forks_share_their_clean_pages_and_cost_the_same_each() {
    let result = bench(&["memory", "--forks", "1,8"]);
    let rows = result["rows"].as_array().unwrap();
    let of = |row: usize, name: &str| rows[row][name].as_f64().unwrap();
    assert_eq!(rows.len(), 2, "{result}");
    // Of eight, the golden's own pages are shared by all.
    assert!(of(1, "pss") < 0.7 * of(1, "rss"), "{result}");
    assert!(of(1, "private") < 0.7 * of(1, "rss"), "{result}");
    let growth = result["growth"].as_f64().unwrap();
    assert!((0.8..=1.2).contains(&growth), "not flat: {result}");
}

fn breakdown_of_a_fork_explains_at_least_95_percent_of_its_time() {
    let image = format!("oci-archive:{}", artifacts::demo_image().display());
    for point in ["beforeStart", "afterReady"] {
        let counts = ["fork", "--count", "2", "--parallel", "2"];
        let what = ["--image", &image, "--fork-point", point];
        let result = bench(&[&counts[..], &what].concat());
        assert_eq!(result["forkPoint"], point);
        for goal in ["agent", "firstByte"] {
            for series in ["single", "burst", "coldBoot"] {
                let covered = result[goal][series]["covered"].as_f64().unwrap();
                assert!(
                    (0.95..=1.05).contains(&covered),
                    "{point}, {goal}, {series}: {covered}: {result:#}"
                );
            }
        }
    }
}
