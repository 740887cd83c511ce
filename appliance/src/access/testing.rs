//! For the tests of those who check tokens.

use super::{Authority, Claims, Grant};

/// One with a key of its own.
pub async fn authority() -> Authority {
    Authority::new(&Authority::new_key().unwrap()).unwrap()
}

/// What a token with this grant says.
pub fn claims(grant: Grant) -> Claims {
    Claims::new(vec![grant])
}
