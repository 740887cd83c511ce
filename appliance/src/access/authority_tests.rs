//! What a token must be, flaw by flaw; and what ends one that was good.

use std::time::Duration;

use http::{HeaderMap, header};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::json;

use super::*;
use crate::access::{Grant, Role, Scope, testing};
use crate::front::refusal::Code;
use crate::store::{Change, MemoryStore, Store, Table, encode};

const EXECUTOR: [Role; 1] = [Role::SessionExecutor];

fn headers(value: &str) -> HeaderMap {
    [(header::AUTHORIZATION, value.parse().unwrap())]
        .into_iter()
        .collect()
}

async fn check(authority: &Authority, token: &str) -> Result<Arc<Claims>, String> {
    let checked = authority.check(&headers(&format!("Bearer {token}"))).await;
    checked.map_err(|refusal| {
        assert_eq!(refusal.code, Code::Unauthorized);
        assert!(refusal.headers.contains_key(header::WWW_AUTHENTICATE));
        refusal.message
    })
}

fn order(ttl: u64) -> TokenOrder {
    TokenOrder {
        label: None,
        grant: Grant::of(Role::SessionExecutor),
        ttl: Duration::from_secs(ttl),
    }
}

/// PKCS #8 of a key that the tests know.
fn der() -> Vec<u8> {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    pair.serialize_der()
}

/// A store of the first release, with its one key.
fn old_store(der: &[u8]) -> Arc<MemoryStore> {
    let store = MemoryStore::default();
    let put = Change::Put {
        table: Table::Keys,
        key: b"token-signing".to_vec(),
        value: encode(&der.to_vec()),
    };
    store.apply(&[put]).unwrap();
    Arc::new(store)
}

async fn open(store: &Arc<MemoryStore>) -> Authority {
    let records = Records::new(Arc::clone(store) as Arc<dyn Store>);
    Authority::open(records, testing::audiences(), Vec::new())
        .await
        .unwrap()
}

/// What the first release wrote.
fn old_payload() -> Value {
    json!({
        "iss": "cabana", "aud": "https://dynamicsessions.io", "iat": now(), "exp": now() + 60,
        "jti": "6fd1b5c4-3f4b-4b0c-9d0f-0d4a1f4f7c11", "roles": ["session-executor"], "pools": ["alpha"],
    })
}

fn sign_as(header: &Header, payload: &Value, der: &[u8]) -> String {
    jsonwebtoken::encode(header, payload, &EncodingKey::from_ed_der(der)).unwrap()
}

#[tokio::test]
async fn token_that_was_issued_is_accepted_again_and_again() {
    let authority = testing::authority().await;
    let issued = authority.issue(order(60)).await.unwrap();
    for scheme in ["Bearer", "bearer", "BEARER"] {
        let value = format!("{scheme} {}", issued.token);
        let claims = authority.check(&headers(&value)).await.unwrap();
        let expected = testing::claims(Grant::of(Role::SessionExecutor));
        let token = Sha256::digest(&issued.token).into();
        assert_eq!(*claims, expected.of(token));
    }
}

