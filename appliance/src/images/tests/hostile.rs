//! Archives that lie. Whatever comes in, the job ends with an error or an image, never a panic.

use proptest::prelude::*;

use crate::images::testing::{
    Item, Layer, OciArchive, build, build_with, gzip, header, sha256, tree_of, zstd,
};
use crate::images::{ImageErrorCode, Limits, Transport};

fn stored(stored: Vec<u8>, plain: Vec<u8>) -> Vec<u8> {
    let mut archive = OciArchive::default();
    let manifest = archive.image(&[(stored, plain)], "amd64", &serde_json::json!({}));
    archive.list(&manifest, None, None);
    archive.finish()
}

#[track_caller]
fn refuse(archive: &[u8], code: ImageErrorCode, part: &str) {
    refuse_with(archive, Limits::default(), code, part);
}

#[track_caller]
fn refuse_with(archive: &[u8], limits: Limits, code: ImageErrorCode, part: &str) {
    let error = build_with(archive, Transport::OciArchive, None, limits).unwrap_err();
    assert_eq!(error.code, code, "{error}");
    assert!(error.message.contains(part), "{error}");
}

#[test]
fn wrong_layer_digest_and_wrong_diff_id_are_told_apart() {
    let good = Layer::new().file("a", b"good").finish();
    let evil = Layer::new().file("a", b"evil").finish();
    let mut archive = OciArchive::of(std::slice::from_ref(&good));
    let at = archive
        .windows(good.len())
        .position(|window| window == good)
        .unwrap();
    archive[at..at + evil.len()].copy_from_slice(&evil);
    let code = ImageErrorCode::ImageCorrupt;
    refuse(&archive, code, "the digest should be sha256:");
    refuse(&stored(gzip(&good), evil), code, "the diff id should be");
}

#[test]
fn changed_manifest_or_config_is_noticed() {
    let archive = OciArchive::of(&[Layer::new().finish()]);
    let change = |from: &[u8], to: &[u8]| {
        let mut bytes = archive.clone();
        let at = bytes.windows(from.len()).rposition(|w| w == from).unwrap();
        bytes[at..at + to.len()].copy_from_slice(to);
        bytes
    };
    let code = ImageErrorCode::ImageCorrupt;
    let config = change(b"\"os\":\"linux\"", b"\"os\":\"winux\"");
    refuse(&config, code, "digest of the config should be");
    let manifest = change(b"\"layers\":[{", b"\"mayers\":[{");
    refuse(&manifest, code, "digest of the manifest should be");
}

#[test]
fn truncated_layers_say_so() {
    let mut plain = Layer::new().file("a", &[7; 2000]).finish();
    plain.truncate(1000);
    let code = ImageErrorCode::ImageCorrupt;
    refuse(&stored(plain.clone(), plain), code, "truncated");
    let whole = Layer::new().file("a", &[7; 2000]).finish();
    for pack in [gzip, zstd] {
        let mut packed = pack(&whole);
        packed.truncate(packed.len() - 9);
        let error = build(&stored(packed, whole.clone())).unwrap_err();
        assert_eq!(error.code, code, "{error}");
    }
}

#[test]
fn truncated_archive_is_noticed_at_every_length() {
    let archive = OciArchive::of(&[Layer::new().file("a", b"x").finish()]);
    for length in (0..archive.len() - 1024).step_by(100) {
        let error = build(&archive[..length]).unwrap_err();
        assert_eq!(
            error.code,
            ImageErrorCode::ImageCorrupt,
            "{length}: {error}"
        );
    }
}

#[test]
fn compression_bomb_stops_at_the_limit() {
    let bomb = Layer::new().file("zeros", &vec![0; 4 << 20]).finish();
    let limits = Limits {
        unpacked_bytes: 1 << 20,
        ..Limits::default()
    };
    for pack in [gzip, zstd] {
        refuse_with(
            &stored(pack(&bomb), bomb.clone()),
            limits.clone(),
            ImageErrorCode::ImageTooLarge,
            "unpacks to more than 1 MiB",
        );
    }
}

#[test]
fn sparse_bomb_stops_at_the_limit() {
    let layer = Layer::new()
        .item(&Item {
            path: b"holes",
            pax: &[
                ("GNU.sparse.size", b"1000000000000"),
                ("GNU.sparse.map", b"0,0"),
            ],
            ..Item::default()
        })
        .finish();
    refuse(
        &OciArchive::of(&[layer]),
        ImageErrorCode::ImageTooLarge,
        "unpacks to more than",
    );
}

#[test]
fn too_many_files_and_layers_are_refused() {
    let limits = Limits {
        files: 3,
        layers: 2,
        ..Limits::default()
    };
    let many = Layer::new().file("a", b"").file("b", b"").file("c", b"");
    let code = ImageErrorCode::ImageTooLarge;
    refuse_with(
        &OciArchive::of(&[many.finish()]),
        limits.clone(),
        code,
        "more than 3 files",
    );
    let empty = Layer::new().finish();
    let three = [empty.clone(), empty.clone(), empty];
    refuse_with(&OciArchive::of(&three), limits, code, "has 3 layers");
}

