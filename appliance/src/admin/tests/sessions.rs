//! The sessions of a pool, as its operator sees them.

use super::*;

#[tokio::test]
async fn sessions_are_listed_shown_and_stopped() {
    let office = Office::open().await;
    let pool = format!("{GROUP}/alpha");
    office.put(&pool, &resource()).await;
    let list = format!("{pool}/sessions?api-version=2026-07-01");
    let none = json!({ "count": 0, "value": [], "nextLink": null });
    assert_eq!(office.call("GET", &list, "").await, (200, none.clone()));

    let driver = office.pools.get(&"alpha".parse().unwrap()).unwrap().1;
    // What a path cannot hold as it is.
    let identifier = "b/..?#%&2;";
    let first = driver.claim("a-user".parse().unwrap()).await;
    let second = driver.claim(identifier.parse().unwrap()).await;
    let [Ok(_first), Ok(second)] = [first, second] else {
        panic!("not leased");
    };
    let (status, found) = office.call("GET", &list, "").await;
    assert_eq!((status, &found["count"]), (200, &json!(2)));
    let names = [0, 1].map(|index| found["value"][index]["identifier"].clone());
    assert_eq!(names, [json!("a-user"), json!(identifier)]);

    let encoded: String = identifier.bytes().map(|b| format!("%{b:02X}")).collect();
    let one = format!("{pool}/sessions/{encoded}");
    let (status, shown) = office.call("GET", &one, "").await;
    assert_eq!(status, 200, "{shown}");
    assert_eq!(shown["identifier"], identifier);
    assert_eq!(shown["session"], second.session.to_string());
    assert_eq!(shown["state"], "active");
    assert_eq!(shown["openRequests"], 1);
    let revision = office.pools.list()[0].revision.to_string();
    assert_eq!(shown["revision"], revision);
    for time in ["createdAt", "lastAccessedAt", "expiresAt"] {
        let text = shown[time].as_str().unwrap();
        assert!(text.parse::<jiff::Timestamp>().is_ok(), "{time} {text}");
    }
    assert!(
        shown["worker"]
            .as_str()
            .unwrap()
            .parse::<uuid::Uuid>()
            .is_ok()
    );

    let (status, stopped) = office.call("DELETE", &one, "").await;
    assert_eq!((status, &stopped["session"]), (200, &shown["session"]));
    assert_eq!(office.launcher.alive(), 1, "answered before it was gone");
    assert_eq!(office.call("GET", &list, "").await.1["count"], 1);
    for method in ["GET", "DELETE"] {
        let (status, answer) = office.call(method, &one, "").await;
        let error = &answer["error"];
        assert_eq!(
            (status, &error["code"]),
            (400, &json!("SessionWithIdentifierNotFound"))
        );
        assert_eq!(error["target"], "identifier");
    }
}

#[tokio::test]
async fn asking_for_a_session_starts_none() {
    let office = Office::open().await;
    let pool = format!("{GROUP}/alpha");
    office.put(&pool, &resource()).await;
    for (method, path, status, code) in [
        (
            "GET",
            "alpha/sessions/nobody",
            400,
            "SessionWithIdentifierNotFound",
        ),
        (
            "DELETE",
            "alpha/sessions/nobody",
            400,
            "SessionWithIdentifierNotFound",
        ),
        (
            "GET",
            "alpha/sessions/abc",
            400,
            "SessionRequestValidationFailed",
        ),
        (
            "GET",
            "alpha/sessions/a%20blank",
            400,
            "SessionRequestValidationFailed",
        ),
        ("GET", "beta/sessions", 404, "ResourceNotFound"),
        ("GET", "beta/sessions/nobody", 404, "ResourceNotFound"),
        ("POST", "alpha/sessions", 405, "MethodNotAllowed"),
        ("PUT", "alpha/sessions/nobody", 405, "MethodNotAllowed"),
        ("GET", "alpha/sessions/nobody/more", 404, "ResourceNotFound"),
        ("GET", "alpha/sessions/", 404, "ResourceNotFound"),
        ("GET", "alpha/slots", 404, "ResourceNotFound"),
    ] {
        let (found, answer) = office.call(method, &format!("{GROUP}/{path}"), "").await;
        let error = &answer["error"];
        assert_eq!(
            (found, &error["code"]),
            (status, &json!(code)),
            "{method} {path}: {answer}"
        );
    }
    assert_eq!(office.launcher.launched(), 0);
}
