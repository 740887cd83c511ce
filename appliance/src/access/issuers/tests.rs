//! An OpenID Connect issuer on loopback, with a certificate of its own authority, and tokens that it signs.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize, PublicKeyComponents};
use aws_lc_rs::signature::{
    self, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
    Ed25519KeyPair, KeyPair as _,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa};
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::access::{Authority, Claims, Grant, Role, Scope, testing};
use crate::front::refusal::Code;
use crate::pool::unix_millis;
use crate::store::{MemoryStore, Records};

const EXECUTOR: [Role; 1] = [Role::SessionExecutor];

fn base64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A key that signs, in each of the ways that issuers do.
enum Signer {
    Rsa(RsaKeyPair),
    Ec(EcdsaKeyPair, &'static str, usize),
    Ed(Ed25519KeyPair),
}

impl Signer {
    fn rsa() -> Self {
        Self::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap())
    }

    fn p256() -> Self {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        Self::Ec(key, "P-256", 32)
    }

    fn p384() -> Self {
        let key = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
        Self::Ec(key, "P-384", 48)
    }

    fn ed25519() -> Self {
        Self::Ed(Ed25519KeyPair::generate().unwrap())
    }

    /// As it is published.
    fn public(&self, id: &str) -> Value {
        match self {
            Self::Rsa(key) => {
                let parts = PublicKeyComponents::<Vec<u8>>::from(key.public_key());
                json!({ "kty": "RSA", "use": "sig", "kid": id, "n": base64(parts.n), "e": base64(parts.e) })
            }
            Self::Ec(key, curve, bytes) => {
                let point = &key.public_key().as_ref()[1..];
                let (x, y) = point.split_at(*bytes);
                json!({ "kty": "EC", "kid": id, "crv": curve, "x": base64(x), "y": base64(y) })
            }
            Self::Ed(key) => {
                json!({ "kty": "OKP", "kid": id, "crv": "Ed25519", "x": base64(key.public_key()) })
            }
        }
    }

    fn sign(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Rsa(key) => {
                let padding: &'static dyn signature::RsaEncoding = match algorithm {
                    "RS256" => &signature::RSA_PKCS1_SHA256,
                    "RS384" => &signature::RSA_PKCS1_SHA384,
                    "RS512" => &signature::RSA_PKCS1_SHA512,
                    "PS256" => &signature::RSA_PSS_SHA256,
                    "PS384" => &signature::RSA_PSS_SHA384,
                    _ => &signature::RSA_PSS_SHA512,
                };
                let mut signed = vec![0; key.public_modulus_len()];
                key.sign(padding, &random, message, &mut signed).unwrap();
                signed
            }
            Self::Ec(key, ..) => key.sign(&random, message).unwrap().as_ref().to_vec(),
            Self::Ed(key) => key.sign(message).as_ref().to_vec(),
        }
    }

    fn token(&self, algorithm: &str, id: Option<&str>, claims: &Value) -> String {
        let mut head = json!({ "alg": algorithm, "typ": "JWT" });
        if let Some(id) = id {
            head["kid"] = id.into();
        }
        let message = format!(
            "{}.{}",
            base64(head.to_string()),
            base64(claims.to_string())
        );
        let signature = self.sign(algorithm, message.as_bytes());
        format!("{message}.{}", base64(signature))
    }
}

/// What the issuer answers, by path.
type Pages = Arc<Mutex<HashMap<String, (StatusCode, String)>>>;

struct TestIssuer {
    name: String,
    pages: Pages,
    asked: Arc<AtomicUsize>,
    folder: tempfile::TempDir,
}

