//! The real thing: Debian's `docker-registry` on loopback, with each way of asking who comes.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use http::{StatusCode, header};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};

use super::server::{Fault, OCI_INDEX};
use super::*;
use crate::images::digest::Digest;

const PROGRAM: &str = "docker-registry";
/// `PASSWORD` with bcrypt: the only form that the registry takes.
const HTPASSWD: &str = "user:$2y$05$abcdefghijklmnopqrstuuHNbAKRhpaujgo33bRWs.NLUTJO3lOy2\n";
const SERVICE: &str = "test";
const ISSUER: &str = "issuer";

/// A registry process. Ends with this.
struct Registry {
    process: Child,
    host: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Registry {
    /// On what lies in `folder`, with more settings. `None`, and a line that says so: it is not installed.
    fn start(folder: &Path, settings: Value) -> Option<Self> {
        // YAML is a superset of JSON.
        let mut config = json!({
            "version": 0.1,
            "log": { "level": "info" },
            "storage": { "filesystem": { "rootdirectory": folder.join("data") } },
            "http": { "addr": "127.0.0.1:0", "secret": "x" },
        });
        merge(&mut config, settings);
        let file = folder.join("config.yml");
        std::fs::write(&file, config.to_string()).unwrap();
        let process = Command::new(PROGRAM)
            .arg("serve")
            .arg(&file)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let mut process = match process {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                eprintln!("SKIPPED: there is no {PROGRAM}");
                return None;
            }
            process => process.unwrap(),
        };
        let mut log = BufReader::new(process.stderr.take().unwrap());
        let mut all = String::new();
        let port = loop {
            let mut line = String::new();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "it ended: {all}");
            all.push_str(&line);
            if let Some((_, rest)) = line.split_once("listening on 127.0.0.1:") {
                let digits = rest
                    .find(|c: char| !c.is_ascii_digit())
                    .unwrap_or(rest.len());
                break rest[..digits].to_owned();
            }
        };
        // Somebody must read, or it waits for that at last.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Some(Self {
            process,
            host: format!("127.0.0.1:{port}"),
        })
    }

    /// Puts an image there as any client would.
    async fn push(&self, repository: &str, tag: &str, image: &TestImage) {
        let tls = tls::config(&self.host.parse().unwrap(), None)
            .await
            .unwrap();
        let client = reqwest::Client::builder().no_proxy();
        let client = client.tls_backend_preconfigured(tls).build().unwrap();
        let base = format!("http://{}/v2/{repository}", self.host);
        for blob in &image.blobs {
            let begun = client
                .post(format!("{base}/blobs/uploads/"))
                .send()
                .await
                .unwrap();
            assert_eq!(begun.status(), StatusCode::ACCEPTED);
            let place = begun.headers()[header::LOCATION].to_str().unwrap();
            let url = format!("{place}&digest={}", Digest::of(blob));
            let put = client
                .put(url)
                .header(header::CONTENT_TYPE, "application/octet-stream");
            let done = put.body(blob.clone()).send().await.unwrap();
            assert_eq!(done.status(), StatusCode::CREATED);
        }
        let put = client.put(format!("{base}/manifests/{tag}"));
        let put = put.header(header::CONTENT_TYPE, image.media_type);
        let done = put.body(image.manifest.clone()).send().await.unwrap();
        assert_eq!(
            done.status(),
            StatusCode::CREATED,
            "{}",
            done.text().await.unwrap()
        );
    }
}

fn merge(config: &mut Value, more: Value) {
    let Value::Object(more) = more else { return };
    for (name, value) in more {
        match value {
            Value::Object(_) if config[&name].is_object() => merge(&mut config[&name], value),
            value => config[&name] = value,
        }
    }
}

/// A folder whose registry has `team/app:1`.
async fn filled(image: &TestImage) -> Option<TempDir> {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::start(folder.path(), json!({}))?;
    registry.push("team/app", "1", image).await;
    Some(folder)
}

