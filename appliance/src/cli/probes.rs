//! The probes of a pool, from a file. `az` takes YAML; JSON is YAML, too.

use std::path::Path;

use saphyr::{LoadableYamlNode as _, Scalar, Yaml};
use serde_json::{Map, Value};

use crate::exit::{Exit, Failure};

/// Far more than two probes take.
const MAX_BYTES: u64 = 1 << 20;

/// The list `probes` of a file. What is in it is the appliance's to judge.
pub fn read(path: &Path) -> Result<Value, Failure> {
    let failed = |what: String| Failure::new(Exit::Usage, format!("{}: {what}", path.display()));
    let metadata = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?;
    if metadata.len() > MAX_BYTES {
        return Err(failed(format!("It is longer than {MAX_BYTES} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    probes(&text).map_err(failed)
}

fn probes(text: &str) -> Result<Value, String> {
    let documents =
        Yaml::load_from_str(text).map_err(|error| format!("It is not YAML: {error}"))?;
    let [document] = &documents[..] else {
        return Err("It must hold one document with the list `probes`".to_owned());
    };
    match json(document)? {
        Value::Object(mut members) => match members.remove("probes") {
            Some(probes @ Value::Array(_)) => Ok(probes),
            _ => Err("It must hold the list `probes`".to_owned()),
        },
        _ => Err("It must hold the list `probes`".to_owned()),
    }
}

/// YAML as the JSON that it means.
pub fn json(node: &Yaml<'_>) -> Result<Value, String> {
    Ok(match node {
        Yaml::Value(scalar) => match scalar {
            Scalar::Null => Value::Null,
            Scalar::Boolean(value) => (*value).into(),
            Scalar::Integer(value) => (*value).into(),
            Scalar::FloatingPoint(value) => value.into_inner().into(),
            Scalar::String(text) => text.as_ref().into(),
        },
        Yaml::Sequence(items) => items.iter().map(json).collect::<Result<_, _>>()?,
        Yaml::Mapping(members) => {
            let member = |(name, value): (&Yaml<'_>, &Yaml<'_>)| match name.as_str() {
                Some(name) => Ok((name.to_owned(), json(value)?)),
                None => Err("The name of a property must be text".to_owned()),
            };
            Value::Object(
                members
                    .iter()
                    .map(member)
                    .collect::<Result<Map<_, _>, _>>()?,
            )
        }
        Yaml::Tagged(_, value) => json(value)?,
        Yaml::Representation(text, ..) => text.as_ref().into(),
        Yaml::Alias(_) | Yaml::BadValue => return Err("It has a value that is not one".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn yaml_of_az_and_json_are_the_same() {
        let yaml = "# Asked by the host\nprobes:\n- type: Liveness\n  httpGet:\n    path: \"/health\"\n    port: 8080\n    \
            httpHeaders:\n    - name: X-Probe\n      value: '1'\n  periodSeconds: 5\n- {type: Startup, tcpSocket: {port: 80}}\n";
        let expected = json!([
            { "type": "Liveness", "periodSeconds": 5, "httpGet": { "path": "/health", "port": 8080,
                "httpHeaders": [{ "name": "X-Probe", "value": "1" }] } },
            { "type": "Startup", "tcpSocket": { "port": 80 } },
        ]);
        assert_eq!(probes(yaml).unwrap(), expected);
        let text = json!({ "probes": expected }).to_string();
        assert_eq!(probes(&text).unwrap(), expected);
        assert_eq!(probes("probes: []").unwrap(), json!([]));
    }

    #[test]
    fn file_without_the_list_is_refused_in_one_line() {
        for (text, says) in [
            ("", "list `probes`"),
            ("- type: Startup", "list `probes`"),
            ("probes: yes", "list `probes`"),
            ("probes: []\n---\nprobes: []", "one document"),
            ("probes: [", "not YAML"),
            ("probes: [*nobody]", "not YAML"),
            ("1: 2", "must be text"),
        ] {
            let error = probes(text).unwrap_err();
            assert!(
                error.contains(says) && !error.contains('\n'),
                "{text:?}: {error}"
            );
        }
        let failure = read(Path::new("/nonexistent.yaml")).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(
            failure.line.contains("/nonexistent.yaml"),
            "{}",
            failure.line
        );
    }
}
