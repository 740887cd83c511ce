//! Typed access to a [`Store`], off the runtime's own threads.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::schema::{
    self, OperationRecord, PoolRecord, SessionRecord, TokenRecord, Use, operation_key, session_key,
};
use super::{Change, Store, StoreError, Table};
use crate::pool::{Identifier, PoolName};

/// Where the ledger of tokens has its keys.
const SIGNING_KEYS: &str = "token-signing-keys";
/// Where builds that knew one key only had it.
const UNNAMED_SIGNING_KEY: &str = "token-signing";

/// The records of this appliance. Cheap to clone.
#[derive(Clone)]
pub struct Records {
    store: Arc<dyn Store>,
}

impl Records {
    /// Puts the types on top of `store`.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// Every pool, by name.
    pub async fn pools(&self) -> Result<Vec<PoolRecord>, StoreError> {
        self.all(Table::Pools).await
    }

    /// Writes a pool, new or changed.
    pub async fn put_pool(&self, pool: PoolRecord) -> Result<(), StoreError> {
        self.put(Table::Pools, pool.name.as_str().as_bytes().to_vec(), &pool)
            .await
    }

    /// Forgets a pool.
    pub async fn remove_pool(&self, name: PoolName) -> Result<(), StoreError> {
        self.remove(Table::Pools, name.as_str().as_bytes().to_vec())
            .await
    }

    /// What pools still serve from while another revision of them warms up, by name.
    pub async fn serving(&self) -> Result<Vec<PoolRecord>, StoreError> {
        self.all(Table::Serving).await
    }

    /// Writes what the pool of this name still serves from.
    pub async fn put_serving(&self, pool: PoolRecord) -> Result<(), StoreError> {
        let key = pool.name.as_str().as_bytes().to_vec();
        self.put(Table::Serving, key, &pool).await
    }

    /// From now on the pool serves from its own record.
    pub async fn remove_serving(&self, name: PoolName) -> Result<(), StoreError> {
        self.remove(Table::Serving, name.as_str().as_bytes().to_vec())
            .await
    }

    /// Every session of every pool.
    pub async fn sessions(&self) -> Result<Vec<SessionRecord>, StoreError> {
        self.all(Table::Sessions).await
    }

    /// Writes who owns a session.
    pub async fn put_session(&self, session: SessionRecord) -> Result<(), StoreError> {
        let key = session_key(&session.pool, &session.identifier);
        self.put(Table::Sessions, key, &session).await
    }

    /// Forgets a session, and when it was used.
    pub async fn remove_session(
        &self,
        pool: PoolName,
        identifier: Identifier,
        session: Uuid,
    ) -> Result<(), StoreError> {
        let remove = |table, key| Change::Remove { table, key };
        let changes = [
            remove(Table::Sessions, session_key(&pool, &identifier)),
            remove(Table::Uses, use_key(session)),
        ];
        self.blocking(move |store| store.apply(&changes)).await
    }

    /// When sessions were last used, by their ids. Some may have ended.
    pub async fn uses(&self) -> Result<HashMap<Uuid, Use>, StoreError> {
        let rows = self.blocking(|store| store.scan(Table::Uses, b"")).await?;
        let read = |(key, value): &(Vec<u8>, Vec<u8>)| {
            let id = std::str::from_utf8(key).ok().and_then(|id| id.parse().ok());
            let used = read(Table::Uses, key, value)?;
            Ok(id.map(|id| (id, used)))
        };
        rows.iter()
            .filter_map(|row| read(row).transpose())
            .collect()
    }

    /// Writes when sessions were last used, all in one batch.
    pub async fn put_uses(&self, uses: HashMap<Uuid, Use>) -> Result<(), StoreError> {
        let put = |(session, used): (Uuid, Use)| Change::Put {
            table: Table::Uses,
            key: use_key(session),
            value: schema::encode(&used),
        };
        let changes: Vec<_> = uses.into_iter().map(put).collect();
        self.blocking(move |store| store.apply(&changes)).await
    }

    /// Forgets when these sessions were used.
    pub async fn remove_uses(&self, sessions: Vec<Uuid>) -> Result<(), StoreError> {
        let remove = |session| Change::Remove {
            table: Table::Uses,
            key: use_key(session),
        };
        let changes: Vec<_> = sessions.into_iter().map(remove).collect();
        self.blocking(move |store| store.apply(&changes)).await
    }

    /// Every change of a pool that somebody may ask about.
    pub async fn operations(&self) -> Result<Vec<OperationRecord>, StoreError> {
        self.all(Table::Operations).await
    }

    /// Writes an operation, and forgets others in the same batch.
    pub async fn put_operation(
        &self,
        operation: OperationRecord,
        forgotten: Vec<Uuid>,
    ) -> Result<(), StoreError> {
        let remove = |id| Change::Remove {
            table: Table::Operations,
            key: operation_key(id),
        };
        let mut changes: Vec<_> = forgotten.into_iter().map(remove).collect();
        changes.push(Change::Put {
            table: Table::Operations,
            key: operation_key(operation.id),
            value: schema::encode(&operation),
        });
        self.blocking(move |store| store.apply(&changes)).await
    }

