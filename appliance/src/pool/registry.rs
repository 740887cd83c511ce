//! The pools of this appliance, by name.

mod drain;
mod needs;

pub use drain::Draining;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::budget::TooLarge;
use super::driver::Tools;
use super::handle::{Drain, PoolHandle};
use super::inherit::{Legacy, inherit};
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
    /// Only while the host is being emptied: the task that ends what is in use when its time has come.
    draining: Mutex<Option<AbortHandle>>,
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
    /// The host is too small for what it promises.
    #[error("The pool {name} does not fit this host: {source}")]
    TooLarge { name: PoolName, source: TooLarge },
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
    /// Reads the pools from the store and starts their drivers, with what an earlier appliance has left of them.
    pub async fn open(tools: Tools) -> Result<Self, StoreError> {
        let mut serving = serving(&tools).await?;
        let records = tools.records.pools().await?;
        let mut legacies = inherit(&tools, &records).await?;
        let inner = Inner {
            tools,
            pools: RwLock::default(),
            changes: Mutex::default(),
            pending: Mutex::default(),
            telling: tokio::sync::Mutex::default(),
            draining: Mutex::default(),
        };
        let pools = Self {
            inner: Arc::new(inner),
        };
        for record in records {
            let serving = serving.remove(&record.name);
            let legacies = legacies.remove(&record.name).unwrap_or_default();
            pools.start(Arc::new(record), serving.map(Arc::new), legacies);
        }
        pools.tell_launcher().await;
        Ok(pools)
    }

    /// Starts the driver of a pool, and a task that writes down which revision it serves.
    fn start(
        &self,
        record: Arc<PoolRecord>,
        serving: Option<Arc<PoolRecord>>,
        legacies: Vec<Legacy>,
    ) {
        let tools = self.inner.tools.clone();
        let handle = PoolHandle::start(Arc::clone(&record), serving, legacies, tools);
        let (name, mut active) = (record.name.clone(), handle.active());
        let entry = Entry { record, handle };
        self.insert(entry.clone());
        // Looked at when it is in the map: who begins to drain later finds it there.
        if self.lock_draining().is_some() {
            entry.handle.drain(Drain::Begin);
        }
        let inner = Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            while active.changed().await.is_ok() {
                let Some(inner) = inner.upgrade() else { return };
                Self { inner }.moved_over(&name, &active).await;
            }
        });
    }

    /// Claims of this pool get another revision than before.
    async fn moved_over(&self, name: &PoolName, active: &watch::Receiver<Arc<PoolRecord>>) {
        {
            let _changing = self.lock(name).await;
            // Deleted, or made again, meanwhile?
            let same = |handle: &PoolHandle| handle.active().same_channel(active);
            let Some((record, _)) = self.get(name).filter(|(_, handle)| same(handle)) else {
                return;
            };
            let active = Arc::clone(&active.borrow());
            if let Err(error) = self.record_serving(&record, &active).await {
                // The next start warms the new revision up once more.
                let error: &dyn std::error::Error = &error;
                tracing::error!(pool = %name, error, "it could not be recorded which revision serves");
            }
        }
        self.tell_launcher().await;
    }

    /// Writes what serves while it is not what `record` says.
    async fn record_serving(
        &self,
        record: &PoolRecord,
        active: &PoolRecord,
    ) -> Result<(), StoreError> {
        let records = &self.inner.tools.records;
        if active.revision == record.revision {
            records.remove_serving(record.name.clone()).await
        } else {
            records.put_serving(active.clone()).await
        }
    }

    fn insert(&self, entry: Entry) {
        let mut pools = self
            .inner
            .pools
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        pools.insert(entry.record.name.clone(), entry);
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
    #[cfg(test)]
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
        self.of_all(|handle| async move { handle.close().await })
            .await;
    }

    /// Leaves every slot and session to the appliance that comes next, and writes down when they were used. From then on nobody is answered.
    pub async fn detach(&self) {
        self.of_all(|handle| async move { handle.detach().await })
            .await;
        self.inner.tools.uses.write().await;
    }

    fn handles(&self) -> Vec<PoolHandle> {
        let pools = self
            .inner
            .pools
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        pools.values().map(|entry| entry.handle.clone()).collect()
    }

    /// Does something with every pool, with all at once.
    async fn of_all<F>(&self, what: impl Fn(PoolHandle) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let all: Vec<_> = self
            .handles()
            .into_iter()
            .map(|it| tokio::spawn(what(it)))
            .collect();
        for one in all {
            let _ = one.await;
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
        if let Some((before, handle)) = &before {
            let active = Arc::clone(&handle.active().borrow());
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
            } else if active.same_template(&pool) {
                // A change is taken back before it was done.
                pool.revision = active.revision;
            }
        }
        let record = Arc::new(pool);
        self.prepare(&record).await?;
        let handle = before.map(|(_, handle)| handle);
        let stored = self.store(&record, handle.as_ref()).await;
        stored.map_err(|source| PoolChangeError::Store {
            name: record.name.clone(),
            source,
        })?;
        let put = match handle {
            Some(handle) => {
                handle.update(Arc::clone(&record));
                self.insert(Entry {
                    record: Arc::clone(&record),
                    handle,
                });
                Put::Updated
            }
            None => {
                self.start(Arc::clone(&record), None, Vec::new());
                Put::Created
            }
        };
        self.tell_launcher().await;
        Ok((record, put))
    }

    /// Writes a pool. What serves until the new record does is written first: after a crash in between
    /// the two are the same.
    async fn store(
        &self,
        record: &PoolRecord,
        handle: Option<&PoolHandle>,
    ) -> Result<(), StoreError> {
        let records = &self.inner.tools.records;
        let active = handle.map(|handle| Arc::clone(&handle.active().borrow()));
        match active.filter(|active| active.revision != record.revision) {
            Some(active) => {
                records.put_serving((*active).clone()).await?;
                records.put_pool(record.clone()).await
            }
            None => {
                records.put_pool(record.clone()).await?;
                records.remove_serving(record.name.clone()).await
            }
        }
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
        {
            let mut all = self.lock_pending();
            self.admit_beside(record, &all)?;
            all.insert(name.clone(), pending);
        }
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

    /// Whether the host has room for what this pool promises, as things are now.
    pub fn admit(&self, record: &PoolRecord) -> Result<(), PoolChangeError> {
        self.admit_beside(record, &self.lock_pending())
    }

    fn admit_beside(
        &self,
        record: &PoolRecord,
        pending: &HashMap<PoolName, Pending>,
    ) -> Result<(), PoolChangeError> {
        let changing = pending.values().map(|pending| Arc::clone(&pending.record));
        let others = self.list().into_iter().chain(changing);
        let others = others.map(|other| (other.name.clone(), other));
        let mut others: BTreeMap<_, _> = others.collect();
        others.remove(&record.name);
        let others: Vec<_> = others.into_values().collect();
        let admitted = self.inner.tools.budget.admit(record, &others);
        admitted.map_err(|source| PoolChangeError::TooLarge {
            name: record.name.clone(),
            source,
        })
    }

    fn lock_pending(&self) -> MutexGuard<'_, HashMap<PoolName, Pending>> {
        self.inner
            .pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    async fn tell_launcher(&self) {
        let _telling = self.inner.telling.lock().await;
        // What serves, and what is to serve.
        let entries: Vec<_> = {
            let pools = self
                .inner
                .pools
                .read()
                .unwrap_or_else(PoisonError::into_inner);
            pools.values().cloned().collect()
        };
        let mut pools = Vec::with_capacity(entries.len());
        for Entry { record, handle } in entries {
            let active = Arc::clone(&handle.active().borrow());
            let changing = active.revision != record.revision;
            pools.push(record);
            pools.extend(changing.then_some(active));
        }
        self.inner.tools.launcher.pools_changed(pools).await;
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
        let records = &self.inner.tools.records;
        let removed = match records.remove_serving(name.clone()).await {
            Ok(()) => records.remove_pool(name.clone()).await,
            Err(error) => Err(error),
        };
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

/// What pools serve that have a newer record of their own.
async fn serving(tools: &Tools) -> Result<HashMap<PoolName, PoolRecord>, StoreError> {
    let serving = tools.records.serving().await?;
    Ok(serving
        .into_iter()
        .map(|record| (record.name.clone(), record))
        .collect())
}

fn same_group(one: &PoolRecord, other: &PoolRecord) -> bool {
    one.subscription.eq_ignore_ascii_case(&other.subscription)
        && one
            .resource_group
            .eq_ignore_ascii_case(&other.resource_group)
}

#[cfg(test)]
#[path = "restart_tests.rs"]
mod restart_tests;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use uuid::Uuid;

    use super::*;
    use crate::pool::Denied;
    use crate::pool::budget::{Budget, Size};
    use crate::pool::testing::{FakeLauncher, Plan};
    use crate::store::tests::pool as record;

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

    /// Waits until no slot of any pool is in use.
    async fn emptied(pools: &Pools) {
        while pools.draining().await.slots_in_use > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn drained_host_begins_nothing_in_old_and_new_pools_until_it_is_told_to() {
        let launcher = FakeLauncher::mute();
        let pools = Pools::open(launcher.tools()).await.unwrap();
        pools.put(record("alpha")).await.unwrap();
        let alpha = pools.get(&record("alpha").name).unwrap().1;
        let lease = alpha.claim("user-1".parse().unwrap()).await.ok().unwrap();
        pools.drain(Duration::from_secs(60));
        pools.put(record("beta")).await.unwrap();
        let beta = pools.get(&record("beta").name).unwrap().1;
        for pool in [&alpha, &beta] {
            let denied = pool.claim("user-2".parse().unwrap()).await.err();
            assert_eq!(denied, Some(Denied::Draining));
        }
        tokio::time::sleep(Duration::from_secs(59)).await;
        let busy = Draining {
            is_on: true,
            slots_in_use: 1,
        };
        assert_eq!(pools.draining().await, busy);
        drop(lease);
        emptied(&pools).await;
        assert_eq!(launcher.alive(), 0);
        pools.end_drain();
        assert!(!pools.draining().await.is_on);
        assert!(beta.claim("user-2".parse().unwrap()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn session_in_use_ends_when_the_time_of_the_drain_is_up_unless_it_was_cancelled() {
        let launcher = FakeLauncher::mute();
        let pools = Pools::open(launcher.tools()).await.unwrap();
        pools.put(record("alpha")).await.unwrap();
        let alpha = pools.get(&record("alpha").name).unwrap().1;
        let _lease = alpha.claim("user-1".parse().unwrap()).await.ok().unwrap();
        pools.drain(Duration::from_secs(60));
        pools.end_drain();
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert_eq!(launcher.alive(), 1);
        // Said again, the last time holds.
        pools.drain(Duration::from_secs(600));
        pools.drain(Duration::from_secs(60));
        tokio::time::sleep(Duration::from_secs(59)).await;
        assert_eq!(launcher.alive(), 1);
        tokio::time::sleep(Duration::from_secs(2)).await;
        launcher.wait_alive(0).await;
    }

    #[tokio::test]
    async fn pool_that_is_not_there_is_not_deleted() {
        let pools = Pools::open(FakeLauncher::mute().tools()).await.unwrap();
        assert!(!pools.delete(record("alpha").name).await.unwrap());
    }

    const ONE: Uuid = Uuid::from_u128(7);
    const TWO: Uuid = Uuid::from_u128(8);

    /// Alpha with another template.
    fn changed() -> PoolRecord {
        PoolRecord {
            revision: TWO,
            args: vec!["--quiet".into()],
            ..record("alpha")
        }
    }

    fn active(pools: &Pools) -> watch::Receiver<Arc<PoolRecord>> {
        pools.get(&record("alpha").name).unwrap().1.active()
    }

    /// Waits until claims get this revision, and everything that follows from it is done.
    async fn moved_over(pools: &Pools, launcher: &FakeLauncher, revision: Uuid) {
        let mut active = active(pools);
        let moved = active.wait_for(|active| active.revision == revision);
        tokio::time::timeout(Duration::from_secs(30), moved)
            .await
            .expect("it does not come up")
            .unwrap();
        let told = async {
            while launcher.told().last().is_none_or(|told| told.len() != 1) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), told)
            .await
            .expect("the launcher is not told");
    }

    #[tokio::test]
    async fn revision_that_serves_while_another_warms_survives_a_restart() {
        let launcher = FakeLauncher::mute();
        launcher.plan_for(TWO, Plan::Silent);
        let pools = Pools::open(launcher.tools()).await.unwrap();
        pools.put(record("alpha")).await.unwrap();
        pools.put(changed()).await.unwrap();
        assert_eq!(active(&pools).borrow().revision, ONE);
        assert_eq!(pools.list()[0].revision, TWO);
        // What both are started from is needed.
        assert_eq!(launcher.told().pop().unwrap(), ["alpha", "alpha"]);
        pools.close().await;

        let pools = Pools::open(launcher.tools()).await.unwrap();
        assert_eq!(active(&pools).borrow().args, record("alpha").args);
        pools.close().await;

        launcher.plan_for(TWO, Plan::Ready);
        let pools = Pools::open(launcher.tools()).await.unwrap();
        moved_over(&pools, &launcher, TWO).await;
        assert_eq!(launcher.tools().records.serving().await.unwrap(), []);
        pools.close().await;
        let pools = Pools::open(launcher.tools()).await.unwrap();
        assert_eq!(active(&pools).borrow().revision, TWO);
    }

    #[tokio::test]
    async fn change_that_is_taken_back_before_it_serves_leaves_the_revision_that_does() {
        let launcher = FakeLauncher::mute();
        launcher.plan_for(TWO, Plan::Silent);
        let pools = Pools::open(launcher.tools()).await.unwrap();
        pools.put(record("alpha")).await.unwrap();
        pools.put(changed()).await.unwrap();
        let again = PoolRecord {
            revision: Uuid::from_u128(9),
            max_sessions: 3,
            ..record("alpha")
        };
        let (record, _) = pools.put(again).await.unwrap();
        assert_eq!((record.revision, record.max_sessions), (ONE, 3));
        assert_eq!(launcher.tools().records.serving().await.unwrap(), []);
        launcher.wait_alive(0).await;
    }

    #[tokio::test]
    async fn pool_that_is_deleted_while_it_changes_leaves_nothing_in_the_store() {
        let launcher = FakeLauncher::mute();
        launcher.plan_for(TWO, Plan::Silent);
        let pools = Pools::open(launcher.tools()).await.unwrap();
        pools.put(record("alpha")).await.unwrap();
        pools.put(changed()).await.unwrap();
        assert!(pools.delete(record("alpha").name).await.unwrap());
        let records = launcher.tools().records;
        assert_eq!(records.serving().await.unwrap(), []);
        assert_eq!(records.pools().await.unwrap(), []);
        assert_eq!(launcher.alive(), 0);
    }

    #[tokio::test]
    async fn pools_that_promise_more_than_the_host_has_are_refused_before_anything_is_prepared() {
        let launcher = FakeLauncher::mute();
        // Four sessions of the record's size.
        launcher.budget(Budget::new(Size {
            mem_mib: 4 * 528,
            cpu_millis: 1 << 20,
        }));
        let pools = Pools::open(launcher.tools()).await.unwrap();
        let pool = |name, max_sessions, ready_sessions| PoolRecord {
            max_sessions,
            ready_sessions,
            ..record(name)
        };
        pools.put(pool("alpha", 4, 3)).await.unwrap();
        let property = async |pool| match pools.put(pool).await {
            Err(PoolChangeError::TooLarge { source, .. }) => source.property,
            other => panic!("{other:?}"),
        };
        let max = property(pool("beta", 5, 0)).await;
        assert!(max.ends_with("maxConcurrentSessions"), "{max}");
        let ready = property(pool("beta", 4, 2)).await;
        assert!(ready.ends_with("readySessionInstances"), "{ready}");
        // One that is being prepared counts too.
        let making = launcher
            .put_while_preparing(&pools, pool("gamma", 4, 1))
            .await;
        assert!(
            property(pool("beta", 4, 1))
                .await
                .ends_with("readySessionInstances")
        );
        launcher.prepared(Ok(()));
        making.await.unwrap().unwrap();
        // Its own old promise does not count against a changed pool.
        pools.put(pool("alpha", 4, 2)).await.unwrap();
        pools.put(pool("beta", 4, 1)).await.unwrap();
    }
}
