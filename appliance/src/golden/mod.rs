//! Goldens: the snapshots that sessions are forked from.
//!
//! ```text
//! pool ── recipe ──▶ Goldens ── find ──▶ store ──▶ a fork, at once
//!                       └──── ensure ──▶ builder ──▶ machine (a worker) ──▶ store
//! ```
//!
//! A pool is made when its golden is there, so that its first session is a fork already. Pools of the
//! same image and shape share one, unless the container runs in it. [`Goldens`] decides what is
//! built when, once for everybody who waits for it; the builder makes one; the store keeps them.
//!
//! Without a golden (after an upgrade, or when one was set aside because a fork of it failed)
//! sessions boot, and the golden is made anew in the background: at once the first time, and then
//! after longer and longer pauses.
//!
//! # Not here
//! Ready sessions that wait for a caller.

mod build_id;
mod builder;
mod files;
mod images;
mod launcher;
mod machine;
mod manifest;
mod recipe;
mod store;

#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;

pub use builder::{Builder, GoldenError};
pub use launcher::HostLauncher;
pub use manifest::{Host, sha256};
pub use recipe::{Kitchen, defaults};
pub use store::{Golden, Store};

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use self::manifest::Key;
use self::recipe::{Recipe, Recipes};
use crate::pool::PoolName;
use crate::store::PoolRecord;

/// Builds at the same time. Each one boots a guest at full speed beside the sessions that run.
const BUILDS: usize = 2;
/// Goldens without a pool that are kept: a pool that is changed back, or made again, has its golden.
const KEPT_UNUSED: usize = 4;
/// The pause after the first failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);
/// A golden that failed so long ago has a clean record.
const FORGIVEN_AFTER: Duration = Duration::from_secs(4 * 3600);

type Built = Result<(), Arc<GoldenError>>;

/// All goldens of this appliance. Cheap to clone.
#[derive(Clone)]
pub struct Goldens {
    inner: Arc<Inner>,
}

struct Inner {
    builder: Builder,
    recipes: Arc<dyn Recipes>,
    permits: Semaphore,
    state: Mutex<State>,
    closing: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    /// What is being built, and where its outcome will be told.
    builds: HashMap<Key, watch::Receiver<Option<Built>>>,
    /// The pools that fork from a golden.
    wanted: HashMap<Key, Vec<Arc<PoolRecord>>>,
    /// Goldens that a task of their own brings back.
    repairs: HashSet<Key>,
    strikes: HashMap<Key, Strikes>,
}

/// How often a golden could not be made, or not be forked.
#[derive(Debug, Clone, Copy)]
struct Strikes {
    count: u32,
    last: Instant,
}

/// A golden, for people.
#[derive(Debug, Clone)]
pub struct Summary {
    pub golden: Arc<Golden>,
    pub pools: Vec<PoolName>,
}

impl Goldens {
    pub fn new(builder: Builder, recipes: Arc<dyn Recipes>) -> Self {
        Self {
            inner: Arc::new(Inner {
                builder,
                recipes,
                permits: Semaphore::new(BUILDS),
                state: Mutex::default(),
                closing: watch::Sender::new(false),
            }),
        }
    }

    /// What sessions of this pool are made from.
    pub fn recipe(&self, pool: &PoolRecord) -> Result<Recipe, String> {
        self.inner.recipes.recipe(pool)
    }

    /// The golden of this recipe, if it is there.
    pub fn find(&self, recipe: &Recipe) -> Option<Arc<Golden>> {
        self.inner.builder.store.get(&recipe.manifest)
    }

    /// Returns when the golden is there, or why it cannot be. It is built once for all who ask at the
    /// same time, and to its end even if all of them go away.
    pub async fn ensure(&self, recipe: Recipe) -> Built {
        let Some(mut outcome) = self.built(recipe) else {
            return Ok(());
        };
        let lost = || Err(Arc::new(GoldenError::Lost));
        match outcome.wait_for(Option::is_some).await {
            Ok(built) => built.clone().unwrap_or_else(lost),
            Err(_) => lost(),
        }
    }

