use super::*;
use crate::golden::testing::{Fate, Works, pool, running_pool};

impl Works {
    async fn start(&self, pool: &PoolRecord) -> Result<Launched, StartFailure> {
        let pool = Arc::new(pool.clone());
        self.launcher
            .launch(StartOrder {
                pool,
                urgency: crate::worker::Urgency::Claim,
            })
            .await
    }

    async fn with_golden(pool: &PoolRecord) -> Self {
        let works = Self::open();
        works
            .launcher
            .prepare(Arc::new(pool.clone()))
            .await
            .unwrap();
        works
            .launcher
            .pools_changed(vec![Arc::new(pool.clone())])
            .await;
        works.machines.launched();
        works
    }
}

#[tokio::test]
async fn session_is_a_fork_when_there_is_a_golden_and_boots_when_there_is_none() {
    for alpha in [pool("alpha"), running_pool("alpha")] {
        let works = Works::with_golden(&alpha).await;
        let mut launched = works.start(&alpha).await.unwrap();
        assert_eq!(launched.events.recv().await, Some(GuestEvent::Ready));
        assert_eq!(works.machines.launched(), ["fork session"]);
        assert_eq!(works.machines.cpu_millis().last(), Some(&alpha.cpu_millis));
        let other = PoolRecord {
            mem_mib: 128,
            ..alpha
        };
        let mut launched = works.start(&other).await.unwrap();
        assert_eq!(launched.events.recv().await, Some(GuestEvent::Ready));
        assert_eq!(works.machines.launched(), ["boot session"]);
    }
}

#[tokio::test]
async fn every_session_has_a_worker_of_its_own() {
    let works = Works::with_golden(&pool("alpha")).await;
    let one = works.start(&pool("alpha")).await.unwrap();
    let two = works.start(&pool("alpha")).await.unwrap();
    assert_ne!(one.worker, two.worker);
}

#[tokio::test]
async fn session_boots_when_its_fork_fails_and_the_golden_is_made_anew() {
    for fate in [Fate::Unforkable, Fate::Dies, Fate::NotRenewed] {
        let works = Works::with_golden(&pool("alpha")).await;
        works.machines.fates(&[fate]);
        let mut launched = works.start(&pool("alpha")).await.unwrap();
        assert_eq!(
            launched.events.recv().await,
            Some(GuestEvent::Ready),
            "{fate:?}"
        );
        works.wait_for(&pool("alpha")).await;
        let mut log = works.machines.launched();
        log.sort();
        let expected = [
            "boot golden beforeStart",
            "boot session",
            "fork session",
            "fork trial",
        ];
        assert_eq!(log, expected, "{fate:?}");
        works.start(&pool("alpha")).await.unwrap();
        assert_eq!(works.machines.launched(), ["fork session"]);
    }
}

#[tokio::test]
async fn golden_is_not_blamed_for_a_host_that_starts_no_worker() {
    let works = Works::with_golden(&pool("alpha")).await;
    works.machines.fates(&[Fate::Unlaunched]);
    works.start(&pool("alpha")).await.unwrap();
    assert_eq!(works.machines.launched(), ["fork session", "boot session"]);
    works.start(&pool("alpha")).await.unwrap();
    assert_eq!(works.machines.launched(), ["fork session"]);
}

#[tokio::test(start_paused = true)]
async fn fork_that_never_answers_is_given_up_in_time_for_a_boot() {
    let works = Works::with_golden(&pool("alpha")).await;
    works.machines.fates(&[Fate::Silent]);
    let begun = tokio::time::Instant::now();
    works.start(&pool("alpha")).await.unwrap();
    assert_eq!(begun.elapsed().as_secs(), 30);
    assert_eq!(
        works.machines.launched()[..2],
        ["fork session", "boot session"]
    );
}

#[tokio::test]
async fn golden_that_was_damaged_on_the_disk_is_not_forked() {
    let works = Works::with_golden(&pool("alpha")).await;
    let file = works.folder.path().join(&works.names()[0]).join("memory");
    std::fs::File::options()
        .write(true)
        .open(file)
        .unwrap()
        .set_len(7)
        .unwrap();
    works.start(&pool("alpha")).await.unwrap();
    assert_eq!(works.machines.launched()[0], "boot session");
    works.wait_for(&pool("alpha")).await;
}

#[tokio::test]
async fn session_that_can_neither_be_forked_nor_booted_fails_with_the_reason() {
    let works = Works::with_golden(&pool("alpha")).await;
    works.machines.fates(&[Fate::Unlaunched, Fate::Unlaunched]);
    let Err(failure) = works.start(&pool("alpha")).await else {
        panic!("it started");
    };
    assert!(
        failure.cause.to_string().contains("no worker"),
        "{failure:?}"
    );
    let lost = PoolRecord {
        image_digest: "lost".into(),
        ..pool("alpha")
    };
    let Err(failure) = works.start(&lost).await else {
        panic!("it started");
    };
    assert!(
        failure.cause.to_string().contains("No image"),
        "{failure:?}"
    );
}

#[tokio::test]
async fn pool_is_prepared_when_its_golden_is_there_or_with_the_reason_why_not() {
    let works = Works::open();
    let prepare = |pool: PoolRecord| works.launcher.prepare(Arc::new(pool));
    works.machines.fates(&[Fate::Exits]);
    let failure = prepare(running_pool("alpha")).await.unwrap_err();
    let PrepareFailure::Container(failure) = failure else {
        panic!("{failure:?}");
    };
    assert_eq!(failure.console, ["no database"]);
    for fate in [Fate::Dies, Fate::NotSaved] {
        works.machines.fates(&[fate]);
        let failure = prepare(pool("alpha")).await.unwrap_err();
        assert!(
            matches!(failure, PrepareFailure::Host { .. }),
            "{failure:?}"
        );
    }
    prepare(pool("alpha")).await.unwrap();
    works.goldens.close();
    assert_eq!(prepare(pool("alpha")).await, Ok(()));
    assert_eq!(
        prepare(running_pool("alpha")).await,
        Err(PrepareFailure::Closing)
    );
}
