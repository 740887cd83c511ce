//! `cabana session`: the sessions of a pool, for its operator.

use http::Method;
use serde_json::{Value, json};

use super::args::{OneSession, PoolTarget, SessionTarget};
use super::client::{Payload, call, session_path};
use super::output::{print, table};
use super::sessionpool::cell;
use crate::exit::{Exit, Failure};

const COLUMNS: [(&str, &str); 7] = [
    ("IDENTIFIER", "identifier"),
    ("STATE", "state"),
    ("CREATED", "createdAt"),
    ("LAST USED", "lastAccessedAt"),
    ("EXPIRES", "expiresAt"),
    ("OPEN", "openRequests"),
    ("SESSION", "session"),
];

pub fn list(target: &PoolTarget) -> Result<Exit, Failure> {
    let path = session_path(&target.resource_group, &target.name, None);
    let root = &target.connection.root;
    let answer = call(root, Method::GET, &path, Payload::Nothing)?;
    let sessions = match &answer["value"] {
        Value::Array(sessions) => sessions.clone(),
        _ => Vec::new(),
    };
    print(target.json, &sessions, |sessions| listed(sessions))?;
    Ok(Exit::Ok)
}

pub fn show(show: &OneSession) -> Result<Exit, Failure> {
    let session = on_session(&show.target, Method::GET)?;
    print(show.json, &session, details)?;
    Ok(Exit::Ok)
}

pub fn stop(stop: &OneSession) -> Result<Exit, Failure> {
    let session = on_session(&stop.target, Method::DELETE)?;
    let answer = json!({
        "identifier": session["identifier"], "session": session["session"], "stopped": true,
    });
    print(stop.json, &answer, |answer| {
        // As the cloud service says it.
        let identifier = cell(&answer["identifier"]);
        let pool = &stop.target.name;
        format!("Session {identifier} in session pool {pool} stopped.\n")
    })?;
    Ok(Exit::Ok)
}

fn on_session(target: &SessionTarget, method: Method) -> Result<Value, Failure> {
    let identifier = String::from(target.identifier.clone());
    let path = session_path(&target.resource_group, &target.name, Some(&identifier));
    call(&target.connection.root, method, &path, Payload::Nothing)
}

fn listed(sessions: &[Value]) -> String {
    let rows: Vec<_> = sessions
        .iter()
        .map(|session| COLUMNS.map(|(_, field)| cell(&session[field])).to_vec())
        .collect();
    table(&COLUMNS.map(|(name, _)| name), &rows)
}

fn details(session: &Value) -> String {
    [
        ("identifier", "identifier"),
        ("state", "state"),
        ("created", "createdAt"),
        ("last used", "lastAccessedAt"),
        ("expires", "expiresAt"),
        ("open requests", "openRequests"),
        ("session", "session"),
        ("worker", "worker"),
        ("revision", "revision"),
    ]
    .map(|(name, field)| format!("{name:<15}{}\n", cell(&session[field])))
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Value {
        json!({
            "identifier": "user-42", "session": "s-1", "worker": "w-1", "revision": "r-1", "state": "active",
            "createdAt": "2026-11-22T01:02:03Z", "lastAccessedAt": "2026-11-22T01:03:00Z",
            "expiresAt": "2026-11-22T01:08:00Z", "openRequests": 2,
        })
    }

    #[test]
    fn list_is_a_table_with_one_line_per_session() {
        let mut starting = session();
        starting["identifier"] = json!("b");
        starting["state"] = json!("starting");
        starting["expiresAt"] = Value::Null;
        let expected = "\
IDENTIFIER  STATE     CREATED               LAST USED             EXPIRES               OPEN  SESSION
user-42     active    2026-11-22T01:02:03Z  2026-11-22T01:03:00Z  2026-11-22T01:08:00Z  2     s-1
b           starting  2026-11-22T01:02:03Z  2026-11-22T01:03:00Z  -                     2     s-1
";
        assert_eq!(listed(&[session(), starting]), expected);
    }

    #[test]
    fn details_name_worker_and_revision() {
        let expected = "\
identifier     user-42
state          active
created        2026-11-22T01:02:03Z
last used      2026-11-22T01:03:00Z
expires        2026-11-22T01:08:00Z
open requests  2
session        s-1
worker         w-1
revision       r-1
";
        assert_eq!(details(&session()), expected);
    }
}
