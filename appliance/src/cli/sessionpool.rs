//! `cabana sessionpool`: the resource in ARM's shape, made from the flags of `az`.

use http::Method;
use serde_json::{Value, json};

use super::args::{CreatePool, ListPools, PoolTarget};
use super::client::{Payload, call, pool_path};
use super::image;
use super::output::{print, table};
use super::source::Source;
use crate::exit::{Exit, Failure};

pub fn create(create: Box<CreatePool>) -> Result<Exit, Failure> {
    let root = create.connection.root.clone();
    let image = if Source::is_meant_by(&create.image) {
        let source: Source = create
            .image
            .parse()
            .map_err(|line: String| Failure::new(Exit::Usage, line))?;
        image::send(&root, &source, None)?.name
    } else {
        create.image.clone()
    };
    let path = pool_path(&create.resource_group, Some(&create.name));
    let pool = call(
        &root,
        Method::PUT,
        &path,
        Payload::Json(resource(&create, &image)),
    )?;
    print(create.json, &pool, |pool| {
        format!("Pool {} is ready at {}\n", create.name, endpoint(pool))
    })?;
    Ok(Exit::Ok)
}

pub fn show(target: &PoolTarget) -> Result<Exit, Failure> {
    let path = pool_path(&target.resource_group, Some(&target.name));
    let pool = call(
        &target.connection.root,
        Method::GET,
        &path,
        Payload::Nothing,
    )?;
    print(target.json, &pool, details)?;
    Ok(Exit::Ok)
}

pub fn list(list: &ListPools) -> Result<Exit, Failure> {
    let path = pool_path(&list.resource_group, None);
    let answer = call(&list.connection.root, Method::GET, &path, Payload::Nothing)?;
    let pools = match &answer["value"] {
        Value::Array(pools) => pools.clone(),
        _ => Vec::new(),
    };
    print(list.json, &pools, |pools| {
        let rows: Vec<_> = pools.iter().map(row).collect();
        table(
            &[
                "NAME", "IMAGE", "CPU", "MEMORY", "PORT", "SESSIONS", "COOLDOWN", "STATE",
            ],
            &rows,
        )
    })?;
    Ok(Exit::Ok)
}

pub fn delete(target: &PoolTarget) -> Result<Exit, Failure> {
    let path = pool_path(&target.resource_group, Some(&target.name));
    call(
        &target.connection.root,
        Method::DELETE,
        &path,
        Payload::Nothing,
    )?;
    let answer = json!({ "name": target.name, "deleted": true });
    print(target.json, &answer, |_| {
        format!("Pool {} is deleted\n", target.name)
    })?;
    Ok(Exit::Ok)
}

/// The body of the PUT.
fn resource(create: &CreatePool, image: &str) -> Value {
    let env: Vec<_> = create
        .env_vars
        .iter()
        .map(|(name, value)| json!({ "name": name, "value": value }))
        .collect();
    let mut container = json!({
        "name": create.name,
        "image": image,
        "env": env,
        "resources": {
            "cpu": create.cpu,
            "memory": create.memory,
            "ephemeralStorage": create.ephemeral_storage,
        },
    });
    // Absent means the image's own; an empty list would replace it by nothing.
    if !create.command.is_empty() {
        container["command"] = json!(create.command);
    }
    if !create.args.is_empty() {
        container["args"] = json!(create.args);
    }
    json!({
        "location": "local",
        "properties": {
            "poolManagementType": "Dynamic",
            "containerType": "CustomContainer",
            "forkPoint": create.fork_point.to_string(),
            "scaleConfiguration": { "maxConcurrentSessions": create.max_sessions },
            "dynamicPoolConfiguration": {
                "lifecycleConfiguration": {
                    "lifecycleType": "Timed",
                    "cooldownPeriodInSeconds": create.cooldown_period,
                },
            },
            "customContainerTemplate": {
                "containers": [container],
                "ingress": { "targetPort": create.target_port },
            },
            "sessionNetworkConfiguration": { "status": "EgressDisabled" },
        },
    })
}

fn endpoint(pool: &Value) -> &str {
    pool["properties"]["poolManagementEndpoint"]
        .as_str()
        .unwrap_or("(no endpoint)")
}

fn row(pool: &Value) -> Vec<String> {
    let properties = &pool["properties"];
    let template = &properties["customContainerTemplate"];
    let container = &template["containers"][0];
    let lifecycle = &properties["dynamicPoolConfiguration"]["lifecycleConfiguration"];
    [
        &pool["name"],
        &container["image"],
        &container["resources"]["cpu"],
        &container["resources"]["memory"],
        &template["ingress"]["targetPort"],
        &properties["scaleConfiguration"]["maxConcurrentSessions"],
        &lifecycle["cooldownPeriodInSeconds"],
        &properties["provisioningState"],
    ]
    .map(cell)
    .to_vec()
}

fn details(pool: &Value) -> String {
    let properties = &pool["properties"];
    let container = &properties["customContainerTemplate"]["containers"][0];
    let names = [
        "name",
        "image",
        "cpu",
        "memory",
        "target port",
        "max sessions",
        "cooldown",
        "state",
    ];
    let rows = names.into_iter().zip(row(pool)).chain([
        ("storage", cell(&container["resources"]["ephemeralStorage"])),
        ("fork point", cell(&properties["forkPoint"])),
        ("endpoint", endpoint(pool).to_owned()),
    ]);
    rows.map(|(name, value)| format!("{name:<14}{value}\n"))
        .collect()
}

/// A value without its quotes.
pub fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Cli, Command, SessionPoolCommand};
    use clap::Parser as _;

    fn parsed(more: &[&str]) -> Box<CreatePool> {
        let base = [
            "cabana",
            "sessionpool",
            "create",
            "--name",
            "p1",
            "--image",
            "i",
        ];
        let cli = Cli::try_parse_from(
            base.iter()
                .chain(["--target-port", "80"].iter())
                .chain(more),
        );
        match cli.unwrap().command {
            Command::SessionPool(SessionPoolCommand::Create(create)) => create,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn defaults_are_those_of_the_cloud_service() {
        let body = resource(&parsed(&[]), "i");
        let properties = &body["properties"];
        assert_eq!(
            properties["scaleConfiguration"]["maxConcurrentSessions"],
            10
        );
        let lifecycle = &properties["dynamicPoolConfiguration"]["lifecycleConfiguration"];
        assert_eq!(lifecycle["cooldownPeriodInSeconds"], 300);
        let container = &properties["customContainerTemplate"]["containers"][0];
        assert_eq!(
            container["resources"],
            json!({ "cpu": 0.25, "memory": "0.5Gi", "ephemeralStorage": "8Gi" })
        );
        assert_eq!(properties["forkPoint"], "beforeStart");
        assert!(container.get("command").is_none() && container.get("args").is_none());
    }

    #[test]
    fn details_name_fork_point_and_storage() {
        let flags = ["--fork-point", "afterReady", "--ephemeral-storage", "2Gi"];
        let text = details(&resource(&parsed(&flags), "img"));
        for line in ["fork point    afterReady\n", "storage       2Gi\n"] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn row_of_the_list_is_made_from_the_resource() {
        let mut pool = resource(&parsed(&["--cpu", "2"]), "img");
        pool["name"] = json!("p1");
        assert_eq!(
            row(&pool),
            ["p1", "img", "2.0", "0.5Gi", "80", "10", "300", "-"]
        );
    }
}
