//! Which images go and which stay, with real pools, goldens and files.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;

use super::*;
use crate::golden::testing::{Works, pool};
use crate::images::testing::report;
use crate::pool::testing::FakeLauncher;
use crate::store::PoolRecord;

struct House {
    cache: Cache,
    pools: Pools,
    works: Works,
    keeping: Housekeeping,
    folder: tempfile::TempDir,
}

impl House {
    async fn open() -> Self {
        Self::open_in(tempfile::tempdir().unwrap()).await
    }

    async fn open_in(folder: tempfile::TempDir) -> Self {
        let cache = Cache::open(folder.path()).unwrap();
        let launcher = FakeLauncher::mute();
        let pools = Pools::open(launcher.tools()).await.unwrap();
        let works = Works::open();
        let keeping = Housekeeping::new(cache.clone(), pools.clone(), works.goldens.clone());
        Self {
            cache,
            pools,
            works,
            keeping,
            folder,
        }
    }

    /// An image of this name and as many bytes.
    fn import(&self, name: &str, bytes: usize) -> ImageRecord {
        let content = name.as_bytes().repeat(bytes.div_ceil(name.len()));
        let content = &content[..bytes];
        let staging = self.cache.stage().unwrap();
        let mut file = staging.create_root_image().unwrap();
        file.write_all(content).unwrap();
        let image = self.cache.publish(staging, &report(content)).unwrap();
        self.cache.set_name(name, &image.digest).unwrap();
        self.cache.require(name).unwrap()
    }

    async fn pool(&self, name: &str, image: &ImageRecord) {
        let (name, digest) = (pool(name), image.digest.to_string());
        let pool = PoolRecord {
            image_digest: digest,
            ..name
        };
        self.pools.put(pool).await.unwrap();
    }

    async fn refused(&self, reference: &str) -> String {
        let error = self.keeping.remove(reference.into()).await.unwrap_err();
        assert_eq!(error.code, ImageErrorCode::ImageInUse, "{error}");
        assert!(self.cache.get(reference).is_some());
        error.message
    }

    fn names(&self) -> Vec<String> {
        let images = self.cache.list();
        images.into_iter().map(|image| image.name).collect()
    }

    fn files(&self, image: &ImageRecord) -> PathBuf {
        self.folder.path().join(image.digest.hex())
    }
}

#[tokio::test]
async fn image_goes_with_its_files_and_goldens_when_the_last_pool_that_needs_it_is_gone() {
    let house = House::open().await;
    let image = house.import("app", 100);
    house.pool("alpha", &image).await;
    house.pool("beta", &image).await;
    let why = house.refused("app").await;
    assert!(why.ends_with("in use by the pools alpha, beta"), "{why}");
    let why = house.refused(image.digest.as_str()).await;
    assert!(why.contains("alpha, beta"), "{why}");

    let golden = PoolRecord {
        image_digest: image.digest.to_string(),
        ..pool("alpha")
    };
    let recipe = house.works.recipe(&golden);
    house.works.goldens.ensure(recipe).await.unwrap();
    for name in ["alpha", "beta"] {
        house.pools.delete(name.parse().unwrap()).await.unwrap();
    }
    let kept = house.keeping.inspect("app").await.unwrap();
    assert!(kept.pools.is_empty() && kept.unused_goldens.0 == 1);
    let removed = house.keeping.remove("app".into()).await.unwrap();
    assert_eq!(removed, kept.removed());
    assert!(removed.bytes > 100);
    assert!(!house.files(&image).exists());
    assert!(house.works.names().is_empty());
    let error = house.keeping.remove("app".into()).await.unwrap_err();
    assert_eq!(error.code, ImageErrorCode::ImageNotFound);
}

#[tokio::test]
async fn image_of_an_earlier_revision_stays_until_its_last_session_has_ended() {
    let house = House::open().await;
    let (old, new) = (house.import("old", 100), house.import("new", 100));
    house.pool("alpha", &old).await;
    let name: PoolName = "alpha".parse().unwrap();
    let handle = house.pools.get(&name).unwrap().1;
    let user: crate::pool::Identifier = "user-1".parse().unwrap();
    drop(handle.claim(user.clone()).await.ok().unwrap());
    let changed = PoolRecord {
        revision: uuid::Uuid::from_u128(8),
        image_digest: new.digest.to_string(),
        ..pool("alpha")
    };
    house.pools.put(changed).await.unwrap();
    let mut active = handle.active();
    let moved = active.wait_for(|it| it.image_digest == new.digest.as_str());
    moved.await.unwrap();
    house.refused("old").await;
    house.refused("new").await;
    handle.stop(user).await.unwrap();
    house.keeping.remove("old".into()).await.unwrap();
    assert_eq!(house.names(), ["new"]);
}

