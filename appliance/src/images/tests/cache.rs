//! The cache on disk: what survives, what is thrown away.

use std::fs;
use std::io::Write;
use std::path::Path;

use crate::images::cache::Cache;
use crate::images::digest::Digest;
use crate::images::layout::ImageConfig;
use crate::images::{ImageErrorCode, JobReport};

fn report(content: &[u8]) -> JobReport {
    JobReport {
        digest: Digest::of(content),
        config: ImageConfig {
            cmd: vec!["run".into()],
            ..ImageConfig::default()
        },
        names: Vec::new(),
        warnings: vec!["something was lost".into()],
        bytes: content.len() as u64,
    }
}

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
