//! The control plane: pools as resources, the operations that change them, and environments.

use utoipa::openapi::path::{HttpMethod, OperationBuilder, PathItem, PathItemBuilder};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::{Required, ResponseBuilder};

use super::answers::{ALWAYS, ERROR, api_version, body, empty, header, in_path, json, refusing};
use super::schema::{Described, list, moment, named, nullable, object, text, uuid, word};
use crate::arm::properties;
use crate::front::refusal::Code;

const SUBSCRIPTION: &str = "/subscriptions/{subscriptionId}";
const GROUP: &str = "/subscriptions/{subscriptionId}/resourceGroups/{resourceGroupName}";
const POOLS: &str = "/providers/Microsoft.App/sessionPools";
const ENVIRONMENTS: &str = "/providers/Microsoft.App/managedEnvironments";
const OPERATIONS: &str = "/providers/Microsoft.App/locations/{location}";

const POOL: &str = "SessionPool";
const POOL_UPDATE: &str = "SessionPoolUpdate";
const POOL_LIST: &str = "SessionPoolList";
const OPERATION: &str = "Operation";
const ENVIRONMENT: &str = "ManagedEnvironment";
const ENVIRONMENT_LIST: &str = "ManagedEnvironmentList";

/// What every call can be answered with beside.
const VERSIONED: [Code; 2] = [
    Code::MissingApiVersionParameter,
    Code::InvalidApiVersionParameter,
];
/// What a change is refused with at once. What goes wrong later is in its operation.
const CHANGE: [Code; 9] = [
    Code::InvalidRequestContent,
    Code::SessionPoolInvalidProperty,
    Code::SessionPoolNotSupported,
    Code::PreconditionFailed,
    Code::PayloadTooLarge,
    Code::TooManyOperations,
    Code::SessionPoolNameInUse,
    Code::SessionPoolClosing,
    Code::Image(crate::images::ImageErrorCode::ImageNameInvalid),
];

pub fn paths() -> Vec<(String, PathItem)> {
    let one = |operation| PathItem::new(HttpMethod::Get, operation);
    vec![
        (
            format!("{SUBSCRIPTION}{POOLS}"),
            one(lists("listBySubscription", "pools", POOL_LIST, false)),
        ),
        (
            format!("{GROUP}{POOLS}"),
            one(lists("listByResourceGroup", "pools", POOL_LIST, true)),
        ),
        (format!("{GROUP}{POOLS}/{{sessionPoolName}}"), pool()),
        (
            format!("{SUBSCRIPTION}{OPERATIONS}/operationStatuses/{{operationId}}"),
            one(operation_status()),
        ),
        (
            format!("{SUBSCRIPTION}{OPERATIONS}/operationResults/{{operationId}}"),
            one(operation_result()),
        ),
        (
            format!("{SUBSCRIPTION}{ENVIRONMENTS}"),
            one(lists(
                "listEnvironmentsBySubscription",
                "environments",
                ENVIRONMENT_LIST,
                false,
            )),
        ),
        (
            format!("{GROUP}{ENVIRONMENTS}"),
            one(lists(
                "listEnvironmentsByResourceGroup",
                "environments",
                ENVIRONMENT_LIST,
                true,
            )),
        ),
        (
            format!("{GROUP}{ENVIRONMENTS}/{{environmentName}}"),
            one(environment()),
        ),
    ]
}

pub fn schemas() -> Vec<(&'static str, Described)> {
    let page = |about, of| {
        object(about)
            .property("value", list("All of them", named(of)))
            .required("value")
            .property("nextLink", nullable(text("Always null: there is one page")))
    };
    let status = object("How far a change is")
        .property("id", text("Its address"))
        .property("name", text("Its id"))
        .required("name")
        .property(
            "status",
            word("How far", &["InProgress", "Succeeded", "Failed"]),
        )
        .required("status")
        .property("startTime", moment("When it was begun"))
        .property("endTime", moment("When it ended"))
        .property("properties", object("Facts of the operation"))
        .property("error", named("OperationError"));
    let failure = object("Why it failed")
        .property("code", text("As in `Error`"))
        .required("code")
        .property("message", text("For people"))
        .required("message")
        .property("target", text("What is wrong"));
    let environment = object("There is one environment, which answers by every name")
        .property("id", text("Its address"))
        .property("name", text("As it was asked for"))
        .required("name")
        .property("type", text("Microsoft.App/managedEnvironments"))
        .property("location", text("local"))
        .property(
            "properties",
            object("Its state")
                .property("provisioningState", text("Succeeded"))
                .property("defaultDomain", text("Below which pools are reached"))
                .property("workloadProfiles", list("One", object("A profile"))),
        );
    vec![
        (POOL, properties::schema()),
        (POOL_UPDATE, properties::update_schema()),
        (POOL_LIST, page("Pools", POOL).into()),
        (OPERATION, status.into()),
        ("OperationError", failure.into()),
        (ENVIRONMENT, environment.into()),
        (ENVIRONMENT_LIST, page("Environments", ENVIRONMENT).into()),
    ]
}

