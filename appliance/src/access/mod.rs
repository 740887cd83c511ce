//! Who may do what: roles, the scope they hold in, and the tokens that carry them.
//!
//! ```text
//! Authorization header ─▶ bearer ─▶ Authority::check ─▶ Claims ─▶ permit(roles, scope)
//!                                                              └▶ permit_session(scope, identifier)
//! ```
//!
//! Both planes ask here before they say anything about a pool or a session, so a refusal is the same
//! whether the thing exists or not.

mod audience;
mod authority;
mod bearer;
mod claims;
mod failures;
mod grant;
mod issuers;
mod keys;
mod ledger;
mod payload;
mod role;

#[cfg(test)]
pub mod testing;

pub use audience::{Audiences, DEFAULT_AUDIENCES};
pub use authority::Authority;
pub use claims::{Claims, Scope, TokenHash};
pub use grant::{Grant, IdentifierRule};
pub use issuers::{GrantRule, IssuerSettings, KeysFrom, may_be_asked};
pub use ledger::{ChangeError, MAX_TOKEN_TTL, TokenOrder};
pub use role::Role;
