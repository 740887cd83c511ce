//! What a path below `/subscriptions` is about. Keywords ignore case, and so do the values when they are compared.

use uuid::Uuid;

use super::call::nothing_here;
use super::properties::Address;
use crate::front::percent_decode;
use crate::front::refusal::Refusal;

pub const PROVIDER: &str = "Microsoft.App";
const POOLS: &str = "sessionPools";
const SESSIONS: &str = "sessions";
const ENVIRONMENTS: &str = "managedEnvironments";

/// Where something lies, or where everything of a list does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub subscription: String,
    /// `None`: the whole subscription.
    pub resource_group: Option<String>,
}

/// What a path is about.
#[derive(Debug, PartialEq, Eq)]
pub enum Target {
    Pools(Group),
    Pool(Address),
    /// Our own.
    Sessions(Address),
    Session(Address, String),
    Environments(Group),
    Environment(Group, String),
    OperationStatus(String, Uuid),
    OperationResult(String, Uuid),
}

/// Finds it, or refuses as nothing that is served here.
pub fn target(path: &str) -> Result<Target, Refusal> {
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let is = |segment: &str, word: &str| segment.eq_ignore_ascii_case(word);
    let (group, rest) = match segments[..] {
        [a, s, d, e, ref rest @ ..]
            if is(a, "subscriptions") && is(d, "providers") && is(e, PROVIDER) =>
        {
            (of(s, None)?, rest)
        }
        [a, s, b, g, d, e, ref rest @ ..]
            if is(a, "subscriptions")
                && is(b, "resourceGroups")
                && is(d, "providers")
                && is(e, PROVIDER) =>
        {
            (of(s, Some(g))?, rest)
        }
        _ => return Err(nothing_here()),
    };
    match *rest {
        [kind] if is(kind, POOLS) => Ok(Target::Pools(group)),
        [kind] if is(kind, ENVIRONMENTS) => Ok(Target::Environments(group)),
        [kind, name] if is(kind, ENVIRONMENTS) && group.resource_group.is_some() => {
            Ok(Target::Environment(group, value(name)?))
        }
        [kind, name, ref rest @ ..] if is(kind, POOLS) => {
            let pool = Address {
                subscription: group.subscription,
                resource_group: group.resource_group.ok_or_else(nothing_here)?,
                name: value(name)?,
            };
            match *rest {
                [] => Ok(Target::Pool(pool)),
                [word] if is(word, SESSIONS) => Ok(Target::Sessions(pool)),
                [word, identifier] if is(word, SESSIONS) => {
                    Ok(Target::Session(pool, value(identifier)?))
                }
                _ => Err(nothing_here()),
            }
        }
        [locations, location, kind, id]
            if is(locations, "locations")
                && !location.is_empty()
                && group.resource_group.is_none() =>
        {
            let id = id.parse().map_err(|_| nothing_here())?;
            if is(kind, "operationStatuses") {
                Ok(Target::OperationStatus(group.subscription, id))
            } else if is(kind, "operationResults") {
                Ok(Target::OperationResult(group.subscription, id))
            } else {
                Err(nothing_here())
            }
        }
        _ => Err(nothing_here()),
    }
}

fn of(subscription: &str, resource_group: Option<&str>) -> Result<Group, Refusal> {
    Ok(Group {
        subscription: value(subscription)?,
        resource_group: resource_group.map(value).transpose()?,
    })
}

fn value(segment: &str) -> Result<String, Refusal> {
    let decoded = percent_decode(segment).and_then(|bytes| String::from_utf8(bytes).ok());
    decoded
        .filter(|text| !text.is_empty())
        .ok_or_else(nothing_here)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_a_subscription_a_group_or_a_pool_whatever_their_case() {
        let group = "/subscriptions/S/resourcegroups/my%20rg/PROVIDERS/microsoft.app/sessionpools";
        let named = |resource_group: Option<&str>| Group {
            subscription: "S".into(),
            resource_group: resource_group.map(str::to_owned),
        };
        assert_eq!(target(group).unwrap(), Target::Pools(named(Some("my rg"))));
        let Target::Pool(address) = target(&format!("{group}/alpha")).unwrap() else {
            panic!()
        };
        assert_eq!(
            (address.name.as_str(), address.resource_group.as_str()),
            ("alpha", "my rg")
        );
        let all = "/subscriptions/S/providers/Microsoft.App";
        assert_eq!(
            target(&format!("{all}/sessionPools")).unwrap(),
            Target::Pools(named(None))
        );
        let environment = group.replace("sessionpools", "ManagedEnvironments/env");
        assert_eq!(
            target(&environment).unwrap(),
            Target::Environment(named(Some("my rg")), "env".into())
        );
        let id = Uuid::from_u128(7);
        assert_eq!(
            target(&format!("{all}/locations/local/OPERATIONstatuses/{id}")).unwrap(),
            Target::OperationStatus("S".into(), id)
        );
        assert_eq!(
            target(&format!("{all}/locations/local/operationResults/{id}")).unwrap(),
            Target::OperationResult("S".into(), id)
        );
    }

    #[test]
    fn anything_else_is_not_found() {
        for path in [
            "/",
            "",
            "/subscriptions/s/resourceGroups/rg/providers/Microsoft.Web/sessionPools",
            "/subscriptions//resourceGroups/rg/providers/Microsoft.App/sessionPools",
            "/subscriptions/s/resourceGroups/rg/providers/Microsoft.App/sessionPools/",
            "/subscriptions/s/resourceGroups/rg/providers/Microsoft.App/sessionPools/a/b",
            "/subscriptions/s/resourceGroups/rg/sessionPools/alpha",
            "/subscriptions/s/providers/Microsoft.App",
            "/subscriptions/s/providers/Microsoft.App/sessionPools/alpha",
            "/subscriptions/s/providers/Microsoft.App/managedEnvironments/env",
            "/subscriptions/s/providers/Microsoft.App/locations/local/operationStatuses/7",
            "/subscriptions/s/providers/Microsoft.App/locations/local/other/00000000-0000-0000-0000-000000000007",
        ] {
            assert!(target(path).is_err(), "{path}");
        }
    }
}
