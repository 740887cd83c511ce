//! The pools of this appliance, by name.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::driver::{PoolHandle, Tools};
use super::{PoolName, unix_millis};
use crate::store::{PoolRecord, StoreError};

/// All pools. Cheap to clone.
#[derive(Clone)]
pub struct Pools {
    inner: Arc<Inner>,
}

struct Inner {
    tools: Tools,
    pools: RwLock<BTreeMap<PoolName, Entry>>,
    /// One lock per name that is being changed, held from the store to the map and, for a pool that is
    /// deleted, until nothing is left of it. Changes of one pool happen one by one.
    changes: Mutex<HashMap<PoolName, Arc<tokio::sync::Mutex<()>>>>,
}

#[derive(Clone)]
struct Entry {
    record: Arc<PoolRecord>,
    handle: PoolHandle,
}

/// What [`Pools::put`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    Created,
    Updated,
}

/// Why a pool could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum PoolChangeError {
    /// Pool names are unique in an appliance, because the host form of the address has nothing else.
    #[error(
        "The name {name} belongs to a pool in resource group {resource_group} of subscription {subscription}"
    )]
    NameInUse {
        name: PoolName,
        subscription: String,
        resource_group: String,
    },
    /// The store could not be written.
    #[error("The pool {name} could not be stored")]
    Store { name: PoolName, source: StoreError },
}

impl Pools {
    /// Reads the pools from the store and starts their drivers. Sessions of an earlier run ended
    /// with their workers, so their records are removed.
    pub async fn open(tools: Tools) -> Result<Self, StoreError> {
        for session in tools.records.sessions().await? {
            tracing::info!(
                pool = %session.pool,
                session = %session.session,
                identifier_hash = %session.identifier.fingerprint(&tools.fingerprints),
                "session of an earlier run is gone; its record is removed"
            );
            tools
                .records
                .remove_session(session.pool, session.identifier)
                .await?;
        }
        let mut pools = BTreeMap::new();
        for record in tools.records.pools().await? {
            let record = Arc::new(record);
            let handle = PoolHandle::start(Arc::clone(&record), tools.clone());
            pools.insert(record.name.clone(), Entry { record, handle });
        }
        let inner = Inner {
            tools,
            pools: RwLock::new(pools),
            changes: Mutex::default(),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The pool of this name, and the way to its driver.
    pub fn get(&self, name: &PoolName) -> Option<(Arc<PoolRecord>, PoolHandle)> {
        let pools = self
            .inner
            .pools
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        pools
            .get(name)
            .map(|entry| (Arc::clone(&entry.record), entry.handle.clone()))
    }

    /// Every pool, by name.
    pub fn list(&self) -> Vec<Arc<PoolRecord>> {
        let pools = self
            .inner
            .pools
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        pools
            .values()
            .map(|entry| Arc::clone(&entry.record))
            .collect()
    }

    /// Makes the pool, or changes it. Runs to its end even if the caller goes away.
    pub async fn put(&self, pool: PoolRecord) -> Result<(Arc<PoolRecord>, Put), PoolChangeError> {
        let this = self.clone();
        let name = pool.name.clone();
        tokio::spawn(async move { this.put_now(pool).await })
            .await
            .unwrap_or(Err(PoolChangeError::Store {
                name,
                source: StoreError::Stopping,
            }))
    }

    /// Ends every session of the pool and forgets it. `false`: there is no such pool. Runs to its
    /// end even if the caller goes away.
    pub async fn delete(&self, name: PoolName) -> Result<bool, PoolChangeError> {
        let this = self.clone();
        let stopping = PoolChangeError::Store {
            name: name.clone(),
            source: StoreError::Stopping,
        };
        tokio::spawn(async move { this.delete_now(name).await })
            .await
            .unwrap_or(Err(stopping))
    }

    /// Ends every session of every pool; the pools stay in the store.
    pub async fn close(&self) {
        let handles: Vec<_> = {
            let pools = self
                .inner
                .pools
                .read()
                .unwrap_or_else(PoisonError::into_inner);
            pools.values().map(|entry| entry.handle.clone()).collect()
        };
        let closing: Vec<_> = handles
            .into_iter()
            .map(|handle| tokio::spawn(async move { handle.close().await }))
            .collect();
        for closed in closing {
            let _ = closed.await;
        }
    }

    async fn lock(&self, name: &PoolName) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut changes = self
                .inner
                .changes
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            // Whoever holds or awaits a lock has a reference to it.
            changes.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(changes.entry(name.clone()).or_default())
        };
        lock.lock_owned().await
    }