    /// Where the outcome of the build will be told; `None` when the golden is there already.
    fn built(&self, recipe: Recipe) -> Option<watch::Receiver<Option<Built>>> {
        let key = recipe.manifest.key();
        let mut state = self.state();
        if self.find(&recipe).is_some() {
            return None;
        }
        // A build whose sender is gone died without a word.
        let running = state.builds.get(&key);
        if let Some(outcome) = running.filter(|outcome| outcome.has_changed().is_ok()) {
            return Some(outcome.clone());
        }
        let (tell, outcome) = watch::channel(None);
        state.builds.insert(key, outcome.clone());
        drop(state);
        tokio::spawn(self.clone().build(recipe, tell));
        Some(outcome)
    }

    async fn build(self, recipe: Recipe, tell: watch::Sender<Option<Built>>) {
        let key = recipe.manifest.key();
        let mut closing = self.inner.closing.subscribe();
        let building = async {
            let _permit = self.inner.permits.acquire().await;
            self.inner.builder.build(recipe).await
        };
        let built = tokio::select! {
            biased;
            _ = closing.wait_for(|closing| *closing) => Err(GoldenError::Stopping),
            built = building => built.map(drop),
        };
        // The store has it by now, so nobody who asks in between starts a second build.
        self.state().builds.remove(&key);
        let made = built.is_ok();
        let _ = tell.send(Some(built.map_err(Arc::new)));
        // The pool that it was made for may be gone.
        if made {
            self.collect_garbage().await;
        }
    }

    /// Takes a golden that could not be forked out of use and has it made anew. Others may have done so
    /// already.
    pub async fn set_aside(&self, golden: &Arc<Golden>, why: &str) {
        // At the end of the appliance guests die for no reason of their own.
        if *self.inner.closing.borrow() {
            return;
        }
        let (store, broken) = (self.inner.builder.store.clone(), Arc::clone(golden));
        let removed = tokio::task::spawn_blocking(move || store.remove(&broken)).await;
        let key = &golden.key;
        match removed {
            Ok(Ok(false)) => return,
            Ok(Ok(true)) => tracing::warn!(%key, why, "golden is set aside"),
            Ok(Err(error)) => {
                let error: &dyn std::error::Error = &error;
                tracing::error!(%key, why, error, "golden is set aside and cannot be removed");
            }
            Err(_) => return,
        }
        let pause = self.strike(key, |count| pause(count - 1));
        self.repair(key, pause);
    }

    /// Tells which pools there are now. Goldens that no pool needs go, except for the last few; those
    /// that are missing are made in the background.
    pub async fn pools_changed(&self, pools: Vec<Arc<PoolRecord>>) {
        let mut wanted: HashMap<Key, Vec<Arc<PoolRecord>>> = HashMap::new();
        for pool in pools {
            match self.recipe(&pool) {
                Ok(recipe) => wanted.entry(recipe.manifest.key()).or_default().push(pool),
                Err(why) => tracing::warn!(pool = %pool.name, why, "pool has no golden"),
            }
        }
        let store = &self.inner.builder.store;
        let mut used = store.list();
        let missing: Vec<Key> = {
            let mut state = self.state();
            let before = std::mem::replace(&mut state.wanted, wanted);
            let wanted = &state.wanted;
            used.retain(|it| before.contains_key(&it.key) || wanted.contains_key(&it.key));
            let missing = wanted.keys().filter(|key| !store.has(key));
            let missing = missing.cloned().collect();
            let State {
                wanted, strikes, ..
            } = &mut *state;
            strikes.retain(|key, _| wanted.contains_key(key));
            missing
        };
        let touched = tokio::task::spawn_blocking(move || used.iter().for_each(|it| it.touch()));
        let _ = touched.await;
        for key in missing {
            self.repair(&key, Duration::ZERO);
        }
        self.collect_garbage().await;
    }

