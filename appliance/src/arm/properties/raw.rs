//! A body, read property by property, and the messages about what is wrong with it.

use std::ops::RangeInclusive;

use serde_json::Value;

use crate::front::refusal::{Code, Refusal};

/// Longest piece of a wrong value that a message repeats.
const SHOWN_CHARS: usize = 80;

/// Properties are named by JSON pointers. A null is an absent property.
pub struct Raw<'a>(pub &'a Value);

impl<'a> Raw<'a> {
    pub fn get(&self, path: &str) -> Option<&'a Value> {
        self.0.pointer(path).filter(|value| !value.is_null())
    }

    pub fn text(&self, path: &str) -> Result<Option<String>, Refusal> {
        let Some(value) = self.get(path) else {
            return Ok(None);
        };
        let text = value
            .as_str()
            .ok_or_else(|| wrong(path, "a string", value))?;
        if text.contains('\0') {
            Err(wrong(path, "a string without zero bytes", value))
        } else {
            Ok(Some(text.to_owned()))
        }
    }

    pub fn required_text(&self, path: &str) -> Result<String, Refusal> {
        let text = self.text(path)?.filter(|text| !text.is_empty());
        text.ok_or_else(|| missing(path, "a string that is not empty"))
    }

    pub fn integer(&self, path: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, Refusal> {
        let Some(value) = self.get(path) else {
            return Ok(None);
        };
        let number = value.as_u64().filter(|number| range.contains(number));
        number
            .map(Some)
            .ok_or_else(|| wrong(path, &whole_number(&range), value))
    }

    /// As [`Self::integer`], for what is small.
    pub fn small(&self, path: &str, range: RangeInclusive<u32>) -> Result<Option<u32>, Refusal> {
        let range = u64::from(*range.start())..=u64::from(*range.end());
        let number = self.integer(path, range)?;
        Ok(number.map(|number| u32::try_from(number).unwrap_or(u32::MAX)))
    }

    pub fn required_port(&self, path: &str) -> Result<u16, Refusal> {
        let port = self.integer(path, 1..=u64::from(u16::MAX))?;
        let port = port.and_then(|port| u16::try_from(port).ok());
        port.ok_or_else(|| missing(path, "a port from 1 to 65535"))
    }

    /// The pointers to the items of a list; none if it is absent.
    pub fn items(&self, path: &str, expected: &str) -> Result<Vec<String>, Refusal> {
        let Some(value) = self.get(path) else {
            return Ok(Vec::new());
        };
        let items = value
            .as_array()
            .ok_or_else(|| wrong(path, expected, value))?;
        Ok((0..items.len())
            .map(|index| format!("{path}/{index}"))
            .collect())
    }

    pub fn words(&self, path: &str) -> Result<Vec<String>, Refusal> {
        let items = self.items(path, "a list of strings")?;
        let word = |path: &String| {
            self.text(path)?
                .ok_or_else(|| wrong(path, "a string", &Value::Null))
        };
        items.iter().map(word).collect()
    }
}

pub fn whole_number(range: &RangeInclusive<u64>) -> String {
    format!("a whole number from {} to {}", range.start(), range.end())
}

/// `/properties/containers/0/image` → `properties.containers[0].image`.
pub fn dotted(path: &str) -> String {
    let mut text = String::new();
    for part in path.split('/').skip(1) {
        if part.bytes().all(|byte| byte.is_ascii_digit()) {
            text.push_str(&format!("[{part}]"));
        } else {
            if !text.is_empty() {
                text.push('.');
            }
            text.push_str(part);
        }
    }
    text
}

/// The property has a wrong value.
pub fn invalid(path: &str, message: impl Into<String>) -> Refusal {
    Refusal::new(Code::SessionPoolInvalidProperty, message).target(dotted(path))
}

/// As [`invalid`], when the value itself says what is wrong.
pub fn wrong(path: &str, expected: &str, found: &Value) -> Refusal {
    let found: String = found.to_string().chars().take(SHOWN_CHARS).collect();
    invalid(
        path,
        format!("{} must be {expected}, not {found}", dotted(path)),
    )
}

/// The property must be there.
pub fn missing(path: &str, expected: &str) -> Refusal {
    invalid(path, format!("{} is missing: {expected}", dotted(path)))
}

/// The property asks for what this version cannot do.
pub fn unsupported(path: &str, message: impl Into<String>) -> Refusal {
    Refusal::new(Code::SessionPoolNotSupported, message).target(dotted(path))
}
