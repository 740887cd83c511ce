use super::*;
use crate::store::schema::tests::{pool, session};
use crate::store::{MemoryStore, SledStore};

fn put(store: &dyn Store, table: Table, key: &[u8], value: Vec<u8>) {
    let key = key.to_vec();
    store.apply(&[Change::Put { table, key, value }]).unwrap();
}

/// Two pools, one of which moves to another revision, a session and a key.
fn fill(store: &dyn Store) {
    for name in ["alpha", "beta"] {
        let row = schema::encode(&pool(name));
        put(store, Table::Pools, name.as_bytes(), row);
    }
    let older = PoolRecord {
        target_port: 81,
        ..pool("alpha")
    };
    put(store, Table::Serving, b"alpha", schema::encode(&older));
    let mine = session("alpha", "user\"1");
    let key = session_key(&mine.pool, &mine.identifier);
    put(store, Table::Sessions, &key, schema::encode(&mine));
    put(
        store,
        Table::Keys,
        b"token-signing",
        schema::encode(&vec![7_u8, 255]),
    );
}

type Decoded = Vec<(Table, Vec<u8>, u32, Value)>;

/// What is in the store, whatever the order of fields in its rows.
fn everything(store: &dyn Store) -> Decoded {
    let rows = |table| {
        let rows = store.scan(table, b"").unwrap().into_iter();
        rows.map(move |(key, value)| {
            let (version, record) = schema::open(&value).unwrap();
            (table, key, version, record)
        })
    };
    Table::ALL.into_iter().flat_map(rows).collect()
}

fn filled() -> MemoryStore {
    let store = MemoryStore::default();
    fill(&store);
    store
}

#[test]
fn export_with_keys_is_imported_as_it_was_by_either_store() {
    let dir = tempfile::tempdir().unwrap();
    let sled = SledStore::open(dir.path()).unwrap();
    let (memory, other) = (filled(), MemoryStore::default());
    let (text, tally) = export(&memory, true).unwrap();
    let expected = [("keys", 1), ("pools", 2), ("serving", 1), ("sessions", 1)];
    assert_eq!(tally, expected.into());
    assert_eq!(import(&sled, &text, false).unwrap(), expected.into());
    assert_eq!(everything(&sled), everything(&memory));
    let (again, _) = export(&sled, true).unwrap();
    assert_eq!(again, text);
    import(&other, &again, false).unwrap();
    assert_eq!(everything(&other), everything(&memory));
}

#[test]
fn export_is_a_header_and_one_line_per_record() {
    let (text, _) = export(&filled(), false).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let header = r#"{"format":"cabana-store","keys":false,"records":4,"version":1}"#;
    assert_eq!(lines[0].to_string(), header);
    let named: Vec<_> = lines[1..]
        .iter()
        .map(|line| {
            (
                line["table"].as_str().unwrap(),
                line["key"].as_str().unwrap(),
            )
        })
        .collect();
    let expected = [
        ("pools", "alpha"),
        ("pools", "beta"),
        ("sessions", "alpha\0user\"1"),
        ("serving", "alpha"),
    ];
    assert_eq!(named, expected);
    assert_eq!(lines[1]["version"], VERSION);
    assert_eq!(lines[1]["record"]["image"], "demo:latest");
}

#[test]
fn keys_are_exported_only_when_asked_for_and_stay_when_the_export_has_none() {
    let (text, _) = export(&filled(), false).unwrap();
    assert!(!text.contains("token-signing"), "{text}");
    let store = filled();
    put(
        &store,
        Table::Pools,
        b"gamma",
        schema::encode(&pool("gamma")),
    );
    import(&store, &text, true).unwrap();
    assert_eq!(everything(&store), everything(&filled()));
    // A host that has only just made its keys has nothing to lose.
    let fresh = MemoryStore::default();
    let own = schema::encode(&vec![1_u8]);
    put(&fresh, Table::Keys, b"token-signing", own.clone());
    import(&fresh, &text, false).unwrap();
    let key = fresh.get(Table::Keys, b"token-signing").unwrap();
    assert_eq!(key, Some(own));
}

