//! What becomes of goldens when their image goes.

use std::sync::Arc;

use super::{Golden, Goldens};
use crate::exit::chain;

/// What was removed with an image.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Forgotten {
    pub goldens: usize,
    /// What they took on the disk.
    pub bytes: u64,
    /// Why others are still there, one line each.
    pub kept: Vec<String>,
}

impl Goldens {
    /// How many goldens of this image no pool forks from, and what they take on the disk.
    pub fn unused_of(&self, image_digest: &str) -> (usize, u64) {
        let unused = self.of_image(image_digest);
        (unused.len(), unused.iter().map(|it| bytes(it)).sum())
    }

    /// Removes the goldens of this image that no pool forks from.
    pub async fn forget_image(&self, image_digest: &str) -> Forgotten {
        let mut forgotten = Forgotten::default();
        for golden in self.of_image(image_digest) {
            let (key, bytes) = (golden.key.clone(), bytes(&golden));
            let store = self.inner.builder.store.clone();
            let removed = tokio::task::spawn_blocking(move || store.remove(&golden)).await;
            match removed {
                Ok(Ok(true)) => {
                    tracing::info!(%key, "golden of a removed image is removed");
                    forgotten.goldens += 1;
                    forgotten.bytes += bytes;
                }
                Ok(Ok(false)) => {}
                Ok(Err(error)) => forgotten
                    .kept
                    .push(format!("Golden {key}: {}", chain(&error))),
                Err(_) => forgotten
                    .kept
                    .push(format!("Golden {key}: its removal was lost")),
            }
        }
        forgotten
    }

    fn of_image(&self, image_digest: &str) -> Vec<Arc<Golden>> {
        let state = self.state();
        let mut goldens = self.inner.builder.store.list();
        goldens.retain(|golden| {
            golden.about.manifest.template.root_image == image_digest
                && !state.wanted.contains_key(&golden.key)
        });
        goldens
    }
}

fn bytes(golden: &Golden) -> u64 {
    golden.memory_bytes + golden.disk_bytes
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Works, pool};
    use crate::store::PoolRecord;

    #[tokio::test]
    async fn goldens_of_an_image_go_with_it_unless_a_pool_forks_from_them() {
        let works = Works::open();
        let (wanted, unused) = (
            pool("alpha"),
            PoolRecord {
                mem_mib: 65,
                ..pool("beta")
            },
        );
        let other = PoolRecord {
            image_digest: "sha256:other".into(),
            ..pool("gamma")
        };
        for pool in [&wanted, &unused, &other] {
            works.goldens.ensure(works.recipe(pool)).await.unwrap();
        }
        let pools = vec![std::sync::Arc::new(wanted.clone())];
        works.goldens.pools_changed(pools).await;
        let digest = &wanted.image_digest;
        let (count, bytes) = works.goldens.unused_of(digest);
        let forgotten = works.goldens.forget_image(digest).await;
        assert_eq!((forgotten.goldens, forgotten.bytes), (count, bytes));
        assert_eq!((count, forgotten.kept), (1, Vec::new()));
        let has = |pool| works.goldens.find(&works.recipe(pool)).is_some();
        assert!(has(&wanted) && has(&other) && !has(&unused));
        assert_eq!(works.names().len(), 2);
        assert_eq!(works.goldens.unused_of(digest), (0, 0));
    }
}
