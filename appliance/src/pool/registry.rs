//! The pools of this appliance, by name.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use tokio::sync::watch;

use super::driver::{PoolHandle, Tools};
use super::launcher::PrepareFailure;
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
    /// Pools that are being prepared. Only who holds the lock of a name has an entry.
    pending: Mutex<HashMap<PoolName, Pending>>,
    /// Held while the launcher is told which pools there are, so that it hears it in order.
    telling: tokio::sync::Mutex<()>,
}

struct Pending {
    record: Arc<PoolRecord>,
    withdrawn: watch::Sender<bool>,
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
    /// Sessions of it could not be started.
    #[error("Sessions of the pool {name} could not be started")]
    NotPrepared {
        name: PoolName,
        failure: PrepareFailure,
    },
    /// It was deleted before it was ready.
    #[error("The pool {name} is being deleted")]
    Withdrawn { name: PoolName },
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
            pending: Mutex::default(),
            telling: tokio::sync::Mutex::default(),
        };
        let pools = Self {
            inner: Arc::new(inner),
        };
        pools.tell_launcher().await;
        Ok(pools)
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

    /// The pool of this name that is being prepared, to be made or changed.
    pub fn pending(&self, name: &PoolName) -> Option<Arc<PoolRecord>> {
        let pending = self.lock_pending();
        pending.get(name).map(|pending| Arc::clone(&pending.record))
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

    /// Makes the pool, or changes it, once its sessions can be started; until then a pool that is
    /// changed goes on as it is. Runs to its end even if the caller goes away.
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

    /// Ends every session of the pool and forgets it; a change that is being prepared is given up.
    /// `false`: there is no such pool. Runs to its end even if the caller goes away.
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
        self.prepare(&record).await?;
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
        {
            let mut pools = self
                .inner
                .pools
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            pools.insert(record.name.clone(), entry);
        }
        self.tell_launcher().await;
        Ok((record, put))
    }

    /// Waits until sessions of this pool can be started, unless it is deleted before.
    async fn prepare(&self, record: &Arc<PoolRecord>) -> Result<(), PoolChangeError> {
        let name = &record.name;
        let withdrawn = watch::Sender::new(false);
        let mut is_withdrawn = withdrawn.subscribe();
        let pending = Pending {
            record: Arc::clone(record),
            withdrawn,
        };
        self.lock_pending().insert(name.clone(), pending);
        let prepared = tokio::select! {
            prepared = self.inner.tools.launcher.prepare(Arc::clone(record)) => {
                prepared.map_err(|failure| PoolChangeError::NotPrepared {
                    name: name.clone(),
                    failure,
                })
            }
            _ = is_withdrawn.wait_for(|withdrawn| *withdrawn) => {
                Err(PoolChangeError::Withdrawn { name: name.clone() })
            }
        };
        self.lock_pending().remove(name);
        prepared
    }

    fn lock_pending(&self) -> MutexGuard<'_, HashMap<PoolName, Pending>> {
        self.inner
            .pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    async fn tell_launcher(&self) {
        let _telling = self.inner.telling.lock().await;
        self.inner.tools.launcher.pools_changed(self.list()).await;
    }

    async fn delete_now(&self, name: PoolName) -> Result<bool, PoolChangeError> {
        let withdrawn = match self.lock_pending().get(&name) {
            Some(pending) => pending.withdrawn.send(true).is_ok(),
            None => false,
        };
        let _changing = self.lock(&name).await;
        let Some((_, handle)) = self.get(&name) else {
            return Ok(withdrawn);
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
        self.tell_launcher().await;
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
    async fn pool_is_made_when_its_sessions_can_be_started_and_not_before() {
        let launcher = FakeLauncher::mute();
        let pools = Pools::open(launcher.tools()).await.unwrap();
        let making = launcher.put_while_preparing(&pools, record("alpha")).await;
        assert!(pools.get(&record("alpha").name).is_none());
        assert_eq!(
            *pools.pending(&record("alpha").name).unwrap(),
            record("alpha")
        );
        launcher.prepared(Ok(()));
        assert_eq!(making.await.unwrap().unwrap().1, Put::Created);
        assert!(pools.pending(&record("alpha").name).is_none());
        assert_eq!(launcher.told(), [vec![], vec!["alpha".to_owned()]]);
    }

    #[tokio::test]
    async fn pool_whose_sessions_cannot_be_started_is_not_made_and_not_changed() {
        let launcher = FakeLauncher::mute();
        let pools = Pools::open(launcher.tools()).await.unwrap();
        let failure = PrepareFailure::Host {
            message: "no disk".into(),
        };
        let making = launcher.put_while_preparing(&pools, record("alpha")).await;
        launcher.prepared(Err(failure.clone()));
        let error = making.await.unwrap().unwrap_err();
        assert!(matches!(error, PoolChangeError::NotPrepared { failure: f, .. } if f == failure));
        assert!(pools.list().is_empty());
        assert_eq!(launcher.stored().await, []);

        let making = launcher.put_while_preparing(&pools, record("alpha")).await;
        launcher.prepared(Ok(()));
        making.await.unwrap().unwrap();
        let larger = PoolRecord {
            mem_mib: 1024,
            ..record("alpha")
        };
        let changing = launcher.put_while_preparing(&pools, larger).await;
        // Sessions go on from what is there.
        let handle = pools.get(&record("alpha").name).unwrap().1;
        assert!(handle.claim("user-1".parse().unwrap()).await.is_ok());
        launcher.prepared(Err(failure));
        changing.await.unwrap().unwrap_err();
        assert_eq!(*pools.list()[0], record("alpha"));
    }

    #[tokio::test]
    async fn pool_that_is_deleted_while_it_is_prepared_is_gone_at_once() {
        let launcher = FakeLauncher::mute();
        let pools = Pools::open(launcher.tools()).await.unwrap();
        let making = launcher.put_while_preparing(&pools, record("alpha")).await;
        assert!(pools.delete(record("alpha").name).await.unwrap());
        let error = making.await.unwrap().unwrap_err();
        assert!(
            matches!(error, PoolChangeError::Withdrawn { .. }),
            "{error}"
        );
        assert!(pools.list().is_empty());

        // The same for one that is there and being changed.
        let making = launcher.put_while_preparing(&pools, record("alpha")).await;
        launcher.prepared(Ok(()));
        making.await.unwrap().unwrap();
        let changing = launcher.put_while_preparing(&pools, record("alpha")).await;
        assert!(pools.delete(record("alpha").name).await.unwrap());
        changing.await.unwrap().unwrap_err();
        assert!(pools.list().is_empty());
    }

    #[tokio::test]
    async fn caller_that_hangs_up_while_a_pool_is_prepared_does_not_stop_it() {
        let launcher = FakeLauncher::mute();
        let pools = Pools::open(launcher.tools()).await.unwrap();
        let making = launcher.put_while_preparing(&pools, record("alpha")).await;
        making.abort();
        assert!(making.await.unwrap_err().is_cancelled());
        launcher.prepared(Ok(()));
        // Whoever changes the pool next waits for the first change.
        pools.delete(record("alpha").name).await.unwrap();
        assert_eq!(launcher.told().len(), 3);
    }

    #[tokio::test]
    async fn pool_that_is_not_there_is_not_deleted() {
        let pools = Pools::open(FakeLauncher::mute().tools()).await.unwrap();
        assert!(!pools.delete(record("alpha").name).await.unwrap());
    }
}
