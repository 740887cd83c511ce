//! Which image of an archive is meant, and what is wrong with archives that hold none.

use serde_json::json;

use super::*;
use crate::images::testing::{Layer, OciArchive, file_of, sha256};

fn open_in(archive: &[u8], transport: Transport, name: Option<&str>) -> Result<Image, ImageError> {
    let limits = Limits::default();
    let archive = Archive::index(file_of(archive), &limits)?;
    open(&archive, transport, name, &limits)
}

fn oci(archive: &[u8], name: Option<&str>) -> Result<Image, ImageError> {
    open_in(archive, Transport::OciArchive, name)
}

fn docker(archive: &[u8], name: Option<&str>) -> Result<Image, ImageError> {
    open_in(archive, Transport::DockerArchive, name)
}

#[track_caller]
fn refuse(result: Result<Image, ImageError>, code: crate::images::ImageErrorCode, part: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.code, code, "{error}");
    assert!(error.message.contains(part), "{error}");
}

use crate::images::ImageErrorCode::{
    ImageCorrupt, ImageNotFound, ImagePlatformUnsupported, ImageTooLarge, ImageUnsupported,
};

/// Two named images that differ in their command.
fn two_images() -> Vec<u8> {
    let layer = Layer::new().finish();
    let mut archive = OciArchive::default();
    for name in ["one", "two"] {
        let layers = [(layer.clone(), layer.clone())];
        let manifest = archive.image(&layers, "amd64", &json!({"Cmd": [name]}));
        archive.list(&manifest, Some(name), None);
    }
    archive.finish()
}

#[test]
fn config_is_what_the_container_starts_with() {
    let mut archive = OciArchive::default();
    let config = json!({
        "User": "65534:65534",
        "ExposedPorts": {"8080/tcp": {}, "443/tcp": {}},
        "Env": ["PATH=/bin", "A=b=c"],
        "Entrypoint": ["/entry"],
        "Cmd": ["a", "b"],
        "WorkingDir": "/srv",
        "StopSignal": "SIGINT",
        "Labels": {"x": "y"},
        "Volumes": {"/data": {}},
    });
    let manifest = archive.image(&[], "amd64", &config);
    archive.list(&manifest, Some("app"), None);
    let image = oci(&archive.finish(), None).unwrap();
    assert_eq!(image.names, ["app"]);
    assert_eq!(image.digest.as_str(), manifest["digest"]);
    assert_eq!(
        image.config,
        ImageConfig {
            entrypoint: vec!["/entry".into()],
            cmd: vec!["a".into(), "b".into()],
            env: vec!["PATH=/bin".into(), "A=b=c".into()],
            working_dir: "/srv".into(),
            user: "65534:65534".into(),
            stop_signal: Some("SIGINT".into()),
            exposed: vec!["443/tcp".into(), "8080/tcp".into()],
        }
    );
}

#[test]
fn config_may_leave_everything_out() {
    for config in [
        json!(null),
        json!({}),
        json!({"Entrypoint": null, "Env": null}),
    ] {
        let mut archive = OciArchive::default();
        let manifest = archive.image(&[], "amd64", &config);
        archive.list(&manifest, None, None);
        let image = oci(&archive.finish(), None).unwrap();
        assert_eq!(image.config, ImageConfig::default());
    }
}

#[test]
fn one_of_several_images_is_chosen_by_name_or_digest() {
    let archive = two_images();
    let two = oci(&archive, Some("two")).unwrap();
    assert_eq!(two.config.cmd, ["two"]);
    let by_digest = oci(&archive, Some(two.digest.as_str())).unwrap();
    assert_eq!(by_digest, two);
    refuse(
        oci(&archive, None),
        ImageNotFound,
        "say which after the file name: one, two",
    );
    refuse(
        oci(&archive, Some("three")),
        ImageNotFound,
        "no image 'three'; it holds one, two",
    );
}

