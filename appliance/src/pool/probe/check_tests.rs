use std::sync::Mutex;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::*;

const LIMIT: Duration = Duration::from_secs(1);

fn get_probe(scheme: Scheme, path: &str) -> Probe {
    probe(Check::HttpGet {
        scheme,
        host: None,
        path: path.to_owned(),
        port: 8080,
        headers: Vec::new(),
    })
}

fn probe(check: Check) -> Probe {
    Probe {
        check,
        initial_delay_seconds: 0,
        period_seconds: 10,
        timeout_seconds: 1,
        failure_threshold: 3,
        success_threshold: 1,
        termination_grace_seconds: None,
    }
}

/// A container whose server does `serve` with each connection.
struct Container<F> {
    serve: F,
    served: Mutex<Vec<JoinHandle<String>>>,
}

impl<F, S> Container<F>
where
    F: Fn(UnixStream) -> S + Sync,
    S: Future<Output = String> + Send + 'static,
{
    fn new(serve: F) -> Self {
        Self {
            serve,
            served: Mutex::default(),
        }
    }

    fn connect(&self) -> io::Result<UnixStream> {
        let (near, far) = UnixStream::pair()?;
        let served = tokio::spawn((self.serve)(far));
        self.served.lock().unwrap().push(served);
        Ok(near)
    }

    async fn ask(&self, probe: &Probe) -> Result<(), String> {
        let connect = |_| -> BoxFuture<'_, _> { Box::pin(async { self.connect() }) };
        ask(&connect, probe).await
    }

    /// What the servers heard. All have ended: nothing holds their streams any more.
    async fn heard(&self) -> Vec<String> {
        let served = std::mem::take(&mut *self.served.lock().unwrap());
        let mut heard = Vec::new();
        for server in served {
            let ended = timeout(20 * LIMIT, server).await;
            heard.push(ended.expect("a stream was leaked").unwrap());
        }
        heard
    }
}

/// Reads the head of a request.
async fn head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).await.unwrap_or(0) == 0 {
            break;
        }
        head.extend(byte);
    }
    String::from_utf8(head).unwrap()
}

/// Answers with `first`, and with `again` as long as anybody takes it.
async fn answer(mut stream: UnixStream, first: Vec<u8>, again: Vec<u8>) -> String {
    let heard = head(&mut stream).await;
    let _ = stream.write_all(&first).await;
    if !again.is_empty() {
        while stream.write_all(&again).await.is_ok() {}
    }
    heard
}

async fn answered(first: &str, again: &str) -> (Result<(), String>, Vec<String>) {
    let (first, again) = (first.as_bytes().to_vec(), again.as_bytes().to_vec());
    let container = Container::new(|stream| answer(stream, first.clone(), again.clone()));
    let result = container.ask(&get_probe(Scheme::Http, "/healthz")).await;
    (result, container.heard().await)
}

#[tokio::test]
async fn status_from_200_to_399_is_healthy_and_a_redirect_is_not_followed() {
    for (status, healthy) in [
        ("199 X", false),
        ("200 OK", true),
        ("204 No Content", true),
        ("302 Found\r\nLocation: /elsewhere", true),
        ("399 X", true),
        ("400 Bad Request", false),
        ("503 Service Unavailable", false),
        ("101 Switching Protocols\r\nUpgrade: x", false),
    ] {
        let text = format!("HTTP/1.1 {status}\r\nConnection: close\r\n\r\n");
        let (result, heard) = answered(&text, "").await;
        assert_eq!(result.is_ok(), healthy, "{status}: {result:?}");
        assert_eq!(heard.len(), 1, "{status}");
        if status.starts_with('5') {
            let why = result.unwrap_err();
            assert_eq!(
                why,
                "GET /healthz on port 8080 was answered with status 503"
            );
        }
    }
}

#[tokio::test]
async fn server_that_keeps_its_connection_open_is_healthy_when_its_answer_is_whole() {
    let container = Container::new(|mut stream: UnixStream| async move {
        let heard = head(&mut stream).await;
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        stream.write_all(whole).await.unwrap();
        // Ends when the probe closes it.
        let _ = stream.read(&mut [0]).await;
        heard
    });
    let probe = get_probe(Scheme::Http, "/");
    container.ask(&probe).await.unwrap();
    container.heard().await;
}