#[tokio::test]
async fn every_flaw_of_a_token_is_named() {
    let der = der();
    let authority = open(&old_store(&der)).await;
    let eddsa = Header::new(Algorithm::EdDSA);
    let sign = |change: fn(&mut Value)| {
        let mut payload = old_payload();
        change(&mut payload);
        sign_as(&eddsa, &payload, &der)
    };
    let good = sign(|_| {});
    check(&authority, &good).await.unwrap();
    let with = |change: fn(&mut Header)| {
        let mut header = eddsa.clone();
        change(&mut header);
        sign_as(&header, &old_payload(), &der)
    };
    let (signed, _) = good.rsplit_once('.').unwrap();
    let secret = EncodingKey::from_secret(&der);
    let hmac = jsonwebtoken::encode(&Header::default(), &old_payload(), &secret).unwrap();
    // {"alg":"none"}
    let none = format!("eyJhbGciOiJub25lIn0.{}.", signed.split_once('.').unwrap().1);
    let stranger = testing::authority()
        .await
        .issue(order(60))
        .await
        .unwrap()
        .token;
    for (token, expected) in [
        (sign(|it| it["exp"] = json!(1000)), "expired"),
        (sign(|it| it["exp"] = json!("soon")), "required claim"),
        (sign(|it| it["exp"] = Value::Null), "required claim"),
        (sign(|it| it["nbf"] = json!(now() + 60)), "not valid yet"),
        (
            sign(|it| it["aud"] = json!("https://graph.microsoft.com")),
            "another audience",
        ),
        (sign(|it| it["aud"] = json!([])), "another audience"),
        (sign(|it| it["aud"] = Value::Null), "required claim"),
        (sign(|it| it["iss"] = json!("stranger")), "unknown issuer"),
        (
            sign(|it| it["iss"] = Value::Null),
            "does not name its issuer",
        ),
        (sign(|it| it["jti"] = json!("1")), "malformed"),
        (
            sign(|it| it["grant"] = json!({ "roles": [], "hours": ["night"] })),
            "malformed",
        ),
        (
            with(|it| it.kid = Some("other".into())),
            "not signed by this appliance",
        ),
        (with(|it| it.crit = Some(vec!["b64".into()])), "crit"),
        (
            sign_as(&eddsa, &old_payload(), &self::der()),
            "not signed by this appliance",
        ),
        (stranger, "not signed by this appliance"),
        (format!("{signed}."), "not signed by this appliance"),
        (none, "malformed"),
        (hmac, "another algorithm"),
        ("x.y.z".into(), "malformed"),
        (signed.to_owned(), "malformed"),
        (format!("{good}.x"), "malformed"),
        ("x".repeat(bearer::MAX_TOKEN_BYTES + 1), "not of the form"),
    ] {
        let said = check(&authority, &token).await.unwrap_err();
        assert!(said.contains(expected), "{expected}: {said}");
        assert!(
            !said.contains("stranger") && !said.contains("graph"),
            "{said}"
        );
    }
}

#[tokio::test]
async fn header_that_is_not_one_bearer_token_is_refused() {
    let authority = testing::authority().await;
    for value in ["Bearer", "Bearer ", "Basic dXNlcjpwdw==", "x"] {
        let refusal = authority.check(&headers(value)).await.unwrap_err();
        assert!(refusal.message.contains("not of the form"), "{value}");
    }
    let missing = authority.check(&HeaderMap::new()).await.unwrap_err();
    let challenge = &missing.headers[header::WWW_AUTHENTICATE];
    assert_eq!(challenge, "Bearer realm=\"cabana\"");
    let good = authority.issue(order(60)).await.unwrap().token;
    let value = format!("Bearer {good}");
    let mut twice = headers(&value);
    twice.append(header::AUTHORIZATION, value.parse().unwrap());
    let refusal = authority.check(&twice).await.unwrap_err();
    assert!(refusal.message.contains("more than once"));
}

/// As the first release wrote it: this test may be added to, not changed.
#[tokio::test]
async fn token_of_an_older_build_is_still_good_for_its_pools() {
    let der = der();
    let authority = open(&old_store(&der)).await;
    let token = sign_as(&Header::new(Algorithm::EdDSA), &old_payload(), &der);
    let claims = check(&authority, &token).await.unwrap();
    assert!(claims.sees(&EXECUTOR, Scope::nowhere("alpha")));
    assert!(!claims.sees(&EXECUTOR, Scope::nowhere("beta")));
}

#[tokio::test]
async fn key_of_an_older_build_checks_on_after_a_rotation_until_it_is_dropped() {
    let der = der();
    let store = old_store(&der);
    let token = sign_as(&Header::new(Algorithm::EdDSA), &old_payload(), &der);
    let authority = open(&store).await;
    let rotated = authority.rotate(false).await.unwrap();
    assert_eq!((rotated.older, rotated.revoked), (1, 0));
    let authority = open(&store).await;
    check(&authority, &token).await.unwrap();
    // The older build itself would find its key.
    assert!(store.get(Table::Keys, b"token-signing").unwrap().is_some());
    authority.rotate(true).await.unwrap();
    check(&authority, &token).await.unwrap_err();
    assert!(store.get(Table::Keys, b"token-signing").unwrap().is_none());
    check(&open(&store).await, &token).await.unwrap_err();
}

