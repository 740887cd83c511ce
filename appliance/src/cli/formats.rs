//! An answer as text, in the formats of `az --output`.

use saphyr::{Mapping, Scalar, Yaml, YamlEmitter};
use serde_json::Value;

use super::output::table as columns;

/// One row per item; an item's plain values are its columns, by the order of their names, or of a list. What is nested is
/// left out, as `az` does.
pub fn table(answer: &Value) -> String {
    let rows: Vec<&Value> = match answer {
        Value::Array(items) => items.iter().collect(),
        Value::Null => Vec::new(),
        item => vec![item],
    };
    let names = column_names(&rows);
    if names.is_empty() {
        return String::new();
    }
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            names
                .iter()
                .enumerate()
                .map(|(at, name)| cell_of(row, at, name))
                .collect()
        })
        .collect();
    let header: Vec<&str> = names.iter().map(String::as_str).collect();
    columns(&header, &cells)
}

fn column_names(rows: &[&Value]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for row in rows {
        let of_row: Vec<String> = match row {
            Value::Object(members) => members
                .iter()
                .filter(|(_, value)| is_plain(value))
                .map(|(name, _)| name.clone())
                .collect(),
            Value::Array(items) => (1..=items.len()).map(|at| format!("Column{at}")).collect(),
            _ => vec!["Result".to_owned()],
        };
        names.extend(
            of_row
                .into_iter()
                .filter(|name| !names.contains(name))
                .collect::<Vec<_>>(),
        );
    }
    names
}

fn cell_of(row: &Value, at: usize, name: &str) -> String {
    match row {
        Value::Object(_) => plain(&row[name]),
        Value::Array(items) => items.get(at).map(plain).unwrap_or_default(),
        value => plain(value),
    }
}

/// One line per item, tabs between its values, in the order of their names or of a list. Lists in it are how many they are.
pub fn tsv(answer: &Value) -> String {
    let line = |row: &Value| match row {
        Value::Object(members) => members.values().map(field).collect::<Vec<_>>().join("\t"),
        Value::Array(items) => items.iter().map(field).collect::<Vec<_>>().join("\t"),
        value => field(value),
    };
    let line = |row: &Value| line(row) + "\n";
    match answer {
        Value::Array(rows) => rows.iter().map(line).collect(),
        Value::Null => String::new(),
        row => line(row),
    }
}

fn field(value: &Value) -> String {
    match value {
        Value::Array(items) => items.len().to_string(),
        // What a line or a column ends with must not be in a value.
        value => plain(value).replace(['\t', '\n', '\r'], " "),
    }
}

fn is_plain(value: &Value) -> bool {
    !matches!(value, Value::Array(_) | Value::Object(_) | Value::Null)
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null | Value::Array(_) | Value::Object(_) => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// One document.
pub fn yaml(answer: &Value) -> Result<String, String> {
    let mut text = String::new();
    let mut emitter = YamlEmitter::new(&mut text);
    emitter
        .dump(&node(answer))
        .map_err(|error| error.to_string())?;
    let text = text.strip_prefix("---\n").unwrap_or(&text);
    Ok(format!("{text}\n"))
}

fn node(value: &Value) -> Yaml<'_> {
    match value {
        Value::Null => Yaml::Value(Scalar::Null),
        Value::Bool(value) => Yaml::Value(Scalar::Boolean(*value)),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => Yaml::Value(Scalar::Integer(whole)),
            (None, Some(float)) => Yaml::Value(Scalar::FloatingPoint(float.into())),
            (None, None) => Yaml::Value(Scalar::String(number.to_string().into())),
        },
        Value::String(text) => Yaml::Value(Scalar::String(text.as_str().into())),
        Value::Array(items) => Yaml::Sequence(items.iter().map(node).collect()),
        Value::Object(members) => {
            let mut mapping = Mapping::new();
            for (name, value) in members {
                let name = Yaml::Value(Scalar::String(name.as_str().into()));
                mapping.insert(name, node(value));
            }
            Yaml::Mapping(mapping)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use saphyr::LoadableYamlNode as _;
    use serde_json::json;

    #[test]
    fn table_has_the_plain_values_of_each_item() {
        let answer = json!([
            { "name": "a", "cpu": 0.25, "tags": {}, "on": true },
            { "name": "long", "location": "local", "cpu": null },
        ]);
        let expected = "cpu   name  on    location\n0.25  a     true\n      long        local\n";
        assert_eq!(table(&answer), expected);
        assert_eq!(
            table(&json!([["a", 1], ["b"]])),
            "Column1  Column2\na        1\nb\n"
        );
        assert_eq!(table(&json!("x")), "Result\nx\n");
        assert_eq!(table(&json!([])), "");
        assert_eq!(table(&Value::Null), "");
    }

    #[test]
    fn tsv_is_for_shells() {
        assert_eq!(tsv(&json!("https://a")), "https://a\n");
        assert_eq!(tsv(&json!(["a", "b"])), "a\nb\n");
        assert_eq!(
            tsv(&json!([["a", 1, null], ["b\tc\nd", [1, 2], {}]])),
            "a\t1\t\nb c d\t2\t\n"
        );
        assert_eq!(tsv(&json!({ "b": true, "a": "x" })), "x\ttrue\n");
        assert_eq!(tsv(&Value::Null), "");
    }

    #[test]
    fn yaml_reads_back_as_what_it_was() {
        let answer = json!({
            "name": "yes", "port": 8080, "cpu": 0.5, "none": null, "list": ["1", "a: b", "- c", ""], "on": false,
            "nested": { "text": "two\nlines", "empty": {}, "nothing": [] },
        });
        let text = yaml(&answer).unwrap();
        let documents = Yaml::load_from_str(&text).unwrap();
        assert_eq!(
            crate::cli::probes::json(&documents[0]).unwrap(),
            answer,
            "{text}"
        );
    }
}