    async fn collect_garbage(&self) {
        let mut unused = {
            let state = self.state();
            let mut goldens = self.inner.builder.store.list();
            goldens.retain(|golden| !state.wanted.contains_key(&golden.key));
            goldens
        };
        unused.sort_by_key(|golden| std::cmp::Reverse(golden.last_used()));
        for golden in unused.into_iter().skip(KEPT_UNUSED) {
            let key = golden.key.clone();
            let store = self.inner.builder.store.clone();
            match tokio::task::spawn_blocking(move || store.remove(&golden)).await {
                Ok(Ok(_)) => tracing::info!(%key, "golden that no pool needs is removed"),
                Ok(Err(error)) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(%key, error, "golden that no pool needs cannot be removed");
                }
                Err(_) => return,
            }
        }
    }

    /// Every golden, and which pools fork from it.
    pub fn list(&self) -> Vec<Summary> {
        let state = self.state();
        let goldens = self.inner.builder.store.list();
        let summary = |golden: Arc<Golden>| {
            let pools = state.wanted.get(&golden.key).into_iter().flatten();
            let mut pools: Vec<_> = pools.map(|pool| pool.name.clone()).collect();
            // One that is being changed is there with two revisions.
            pools.dedup();
            Summary { golden, pools }
        };
        goldens.into_iter().map(summary).collect()
    }

    /// Ends what is being built, and begins nothing more.
    pub fn close(&self) {
        self.inner.closing.send_replace(true);
    }

    /// Brings a golden back as long as a pool wants it, in a task of its own.
    fn repair(&self, key: &Key, pause: Duration) {
        if !self.state().repairs.insert(key.clone()) {
            return;
        }
        let (this, key) = (self.clone(), key.clone());
        tokio::spawn(async move {
            let mut closing = this.inner.closing.subscribe();
            tokio::select! {
                () = this.keep_trying(&key, pause) => {}
                _ = closing.wait_for(|closing| *closing) => return,
            }
            let missing = {
                let mut state = this.state();
                state.repairs.remove(&key);
                state.wanted.contains_key(&key) && !this.inner.builder.store.has(&key)
            };
            // Set aside again before this task had ended.
            if missing {
                this.repair(&key, FIRST_PAUSE);
            }
        });
    }

    async fn keep_trying(&self, key: &Key, mut pause: Duration) {
        loop {
            tokio::time::sleep(pause).await;
            let pool = {
                let state = self.state();
                let pools = state.wanted.get(key);
                pools.and_then(|pools| pools.first()).cloned()
            };
            let Some(pool) = pool else { return };
            let why = match self.recipe(&pool) {
                Ok(recipe) => match self.ensure(recipe).await {
                    Ok(()) => return,
                    Err(error) => crate::exit::chain(&*error),
                },
                Err(why) => why,
            };
            pause = self.strike(key, self::pause);
            let retry_seconds = pause.as_secs();
            tracing::error!(%key, pool = %pool.name, why, retry_seconds, "golden could not be made; sessions boot until it is");
        }
    }

    /// Counts a failure and says how long to wait after it.
    fn strike(&self, key: &Key, pause: impl FnOnce(u32) -> Duration) -> Duration {
        let now = Instant::now();
        let mut state = self.state();
        let first = Strikes {
            count: 0,
            last: now,
        };
        let strikes = state.strikes.entry(key.clone()).or_insert(first);
        if now - strikes.last > FORGIVEN_AFTER {
            strikes.count = 0;
        }
        strikes.count = strikes.count.saturating_add(1);
        strikes.last = now;
        pause(strikes.count)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long to wait after so many failures.
fn pause(failures: u32) -> Duration {
    match failures {
        0 => Duration::ZERO,
        count => FIRST_PAUSE
            .saturating_mul(1 << (count - 1).min(16))
            .min(LONGEST_PAUSE),
    }
}