impl TestIssuer {
    async fn open() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = || rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, key()).unwrap();
        std::fs::write(folder.path().join("ca.pem"), ca.pem()).unwrap();
        let own = key();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.signed_by(&own, &ca).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth();
        let private = PrivateKeyDer::try_from(own.serialize_der()).unwrap();
        let config = config
            .with_single_cert(vec![certificate.der().clone()], private)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = socket.local_addr().unwrap().port();
        let pages = Pages::default();
        let asked = Arc::<AtomicUsize>::default();
        let (answers, count) = (Arc::clone(&pages), Arc::clone(&asked));
        tokio::spawn(async move {
            while let Ok((stream, _)) = socket.accept().await {
                let (acceptor, answers) = (acceptor.clone(), Arc::clone(&answers));
                let count = Arc::clone(&count);
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let answer = service_fn(move |request: Request<Incoming>| {
                        count.fetch_add(1, Ordering::SeqCst);
                        let page = answers.lock().unwrap().get(request.uri().path()).cloned();
                        let (status, body) = page.unwrap_or((StatusCode::NOT_FOUND, String::new()));
                        let response = Response::builder().status(status);
                        let response = response.body(Full::new(Bytes::from(body))).unwrap();
                        async move { Ok::<_, Infallible>(response) }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), answer)
                        .await;
                });
            }
        });
        let issuer = Self {
            name: format!("https://localhost:{port}/tenant"),
            pages,
            asked,
            folder,
        };
        let keys = format!("https://localhost:{port}/keys");
        issuer.discovery(&json!({ "issuer": issuer.name, "jwks_uri": keys }));
        issuer
    }

    fn page(&self, path: &str, status: StatusCode, body: String) {
        self.pages
            .lock()
            .unwrap()
            .insert(path.to_owned(), (status, body));
    }

    fn discovery(&self, document: &Value) {
        let path = "/tenant/.well-known/openid-configuration";
        self.page(path, StatusCode::OK, document.to_string());
    }

    fn publish(&self, keys: &[Value]) {
        self.page("/keys", StatusCode::OK, json!({ "keys": keys }).to_string());
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn claims(&self) -> Value {
        json!({
            "iss": self.name, "aud": "https://dynamicsessions.io", "exp": now() + 600,
            "sub": "anna-1", "roles": ["user"],
        })
    }

    /// By discovery; `user` may use the sessions that are called as they are.
    fn settings(&self) -> IssuerSettings {
        IssuerSettings {
            name: self.name.clone(),
            audiences: Vec::new(),
            keys: KeysFrom::Discovery {
                ca_file: Some(self.folder.path().join("ca.pem")),
            },
            grants: vec![GrantRule {
                claim: "roles".into(),
                value: "user".into(),
                grant: Grant::of(Role::SessionExecutor),
                identifier_claim: Some("sub".into()),
            }],
        }
    }
}

fn now() -> u64 {
    unix_millis() / 1000
}

async fn authority(settings: IssuerSettings) -> Authority {
    let records = Records::new(Arc::new(MemoryStore::default()));
    Authority::open(records, testing::audiences(), vec![settings])
        .await
        .unwrap()
}

async fn check(authority: &Authority, token: &str) -> Result<Arc<Claims>, (Code, String)> {
    let value = format!("Bearer {token}").parse().unwrap();
    let headers: HeaderMap = [(header::AUTHORIZATION, value)].into_iter().collect();
    let checked = authority.check(&headers).await;
    checked.map_err(|refusal| (refusal.code, refusal.message))
}

async fn refused(authority: &Authority, token: &str) -> String {
    let (code, message) = check(authority, token).await.unwrap_err();
    assert_eq!(code, Code::Unauthorized, "{message}");
    message
}

#[tokio::test]
async fn every_algorithm_is_checked_with_the_keys_that_the_issuer_publishes() {
    let issuer = TestIssuer::open().await;
    let signers = [
        (
            Signer::rsa(),
            &["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"][..],
        ),
        (Signer::p256(), &["ES256"]),
        (Signer::p384(), &["ES384"]),
        (Signer::ed25519(), &["EdDSA"]),
    ];
    let keys = signers.iter().enumerate();
    let keys: Vec<_> = keys
        .map(|(n, (signer, _))| signer.public(&format!("k{n}")))
        .collect();
    issuer.publish(&keys);
    let authority = authority(issuer.settings()).await;
    for (n, (signer, algorithms)) in signers.iter().enumerate() {
        let id = format!("k{n}");
        for algorithm in *algorithms {
            let token = signer.token(algorithm, Some(&id), &issuer.claims());
            let claims = check(&authority, &token).await.unwrap();
            let alpha = Scope::nowhere("alpha");
            assert!(
                claims
                    .permit_session(alpha, &"anna-1".parse().unwrap())
                    .is_ok()
            );
            assert!(
                claims
                    .permit_session(alpha, &"anna-2".parse().unwrap())
                    .is_err()
            );
            // With the name of another key it is none of its signatures.
            let other = format!("k{}", (n + 1) % signers.len());
            let token = signer.token(algorithm, Some(&other), &issuer.claims());
            let said = refused(&authority, &token).await;
            assert!(said.contains("algorithm"), "{algorithm}: {said}");
        }
    }
    // Discovery and keys, once for all of them.
    assert_eq!(issuer.asked(), 2);
}

