//! Certificates of an ACME server need a port that only root may bind, and the process that answers on it is not root. How they
//! are had of a real server, exchanged and kept is tested in `appliance/src/native/acme.rs`.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use e2e::TestAppliance;
use e2e::appliance::CONFIG;
use e2e::client::empty;
use hyper::Method;

e2e::tests! {
    Own: [
        port_for_http_01_is_bound_by_the_warden_and_outlives_the_appliance_process,
    ];
}

/// Nobody is there.
const DIRECTORY: &str = "https://127.0.0.1:1/directory";
const PLAIN: &str = "127.0.0.1:80";
/// A start on an emulated processor.
const LIMIT: Duration = Duration::from_secs(60);

fn port_for_http_01_is_bound_by_the_warden_and_outlives_the_appliance_process() {
    let host = TestAppliance::start_with(&format!(
        "{CONFIG}[tls.acme]\ndirectory = \"{DIRECTORY}\"\ndomains = [\"cabana.example\"]\n\
         challenge = \"http-01\"\nlisten = \"{PLAIN}\"\n"
    ));
    host.wait_for_line(0, LIMIT, "that it has no certificate", |line| {
        line.contains("there is no certificate of the ACME server yet")
    });
    host.wait_for_line(0, LIMIT, "why it has none", |line| {
        line.contains("no certificate of the ACME server: ") && line.contains("127.0.0.1")
    });
    for path in ["/", "/.well-known/acme-challenge/x", "/ca.pem"] {
        let answer = ask(path);
        assert!(answer.starts_with("HTTP/1.1 404 "), "{path}: {answer}");
    }
    // Meanwhile the private authority's is served, and everybody may have what it is trusted by.
    let told = host.cli().json(&["tls", "show"]);
    assert_eq!(told["source"], "acme", "{told}");
    assert_eq!(told["certificates"][0]["source"], "own", "{told}");
    assert_eq!(told["acme"]["failures"], 1, "{told}");
    let pem = host.cli().ok(&["tls", "ca"]);
    assert!(pem.starts_with("-----BEGIN CERTIFICATE-----"), "{pem}");
    let file = host.root().join("copy.pem");
    let out = file.to_str().expect("the root has a plain name");
    host.cli().ok(&["tls", "ca", "--out", out]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), pem);
    let client = host.client();
    let request = client.request(Method::GET, "/ca.pem");
    let request = request.body(empty()).unwrap();
    let answer = host.block_on(client.send(request));
    assert_eq!(answer.text(), pem);

    let position = host.log().position();
    host.appliance().kill();
    host.wait_for_line(position, LIMIT, "that it is serving again", |line| {
        line.contains("serving")
    });
    assert!(ask("/").starts_with("HTTP/1.1 404 "));
    host.stop();
}

/// Without TLS.
fn ask(path: &str) -> String {
    let address: SocketAddr = PLAIN.parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&address, LIMIT).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: cabana.example\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