#[test]
fn extension_header_of_gigabytes_takes_no_memory() {
    let mut long = header(&Item {
        path: b"x",
        kind: b'L',
        ..Item::default()
    });
    let header = tar::Header::from_byte_slice(&long).clone();
    let mut header = header;
    header.set_size(8 << 30);
    header.set_cksum();
    long.copy_from_slice(header.as_bytes());
    let layer = Layer::new().raw(&long).finish();
    refuse(
        &OciArchive::of(&[layer]),
        ImageErrorCode::ImageCorrupt,
        "extension header of 8589934592 bytes",
    );
}

#[test]
fn endless_extension_headers_are_refused() {
    let mut layer = Layer::new();
    for _ in 0..100 {
        layer = layer.extension(b'L', b"name\0");
    }
    refuse(
        &OciArchive::of(&[layer.file("a", b"").finish()]),
        ImageErrorCode::ImageCorrupt,
        "too many extension headers",
    );
}

/// A header-only type with a size: readers that skip that many bytes would miss the next entry,
/// so its content could be smuggled past one of them.
#[test]
fn size_of_a_header_only_entry_is_ignored() {
    let smuggled = header(&Item {
        path: b"seen",
        data: b"",
        ..Item::default()
    });
    let link = header(&Item {
        path: b"link",
        kind: b'2',
        link: b"target",
        data: &[0; 512],
        ..Item::default()
    });
    let layer = Layer::new().raw(&link).raw(&smuggled);
    let tree = tree_of(&[layer]);
    assert!(tree.contains("/seen f"), "{tree}");
    assert!(tree.contains("/link l"), "{tree}");
}

#[test]
fn unknown_types_and_foreign_compression_are_unsupported() {
    let xz = b"\xfd7zXZ\0rest".to_vec();
    refuse(
        &stored(xz.clone(), xz),
        ImageErrorCode::ImageUnsupported,
        "compressed with xz",
    );
    let odd = Layer::new().item(&Item {
        path: b"x",
        kind: b'Q',
        ..Item::default()
    });
    refuse(
        &OciArchive::of(&[odd.finish()]),
        ImageErrorCode::ImageCorrupt,
        "unknown entry type 0x51",
    );
}

/// Each layer is within the limit, and all of them together are not.
#[test]
fn bomb_in_small_parts_stops_at_the_limit_of_the_whole_image() {
    let part = Layer::new().file("zeros", &vec![0; 400 << 10]).finish();
    let limits = Limits {
        unpacked_bytes: 1 << 20,
        ..Limits::default()
    };
    let mut archive = OciArchive::default();
    let layers = vec![(gzip(&part), part); 3];
    let manifest = archive.image(&layers, "amd64", &serde_json::json!({}));
    archive.list(&manifest, None, None);
    let code = ImageErrorCode::ImageTooLarge;
    refuse_with(
        &archive.finish(),
        limits,
        code,
        "unpacks to more than 1 MiB",
    );
}

/// Behind the end of its tar, where no reader of entries looks.
#[test]
fn bomb_behind_the_end_of_a_layer_stops_at_the_limit() {
    let mut layer = Layer::new().file("a", b"").finish();
    layer.resize(4 << 20, 0);
    let limits = Limits {
        unpacked_bytes: 1 << 20,
        ..Limits::default()
    };
    let code = ImageErrorCode::ImageTooLarge;
    refuse_with(
        &stored(zstd(&layer), layer),
        limits,
        code,
        "unpacks to more",
    );
}

#[test]
fn what_stands_behind_a_compressed_layer_is_neither_used_nor_trusted() {
    let good = Layer::new().file("a", b"good").finish();
    let evil = Layer::new().file("b", b"evil").finish();
    for pack in [gzip, zstd] {
        // Further members count as one stream with the first, so the diff id does not fit.
        let two = [pack(&good), pack(&evil)].concat();
        let error = build(&stored(two, good.clone())).unwrap_err();
        assert_eq!(error.code, ImageErrorCode::ImageCorrupt, "{error}");
    }
    let noise = [gzip(&good), b"noise".to_vec()].concat();
    let error = build(&stored(noise, good.clone())).unwrap_err();
    assert_eq!(error.code, ImageErrorCode::ImageCorrupt, "{error}");
}

#[test]
fn documents_that_are_bombs_are_refused() {
    let archive = |index: &[u8]| Layer::new().file("index.json", index).finish();
    let code = ImageErrorCode::ImageCorrupt;
    let nested = [b"{\"manifests\":".to_vec(), vec![b'['; 100_000]].concat();
    let error = build(&archive(&nested)).unwrap_err();
    assert_eq!(error.code, code, "{error}");
    let long = vec![b' '; usize::try_from(Limits::default().manifest_bytes).unwrap() + 1];
    refuse(&archive(&long), ImageErrorCode::ImageTooLarge, "at most");
    let many = format!(
        r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
        vec!["{}"; 100_000].join(",")
    );
    let error = build(&archive(many.as_bytes())).unwrap_err();
    assert_eq!(error.code, code, "{error}");
}

