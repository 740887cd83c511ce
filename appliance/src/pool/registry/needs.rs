//! Which images the pools need.

use std::collections::{BTreeMap, BTreeSet};

use super::Pools;
use crate::pool::PoolName;

impl Pools {
    /// The images that pools need, and for whom: those of the revisions that serve, that are to serve and that have a slot or a
    /// session, and of pools that are being prepared. Between that and its first record a pool is nowhere: whoever puts or deletes
    /// one holds its image meanwhile.
    pub async fn images(&self) -> BTreeMap<String, BTreeSet<PoolName>> {
        let mut records: Vec<_> = {
            let pending = self.lock_pending();
            let pending = pending.values().map(|it| it.record.clone());
            pending.collect()
        };
        let pools = self.list();
        let handles = self.handles();
        records.extend(pools);
        for handle in handles {
            records.extend(handle.records().await);
        }
        let mut images = BTreeMap::<_, BTreeSet<_>>::new();
        for record in records {
            let pools = images.entry(record.image_digest.clone()).or_default();
            pools.insert(record.name.clone());
        }
        images
    }
}