#[tokio::test]
async fn revoked_token_is_refused_at_once_and_after_a_restart() {
    let store = Arc::new(MemoryStore::default());
    let authority = open(&store).await;
    let [one, two] = [
        authority.issue(order(60)).await.unwrap(),
        authority.issue(order(60)).await.unwrap(),
    ];
    for issued in [&one, &two] {
        check(&authority, &issued.token).await.unwrap();
    }
    let revoked = authority.revoke(one.record.id).await.unwrap().unwrap();
    assert!(revoked.revoked_at.is_some());
    // From what is remembered of checked tokens, too.
    assert_eq!(
        check(&authority, &one.token).await.unwrap_err(),
        "The token was revoked"
    );
    check(&authority, &two.token).await.unwrap();
    assert_eq!(authority.revoke(Uuid::nil()).await.unwrap(), None);
    assert_eq!(
        authority.revoke(one.record.id).await.unwrap(),
        Some(revoked)
    );

    let again = open(&store).await;
    assert_eq!(
        check(&again, &one.token).await.unwrap_err(),
        "The token was revoked"
    );
    check(&again, &two.token).await.unwrap();
    assert_eq!(again.tokens().len(), 2);
}

#[tokio::test]
async fn token_itself_is_nowhere_in_the_store_and_expired_records_go() {
    let store = Arc::new(MemoryStore::default());
    let authority = open(&store).await;
    let issued = authority.issue(order(60)).await.unwrap();
    let everything = || {
        let tables = Table::ALL.into_iter();
        let rows = tables.flat_map(|table| store.scan(table, b"").unwrap());
        rows.map(|(_, value)| String::from_utf8(value).unwrap())
            .collect::<String>()
    };
    for part in issued.token.split('.') {
        assert!(!everything().contains(part));
    }
    let expired = TokenRecord {
        id: Uuid::from_u128(1),
        expires_at: now() - LEEWAY_SECONDS,
        ..issued.record.clone()
    };
    let records = Records::new(Arc::clone(&store) as Arc<dyn Store>);
    records.put_token(expired).await.unwrap();
    let again = open(&store).await;
    assert_eq!(again.tokens(), std::slice::from_ref(&issued.record));
    assert_eq!(records.tokens().await.unwrap(), [issued.record]);
}

