use super::*;
use crate::golden::testing::{Fate, Works, pool, running_pool};
use crate::pool::probe::{Check, Probe};
use crate::worker::WorkingSet;

async fn failure(works: &Works, pool: &crate::store::PoolRecord) -> Arc<GoldenError> {
    let error = works.goldens.ensure(works.recipe(pool)).await.unwrap_err();
    assert!(works.names().is_empty(), "left behind: {:?}", works.names());
    works.wait_idle().await;
    error
}

#[tokio::test]
async fn golden_is_saved_proven_by_a_fork_and_published() {
    let works = Works::open();
    works
        .goldens
        .ensure(works.recipe(&pool("alpha")))
        .await
        .unwrap();
    assert_eq!(
        works.machines.launched(),
        ["boot golden beforeStart", "fork trial"]
    );
    assert_eq!(works.machines.cpu_millis(), [1000, 1000]);
    works.wait_idle().await;
    let golden = works.goldens.find(&works.recipe(&pool("alpha"))).unwrap();
    let files = golden.open().unwrap();
    assert_eq!(files.memory.metadata().unwrap().len(), 64 << 20);
    assert_eq!(
        (
            files.disk_bytes,
            matches!(files.working_set, WorkingSet::Known(_))
        ),
        (1 << 20, true)
    );
    assert_eq!(works.names(), [golden.key.as_str()]);
}

#[tokio::test]
async fn golden_after_ready_is_saved_when_the_container_is_held() {
    let works = Works::open();
    works
        .goldens
        .ensure(works.recipe(&running_pool("alpha")))
        .await
        .unwrap();
    assert_eq!(
        works.machines.launched(),
        ["boot golden afterReady", "fork trial"]
    );
}

