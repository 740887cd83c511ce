//! `cabana session`: the sessions of a pool, for its operator.

use http::Method;
use serde_json::{Value, json};

use super::args::{Group, OneSession, PoolTarget, SessionTarget};
use super::client::{Payload, Whom, management_path, session_path};
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
    let whom = target.appliance.whom()?;
    let sessions = match &whom {
        Whom::Local(_) => {
            let path = session_path(&target.group, &target.name, None);
            values(whom.call(Method::GET, &path, Payload::Nothing)?).0
        }
        Whom::Remote(_) => pages(&whom, &target.group, &target.name)?,
    };
    print(&target.output, &sessions, |sessions| listed(sessions))?;
    Ok(Exit::Ok)
}

pub fn show(show: &OneSession) -> Result<Exit, Failure> {
    let session = on_session(show, Method::GET, "getSession")?;
    print(&show.output, &session, details)?;
    Ok(Exit::Ok)
}

pub fn stop(stop: &OneSession) -> Result<Exit, Failure> {
    let session = on_session(stop, Method::DELETE, "stopSession")?;
    let answer = json!({
        "identifier": stop.target.identifier, "session": session["session"], "stopped": true,
    });
    print(&stop.output, &answer, |answer| {
        // As the cloud service says it.
        let identifier = cell(&answer["identifier"]);
        let pool = &stop.target.name;
        format!("Session {identifier} in session pool {pool} stopped.\n")
    })?;
    Ok(Exit::Ok)
}

/// On another host sessions are the front door's, whose management calls any client may make.
fn on_session(one: &OneSession, method: Method, call: &str) -> Result<Value, Failure> {
    let SessionTarget {
        name,
        identifier,
        group,
    } = &one.target;
    let identifier = String::from(identifier.clone());
    let whom = one.appliance.whom()?;
    match &whom {
        Whom::Local(_) => {
            let path = session_path(group, name, Some(&identifier));
            whom.call(method, &path, Payload::Nothing)
        }
        Whom::Remote(_) => {
            let path = management_path(group, name, call, Some(&identifier));
            whom.call(Method::POST, &path, Payload::Nothing)
        }
    }
}

/// All sessions of a pool on another host, which come in pages.
fn pages(whom: &Whom, group: &Group, pool: &str) -> Result<Vec<Value>, Failure> {
    let mut sessions = Vec::new();
    let mut page = Some(management_path(group, pool, "listSessions", None));
    while let Some(path) = page {
        let (more, next) = values(whom.call(Method::POST, &path, Payload::Nothing)?);
        sessions.extend(more);
        page = next;
    }
    Ok(sessions)
}

/// What is in a list, and where the next page of it is.
fn values(mut answer: Value) -> (Vec<Value>, Option<String>) {
    let next = answer["nextLink"].as_str().map(str::to_owned);
    match answer["value"].take() {
        Value::Array(values) => (values, next),
        _ => (Vec::new(), next),
    }
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