#[test]
fn index_leads_to_the_manifest_for_this_host() {
    let mut archive = OciArchive::default();
    let entry = |manifest: &serde_json::Value, platform: serde_json::Value| {
        let mut entry = manifest.clone();
        entry["platform"] = platform;
        entry
    };
    let arm = archive.image(&[], "arm64", &json!({"Cmd": ["arm"]}));
    let v3 = archive.image(&[], "amd64", &json!({"Cmd": ["v3"]}));
    let plain = archive.image(&[], "amd64", &json!({"Cmd": ["plain"]}));
    let manifests = [
        entry(&arm, json!({"os": "linux", "architecture": "arm64"})),
        entry(
            &v3,
            json!({"os": "linux", "architecture": "amd64", "variant": "v3"}),
        ),
        entry(&plain, json!({"os": "linux", "architecture": "amd64"})),
        entry(&arm, json!({"os": "unknown", "architecture": "unknown"})),
    ];
    let index_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({"schemaVersion": 2, "manifests": manifests}).to_string();
    let inner = archive.blob(index_type, index.as_bytes());
    let outer = json!({"schemaVersion": 2, "manifests": [inner]}).to_string();
    let outer = archive.blob(index_type, outer.as_bytes());
    archive.list(&outer, Some("multi"), None);
    let image = oci(&archive.finish(), None).unwrap();
    assert_eq!(image.config.cmd, ["plain"]);
    assert_eq!(image.digest.as_str(), plain["digest"]);
}

#[test]
fn platforms_laid_out_flat_are_one_image() {
    let mut archive = OciArchive::default();
    for architecture in ["arm64", "amd64"] {
        let manifest = archive.image(&[], architecture, &json!({"Cmd": [architecture]}));
        archive.list(&manifest, None, Some(architecture));
    }
    assert_eq!(oci(&archive.finish(), None).unwrap().config.cmd, ["amd64"]);
}

#[test]
fn image_for_another_platform_says_for_which() {
    let mut archive = OciArchive::default();
    let manifest = archive.image(&[], "arm64", &json!({}));
    archive.list(&manifest, None, Some("arm64"));
    let part = "for linux/arm64, this host needs linux/amd64";
    refuse(oci(&archive.finish(), None), ImagePlatformUnsupported, part);
    let mut archive = OciArchive::default();
    let manifest = archive.image(&[], "arm64", &json!({}));
    archive.list(&manifest, None, None);
    refuse(oci(&archive.finish(), None), ImagePlatformUnsupported, part);
}

#[test]
fn index_that_contains_itself_ends() {
    // A digest cannot contain itself, so the loop is only as long as somebody writes it.
    let mut archive = OciArchive::default();
    let kind = "application/vnd.oci.image.index.v1+json";
    let mut inner = archive.image(&[], "amd64", &json!({}));
    for _ in 0..10 {
        let index = json!({"schemaVersion": 2, "manifests": [inner]}).to_string();
        inner = archive.blob(kind, index.as_bytes());
    }
    archive.list(&inner, None, None);
    refuse(
        oci(&archive.finish(), None),
        ImageCorrupt,
        "nested too deep",
    );
}

#[test]
fn artifacts_and_strange_manifests_are_unsupported() {
    let mut archive = OciArchive::default();
    let config = archive.blob("application/vnd.cncf.helm.config.v1+json", b"{}");
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": []}).to_string();
    let manifest = archive.blob(
        "application/vnd.oci.image.manifest.v1+json",
        manifest.as_bytes(),
    );
    archive.list(&manifest, None, None);
    refuse(
        oci(&archive.finish(), None),
        ImageUnsupported,
        "not a container image",
    );

    let mut archive = OciArchive::default();
    let odd = archive.blob("text/plain", b"{}");
    archive.list(&odd, None, None);
    refuse(
        oci(&archive.finish(), None),
        ImageUnsupported,
        "type text/plain",
    );
}

#[test]
fn missing_blobs_and_wrong_sizes_are_noticed() {
    let layer = Layer::new().finish();
    let mut archive = OciArchive::default();
    let mut manifest = archive.image(&[(layer.clone(), layer)], "amd64", &json!({}));
    manifest["size"] = json!(7);
    archive.list(&manifest, None, None);
    refuse(
        oci(&archive.finish(), None),
        ImageCorrupt,
        "should have 7 bytes",
    );

    let mut archive = OciArchive::default();
    let mut manifest = archive.image(&[], "amd64", &json!({}));
    manifest["digest"] = json!(format!("sha256:{}", "0".repeat(64)));
    archive.list(&manifest, None, None);
    refuse(
        oci(&archive.finish(), None),
        ImageCorrupt,
        "it is incomplete",
    );
}

