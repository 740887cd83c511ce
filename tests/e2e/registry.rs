//! A pool whose image is in a registry: pulled, booted, asked.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::{fs, thread};

use e2e::{TestAppliance, artifacts};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

e2e::tests! {
    Shared: [
        image_of_a_registry_is_pulled_for_a_pool_and_answers,
    ];
    Own: [];
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const USER: &str = "ci";
const PASSWORD: &str = "correct-horse-battery";
/// Both of them, as RFC 7617 has it.
const BASIC: &str = "Basic Y2k6Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5";

/// The first byte of who speaks TLS (RFC 8446, 5.1), as a careful client does at first.
const TLS_HANDSHAKE: [u8; 1] = [22];

/// Content type and bytes by path.
type Files = HashMap<String, (&'static str, Vec<u8>)>;

/// The demo image, with a manifest of its own so that it is another image than the one that others import.
fn files() -> (Files, String) {
    let folder = tempfile::tempdir().unwrap();
    let mut tar = Command::new("tar");
    tar.arg("-xf").arg(artifacts::demo_image());
    assert!(tar.arg("-C").arg(folder.path()).status().unwrap().success());
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap();
        let path = folder.path().join("blobs").join(digest.replace(':', "/"));
        (digest.to_owned(), fs::read(path).unwrap())
    };
    let index = fs::read(folder.path().join("index.json")).unwrap();
    let index: Value = serde_json::from_slice(&index).unwrap();
    let (_, manifest) = blob(&index["manifests"][0]);
    let mut manifest: Value = serde_json::from_slice(&manifest).unwrap();
    manifest["mediaType"] = MANIFEST.into();
    manifest["annotations"] = json!({ "from": "a registry" });
    let mut files = Files::new();
    let layers = manifest["layers"].as_array().unwrap();
    for descriptor in layers.iter().chain([&manifest["config"]]) {
        let (digest, bytes) = blob(descriptor);
        files.insert(
            format!("/v2/team/demo/blobs/{digest}"),
            ("application/octet-stream", bytes),
        );
    }
    let manifest = manifest.to_string().into_bytes();
    let digest: String = Sha256::digest(&manifest)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    files.insert("/v2/team/demo/manifests/1".to_owned(), (MANIFEST, manifest));
    (files, format!("sha256:{digest}"))
}

/// Serves the files to who has the password, for as long as the test runs.
fn serve(files: Files) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let files = Arc::new(files);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let files = Arc::clone(&files);
            thread::spawn(move || answer(stream, &files).unwrap_or_default());
        }
    });
    address
}

fn answer(mut stream: TcpStream, files: &Files) -> std::io::Result<()> {
    let mut first = [0];
    stream.peek(&mut first)?;
    if first == TLS_HANDSHAKE {
        return Ok(());
    }
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let mut knows = false;
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        let header = line.split_once(": ").unwrap_or_default();
        knows |= header.0.eq_ignore_ascii_case("authorization") && header.1 == BASIC;
    }
    let mut words = request.split(' ');
    let (method, path) = (words.next(), words.next().unwrap_or_default());
    let (status, kind, body) = match files.get(path) {
        _ if !knows => (
            "401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"",
            "text/plain",
            &[][..],
        ),
        Some((kind, bytes)) => ("200 OK", *kind, bytes.as_slice()),
        None => ("404 Not Found", "text/plain", &[][..]),
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    if method == Some("GET") {
        stream.write_all(body)?;
    }
    Ok(())
}

fn image_of_a_registry_is_pulled_for_a_pool_and_answers(host: &TestAppliance) {
    let (files, digest) = files();
    let name = format!("{}/team/demo:1", serve(files));
    let create = [
        "sessionpool",
        "create",
        "--name",
        "pulled",
        "--target-port",
        "8080",
    ];
    let anonymous = host.cli().run(&[&create[..], &["--image", &name]].concat());
    anonymous.assert_refused(1, &["ImagePullUnauthorized", "--registry-username"]);
    let wrong = [
        "--image",
        &name,
        "--registry-username",
        USER,
        "--registry-password",
        "wrong",
    ];
    let wrong = host.cli().run(&[&create[..], &wrong].concat());
    wrong.assert_refused(1, &["ImagePullUnauthorized", USER]);

    let login = ["--registry-username", USER, "--registry-password", PASSWORD];
    let pulled = host
        .cli()
        .json(&[&["image", "pull", &name][..], &login].concat());
    assert_eq!(
        (&pulled["digest"], &pulled["cached"]),
        (&json!(digest), &json!(false))
    );
    let pool = host
        .pool("pulled")
        .with(&[&["--image", &name][..], &login].concat())
        .create();
    let shown = host
        .cli()
        .json(&["sessionpool", "show", "--name", "pulled"]);
    let container = &shown["properties"]["customContainerTemplate"]["containers"][0];
    assert_eq!(
        (&container["image"], &container["imageDigest"]),
        (&json!(name), &json!(digest))
    );
    assert!(!shown.to_string().contains(PASSWORD), "{shown}");
    let answer = pool.session("user-1").get("/");
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (200, "Hello from Cabana\n")
    );
    for entry in fs::read_dir(host.root().join("var/lib/cabana/store")).unwrap() {
        let file = entry.unwrap().path();
        let bytes = fs::read(&file).unwrap_or_default();
        let mut places = bytes.windows(PASSWORD.len());
        assert!(
            !places.any(|place| place == PASSWORD.as_bytes()),
            "the password is in {}",
            file.display()
        );
    }
    let log = host.log().since(0).join("\n");
    assert!(log.contains("request") && !log.contains(PASSWORD), "{log}");
    pool.delete();
}