#[tokio::test]
async fn every_flaw_of_an_issuers_token_is_named() {
    let issuer = TestIssuer::open().await;
    let signer = Signer::rsa();
    let public = signer.public("k");
    issuer.publish(std::slice::from_ref(&public));
    let authority = authority(issuer.settings()).await;
    let sign = |change: &dyn Fn(&mut Value)| {
        let mut claims = issuer.claims();
        change(&mut claims);
        signer.token("RS256", Some("k"), &claims)
    };
    let good = sign(&|_| {});
    check(&authority, &good).await.unwrap();
    for fine in [
        sign(&|it| it["exp"] = json!(now() - 50)),
        sign(&|it| it["exp"] = json!(now() as f64 + 0.5)),
        sign(&|it| it["nbf"] = json!(now() + 50)),
        sign(&|it| it["aud"] = json!(["other", "https://management.azure.com"])),
        signer.token("RS256", None, &issuer.claims()),
    ] {
        check(&authority, &fine).await.unwrap();
    }
    // A public key is no secret: whoever has it could sign so.
    let secret = jsonwebtoken::EncodingKey::from_secret(public.to_string().as_bytes());
    let head = jsonwebtoken::Header {
        kid: Some("k".into()),
        ..Default::default()
    };
    let hmac = jsonwebtoken::encode(&head, &issuer.claims(), &secret).unwrap();
    let (message, _) = good.rsplit_once('.').unwrap();
    let none = format!(
        "{}.{}.",
        base64(r#"{"alg":"none"}"#),
        base64(issuer.claims().to_string())
    );
    let stranger = Signer::rsa().token("RS256", Some("k"), &issuer.claims());
    for (token, expected) in [
        (sign(&|it| it["exp"] = json!(now() - 61)), "expired"),
        (sign(&|it| it["exp"] = Value::Null), "required claim"),
        (sign(&|it| it["nbf"] = json!(now() + 70)), "not valid yet"),
        (
            sign(&|it| it["aud"] = json!("https://other.example")),
            "another audience",
        ),
        (sign(&|it| it["aud"] = Value::Null), "required claim"),
        (
            sign(&|it| it["iss"] = json!("https://localhost/tenant")),
            "unknown issuer",
        ),
        (sign(&|it| it["iss"] = json!([it["iss"]])), "malformed"),
        (
            sign(&|it| it["iss"] = json!("cabana")),
            "another algorithm than EdDSA",
        ),
        (stranger, "not signed by its issuer"),
        (format!("{message}."), "not signed by its issuer"),
        (hmac, "another algorithm"),
        (none, "malformed"),
        (
            signer.token("RS256", Some("other"), &issuer.claims()),
            "does not publish",
        ),
    ] {
        let said = refused(&authority, &token).await;
        assert!(said.contains(expected), "{expected}: {said}");
        assert!(
            !said.contains("localhost") && !said.contains("anna"),
            "{said}"
        );
    }
    // Good, and without a role: that is told, and by another code.
    let nobody = sign(&|it| it["roles"] = json!(["guest"]));
    let claims = check(&authority, &nobody).await.unwrap();
    let refusal = claims
        .permit(&EXECUTOR, Scope::nowhere("alpha"))
        .unwrap_err();
    assert_eq!(refusal.code, Code::Forbidden);
}

#[tokio::test]
async fn issuer_with_audiences_of_its_own_takes_no_others() {
    let issuer = TestIssuer::open().await;
    let signer = Signer::p256();
    issuer.publish(&[signer.public("k")]);
    let settings = IssuerSettings {
        audiences: vec!["api://cabana".into()],
        ..issuer.settings()
    };
    let authority = authority(settings).await;
    let mut claims = issuer.claims();
    let token = signer.token("ES256", Some("k"), &claims);
    assert!(
        refused(&authority, &token)
            .await
            .contains("another audience")
    );
    claims["aud"] = json!("api://cabana");
    let token = signer.token("ES256", Some("k"), &claims);
    check(&authority, &token).await.unwrap();
}

#[tokio::test]
async fn new_key_of_an_issuer_is_found_and_unknown_ones_do_not_make_it_busy() {
    let issuer = TestIssuer::open().await;
    let [old, new] = [Signer::p256(), Signer::ed25519()];
    issuer.publish(&[old.public("old")]);
    let trusted = Issuer::new(issuer.settings());
    let find =
        async |id: &'static str, algorithm| trusted.key(Some(id), algorithm).await.map(|_| ());
    use jsonwebtoken::Algorithm::{ES256, EdDSA};
    find("old", ES256).await.unwrap();
    assert_eq!(issuer.asked(), 2);
    issuer.publish(&[old.public("old"), new.public("new")]);
    // It was asked just now.
    assert_eq!(find("new", EdDSA).await, Err(Missing::Key(NoKey::Unknown)));
    assert_eq!(issuer.asked(), 2);
    trusted.forget_attempt();
    let many = (0..20).map(|_| find("new", EdDSA));
    for found in futures_all(many).await {
        found.unwrap();
    }
    assert_eq!(issuer.asked(), 4, "one fetch for all that wait");
    for _ in 0..20 {
        assert_eq!(
            find("never", EdDSA).await,
            Err(Missing::Key(NoKey::Unknown))
        );
    }
    assert_eq!(issuer.asked(), 4);
}

/// All at once, on this task.
async fn futures_all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        let mut pending = false;
        for (future, output) in &mut futures {
            if output.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(ready) => *output = Some(ready),
                    std::task::Poll::Pending => pending = true,
                }
            }
        }
        match pending {
            true => std::task::Poll::Pending,
            false => std::task::Poll::Ready(()),
        }
    })
    .await;
    futures
        .into_iter()
        .filter_map(|(_, output)| output)
        .collect()
}