    async fn put_now(
        &self,
        mut pool: PoolRecord,
    ) -> Result<(Arc<PoolRecord>, Put), PoolChangeError> {
        let _changing = self.lock(&pool.name).await;
        let before = self.get(&pool.name);
        if let Some((before, _)) = &before {
            if !same_group(before, &pool) {
                return Err(PoolChangeError::NameInUse {
                    name: pool.name,
                    subscription: before.subscription.clone(),
                    resource_group: before.resource_group.clone(),
                });
            }
            pool.created_at_ms = before.created_at_ms;
            pool.modified_at_ms = unix_millis();
            if before.same_template(&pool) {
                pool.revision = before.revision;
            }
        }
        let record = Arc::new(pool);
        let stored = self.inner.tools.records.put_pool((*record).clone()).await;
        stored.map_err(|source| PoolChangeError::Store {
            name: record.name.clone(),
            source,
        })?;
        let (handle, put) = match before {
            Some((_, handle)) => {
                handle.update(Arc::clone(&record));
                (handle, Put::Updated)
            }
            None => (
                PoolHandle::start(Arc::clone(&record), self.inner.tools.clone()),
                Put::Created,
            ),
        };
        let entry = Entry {
            record: Arc::clone(&record),
            handle,
        };
        let mut pools = self
            .inner
            .pools
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        pools.insert(record.name.clone(), entry);
        Ok((record, put))
    }

    async fn delete_now(&self, name: PoolName) -> Result<bool, PoolChangeError> {
        let _changing = self.lock(&name).await;
        let Some((_, handle)) = self.get(&name) else {
            return Ok(false);
        };
        // Out of the store first: after a crash here the pool does not come back half deleted, and its
        // sessions are removed by the next start.
        let removed = self.inner.tools.records.remove_pool(name.clone()).await;
        removed.map_err(|source| PoolChangeError::Store {
            name: name.clone(),
            source,
        })?;
        {
            let mut pools = self
                .inner
                .pools
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            pools.remove(&name);
        }
        handle.close().await;
        Ok(true)
    }
}

fn same_group(one: &PoolRecord, other: &PoolRecord) -> bool {
    one.subscription.eq_ignore_ascii_case(&other.subscription)
        && one
            .resource_group
            .eq_ignore_ascii_case(&other.resource_group)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::testing::FakeLauncher;
    use crate::store::tests::{pool as record, session};

    #[tokio::test]
    async fn pools_come_back_from_the_store_and_sessions_of_an_earlier_run_do_not() {
        let tools = FakeLauncher::mute().tools();
        tools.records.put_pool(record("alpha")).await.unwrap();
        tools
            .records
            .put_session(session("alpha", "user-1"))
            .await
            .unwrap();
        let pools = Pools::open(tools.clone()).await.unwrap();
        assert_eq!(*pools.list()[0], record("alpha"));
        assert_eq!(tools.records.sessions().await.unwrap(), []);
    }

    #[tokio::test]
    async fn pool_made_again_while_the_old_one_ends_waits_for_its_end() {
        let launcher = FakeLauncher::mute();
        let pools = Pools::open(launcher.tools()).await.unwrap();
        pools.put(record("alpha")).await.unwrap();
        let old = pools.get(&record("alpha").name).unwrap().1;
        assert!(old.claim("user-1".parse().unwrap()).await.is_ok());
        launcher.hold_stops();
        let deleting = tokio::spawn({
            let pools = pools.clone();
            async move { pools.delete(record("alpha").name).await }
        });
        launcher.wait_stopping().await;
        let making = tokio::spawn({
            let pools = pools.clone();
            async move { pools.put(record("alpha")).await.map(|(_, put)| put) }
        });
        // Another pool does not wait.
        pools.put(record("beta")).await.unwrap();
        assert!(!making.is_finished() && pools.get(&record("alpha").name).is_none());
        launcher.release_stops();
        assert!(deleting.await.unwrap().unwrap());
        assert_eq!(making.await.unwrap().unwrap(), Put::Created);
        assert_eq!(launcher.alive(), 0);
    }

    #[tokio::test]
    async fn pool_that_is_not_there_is_not_deleted() {
        let pools = Pools::open(FakeLauncher::mute().tools()).await.unwrap();
        assert!(!pools.delete(record("alpha").name).await.unwrap());
    }
}
