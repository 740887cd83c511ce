//! What every store must do, run against each of them.

use std::sync::Arc;

use super::schema::tests::{pool, session};
use super::{Change, HostStore, MemoryStore, PoolRecord, Records, SledStore, Store, Table};

fn put(table: Table, key: &[u8], value: &[u8]) -> Change {
    Change::Put {
        table,
        key: key.to_vec(),
        value: value.to_vec(),
    }
}

fn remove(table: Table, key: &[u8]) -> Change {
    Change::Remove {
        table,
        key: key.to_vec(),
    }
}

fn value_written_is_read_until_replaced_or_removed(store: &dyn Store) {
    assert_eq!(store.get(Table::Pools, b"k").unwrap(), None);
    store.apply(&[put(Table::Pools, b"k", b"one")]).unwrap();
    assert_eq!(
        store.get(Table::Pools, b"k").unwrap().as_deref(),
        Some(&b"one"[..])
    );
    store.apply(&[put(Table::Pools, b"k", b"two")]).unwrap();
    assert_eq!(
        store.get(Table::Pools, b"k").unwrap().as_deref(),
        Some(&b"two"[..])
    );
    store
        .apply(&[remove(Table::Pools, b"k"), remove(Table::Pools, b"never")])
        .unwrap();
    assert_eq!(store.get(Table::Pools, b"k").unwrap(), None);
}

fn tables_do_not_see_each_other(store: &dyn Store) {
    store
        .apply(&[
            put(Table::Pools, b"k", b"pool"),
            put(Table::Keys, b"k", b"key"),
        ])
        .unwrap();
    assert_eq!(store.get(Table::Sessions, b"k").unwrap(), None);
    assert_eq!(store.scan(Table::Sessions, b"").unwrap(), []);
    assert_eq!(
        store.scan(Table::Keys, b"").unwrap(),
        [(b"k".to_vec(), b"key".to_vec())]
    );
    store
        .apply(&[remove(Table::Pools, b"k"), remove(Table::Keys, b"k")])
        .unwrap();
}

fn scan_gives_the_rows_with_the_prefix_in_order(store: &dyn Store) {
    let keys: [&[u8]; 5] = [b"b\0z", b"a\0x", b"b\0y", b"b", b"\xff\xff"];
    let batch: Vec<_> = keys
        .iter()
        .map(|key| put(Table::Sessions, key, key))
        .collect();
    store.apply(&batch).unwrap();
    let found: Vec<_> = store
        .scan(Table::Sessions, b"b\0")
        .unwrap()
        .into_iter()
        .map(|(key, _)| key)
        .collect();
    assert_eq!(found, [b"b\0y".to_vec(), b"b\0z".to_vec()]);
    assert_eq!(store.scan(Table::Sessions, b"").unwrap().len(), keys.len());
    let batch: Vec<_> = keys
        .iter()
        .map(|key| remove(Table::Sessions, key))
        .collect();
    store.apply(&batch).unwrap();
    assert_eq!(store.scan(Table::Sessions, b"").unwrap(), []);
}

fn later_step_of_a_batch_wins(store: &dyn Store) {
    store
        .apply(&[put(Table::Keys, b"k", b"1"), remove(Table::Keys, b"k")])
        .unwrap();
    assert_eq!(store.get(Table::Keys, b"k").unwrap(), None);
    store
        .apply(&[remove(Table::Keys, b"k"), put(Table::Keys, b"k", b"2")])
        .unwrap();
    assert_eq!(
        store.get(Table::Keys, b"k").unwrap().as_deref(),
        Some(&b"2"[..])
    );
    store.apply(&[remove(Table::Keys, b"k")]).unwrap();
}

fn empty_values_are_values(store: &dyn Store) {
    store.apply(&[put(Table::Keys, b"", b"")]).unwrap();
    assert_eq!(store.get(Table::Keys, b"").unwrap(), Some(Vec::new()));
    store.apply(&[remove(Table::Keys, b"")]).unwrap();
}

fn rows(store: &dyn Store) {
    value_written_is_read_until_replaced_or_removed(store);
    tables_do_not_see_each_other(store);
    scan_gives_the_rows_with_the_prefix_in_order(store);
    later_step_of_a_batch_wins(store);
    empty_values_are_values(store);
}

async fn records(store: Arc<dyn Store>) {
    let records = Records::new(store);
    let first = pool("alpha");
    records.put_pool(first.clone()).await.unwrap();
    records.put_pool(pool("beta")).await.unwrap();
    assert_eq!(records.pools().await.unwrap(), [first, pool("beta")]);

    let mine = session("alpha", "user-1");
    records.put_session(mine.clone()).await.unwrap();
    records
        .put_session(session("beta", "user-1"))
        .await
        .unwrap();
    assert_eq!(records.sessions().await.unwrap().len(), 2);
    records
        .remove_session(mine.pool.clone(), mine.identifier.clone(), mine.session)
        .await
        .unwrap();
    assert_eq!(
        records.sessions().await.unwrap(),
        [session("beta", "user-1")]
    );

    assert_eq!(records.serving().await.unwrap(), []);
    let older = PoolRecord {
        target_port: 81,
        ..pool("alpha")
    };
    records.put_serving(pool("alpha")).await.unwrap();
    records.put_serving(older.clone()).await.unwrap();
    records.put_serving(pool("beta")).await.unwrap();
    assert_eq!(records.serving().await.unwrap(), [older, pool("beta")]);
    // Neither table knows of the other.
    assert_eq!(records.pools().await.unwrap()[0], pool("alpha"));
    records.remove_serving(pool("alpha").name).await.unwrap();
    records.remove_serving(pool("alpha").name).await.unwrap();
    assert_eq!(records.serving().await.unwrap(), [pool("beta")]);
    assert_eq!(records.pools().await.unwrap().len(), 2);

    records.remove_pool(pool("alpha").name).await.unwrap();
    assert_eq!(records.pools().await.unwrap(), [pool("beta")]);
    assert_eq!(records.serving().await.unwrap(), [pool("beta")]);

    let key = records.ensure_key("k", || b"first".to_vec()).await.unwrap();
    assert_eq!(key, b"first");
    let again = records
        .ensure_key("k", || b"second".to_vec())
        .await
        .unwrap();
    assert_eq!(again, b"first");
}

#[test]
fn memory_store_keeps_rows() {
    rows(&MemoryStore::default());
}

#[test]
fn sled_store_keeps_rows() {
    let dir = tempfile::tempdir().unwrap();
    rows(&SledStore::open(dir.path()).unwrap());
}

#[test]
fn host_store_keeps_rows() {
    let dir = tempfile::tempdir().unwrap();
    rows(&HostStore::open(&dir.path().join("kept"), &dir.path().join("running")).unwrap());
}

#[tokio::test]
async fn memory_store_keeps_records() {
    records(Arc::new(MemoryStore::default())).await;
}

#[tokio::test]
async fn sled_store_keeps_records() {
    let dir = tempfile::tempdir().unwrap();
    records(Arc::new(SledStore::open(dir.path()).unwrap())).await;
}

#[tokio::test]
async fn host_store_keeps_records() {
    let dir = tempfile::tempdir().unwrap();
    let store = HostStore::open(&dir.path().join("kept"), &dir.path().join("running")).unwrap();
    records(Arc::new(store)).await;
}
