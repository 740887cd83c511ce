//! The `Authorization` header of a request, and what is answered when it is no good (RFC 6750).

use http::{HeaderMap, header};

use crate::front::refusal::{Code, Refusal};

/// No real token is longer; what is longer is not even hashed.
pub const MAX_TOKEN_BYTES: usize = 8 << 10;

/// The token in the header.
pub fn token(headers: &HeaderMap) -> Result<&str, Refusal> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        let message = "The Authorization header is missing; send \"Authorization: Bearer <token>\"";
        // RFC 6750 section 3.1: no error code when nothing was presented.
        return Err(Refusal::new(Code::Unauthorized, message)
            .header(header::WWW_AUTHENTICATE, "Bearer realm=\"cabana\""));
    };
    if values.next().is_some() {
        return Err(challenge(
            "invalid_request",
            "The Authorization header is there more than once",
        ));
    }
    let value = value.to_str().unwrap_or_default();
    match value.split_once(' ') {
        Some((scheme, token))
            if scheme.eq_ignore_ascii_case("bearer")
                && !token.trim().is_empty()
                && token.len() <= MAX_TOKEN_BYTES =>
        {
            Ok(token.trim())
        }
        _ => Err(challenge(
            "invalid_request",
            "The Authorization header is not of the form Bearer <token>",
        )),
    }
}

/// The token is no good, and why.
pub fn invalid(message: &str) -> Refusal {
    challenge("invalid_token", message)
}

fn challenge(error: &str, message: &str) -> Refusal {
    let value =
        format!("Bearer realm=\"cabana\", error=\"{error}\", error_description=\"{message}\"");
    Refusal::new(Code::Unauthorized, message).header(header::WWW_AUTHENTICATE, &value)
}
