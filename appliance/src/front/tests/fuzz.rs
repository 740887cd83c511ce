//! Connections that send anything, through the same reader of HTTP/1.1 as the front door's: see the crate `fuzz`. What becomes of a request
//! is decided as the front door does it, and what would go to a container is looked at.
//!
//! HTTP/2 is not here: its frames are read by `h2`, and what comes out is checked by the same functions.

use std::sync::atomic::{AtomicUsize, Ordering};

use ::fuzz::Target;
use http::uri::PathAndQuery;

use super::*;
use crate::front::refusal::Refusal;
use crate::front::route::Route;
use crate::front::{authority_of, headers, host_name, limit, route};

/// Of a run without `CABANA_FUZZ_SECONDS`.
const INPUTS: u64 = 5000;
const DOMAIN: &str = "pools.example";
const PEER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Parts of a head, and what makes one head two.
const WORDS: &[&str] = &[
    "\r\n",
    "\n",
    "\r\n\r\n",
    "\r\n ",
    "\t",
    ": ",
    " HTTP/1.1\r\n",
    " HTTP/1.0\r\n",
    "GET ",
    "CONNECT ",
    "Host: ",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: gzip, chunked\r\n",
    "Content-Length: 5\r\n",
    "Content-Length: 0\r\n",
    "Connection: upgrade, authorization\r\n",
    "Connection: close\r\n",
    "Upgrade: h2c\r\n",
    "Upgrade: websocket\r\n",
    "X-Forwarded-For: 1.2.3.4\r\n",
    "Authorization: Bearer x\r\n",
    "Cookie: a=b\r\n",
    "TE: trailers\r\n",
    "Expect: 100-continue\r\n",
    "?identifier=abcd",
    "&identifier=",
    "%69",
    "%00",
    "%2f",
    "/.management/",
    "..",
    "/subscriptions/",
    "/resourceGroups/",
    "/sessionPools/",
    "alpha.pools.example",
    "@",
    "http://",
    "*",
    "0\r\n\r\n",
    "5\r\nhello\r\n",
];