    /// Key material under `name`; made by `make` the first time.
    pub async fn ensure_key(
        &self,
        name: &'static str,
        make: impl FnOnce() -> Vec<u8> + Send + 'static,
    ) -> Result<Vec<u8>, StoreError> {
        self.blocking(move |store| {
            if let Some(row) = store.get(Table::Keys, name.as_bytes())? {
                return read(Table::Keys, name.as_bytes(), &row);
            }
            let made = make();
            let value = schema::encode(&made);
            store.apply(&[Change::Put {
                table: Table::Keys,
                key: name.into(),
                value,
            }])?;
            Ok(made)
        })
        .await
    }

    /// The keys that tokens are signed with, as the ledger writes them.
    pub async fn signing_keys(&self) -> Result<Option<Vec<u8>>, StoreError> {
        self.key(SIGNING_KEYS).await
    }

    /// The one key that a build signed with that knew no others.
    pub async fn unnamed_signing_key(&self) -> Result<Option<Vec<u8>>, StoreError> {
        self.key(UNNAMED_SIGNING_KEY).await
    }

    /// Writes the keys, and with them the records of tokens that change. `unnamed` says whether the key of an older
    /// build is still in use: if not, that build must not find it either.
    pub async fn put_signing_keys(
        &self,
        keys: Vec<u8>,
        unnamed: bool,
        tokens: Vec<TokenRecord>,
    ) -> Result<(), StoreError> {
        let mut changes = vec![Change::Put {
            table: Table::Keys,
            key: SIGNING_KEYS.into(),
            value: schema::encode(&keys),
        }];
        if !unnamed {
            changes.push(Change::Remove {
                table: Table::Keys,
                key: UNNAMED_SIGNING_KEY.into(),
            });
        }
        changes.extend(tokens.iter().map(|token| Change::Put {
            table: Table::Tokens,
            key: token_key(token.id),
            value: schema::encode(token),
        }));
        self.blocking(move |store| store.apply(&changes)).await
    }

    /// Every token that was issued and not forgotten.
    pub async fn tokens(&self) -> Result<Vec<TokenRecord>, StoreError> {
        self.all(Table::Tokens).await
    }

    /// Writes what is known of a token.
    pub async fn put_token(&self, token: TokenRecord) -> Result<(), StoreError> {
        self.put(Table::Tokens, token_key(token.id), &token).await
    }

    /// Forgets tokens.
    pub async fn remove_tokens(&self, ids: Vec<Uuid>) -> Result<(), StoreError> {
        let remove = |id| Change::Remove {
            table: Table::Tokens,
            key: token_key(id),
        };
        let changes: Vec<_> = ids.into_iter().map(remove).collect();
        self.blocking(move |store| store.apply(&changes)).await
    }

    async fn key(&self, name: &'static str) -> Result<Option<Vec<u8>>, StoreError> {
        self.blocking(move |store| {
            let row = store.get(Table::Keys, name.as_bytes())?;
            row.map(|row| read(Table::Keys, name.as_bytes(), &row))
                .transpose()
        })
        .await
    }

    async fn all<T: DeserializeOwned + Send + 'static>(
        &self,
        table: Table,
    ) -> Result<Vec<T>, StoreError> {
        self.blocking(move |store| {
            let rows = store.scan(table, b"")?;
            rows.iter()
                .map(|(key, value)| read(table, key, value))
                .collect()
        })
        .await
    }

    async fn put<T: Serialize>(
        &self,
        table: Table,
        key: Vec<u8>,
        record: &T,
    ) -> Result<(), StoreError> {
        let value = schema::encode(record);
        self.apply(Change::Put { table, key, value }).await
    }

    async fn remove(&self, table: Table, key: Vec<u8>) -> Result<(), StoreError> {
        self.apply(Change::Remove { table, key }).await
    }

    async fn apply(&self, change: Change) -> Result<(), StoreError> {
        self.blocking(move |store| store.apply(&[change])).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = Arc::clone(&self.store);
        tokio::task::spawn_blocking(move || call(&*store))
            .await
            .unwrap_or(Err(StoreError::Stopping))
    }
}

fn token_key(token: Uuid) -> Vec<u8> {
    token.to_string().into_bytes()
}

/// Text, as all keys are.
fn use_key(session: Uuid) -> Vec<u8> {
    session.to_string().into_bytes()
}

fn read<T: DeserializeOwned>(table: Table, key: &[u8], value: &[u8]) -> Result<T, StoreError> {
    schema::decode(value).map_err(|source| StoreError::record(table, key, source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    #[tokio::test]
    async fn unreadable_session_is_reported_without_its_identifier() {
        let store = MemoryStore::default();
        let row = Change::Put {
            table: Table::Sessions,
            key: b"alpha\0secret-id".to_vec(),
            value: b"{}".to_vec(),
        };
        store.apply(&[row]).unwrap();
        let error = Records::new(Arc::new(store)).sessions().await.unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(
            shown.contains("alpha") && !shown.contains("secret-id"),
            "{shown}"
        );
    }
}
