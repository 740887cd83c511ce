//! `cabana token`.

use http::Method;
use serde_json::{Value, json};

use super::args::{CreateToken, ListTokens, OneToken, RevokeToken, RotateKey, TokenCommand};
use super::client::{Payload, call};
use super::output::{print, table};
use super::sessionpool::cell;
use crate::exit::{Exit, Failure};

pub fn run(command: &TokenCommand) -> Result<Exit, Failure> {
    match command {
        TokenCommand::Create(create) => self::create(create),
        TokenCommand::List(list) => self::list(list),
        TokenCommand::Show(show) => self::show(show),
        TokenCommand::Revoke(revoke) => self::revoke(revoke),
        TokenCommand::RotateKey(rotate) => self::rotate(rotate),
    }
}

fn create(create: &CreateToken) -> Result<Exit, Failure> {
    let body = json!({
        "roles": create.roles,
        "pools": create.pools,
        "subscriptions": create.subscriptions,
        "resourceGroups": create.resource_groups,
        "identifiers": create.identifiers,
        "label": create.label,
        "ttlSeconds": create.ttl,
    });
    let root = &create.connection.root;
    let answer = call(root, Method::POST, "/tokens", Payload::Json(body))?;
    let Some(token) = answer["token"].as_str().map(str::to_owned) else {
        return Err(Failure::new(
            Exit::Failed,
            "The appliance answered without a token",
        ));
    };
    print(&create.output, &answer, |_| token + "\n")?;
    Ok(Exit::Ok)
}

fn list(list: &ListTokens) -> Result<Exit, Failure> {
    let root = &list.connection.root;
    let answer = call(root, Method::GET, "/tokens", Payload::Nothing)?;
    let tokens = match &answer["value"] {
        Value::Array(tokens) => tokens.clone(),
        _ => Vec::new(),
    };
    print(&list.output, &tokens, |tokens| {
        let rows: Vec<_> = tokens.iter().map(row).collect();
        table(
            &[
                "ID",
                "LABEL",
                "ROLES",
                "POOLS",
                "IDENTIFIERS",
                "EXPIRES",
                "STATE",
            ],
            &rows,
        )
    })?;
    Ok(Exit::Ok)
}

/// Identifiers are counted and not shown: a list is looked at where others look on.
fn row(token: &Value) -> Vec<String> {
    let identifiers = match token["identifiers"].as_array().map_or(0, Vec::len) {
        0 => "all".to_owned(),
        count => count.to_string(),
    };
    vec![
        cell(&token["id"]),
        cell(&token["label"]),
        joined(&token["roles"]),
        joined(&token["pools"]),
        identifiers,
        cell(&token["expiresAt"]),
        state(token).to_owned(),
    ]
}

fn show(show: &OneToken) -> Result<Exit, Failure> {
    let path = format!("/tokens/{}", show.id);
    let token = call(&show.connection.root, Method::GET, &path, Payload::Nothing)?;
    print(&show.output, &token, described)?;
    Ok(Exit::Ok)
}

fn described(token: &Value) -> String {
    let lines = [
        ("id", cell(&token["id"])),
        ("label", cell(&token["label"])),
        ("roles", joined(&token["roles"])),
        ("subscriptions", joined(&token["subscriptions"])),
        ("resource groups", joined(&token["resourceGroups"])),
        ("pools", joined(&token["pools"])),
        ("identifiers", joined(&token["identifiers"])),
        ("key", cell(&token["keyId"])),
        ("created", cell(&token["createdAt"])),
        ("expires", cell(&token["expiresAt"])),
        ("state", state(token).to_owned()),
    ];
    let line = |(name, value): (&str, String)| format!("{name:<17}{value}\n");
    lines.into_iter().map(line).collect()
}

fn revoke(revoke: &RevokeToken) -> Result<Exit, Failure> {
    let root = &revoke.connection.root;
    let Some(id) = revoke.id else {
        let body = Payload::Json(json!({ "revokeOld": true }));
        let answer = call(root, Method::POST, "/tokens/rotate", body)?;
        print(&revoke.output, &answer, |answer| {
            format!(
                "Revoked {} and every other token\n",
                count(answer, "revokedTokens", "token")
            )
        })?;
        return Ok(Exit::Ok);
    };
    let path = format!("/tokens/{id}");
    let token = call(root, Method::DELETE, &path, Payload::Nothing)?;
    print(&revoke.output, &token, |_| {
        format!("Token {id} is revoked\n")
    })?;
    Ok(Exit::Ok)
}

fn rotate(rotate: &RotateKey) -> Result<Exit, Failure> {
    let body = Payload::Json(json!({ "revokeOld": rotate.revoke_old }));
    let root = &rotate.connection.root;
    let answer = call(root, Method::POST, "/tokens/rotate", body)?;
    print(&rotate.output, &answer, |answer| {
        let key = cell(&answer["keyId"]);
        let older = count(answer, "olderKeys", "older key");
        let revoked = count(answer, "revokedTokens", "token");
        format!("Tokens are signed with key {key} now; {older} in use, {revoked} revoked\n")
    })?;
    Ok(Exit::Ok)
}

fn count(answer: &Value, field: &str, what: &str) -> String {
    match answer[field].as_u64().unwrap_or(0) {
        1 => format!("1 {what}"),
        count => format!("{count} {what}s"),
    }
}

fn state(token: &Value) -> &'static str {
    match token["revokedAt"].is_null() {
        true => "good",
        false => "revoked",
    }
}

/// What is empty limits nothing.
fn joined(list: &Value) -> String {
    let items = list.as_array().map(Vec::as_slice).unwrap_or_default();
    match items {
        [] => "all".to_owned(),
        items => items.iter().map(cell).collect::<Vec<_>>().join(","),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_counts_identifiers_and_show_has_them() {
        let token = json!({
            "id": "i", "label": null, "roles": ["reader", "session-executor"], "pools": [],
            "subscriptions": [], "resourceGroups": ["rg"], "identifiers": ["user-1", "team-*"],
            "keyId": "k", "createdAt": "c", "expiresAt": "e", "revokedAt": "r",
        });
        let row = row(&token);
        assert_eq!(
            row[2..],
            ["reader,session-executor", "all", "2", "e", "revoked"]
        );
        let shown = described(&token);
        assert!(
            shown.contains("identifiers      user-1,team-*\n"),
            "{shown}"
        );
        assert!(shown.contains("resource groups  rg\n"), "{shown}");
    }
}