fn seeds() -> Vec<Vec<u8>> {
    let hosts = "Host: h\r\nAuthorization: Bearer t\r\n";
    [
        format!("GET {BASE}/a/b?identifier=user-1&x=%20y HTTP/1.1\r\n{hosts}\r\n"),
        format!("POST /x?identifier=user-1 HTTP/1.1\r\nHost: alpha.{DOMAIN}:8443\r\nContent-Length: 5\r\n\r\nhello"),
        format!("PUT {BASE}?identifier=user-1 HTTP/1.1\r\n{hosts}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        format!("GET {BASE}/.management/sessions?identifier=user-1 HTTP/1.1\r\n{hosts}Connection: upgrade\r\nUpgrade: websocket\r\n\r\n"),
        format!("GET {BASE}/one?identifier=user-1 HTTP/1.1\r\n{hosts}\r\nGET {BASE}/two?identifier=user-2 HTTP/1.1\r\n{hosts}\r\n"),
    ]
    .map(String::into_bytes)
    .to_vec()
}

/// As `Front::clear` does it, without pools.
fn decide<B>(request: &Request<B>) -> Result<(Route, String), Refusal> {
    limit::refuse_long_head(request.uri(), request.headers(), &FrontLimits::default())?;
    headers::refuse_ambiguous(request.method(), request.headers(), request.version())?;
    let host = authority_of(request)?;
    let slash = PathAndQuery::from_static("/");
    let target = request.uri().path_and_query().unwrap_or(&slash);
    route::is_resource(host_name(&host), request.uri().path(), Some(DOMAIN));
    let route = route::route(host_name(&host), target, Some(DOMAIN))?;
    // What the container is asked for is the end of what was asked for here.
    let rest = route.rest.as_str();
    assert!(rest.starts_with('/') || rest == "*", "{rest}");
    assert!(target.as_str().ends_with(rest) || target.as_str().ends_with(&rest[1..]));
    if route.management().is_none() {
        route::identifier(route.rest.query())?;
    }
    Ok((route, host))
}

/// What a container gets says nothing of this connection, and one thing of everything.
fn assert_clean(found: &HeaderMap, host: &str, upgrades: bool) {
    for gone in [
        "authorization",
        "proxy-authorization",
        "expect",
        "keep-alive",
        "proxy-connection",
        "forwarded",
        "http2-settings",
    ] {
        assert!(!found.contains_key(gone), "{gone}");
    }
    let all = |name: &str| -> Vec<&[u8]> {
        found
            .get_all(name)
            .iter()
            .map(|value| value.as_bytes())
            .collect()
    };
    assert_eq!(all("host"), [host.as_bytes()]);
    assert_eq!(all("x-forwarded-host"), [host.as_bytes()]);
    assert_eq!(all("x-forwarded-proto"), [b"https"]);
    assert_eq!(all("x-forwarded-for"), [b"127.0.0.1"]);
    assert_eq!(all("connection").len(), usize::from(upgrades));
    assert_eq!(all("upgrade").len(), usize::from(upgrades));
    assert!(all("cookie").len() <= 1);
    // One way to tell where the body ends.
    let lengths = all("content-length");
    let chunked = all("transfer-encoding");
    assert!(lengths.len() + chunked.len() <= 1);
    assert!(chunked.iter().all(|coding| *coding == b"chunked"));
    assert!(
        lengths
            .iter()
            .all(|length| length.iter().all(u8::is_ascii_digit))
    );
}

/// Gives whether a request of the connection would have gone to a container.
async fn serve(input: &[u8]) -> bool {
    let seen = Arc::new(AtomicUsize::new(0));
    let passed = Arc::new(AtomicUsize::new(0));
    let counts = (Arc::clone(&seen), Arc::clone(&passed));
    let service = service_fn(move |mut request: Request<Incoming>| {
        let (seen, passed) = counts.clone();
        async move {
            seen.fetch_add(1, Ordering::Relaxed);
            if let Ok((_, host)) = decide(&request) {
                passed.fetch_add(1, Ordering::Relaxed);
                let version = request.version();
                let upgrade = headers::upgrade_wanted(request.headers(), version);
                let upgrades = upgrade.is_some();
                headers::to_container(request.headers_mut(), PEER, &host, upgrade);
                assert_clean(request.headers(), &host, upgrades);
            }
            let _ = request.into_body().collect().await;
            Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from_static(b"ok"))))
        }
    });
    let (mut client, server) = tokio::io::duplex(1 << 16);
    let builder = listener::builder(false, &FrontLimits::default());
    let serving = builder.serve_connection_with_upgrades(TokioIo::new(server), service);
    client.write_all(input).await.unwrap();
    client.shutdown().await.unwrap();
    let reading = async {
        let mut answers = Vec::new();
        let _ = client.read_to_end(&mut answers).await;
    };
    let (served, ()) = tokio::join!(serving, reading);
    let _ = served;
    // A request has a line of its own that says so.
    let lines = input.windows(7).filter(|part| part == b"HTTP/1.").count();
    let seen = seen.load(Ordering::Relaxed);
    assert!(seen <= lines, "{seen} requests in {lines} lines");
    passed.load(Ordering::Relaxed) > 0
}

#[test]
fn fuzz_http_heads() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    Target::new("http_heads")
        .seeds(seeds())
        .words(WORDS)
        .max_bytes(2048)
        .run(INPUTS, |input| runtime.block_on(serve(input)));
}

/// The parts of an address, without the reader of HTTP in front of them.
#[test]
fn fuzz_targets_of_requests() {
    let seeds = [
        format!("h {BASE}/a/b?identifier=user-1"),
        format!("alpha.{DOMAIN} /x?identifier=%61bcd&y"),
        format!("ALPHA.{DOMAIN}. /.Management/x"),
        "h /subscriptions/a/resourceGroups/b/providers/Microsoft.App/sessionPools/c".to_owned(),
    ];
    Target::new("targets_of_requests")
        .seeds(seeds.map(String::into_bytes))
        .words(WORDS)
        .max_bytes(512)
        .run(4 * INPUTS, |input| {
            let text = String::from_utf8_lossy(input);
            let (host, target) = text.split_once(' ').unwrap_or_default();
            let request = Request::builder().uri(target).header(header::HOST, host);
            let Ok(request) = request.version(http::Version::HTTP_11).body(()) else {
                return false;
            };
            let _ = crate::arm::path::target(request.uri().path());
            decide(&request).is_ok()
        });
}