#[tokio::test]
async fn keys_stay_when_the_issuer_is_down_and_withdrawn_ones_go() {
    let issuer = TestIssuer::open().await;
    let [old, new] = [Signer::p256(), Signer::p256()];
    issuer.publish(&[old.public("old")]);
    let authority = authority(issuer.settings()).await;
    let token = |signer: &Signer, id| signer.token("ES256", Some(id), &issuer.claims());
    check(&authority, &token(&old, "old")).await.unwrap();
    let trusted = authority.issuer(&issuer.name);
    let down = (StatusCode::INTERNAL_SERVER_ERROR, String::new());
    let kept = issuer.pages.lock().unwrap().insert("/keys".into(), down);
    trusted.forget_attempt();
    let said = refused(&authority, &token(&new, "new")).await;
    assert!(said.contains("does not publish"), "{said}");
    check(&authority, &token(&old, "old")).await.unwrap();
    assert!(kept.is_some());

    issuer.publish(&[new.public("new")]);
    trusted.forget_attempt();
    check(&authority, &token(&new, "new")).await.unwrap();
    // Also where it is remembered as checked.
    let said = refused(&authority, &token(&old, "old")).await;
    assert!(said.contains("does not publish"), "{said}");
}

#[tokio::test]
async fn issuer_whose_keys_were_never_had_is_not_the_callers_fault() {
    let issuer = TestIssuer::open().await;
    let signer = Signer::p256();
    let token = signer.token("ES256", Some("k"), &issuer.claims());
    let keys = json!({ "keys": [signer.public("k")] }).to_string();
    let uri = |path: &str| format!("{}{path}", issuer.name.trim_end_matches("/tenant"));
    let good = json!({ "issuer": issuer.name, "jwks_uri": uri("/keys") });
    let discovery = |field: &str, value: Value| {
        let mut document = good.clone();
        document[field] = value;
        document
    };
    for (document, status, keys) in [
        (good.clone(), StatusCode::NOT_FOUND, keys.clone()),
        (good.clone(), StatusCode::FOUND, keys.clone()),
        (good.clone(), StatusCode::OK, "{}".to_owned()),
        (
            good.clone(),
            StatusCode::OK,
            " ".repeat(keyset::MAX_BYTES) + &keys,
        ),
        (
            discovery("issuer", uri("/other").into()),
            StatusCode::OK,
            keys.clone(),
        ),
        (
            discovery("jwks_uri", "http://issuer.example/keys".into()),
            StatusCode::OK,
            keys.clone(),
        ),
        (
            discovery("jwks_uri", "file:///etc/passwd".into()),
            StatusCode::OK,
            keys.clone(),
        ),
        (
            discovery("jwks_uri", Value::Null),
            StatusCode::OK,
            keys.clone(),
        ),
    ] {
        issuer.discovery(&document);
        issuer.page("/keys", status, keys);
        let authority = authority(issuer.settings()).await;
        let (code, said) = check(&authority, &token).await.unwrap_err();
        assert_eq!(code, Code::TokenIssuerUnavailable, "{document} {said}");
    }
    // Nor is one believed whose certificate nobody vouches for.
    issuer.discovery(&good);
    issuer.page("/keys", StatusCode::OK, keys);
    let unknown = IssuerSettings {
        keys: KeysFrom::Discovery { ca_file: None },
        ..issuer.settings()
    };
    let (code, _) = check(&authority(unknown).await, &token).await.unwrap_err();
    assert_eq!(code, Code::TokenIssuerUnavailable);
    check(&authority(issuer.settings()).await, &token)
        .await
        .unwrap();
}

