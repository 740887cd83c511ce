use serde_json::Value;

use super::*;
use crate::front::refusal::Code;

fn value() -> Value {
    serde_json::from_str(document()).unwrap()
}

/// Every `$ref` of the document.
fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                match member.as_str() {
                    Some(reference) if name == "$ref" => found.push(reference.to_owned()),
                    _ => references(member, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

#[test]
fn document_in_the_tree_is_what_the_code_says() {
    let kept = include_str!("../../openapi.json");
    assert!(
        kept == document(),
        "write it anew: cargo run -p appliance -- openapi > appliance/openapi.json"
    );
}

#[test]
fn every_reference_leads_somewhere() {
    let document = value();
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(!found.is_empty());
    for reference in found {
        let place = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(place).is_some(), "{reference}");
    }
}

#[test]
fn parameters_of_a_path_are_described() {
    let document = value();
    for (path, item) in document["paths"].as_object().unwrap() {
        let in_path: Vec<&str> = path
            .split('/')
            .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
            .collect();
        for (method, operation) in item.as_object().unwrap() {
            let parameters = operation["parameters"].as_array().unwrap();
            let named = parameters.iter().filter(|it| it["in"] == "path");
            let named: Vec<&str> = named.map(|it| it["name"].as_str().unwrap()).collect();
            assert_eq!(named, in_path, "{method} {path}");
            assert!(operation["operationId"].is_string(), "{method} {path}");
        }
    }
}

/// Codes that are not in the document: those of the socket alone, and that of methods which the document does not name.
const ELSEWHERE: [&str; 5] = [
    "ImageInUse",
    "TokenNotFound",
    "CertificateNotRenewable",
    "CertificateNotIssued",
    "MethodNotAllowed",
];

#[test]
fn every_code_that_a_caller_can_meet_is_in_the_document() {
    let text = document();
    let of_operations = |code: &Code| {
        matches!(code, Code::Image(_))
            || matches!(
                code,
                Code::SessionPoolGoldenFailed
                    | Code::SessionPoolContainerFailed
                    | Code::OperationInterrupted
            )
    };
    for code in Code::ALL.iter().filter(|code| !of_operations(code)) {
        let name = code.as_str();
        let is_there = text.contains(&format!("`{name}`"));
        assert_eq!(is_there, !ELSEWHERE.contains(&name), "{name}");
    }
}
