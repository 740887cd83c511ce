use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;

use http::{Request, Response as Answered};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::front::tls::ServedCertificate;

/// An appliance that answers what it was told to, one answer after the other, each with headers.
struct Scripted {
    address: SocketAddr,
    folder: tempfile::TempDir,
    seen: Arc<Mutex<Vec<String>>>,
    _runtime: tokio::runtime::Runtime,
}

type Reply = (u16, Vec<(&'static str, &'static str)>, Value);

impl Scripted {
    fn start(replies: Vec<Reply>) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let certificate = ServedCertificate::prepare(folder.path(), names).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(certificate.server_config().unwrap()));
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let replies = Arc::new(Mutex::new(VecDeque::from(replies)));
        let kept = Arc::clone(&seen);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let (seen, replies) = (Arc::clone(&kept), Arc::clone(&replies));
                let service = service_fn(move |request| {
                    answer(request, Arc::clone(&seen), Arc::clone(&replies))
                });
                let mut server = hyper_util::server::conn::auto::Builder::new(
                    hyper_util::rt::TokioExecutor::new(),
                );
                server.http1();
                tokio::spawn(async move {
                    let _ = server.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self {
            address,
            folder,
            seen,
            _runtime: runtime,
        }
    }

    fn remote(&self, ca_file: Option<&Path>) -> Remote {
        Remote {
            endpoint: format!("https://{}", self.address).parse().unwrap(),
            token: "the-token".into(),
            ca_file: ca_file.map(Path::to_owned),
        }
    }

    fn call(&self, method: Method, wait: Wait) -> Result<Value, Failure> {
        let ca = self.folder.path().join("ca.pem");
        let body = Payload::Json(json!({ "a": 1 }));
        self.remote(Some(&ca)).call(method, "/pool?v=1", body, wait)
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

async fn answer(
    request: Request<Incoming>,
    seen: Arc<Mutex<Vec<String>>>,
    replies: Arc<Mutex<VecDeque<Reply>>>,
) -> Result<Answered<Full<bytes::Bytes>>, Infallible> {
    let token = request.headers()[header::AUTHORIZATION].to_str().unwrap();
    assert_eq!(token, "Bearer the-token");
    let (method, target) = (request.method().clone(), request.uri().path_and_query());
    let target = target.unwrap().to_string();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let body = String::from_utf8(body.into()).unwrap();
    seen.lock()
        .unwrap()
        .push(format!("{method} {target} {body}"));
    let (status, headers, body) = replies.lock().unwrap().pop_front().unwrap();
    let body = match body {
        Value::Null => String::new(),
        body => body.to_string(),
    };
    let mut answer = Answered::new(Full::from(body));
    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in headers {
        answer.headers_mut().insert(name, value.parse().unwrap());
    }
    Ok(answer)
}

const AT_ONCE: (&str, &str) = ("retry-after", "0");

#[test]
fn making_a_pool_ends_with_the_resource_that_came_of_it() {
    let begun = vec![("azure-asyncoperation", "/operations/1?v=1"), AT_ONCE];
    let host = Scripted::start(vec![
        (201, begun, json!({ "state": "InProgress" })),
        (200, vec![AT_ONCE], json!({ "status": "InProgress" })),
        (200, vec![], json!({ "status": "Succeeded" })),
        (200, vec![], json!({ "state": "Succeeded" })),
    ]);
    let pool = host.call(Method::PUT, Wait::Done).unwrap();
    assert_eq!(pool, json!({ "state": "Succeeded" }));
    let expected = [
        "PUT /pool?v=1 {\"a\":1}",
        "GET /operations/1?v=1 ",
        "GET /operations/1?v=1 ",
        "GET /pool?v=1 ",
    ];
    assert_eq!(host.seen(), expected);
}

#[test]
fn operation_that_fails_is_the_failure_of_the_command() {
    let begun = vec![("azure-asyncoperation", "/operations/1"), AT_ONCE];
    let error = json!({ "code": "ImageNotFound", "message": "no image" });
    let host = Scripted::start(vec![
        (201, begun, json!({})),
        (200, vec![], json!({ "status": "Failed", "error": error })),
    ]);
    let failure = host.call(Method::PUT, Wait::Done).unwrap_err();
    assert_eq!(failure.exit, Exit::Failed);
    assert_eq!(failure.line, "no image (ImageNotFound)");
}

#[test]
fn change_and_deletion_follow_their_location() {
    let begun = || vec![("location", "/results/1"), AT_ONCE];
    let host = Scripted::start(vec![
        (202, begun(), Value::Null),
        (202, vec![AT_ONCE], Value::Null),
        (200, vec![], json!({ "name": "p" })),
    ]);
    let pool = host.call(Method::PATCH, Wait::Done).unwrap();
    assert_eq!(pool, json!({ "name": "p" }));
    assert_eq!(host.seen()[1..], ["GET /results/1 ", "GET /results/1 "]);
    let host = Scripted::start(vec![
        (202, begun(), Value::Null),
        (204, vec![], Value::Null),
    ]);
    assert_eq!(host.call(Method::DELETE, Wait::Done).unwrap(), Value::Null);
    let host = Scripted::start(vec![(202, begun(), Value::Null)]);
    assert_eq!(host.call(Method::DELETE, Wait::Begun).unwrap(), Value::Null);
    assert_eq!(host.seen().len(), 1);
}

#[test]
fn deletion_of_nothing_says_so_whether_it_is_waited_for_or_not() {
    for wait in [Wait::Done, Wait::Begun] {
        let host = Scripted::start(vec![(204, vec![], Value::Null)]);
        let failure = host.call(Method::DELETE, wait).unwrap_err();
        assert_eq!(failure.exit, Exit::Failed);
        assert!(failure.line.contains("was not found"), "{}", failure.line);
    }
}

#[test]
fn refusal_of_the_token_is_exit_77_with_the_reason() {
    let error = json!({ "error": { "code": "Forbidden", "message": "needs a role" } });
    let host = Scripted::start(vec![(403, vec![], error)]);
    let failure = host.call(Method::PUT, Wait::Done).unwrap_err();
    assert_eq!(failure.exit, Exit::Permission);
    assert_eq!(failure.line, "needs a role (Forbidden)");
}

#[test]
fn operation_elsewhere_is_not_followed() {
    let begun = vec![
        ("azure-asyncoperation", "https://elsewhere.example/1"),
        AT_ONCE,
    ];
    let host = Scripted::start(vec![(201, begun, json!({}))]);
    let failure = host.call(Method::PUT, Wait::Done).unwrap_err();
    assert!(failure.line.contains("elsewhere"), "{}", failure.line);
}

#[test]
fn certificate_of_a_stranger_is_refused_and_the_remedy_is_said() {
    let host = Scripted::start(vec![]);
    let asked = host
        .remote(None)
        .call(Method::GET, "/", Payload::Nothing, Wait::Done);
    let failure = asked.unwrap_err();
    assert_eq!(failure.exit, Exit::Unavailable);
    assert!(failure.line.contains("--ca-file"), "{}", failure.line);
    let absent = host.remote(Some(Path::new("/nonexistent.pem")));
    let failure = absent.call(Method::GET, "/", Payload::Nothing, Wait::Done);
    assert_eq!(failure.unwrap_err().exit, Exit::Usage);
    assert!(host.seen().is_empty());
}

#[test]
fn endpoint_is_a_host_and_nothing_else() {
    let shown = |text: &str| text.parse::<Endpoint>().map(|it| it.to_string());
    assert_eq!(
        shown("https://a.example:8443/"),
        Ok("https://a.example:8443".into())
    );
    assert_eq!(shown("https://[::1]:8443"), Ok("https://[::1]:8443".into()));
    for bad in [
        "a.example",
        "http://a.example",
        "https://",
        "https://a.example/x",
        "https://a.example/?x",
        "https://user:pw@a.example",
        "https://a.example#x",
    ] {
        assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
    }
}

#[tokio::test]
async fn token_goes_nowhere_else() {
    let remote = Remote {
        endpoint: "https://a.example:8443".parse().unwrap(),
        token: "t".into(),
        ca_file: None,
    };
    let caller = Caller::new(&remote).await.unwrap();
    for near in [
        "/x?y=z",
        "https://a.example:8443/x",
        "https://A.example:8443/",
    ] {
        caller.place(near).unwrap();
    }
    for far in [
        "https://b.example:8443/x",
        "https://a.example/x",
        "http://a.example:8443/x",
        "//b.example/x",
    ] {
        assert!(caller.place(far).is_err(), "{far}");
    }
}

#[test]
fn operation_ends_with_its_reason() {
    assert_eq!(ended(&json!({ "status": "InProgress" })), None);
    assert_eq!(ended(&json!({ "status": "Succeeded" })), Some(Ok(())));
    let failed =
        json!({ "status": "Failed", "error": { "code": "ImageNotFound", "message": "none" } });
    assert_eq!(ended(&failed), Some(Err("none (ImageNotFound)".into())));
}
