//! The data plane: requests to sessions, and the platform's calls about them.

use utoipa::openapi::path::{HttpMethod, OperationBuilder, PathItem, PathItemBuilder};
use utoipa::openapi::{RefOr, Required, ResponseBuilder, Schema, Type};

use super::answers::{ALWAYS, api_version, in_path, in_query, json, refusing};
use super::schema::{Described, integer, list, moment, named, nullable, object, text};
use crate::front::refusal::Code;
use crate::pool::IDENTIFIER_RULE;

const POOL: &str = "/subscriptions/{subscriptionId}/resourceGroups/{resourceGroupName}/sessionPools/{sessionPoolName}";
const SESSION: &str = "Session";
const SESSIONS: &str = "SessionList";

/// What a request to a session can be answered with beside.
const FORWARDED: [Code; 12] = [
    Code::SessionPoolNotFound,
    Code::RequestBodyTimeout,
    Code::SessionRequestLimitReached,
    Code::RequestTimeLimitReached,
    Code::MaxConcurrentSessionsReached,
    Code::SessionUnreachable,
    Code::HostCapacityReached,
    Code::HostDraining,
    Code::SessionStartFailed,
    Code::SessionPoolClosing,
    Code::SessionStartTimeout,
    Code::PayloadTooLarge,
];

pub fn paths() -> Vec<(String, PathItem)> {
    let about = |call: &str| format!("{POOL}/.management/{call}");
    vec![
        (
            about("getSession"),
            management("getSession", "Shows a session; begins none", true)
                .response("200", json("The session", named(SESSION)))
                .into_item(),
        ),
        (
            about("listSessions"),
            management(
                "listSessions",
                "Lists the sessions that the token may use",
                false,
            )
            .parameter(
                in_query("skip", "How many to leave out", Required::False)
                    .schema(Some(integer("", 0..=u64::from(u32::MAX)))),
            )
            .response("200", json("A page of 300", named(SESSIONS)))
            .into_item(),
        ),
        (
            about("stopSession"),
            management(
                "stopSession",
                "Ends a session; returns when nothing is left of it",
                true,
            )
            .response(
                "200",
                plain("Session <identifier> in session pool <pool> stopped."),
            )
            .into_item(),
        ),
        (format!("{POOL}/{{path}}"), forwarding()),
    ]
}

pub fn schemas() -> Vec<(&'static str, Described)> {
    let session = object("A session")
        .property("identifier", text("What the caller calls it"))
        .required("identifier")
        .property("etag", text("Another one for another session of this name"))
        .property("createdAt", nullable(moment("When it was begun")))
        .property("lastAccessedAt", nullable(moment("When it was last used")))
        .property(
            "expiresAt",
            nullable(moment("When it ends if nothing is asked of it")),
        )
        .property(
            "expireAt",
            nullable(moment("The same; clients know one or the other name")),
        );
    let sessions = object("A page of sessions")
        .property("value", list("The sessions", named(SESSION)))
        .required("value")
        .property("count", integer("In this page", 0..=300))
        .property("nextLink", nullable(text("Where the next page is")));
    vec![(SESSION, session.into()), (SESSIONS, sessions.into())]
}

/// One operation of a path that has no other.
struct Only(OperationBuilder);

impl Only {
    fn response(self, status: &str, answer: ResponseBuilder) -> Self {
        Self(self.0.response(status, answer.build()))
    }

    fn parameter(self, parameter: utoipa::openapi::path::ParameterBuilder) -> Self {
        Self(self.0.parameter(parameter))
    }

    fn into_item(self) -> PathItem {
        PathItem::new(HttpMethod::Post, self.0)
    }
}

fn management(name: &str, about: &str, of_a_session: bool) -> Only {
    let mut operation = at_pool(OperationBuilder::new())
        .tag("sessions")
        .operation_id(Some(name))
        .summary(Some(about))
        .parameter(api_version());
    let mut codes = ALWAYS.to_vec();
    codes.push(Code::SessionPoolNotFound);
    codes.push(Code::SessionRequestNotSupported);
    if of_a_session {
        operation = operation.parameter(identifier());
        codes.push(Code::SessionWithIdentifierNotFound);
    }
    Only(refusing(operation, &codes))
}

fn at_pool(operation: OperationBuilder) -> OperationBuilder {
    let name = |about| text(about).min_length(Some(1));
    operation
        .parameter(in_path("subscriptionId", "A namespace").schema(Some(name("Ignores case"))))
        .parameter(in_path("resourceGroupName", "A namespace").schema(Some(name("Ignores case"))))
        .parameter(in_path("sessionPoolName", "The pool").schema(Some(name("Ignores case"))))
}

fn identifier() -> utoipa::openapi::path::ParameterBuilder {
    in_query("identifier", IDENTIFIER_RULE, Required::True)
        .schema(Some(text("").min_length(Some(4)).max_length(Some(128))))
        .example(Some("user-42".into()))
}

fn forwarding() -> PathItem {
    let methods = [
        (HttpMethod::Get, "Get"),
        (HttpMethod::Post, "Post"),
        (HttpMethod::Put, "Put"),
        (HttpMethod::Patch, "Patch"),
        (HttpMethod::Delete, "Delete"),
        (HttpMethod::Head, "Head"),
        (HttpMethod::Options, "Options"),
    ];
    methods
        .into_iter()
        .fold(PathItemBuilder::new(), |item, (method, name)| {
            item.operation(method, forwarded(name))
        })
        .build()
}

fn forwarded(method: &str) -> OperationBuilder {
    let codes = [&ALWAYS[..], &FORWARDED].concat();
    let path = in_path(
        "path",
        "Everything that follows is the container's, byte for byte, slashes among it",
    );
    let operation = at_pool(OperationBuilder::new())
        .tag("sessions")
        .operation_id(Some(format!("forward{method}")))
        .summary(Some(
            "Goes to the session's container; a new identifier gets a session of its own",
        ))
        .parameter(path.schema(Some(text(""))))
        .parameter(identifier());
    refusing(operation, &codes).response(
        "default",
        ResponseBuilder::new().description(
            "What the container answers, with any status; what is answered in its place has the header x-ms-error-code",
        ),
    )
}

fn plain(about: &str) -> ResponseBuilder {
    let text: RefOr<Schema> = utoipa::openapi::ObjectBuilder::new()
        .schema_type(Type::String)
        .into();
    ResponseBuilder::new()
        .description(about)
        .content("text/plain", super::answers::body(text))
}
