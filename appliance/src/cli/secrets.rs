//! Secrets of a pool, from flags and files.

use std::io::Read as _;
use std::path::Path;

use serde_json::{Value, json};

use super::args::SecretFlags;
use super::values;
use crate::exit::{Exit, Failure};

/// Far more than the appliance takes.
const MAX_BYTES: u64 = 1 << 20;
/// What stands before the name of a secret in the place of a value, as `az` has it.
const REFERENCE: &str = "secretref:";

/// Names and values, in the order in which they were said.
pub fn read(flags: &SecretFlags) -> Result<Vec<(String, String)>, Failure> {
    let mut secrets = flags.named.clone();
    if let Some(path) = &flags.secrets_file {
        let failed = |why: String| Failure::new(Exit::Usage, format!("{}: {why}", path.display()));
        let text = text(path).map_err(|error| failed(error.to_string()))?;
        secrets.extend(lines(&text).map_err(failed)?);
    }
    Ok(secrets)
}

fn text(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin().take(MAX_BYTES).read_to_string(&mut text)?;
    } else {
        let file = std::fs::File::open(path)?;
        file.take(MAX_BYTES).read_to_string(&mut text)?;
    }
    Ok(text)
}

/// Empty lines and those that begin with `#` say nothing. A line that is wrong is named by its number: it may hold a
/// secret.
fn lines(text: &str) -> Result<Vec<(String, String)>, String> {
    let lines = text.lines().enumerate();
    let lines = lines.filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
    lines
        .map(|(at, line)| values::env_var(line).map_err(|why| format!("line {}: {why}", at + 1)))
        .collect()
}

/// The list `secrets` of a pool: those it has, by name, and the new values.
pub fn merged(kept: Vec<Value>, secrets: &[(String, String)]) -> Vec<Value> {
    let mut merged = kept;
    for (name, value) in secrets {
        merged.retain(|secret| secret["name"] != name.as_str());
        merged.push(json!({ "name": name, "value": value }));
    }
    merged
}

/// A variable of the container, with a value of its own or that of a secret.
pub fn variable(name: &str, value: &str) -> Value {
    match value.strip_prefix(REFERENCE) {
        Some(secret) => json!({ "name": name, "secretRef": secret }),
        None => json!({ "name": name, "value": value }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_holds_a_secret_per_line() {
        let read = lines("# for tests\n\nKEY=a=b\nEMPTY=\n").unwrap();
        assert_eq!(
            read,
            [
                ("KEY".into(), "a=b".into()),
                ("EMPTY".into(), String::new())
            ]
        );
        let error = lines("KEY=x\nhunter2\n").unwrap_err();
        assert!(
            error.starts_with("line 2: ") && !error.contains("hunter2"),
            "{error}"
        );
    }

    #[test]
    fn new_value_takes_the_place_of_the_old_one_and_others_are_kept() {
        let kept = vec![json!({ "name": "a" }), json!({ "name": "b" })];
        let merged = merged(kept, &[("b".into(), "2".into()), ("c".into(), "3".into())]);
        let expected =
            json!([{ "name": "a" }, { "name": "b", "value": "2" }, { "name": "c", "value": "3" }]);
        assert_eq!(Value::from(merged), expected);
    }

    #[test]
    fn variable_names_a_secret_or_has_a_value() {
        assert_eq!(
            variable("A", "secretref:key"),
            json!({ "name": "A", "secretRef": "key" })
        );
        assert_eq!(
            variable("A", "secret"),
            json!({ "name": "A", "value": "secret" })
        );
    }
}
