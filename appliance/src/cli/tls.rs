//! `cabana tls`: the certificates of the front door.

use std::path::Path;

use http::Method;
use serde_json::Value;

use super::args::{ShowTls, TlsAuthority, TlsCommand};
use super::client::{Payload, call};
use super::output::{print, spinner, write};
use crate::exit::{Exit, Failure};

pub fn run(command: &TlsCommand) -> Result<Exit, Failure> {
    match command {
        TlsCommand::Show(show) => {
            let answer = ask(&show.connection.root, Method::GET, "/tls")?;
            report(show, &answer)
        }
        TlsCommand::Renew(renew) => {
            let progress = spinner();
            progress.set_message("asking the ACME server");
            let answer = ask(&renew.connection.root, Method::POST, "/tls/renew");
            progress.finish_and_clear();
            report(renew, &answer?)
        }
        TlsCommand::Ca(ca) => authority(ca),
    }
}

fn ask(root: &Path, method: Method, path: &str) -> Result<Value, Failure> {
    call(root, method, path, Payload::Nothing)
}

fn report(flags: &ShowTls, answer: &Value) -> Result<Exit, Failure> {
    print(&flags.output, answer, text)?;
    Ok(Exit::Ok)
}

fn authority(ca: &TlsAuthority) -> Result<Exit, Failure> {
    let answer = ask(&ca.connection.root, Method::GET, "/tls/ca")?;
    let pem = answer["certificate"].as_str().unwrap_or_default();
    match &ca.out {
        None => write(pem)?,
        Some(path) => std::fs::write(path, pem).map_err(|error| {
            let path = path.display();
            Failure::new(Exit::Failed, format!("Cannot write {path}: {error}"))
        })?,
    }
    Ok(Exit::Ok)
}

/// For people: a paragraph for each certificate, and one for the ACME server.
fn text(answer: &Value) -> String {
    let certificates = answer["certificates"].as_array();
    let mut paragraphs: Vec<String> = certificates
        .into_iter()
        .flatten()
        .map(|certificate| {
            let source = match certificate["source"].as_str() {
                Some("own") => "own authority",
                Some("files") => "files of the configuration",
                Some("acme") => "ACME server",
                _ => "?",
            };
            lines(&[
                ("Source", source.to_owned()),
                ("Names", joined(&certificate["names"])),
                ("Subject", said(&certificate["subject"])),
                ("Issuer", said(&certificate["issuer"])),
                ("Not before", said(&certificate["notBefore"])),
                ("Not after", said(&certificate["notAfter"])),
                ("SHA-256", said(&certificate["sha256"])),
                ("Warning", said(&certificate["warning"])),
            ])
        })
        .collect();
    if let Some(acme) = answer["acme"].as_object() {
        paragraphs.push(lines(&[
            ("ACME server", said(&acme["directory"])),
            ("Domains", joined(&acme["domains"])),
            ("Challenge", said(&acme["challenge"])),
            ("Next order", said(&acme["nextAttempt"])),
            ("Last error", said(&acme["lastError"])),
        ]));
    }
    paragraphs.join("\n")
}

fn joined(list: &Value) -> String {
    let items = list.as_array().into_iter().flatten();
    let items: Vec<_> = items.map(said).collect();
    items.join(", ")
}

fn said(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// What is empty is not told.
fn lines(rows: &[(&str, String)]) -> String {
    rows.iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("{name:<12} {value}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn people_are_told_what_there_is_and_no_more() {
        let answer = json!({
            "source": "acme",
            "certificates": [
                { "source": "acme", "names": ["a.example", "b.example"], "issuer": "CN=Some CA",
                  "notAfter": "2026-01-01T00:00:00Z", "warning": "it expires" },
                { "source": "own", "names": ["localhost"], "warning": null },
            ],
            "acme": { "directory": "https://ca.example/", "domains": ["a.example"],
                      "challenge": "http-01", "nextAttempt": "2026-01-01T00:00:00Z", "lastError": null },
        });
        assert_eq!(
            text(&answer),
            "Source       ACME server\nNames        a.example, b.example\nIssuer       CN=Some CA\n\
             Not after    2026-01-01T00:00:00Z\nWarning      it expires\n\n\
             Source       own authority\nNames        localhost\n\n\
             ACME server  https://ca.example/\nDomains      a.example\nChallenge    http-01\n\
             Next order   2026-01-01T00:00:00Z\n"
        );
    }
}
