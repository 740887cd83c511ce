//! The roles that a token can carry.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What its bearer may do, within the scope of the grant that gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// May use sessions, and show and stop its own.
    SessionExecutor,
    /// May make, change and delete pools.
    PoolContributor,
    /// May look at pools.
    Reader,
}

/// The text names no role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("A role is session-executor, pool-contributor or reader")]
pub struct UnknownRole;

impl Role {
    pub const ALL: [Self; 3] = [Self::SessionExecutor, Self::PoolContributor, Self::Reader];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SessionExecutor => "session-executor",
            Self::PoolContributor => "pool-contributor",
            Self::Reader => "reader",
        }
    }

    /// What the cloud service calls it: the role's name and its id.
    const fn names_in_azure(self) -> [&'static str; 2] {
        match self {
            Self::SessionExecutor => [
                "Azure ContainerApps Session Executor",
                "0fb8eba5-a2bb-4abe-b1c1-49dfad359bb0",
            ],
            Self::PoolContributor => [
                "Container Apps SessionPools Contributor",
                "f7669afb-68b2-44b4-9c5f-6d2a47fddda0",
            ],
            Self::Reader => [
                "Container Apps SessionPools Reader",
                "af61e8fc-2633-4b95-bed3-421ad6826515",
            ],
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        let is_called = |role: &Self| {
            let mut azure = role.names_in_azure().into_iter();
            role.as_str() == text || azure.any(|name| name.eq_ignore_ascii_case(text))
        };
        Self::ALL.into_iter().find(is_called).ok_or(UnknownRole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn role_is_known_by_its_own_name_and_by_the_clouds() {
        for role in Role::ALL {
            assert_eq!(role.to_string().parse(), Ok(role));
            let written = serde_json::to_value(role).unwrap();
            assert_eq!(written, role.as_str());
            assert_eq!(serde_json::from_value::<Role>(written).unwrap(), role);
            for name in role.names_in_azure() {
                assert_eq!(name.to_uppercase().parse(), Ok(role), "{name}");
            }
        }
        for unknown in ["", "owner", "Reader ", "READER", "session_executor"] {
            assert_eq!(unknown.parse::<Role>(), Err(UnknownRole), "{unknown}");
        }
    }
}
