//! Who may do what: roles, the scope they hold in, and the tokens that carry them.
//!
//! ```text
//! Authorization header ─▶ bearer ─▶ Authority::check ─▶ Claims ─▶ permit(roles, scope)
//!                                                              └▶ permit_session(scope, identifier)
//! ```
//!
//! Both planes ask here before they say anything about a pool or a session, so a refusal is the same
//! whether the thing exists or not.

mod authority;
mod bearer;
mod claims;
mod grant;
mod role;

#[cfg(test)]
pub mod testing;

pub use authority::Authority;
pub use claims::{Claims, Scope};
pub use grant::Grant;
pub use role::Role;