fn pool() -> PathItem {
    let at = |id: &str, about: &str| {
        in_group(OperationBuilder::new())
            .tag("pools")
            .operation_id(Some(id))
            .summary(Some(about))
            .parameter(
                in_path("sessionPoolName", "Unique in the appliance")
                    .schema(Some(text(crate::pool::POOL_NAME_RULE).min_length(Some(1)))),
            )
            .parameter(api_version())
    };
    let change = [&ALWAYS[..], &VERSIONED, &CHANGE].concat();
    let sent = |name| {
        RequestBodyBuilder::new()
            .content("application/json", body(named(name)))
            .required(Some(Required::True))
            .build()
    };
    let get = refusing(
        at("getSessionPool", "Shows a pool, and what it holds now"),
        &asked(),
    )
    .response(
        "200",
        json("The pool", named(POOL)).header("etag", header("Of what it was asked to be")),
    );
    let put = refusing(
        at(
            "createOrUpdateSessionPool",
            "Makes a pool, or makes it what the body says",
        ),
        &change,
    )
    .request_body(Some(sent(POOL)))
    .response("200", tracked(json("It is being changed", named(POOL))))
    .response("201", tracked(json("It is being made", named(POOL))));
    let patch = refusing(
        at(
            "updateSessionPool",
            "Changes what the body names: a JSON merge patch (RFC 7396)",
        ),
        &change,
    )
    .request_body(Some(sent(POOL_UPDATE)))
    .response("202", located(tracked(empty("It is being changed"))));
    let delete = refusing(
        at("deleteSessionPool", "Deletes a pool and ends its sessions"),
        &[
            &ALWAYS[..],
            &VERSIONED,
            &[Code::PreconditionFailed, Code::TooManyOperations],
        ]
        .concat(),
    )
    .response("202", located(tracked(empty("It is being deleted"))))
    .response("204", empty("There is none"));
    PathItemBuilder::new()
        .operation(HttpMethod::Get, get)
        .operation(HttpMethod::Put, put)
        .operation(HttpMethod::Patch, patch)
        .operation(HttpMethod::Delete, delete)
        .build()
}

/// What a call that changes nothing can be answered with.
fn asked() -> Vec<Code> {
    [&ALWAYS[..], &VERSIONED].concat()
}

fn tracked(answer: ResponseBuilder) -> ResponseBuilder {
    answer
        .header(
            "azure-asyncoperation",
            header("The address of the operation"),
        )
        .header("retry-after", header("When to look again, in seconds"))
}

fn located(answer: ResponseBuilder) -> ResponseBuilder {
    answer.header("location", header("Where its result will be"))
}

fn lists(id: &str, tag: &str, of: &str, in_a_group: bool) -> OperationBuilder {
    let operation = match in_a_group {
        true => in_group(OperationBuilder::new()),
        false => in_subscription(OperationBuilder::new()),
    };
    let operation = operation
        .tag(tag)
        .operation_id(Some(id))
        .summary(Some("Lists what the token may see"))
        .parameter(api_version());
    refusing(operation, &asked()).response("200", json("All of them", named(of)))
}

fn operation_status() -> OperationBuilder {
    let operation = of_operation("getOperationStatus", "How far a change is");
    refusing(operation, &asked()).response("200", json("How far", named(OPERATION)))
}

fn operation_result() -> OperationBuilder {
    let operation = of_operation("getOperationResult", "What came of a change");
    let failed = [
        &ALWAYS[..],
        &VERSIONED,
        &CHANGE,
        &[Code::SessionPoolContainerFailed],
    ]
    .concat();
    let operation = refusing(operation, &failed)
        .response("200", json("The pool that came of it", named(POOL)))
        .response(
            "202",
            located(empty("It goes on"))
                .header("retry-after", header("When to look again, in seconds")),
        )
        .response("204", empty("The pool is deleted"));
    operation.response(
        "default",
        json(
            "The change failed: with the code of the reason, and a status below 500",
            named(ERROR),
        ),
    )
}

fn of_operation(id: &str, about: &str) -> OperationBuilder {
    in_subscription(OperationBuilder::new())
        .tag("operations")
        .operation_id(Some(id))
        .summary(Some(about))
        .parameter(in_path("location", "Any").schema(Some(text("").min_length(Some(1)))))
        .parameter(in_path("operationId", "As the change was answered").schema(Some(uuid(""))))
        .parameter(api_version())
}

fn environment() -> OperationBuilder {
    let operation = in_group(OperationBuilder::new())
        .tag("environments")
        .operation_id(Some("getManagedEnvironment"))
        .summary(Some(
            "The environment: there is one, and it answers by every name",
        ))
        .parameter(in_path("environmentName", "Any").schema(Some(text("").min_length(Some(1)))))
        .parameter(api_version());
    refusing(operation, &asked()).response("200", json("The environment", named(ENVIRONMENT)))
}

fn in_subscription(operation: OperationBuilder) -> OperationBuilder {
    operation.parameter(
        in_path("subscriptionId", "A namespace, usually a UUID")
            .schema(Some(text("").min_length(Some(1)))),
    )
}

fn in_group(operation: OperationBuilder) -> OperationBuilder {
    in_subscription(operation).parameter(
        in_path("resourceGroupName", "A namespace")
            .schema(Some(text("").min_length(Some(1)).max_length(Some(90)))),
    )
}
