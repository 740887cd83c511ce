//! Certificates of a real ACME server: Let's Encrypt's own test server, pebble, which looks for its challenges through the
//! front door and through the port for HTTP-01. Names are told it by pebble's own DNS server.

use http::{Request, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::*;
use crate::images::registry::trusting;

/// Of Debian's package pebble.
const PEBBLE: &str = "/usr/bin/pebble";
const DNS: &str = "/usr/bin/pebble-challtestsrv";
const DOMAIN: &str = "cabana.example";
const OTHER: &str = "other.cabana.example";
const KEY_ID: &str = "kid-1";
/// As pebble's manual has it.
const KEY: &str = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
/// Somebody else may take a port before its program does.
const TRIES: usize = 5;
/// Where the front door is.
const HERE: &str = "127.0.0.1";
/// Where nothing is.
const ELSEWHERE: &str = "127.0.0.9";

/// A CA with its servers.
struct Pebble {
    process: Child,
    dns: Child,
    directory: String,
    management: String,
    /// Where the answers of its DNS server are changed.
    names: String,
    folder: TempDir,
}

impl Pebble {
    /// Looks for challenges on these ports.
    async fn start(tls_port: u16, http_port: u16) -> Self {
        for _ in 0..TRIES {
            if let Some(started) = Self::try_start(tls_port, http_port).await {
                return started;
            }
        }
        panic!("pebble does not come up");
    }

    async fn try_start(tls_port: u16, http_port: u16) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let [ca, certificate, key] =
            ["ca.pem", "cert.pem", "key.pem"].map(|name| folder.path().join(name));
        let signer = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        std::fs::write(&ca, params.self_signed(&signer).unwrap().pem()).unwrap();
        let issuer = Issuer::new(params, &signer);
        let own = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let signed = params.signed_by(&own, &issuer).unwrap();
        std::fs::write(&certificate, signed.pem()).unwrap();
        std::fs::write(&key, own.serialize_pem()).unwrap();
        let [acme, management, dns, names] = free_ports();
        let config = json!({ "pebble": {
            "listenAddress": format!("{HERE}:{acme}"),
            "managementListenAddress": format!("{HERE}:{management}"),
            "certificate": certificate,
            "privateKey": key,
            "httpPort": http_port,
            "tlsPort": tls_port,
            "externalAccountBindingRequired": true,
            "externalAccountMACKeys": { KEY_ID: KEY },
        } });
        let config_file = folder.path().join("pebble.json");
        std::fs::write(&config_file, config.to_string()).unwrap();
        let log = |name| File::create(folder.path().join(name)).unwrap();
        let dns_process = Command::new(DNS)
            .args(["-dns01", &format!("{HERE}:{dns}"), "-management"])
            .args([&format!("{HERE}:{names}"), "-defaultIPv4", HERE])
            .args([
                "-defaultIPv6",
                "",
                "-http01",
                "",
                "-https01",
                "",
                "-tlsalpn01",
                "",
            ])
            .stdout(log("dns.log"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let process = Command::new(PEBBLE)
            .arg("-config")
            .arg(&config_file)
            .args(["-dnsserver", &format!("{HERE}:{dns}")])
            // At full speed; proofs are asked for each time; the crate's answer to bad nonces is not our matter.
            .env("PEBBLE_VA_NOSLEEP", "1")
            .env("PEBBLE_AUTHZREUSE", "0")
            .env("PEBBLE_WFE_NONCEREJECT", "0")
            .stdout(log("pebble.log"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut this = Self {
            process,
            dns: dns_process,
            directory: format!("https://localhost:{acme}/dir"),
            management: format!("https://localhost:{management}"),
            names: format!("http://{HERE}:{names}"),
            folder,
        };
        this.is_up([acme, management, names]).await.then_some(this)
    }

    /// Waits until all of it answers. `false`: some of it has ended.
    async fn is_up(&mut self, ports: [u16; 3]) -> bool {
        let begun = Instant::now();
        for port in ports {
            while TcpStream::connect((HERE, port)).await.is_err() {
                let processes = [&mut self.process, &mut self.dns];
                if processes
                    .into_iter()
                    .any(|it| it.try_wait().unwrap().is_some())
                {
                    return false;
                }
                assert!(begun.elapsed() < DEADLINE, "pebble does not answer");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        true
    }

    fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// What speaks with its servers.
    fn http(&self) -> reqwest::Client {
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(trusting(Some(&self.ca_file())).unwrap())
            .no_proxy()
            .build();
        client.unwrap()
    }

    /// What clients of its certificates trust.
    async fn root(&self) -> RootCertStore {
        let answer = self
            .http()
            .get(format!("{}/roots/0", self.management))
            .send();
        let pem = answer.await.unwrap().text().await.unwrap();
        roots(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap())
    }

    /// Where it believes all names to be from now on.
    async fn point_names_to(&self, address: &str) {
        let request = self.http().post(format!("{}/set-default-ipv4", self.names));
        let body = json!({ "ip": address }).to_string();
        let answer = request.body(body).send().await.unwrap();
        assert!(answer.status().is_success(), "{answer:?}");
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        for process in [&mut self.process, &mut self.dns] {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn free_ports<const N: usize>() -> [u16; N] {
    // All at once, so that they differ.
    let taken = [(); N].map(|()| TcpListener::bind((HERE, 0)).unwrap());
    taken.map(|listener| listener.local_addr().unwrap().port())
}

fn roots(root: CertificateDer<'static>) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(root).unwrap();
    roots
}

/// A connection to the front door under a name that is believed, and the certificate that it was shown.
struct Visit {
    sender: SendRequest<Empty<bytes::Bytes>>,
    shown: Vec<u8>,
}

impl Visit {
    async fn begin(native: &Native, trusted: &RootCertStore, name: &str) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(trusted.clone())
            .with_no_client_auth();
        let stream = TcpStream::connect(native.address).await.unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream);
        let stream = stream.await.expect("the certificate is believed");
        let shown = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self { sender, shown }
    }

    async fn get(&mut self, path: &str, token: Option<&str>) -> (u16, bytes::Bytes) {
        let mut request = Request::get(path).header(header::HOST, DOMAIN);
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Empty::new()).unwrap();
        self.sender.ready().await.unwrap();
        let answer = self.sender.send_request(request).await.unwrap();
        let status = answer.status().as_u16();
        (
            status,
            answer.into_body().collect().await.unwrap().to_bytes(),
        )
    }
}

impl Native {
    async fn tls(&self) -> Value {
        let (status, answer) = self.admin().send("GET", "/tls", "").await;
        assert_eq!(status, 200, "{answer}");
        answer
    }

    async fn until_issued(&self) {
        let begun = Instant::now();
        loop {
            let told = self.tls().await;
            if told["certificates"][0]["source"] == "acme" {
                return;
            }
            assert!(begun.elapsed() < DEADLINE, "no certificate: {told}");
            assert_eq!(told["acme"]["lastError"], Value::Null);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn renew(&self) -> (u16, Value) {
        self.admin().send("POST", "/tls/renew", "").await
    }
}

/// From the first certificate over one that is exchanged and one that is refused to a crash and the next start.
async fn live(test: &str, challenge: &str) {
    for program in [PEBBLE, DNS] {
        if !Path::new(program).exists() {
            return eprintln!("SKIPPED: {test}: there is no {program}");
        }
    }
    let mut started = None;
    let native = Native::start_configured(test, async |address| {
        let plain = bind();
        let plain_address = plain.local_addr().unwrap();
        let pebble = Pebble::start(address.port(), plain_address.port()).await;
        let key_file = pebble.folder.path().join("external.key");
        std::fs::write(&key_file, format!("{KEY}\n")).unwrap();
        let (listen, plain) = match challenge {
            "http-01" => (format!("listen = \"{plain_address}\"\n"), Some(plain)),
            _ => (String::new(), None),
        };
        let text = format!(
            "[tls.acme]\ndirectory = {:?}\nca_file = {:?}\ndomains = [{DOMAIN:?}, {OTHER:?}]\nchallenge = {challenge:?}\n\
             contacts = [\"operator@{DOMAIN}\"]\neab_key_id = {KEY_ID:?}\neab_key_file = {key_file:?}\n{listen}",
            pebble.directory,
            pebble.ca_file(),
        );
        started = Some(pebble);
        Extra { text, plain }
    });
    let Some(mut native) = native.await else {
        return;
    };
    let pebble = started.unwrap();
    native.until_issued().await;
    let trusted = pebble.root().await;
    let token = native.token("reader").await;
    let document = "/openapi.json";
    let mut open = Visit::begin(&native, &trusted, DOMAIN).await;
    assert_eq!(open.get(document, Some(&token)).await.0, 200);
    let first = open.shown.clone();
    assert_eq!(Visit::begin(&native, &trusted, OTHER).await.shown, first);
    // By any other name the appliance's own authority vouches for it, and gives its certificate to everybody.
    let own = native.paths.tls.join("ca.pem");
    let own_roots = roots(CertificateDer::from_pem_file(&own).unwrap());
    let mut local = Visit::begin(&native, &own_roots, "localhost").await;
    let (status, pem) = local.get("/ca.pem", None).await;
    assert_eq!((status, &pem[..]), (200, &std::fs::read(&own).unwrap()[..]));

    // Exchanged, and who was connected still is.
    let (status, told) = native.renew().await;
    assert_eq!(status, 200, "{told}");
    let second = Visit::begin(&native, &trusted, DOMAIN).await.shown;
    assert_ne!(second, first);
    assert_eq!(open.get(document, Some(&token)).await.0, 200);

    // Refused: the old one is served, and another try is promised.
    pebble.point_names_to(ELSEWHERE).await;
    let (status, told) = native.renew().await;
    assert_eq!(
        (status, &told["error"]["code"]),
        (502, &json!("CertificateNotIssued"))
    );
    let message = told["error"]["message"].as_str().unwrap();
    assert!(message.contains(DOMAIN), "{message}");
    let told = native.tls().await;
    assert_eq!(told["acme"]["failures"], 1, "{told}");
    assert!(told["acme"]["nextAttempt"].is_string(), "{told}");
    assert_eq!(Visit::begin(&native, &trusted, DOMAIN).await.shown, second);
    pebble.point_names_to(HERE).await;
    let (status, told) = native.renew().await;
    assert_eq!(status, 200, "{told}");
    let third = Visit::begin(&native, &trusted, DOMAIN).await.shown;
    assert!(third != second && third != first);

    // There is nobody to ask any more, and nobody needs to be asked.
    drop(pebble);
    native = native.kill();
    native.restart().await;
    let mut again = Visit::begin(&native, &trusted, DOMAIN).await;
    assert_eq!(again.shown, third);
    assert_eq!(again.get(document, Some(&token)).await.0, 200);
    assert_eq!(native.tls().await["acme"]["failures"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificate_is_had_exchanged_and_kept_with_tls_alpn_01() {
    live("acme_tls_alpn_01", "tls-alpn-01").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificate_is_had_exchanged_and_kept_with_http_01() {
    live("acme_http_01", "http-01").await;
}
