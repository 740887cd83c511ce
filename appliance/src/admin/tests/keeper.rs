//! Images that are there: list, inspect, remove, prune.

use super::*;
use crate::admin::keeper::{ImageHold, ImageKeeper, KeptImage, RemovedImage};

/// Keeps `demo`, which a pool needs, and removes whatever else it is asked to.
pub struct OneImage;

fn demo() -> KeptImage {
    KeptImage {
        name: "demo".into(),
        names: vec!["demo".into(), "demo:1".into()],
        digest: "sha256:d".into(),
        root_image_bytes: 1,
        warnings: vec![],
        layers: Some(2),
        made_at_ms: Some(1000),
        last_used_ms: 2000,
        pools: vec!["alpha".into()],
        is_held: false,
        config: json!({ "cmd": ["/demo"] }),
    }
}

fn removed(name: &str) -> RemovedImage {
    RemovedImage {
        name: name.into(),
        digest: "sha256:e".into(),
        freed_bytes: 7,
        goldens: 1,
        ..RemovedImage::default()
    }
}

impl ImageKeeper for OneImage {
    fn list(&self) -> BoxFuture<'_, Vec<KeptImage>> {
        Box::pin(async { vec![demo()] })
    }

    fn inspect(&self, reference: String) -> BoxFuture<'_, Result<KeptImage, Refusal>> {
        Box::pin(async move {
            assert_eq!(reference, "registry/demo:1");
            Ok(demo())
        })
    }

    fn remove(&self, reference: String) -> BoxFuture<'_, Result<RemovedImage, Refusal>> {
        Box::pin(async move {
            if reference == "demo" {
                let code = Code::Image(ImageErrorCode::ImageInUse);
                return Err(Refusal::new(code, "Image demo is in use by the pool alpha"));
            }
            Ok(removed(&reference))
        })
    }

    fn prune(&self, dry_run: bool) -> BoxFuture<'_, Result<Vec<RemovedImage>, Refusal>> {
        let all: &[&str] = if dry_run { &["a", "b"] } else { &["a"] };
        Box::pin(async move { Ok(all.iter().map(|name| removed(name)).collect()) })
    }

    fn hold(&self, _: &str) -> ImageHold {
        Box::new(())
    }
}

#[tokio::test]
async fn image_is_inspected_by_its_escaped_name_and_says_who_needs_it() {
    let office = Office::open().await;
    let (status, image) = office.call("GET", "/images/registry%2Fdemo%3A1", "").await;
    let expected = json!({
        "name": "demo", "names": ["demo", "demo:1"], "digest": "sha256:d", "rootImageBytes": 1, "warnings": [],
        "layers": 2, "madeAt": "1970-01-01T00:00:01Z", "lastUsedAt": "1970-01-01T00:00:02Z", "pools": ["alpha"],
        "held": false, "config": { "cmd": ["/demo"] },
    });
    assert_eq!((status, image), (200, expected));
}

#[tokio::test]
async fn image_that_a_pool_needs_is_not_removed_and_the_others_are() {
    let office = Office::open().await;
    let (status, error) = office.call("DELETE", "/images/demo", "").await;
    let error = &error["error"];
    assert_eq!((status, &error["code"]), (409, &json!("ImageInUse")));
    assert!(error["message"].as_str().unwrap().contains("alpha"));
    let gone = |name: &str| json!({ "name": name, "digest": "sha256:e", "namesLeft": [], "freedBytes": 7, "goldens": 1, "warnings": [] });
    let answer = office.call("DELETE", "/images/old", "").await;
    assert_eq!(answer, (200, gone("old")));

    let (_, would) = office
        .call("POST", "/images/prune", r#"{"dryRun":true}"#)
        .await;
    let expected = json!({ "value": [gone("a"), gone("b")], "freedBytes": 14, "dryRun": true });
    assert_eq!(would, expected);
    let (_, done) = office.call("POST", "/images/prune", "{}").await;
    assert_eq!(
        done,
        json!({ "value": [gone("a")], "freedBytes": 7, "dryRun": false })
    );
    let (status, _) = office
        .call("POST", "/images/prune", r#"{"dryRun":1}"#)
        .await;
    assert_eq!(status, 400);
    assert_eq!(office.call("PUT", "/images/demo", "").await.0, 405);
    assert_eq!(office.call("GET", "/images/", "").await.0, 404);
}
