//! Issuers that the operator trusts: their tokens are checked with their own keys, and are good for what the
//! configuration grants (OpenID Connect Core 1.0, Discovery 1.0).
//!
//! # Trust
//! An issuer is believed about whom it names, within its grants. Its answers are a stranger's until they are parsed,
//! and bounded in size and time. Keys come over TLS, from the very address that `iss` says, or from a file.

mod issuer;
mod keyset;
mod settings;
mod source;

#[cfg(test)]
mod tests;

pub use issuer::{Issuer, Missing};
pub use keyset::NoKey;
pub use settings::{GrantRule, IssuerSettings, KeysFrom, may_be_asked};
