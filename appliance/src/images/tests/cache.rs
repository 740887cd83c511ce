//! The cache on disk: what survives, what is thrown away.

use std::fs;
use std::io::Write;
use std::path::Path;

use crate::images::ImageErrorCode;
use crate::images::cache::Cache;
use crate::images::digest::Digest;
use crate::images::testing::report;

fn publish(cache: &Cache, content: &[u8]) -> Digest {
    let staging = cache.stage().unwrap();
    let mut file = staging.create_root_image().unwrap();
    file.write_all(content).unwrap();
    let report = report(content);
    cache.publish(staging, &report).unwrap();
    report.digest
}

fn files_under(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn published_image_is_found_by_name_and_digest_also_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("images");
    let cache = Cache::open(&path).unwrap();
    let digest = publish(&cache, b"root");
    cache.set_name("app:1", &digest).unwrap();
    cache.set_name("app:latest", &digest).unwrap();
    for cache in [cache, Cache::open(&path).unwrap()] {
        let by_name = cache.get("app:latest").unwrap();
        assert_eq!(by_name.name, "app:latest");
        assert_eq!(by_name.names, ["app:1", "app:latest"]);
        assert_eq!(by_name.config.cmd, ["run"]);
        assert_eq!(by_name.warnings, ["something was lost"]);
        let by_digest = cache.get(digest.as_str()).unwrap();
        assert_eq!(by_digest.name, "app:1");
        let mut root = by_digest.open_root().unwrap();
        assert_eq!(std::io::read_to_string(&mut root).unwrap(), "root");
        assert!(root.write_all(b"x").is_err(), "opened read-only");
        assert_eq!(cache.list(), [by_digest]);
        let error = cache.require("other").unwrap_err();
        assert_eq!(error.code, ImageErrorCode::ImageNotFound);
        assert!(cache.get("app").is_none(), "names are exact");
    }
}

#[test]
fn name_moves_to_the_newer_image() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::open(directory.path()).unwrap();
    let (old, new) = (publish(&cache, b"old"), publish(&cache, b"new"));
    cache.set_name("app", &old).unwrap();
    cache.set_name("app", &new).unwrap();
    assert_eq!(cache.get("app").unwrap().digest, new);
    assert!(cache.get(old.as_str()).unwrap().names.is_empty());
    let error = cache.set_name("x", &Digest::of(b"nothing")).unwrap_err();
    assert_eq!(error.code, ImageErrorCode::ImageNotFound);
}

#[test]
fn second_import_of_the_same_image_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::open(directory.path()).unwrap();
    let first = cache.stage().unwrap();
    let second = cache.stage().unwrap();
    for staging in [&first, &second] {
        let mut file = staging.create_root_image().unwrap();
        file.write_all(b"root").unwrap();
    }
    let report = report(b"root");
    let kept = cache.publish(first, &report).unwrap();
    assert_eq!(cache.publish(second, &report).unwrap(), kept);
    assert_eq!(cache.list().len(), 1);
    assert!(files_under(&directory.path().join(".tmp")).is_empty());
}

#[test]
fn staging_that_is_not_published_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::open(directory.path()).unwrap();
    let staging = cache.stage().unwrap();
    let _file = staging.create_root_image().unwrap();
    let _temporary = cache.temporary_file().unwrap();
    drop(staging);
    assert!(files_under(&directory.path().join(".tmp")).is_empty());
}

