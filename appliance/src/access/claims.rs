//! What a checked token says, and whether that is enough.

use super::{Grant, Role};
use crate::front::refusal::{Code, Refusal};
use crate::pool::Identifier;

/// What a call is about. ARM names compare without case.
///
/// A part that is `None` is not judged: a call about all of a group, such as a list, is permitted to who may
/// see one pool of it, and leaves out what [`Claims::sees`] does not allow.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    pub subscription: &'a str,
    pub resource_group: Option<&'a str>,
    pub pool: Option<&'a str>,
}

impl Scope<'_> {
    /// A pool of which nothing but the name is known, since it does not exist: no limit to groups allows it.
    pub fn nowhere(pool: &str) -> Scope<'_> {
        Scope {
            subscription: "",
            resource_group: Some(""),
            pool: Some(pool),
        }
    }

    /// For a message: the narrowest part.
    fn shown(self) -> String {
        match (self.pool, self.resource_group) {
            (Some(pool), _) => format!("the pool {pool}"),
            (None, Some(group)) => format!("the resource group {group}"),
            (None, None) => format!("the subscription {}", self.subscription),
        }
    }
}

/// SHA-256 of a token.
pub type TokenHash = [u8; 32];

/// What a checked token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    token: TokenHash,
    /// Each stands for itself: the roles of one hold in its own scope only.
    grants: Vec<Grant>,
}

impl Claims {
    pub(super) fn new(grants: Vec<Grant>) -> Self {
        Self {
            token: TokenHash::default(),
            grants,
        }
    }

    /// Those of this token.
    pub(super) fn of(self, token: TokenHash) -> Self {
        Self { token, ..self }
    }

    /// Names the token: its hash, which opens nothing.
    pub fn token(&self) -> TokenHash {
        self.token
    }

    /// Whether the bearer has one of `roles` in this scope. The refusal is the same whether anything is there or not.
    pub fn permit(&self, roles: &[Role], scope: Scope<'_>) -> Result<(), Refusal> {
        if self.sees(roles, scope) {
            return Ok(());
        }
        let named: Vec<_> = roles.iter().map(|role| role.as_str()).collect();
        let named = named.join(" or ");
        let held = self.grants.iter().any(|grant| grant.has_any(roles));
        let message = match (held, roles.len()) {
            (true, _) => {
                let place = scope.shown();
                format!("The token carries the role {named}, but not for {place}")
            }
            (false, 1) => {
                format!("The token does not carry the role {named}, which this call needs")
            }
            (false, _) => {
                format!("The token carries none of the roles that allow this call: {named}")
            }
        };
        Err(Refusal::new(Code::Forbidden, message))
    }

    /// Whether the bearer may use this session of this pool. The refusal is the same whether it exists or not.
    pub fn permit_session(&self, scope: Scope<'_>, identifier: &Identifier) -> Result<(), Refusal> {
        self.permit(&[Role::SessionExecutor], scope)?;
        if self.sees_session(scope, identifier) {
            return Ok(());
        }
        let message = "The token carries the role session-executor, but for other identifiers";
        Err(Refusal::new(Code::Forbidden, message).target("identifier"))
    }

    /// For lists: whether the bearer may know of this pool.
    pub fn sees(&self, roles: &[Role], scope: Scope<'_>) -> bool {
        let mut grants = self.grants.iter();
        grants.any(|grant| grant.has_any(roles) && grant.covers(scope))
    }

