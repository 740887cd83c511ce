//! For the tests of those who check tokens.

use std::sync::Arc;

use super::audience::{Audiences, DEFAULT_AUDIENCES};
use super::{Authority, Claims, Grant};
use crate::store::{MemoryStore, Records};

/// One with a key of its own.
pub async fn authority() -> Authority {
    let records = Records::new(Arc::new(MemoryStore::default()));
    Authority::open(records, audiences(), Vec::new())
        .await
        .unwrap()
}

pub fn audiences() -> Audiences {
    Audiences::new(DEFAULT_AUDIENCES.map(str::to_owned))
}

/// What a token with this grant says.
pub fn claims(grant: Grant) -> Claims {
    Claims::new(vec![grant])
}
