//! What the resources do whichever door one comes through. The HTTP of it is in `front::tests::resources`.

mod operations;

use super::*;

#[test]
fn endpoint_of_a_pool_is_by_host_name_when_there_is_a_domain() {
    let at = |domain: Option<&str>, port| Endpoints {
        host: format!("https://localhost:{port}"),
        domain: domain.map(str::to_owned),
        port,
    };
    let by_path = "https://localhost:1/subscriptions/s/resourceGroups/rg/sessionPools/p";
    assert_eq!(at(None, 1).of("s", "rg", "p"), by_path);
    assert_eq!(
        at(Some("d.example"), 8443).of("s", "rg", "p"),
        "https://p.d.example:8443"
    );
    assert_eq!(
        at(Some("d.example"), 443).of("s", "rg", "p"),
        "https://p.d.example"
    );
}

#[test]
fn endpoint_has_the_name_and_port_by_which_the_client_has_come() {
    let here = |domain: Option<&str>, host| {
        let endpoints = Endpoints {
            host: "https://localhost:8443".into(),
            domain: domain.map(str::to_owned),
            port: 8443,
        };
        endpoints.seen_as(host).of("s", "rg", "p")
    };
    let path = "/subscriptions/s/resourceGroups/rg/sessionPools/p";
    assert_eq!(
        here(None, "gate.example"),
        format!("https://gate.example{path}")
    );
    assert_eq!(here(None, "[::1]:7"), format!("https://[::1]:7{path}"));
    let domain = Some("d.example");
    assert_eq!(here(domain, "gate.example"), "https://p.d.example");
    assert_eq!(here(domain, "10.0.0.1:7"), "https://p.d.example:7");
}
