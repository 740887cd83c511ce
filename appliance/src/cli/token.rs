//! `cabana token`.

use clap::ValueEnum as _;
use http::Method;
use serde_json::json;

use super::args::CreateToken;
use super::client::{Payload, call};
use super::output::print;
use crate::exit::{Exit, Failure};

pub fn create(create: &CreateToken) -> Result<Exit, Failure> {
    let role = create.role.to_possible_value();
    let body = json!({
        "role": role.as_ref().map(clap::builder::PossibleValue::get_name),
        "pools": create.pools,
        "ttlSeconds": create.ttl,
    });
    let answer = call(
        &create.connection.root,
        Method::POST,
        "/tokens",
        Payload::Json(body),
    )?;
    let Some(token) = answer["token"].as_str().map(str::to_owned) else {
        return Err(Failure::new(
            Exit::Failed,
            "The appliance answered without a token",
        ));
    };
    print(&create.output, &answer, |_| token + "\n")?;
    Ok(Exit::Ok)
}
