//! Query parameters.

use std::str::FromStr;

use hyper::{Request, StatusCode};

use crate::reply::{self, Reply};

/// The first value of a parameter, percent-decoded.
pub fn parameter<B>(request: &Request<B>, name: &str) -> Option<String> {
    let query = request.uri().query()?;
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| percent_decode(value))
}

/// A numeric parameter, or its default. What is no number is an answer to send back.
pub fn number<B, T: FromStr>(
    request: &Request<B>,
    name: &str,
    default: T,
) -> Result<T, Box<Reply>> {
    match parameter(request, name) {
        None => Ok(default),
        Some(text) => text.parse().map_err(|_| {
            Box::new(reply::problem(
                StatusCode::BAD_REQUEST,
                &format!("{name} is not a number in range: {text:?}"),
            ))
        }),
    }
}

/// Decodes `%XX`; anything else, `+` included, stays as it is.
pub fn percent_decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let decoded = (byte == b'%')
            .then(|| tail.get(..2))
            .flatten()
            .and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match decoded {
            Some(value) => {
                out.push(value);
                rest = &tail[2..];
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_decoding_leaves_what_is_no_escape_alone() {
        assert_eq!(percent_decode("a%20b+c%2Fd"), "a b+c/d");
        assert_eq!(percent_decode("100%"), "100%");
        assert_eq!(percent_decode("%zz%4"), "%zz%4");
        assert_eq!(percent_decode("%C3%A9"), "é");
    }
}