#[tokio::test]
async fn whatever_goes_wrong_leaves_nothing_and_says_what() {
    let good = Fate::Good;
    for (fates, says) in [
        (&[Fate::Unlaunched][..], "could not be started: no worker"),
        (&[Fate::Dies], "its worker is gone"),
        (&[Fate::NotPaused], "could not be paused: does not pause"),
        (&[Fate::NotSaved], "free disk space and try again"),
        (
            &[Fate::SavedShort],
            "has 1048575 bytes and should have 1048576",
        ),
        (&[good, Fate::Unforkable], "could not be forked: no worker"),
        (&[good, Fate::Dies], "could not be forked"),
        (&[good, Fate::NotRenewed], "no reseed"),
    ] {
        let works = Works::open();
        works.machines.fates(fates);
        let error = failure(&works, &pool("alpha")).await;
        let text = crate::exit::chain(&*error);
        assert!(text.contains(says), "{fates:?}: {text}");
        assert!(!matches!(*error, GoldenError::Container(_)), "{fates:?}");
        // The same pool can be made afterwards.
        works
            .goldens
            .ensure(works.recipe(&pool("alpha")))
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn container_that_does_not_come_up_is_blamed_with_its_last_lines() {
    let works = Works::open();
    works.machines.fates(&[Fate::Exits]);
    let error = failure(&works, &running_pool("alpha")).await;
    let GoldenError::Container(failure) = &*error else {
        panic!("{error}");
    };
    assert_eq!(failure.console, ["no database"]);
    let exited = StartFailureCause::Exited {
        how: "exit status 3".into(),
        port: 8080,
    };
    assert_eq!(failure.cause, exited);
}

#[tokio::test(start_paused = true)]
async fn container_that_never_answers_is_given_up_in_time() {
    let works = Works::open();
    works.machines.fates(&[Fate::NeverReady]);
    let error = failure(&works, &running_pool("alpha")).await;
    let text = error.to_string();
    assert!(
        matches!(&*error, GoldenError::Container(_)) && text.contains("within 60 seconds"),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn container_is_not_blamed_for_what_came_before_it() {
    let works = Works::open();
    for alpha in [pool("alpha"), running_pool("alpha")] {
        for fate in [Fate::Silent, Fate::NotRenewed, Fate::Dies] {
            works.machines.fates(&[fate]);
            let error = failure(&works, &alpha).await;
            let text = error.to_string();
            assert!(
                !matches!(*error, GoldenError::Container(_)),
                "{fate:?}: {text}"
            );
            assert!(!text.contains("ort 8080"), "{fate:?}: {text}");
        }
    }
}

#[tokio::test]
async fn golden_without_a_working_set_is_good_enough() {
    for fate in [Fate::NotRecorded, Fate::NotPaused] {
        let works = Works::open();
        works.machines.fates(&[Fate::Good, fate]);
        works
            .goldens
            .ensure(works.recipe(&pool("alpha")))
            .await
            .unwrap();
        let golden = works.goldens.find(&works.recipe(&pool("alpha"))).unwrap();
        let working_set = golden.open().unwrap().working_set;
        assert!(matches!(working_set, WorkingSet::Unknown), "{fate:?}");
    }
}

#[tokio::test]
async fn folder_that_cannot_be_written_is_named() {
    let works = Works::open();
    std::fs::remove_dir(works.folder.path()).unwrap();
    let built = works.goldens.ensure(works.recipe(&pool("alpha"))).await;
    let text = crate::exit::chain(&*built.unwrap_err());
    assert!(text.contains("could not be stored: Cannot make "), "{text}");
    assert!(works.machines.launched().is_empty());
    std::fs::create_dir(works.folder.path()).unwrap();
}

/// A pool whose container has started when it accepts on this port.
fn probed_pool(fork_point: ForkPoint) -> crate::store::PoolRecord {
    let startup = Probe {
        check: Check::TcpSocket { port: 9000 },
        initial_delay_seconds: 40,
        period_seconds: 10,
        timeout_seconds: 1,
        failure_threshold: 5,
        success_threshold: 1,
        termination_grace_seconds: None,
    };
    let mut probed = pool("alpha");
    probed.fork_point = fork_point;
    probed.probes.startup = Some(startup);
    probed
}

#[tokio::test(start_paused = true)]
async fn golden_after_ready_is_held_when_its_startup_probe_has_succeeded() {
    let works = Works::open();
    works.machines.refuse(3);
    let begun = tokio::time::Instant::now();
    let recipe = works.recipe(&probed_pool(ForkPoint::AfterReady));
    works.goldens.ensure(recipe).await.unwrap();
    // Longer than the start deadline of 60 s, which is for the target port.
    assert!(begun.elapsed().as_secs() >= 70);
    assert_eq!(works.machines.ports(), [9000; 4]);
}

#[tokio::test(start_paused = true)]
async fn container_that_never_passes_its_startup_probe_is_blamed_with_what_was_seen() {
    let works = Works::open();
    works.machines.refuse(5);
    let error = failure(&works, &probed_pool(ForkPoint::AfterReady)).await;
    let text = error.to_string();
    assert!(matches!(&*error, GoldenError::Container(_)), "{text}");
    assert!(
        text.contains("its startup probe failed 5 times in a row, the last time because a connection to port 9000 was refused"),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn container_that_ends_while_its_golden_is_asked_is_blamed_at_once() {
    let works = Works::open();
    works.machines.refuse(5);
    works.machines.fates(&[Fate::ExitsLater]);
    let error = failure(&works, &probed_pool(ForkPoint::AfterReady)).await;
    let GoldenError::Container(failure) = &*error else {
        panic!("{error}");
    };
    let how = "exit status 3".to_owned();
    assert_eq!(failure.cause, StartFailureCause::Ended { how });
    assert_eq!(works.machines.ports(), [0; 0]);
}

#[tokio::test]
async fn golden_before_the_start_asks_nothing() {
    let works = Works::open();
    let recipe = works.recipe(&probed_pool(ForkPoint::BeforeStart));
    works.goldens.ensure(recipe).await.unwrap();
    assert_eq!(works.machines.ports(), [0; 0]);
}
