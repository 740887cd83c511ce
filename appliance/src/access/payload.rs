//! What this appliance's own tokens say, as it is written.

use jsonwebtoken::{Algorithm, Header};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::audience::Named;
use super::keys::Key;
use super::{Claims, Grant};
use crate::pool::PoolName;
use crate::store::TokenRecord;

/// `iss` of tokens that this appliance has made.
pub const ISSUER: &str = "cabana";

#[derive(Serialize)]
struct Written<'a> {
    iss: &'a str,
    aud: &'a str,
    iat: u64,
    exp: u64,
    jti: Uuid,
    /// An older build finds no roles and refuses the token: it does not know all limits.
    grant: &'a Grant,
}

/// The token could not be signed.
#[derive(Debug, thiserror::Error)]
#[error("A token could not be signed")]
pub struct SignError(#[source] jsonwebtoken::errors::Error);

/// The token of this record.
pub fn sign(record: &TokenRecord, audience: &str, key: &Key) -> Result<String, SignError> {
    let written = Written {
        iss: ISSUER,
        aud: audience,
        iat: record.made_at,
        exp: record.expires_at,
        jti: record.id,
        grant: &record.grant,
    };
    let mut header = Header::new(Algorithm::EdDSA);
    header.kid = Some(key.id().to_owned());
    jsonwebtoken::encode(&header, &written, key.signing()).map_err(SignError)
}

/// What the check of a token reads; whether the time is right was seen before.
#[derive(Debug, Deserialize)]
pub struct Payload {
    pub aud: Named,
    pub exp: u64,
    pub jti: Uuid,
    #[serde(default)]
    grant: Option<Grant>,
    /// As builds without `grant` said it.
    #[serde(default)]
    roles: Vec<String>,
    #[serde(default)]
    pools: Vec<PoolName>,
}

impl Payload {
    pub fn into_claims(self) -> Claims {
        let grant = self.grant.unwrap_or_else(|| Grant {
            roles: self
                .roles
                .iter()
                .filter_map(|role| role.parse().ok())
                .collect(),
            pools: self.pools,
            ..Grant::default()
        });
        Claims::new(vec![grant])
    }
}
