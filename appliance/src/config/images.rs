//! `[registries."host"]` and `[image_limits]`.

use super::ConfigError;
use crate::images::registry::{Mirror, Registries, RegistryHost, RegistrySettings};
use crate::images::{Limits, PATH_LIMIT};

/// The table of registries; an absent one is empty.
pub fn registries(value: Option<toml::Value>) -> Result<Registries, ConfigError> {
    let mut registries = Registries::default();
    for (host, value) in table("registries", value)? {
        let key = format!("registries.\"{host}\"");
        let parsed: RegistryHost = host.parse().map_err(|_| {
            wrong(
                &key,
                "named by a host, like \"registry.example:5000\"",
                &host.into(),
            )
        })?;
        let mut settings = RegistrySettings::default();
        for (name, value) in table(&key, Some(value))? {
            let key = format!("{key}.{name}");
            match name.as_str() {
                "ca_file" => {
                    let path = value.as_str().filter(|path| path.starts_with('/'));
                    let path = path.ok_or_else(|| wrong(&key, "an absolute path", &value))?;
                    settings.ca_file = Some(path.into());
                }
                "allow_http" => {
                    let allowed = value.as_bool();
                    settings.allow_http =
                        Some(allowed.ok_or_else(|| wrong(&key, "true or false", &value))?);
                }
                "mirrors" => settings.mirrors = mirrors(&key, &value)?,
                _ => return Err(wrong(&key, "ca_file, mirrors or allow_http", &name.into())),
            }
        }
        registries.0.insert(parsed.as_str().to_owned(), settings);
    }
    Ok(registries)
}

fn mirrors(key: &str, value: &toml::Value) -> Result<Vec<Mirror>, ConfigError> {
    let expected = "a list of hosts, each with an optional path: [\"mirror.example/hub\"]";
    let items = value
        .as_array()
        .ok_or_else(|| wrong(key, expected, value))?;
    items
        .iter()
        .map(|item| {
            let mirror = item.as_str().map(|text| Mirror::try_from(text.to_owned()));
            match mirror {
                Some(Ok(mirror)) => Ok(mirror),
                _ => Err(wrong(key, expected, item)),
            }
        })
        .collect()
}

/// The caps of images; what is not said is as it ships.
pub fn limits(value: Option<toml::Value>) -> Result<Limits, ConfigError> {
    /// A petabyte: more cannot be meant, and bytes of it still fit in 63 bits.
    const MOST_MIB: i64 = 1 << 30;
    let mut limits = Limits::default();
    for (name, value) in table("image_limits", value)? {
        let key = format!("image_limits.{name}");
        let number = |most: i64| {
            let number = value
                .as_integer()
                .filter(|number| (1..=most).contains(number));
            let number = number.and_then(|number| u64::try_from(number).ok());
            number.ok_or_else(|| wrong(&key, &format!("a whole number from 1 to {most}"), &value))
        };
        match name.as_str() {
            "layer_mib" => limits.layer_bytes = number(MOST_MIB)? << 20,
            "image_mib" => limits.archive_bytes = number(MOST_MIB)? << 20,
            "unpacked_mib" => limits.unpacked_bytes = number(MOST_MIB)? << 20,
            "files" => {
                let files = number(u32::MAX.into())?;
                limits.files = u32::try_from(files).unwrap_or(u32::MAX);
            }
            "path_bytes" => {
                let most = i64::try_from(PATH_LIMIT).unwrap_or(i64::MAX);
                limits.path_bytes = usize::try_from(number(most)?).unwrap_or(PATH_LIMIT);
            }
            _ => {
                let expected = "layer_mib, image_mib, unpacked_mib, files or path_bytes";
                return Err(wrong(&key, expected, &name.into()));
            }
        }
    }
    Ok(limits)
}

pub(super) fn table(key: &str, value: Option<toml::Value>) -> Result<toml::Table, ConfigError> {
    match value {
        None => Ok(toml::Table::new()),
        Some(toml::Value::Table(table)) => Ok(table),
        Some(other) => Err(wrong(key, "a table", &other)),
    }
}

pub(super) fn wrong(key: &str, expected: &str, found: &toml::Value) -> ConfigError {
    ConfigError::Value {
        key: key.to_owned().into(),
        expected: expected.to_owned(),
        found: super::checked::shown(found),
    }
}