#[tokio::test]
async fn debian_registry_gives_oci_and_docker_images_and_indexes() {
    let folder = tempfile::tempdir().unwrap();
    let Some(registry) = Registry::start(folder.path(), json!({})) else {
        return;
    };
    let plain = layer("text", 200_000);
    let oci = TestImage::of(
        OCI_MANIFEST,
        &[
            (zstd(&plain), plain.clone()),
            (gzip(&layer("two", 0)), layer("two", 0)),
        ],
    );
    let docker = TestImage::of(DOCKER_MANIFEST, &[(gzip(&plain), plain.clone())]);
    registry.push("team/app", "oci", &oci).await;
    registry.push("team/app", "docker", &docker).await;
    let index = TestImage::index(&[(&docker, "arm64"), (&oci, "amd64")]);
    assert_eq!(index.media_type, OCI_INDEX);
    registry.push("team/app", "index", &index).await;
    let bench = Bench::new();
    for (tag, image) in [("docker", &docker), ("index", &oci), ("oci", &oci)] {
        let name = format!("{}/team/app:{tag}", registry.host);
        assert_eq!(bench.pull(&name).await.unwrap().image.digest, image.digest);
        assert!(bench.pull(&name).await.unwrap().cached);
    }
    assert_eq!(bench.builds(), 2);
    for name in ["team/app:none", "team/none"] {
        let error = bench.error(&format!("{}/{name}", registry.host)).await;
        assert_eq!(error.code, ImageErrorCode::ImageNotFound);
    }
}

#[tokio::test]
async fn debian_registry_asks_for_user_and_password() {
    let image = TestImage::simple("basic", 1000);
    let Some(folder) = filled(&image).await else {
        return;
    };
    let htpasswd = folder.path().join("htpasswd");
    std::fs::write(&htpasswd, HTPASSWD).unwrap();
    let auth = json!({ "auth": { "htpasswd": { "realm": "test", "path": htpasswd } } });
    let registry = Registry::start(folder.path(), auth).unwrap();
    let name = format!("{}/team/app:1", registry.host);
    let bench = Bench::new();
    for held in [None, Some(credentials(&registry.host, "wrong"))] {
        let error = bench.pull_as(&name, held).await.unwrap_err();
        assert_eq!(error.code, ImageErrorCode::ImagePullUnauthorized);
    }
    let held = Some(credentials(&registry.host, PASSWORD));
    assert_eq!(
        bench.pull_as(&name, held).await.unwrap().image.digest,
        image.digest
    );
}

#[tokio::test]
async fn debian_registry_with_a_private_certificate_is_believed_by_its_ca_file() {
    let image = TestImage::simple("tls", 1000);
    let Some(folder) = filled(&image).await else {
        return;
    };
    let (certificate, key, ca) = private_certificate();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let (certificate, key) = (write("cert.pem", &certificate), write("key.pem", &key));
    let tls = json!({ "http": { "tls": { "certificate": certificate, "key": key } } });
    let registry = Registry::start(folder.path(), tls).unwrap();
    let name = format!("{}/team/app:1", registry.host);
    let error = Bench::new().error(&name).await;
    assert_eq!(error.code, ImageErrorCode::ImageRegistryUnreachable);
    let ca_file = Some(write("ca.pem", &ca));
    let trusting = settings(
        &registry.host,
        RegistrySettings {
            ca_file,
            ..Default::default()
        },
    );
    let bench = Bench::with(trusting, Limits::default());
    assert_eq!(bench.pull(&name).await.unwrap().image.digest, image.digest);
}