#[test]
fn descriptor_that_lies_about_its_length_is_refused() {
    let layer = Layer::new().file("a", b"1").finish();
    for (what, lie) in [
        ("config", -1_i64),
        ("config", 1),
        ("layer", -512),
        ("layer", 512),
    ] {
        let mut archive = OciArchive::default();
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", sha256(&layer))] },
        });
        let mut config = archive.blob(
            "application/vnd.oci.image.config.v1+json",
            config.to_string().as_bytes(),
        );
        let mut stored = archive.blob("application/vnd.oci.image.layer.v1.tar", &layer);
        let lying = if what == "config" {
            &mut config
        } else {
            &mut stored
        };
        lying["size"] = (lying["size"].as_i64().unwrap() + lie).into();
        let manifest =
            serde_json::json!({ "schemaVersion": 2, "config": config, "layers": [stored] });
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = archive.blob(kind, manifest.to_string().as_bytes());
        archive.list(&manifest, None, None);
        let error = build(&archive.finish()).unwrap_err();
        assert_eq!(error.code, ImageErrorCode::ImageCorrupt, "{what}: {error}");
        assert!(error.message.contains("bytes but has"), "{what}: {error}");
    }
}

#[test]
fn error_names_the_layer() {
    let good = Layer::new().finish();
    let bad = Layer::new().file("../x", b"").finish();
    let error = build(&OciArchive::of(&[good, bad.clone()])).unwrap_err();
    let place = format!("Layer 2 (sha256:{}): ", sha256(&bad));
    assert!(error.message.starts_with(&place), "{error}");
}

/// A layer of random entries: short names from a small set, so that they meet.
fn entries() -> impl Strategy<Value = Vec<u8>> {
    let name = prop::sample::select(vec![
        "a",
        "b",
        "a/b",
        "b/a",
        "./",
        "..",
        "a/../b",
        "/a",
        ".wh.a",
        ".wh.b",
        "a/.wh..wh..opq",
        ".wh..wh..opq",
        ".wh.",
        "a/.wh.b",
        "b/a/c",
        "c",
        "",
    ]);
    let kind = prop::sample::select(b"0123456LKxgS7DVMQ\0".to_vec());
    let data = prop::collection::vec(any::<u8>(), 0..600);
    let entry = (name.clone(), kind, name, data);
    prop::collection::vec(entry, 0..12).prop_map(|entries| {
        let mut layer = Layer::new();
        for (path, kind, link, data) in entries {
            layer = layer.item(&Item {
                path: path.as_bytes(),
                kind,
                link: link.as_bytes(),
                data: &data,
                ..Item::default()
            });
        }
        layer.finish()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_layers_never_panic_and_give_readable_images(
        layers in prop::collection::vec(entries(), 1..4),
    ) {
        if let Ok((_, image)) = build(&OciArchive::of(&layers)) {
            crate::images::squash::reader::read_image(&image);
        }
    }

    #[test]
    fn damaged_archives_never_panic(
        at in any::<prop::sample::Index>(),
        bytes in prop::collection::vec(any::<u8>(), 1..20),
    ) {
        let layer = Layer::new().dir("d").file("d/f", b"data").hard_link("l", "d/f");
        let mut archive = OciArchive::of(&[layer.finish()]);
        let at = at.index(archive.len() - bytes.len());
        archive[at..at + bytes.len()].copy_from_slice(&bytes);
        let _ = build(&archive);
    }

    #[test]
    fn damaged_layers_never_panic(
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        fix_checksum in any::<bool>(),
    ) {
        let mut layer = Layer::new()
            .item(&Item { path: b"x", data: b"d", pax: &[("path", b"y"), ("SCHILY.xattr.user.a", b"1")], ..Item::default() })
            .item(&Item { path: b"s", data: b"0123", pax: &[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"1,2,5,2")], ..Item::default() })
            .finish();
        let at = at.index(layer.len());
        layer[at] = byte;
        if fix_checksum {
            let start = at / 512 * 512;
            let mut header = tar::Header::from_byte_slice(&layer[start..start + 512]).clone();
            header.set_cksum();
            layer[start..start + 512].copy_from_slice(header.as_bytes());
        }
        if let Ok((_, image)) = build(&OciArchive::of(&[layer])) {
            crate::images::squash::reader::read_image(&image);
        }
    }

    #[test]
    fn noise_is_never_an_archive(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        prop_assert!(build(&bytes).is_err());
    }
}

#[test]
fn path_that_is_longer_than_the_operator_allows_is_refused_and_one_that_fits_is_not() {
    let limits = Limits {
        path_bytes: 8,
        ..Limits::default()
    };
    let archive = |path: &str| {
        let layer = Layer::new().dir("abc").file(path, b"x").finish();
        OciArchive::of(&[layer])
    };
    let transport = Transport::OciArchive;
    build_with(&archive("./abc/efgh"), transport, None, limits.clone()).unwrap();
    let code = ImageErrorCode::ImageTooLarge;
    let part = "Path of 9 bytes, at most 8";
    refuse_with(&archive("abc/efghi"), limits, code, part);
}
