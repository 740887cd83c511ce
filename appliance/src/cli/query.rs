//! `--query`: what a JMESPath finds in an answer.

use std::str::FromStr;

use jmespath::{Expression, Variable};
use serde_json::Value;

use crate::exit::{Exit, Failure};

/// An expression that was understood.
#[derive(Debug, Clone)]
pub struct Query(Expression<'static>);

impl FromStr for Query {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        jmespath::compile(text)
            .map(Self)
            .map_err(|error| one_line(&error))
    }
}

impl Query {
    /// What it finds; `null` if nothing.
    pub fn of(&self, answer: &Value) -> Result<Value, Failure> {
        let failed = |line: String| Failure::new(Exit::Failed, format!("--query: {line}"));
        let answer = Variable::try_from(answer).map_err(|error| failed(one_line(&error)))?;
        let found = self.0.search(answer);
        let found = found.map_err(|error| failed(one_line(&error)))?;
        serde_json::to_value(&*found).map_err(|error| failed(error.to_string()))
    }
}

/// Without the picture of the place.
fn one_line(error: &jmespath::JmespathError) -> String {
    let place = format!("at character {}", error.offset + 1);
    let reason = error.reason.to_string();
    format!("{} ({place})", reason.trim().replace('\n', " "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn query_finds_what_people_look_for() {
        let pools = json!([
            { "name": "a", "properties": { "poolManagementEndpoint": "https://a", "n": 1 } },
            { "name": "b", "properties": { "n": 22 } },
        ]);
        for (query, expected) in [
            ("[].name", json!(["a", "b"])),
            ("[0].properties.poolManagementEndpoint", json!("https://a")),
            ("[?properties.n > `5`].name | [0]", json!("b")),
            ("length(@)", json!(2)),
            (
                "[].{name: name, n: properties.n}",
                json!([{"name":"a","n":1},{"name":"b","n":22}]),
            ),
            ("[0].missing", Value::Null),
        ] {
            let found = query.parse::<Query>().unwrap().of(&pools).unwrap();
            assert_eq!(found, expected, "{query}");
        }
    }

    #[test]
    fn query_that_cannot_be_understood_says_where_in_one_line() {
        for wrong in ["[", "a..b", "unknown(@)", "length(`1`)"] {
            let line = match wrong.parse::<Query>() {
                Err(line) => line,
                Ok(query) => query.of(&json!({})).unwrap_err().line,
            };
            assert!(
                !line.contains('\n') && line.contains("at character"),
                "{wrong}: {line}"
            );
        }
    }
}
