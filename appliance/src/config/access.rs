//! `audiences` and `[issuers."https://..."]`.

use super::ConfigError;
use super::images::{table, wrong};
use crate::access::{
    DEFAULT_AUDIENCES, Grant, GrantRule, IssuerSettings, KeysFrom, Role, may_be_asked,
};
use crate::pool::PoolName;

/// Grants of one issuer: each is tried for each new token.
const MAX_GRANTS: usize = 256;

/// What tokens may be for.
pub fn audiences(value: Option<toml::Value>) -> Result<Vec<String>, ConfigError> {
    match value {
        None => Ok(DEFAULT_AUDIENCES.map(str::to_owned).into()),
        Some(value) => {
            let expected = "a list of names, like [\"https://dynamicsessions.io\"]";
            list("audiences", expected, &value, plain)
        }
    }
}

/// The issuers whose tokens are taken.
pub fn issuers(value: Option<toml::Value>) -> Result<Vec<IssuerSettings>, ConfigError> {
    let issuers = table("issuers", value)?.into_iter();
    issuers.map(|(name, value)| issuer(name, value)).collect()
}

fn issuer(name: String, value: toml::Value) -> Result<IssuerSettings, ConfigError> {
    let key = format!("issuers.\"{name}\"");
    let is_address = name
        .parse::<reqwest::Url>()
        .is_ok_and(|url| may_be_asked(&url) && url.query().is_none() && url.fragment().is_none());
    if !is_address {
        let expected = "named by the address in the claim iss, like \"https://login.example\"";
        return Err(wrong(&key, expected, &name.into()));
    }
    let (mut audiences, mut jwks_file, mut ca_file) = (Vec::new(), None, None);
    let mut grants = Vec::new();
    let path = |key: &str, value: &toml::Value| {
        let path = value.as_str().filter(|path| path.starts_with('/'));
        path.map(Into::into)
            .ok_or_else(|| wrong(key, "an absolute path", value))
    };
    for (field, value) in table(&key, Some(value))? {
        let key = format!("{key}.{field}");
        match field.as_str() {
            "audiences" => audiences = list(&key, "a list of names", &value, plain)?,
            "jwks_file" => jwks_file = Some(path(&key, &value)?),
            "ca_file" => ca_file = Some(path(&key, &value)?),
            "grants" => grants = self::grants(&key, value)?,
            _ => {
                let expected = "audiences, jwks_file, ca_file or grants";
                return Err(wrong(&key, expected, &field.into()));
            }
        }
    }
    let keys = match (jwks_file, ca_file) {
        (Some(file), None) => KeysFrom::File(file),
        (None, ca_file) => KeysFrom::Discovery { ca_file },
        (Some(_), Some(_)) => {
            let expected = "left out where jwks_file is said: nobody is asked then";
            return Err(wrong(&format!("{key}.ca_file"), expected, &"a path".into()));
        }
    };
    if grants.is_empty() {
        let expected = "at least one [[grants]]: without, its tokens are good for nothing";
        return Err(wrong(&format!("{key}.grants"), expected, &"none".into()));
    }
    Ok(IssuerSettings {
        name,
        audiences,
        keys,
        grants,
    })
}

fn grants(key: &str, value: toml::Value) -> Result<Vec<GrantRule>, ConfigError> {
    match value {
        toml::Value::Array(rules) if rules.len() <= MAX_GRANTS => {
            rules.into_iter().map(|rule| grant(key, rule)).collect()
        }
        other => Err(wrong(
            key,
            &format!("at most {MAX_GRANTS} tables, each [[grants]]"),
            &other,
        )),
    }
}

fn grant(key: &str, value: toml::Value) -> Result<GrantRule, ConfigError> {
    let (mut claim, mut wanted, mut identifier_claim) = (None, None, None);
    let mut grant = Grant::default();
    for (field, value) in table(key, Some(value))? {
        let key = format!("{key}.{field}");
        let text = || match value.as_str() {
            Some(text) if !text.is_empty() => Ok(text.to_owned()),
            _ => Err(wrong(&key, "a text", &value)),
        };
        let names = "a list of names";
        match field.as_str() {
            "claim" => claim = Some(text()?),
            "value" => wanted = Some(text()?),
            "role" => {
                let role = value.as_str().and_then(|role| role.parse().ok());
                let expected = Role::ALL.map(Role::as_str).join(", ");
                grant.roles = vec![role.ok_or_else(|| wrong(&key, &expected, &value))?];
            }
            "subscriptions" => grant.subscriptions = list(&key, names, &value, any)?,
            "resource_groups" => grant.resource_groups = list(&key, names, &value, any)?,
            "pools" => {
                let parse = |name: &str| PoolName::parse_ignoring_case(name).ok();
                grant.pools = list(&key, "a list of names of pools", &value, parse)?;
            }
            "identifier_claim" => identifier_claim = Some(text()?),
            _ => {
                let expected =
                    "claim, value, role, subscriptions, resource_groups, pools or identifier_claim";
                return Err(wrong(&key, expected, &field.into()));
            }
        }
    }
    let needed = |field: &str| wrong(&format!("{key}.{field}"), "said", &"nothing".into());
    if grant.roles.is_empty() {
        return Err(needed("role"));
    }
    if identifier_claim.is_some() && grant.roles != [Role::SessionExecutor] {
        let expected =
            "left out unless the role is session-executor: the others are not about sessions";
        let key = format!("{key}.identifier_claim");
        return Err(wrong(&key, expected, &"a claim".into()));
    }
    Ok(GrantRule {
        claim: claim.ok_or_else(|| needed("claim"))?,
        value: wanted.ok_or_else(|| needed("value"))?,
        grant,
        identifier_claim,
    })
}

