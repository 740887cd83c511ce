//! What the appliance serves over HTTPS, as an OpenAPI 3.1 document: `GET /openapi.json`.
//!
//! Addresses and answers are listed in `control` and `data`. What a pool may be is said beside the code that
//! reads it, in `admin::properties`, with the same bounds; error codes and their statuses come from
//! `front::refusal`. `appliance/openapi.json` is what comes of it; a test compares the two.

mod answers;
mod control;
mod data;
pub mod schema;

#[cfg(test)]
mod tests;

use std::sync::OnceLock;

use serde_json::Value;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ComponentsBuilder, Info, License, OpenApi, OpenApiBuilder, PathsBuilder};

const TOKEN: &str = "token";

/// The document as JSON.
pub fn document() -> &'static str {
    static DOCUMENT: OnceLock<String> = OnceLock::new();
    DOCUMENT.get_or_init(|| {
        // Plain structs of strings and numbers: there is nothing in them that JSON cannot hold.
        serde_json::to_string_pretty(&described()).unwrap_or_default() + "\n"
    })
}

/// The document as a value.
pub fn value() -> &'static Value {
    static VALUE: OnceLock<Value> = OnceLock::new();
    VALUE.get_or_init(|| serde_json::to_value(described()).unwrap_or_default())
}

fn described() -> OpenApi {
    let mut info = Info::new("Cabana", env!("CARGO_PKG_VERSION"));
    info.description = Some(
        "Session pools and their sessions. The resources have the shape of `Microsoft.App/sessionPools` of Azure; \
         every api-version of it, and any other of the form `YYYY-MM-DD` or `YYYY-MM-DD-preview`, is served. \
         Subscriptions and resource groups are namespaces: any well-formed value will do."
            .to_owned(),
    );
    let mut license = License::new("Apache-2.0");
    license.identifier = Some("Apache-2.0".to_owned());
    info.license = Some(license);
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format("JWT")
        .description(Some(
            "Made by `cabana token create`, or by an issuer that the configuration trusts",
        ));
    let mut components =
        ComponentsBuilder::new().security_scheme(TOKEN, SecurityScheme::Http(bearer.build()));
    for (name, schema) in control::schemas().into_iter().chain(data::schemas()) {
        components = components.schema(name, schema);
    }
    components = components.schema(answers::ERROR, answers::error());
    let paths = control::paths().into_iter().chain(data::paths());
    let paths = paths.fold(PathsBuilder::new(), |paths, (path, item)| {
        paths.path(path, item)
    });
    OpenApiBuilder::new()
        .info(info)
        .paths(paths.build())
        .components(Some(components.build()))
        .security(Some([SecurityRequirement::new(
            TOKEN,
            Vec::<String>::new(),
        )]))
        .build()
}