/// Every state that a kill can leave: the steps of an import, frozen.
#[test]
fn what_a_kill_left_behind_is_removed_and_never_used() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let cache = Cache::open(path).unwrap();
    let good = publish(&cache, b"good");
    cache.set_name("good", &good).unwrap();

    // Killed while building, and while replacing the names.
    fs::create_dir(path.join(".tmp/image-abc")).unwrap();
    fs::write(path.join(".tmp/image-abc/root.squashfs"), b"half").unwrap();
    fs::write(path.join(".tmp/.tmpXYZ"), b"{\"half").unwrap();
    // Not ours to write, but a damaged disk can: no record, a short file, a foreign record.
    let digests = [b"a", b"b", b"c"].map(|name| Digest::of(name));
    for digest in &digests {
        fs::create_dir(path.join(digest.hex())).unwrap();
        fs::write(path.join(digest.hex()).join("root.squashfs"), b"short").unwrap();
    }
    let record = fs::read(path.join(good.hex()).join("image.json")).unwrap();
    fs::write(path.join(digests[1].hex()).join("image.json"), &record).unwrap();
    fs::write(path.join(digests[2].hex()).join("image.json"), b"{").unwrap();
    let names = format!(r#"{{"good": "{good}", "gone": "{}"}}"#, digests[0]);
    fs::write(path.join("names.json"), names).unwrap();

    let cache = Cache::open(path).unwrap();
    assert_eq!(cache.list().len(), 1);
    assert_eq!(cache.get("good").unwrap().digest, good);
    assert!(cache.get("gone").is_none());
    assert_eq!(files_under(path), [".tmp", good.hex(), "names.json"]);
    assert!(files_under(&path.join(".tmp")).is_empty());
}

/// Every state that a kill can leave of a removal: before the rename it is whole, after it gone.
#[test]
fn image_whose_removal_was_killed_is_there_whole_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let cache = Cache::open(path).unwrap();
    let digests = [&b"one"[..], b"two"].map(|content| publish(&cache, content));
    for (name, digest) in ["one", "two"].iter().zip(&digests) {
        cache.set_name(name, digest).unwrap();
    }
    // Announced and killed.
    std::mem::forget(cache.begin_removal(&digests[0]).unwrap());
    let cache = Cache::open(path).unwrap();
    assert_eq!(cache.list().len(), 2);
    // In its grave, half removed, and its name still in the file.
    let grave = path.join(".tmp/removed-abc");
    fs::create_dir(&grave).unwrap();
    fs::rename(path.join(digests[0].hex()), grave.join(digests[0].hex())).unwrap();
    fs::remove_file(grave.join(digests[0].hex()).join("image.json")).unwrap();
    let cache = Cache::open(path).unwrap();
    assert_eq!(cache.list().len(), 1);
    assert_eq!(files_under(path), [".tmp", digests[1].hex(), "names.json"]);
    assert!(files_under(&path.join(".tmp")).is_empty());
    // The same image under another name does not bring the old one back.
    publish(&cache, b"one");
    let cache = Cache::open(path).unwrap();
    assert!(cache.get("one").is_none());
    assert!(cache.get(digests[0].as_str()).is_some());
}

#[test]
fn removed_image_is_gone_with_its_names_and_comes_back_when_it_is_imported_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let cache = Cache::open(path).unwrap();
    let digest = publish(&cache, b"root");
    cache.set_name("app", &digest).unwrap();
    let removal = cache.begin_removal(&digest).unwrap();
    assert_eq!(removal.finish().unwrap(), Some(4));
    for cache in [&cache, &Cache::open(path).unwrap()] {
        assert!(cache.list().is_empty() && cache.get("app").is_none());
    }
    assert_eq!(files_under(path), [".tmp", "names.json"]);
    assert!(files_under(&path.join(".tmp")).is_empty());
    let removal = cache.begin_removal(&digest).unwrap();
    assert_eq!(removal.finish().unwrap(), None, "it is not there");
    publish(&cache, b"root");
    assert_eq!(cache.list().len(), 1);
}

#[test]
fn record_of_the_first_version_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::open(directory.path()).unwrap();
    let digest = publish(&cache, b"root");
    assert_eq!(cache.list()[0].layers, Some(3));
    let path = directory.path().join(digest.hex()).join("image.json");
    let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let fields = record.as_object_mut().unwrap();
    assert!(fields.remove("layers").is_some() && fields.remove("made_at_ms").is_some());
    fs::write(&path, record.to_string()).unwrap();
    let image = &Cache::open(directory.path()).unwrap().list()[0];
    assert_eq!((image.layers, image.made_at_ms), (None, None));
}
