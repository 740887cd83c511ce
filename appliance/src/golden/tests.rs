//! What is built when, and what is kept.

use std::sync::Arc;
use std::time::Duration;

use super::testing::{Fate, Works, pool, running_pool};
use super::*;

const BUILT: [&str; 2] = ["boot golden beforeStart", "fork trial"];

fn all(pools: &[&PoolRecord]) -> Vec<Arc<PoolRecord>> {
    pools.iter().map(|pool| Arc::new((*pool).clone())).collect()
}

/// As `pool`, of another image.
fn of_image(name: &str, number: u32) -> PoolRecord {
    PoolRecord {
        image_digest: format!("sha256:{number}"),
        ..pool(name)
    }
}

impl Works {
    async fn ensure(&self, pool: &PoolRecord) {
        self.goldens.ensure(self.recipe(pool)).await.unwrap();
    }

    fn has(&self, pool: &PoolRecord) -> bool {
        self.goldens.find(&self.recipe(pool)).is_some()
    }

    async fn break_golden(&self, pool: &PoolRecord) {
        let golden = self.goldens.find(&self.recipe(pool)).unwrap();
        self.goldens.set_aside(&golden, "broken").await;
    }
}

#[tokio::test]
async fn pools_made_at_the_same_moment_build_their_golden_once() {
    let works = Works::open();
    let gate = works.machines.hold();
    let building: Vec<_> = ["alpha", "beta", "gamma"]
        .map(|name| {
            let goldens = works.goldens.clone();
            let recipe = works.recipe(&pool(name));
            tokio::spawn(async move { goldens.ensure(recipe).await })
        })
        .into();
    gate.add_permits(2);
    for built in building {
        built.await.unwrap().unwrap();
    }
    works.ensure(&pool("delta")).await;
    assert_eq!(works.machines.launched(), BUILT);
}

#[tokio::test]
async fn failure_is_told_to_all_who_wait_and_the_next_one_tries_again() {
    let works = Works::open();
    works.machines.fates(&[Fate::Dies]);
    let gate = works.machines.hold();
    let (one, two, ()) = tokio::join!(
        works.goldens.ensure(works.recipe(&pool("alpha"))),
        works.goldens.ensure(works.recipe(&pool("beta"))),
        async { gate.add_permits(3) },
    );
    assert!(Arc::ptr_eq(&one.unwrap_err(), &two.unwrap_err()));
    works.ensure(&pool("alpha")).await;
    assert_eq!(works.machines.launched().len(), 3);
}

#[tokio::test]
async fn caller_that_hangs_up_neither_stops_the_build_nor_leaves_half_of_it() {
    let works = Works::open();
    let gate = works.machines.hold();
    let goldens = works.goldens.clone();
    let recipe = works.recipe(&pool("alpha"));
    let first = tokio::spawn(async move { goldens.ensure(recipe).await });
    while works.machines.alive() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    first.abort();
    gate.add_permits(2);
    works.wait_for(&pool("alpha")).await;
    works.wait_idle().await;
    assert_eq!(works.names().len(), 1);
    assert_eq!(works.machines.launched(), BUILT);
}