/// At least one: an empty limit would be none.
fn list<T>(
    key: &str,
    expected: &str,
    value: &toml::Value,
    item: impl Fn(&str) -> Option<T>,
) -> Result<Vec<T>, ConfigError> {
    let items = value.as_array().filter(|items| !items.is_empty());
    items
        .and_then(|items| items.iter().map(|it| it.as_str().and_then(&item)).collect())
        .ok_or_else(|| wrong(key, expected, value))
}

/// Printable, and without blanks.
fn plain(text: &str) -> Option<String> {
    let fits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    fits.then(|| text.to_owned())
}

fn any(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<IssuerSettings>, String> {
        let mut file: toml::Table = toml::from_str(text).unwrap();
        issuers(file.remove("issuers")).map_err(|error| error.to_string())
    }

    const GRANT: &str = "claim = \"roles\"\nvalue = \"user\"\nrole = \"session-executor\"\n";

    #[test]
    fn issuer_is_an_address_with_grants() {
        let text = format!(
            "[issuers.\"https://login.example/tenant\"]\naudiences = [\"api://cabana\"]\nca_file = \"/ca.pem\"\n\
             [[issuers.\"https://login.example/tenant\".grants]]\n{GRANT}pools = [\"Alpha\"]\n\
             resource_groups = [\"rg\"]\nidentifier_claim = \"sub\"\n"
        );
        let [issuer] = &read(&text).unwrap()[..] else {
            panic!("one issuer");
        };
        assert_eq!(issuer.name, "https://login.example/tenant");
        assert_eq!(issuer.audiences, ["api://cabana"]);
        let ca_file = Some("/ca.pem".into());
        assert_eq!(issuer.keys, KeysFrom::Discovery { ca_file });
        let rule = &issuer.grants[0];
        assert_eq!(
            (rule.claim.as_str(), rule.value.as_str()),
            ("roles", "user")
        );
        assert_eq!(rule.grant.pools[0].as_str(), "alpha");
        assert_eq!(rule.grant.resource_groups, ["rg"]);
        assert_eq!(rule.identifier_claim.as_deref(), Some("sub"));
        let [issuer] = &read(&format!(
            "[issuers.\"http://localhost:9\"]\njwks_file = \"/k\"\n[[issuers.\"http://localhost:9\".grants]]\n{GRANT}"
        ))
        .unwrap()[..] else {
            panic!("one issuer");
        };
        assert_eq!(issuer.keys, KeysFrom::File("/k".into()));
        assert_eq!(read("").unwrap(), []);
    }

    #[test]
    fn issuer_that_is_not_whole_is_refused_by_key() {
        let with = |fields: &str, grant: &str| {
            format!(
                "[issuers.\"https://i.example\"]\n{fields}\n[[issuers.\"https://i.example\".grants]]\n{grant}"
            )
        };
        for (text, key) in [
            ("issuers = 1".to_owned(), "issuers"),
            (
                "[issuers.\"http://i.example\"]".to_owned(),
                "issuers.\"http://i.example\"",
            ),
            ("[issuers.\"https://i.example?x\"]".to_owned(), "issuers."),
            ("[issuers.cabana]".to_owned(), "issuers.\"cabana\""),
            ("[issuers.\"https://i.example\"]".to_owned(), ".grants"),
            (with("keys = 1", GRANT), ".keys"),
            (with("audiences = []", GRANT), ".audiences"),
            (with("jwks_file = \"k\"", GRANT), ".jwks_file"),
            (
                with("jwks_file = \"/k\"\nca_file = \"/c\"", GRANT),
                ".ca_file",
            ),
            (with("", "claim = \"a\"\nvalue = \"b\""), ".grants.role"),
            (
                with("", "claim = \"a\"\nrole = \"reader\""),
                ".grants.value",
            ),
            (with("", &format!("{GRANT}pools = []")), ".grants.pools"),
            (
                with("", &format!("{GRANT}pools = [\"a b\"]")),
                ".grants.pools",
            ),
            (
                with("", &format!("{GRANT}pool = [\"abc\"]")),
                ".grants.pool",
            ),
            (
                with("", "claim = \"a\"\nvalue = \"b\"\nrole = \"king\""),
                ".grants.role",
            ),
            (
                with(
                    "",
                    "claim = \"a\"\nvalue = \"b\"\nrole = \"reader\"\nidentifier_claim = \"sub\"",
                ),
                ".grants.identifier_claim",
            ),
        ] {
            let line = read(&text).unwrap_err();
            assert!(line.contains(key) && !line.contains('\n'), "{key}: {line}");
        }
    }
}
