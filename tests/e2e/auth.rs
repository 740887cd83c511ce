//! Without a good token nothing happens.

use std::thread;
use std::time::{Duration, SystemTime};

use e2e::{Session, TestAppliance};
use hyper::Method;
use hyper::header::{AUTHORIZATION, WWW_AUTHENTICATE};

e2e::tests! {
    Shared: [
        request_without_a_token_is_refused_and_told_how,
        token_that_was_changed_is_refused,
        token_of_another_appliance_or_another_scheme_is_refused,
        token_that_has_expired_is_refused,
        token_for_one_pool_does_not_open_another,
        token_without_the_role_is_told_which_one_it_needs,
        token_bound_to_identifiers_opens_those_sessions_and_tells_of_no_others,
        token_for_another_group_does_not_learn_whether_a_pool_exists,
        token_that_was_revoked_is_refused_at_once_and_is_listed_as_such,
        rotation_of_the_key_is_noticed_by_no_request_until_the_old_tokens_are_to_end,
        refused_request_starts_no_session,
    ];
    Own: [
        every_token_can_be_ended_at_once_and_no_restart_brings_one_back,
    ];
}

/// How long after its end a token is still taken, because clocks differ.
const LEEWAY: Duration = Duration::from_secs(5);

fn get_with(
    host: &TestAppliance,
    session: &Session,
    authorization: Option<&str>,
) -> e2e::client::Answer {
    let mut request = session.client().request(Method::GET, &session.target("/"));
    if let Some(value) = authorization {
        request = request.header(AUTHORIZATION, value);
    }
    let request = request.body(e2e::client::empty()).unwrap();
    host.block_on(session.send(request))
}

#[track_caller]
fn assert_unauthorized(answer: &e2e::client::Answer) {
    answer.assert_refused(401, "Unauthorized");
    let challenge = answer.headers[WWW_AUTHENTICATE].to_str().unwrap();
    assert!(challenge.starts_with("Bearer"), "{challenge}");
}

fn request_without_a_token_is_refused_and_told_how(host: &TestAppliance) {
    let session = host.shared_session();
    assert_unauthorized(&get_with(host, &session, None));
    // Before anything else is looked at: a stranger learns nothing about pools.
    let stranger = host
        .client()
        .request(Method::GET, "/nothing/here")
        .body(e2e::client::empty())
        .unwrap();
    assert_unauthorized(&host.block_on(host.client().send(stranger)));
}

fn token_that_was_changed_is_refused(host: &TestAppliance) {
    let session = host.shared_session();
    let good = session.authorization();
    assert_eq!(get_with(host, &session, Some(&good)).status, 200);
    // The first letter of each part: in the last one of a signature not every bit counts.
    let dots: Vec<usize> = good.match_indices('.').map(|(at, _)| at).collect();
    for at in ["Bearer ".len(), dots[0] + 1, dots[1] + 1] {
        let mut changed = good.clone();
        let letter = if good[at..].starts_with('A') {
            "B"
        } else {
            "A"
        };
        changed.replace_range(at..=at, letter);
        assert_unauthorized(&get_with(host, &session, Some(&changed)));
    }
    assert_unauthorized(&get_with(host, &session, Some(&good[..good.len() - 10])));
    assert_unauthorized(&get_with(host, &session, Some(&good[..=dots[1]])));
}

fn token_of_another_appliance_or_another_scheme_is_refused(host: &TestAppliance) {
    let session = host.shared_session();
    // {"alg":"none"} {"aud":"https://dynamicsessions.io","exp":9999999999}
    let unsigned = "Bearer eyJhbGciOiJub25lIn0.eyJhdWQiOiJodHRwczovL2R5bmFtaWNzZXNzaW9ucy5pbyIsImV4cCI6OTk5OTk5OTk5OX0.";
    for value in [
        unsigned,
        "Bearer",
        "Bearer ",
        "Bearer x",
        "Basic dXNlcjpwYXNzd29yZA==",
        "x",
    ] {
        assert_unauthorized(&get_with(host, &session, Some(value)));
    }
}