#[tokio::test]
async fn name_goes_alone_as_long_as_the_image_has_another_one() {
    let house = House::open().await;
    let image = house.import("app", 100);
    house.cache.set_name("app:1", &image.digest).unwrap();
    house.pool("alpha", &image).await;
    let removed = house.keeping.remove("app".into()).await.unwrap();
    assert_eq!(
        (removed.names_left, removed.bytes),
        (vec!["app:1".into()], 0)
    );
    assert_eq!(house.names(), ["app:1"]);
    house.refused("app:1").await;
}

#[tokio::test]
async fn prune_removes_what_nobody_needs_and_says_the_same_before() {
    let house = House::open().await;
    let [used, held] = ["used", "held"].map(|name| house.import(name, 100));
    let unused = [house.import("one", 70), house.import("two", 30)];
    house.pool("alpha", &used).await;
    let hold = house.cache.hold(&held.digest);
    let would = house.keeping.prune(true).await.unwrap();
    assert_eq!(house.cache.list().len(), 4);
    let done = house.keeping.prune(false).await.unwrap();
    assert_eq!(would, done);
    assert_eq!(done.iter().map(|it| it.bytes).sum::<u64>(), 100);
    assert_eq!(house.names(), ["held", "used"]);
    assert!(unused.iter().all(|image| !house.files(image).exists()));
    drop(hold);
    assert_eq!(house.keeping.prune(false).await.unwrap().len(), 1);
}

#[tokio::test]
async fn hold_that_was_taken_while_the_users_were_looked_up_ends_the_removal() {
    let house = House::open().await;
    let image = house.import("app", 100);
    let removal = house.cache.begin_removal(&image.digest).unwrap();
    drop(house.cache.hold(&image.digest));
    assert_eq!(removal.finish().unwrap(), None);
    let hold = house.cache.hold(&image.digest);
    assert!(house.cache.begin_removal(&image.digest).is_none());
    let why = house.refused("app").await;
    assert!(why.contains("being imported"), "{why}");
    drop(hold);
    house.keeping.remove("app".into()).await.unwrap();
}

/// So many minutes before now.
fn ago(minutes: u64) -> SystemTime {
    SystemTime::now() - Duration::from_secs(60 * minutes)
}

#[tokio::test]
async fn full_cache_gives_up_what_was_not_used_for_longest_and_remembers_that_over_a_restart() {
    let house = House::open().await;
    let images = ["a", "b", "c", "d"].map(|name| house.import(name, 100));
    for (image, minutes) in images.iter().zip([20, 50, 30, 40]) {
        let record = house.files(image).join("image.json");
        let record = File::options().write(true).open(record).unwrap();
        record.set_modified(ago(minutes)).unwrap();
    }
    let house = House::open_in(house.folder).await;
    house.pool("alpha", &images[1]).await;
    assert_eq!(house.keeping.evict(400).await, None);
    assert_eq!(house.names(), ["a", "b", "c", "d"]);
    // The oldest is in use.
    assert_eq!(house.keeping.evict(300).await, None);
    assert_eq!(house.names(), ["a", "b", "c"]);
    // A use by anybody makes it young; it may go when the grace is over.
    drop(house.cache.hold(&images[2].digest));
    let again = house.keeping.evict(100).await.unwrap();
    assert!(again <= GRACE && again > GRACE / 2, "{again:?}");
    assert_eq!(house.names(), ["b", "c"]);
}

#[tokio::test]
async fn image_that_comes_makes_room_by_itself() {
    let house = House::open().await;
    let old = house.import("old", 100);
    let record = File::options()
        .write(true)
        .open(house.files(&old).join("image.json"));
    record.unwrap().set_modified(ago(60)).unwrap();
    let house = House::open_in(house.folder).await;
    let keeping = house.keeping.clone();
    let keeper = tokio::spawn(async move { keeping.keep_within(Some(150)).await });
    tokio::task::yield_now().await;
    assert_eq!(house.names(), ["old"]);
    house.import("new", 100);
    let gone = async {
        while fs::exists(house.files(&old)).unwrap() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), gone)
        .await
        .expect("the old one stays");
    assert_eq!(house.names(), ["new"]);
    keeper.abort();
}

#[test]
fn clock_that_was_set_back_makes_images_young_and_nothing_worse() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(folder.path()).unwrap();
    let staging = cache.stage().unwrap();
    staging
        .create_root_image()
        .unwrap()
        .write_all(b"x")
        .unwrap();
    let image = cache.publish(staging, &report(b"x")).unwrap();
    let kept = [Kept {
        image,
        pools: BTreeSet::new(),
        is_held: false,
        unused_goldens: (0, 0),
    }];
    let eviction = Eviction::of(&kept, 0, ago(1_000));
    assert_eq!((eviction.images.len(), eviction.excess), (0, 1));
    assert_eq!(eviction.again, Some(GRACE));
    let eviction = Eviction::of(&kept, 1, ago(0));
    assert_eq!((eviction.excess, eviction.again), (0, None));
}