#[tokio::test]
async fn debian_registry_sends_to_its_token_server() {
    let image = TestImage::simple("token", 1000);
    let Some(folder) = filled(&image).await else {
        return;
    };
    // The certificate of the key that signs tokens is what the registry trusts.
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(Vec::new())
        .unwrap()
        .self_signed(&key)
        .unwrap();
    let bundle = folder.path().join("tokens.pem");
    std::fs::write(&bundle, certificate.pem()).unwrap();
    let chain = base64::Engine::encode(
        &base64::engine::general_purpose::STANDARD,
        certificate.der(),
    );
    let mut header = Header::new(Algorithm::ES256);
    header.x5c = Some(vec![chain]);
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let claims = json!({
        "iss": ISSUER, "sub": USER, "aud": SERVICE, "jti": "1",
        "iat": now - 60, "nbf": now - 60, "exp": now + 3600,
        "access": [{ "type": "repository", "name": "team/app", "actions": ["pull"] }],
    });
    let signing = EncodingKey::from_ec_der(&key.serialize_der());
    let token = jsonwebtoken::encode(&header, &claims, &signing).unwrap();

    // Its answers but for the token are of no interest here.
    let server = TestRegistry::start(Access::Bearer).await;
    let answer = json!({ "token": token }).to_string().into_bytes();
    server.token(answer);
    let auth = json!({ "auth": { "token": {
        "realm": format!("http://{}/token", server.host()),
        "service": SERVICE,
        "issuer": ISSUER,
        "rootcertbundle": bundle,
    } } });
    let registry = Registry::start(folder.path(), auth).unwrap();
    let name = format!("{}/team/app:1", registry.host);
    let bench = Bench::new();
    let error = bench.error(&name).await;
    assert_eq!(error.code, ImageErrorCode::ImagePullUnauthorized);
    server.seen();
    let held = Some(credentials(&registry.host, PASSWORD));
    assert_eq!(
        bench.pull_as(&name, held).await.unwrap().image.digest,
        image.digest
    );
    let asked: Vec<_> = server.seen().into_iter().map(|seen| seen.line).collect();
    assert_eq!(
        asked,
        ["GET /token?service=test&scope=repository%3Ateam%2Fapp%3Apull"]
    );
    // A token for this repository is none for another.
    let other = format!("{}/team/other:1", registry.host);
    let held = Some(credentials(&registry.host, PASSWORD));
    let error = bench.pull_as(&other, held).await.unwrap_err();
    assert_eq!(error.code, ImageErrorCode::ImagePullUnauthorized);
}

#[tokio::test]
async fn debian_registry_goes_on_with_a_layer_that_a_dying_connection_cut() {
    let image = TestImage::simple("cut", 4 << 20);
    let Some(folder) = filled(&image).await else {
        return;
    };
    let registry = Registry::start(folder.path(), json!({})).unwrap();
    let bench = Bench::new();
    // What a broken pull leaves.
    let part = bench
        .folder
        .path()
        .join(".blobs/sha256")
        .join(image.layer_digest().hex());
    std::fs::write(part.with_extension("partial"), &image.layer()[..1 << 20]).unwrap();
    // Mirrors see the requests: this one has nothing but a cut layer.
    let mirror = TestRegistry::start(Access::Everybody).await;
    mirror.put("team/app", "1", &image);
    let path = layer_path(&image);
    mirror.fail(move |line| line.contains(&path).then_some(Fault::Cut(1 << 20)));
    let mirrors = vec![Mirror::try_from(mirror.host()).unwrap()];
    let registries = settings(
        &registry.host,
        RegistrySettings {
            mirrors,
            ..Default::default()
        },
    );
    let puller = Puller::open(
        bench.cache.clone(),
        bench.folder.path(),
        registries,
        Limits::default(),
        PATIENCE,
    );
    let name = format!("{}/team/app:1", registry.host);
    let request = PullRequest {
        image: name,
        credentials: None,
    };
    let pulled = puller
        .unwrap()
        .pull(&bench.runner, &request, &Reporter::default())
        .await
        .unwrap();
    assert_eq!(pulled.image.digest, image.digest);
    let seen = mirror.seen();
    let asked = seen
        .iter()
        .find(|seen| seen.line.contains("/blobs/") && seen.range.is_some());
    assert_eq!(asked.unwrap().range.as_deref(), Some("bytes=1048576-"));
}
