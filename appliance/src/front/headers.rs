//! Which headers pass the front door, in each direction (RFC 9110 section 7.6.1). Pure.

use std::net::IpAddr;

use http::header::{self, Entry, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Version};

use super::refusal::{Code, Refusal};

/// Belong to one connection, whatever `Connection` says.
const HOP_BY_HOP: [HeaderName; 5] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// What a container could take for the front door's word. Only the front door says these.
const OURS_TO_SAY: [HeaderName; 6] = [
    header::FORWARDED,
    FORWARDED_FOR,
    FORWARDED_PROTO,
    FORWARDED_HOST,
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-forwarded-prefix"),
];

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Removes what belongs to the connection that the message came on.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = tokens(headers, &header::CONNECTION)
        .filter_map(|token| token.parse().ok())
        // What frames the message, or says where it goes, is not for the sender to have removed.
        .filter(|name| ![header::CONTENT_LENGTH, header::HOST, header::TE].contains(name))
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// The protocol that the client wants to change to, if it does.
pub fn upgrade_wanted(headers: &HeaderMap, version: Version) -> Option<HeaderValue> {
    if version != Version::HTTP_11 || !has_token(headers, &header::CONNECTION, "upgrade") {
        return None;
    }
    let wanted = headers.get(header::UPGRADE)?;
    // RFC 9113 has withdrawn it, and it would carry further requests past the checks of this one.
    let smuggles = tokens(headers, &header::UPGRADE).any(|token| token.eq_ignore_ascii_case("h2c"));
    (!smuggles).then(|| wanted.clone())
}

/// Refuses what could be read as a request in two ways.
pub fn refuse_ambiguous(
    method: &Method,
    headers: &HeaderMap,
    version: Version,
) -> Result<(), Refusal> {
    let malformed =
        |message: &str| Err(Refusal::new(Code::SessionRequestValidationFailed, message));
    if *method == Method::CONNECT {
        let message = "The method CONNECT is not supported";
        return Err(Refusal::new(Code::SessionRequestNotSupported, message));
    }
    let codings: Vec<_> = tokens(headers, &header::TRANSFER_ENCODING).collect();
    let only_chunked = matches!(codings[..], [coding] if coding.eq_ignore_ascii_case("chunked"));
    if !codings.is_empty() && !only_chunked {
        return malformed("The only supported Transfer-Encoding is chunked");
    }
    if !codings.is_empty() && headers.contains_key(header::CONTENT_LENGTH) {
        return malformed("Content-Length and Transfer-Encoding exclude each other");
    }
    let lengths = headers.get_all(header::CONTENT_LENGTH);
    let digits = |value: &HeaderValue| value.as_bytes().iter().all(u8::is_ascii_digit);
    if lengths.iter().count() > 1 || !lengths.iter().all(digits) {
        return malformed("There must be one Content-Length, a number");
    }
    if headers.get_all(header::HOST).iter().count() > 1
        || (version == Version::HTTP_11 && !headers.contains_key(header::HOST))
    {
        return malformed("There must be one Host header");
    }
    Ok(())
}

/// What becomes of a client's request headers on the way to the container.
pub fn to_container(
    headers: &mut HeaderMap,
    peer: IpAddr,
    host: &str,
    upgrade: Option<HeaderValue>,
) {
    let trailers = has_token(headers, &header::TE, "trailers");
    let chunked = headers.contains_key(header::TRANSFER_ENCODING);
    strip_hop_by_hop(headers);
    headers.remove(header::TE);
    for name in OURS_TO_SAY {
        headers.remove(name);
    }
    // The bearer token is for us. `Expect` too: we answer it when the container begins to read.
    for name in [
        header::AUTHORIZATION,
        header::PROXY_AUTHORIZATION,
        header::EXPECT,
    ] {
        headers.remove(name);
    }
    headers.remove("http2-settings");
    join_cookies(headers);
    if let Ok(host) = HeaderValue::from_str(host) {
        headers.insert(FORWARDED_HOST, host.clone());
        headers.insert(header::HOST, host);
    }
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static("https"));
    if let Ok(peer) = HeaderValue::from_str(&peer.to_string()) {
        headers.insert(FORWARDED_FOR, peer);
    }
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if chunked {
        headers.insert(
            header::TRANSFER_ENCODING,
            HeaderValue::from_static("chunked"),
        );
    }
    if let Some(upgrade) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, upgrade);
    }
}