#[tokio::test]
async fn rotation_keeps_tokens_good_unless_it_is_to_revoke_them() {
    let store = Arc::new(MemoryStore::default());
    let authority = open(&store).await;
    let first = authority.issue(order(60)).await.unwrap();
    let rotated = authority.rotate(false).await.unwrap();
    assert_eq!((rotated.older, rotated.revoked), (1, 0));
    let second = authority.issue(order(60)).await.unwrap();
    assert_ne!(first.record.key, second.record.key);
    assert_eq!(second.record.key, rotated.key);
    let again = open(&store).await;
    for authority in [&authority, &again] {
        check(authority, &first.token).await.unwrap();
        check(authority, &second.token).await.unwrap();
    }
    // The second key has signed something, the third has not.
    assert_eq!(again.rotate(false).await.unwrap().older, 2);
    assert_eq!(again.rotate(false).await.unwrap().older, 2);
    let rotated = again.rotate(true).await.unwrap();
    assert_eq!((rotated.older, rotated.revoked), (0, 2));
    for authority in [&again, &open(&store).await] {
        check(authority, &first.token).await.unwrap_err();
        check(authority, &second.token).await.unwrap_err();
        assert!(authority.tokens().iter().all(|it| it.revoked_at.is_some()));
    }
    let third = again.issue(order(60)).await.unwrap();
    check(&open(&store).await, &third.token).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_notices_a_rotation() {
    let authority = Arc::new(testing::authority().await);
    let made = authority.issue(order(60)).await.unwrap().token;
    let rotating = {
        let authority = Arc::clone(&authority);
        tokio::spawn(async move {
            for _ in 0..20 {
                authority.rotate(false).await.unwrap();
            }
        })
    };
    let mut checks = 0;
    while !rotating.is_finished() || checks < 20 {
        check(&authority, &made).await.unwrap();
        let fresh = authority.issue(order(60)).await.unwrap();
        check(&authority, &fresh.token).await.unwrap();
        checks += 1;
    }
    rotating.await.unwrap();
}

#[tokio::test]
async fn remembered_token_expires_like_any_other() {
    let authority = testing::authority().await;
    let issued = authority.issue(order(60)).await.unwrap();
    check(&authority, &issued.token).await.unwrap();
    for checked in authority.checked.lock().unwrap().values_mut() {
        checked.ends_at = now();
    }
    let said = check(&authority, &issued.token).await.unwrap_err();
    assert!(said.contains("expired"), "{said}");
}

/// Whoever has a good token has that one and no other: any change of it, wherever, is refused.
#[test]
fn fuzz_tokens() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let authority = runtime.block_on(testing::authority());
    let good = runtime
        .block_on(authority.issue(order(3600)))
        .unwrap()
        .token;
    let unsigned = good.rsplit_once('.').unwrap().0.to_owned();
    let seeds = [
        format!("Bearer {good}"),
        format!("Bearer {unsigned}."),
        "Bearer eyJhbGciOiJub25lIn0.e30.".to_owned(),
    ];
    let words = [
        "Bearer ",
        "bearer ",
        "Basic ",
        " ",
        ".",
        "=",
        "eyJhbGciOiJub25lIn0",
        "e30",
        "-",
        "_",
        "/",
        "+",
        "\t",
        ",",
    ];
    ::fuzz::Target::new("tokens")
        .seeds(seeds.map(String::into_bytes))
        .words(&words)
        .run(20_000, |input| {
            let Ok(value) = http::HeaderValue::from_bytes(input) else {
                return false;
            };
            let headers: HeaderMap = [(header::AUTHORIZATION, value)].into_iter().collect();
            match runtime.block_on(authority.check(&headers)) {
                Ok(_) => {
                    let text = std::str::from_utf8(input).unwrap();
                    assert_eq!(text.split_ascii_whitespace().nth(1), Some(good.as_str()));
                    true
                }
                Err(refusal) => {
                    assert_eq!(refusal.code, Code::Unauthorized);
                    assert!(!refusal.message.contains(&good));
                    false
                }
            }
        });
}

/// What a good signature is under may still be anything: the key is the appliance's, its builds were many.
#[test]
fn fuzz_payloads_of_tokens() {
    let seeds = [
        old_payload(),
        json!({ "aud": ["a", "b"], "exp": 1, "jti": "6fd1b5c4-3f4b-4b0c-9d0f-0d4a1f4f7c11",
                "grant": Grant::of(Role::SessionExecutor) }),
    ];
    let words = [
        "\"grant\":",
        "\"roles\":[",
        "\"pools\":",
        "null",
        "-1",
        "1e999",
        "[]",
        "{}",
        "\"session-executor\"",
        "\"\\ud800\"",
        ",",
        "\"exp\":",
    ];
    ::fuzz::Target::new("payloads_of_tokens")
        .seeds(seeds.map(|seed| seed.to_string().into_bytes()))
        .words(&words)
        .run(20_000, |input| {
            let read = || serde_json::from_slice::<crate::access::payload::Payload>(input);
            let Ok(payload) = ::fuzz::allocation::within(1 << 20, read) else {
                return false;
            };
            let claims = payload.into_claims();
            // Nobody becomes more by a payload that names no role.
            let none = Scope::nowhere("alpha");
            let text = String::from_utf8_lossy(input);
            if claims.permit(&[Role::PoolContributor], none).is_ok() {
                assert!(text.contains("pool-contributor"), "{text}");
            }
            true
        });
}
