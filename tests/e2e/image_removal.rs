//! Images that are removed: what needs them keeps them, and a removal that is killed leaves each of them whole or not at all.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use e2e::{TestAppliance, artifacts};
use serde_json::{Value, json};

e2e::tests! {
    Own: [
        image_stays_while_a_pool_has_it_and_goes_with_its_goldens_afterwards,
        removal_that_is_killed_with_the_appliance_leaves_images_whole_or_not_at_all,
    ];
}

/// From a kill to an answer, on an emulated processor.
const BACK: Duration = Duration::from_secs(60);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(5);
/// Removals that are killed, at times that are spread over about as long as one takes.
const KILLS: u32 = 4;
const REMOVAL: Duration = Duration::from_millis(120);

fn list(host: &TestAppliance) -> Vec<Value> {
    let listed = host.cli().json(&["image", "list"]);
    listed.as_array().unwrap().clone()
}

fn folder(host: &TestAppliance, image: &Value) -> PathBuf {
    let digest = image["digest"].as_str().unwrap();
    let hex = digest.strip_prefix("sha256:").unwrap();
    host.root().join("var/lib/cabana/images").join(hex)
}

fn image_stays_while_a_pool_has_it_and_goes_with_its_goldens_afterwards() {
    let host = TestAppliance::start();
    let pool = host.pool("alpha").create();
    assert_eq!(pool.session("user-1").get("/").status, 200);
    let image = host.cli().json(&["image", "inspect", "demo"]);
    assert_eq!(image["pools"], json!(["alpha"]), "{image}");
    assert!(image["layers"].as_u64() > Some(0), "{image}");
    assert!(!image["config"]["entrypoint"].as_array().unwrap().is_empty());
    let refused = host.cli().run(&["image", "rm", "demo"]);
    refused.assert_refused(1, &["in use", "alpha"]);
    let nothing = host.cli().json(&["image", "prune"]);
    assert_eq!(nothing["value"], json!([]));
    assert_eq!(pool.session("user-2").get("/").status, 200);
    assert_eq!(host.goldens().len(), 1);

    pool.delete();
    let would = host.cli().json(&["image", "prune", "--dry-run"]);
    assert_eq!(list(&host).len(), 1);
    let removed = host.cli().json(&["image", "rm", "demo"]);
    assert_eq!(removed[0], would["value"][0]);
    assert_eq!(removed[0]["goldens"], 1, "{removed}");
    assert!(list(&host).is_empty() && host.goldens().is_empty());
    assert!(!folder(&host, &image).exists());
    host.cli()
        .run(&["image", "rm", "demo"])
        .assert_refused(1, &["No image 'demo'"]);

    // The same image again, and everything made of it.
    let source = format!("oci-archive:{}", artifacts::demo_image().display());
    let again = host.pool("alpha").with(&["--image", &source]).create();
    assert_eq!(again.session("user-1").get("/").status, 200);
    again.delete();
    host.stop();
}

fn removal_that_is_killed_with_the_appliance_leaves_images_whole_or_not_at_all() {
    let host = TestAppliance::start();
    let source = format!("oci-archive:{}", artifacts::demo_image().display());
    let import = ["image", "import", &source, "--name", "demo"];
    let mut gone = 0;
    for kill in 0..KILLS {
        host.cli().ok(&import);
        let image = list(&host).remove(0);
        let appliance = host.appliance();
        thread::scope(|scope| {
            let removal = scope.spawn(|| host.cli().run(&["image", "rm", "demo"]));
            thread::sleep(REMOVAL * kill / KILLS);
            appliance.kill();
            let _ = removal.join().expect("the command ends");
        });
        let started = Instant::now();
        let listed = loop {
            let ran = host.cli().run(&["image", "ls", "--json"]);
            if ran.code == Some(0) {
                break serde_json::from_str::<Value>(&ran.stdout).unwrap();
            }
            assert!(started.elapsed() < BACK, "{ran:#?}");
            thread::sleep(PAUSE);
        };
        let files = folder(&host, &image);
        match listed.as_array().unwrap().as_slice() {
            [] => {
                assert!(!files.exists(), "killed at {kill} of {KILLS}");
                gone += 1;
            }
            [kept] => {
                assert_eq!(kept["names"], json!(["demo"]));
                let length = fs::metadata(files.join("root.squashfs")).unwrap().len();
                assert_eq!(kept["rootImageBytes"], length);
                // Nothing of the killed removal is in the way of another.
                host.cli().ok(&["image", "rm", "demo"]);
            }
            more => panic!("{more:#?}"),
        }
        let unfinished = host.root().join("var/lib/cabana/images/.tmp");
        assert_eq!(fs::read_dir(unfinished).unwrap().count(), 0);
    }
    println!("{gone} of {KILLS} removals were over");
    host.cli().ok(&import);
    host.stop();
}
