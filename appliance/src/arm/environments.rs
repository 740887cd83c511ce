//! Managed environments: the part of them that those who make pools look at. There is one host, which takes pools of
//! whatever environment, so each has the same to say.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::call::Reply;
use super::caller::scope_of_group;
use super::path::{self, Group, PROVIDER, Target};
use super::{Call, Caller};
use crate::front::refusal::Refusal;

const TYPE: &str = "Microsoft.App/managedEnvironments";
const LOCATION: &str = "local";
/// The profile that every environment has.
const PROFILE: &str = "Consumption";

impl Call<'_> {
    /// An environment of any name.
    pub fn environment(&self, group: &Group, name: &str) -> Result<Reply, Refusal> {
        self.caller.may_read(scope_of_group(group))?;
        let resource_group = group.resource_group.as_deref().unwrap_or_default();
        Ok(Reply::ok(self.shown_environment(
            &group.subscription,
            resource_group,
            name,
        )))
    }

    /// Those that pools were put into.
    pub fn environments(&self, group: &Group) -> Result<Reply, Refusal> {
        self.caller.may_read(scope_of_group(group))?;
        let whole = Group {
            subscription: group.subscription.clone(),
            resource_group: None,
        };
        let mut found = BTreeMap::new();
        for pool in self.pools_in(&whole) {
            let named = pool.environment_id.as_deref().map(path::target);
            let Some(Ok(Target::Environment(of, name))) = named else {
                continue;
            };
            let resource_group = of.resource_group.unwrap_or_default();
            let wanted = group.resource_group.as_deref();
            let here = of.subscription.eq_ignore_ascii_case(&group.subscription)
                && wanted.is_none_or(|it| it.eq_ignore_ascii_case(&resource_group));
            if here {
                let shown = self.shown_environment(&of.subscription, &resource_group, &name);
                let key = format!("{resource_group}/{name}").to_ascii_lowercase();
                found.entry(key).or_insert(shown);
            }
        }
        let value: Vec<_> = found.into_values().collect();
        Ok(Reply::ok(json!({ "value": value, "nextLink": null })))
    }

    fn shown_environment(&self, subscription: &str, resource_group: &str, name: &str) -> Value {
        let id = format!(
            "/subscriptions/{subscription}/resourceGroups/{resource_group}/providers/{PROVIDER}/managedEnvironments/{name}"
        );
        json!({
            "id": id,
            "name": name,
            "type": TYPE,
            "location": LOCATION,
            "properties": {
                "provisioningState": "Succeeded",
                "defaultDomain": self.domain(),
                "workloadProfiles": [{ "name": PROFILE, "workloadProfileType": PROFILE }],
            },
        })
    }

    /// Below which pools are reached; without a domain, what the client calls this host.
    fn domain(&self) -> String {
        let endpoints = &self.arm.parts.endpoints;
        let host = match self.caller {
            Caller::Local => endpoints.host.trim_start_matches("https://"),
            Caller::Remote { host, .. } => host,
        };
        let named = host.parse::<http::uri::Authority>();
        let named = named.map_or_else(|_| host.to_owned(), |it| it.host().to_owned());
        endpoints.domain.clone().unwrap_or(named)
    }
}