fn token_that_has_expired_is_refused(host: &TestAppliance) {
    let session = host.shared_session();
    let made = SystemTime::now();
    let short = host.cli().ok(&["token", "create", "--ttl", "1s"]);
    let authorization = format!("Bearer {}", short.trim_end());
    assert_eq!(get_with(host, &session, Some(&authorization)).status, 200);
    // The event that is waited for is a time of day. Its seconds are cut, so one more.
    let end = made + Duration::from_secs(2) + LEEWAY;
    while let Ok(left) = end.duration_since(SystemTime::now()) {
        thread::park_timeout(left);
    }
    let answer = get_with(host, &session, Some(&authorization));
    assert_unauthorized(&answer);
    assert!(answer.text().contains("expired"), "{}", answer.text());
}

fn token_for_one_pool_does_not_open_another(host: &TestAppliance) {
    let session = host.shared_session();
    let create = ["token", "create", "--pool", "shared", "--ttl", "10m"];
    let stdout = host.cli().ok(&create);
    assert_eq!(
        stdout.lines().count(),
        1,
        "nothing but the token: {stdout:?}"
    );
    let authorization = format!("Bearer {}", stdout.trim_end());
    assert_eq!(get_with(host, &session, Some(&authorization)).status, 200);

    let other = host.pool("other").create();
    let refused = get_with(host, &other.session("user-1"), Some(&authorization));
    let error = refused.assert_refused(403, "Forbidden");
    assert!(
        error["message"].as_str().unwrap().contains("other"),
        "{error}"
    );

    let described = host.cli().json(&create);
    assert!(
        described["token"]
            .as_str()
            .is_some_and(|token| token.len() > 40),
        "{described}"
    );
    assert!(!described["expiresAt"].is_null(), "{described}");
}

fn create(host: &TestAppliance, flags: &[&str]) -> (String, String) {
    let flags = [&["token", "create", "--ttl", "10m"], flags].concat();
    let made = host.cli().json(&flags);
    let text = |field: &str| made[field].as_str().expect("a text").to_owned();
    (text("id"), format!("Bearer {}", text("token")))
}

fn token_without_the_role_is_told_which_one_it_needs(host: &TestAppliance) {
    let session = host.shared_session();
    let roles = ["--role", "reader", "--role", "pool-contributor"];
    let (_, reader) = create(host, &roles);
    let refused = get_with(host, &session, Some(&reader)).assert_refused(403, "Forbidden");
    let message = refused["message"].as_str().unwrap();
    assert!(message.contains("session-executor"), "{message}");
    // By the name that the role has in the cloud.
    let azure = ["--role", "Azure ContainerApps Session Executor"];
    let (_, executor) = create(host, &azure);
    assert_eq!(get_with(host, &session, Some(&executor)).status, 200);
}

fn token_bound_to_identifiers_opens_those_sessions_and_tells_of_no_others(host: &TestAppliance) {
    let session = host.shared_session();
    let list = |authorization: &str| {
        let pool = host.existing_pool("shared").session("nobody");
        let target = pool.target("/.management/listSessions") + "&api-version=2025-07-01";
        let request = session.client().request(Method::POST, &target);
        let request = request.header(AUTHORIZATION, authorization);
        let request = request.body(e2e::client::empty()).unwrap();
        let listed = host.block_on(session.send(request)).json();
        listed["count"].as_u64().expect("a count")
    };
    let (_, own) = create(host, &["--identifier", "shared"]);
    let (_, beginning) = create(host, &["--identifier", "other", "--identifier", "sha*"]);
    for bound in [&own, &beginning] {
        assert_eq!(get_with(host, &session, Some(bound)).status, 200);
        assert_eq!(list(bound), 1);
    }
    let (_, other) = create(host, &["--identifier", "other-*"]);
    let before = host.traces();
    let refused = get_with(host, &session, Some(&other)).assert_refused(403, "Forbidden");
    let message = refused["message"].as_str().unwrap();
    assert!(!message.contains("shared"), "{message}");
    assert_eq!(list(&other), 0);
    // The same of a session that is not there, and none is made by asking.
    let absent = host.existing_pool("shared").session("nobody");
    let same = get_with(host, &absent, Some(&own)).assert_refused(403, "Forbidden");
    assert_eq!(same["message"], message);
    assert!(host.traces().since(&before).is_empty());
}

