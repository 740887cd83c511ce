//! Operations: their order, their limits, and what becomes of them when the appliance ends.

use uuid::Uuid;

use super::*;
use crate::arm::conditions::goal;
use crate::arm::operations::MAX_OPEN;
use crate::arm::testing::arm;
use crate::front::refusal::Code;
use crate::pool::testing::FakeLauncher;
use crate::store::tests::pool as record;
use crate::store::{OperationEnd, OperationFailure, OperationKind, OperationRecord, PoolRecord};

fn operation(id: u128, kind: OperationKind, goal: Option<String>) -> OperationRecord {
    let pool = record("alpha");
    OperationRecord {
        id: Uuid::from_u128(id),
        kind,
        subscription: pool.subscription,
        resource_group: pool.resource_group,
        pool: pool.name,
        goal,
        begun_at_ms: 1,
        end: None,
    }
}

/// How it has ended: nothing if it has not, else the code of its failure, if it has one.
async fn end(arm: &Arc<Arm>, id: u128) -> Option<Option<String>> {
    let record = arm.operations.get(Uuid::from_u128(id))?;
    record
        .end
        .map(|end| end.failure.map(|failure| failure.code))
}

#[tokio::test]
async fn operation_that_an_earlier_run_left_is_ended_by_what_the_store_says() {
    let launcher = FakeLauncher::mute();
    let pools = Pools::open(launcher.tools()).await.unwrap();
    let (made, _) = pools.put(record("alpha")).await.unwrap();
    let records = launcher.tools().records;
    let other = PoolRecord {
        max_sessions: 11,
        ..(*made).clone()
    };
    for left in [
        operation(1, OperationKind::Update, Some(goal(&made))),
        operation(2, OperationKind::Update, Some(goal(&other))),
        operation(3, OperationKind::Create, None),
    ] {
        records.put_operation(left, Vec::new()).await.unwrap();
    }
    let arm = arm(&launcher, &pools, None).await;
    assert_eq!(end(&arm, 1).await, Some(None), "it was made");
    let interrupted = Some(Some("OperationInterrupted".to_owned()));
    assert_eq!(end(&arm, 2).await, interrupted);
    assert_eq!(end(&arm, 3).await, interrupted);
    let kept = records.operations().await.unwrap();
    assert!(kept.iter().all(|record| record.end.is_some()), "{kept:?}");
}

#[tokio::test]
async fn deletion_that_an_earlier_run_left_goes_on() {
    let launcher = FakeLauncher::mute();
    let pools = Pools::open(launcher.tools()).await.unwrap();
    pools.put(record("alpha")).await.unwrap();
    let records = launcher.tools().records;
    let left = operation(1, OperationKind::Delete, None);
    records.put_operation(left, Vec::new()).await.unwrap();
    let arm = arm(&launcher, &pools, None).await;
    // Whoever comes later waits for it.
    let pool = Arc::new(record("alpha"));
    let next = arm.operations.begin(OperationKind::Create, pool, false);
    next.await.unwrap().turn().await;
    assert_eq!(end(&arm, 1).await, Some(None));
    assert!(pools.list().is_empty());
}

#[tokio::test]
async fn deletion_of_what_is_gone_has_succeeded() {
    let launcher = FakeLauncher::mute();
    let pools = Pools::open(launcher.tools()).await.unwrap();
    let records = launcher.tools().records;
    let left = operation(1, OperationKind::Delete, None);
    records.put_operation(left, Vec::new()).await.unwrap();
    let arm = arm(&launcher, &pools, None).await;
    assert_eq!(end(&arm, 1).await, Some(None));
}