#[test]
fn things_that_are_no_archive_say_what_to_do() {
    let empty = Layer::new().finish();
    refuse(oci(&empty, None), ImageCorrupt, "index.json is missing");
    refuse(
        docker(&empty, None),
        ImageCorrupt,
        "manifest.json is missing",
    );
    refuse(oci(b"", None), ImageCorrupt, "empty");
    refuse(oci(b"hello", None), ImageCorrupt, "truncated");
    refuse(
        docker(&two_images(), None),
        ImageCorrupt,
        "oci-archive:FILE",
    );
    refuse(oci(&saved(), None), ImageCorrupt, "docker-archive:FILE");
    let packed = crate::images::testing::gzip(&two_images());
    refuse(
        oci(&packed, None),
        ImageUnsupported,
        "gzip; decompress it first",
    );
}

#[test]
fn archive_of_too_many_files_is_refused() {
    let limits = Limits {
        archive_members: 3,
        ..Limits::default()
    };
    let archive = Layer::new()
        .file("a", b"")
        .file("b", b"")
        .file("c", b"")
        .file("d", b"");
    let error = Archive::index(file_of(&archive.finish()), &limits)
        .err()
        .unwrap();
    assert_eq!(error.code, ImageTooLarge, "{error}");
}

fn saved_layer() -> Vec<u8> {
    Layer::new().file("a", b"x").finish()
}

/// What `docker save` writes for one image whose layer occurs twice.
fn saved() -> Vec<u8> {
    let layer = saved_layer();
    let diff_id = format!("sha256:{}", sha256(&layer));
    // As text: its bytes are part of the digest below.
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"Cmd":["x"]}},"rootfs":{{"type":"layers","diff_ids":["{diff_id}","{diff_id}"]}}}}"#
    );
    let name = format!("{}.json", sha256(config.as_bytes()));
    let manifest = json!([{
        "Config": name,
        "RepoTags": ["app:1.0", "registry.example/team/app:latest"],
        "Layers": ["aaa/layer.tar", "bbb/layer.tar"],
    }]);
    Layer::new()
        .file(&name, config.as_bytes())
        .dir("aaa")
        .file("aaa/layer.tar", &layer)
        .symlink("bbb/layer.tar", "../aaa/layer.tar")
        .file("manifest.json", manifest.to_string().as_bytes())
        .finish()
}

#[test]
fn docker_archive_is_read_and_linked_layers_are_found() {
    let image = docker(&saved(), None).unwrap();
    assert_eq!(image.config.cmd, ["x"]);
    assert_eq!(image.names, ["app:1.0", "registry.example/team/app:latest"]);
    assert_eq!(image.layers.len(), 2);
    assert_eq!(image.layers[0], image.layers[1]);
    assert_eq!(image.layers[0].place.length, saved_layer().len() as u64);
}

#[test]
fn docker_archive_has_the_same_digest_every_time() {
    let first = docker(&saved(), None).unwrap().digest;
    assert_eq!(docker(&saved(), Some("app:1.0")).unwrap().digest, first);
    // Renaming the description of blobs would rebuild every image there is.
    assert_eq!(
        first.as_str(),
        "sha256:6a1ea2106ed9072f043c2b2d0762a4a2f63330f75913f0576f17144f4a4910af"
    );
}

#[test]
fn docker_tags_match_with_and_without_the_usual_parts() {
    for name in [
        "app:1.0",
        "docker.io/library/app:1.0",
        "registry.example/team/app",
        "registry.example/team/app:latest",
    ] {
        assert!(docker(&saved(), Some(name)).is_ok(), "{name}");
    }
    refuse(
        docker(&saved(), Some("app")),
        ImageNotFound,
        "no image 'app'",
    );
}

#[test]
fn docker_config_under_a_wrong_name_is_refused() {
    let mut archive = saved();
    let at = archive
        .windows(3)
        .position(|bytes| bytes == b"\"x\"")
        .unwrap();
    archive[at + 1] = b'y';
    refuse(docker(&archive, None), ImageCorrupt, "digest of the config");
}
