//! Answers: what succeeds, and every error with its status.

use std::collections::BTreeMap;

use utoipa::openapi::header::Header;
use utoipa::openapi::path::{OperationBuilder, ParameterBuilder, ParameterIn};
use utoipa::openapi::{
    Content, ContentBuilder, ObjectBuilder, Required, Response, ResponseBuilder,
};

use super::schema::{Described, named, object, text};
use crate::front::refusal::Code;

pub const ERROR: &str = "Error";
const JSON: &str = "application/json";

/// What any request can be answered with before it is looked at closely.
pub const ALWAYS: [Code; 10] = [
    Code::SessionRequestValidationFailed,
    Code::Unauthorized,
    Code::Forbidden,
    Code::ResourceNotFound,
    Code::RequestUrlTooLong,
    Code::RequestHeadersTooLarge,
    Code::TooManyFailedAttempts,
    Code::TokenRequestLimitReached,
    Code::TokenIssuerUnavailable,
    Code::InternalError,
];

/// A parameter of the path.
pub fn in_path(name: &str, about: &str) -> ParameterBuilder {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Path)
        .required(Required::True)
        .description(Some(about))
}

/// A parameter of the query.
pub fn in_query(name: &str, about: &str, required: Required) -> ParameterBuilder {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Query)
        .required(required)
        .description(Some(about))
}

/// `YYYY-MM-DD`, and perhaps `-preview`. A pattern cannot say how long each month is.
const API_VERSION: &str = "^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])(-preview)?$";

pub fn api_version() -> ParameterBuilder {
    let version = text("As in Azure").pattern(Some(API_VERSION));
    in_query(
        "api-version",
        "The shape of the answer; 2025-10-02-preview has all there is",
        Required::True,
    )
    .schema(Some(version))
    .example(Some("2025-10-02-preview".into()))
}

/// An answer with JSON.
pub fn json(about: &str, schema: impl Into<Described>) -> ResponseBuilder {
    ResponseBuilder::new()
        .description(about)
        .content(JSON, body(schema))
}

/// A body of JSON.
pub fn body(schema: impl Into<Described>) -> Content {
    ContentBuilder::new().schema(Some(schema.into())).build()
}

/// An answer without a body.
pub fn empty(about: &str) -> ResponseBuilder {
    ResponseBuilder::new().description(about)
}

pub fn header(about: &str) -> Header {
    let mut header = Header::new(ObjectBuilder::new().schema_type(utoipa::openapi::Type::String));
    header.description = Some(about.to_owned());
    header
}

/// Adds an answer for each status of these codes. Codes of one status are in one answer.
pub fn refusing(operation: OperationBuilder, codes: &[Code]) -> OperationBuilder {
    let mut by_status: BTreeMap<u16, Vec<&str>> = BTreeMap::new();
    for code in codes {
        let named = by_status.entry(code.status().as_u16()).or_default();
        if !named.contains(&code.as_str()) {
            named.push(code.as_str());
        }
    }
    by_status
        .into_iter()
        .fold(operation, |operation, (status, names)| {
            let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
            operation.response(status.to_string(), refusal(&names.join(", ")))
        })
}

fn refusal(about: &str) -> Response {
    json(about, named(ERROR)).build()
}

/// The body of every error.
pub fn error() -> ObjectBuilder {
    let inner = object("What went wrong")
        .property(
            "code",
            text("A stable word, see the list of error codes in appliance/README.md"),
        )
        .required("code")
        .property("message", text("For people"))
        .required("message")
        .property("target", text("The property or parameter that is wrong"))
        .property("traceId", text("Finds the line in the log"));
    object("Every error. The header x-ms-error-code has the code again, and operation-id the name of the request")
        .property("error", inner)
        .required("error")
}
