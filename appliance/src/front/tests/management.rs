//! The platform's calls on sessions: what they answer, to whom, and what they leave alone.

use jiff::Timestamp;
use serde_json::json;

use super::*;
use crate::pool::Identifier;
use crate::pool::budget::{Budget, Size};

const VERSION: &str = "api-version=2025-02-02-preview";

async fn number(number: usize, _: Request<Incoming>) -> Response<Any> {
    say(number.to_string()).await
}

impl Door {
    /// A management call with its query.
    async fn call(&self, name: &str, query: &str) -> Got {
        let tail = format!("/.management/{name}?{query}");
        self.send(self.request("POST", &tail, empty())).await
    }
}

fn keys(value: &serde_json::Value) -> Vec<&str> {
    value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

fn time(value: &serde_json::Value) -> Timestamp {
    value.as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn session_is_shown_as_clients_of_the_cloud_service_expect_it() {
    let door = Door::with(number).await;
    door.get("/?identifier=user%2D42").await;
    let got = door
        .call("getSession", &format!("{VERSION}&identifier=user-42"))
        .await;
    assert_eq!(got.status, StatusCode::OK);
    assert_eq!(got.headers[header::CONTENT_TYPE], "application/json");
    assert!(got.headers.contains_key("operation-id"));
    let shown = got.json();
    let expected = [
        "createdAt",
        "etag",
        "expireAt",
        "expiresAt",
        "identifier",
        "lastAccessedAt",
    ];
    assert_eq!(keys(&shown), expected);
    assert_eq!(shown["identifier"], "user-42");
    assert_eq!(shown["expireAt"], shown["expiresAt"]);
    let accessed = time(&shown["lastAccessedAt"]);
    let left = time(&shown["expiresAt"]).duration_since(accessed);
    assert_eq!(left.as_secs(), 300);
    assert!(time(&shown["createdAt"]) <= accessed);
    // Looking at it changes nothing, a request changes no more than the times, and a new session
    // has another tag.
    let query = format!("{VERSION}&identifier=user-42");
    assert_eq!(door.call("getSession", &query).await.json(), shown);
    door.get("/?identifier=user-42").await;
    let later = door.call("getSession", &query).await.json();
    assert_eq!(
        (&later["etag"], &later["createdAt"]),
        (&shown["etag"], &shown["createdAt"])
    );
    door.call("stopSession", &query).await;
    door.get("/?identifier=user-42").await;
    assert_ne!(
        door.call("getSession", &query).await.json()["etag"],
        shown["etag"]
    );
}

#[tokio::test]
async fn session_that_is_not_there_is_not_made_by_asking_for_it() {
    let door = Door::with(number).await;
    for call in ["getSession", "stopSession"] {
        let got = door
            .call(call, &format!("{VERSION}&identifier=user-1"))
            .await;
        assert_eq!(got.code(), "400 SessionWithIdentifierNotFound", "{call}");
    }
    let got = door.call("listSessions", VERSION).await;
    let nothing = serde_json::json!({ "value": [], "count": 0, "nextLink": null });
    assert_eq!((got.status, got.json()), (StatusCode::OK, nothing));
    assert_eq!(door.launcher.launched(), 0);
}

#[tokio::test]
async fn stopped_session_is_gone_and_cannot_be_stopped_again() {
    let door = Door::with(number).await;
    assert_eq!(door.get("/?identifier=user-1").await.body, "0");
    let query = format!("{VERSION}&identifier=user-1");
    let got = door.call("stopSession", &query).await;
    assert_eq!(got.status, StatusCode::OK);
    assert_eq!(got.headers[header::CONTENT_TYPE], "text/plain");
    assert_eq!(got.body, "Session user-1 in session pool alpha stopped.");
    assert_eq!(door.launcher.alive(), 0);
    let again = door.call("stopSession", &query).await;
    assert_eq!(again.code(), "400 SessionWithIdentifierNotFound");
    assert_eq!(door.get("/?identifier=user-1").await.body, "1");
}

#[tokio::test]
async fn sessions_are_listed_by_pages_that_lead_to_each_other() {
    let door = Door::with(number).await;
    let large = PoolRecord {
        max_sessions: 400,
        ..record("alpha")
    };
    door.pools.put(large).await.unwrap();
    let (_, pool) = door.pools.get(&"alpha".parse().unwrap()).unwrap();
    for n in 0..301 {
        let identifier: Identifier = format!("user-{n:03}").parse().unwrap();
        assert!(in_time(pool.claim(identifier)).await.is_ok());
    }
    let first = door.call("listSessions", VERSION).await.json();
    assert_eq!(
        (&first["count"], first["value"].as_array().unwrap().len()),
        (&300.into(), 300)
    );
    let shown = &first["value"][17];
    assert_eq!(keys(shown), ["etag", "expireAt", "expiresAt", "identifier"]);
    assert_eq!(shown["identifier"], "user-017");
    let next = first["nextLink"].as_str().unwrap();
    assert_eq!(
        next,
        format!("https://localhost{BASE}/.management/listSessions?{VERSION}&skip=300")
    );
    let tail = next.strip_prefix("https://localhost").unwrap();
    let tail = tail.strip_prefix(BASE).unwrap();
    let second = door.send(door.request("POST", tail, empty())).await.json();
    assert_eq!(
        (&second["count"], &second["nextLink"]),
        (&1.into(), &serde_json::Value::Null)
    );
    assert_eq!(second["value"][0]["identifier"], "user-300");
    let beyond = door
        .call("listSessions", &format!("{VERSION}&skip=999"))
        .await;
    assert_eq!(beyond.json()["value"], serde_json::json!([]));
}

#[tokio::test]
async fn wrong_calls_are_refused_with_what_is_wrong() {
    let door = Door::with(number).await;
    let id = "identifier=user-1";
    let invalid = "400 SessionRequestValidationFailed";
    for (method, tail, code, target) in [
        (
            "GET",
            format!("getSession?{VERSION}&{id}"),
            invalid,
            Some("method"),
        ),
        (
            "DELETE",
            format!("stopSession?{VERSION}&{id}"),
            invalid,
            Some("method"),
        ),
        (
            "POST",
            format!("getSession?{id}"),
            invalid,
            Some("api-version"),
        ),
        (
            "POST",
            "listSessions".to_owned(),
            invalid,
            Some("api-version"),
        ),
        (
            "POST",
            format!("getSession?api-version=v1&{id}"),
            invalid,
            Some("api-version"),
        ),
        (
            "POST",
            format!("stopSession?{VERSION}&{VERSION}&{id}"),
            invalid,
            Some("api-version"),
        ),
        (
            "POST",
            format!("getSession?{VERSION}"),
            invalid,
            Some("identifier"),
        ),
        (
            "POST",
            format!("stopSession?{VERSION}&identifier=abc"),
            invalid,
            Some("identifier"),
        ),
        (
            "POST",
            format!("listSessions?{VERSION}&skip=-1"),
            invalid,
            Some("skip"),
        ),
        (
            "POST",
            format!("getSessions?{VERSION}&{id}"),
            "400 SessionRequestNotSupported",
            None,
        ),
        (
            "POST",
            format!("getSession/x?{VERSION}&{id}"),
            "400 SessionRequestNotSupported",
            None,
        ),
        (
            "POST",
            String::new(),
            "400 SessionRequestNotSupported",
            None,
        ),
    ] {
        let tail = format!("/.management/{tail}");
        let got = door.send(door.request(method, &tail, empty())).await;
        assert_eq!(got.code(), code, "{method} {tail}");
        assert_eq!(
            got.json()["error"]["target"].as_str(),
            target,
            "{method} {tail}"
        );
    }
    assert_eq!(door.launcher.launched(), 0);
}

#[tokio::test]
async fn every_version_in_use_and_any_spelling_of_the_path_will_do() {
    let door = Door::with(number).await;
    door.get("/?identifier=user-1").await;
    for version in [
        "2024-02-02-preview",
        "2025-02-02-preview",
        "2025-10-02-preview",
        "2025-07-01",
    ] {
        let query = format!("identifier=user-1&api-version={version}");
        assert_eq!(
            door.call("getSession", &query).await.status,
            StatusCode::OK,
            "{version}"
        );
    }
    let tail = format!("/.MANAGEMENT/getsession?{VERSION}&identifier=user-1");
    let got = door.send(door.request("POST", &tail, empty())).await;
    assert_eq!(got.status, StatusCode::OK);
}

#[tokio::test]
async fn management_needs_the_role_of_those_who_use_sessions() {
    let door = Door::with(number).await;
    for grant in [Grant::of(Role::Reader), executor(&["beta"])] {
        let tail = format!("/.management/listSessions?{VERSION}");
        let mut request = door.request("POST", &tail, empty());
        let token = format!("Bearer {}", door.token_for(&grant));
        let headers = request.headers_mut();
        headers.insert(header::AUTHORIZATION, token.parse().unwrap());
        assert_eq!(door.send(request).await.code(), "403 Forbidden");
    }
    let mut request = door.request("POST", "/.management/listSessions", empty());
    request.headers_mut().remove(header::AUTHORIZATION);
    assert_eq!(door.send(request).await.code(), "401 Unauthorized");
}

#[tokio::test]
async fn token_bound_to_identifiers_knows_of_no_other_session() {
    let door = Door::with(number).await;
    for user in ["team-1", "team-2", "user-9"] {
        door.get(&format!("/?identifier={user}")).await;
    }
    let bound = Grant {
        identifiers: vec!["team-*".parse().unwrap()],
        ..executor(&[])
    };
    let token = format!("Bearer {}", door.token_for(&bound));
    let ask = async |method: &str, tail: &str| {
        let mut request = door.request(method, tail, empty());
        let headers = request.headers_mut();
        headers.insert(header::AUTHORIZATION, token.parse().unwrap());
        door.send(request).await
    };
    let list = format!("/.management/listSessions?{VERSION}");
    let listed = ask("POST", &list).await.json();
    let mut names: Vec<_> = listed["value"].as_array().unwrap().iter().collect();
    names.sort_by_key(|session| session["identifier"].to_string());
    let names: Vec<_> = names.iter().map(|session| &session["identifier"]).collect();
    let expected = [json!("team-1"), json!("team-2")];
    assert_eq!(
        (names, &listed["count"]),
        (expected.iter().collect(), &json!(2))
    );
    // The same whether it exists or not.
    let mut said = Vec::new();
    for name in ["user-9", "nobody"] {
        for call in ["getSession", "stopSession"] {
            let got = ask(
                "POST",
                &format!("/.management/{call}?{VERSION}&identifier={name}"),
            )
            .await;
            assert_eq!(got.code(), "403 Forbidden", "{call} {name}");
            said.push(got.message());
        }
        let got = ask("GET", &format!("/?identifier={name}")).await;
        assert_eq!(got.code(), "403 Forbidden", "{name}");
        said.push(got.message());
    }
    said.dedup();
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!(door.launcher.launched(), 3);
    let tail = format!("/.management/stopSession?{VERSION}&identifier=team-1");
    assert_eq!(ask("POST", &tail).await.status, StatusCode::OK);
    assert_eq!(
        ask("GET", "/?identifier=team-3").await.status,
        StatusCode::OK
    );
}

#[tokio::test]
async fn host_without_room_is_told_apart_from_a_full_pool() {
    let launcher = FakeLauncher::new(http_server(number));
    launcher.budget(Budget::new(Size {
        mem_mib: 3 * 528,
        cpu_millis: 4000,
    }));
    let door = Door::open(launcher).await;
    let beta = PoolRecord {
        max_sessions: 3,
        ..record("beta")
    };
    door.pools.put(beta).await.unwrap();
    let (_, beta) = door.pools.get(&"beta".parse().unwrap()).unwrap();
    let _held = in_time(beta.claim("user-1".parse().unwrap())).await;
    for user in ["user-1", "user-2"] {
        let got = door.get(&format!("/?identifier={user}")).await;
        assert_eq!(got.status, StatusCode::OK);
    }
    let got = door.get("/?identifier=user-3").await;
    assert_eq!(got.code(), "503 HostCapacityReached");
    let message = got.message();
    assert!(
        message.contains("528 MiB: 1584 MiB of 1584 MiB"),
        "{message}"
    );
    assert!(got.headers.contains_key(header::RETRY_AFTER));
}

#[tokio::test]
async fn host_that_is_drained_says_so_to_those_without_a_session_in_use() {
    let door = Door::open(FakeLauncher::new(http_server(number))).await;
    let (_, alpha) = door.pools.get(&"alpha".parse().unwrap()).unwrap();
    let _held = in_time(alpha.claim("user-1".parse().unwrap())).await;
    door.pools.drain(Duration::from_secs(600));
    let got = door.get("/?identifier=user-1").await;
    assert_eq!(got.status, StatusCode::OK);
    let got = door.get("/?identifier=user-2").await;
    assert_eq!(got.code(), "503 HostDraining");
    assert!(got.headers.contains_key(header::RETRY_AFTER));
}
