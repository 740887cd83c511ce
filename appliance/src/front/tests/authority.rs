//! The certificate that clients trust, for everybody.

use super::*;

async fn ask(door: &Door, method: &str, host: &str, path: &str) -> Got {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, host)
        .body(empty())
        .unwrap();
    let mut sender = door.http1().await;
    Got::read(in_time(sender.send_request(request)).await.unwrap()).await
}

#[tokio::test]
async fn certificate_of_the_authority_needs_no_token_and_is_not_served_on_hosts_of_pools() {
    let door = Door::with(|_, _| say("the container's")).await;
    let pem = std::fs::read(door._dir.path().join("ca.pem")).unwrap();
    for host in ["localhost", "cabana.example:8443", "192.0.2.1"] {
        let got = ask(&door, "GET", host, "/ca.pem").await;
        assert_eq!((got.status, &got.body[..]), (StatusCode::OK, &pem[..]));
        assert_eq!(
            got.headers["content-type"],
            "application/pem-certificate-chain"
        );
    }
    let got = ask(&door, "POST", "localhost", "/ca.pem").await;
    assert_eq!(got.status, StatusCode::METHOD_NOT_ALLOWED);
    // There all paths are the container's, and it is asked for with a token.
    let got = ask(&door, "GET", "alpha.cabana.example", "/ca.pem").await;
    assert_eq!(got.code(), "401 Unauthorized");
    for path in ["/ca.pem/", "/CA.pem", "/ca.key", "//ca.pem", "/x/../ca.pem"] {
        let got = ask(&door, "GET", "localhost", path).await;
        assert_eq!(got.code(), "401 Unauthorized", "{path}");
    }
}