#[tokio::test]
async fn no_more_than_two_are_built_at_once() {
    let works = Works::open();
    let gate = works.machines.hold();
    let building: Vec<_> = (0..5)
        .map(|number| {
            let goldens = works.goldens.clone();
            let recipe = works.recipe(&of_image("alpha", number));
            tokio::spawn(async move { goldens.ensure(recipe).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(works.machines.alive(), BUILDS);
    gate.add_permits(10);
    for built in building {
        built.await.unwrap().unwrap();
    }
    assert_eq!(works.machines.launched().len(), 10);
}

#[tokio::test]
async fn end_of_the_appliance_ends_builds_and_leaves_nothing() {
    let works = Works::open();
    let _gate = works.machines.hold();
    let goldens = works.goldens.clone();
    let recipe = works.recipe(&pool("alpha"));
    let building = tokio::spawn(async move { goldens.ensure(recipe).await });
    while works.machines.alive() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    works.goldens.close();
    let error = building.await.unwrap().unwrap_err();
    assert!(matches!(*error, GoldenError::Stopping), "{error}");
    works.wait_idle().await;
    assert!(works.names().is_empty(), "{:?}", works.names());
    let late = works.goldens.ensure(works.recipe(&pool("alpha"))).await;
    assert!(matches!(*late.unwrap_err(), GoldenError::Stopping));
}

#[tokio::test]
async fn restart_builds_nothing_that_is_there_and_in_the_background_what_is_not() {
    let works = Works::open();
    works.ensure(&pool("alpha")).await;
    let works = Works::open_in(works.folder);
    works
        .goldens
        .pools_changed(all(&[&pool("alpha"), &running_pool("beta")]))
        .await;
    assert!(works.has(&pool("alpha")));
    works.wait_for(&running_pool("beta")).await;
    assert_eq!(
        works.machines.launched(),
        ["boot golden afterReady", "fork trial"]
    );
    let list = works.goldens.list();
    let pools: Vec<_> = list
        .iter()
        .map(|it| {
            (
                it.golden.about.manifest.template.fork_point.to_string(),
                it.pools.clone(),
            )
        })
        .collect();
    assert!(pools.contains(&("beforeStart".into(), vec!["alpha".parse().unwrap()])));
    assert!(pools.contains(&("afterReady".into(), vec!["beta".parse().unwrap()])));
}

#[tokio::test]
async fn pool_without_its_image_does_not_keep_others_from_their_goldens() {
    let works = Works::open();
    let lost = PoolRecord {
        image_digest: "lost".into(),
        ..pool("alpha")
    };
    works
        .goldens
        .pools_changed(all(&[&lost, &pool("beta")]))
        .await;
    works.wait_for(&pool("beta")).await;
}

#[tokio::test]
async fn last_four_goldens_without_a_pool_are_kept_and_all_with_one() {
    let works = Works::open();
    let needed = of_image("alpha", 0);
    let pools: Vec<_> = (0..7).map(|number| of_image("alpha", number)).collect();
    for pool in &pools {
        works.ensure(pool).await;
        works.goldens.pools_changed(all(&[&needed, pool])).await;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    works.goldens.pools_changed(all(&[&needed])).await;
    let kept: Vec<_> = pools.iter().map(|pool| works.has(pool)).collect();
    assert_eq!(kept, [true, false, false, true, true, true, true]);
    works.wait_for_names(5).await;
    // What was given up last is kept longest, over a restart too.
    works
        .goldens
        .pools_changed(all(&[&needed, &pools[3]]))
        .await;
    tokio::time::sleep(Duration::from_millis(2)).await;
    let works = Works::open_in(works.folder);
    works.goldens.pools_changed(all(&[&needed])).await;
    works.ensure(&pools[1]).await;
    works.goldens.pools_changed(all(&[&needed])).await;
    assert!(works.has(&pools[3]) && !works.has(&pools[4]));
}

#[tokio::test(start_paused = true)]
async fn golden_that_keeps_failing_is_rebuilt_at_once_and_then_after_longer_pauses() {
    let works = Works::open();
    let alpha = pool("alpha");
    works.ensure(&alpha).await;
    works.goldens.pools_changed(all(&[&alpha])).await;
    for pause in [0, 60, 120, 240] {
        let begun = Instant::now();
        works.break_golden(&alpha).await;
        assert!(!works.has(&alpha));
        works.wait_for(&alpha).await;
        let waited = begun.elapsed().as_secs();
        assert!(
            (pause..pause + 5).contains(&waited),
            "{waited} s, not {pause}"
        );
    }
    // After hours without a failure it is trusted again.
    tokio::time::sleep(FORGIVEN_AFTER + Duration::from_secs(1)).await;
    let begun = Instant::now();
    works.break_golden(&alpha).await;
    works.wait_for(&alpha).await;
    assert!(begun.elapsed().as_secs() < 5);
}

#[tokio::test(start_paused = true)]
async fn golden_that_cannot_be_made_is_tried_after_longer_and_longer_pauses() {
    let works = Works::open();
    works.machines.fates(&[Fate::Dies; 3]);
    let begun = Instant::now();
    works.goldens.pools_changed(all(&[&pool("alpha")])).await;
    works.wait_for(&pool("alpha")).await;
    let waited = begun.elapsed().as_secs();
    assert!(
        (420..430).contains(&waited),
        "{waited} s, not 60 + 120 + 240"
    );
}

#[tokio::test(start_paused = true)]
async fn golden_that_no_pool_wants_any_more_is_not_brought_back() {
    let works = Works::open();
    works.machines.fates(&[Fate::Dies]);
    works.goldens.pools_changed(all(&[&pool("alpha")])).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    works.goldens.pools_changed(vec![]).await;
    tokio::time::sleep(Duration::from_secs(10_000)).await;
    assert_eq!(works.machines.launched().len(), 1);
    assert!(works.names().is_empty());
}

#[tokio::test]
async fn golden_is_set_aside_once_however_many_forks_of_it_fail() {
    let works = Works::open();
    let alpha = pool("alpha");
    works.ensure(&alpha).await;
    works.goldens.pools_changed(all(&[&alpha])).await;
    let broken = works.goldens.find(&works.recipe(&alpha)).unwrap();
    works.goldens.set_aside(&broken, "first").await;
    works.wait_for(&alpha).await;
    for _ in 0..20 {
        works.goldens.set_aside(&broken, "late").await;
    }
    assert!(works.has(&alpha), "the new one was taken for the old one");
}

#[test]
fn pauses_double_up_to_an_hour() {
    let seconds = [0, 1, 2, 3, 6, 7, 8, 100, u32::MAX].map(|count| pause(count).as_secs());
    assert_eq!(seconds, [0, 60, 120, 240, 1920, 3600, 3600, 3600, 3600]);
}

#[tokio::test]
async fn goldens_of_pools_that_were_never_finished_do_not_pile_up() {
    let works = Works::open();
    for number in 0..8 {
        works.ensure(&of_image("alpha", number)).await;
    }
    while works.names().len() > KEPT_UNUSED {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(works.has(&of_image("alpha", 7)));
}