#[tokio::test]
async fn changes_of_one_pool_have_their_turns_in_order_and_one_that_leaves_lets_nobody_pass() {
    let launcher = FakeLauncher::mute();
    let pools = Pools::open(launcher.tools()).await.unwrap();
    let arm = arm(&launcher, &pools, None).await;
    let begin = || async {
        let pool = Arc::new(record("alpha"));
        let begun = arm.operations.begin(OperationKind::Update, pool, false);
        begun.await.unwrap()
    };
    let (first, second, third) = (begin().await, begin().await, begin().await);
    first.turn().await;
    drop(second);
    let mut turn = Box::pin(third.turn());
    assert!(is_pending(&mut turn).await, "the first one is not done");
    first.end(None).await;
    turn.await;
}

/// Whether it is still waiting after everybody else had their chance.
async fn is_pending<F: Future + Unpin>(future: &mut F) -> bool {
    tokio::task::yield_now().await;
    let mut future = std::pin::Pin::new(future);
    std::future::poll_fn(|context| {
        std::task::Poll::Ready(future.as_mut().poll(context).is_pending())
    })
    .await
}

#[tokio::test]
async fn change_that_is_on_its_way_when_the_appliance_stops_is_given_up() {
    let launcher = FakeLauncher::mute();
    let pools = Pools::open(launcher.tools()).await.unwrap();
    let arm = arm(&launcher, &pools, None).await;
    let pool = Arc::new(record("alpha"));
    let begun = arm.operations.begin(OperationKind::Create, pool, false);
    let ticket = begun.await.unwrap();
    assert!(ticket.given_up().is_none());
    let mut settled = Box::pin(arm.settled());
    arm.stop();
    ticket.until_given_up().await;
    let reason = ticket.given_up().unwrap();
    assert_eq!(
        (reason.code, &*reason.message),
        (Code::SessionPoolClosing, "The appliance is stopping")
    );
    assert!(is_pending(&mut settled).await);
    ticket.end(Some(&reason)).await;
    settled.await;
}

#[tokio::test]
async fn operations_are_so_many_at_once_and_not_more() {
    let launcher = FakeLauncher::mute();
    let pools = Pools::open(launcher.tools()).await.unwrap();
    let arm = arm(&launcher, &pools, None).await;
    let begin = |number: usize| {
        let pool = Arc::new(record(&format!("pool-{number}")));
        arm.operations.begin(OperationKind::Create, pool, false)
    };
    let mut tickets = Vec::new();
    for number in 0..MAX_OPEN {
        tickets.push(begin(number).await.unwrap());
    }
    let refusal = begin(MAX_OPEN).await.err().unwrap();
    assert_eq!(refusal.code, Code::TooManyOperations);
    assert!(refusal.headers.contains_key(http::header::RETRY_AFTER));
    tickets.pop();
    assert!(begin(MAX_OPEN).await.is_ok());
}

#[tokio::test]
async fn operations_that_ended_long_ago_are_forgotten_and_others_are_not() {
    let launcher = FakeLauncher::mute();
    let pools = Pools::open(launcher.tools()).await.unwrap();
    let records = launcher.tools().records;
    let now = crate::pool::unix_millis();
    let day = 24 * 3600 * 1000;
    let failure = Some(OperationFailure {
        code: "ImageNotFound".into(),
        message: "no".into(),
        target: None,
    });
    for (id, at_ms) in [(1, now - day - 60_000), (2, now - day + 60_000)] {
        let ended = OperationRecord {
            end: Some(OperationEnd {
                at_ms,
                failure: failure.clone(),
            }),
            ..operation(id, OperationKind::Create, None)
        };
        records.put_operation(ended, Vec::new()).await.unwrap();
    }
    let arm = arm(&launcher, &pools, None).await;
    let pool = Arc::new(record("beta"));
    let begun = arm.operations.begin(OperationKind::Create, pool, true);
    let ticket = begun.await.unwrap();
    let kept = |id: u128| arm.operations.get(Uuid::from_u128(id)).is_some();
    assert!(!kept(1) && kept(2));
    let stored = records.operations().await.unwrap();
    let ids: Vec<_> = stored.iter().map(|record| record.id).collect();
    assert!(ids.contains(&ticket.id()) && ids.len() == 2, "{ids:?}");
}
