//! Bytes as a hex string in JSON: a list of numbers would be twice as long.

use std::borrow::Cow;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serializer};

const DIGITS: &[u8; 16] = b"0123456789abcdef";

pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        for digit in [byte >> 4, byte & 0xf] {
            text.push(char::from(DIGITS[usize::from(digit)]));
        }
    }
    serializer.serialize_str(&text)
}

pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = Cow::<str>::deserialize(deserializer)?;
    let digits: Option<Vec<u8>> = text.bytes().map(value).collect();
    // The text itself may be a secret, so the error does not repeat it.
    let digits = digits.ok_or_else(|| D::Error::custom("not a hex string"))?;
    let (pairs, []) = digits.as_chunks() else {
        return Err(D::Error::custom("a hex string of odd length"));
    };
    Ok(pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

fn value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}