#[tokio::test]
async fn file_of_keys_is_read_again_when_it_has_changed() {
    let issuer = TestIssuer::open().await;
    let [old, new] = [Signer::ed25519(), Signer::ed25519()];
    let file = issuer.folder.path().join("keys.json");
    let write = |keys: &[Value]| {
        let fresh = file.with_extension("new");
        std::fs::write(&fresh, json!({ "keys": keys }).to_string()).unwrap();
        std::fs::rename(fresh, &file).unwrap();
    };
    let settings = IssuerSettings {
        keys: KeysFrom::File(file.clone()),
        ..issuer.settings()
    };
    let authority = authority(settings).await;
    let trusted = authority.issuer(&issuer.name);
    let token = |signer: &Signer, id| signer.token("EdDSA", Some(id), &issuer.claims());
    let (code, _) = check(&authority, &token(&old, "old")).await.unwrap_err();
    assert_eq!(code, Code::TokenIssuerUnavailable);
    write(&[old.public("old")]);
    trusted.forget_attempt();
    check(&authority, &token(&old, "old")).await.unwrap();
    write(&[new.public("new")]);
    trusted.forget_attempt();
    check(&authority, &token(&new, "new")).await.unwrap();
    refused(&authority, &token(&old, "old")).await;
    // What is no key set, or no file any more, takes nothing away.
    std::fs::write(&file, "half").unwrap();
    trusted.forget_attempt();
    check(&authority, &token(&new, "new")).await.unwrap();
    std::fs::remove_file(&file).unwrap();
    trusted.forget_attempt();
    check(&authority, &token(&new, "new")).await.unwrap();
    assert_eq!(issuer.asked(), 0);
}

/// A page that never comes must not hold up those who need nothing from it.
#[tokio::test]
async fn issuer_that_does_not_answer_holds_up_nobody_elses_request() {
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let name = format!("http://127.0.0.1:{}", silent.local_addr().unwrap().port());
    let issuer = TestIssuer::open().await;
    let settings = IssuerSettings {
        name: name.clone(),
        keys: KeysFrom::Discovery { ca_file: None },
        ..issuer.settings()
    };
    let authority = Arc::new(authority(settings).await);
    let mut claims = issuer.claims();
    claims["iss"] = name.into();
    let token = Signer::ed25519().token("EdDSA", Some("k"), &claims);
    let waiting = {
        let authority = Arc::clone(&authority);
        tokio::spawn(async move { check(&authority, &token).await })
    };
    // It has been asked, and will not answer.
    let (_asked, _) = silent.accept().await.unwrap();
    let ttl = std::time::Duration::from_secs(60);
    let own = authority
        .sign(&Grant::of(Role::SessionExecutor), ttl)
        .unwrap();
    for _ in 0..100 {
        check(&authority, &own.token).await.unwrap();
    }
    assert!(!waiting.is_finished());
    waiting.abort();
}