fn token_for_another_group_does_not_learn_whether_a_pool_exists(host: &TestAppliance) {
    let session = host.shared_session();
    let (_, elsewhere) = create(host, &["--resource-group", "elsewhere"]);
    let there = get_with(host, &session, Some(&elsewhere)).assert_refused(403, "Forbidden");
    let absent = host.existing_pool("absent").session("shared");
    let absent = get_with(host, &absent, Some(&elsewhere)).assert_refused(403, "Forbidden");
    let message = |error: &serde_json::Value| error["message"].as_str().unwrap().to_owned();
    assert_eq!(
        message(&there).replace("shared", "absent"),
        message(&absent)
    );
}

fn token_that_was_revoked_is_refused_at_once_and_is_listed_as_such(host: &TestAppliance) {
    let session = host.shared_session();
    let (id, authorization) = create(host, &["--label", "a test", "--identifier", "shared"]);
    assert_eq!(get_with(host, &session, Some(&authorization)).status, 200);
    let listed = host.cli().ok(&["token", "list"]);
    let line = listed
        .lines()
        .find(|line| line.contains(&id))
        .expect("it is listed");
    assert!(line.contains("a test") && line.ends_with("good"), "{line}");
    assert!(host.cli().ok(&["token", "show", &id]).contains("shared"));
    let signature = authorization.rsplit('.').next().unwrap();
    assert!(
        !host
            .cli()
            .ok(&["token", "list", "--json"])
            .contains(signature)
    );

    host.cli().ok(&["token", "revoke", &id]);
    let refused = get_with(host, &session, Some(&authorization));
    assert_unauthorized(&refused);
    assert!(refused.text().contains("revoked"), "{}", refused.text());
    let shown = host.cli().json(&["token", "show", &id]);
    assert!(shown["revokedAt"].is_string(), "{shown}");
    let absent = "00000000-0000-0000-0000-000000000000";
    let ran = host.cli().run(&["token", "revoke", absent]);
    ran.assert_refused(1, &["no record of a token"]);
}

fn rotation_of_the_key_is_noticed_by_no_request_until_the_old_tokens_are_to_end(
    host: &TestAppliance,
) {
    let session = host.shared_session();
    let (id, old) = create(host, &[]);
    host.cli().ok(&["token", "rotate-key"]);
    let (_, new) = create(host, &[]);
    for good in [&old, &new, &session.authorization()] {
        assert_eq!(get_with(host, &session, Some(good)).status, 200);
    }
    // Not `--revoke-old`: the other tests' token would end, too.
    host.cli().ok(&["token", "revoke", &id]);
    assert_unauthorized(&get_with(host, &session, Some(&old)));
    assert_eq!(get_with(host, &session, Some(&new)).status, 200);
}

fn every_token_can_be_ended_at_once_and_no_restart_brings_one_back() {
    let mut host = TestAppliance::start();
    /// Without a pool there is nothing to be had; what matters is who is told so.
    fn status(host: &TestAppliance, authorization: &str) -> u16 {
        let client = host.client();
        let request = client.request(Method::GET, "/nothing/here");
        let request = request.header(AUTHORIZATION, authorization);
        let request = request.body(e2e::client::empty()).unwrap();
        host.block_on(client.send(request)).status
    }
    let (one, _) = (create(&host, &[]), host.cli().ok(&["token", "rotate-key"]));
    let (two, kept) = (create(&host, &[]), create(&host, &[]));
    host.cli().ok(&["token", "revoke", &two.0]);
    assert_eq!(
        [&one, &two, &kept].map(|it| status(&host, &it.1)),
        [404, 401, 404]
    );
    host.detach();
    host.restart();
    assert_eq!(
        [&one, &two, &kept].map(|it| status(&host, &it.1)),
        [404, 401, 404]
    );
    let said = host.cli().ok(&["token", "revoke", "--all"]);
    assert!(said.contains("2 tokens"), "{said}");
    let later = create(&host, &[]);
    for _ in 0..2 {
        let found = [&one, &two, &kept, &later].map(|it| status(&host, &it.1));
        assert_eq!(found, [401, 401, 401, 404]);
        host.detach();
        host.restart();
    }
    host.stop();
}

fn refused_request_starts_no_session(host: &TestAppliance) {
    host.shared_session();
    let pool = host.pool("untouched").create();
    let before = host.traces();
    let session = pool.session("user-1");
    assert_unauthorized(&get_with(host, &session, None));
    assert_unauthorized(&get_with(host, &session, Some("Bearer x")));
    let after = host.traces().since(&before);
    assert!(
        after.is_empty(),
        "a request that was refused has made {after:#?}"
    );
}
