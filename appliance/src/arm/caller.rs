//! Who calls, and what of the resources they may see and change.

use http::HeaderMap;

use super::path::Group;
use super::properties::Address;
use super::version::Version;
use crate::access::{Claims, Role, Scope};
use crate::front::refusal::Refusal;
use crate::store::PoolRecord;

const READ: &[Role] = &[Role::Reader, Role::PoolContributor];
const WRITE: &[Role] = &[Role::PoolContributor];

/// Who calls.
#[derive(Clone, Copy)]
pub enum Caller<'a> {
    /// Somebody who may open the administration socket, and so may do everything. Waits for the end of what is begun.
    Local,
    /// Somebody with a token, on the HTTPS port. `host` is what the client calls this host, with its port.
    Remote { claims: &'a Claims, host: &'a str },
}

impl Caller<'_> {
    /// Whether a change is answered when it is done, and not with an operation.
    pub fn waits(self, headers: &HeaderMap) -> bool {
        let preferences = headers.get_all("prefer").iter();
        let mut preferences = preferences
            .filter_map(|value| value.to_str().ok())
            .flat_map(|text| text.split(','));
        let at_once = preferences.any(|it| it.trim().eq_ignore_ascii_case("respond-async"));
        matches!(self, Self::Local) && !at_once
    }

    pub fn may_read(self, scope: Scope<'_>) -> Result<(), Refusal> {
        self.may(READ, scope)
    }

    pub fn may_write(self, scope: Scope<'_>) -> Result<(), Refusal> {
        self.may(WRITE, scope)
    }

    /// For lists, which leave out what the caller does not see.
    pub fn sees(self, scope: Scope<'_>) -> bool {
        match self {
            Self::Local => true,
            Self::Remote { claims, .. } => claims.sees(READ, scope),
        }
    }

    fn may(self, roles: &[Role], scope: Scope<'_>) -> Result<(), Refusal> {
        match self {
            Self::Local => Ok(()),
            Self::Remote { claims, .. } => claims.permit(roles, scope),
        }
    }

    /// The version of a call. On the socket there need not be one: it has all there is.
    pub fn version(self, named: Option<&str>) -> Result<Version, Refusal> {
        match (named, self) {
            (Some(name), _) => Version::parse(name),
            (None, Self::Local) => Ok(Version::default()),
            (None, Self::Remote { .. }) => Err(Version::missing()),
        }
    }
}

pub fn scope_of(address: &Address) -> Scope<'_> {
    Scope {
        subscription: &address.subscription,
        resource_group: Some(&address.resource_group),
        pool: Some(&address.name),
    }
}

pub fn scope_of_pool(pool: &PoolRecord) -> Scope<'_> {
    Scope {
        subscription: &pool.subscription,
        resource_group: Some(&pool.resource_group),
        pool: Some(pool.name.as_str()),
    }
}

pub fn scope_of_group(group: &Group) -> Scope<'_> {
    Scope {
        subscription: &group.subscription,
        resource_group: group.resource_group.as_deref(),
        pool: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn change_on_the_socket_is_waited_for_unless_the_caller_prefers_not_to() {
        let waits = |preferences: &[&str]| {
            let headers = preferences.iter();
            let headers = headers.map(|text| {
                (
                    http::HeaderName::from_static("prefer"),
                    text.parse().unwrap(),
                )
            });
            Caller::Local.waits(&headers.collect())
        };
        assert!(waits(&[]) && waits(&["wait=10"]) && waits(&["respond-asynchronously"]));
        for at_once in [
            &["respond-async"][..],
            &["wait=1, Respond-Async"],
            &["x", "respond-async"],
        ] {
            assert!(!waits(at_once), "{at_once:?}");
        }
    }
}
