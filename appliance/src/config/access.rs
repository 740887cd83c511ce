//! `audiences`.

use super::ConfigError;
use super::checked::shown;
use crate::access::DEFAULT_AUDIENCES;

/// What tokens may be for.
pub fn audiences(value: Option<toml::Value>) -> Result<Vec<String>, ConfigError> {
    match value {
        None => Ok(DEFAULT_AUDIENCES.map(str::to_owned).into()),
        Some(value) => names("audiences", &value),
    }
}

/// At least one, each printable and without blanks.
fn names(key: &str, value: &toml::Value) -> Result<Vec<String>, ConfigError> {
    let is_name =
        |text: &&str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    let name = |value: &toml::Value| value.as_str().filter(is_name).map(str::to_owned);
    let names = value
        .as_array()
        .and_then(|list| list.iter().map(name).collect());
    names
        .filter(|names: &Vec<_>| !names.is_empty())
        .ok_or_else(|| ConfigError::Value {
            key: key.to_owned().into(),
            expected: "a list of names, like [\"https://dynamicsessions.io\"]".to_owned(),
            found: shown(value),
        })
}