    /// For lists: whether the bearer may know of this session of this pool.
    pub fn sees_session(&self, scope: Scope<'_>, identifier: &Identifier) -> bool {
        self.grants.iter().any(|grant| {
            grant.has_any(&[Role::SessionExecutor])
                && grant.covers(scope)
                && grant.allows(identifier)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALPHA: Scope<'_> = Scope {
        subscription: "sub-1",
        resource_group: Some("group-1"),
        pool: Some("alpha"),
    };

    fn message(result: Result<(), Refusal>) -> String {
        let refusal = result.unwrap_err();
        assert_eq!(refusal.code, Code::Forbidden);
        refusal.message
    }

    #[test]
    fn refusal_names_the_roles_that_are_missing() {
        let reader = Claims::new(vec![Grant::of(Role::Reader)]);
        assert!(reader.permit(&[Role::Reader], ALPHA).is_ok());
        let both = [Role::PoolContributor, Role::Reader];
        assert!(reader.permit(&both, ALPHA).is_ok());
        let one = message(reader.permit(&[Role::PoolContributor], ALPHA));
        assert!(one.contains("the role pool-contributor"), "{one}");
        let nobody = Claims::new(Vec::new());
        let two = message(nobody.permit(&both, ALPHA));
        assert!(two.contains("pool-contributor or reader"), "{two}");
    }

    #[test]
    fn limits_hold_at_every_level_and_forgive_case() {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        let any = Grant::of(Role::Reader);
        let subscription = Grant {
            subscriptions: names(&["sub-1"]),
            ..any.clone()
        };
        let group = Grant {
            resource_groups: names(&["group-0", "group-1"]),
            ..any.clone()
        };
        let pool = Grant {
            pools: vec!["alpha".parse().unwrap()],
            ..any.clone()
        };
        let here = |grant: &Grant, subscription, resource_group, pool| {
            let scope = Scope {
                subscription,
                resource_group,
                pool,
            };
            Claims::new(vec![grant.clone()]).sees(&[Role::Reader], scope)
        };
        for grant in [&any, &subscription, &group, &pool] {
            assert!(
                here(grant, "SUB-1", Some("Group-1"), Some("ALPHA")),
                "{grant:?}"
            );
            // What the call leaves open is for lists, which leave out the rest.
            assert!(here(grant, "sub-1", None, None), "{grant:?}");
        }
        assert!(here(&any, "sub-2", Some("group-2"), Some("beta")));
        assert!(!here(
            &subscription,
            "sub-2",
            Some("group-1"),
            Some("alpha")
        ));
        assert!(!here(&group, "sub-1", Some("group-2"), Some("alpha")));
        assert!(!here(&pool, "sub-1", Some("group-1"), Some("beta")));
        for limited in [&subscription, &group] {
            let claims = Claims::new(vec![limited.clone()]);
            assert!(!claims.sees(&[Role::Reader], Scope::nowhere("alpha")));
        }
    }

    #[test]
    fn refusal_outside_the_scope_names_the_narrowest_part_that_was_asked_for() {
        let claims = Claims::new(vec![Grant {
            subscriptions: vec!["other".into()],
            ..Grant::of(Role::Reader)
        }]);
        let asked = |scope| message(claims.permit(&[Role::Reader], scope));
        assert!(asked(ALPHA).ends_with("not for the pool alpha"));
        let group = Scope {
            pool: None,
            ..ALPHA
        };
        assert!(asked(group).ends_with("not for the resource group group-1"));
        let all = Scope {
            resource_group: None,
            ..group
        };
        assert!(asked(all).ends_with("not for the subscription sub-1"));
        // Nothing tells a pool elsewhere from one that does not exist.
        assert_eq!(asked(ALPHA), asked(Scope::nowhere("alpha")));
    }

    #[test]
    fn bound_token_is_for_its_identifiers_only_and_the_refusal_holds_none() {
        let claims = Claims::new(vec![Grant {
            identifiers: vec!["user-1".parse().unwrap(), "team-*".parse().unwrap()],
            ..Grant::of(Role::SessionExecutor)
        }]);
        for own in ["user-1", "team-9"] {
            assert!(claims.permit_session(ALPHA, &own.parse().unwrap()).is_ok());
        }
        let said = message(claims.permit_session(ALPHA, &"user-2".parse().unwrap()));
        assert!(said.contains("other identifiers"), "{said}");
        assert!(!said.contains("user-") && !said.contains("team-"), "{said}");
        assert!(!format!("{claims:?}").contains("user-1"));
    }

    #[test]
    fn what_one_grant_allows_is_not_lent_to_another() {
        let alpha = Grant {
            pools: vec!["alpha".parse().unwrap()],
            identifiers: vec!["user-1".parse().unwrap()],
            ..Grant::of(Role::SessionExecutor)
        };
        let beta = Grant {
            pools: vec!["beta".parse().unwrap()],
            ..Grant::of(Role::SessionExecutor)
        };
        let reader = Grant::of(Role::Reader);
        let claims = Claims::new(vec![alpha, beta, reader]);
        let in_beta = Scope {
            pool: Some("beta"),
            ..ALPHA
        };
        let in_gamma = Scope {
            pool: Some("gamma"),
            ..ALPHA
        };
        let [one, two] = ["user-1", "user-2"].map(|name| name.parse().unwrap());
        assert!(claims.permit_session(ALPHA, &one).is_ok());
        assert!(claims.permit_session(ALPHA, &two).is_err());
        assert!(claims.permit_session(in_beta, &two).is_ok());
        assert!(claims.permit_session(in_gamma, &one).is_err());
        assert!(claims.permit(&[Role::Reader], in_gamma).is_ok());
        assert!(claims.permit(&[Role::PoolContributor], ALPHA).is_err());
    }
}