/// HTTP/2 clients may split `Cookie`; HTTP/1.1 servers expect one (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(header::COOKIE).iter().count() < 2 {
        return;
    }
    if let Entry::Occupied(cookies) = headers.entry(header::COOKIE) {
        let parts: Vec<_> = cookies
            .iter()
            .map(|part| part.as_bytes().to_vec())
            .collect();
        let joined = HeaderValue::from_bytes(&parts.join(&b"; "[..]));
        cookies.remove_entry_mult();
        if let Ok(joined) = joined {
            headers.insert(header::COOKIE, joined);
        }
    }
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter();
    values
        .flat_map(|value| value.to_str().unwrap_or_default().split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    tokens(headers, name).any(|have| have.eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn map(lines: &[(&'static str, &str)]) -> HeaderMap {
        let line = |&(name, value): &(&'static str, &str)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_str(value).unwrap(),
            )
        };
        let mut headers = HeaderMap::new();
        for (name, value) in lines.iter().map(line) {
            headers.append(name, value);
        }
        headers
    }

    #[test]
    fn headers_of_the_connection_and_those_it_names_are_removed() {
        let mut headers = map(&[
            ("connection", "close, x-private"),
            ("connection", "X-Other, content-length, host"),
            ("x-private", "1"),
            ("x-other", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "foo"),
            ("content-length", "3"),
            ("host", "h"),
            ("x-kept", "1"),
        ]);
        strip_hop_by_hop(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-length", "host", "x-kept"]);
    }

    #[test]
    fn container_learns_nothing_of_the_token_and_only_our_word_on_the_client() {
        let mut headers = map(&[
            ("authorization", "Bearer t"),
            ("proxy-authorization", "Basic t"),
            ("expect", "100-continue"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-proto", "gopher"),
            ("x-forwarded-host", "evil"),
            ("x-forwarded-port", "1"),
            ("x-forwarded-prefix", "/p"),
            ("forwarded", "for=10.0.0.1"),
            ("te", "trailers, deflate"),
            ("cookie", "a=1"),
            ("cookie", "b=2"),
            ("accept", "*/*"),
        ]);
        to_container(&mut headers, PEER, "alpha.example:8443", None);
        let expected = map(&[
            ("accept", "*/*"),
            ("cookie", "a=1; b=2"),
            ("host", "alpha.example:8443"),
            ("te", "trailers"),
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-host", "alpha.example:8443"),
            ("x-forwarded-proto", "https"),
        ]);
        assert_eq!(headers, expected);
    }

    #[test]
    fn upgrade_is_passed_on_only_when_the_connection_asks_for_it_and_never_to_h2c() {
        let websocket = [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
        ];
        let wanted = upgrade_wanted(&map(&websocket), Version::HTTP_11);
        assert_eq!(wanted.as_ref().unwrap(), "websocket");
        let mut headers = map(&websocket);
        to_container(&mut headers, PEER, "h", wanted);
        assert_eq!(
            (&headers["connection"], &headers["upgrade"]),
            (&"upgrade".parse().unwrap(), &"websocket".parse().unwrap())
        );

        assert_eq!(upgrade_wanted(&map(&websocket), Version::HTTP_10), None);
        assert_eq!(upgrade_wanted(&map(&websocket), Version::HTTP_2), None);
        assert_eq!(
            upgrade_wanted(&map(&[("upgrade", "websocket")]), Version::HTTP_11),
            None
        );
        let h2c = map(&[
            ("connection", "upgrade, http2-settings"),
            ("upgrade", "foo, H2C"),
        ]);
        assert_eq!(upgrade_wanted(&h2c, Version::HTTP_11), None);
    }

    #[test]
    fn ambiguous_requests_are_refused() {
        let host = ("host", "h");
        for lines in [
            &[host, ("transfer-encoding", "gzip, chunked")][..],
            &[host, ("transfer-encoding", "chunked, chunked")],
            &[
                host,
                ("transfer-encoding", "chunked"),
                ("transfer-encoding", "chunked"),
            ],
            &[host, ("transfer-encoding", "identity")],
            &[
                host,
                ("transfer-encoding", "chunked"),
                ("content-length", "3"),
            ],
            &[host, ("content-length", "3"), ("content-length", "3")],
            &[host, ("content-length", "3, 3")],
            &[host, ("content-length", "+3")],
            &[host, ("host", "h")],
            &[],
        ] {
            assert!(
                refuse_ambiguous(&Method::POST, &map(lines), Version::HTTP_11).is_err(),
                "{lines:?}"
            );
        }
        let fine = [
            &[host][..],
            &[host, ("content-length", "3")],
            &[host, ("transfer-encoding", "Chunked")],
        ];
        for lines in fine {
            assert!(
                refuse_ambiguous(&Method::POST, &map(lines), Version::HTTP_11).is_ok(),
                "{lines:?}"
            );
        }
        assert!(refuse_ambiguous(&Method::CONNECT, &map(&[host]), Version::HTTP_11).is_err());
    }
}
