//! What must hold with many sessions, and whatever ends the appliance.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::task::JoinSet;

use super::*;
use crate::access::{Audiences, Authority, DEFAULT_AUDIENCES};
use crate::store::{HostStore, Records};

const SESSIONS: usize = 1000;
/// As many callers ask at the same time.
const CALLERS: usize = 32;

/// Every session once, by many callers; what each of them has answered.
async fn ask_all(client: &Arc<Client>, path: &'static str) -> Vec<String> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (client, next) = (Arc::clone(client), Arc::clone(&next));
        callers.spawn(async move {
            let mut answers = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= SESSIONS {
                    return answers;
                }
                let answer = client
                    .get("many", path, &format!("user-{number}"))
                    .await
                    .unwrap();
                let body = String::from_utf8(answer.body.to_vec()).unwrap();
                assert_eq!(answer.status, 200, "{body}");
                answers.push((number, body));
            }
        });
    }
    let mut answers = callers.join_all().await.concat();
    answers.sort_unstable();
    answers.into_iter().map(|(_, body)| body).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousand_sessions_of_one_pool_answer_end_and_leave_nothing() {
    let Some(native) = Native::start("thousand_sessions").await else {
        return;
    };
    native.pool("many", SESSIONS, CALLERS).await;
    let client = Arc::new(native.client().await);
    let answers = ask_all(&client, "/id").await;
    let different: HashSet<_> = answers.iter().collect();
    assert_eq!(different.len(), SESSIONS, "some share a container");
    assert_eq!(ask_all(&client, "/id").await, answers);
    let counts = native.counts("many").await;
    assert_eq!(counts["allocated"], SESSIONS, "{counts}");
    assert_eq!(native.warden.children(), SESSIONS);
    // There is no place for one more.
    let answer = client.get("many", "/id", "one-more").await.unwrap();
    assert_eq!(answer.status, 429, "{answer:?}");

    native.delete_pool("many").await;
    assert_eq!(native.warden.children(), 0);
    assert_eq!(entries(&native.paths.workers), 0);
    let (status, native) = native.stop();
    assert!(status.success(), "{status}");
    let store = HostStore::open(&native.paths.store, &native.paths.sessions).unwrap();
    let records = Records::new(Arc::new(store));
    assert_eq!(records.sessions().await.unwrap(), []);
}

/// Whether a token is good for an appliance with this store.
async fn is_good(paths: &Paths, token: &str) -> bool {
    let store = HostStore::open(&paths.store, &paths.sessions).unwrap();
    let audiences = Audiences::new(DEFAULT_AUDIENCES.map(str::to_owned));
    let records = Records::new(Arc::new(store));
    let authority = Authority::open(records, audiences, Vec::new())
        .await
        .unwrap();
    let value = format!("Bearer {token}").parse().unwrap();
    let headers = [(http::header::AUTHORIZATION, value)].into_iter().collect();
    authority.check(&headers).await.is_ok()
}

/// A revocation that was answered was written, and keys that were rotated are those of the next process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_that_was_revoked_is_no_good_to_the_next_process_however_this_one_ends() {
    let Some(native) = Native::start("revoked").await else {
        return;
    };
    let mut made = Vec::new();
    for _ in 0..3 {
        let (status, answer) = native.admin().send("POST", "/tokens", "{}").await;
        assert_eq!(status, 200, "{answer}");
        let text = |field: &str| answer[field].as_str().unwrap().to_owned();
        made.push((text("id"), text("token")));
        let (status, answer) = native.admin().send("POST", "/tokens/rotate", "{}").await;
        assert_eq!(status, 200, "{answer}");
    }
    let revoked = &made[1];
    let path = format!("/tokens/{}", revoked.0);
    let (status, answer) = native.admin().send("DELETE", &path, "").await;
    assert_eq!(status, 200, "{answer}");
    let native = native.kill();
    for (id, token) in &made {
        assert_eq!(is_good(&native.paths, token).await, *id != revoked.0);
    }
}

/// What is answered was written before, and is there for the next process whenever this one ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claim_that_was_answered_is_in_the_store_of_a_process_that_was_killed() {
    /// So many are answered before the end comes, in the midst of others.
    const ANSWERED: usize = 50;
    let Some(native) = Native::start("killed").await else {
        return;
    };
    native.pool("many", SESSIONS, CALLERS).await;
    native.until_ready("many", CALLERS).await;
    let client = Arc::new(native.client().await);
    let (answered, mut told) = tokio::sync::mpsc::unbounded_channel();
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let (client, answered) = (Arc::clone(&client), answered.clone());
            tokio::spawn(async move {
                for number in 0.. {
                    let identifier = format!("user-{caller}-{number}");
                    match client.get("many", "/", &identifier).await {
                        Ok(answer) if answer.status == 200 => answered.send(identifier).unwrap(),
                        Ok(_) | Err(_) => return,
                    }
                }
            })
        })
        .collect();
    drop(answered);
    let mut identifiers = Vec::new();
    while identifiers.len() < ANSWERED {
        identifiers.push(told.recv().await.expect("the appliance ended too early"));
    }
    let native = native.kill();
    for caller in callers {
        caller.abort();
    }
    // What came just before the end counts as well.
    while let Some(identifier) = told.recv().await {
        identifiers.push(identifier);
    }
    let store = HostStore::open(&native.paths.store, &native.paths.sessions).unwrap();
    let stored = Records::new(Arc::new(store)).sessions().await.unwrap();
    let stored: HashSet<_> = stored
        .iter()
        .map(|session| String::from_utf8(session.identifier.as_bytes().to_vec()).unwrap())
        .collect();
    let lost: Vec<_> = identifiers
        .iter()
        .filter(|it| !stored.contains(*it))
        .collect();
    assert!(
        lost.is_empty(),
        "{} answered, lost: {lost:?}",
        identifiers.len()
    );
}