/// An older record of tokens would make those good again that were revoked since.
#[test]
fn records_of_tokens_travel_with_the_keys_alone() {
    let issued = |revoked_at| TokenRecord {
        id: uuid::Uuid::from_u128(5),
        label: Some("ci".into()),
        grant: crate::access::Grant {
            identifiers: vec!["user-1".parse().unwrap()],
            ..crate::access::Grant::of(crate::access::Role::SessionExecutor)
        },
        key: "k".into(),
        made_at: 1,
        expires_at: 2,
        revoked_at,
    };
    let key = b"00000000-0000-0000-0000-000000000005";
    let store = filled();
    put(&store, Table::Tokens, key, schema::encode(&issued(None)));
    let (without, _) = export(&store, false).unwrap();
    assert!(
        !without.contains("user-1") && !without.contains("tokens"),
        "{without}"
    );
    let (with, tally) = export(&store, true).unwrap();
    assert_eq!(tally["tokens"], 1);

    put(&store, Table::Tokens, key, schema::encode(&issued(Some(2))));
    let revoked = everything(&store);
    import(&store, &without, true).unwrap();
    assert_eq!(everything(&store), revoked);
    import(&store, &with, true).unwrap();
    let row = store.get(Table::Tokens, key).unwrap().unwrap();
    assert_eq!(schema::decode::<TokenRecord>(&row).unwrap(), issued(None));
    let smuggled = without.replacen("\"records\":4", "\"records\":5", 1)
        + with.lines().find(|line| line.contains("tokens")).unwrap();
    let error = import(&store, &smuggled, true).unwrap_err().to_string();
    assert!(error.contains("a key or a token"), "{error}");
}

#[test]
fn store_that_holds_records_is_left_alone_unless_it_is_to_be_replaced() {
    let (text, _) = export(&filled(), true).unwrap();
    let store = MemoryStore::default();
    put(
        &store,
        Table::Pools,
        b"gamma",
        schema::encode(&pool("gamma")),
    );
    let before = everything(&store);
    let error = import(&store, &text, false).unwrap_err().to_string();
    assert!(
        error.contains("holds 1 pools") && error.contains("--replace"),
        "{error}"
    );
    assert_eq!(everything(&store), before);
    import(&store, &text, true).unwrap();
    assert_eq!(everything(&store), everything(&filled()));
}

#[test]
fn export_that_is_wrong_anywhere_changes_nothing_and_says_where() {
    let (text, _) = export(&filled(), true).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let with = |at: usize, line: &str| {
        let mut lines = lines.clone();
        lines[at] = line;
        lines.join("\n")
    };
    let replaced = |at: usize, from: &str, to: &str| {
        assert!(lines[at].contains(from), "{}", lines[at]);
        with(at, &lines[at].replacen(from, to, 1))
    };
    for (text, says) in [
        (String::new(), "first line is not the header"),
        ("{}".into(), "first line is not the header"),
        (lines[1..].join("\n"), "first line is not the header"),
        (
            replaced(0, "cabana-store", "other"),
            "first line is not the header",
        ),
        (
            replaced(0, "\"version\":1", "\"version\":2"),
            "version 2, this build reads up to 1",
        ),
        (
            lines[..5].join("\n"),
            "has 4 records, and its header promises 5",
        ),
        (replaced(0, "true", "false"), "Line 5 is a key"),
        (with(3, "{\"table\":"), "Line 4 is not a record"),
        (with(3, ""), "Line 4 is not a record"),
        (
            replaced(1, "\"table\":\"pools\"", "\"table\":\"ships\""),
            "Line 2 names a table",
        ),
        (
            replaced(1, "\"key\":\"alpha\"", "\"key\":\"beta\""),
            "Line 2 has a key that is not",
        ),
        (with(2, lines[1]), "Line 3 repeats a record"),
        (
            replaced(1, "\"version\":2", "\"version\":3"),
            "Line 2, of table pools",
        ),
        (
            replaced(1, "\"targetPort\":8080", "\"targetPort\":0.5"),
            "Line 2, of table pools",
        ),
        (
            replaced(3, "\"user\\\"1\"", "\"u\""),
            "Line 4, of table sessions",
        ),
    ] {
        let store = MemoryStore::default();
        let error = import(&store, &text, true).unwrap_err().to_string();
        assert!(error.contains(says), "{says:?} not in {error:?}");
        assert!(!error.contains("user"), "{error}");
        assert_eq!(everything(&store), everything(&MemoryStore::default()));
    }
}

#[test]
fn record_of_an_older_version_keeps_it() {
    let row = String::from_utf8(schema::encode(&pool("alpha"))).unwrap();
    let row = row.replace("\"version\":2", "\"version\":1");
    let store = MemoryStore::default();
    put(&store, Table::Pools, b"alpha", row.clone().into_bytes());
    let (text, _) = export(&store, false).unwrap();
    let other = MemoryStore::default();
    import(&other, &text, false).unwrap();
    let value = other.get(Table::Pools, b"alpha").unwrap().unwrap();
    let (version, record) = schema::open(&value).unwrap();
    assert_eq!((version, record), schema::open(row.as_bytes()).unwrap());
    assert_eq!(version, 1);
}

#[test]
fn unreadable_record_stops_an_export_and_is_named_without_its_identifier() {
    let store = filled();
    put(&store, Table::Sessions, b"alpha\0secret-id", b"{}".to_vec());
    let error = export(&store, false).unwrap_err().to_string();
    assert!(
        error.contains("alpha") && !error.contains("secret-id"),
        "{error}"
    );
}