#[tokio::test]
async fn request_is_as_it_was_configured_and_says_who_asks() {
    let ok = || b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec();
    let container = Container::new(|stream| answer(stream, ok(), vec![]));
    container
        .ask(&get_probe(Scheme::Http, "ready?deep=1"))
        .await
        .unwrap();
    assert_eq!(
        container.heard().await,
        [
            "GET /ready?deep=1 HTTP/1.1\r\nhost: localhost:8080\r\nuser-agent: cabana-probe\r\n\
          accept: */*\r\nconnection: close\r\n\r\n"
        ]
    );
    let own = [
        ("X-A", "1"),
        ("X-A", "2"),
        ("Host", "own.example"),
        ("User-Agent", "me"),
    ];
    let check = Check::HttpGet {
        scheme: Scheme::Http,
        host: Some("ignored.example".into()),
        path: "/".into(),
        port: 80,
        headers: own.map(|(n, v)| (n.to_owned(), v.to_owned())).to_vec(),
    };
    container.ask(&probe(check)).await.unwrap();
    let heard = &container.heard().await[0];
    for line in [
        "x-a: 1\r\n",
        "x-a: 2\r\n",
        "host: own.example\r\n",
        "user-agent: me\r\n",
    ] {
        assert_eq!(heard.matches(line).count(), 1, "{line:?}: {heard}");
    }
    assert!(!heard.contains("ignored") && !heard.contains("cabana-probe"));
}

#[test]
fn host_header_names_the_port_unless_it_is_the_usual_one() {
    for (scheme, host, port, header) in [
        (Scheme::Http, None, 80, "localhost"),
        (Scheme::Http, None, 443, "localhost:443"),
        (Scheme::Https, Some("a.example"), 443, "a.example"),
        (Scheme::Https, Some("a.example"), 8443, "a.example:8443"),
        (Scheme::Http, Some("a.example:1"), 2, "a.example:1"),
        (Scheme::Http, Some(""), 80, "localhost"),
    ] {
        assert_eq!(host_header(scheme, host, port), header);
    }
}

#[tokio::test]
async fn answers_without_end_are_failures_and_leave_nothing_behind() {
    let long = "a".repeat(4096);
    for (first, again, why) in [
        (
            "HTTP/1.1 200 OK\r\nX: ",
            &long[..],
            "was not answered in HTTP/1.1",
        ),
        (
            "HTTP/1.1 200 OK\r\n",
            "X: y\r\n",
            "was not answered in HTTP/1.1",
        ),
        (
            "",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "was not answered within 1 second",
        ),
        ("HTTP/1.1 200 OK\r\n\r\n", &long, "its body is longer than"),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "1\r\na\r\n",
            "its body",
        ),
    ] {
        let begun = std::time::Instant::now();
        let (result, _) = answered(first, again).await;
        let text = result.unwrap_err();
        // Small pieces may take all the time there is.
        let slow = text.contains("was not answered within 1 second");
        assert!(text.contains(why) || slow && again.len() < 9, "{text}");
        assert!(text.chars().count() < 400, "{text}");
        assert!(begun.elapsed() < 20 * LIMIT);
    }
}

#[tokio::test]
async fn answers_that_are_none_are_told_in_one_harmless_line() {
    for (said, why) in [
        ("", "was not answered in HTTP/1.1"),
        ("SSH-2.0-x\r\n", "was not answered in HTTP/1.1"),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
            "its body broke off",
        ),
        (
            "HTTP/1.1 200 OK\r\n\x1b[2J: x\r\n\r\n",
            "was not answered in HTTP/1.1",
        ),
    ] {
        let (result, _) = answered(said, "").await;
        let text = result.unwrap_err();
        assert!(text.contains(why), "{said:?}: {text}");
        assert!(!text.contains(char::is_control), "{text:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn silence_is_a_failure_after_the_timeout_wherever_it_begins() {
    for said in [
        "",
        "HTTP/1.1 200",
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx",
    ] {
        let container = Container::new(|mut stream: UnixStream| async move {
            let mut heard = head(&mut stream).await;
            stream.write_all(said.as_bytes()).await.unwrap();
            stream.read_to_string(&mut heard).await.unwrap();
            heard
        });
        let begun = tokio::time::Instant::now();
        let text = container.ask(&get_probe(Scheme::Http, "/")).await;
        assert_eq!(begun.elapsed().as_secs(), 1, "{said:?}");
        assert_eq!(
            text.unwrap_err(),
            "GET / on port 8080 was not answered within 1 second"
        );
        container.heard().await;
    }
    let never = |_| -> BoxFuture<'_, _> { Box::pin(std::future::pending()) };
    let patient = Probe {
        timeout_seconds: 240,
        ..probe(Check::TcpSocket { port: 9000 })
    };
    assert_eq!(
        ask(&never, &patient).await.unwrap_err(),
        "a connection to port 9000 was not answered within 240 seconds"
    );
}

#[tokio::test]
async fn connection_that_is_accepted_is_all_that_a_tcp_probe_wants() {
    let asked = Mutex::new(Vec::new());
    let connect = |port| -> BoxFuture<'_, _> {
        asked.lock().unwrap().push(port);
        Box::pin(async move {
            match port {
                9000 => UnixStream::pair().map(|(near, _)| near),
                _ => Err(io::ErrorKind::ConnectionRefused.into()),
            }
        })
    };
    let tcp = |port| probe(Check::TcpSocket { port });
    ask(&connect, &tcp(9000)).await.unwrap();
    let refused = ask(&connect, &tcp(9001)).await.unwrap_err();
    assert_eq!(refused, "a connection to port 9001 was refused");
    let refused = ask(&connect, &get_probe(Scheme::Https, "/x")).await;
    assert_eq!(
        refused.unwrap_err(),
        "GET /x on port 8080 over TLS was refused"
    );
    assert_eq!(*asked.lock().unwrap(), [9000, 9001, 8080]);
}

