use super::*;

fn put(key: &str, value: &[u8]) -> Change {
    Change::Put {
        table: Table::Sessions,
        key: key.into(),
        value: value.to_vec(),
    }
}

fn remove(key: &str) -> Change {
    Change::Remove {
        table: Table::Sessions,
        key: key.into(),
    }
}

fn keys(journal: &Journal) -> Vec<String> {
    let rows = journal.scan(Table::Sessions, b"").unwrap();
    let keys = rows
        .into_iter()
        .map(|(key, _)| String::from_utf8(key).unwrap());
    keys.collect()
}

#[test]
fn file_read_at_any_moment_holds_what_was_answered() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let journal = Journal::open(&path).unwrap();
    journal.apply(&[put("a", b"1"), put("b", b"2")]).unwrap();
    journal.apply(&[remove("a"), put("c", b"")]).unwrap();
    // As it is for the next process when this one is killed now.
    let copy = folder.path().join("copy");
    std::fs::copy(&path, &copy).unwrap();
    let after = Journal::open(&copy).unwrap();
    assert_eq!(keys(&after), ["b", "c"]);
    assert_eq!(after.get(Table::Sessions, b"c").unwrap(), Some(Vec::new()));
    after.apply(&[put("d", b"4")]).unwrap();
    drop(after);
    assert_eq!(keys(&Journal::open(&copy).unwrap()), ["b", "c", "d"]);
}

#[test]
fn batch_that_was_not_written_to_its_end_is_not_there_and_hides_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let journal = Journal::open(&path).unwrap();
    journal.apply(&[put("first", b"1")]).unwrap();
    let whole = std::fs::read(&path).unwrap();
    journal
        .apply(&[put("second", b"2"), put("third", b"3")])
        .unwrap();
    let longer = std::fs::read(&path).unwrap();
    for cut in whole.len()..longer.len() {
        std::fs::write(&path, &longer[..cut]).unwrap();
        let journal = Journal::open(&path).unwrap();
        assert_eq!(keys(&journal), ["first"], "cut at {cut}");
        journal.apply(&[put("later", b"4")]).unwrap();
        assert_eq!(keys(&Journal::open(&path).unwrap()), ["first", "later"]);
    }
}

#[test]
fn byte_that_somebody_else_changed_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    Journal::open(&path)
        .unwrap()
        .apply(&[put("first", b"1")])
        .unwrap();
    let whole = std::fs::read(&path).unwrap();
    // Where a length is changed, the batch may seem to be unfinished.
    for place in (0..MAGIC.len()).chain(MAGIC.len() + 4..whole.len()) {
        let mut bytes = whole.clone();
        bytes[place] ^= 0x55;
        std::fs::write(&path, &bytes).unwrap();
        let error = Journal::open(&path).unwrap_err();
        assert!(
            matches!(error, StoreError::Damaged { .. }),
            "{place}: {error}"
        );
    }
}

#[test]
fn file_stays_short_however_often_its_rows_change() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let journal = Journal::open(&path).unwrap();
    for n in 0..20_000 {
        journal
            .apply(&[put(&format!("user-{n}"), &[b'x'; 300])])
            .unwrap();
        if n >= 10 {
            journal
                .apply(&[remove(&format!("user-{}", n - 10))])
                .unwrap();
        }
    }
    let bytes = std::fs::metadata(&path).unwrap().len();
    assert!(bytes < 2 * SLACK_BYTES, "{bytes} bytes");
    assert_eq!(keys(&journal).len(), 10);
    drop(journal);
    assert_eq!(keys(&Journal::open(&path).unwrap()).len(), 10);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}