#[tokio::test]
async fn settings_that_cannot_be_sent_are_told_and_nothing_is_asked() {
    let container = Container::new(|stream| answer(stream, vec![], vec![]));
    let bad = format!("/a b\x1b[2J{}", "x".repeat(1000));
    let text = container.ask(&get_probe(Scheme::Http, &bad)).await;
    let text = text.unwrap_err();
    assert!(
        text.contains("its path cannot stand in a request"),
        "{text}"
    );
    assert!(
        text.contains("on port 8080") || text.chars().count() < 400,
        "{text}"
    );
    assert!(!text.contains(char::is_control), "{text:?}");
    let check = Check::HttpGet {
        scheme: Scheme::Http,
        host: None,
        path: "/".into(),
        port: 80,
        headers: vec![("X".into(), "a\r\nY: b".into())],
    };
    let text = container.ask(&probe(check)).await.unwrap_err();
    assert!(text.contains("its header \"X\" cannot stand"), "{text}");
    assert_eq!(container.heard().await, [""; 0]);
}

fn acceptor(not_after: (i32, u8, u8)) -> TlsAcceptor {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["nobody.example".into()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2001, 1, 1);
    params.not_after = rcgen::date_time_ymd(not_after.0, not_after.1, not_after.2);
    let certificate = params.self_signed(&key).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

#[tokio::test]
async fn certificate_of_nobody_that_has_expired_is_good_enough() {
    for host in [
        None,
        Some("a.example:8443".to_owned()),
        Some("not a name".to_owned()),
    ] {
        let acceptor = acceptor((2002, 1, 1));
        let container = Container::new(|stream| {
            let acceptor = acceptor.clone();
            async move {
                let mut stream = acceptor.accept(stream).await.unwrap();
                let name = stream.get_ref().1.server_name().map(str::to_owned);
                let _ = head(&mut stream).await;
                let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                stream.write_all(whole).await.unwrap();
                stream.flush().await.unwrap();
                name.unwrap_or_default()
            }
        });
        let check = Check::HttpGet {
            scheme: Scheme::Https,
            // It would be no header, but one of those that are configured takes its place.
            headers: vec![("Host".into(), "x".into())],
            host: host.clone(),
            path: "/".into(),
            port: 8443,
        };
        container.ask(&probe(check)).await.unwrap();
        let asked_for = if host.as_deref() == Some("a.example:8443") {
            "a.example"
        } else {
            ""
        };
        assert_eq!(container.heard().await, [asked_for], "{host:?}");
    }
}

#[tokio::test]
async fn server_without_tls_fails_a_probe_over_tls() {
    let plain = b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec();
    let container = Container::new(|mut stream: UnixStream| {
        let plain = plain.clone();
        async move {
            stream.write_all(&plain).await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await;
            String::new()
        }
    });
    let text = container.ask(&get_probe(Scheme::Https, "/")).await;
    let text = text.unwrap_err();
    assert!(
        text.starts_with("GET / on port 8080 over TLS failed in TLS: "),
        "{text}"
    );
    container.heard().await;
}
