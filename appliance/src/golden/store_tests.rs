use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use super::*;
use crate::golden::manifest::tests::{host, manifest};

/// Fills the files as a worker does.
pub fn save(files: &SaveFiles, manifest: &Manifest) {
    let SaveFiles {
        state,
        memory,
        disk,
    } = files;
    (&*state).write_all(b"state").unwrap();
    memory
        .set_len(u64::from(manifest.template.mem_mib) << 20)
        .unwrap();
    (&*memory).write_all(b"memory").unwrap();
    disk.set_len(manifest.template.disk_bytes).unwrap();
}

struct Shelf {
    folder: tempfile::TempDir,
}

impl Shelf {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn open(&self) -> Store {
        Store::open(self.folder.path(), &host()).unwrap()
    }

    fn drafted(&self, store: &Store) -> Draft {
        let draft = store.draft().unwrap();
        save(&draft.create().unwrap(), &manifest());
        draft.create_working_set().unwrap().write_all(b"w").unwrap();
        draft
    }

    fn published(&self) -> Arc<Golden> {
        let store = self.open();
        store.publish(self.drafted(&store), manifest()).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder
            .path()
            .join(manifest().key().as_str())
            .join(name)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

#[test]
fn published_golden_is_found_by_its_manifest_now_and_after_a_restart() {
    let shelf = Shelf::new();
    let golden = shelf.published();
    assert!(golden.memory_bytes > 0 && golden.memory_bytes < 1 << 20);
    for store in [shelf.open(), shelf.open()] {
        let found = store.get(&manifest()).unwrap();
        assert_eq!((&found.key, &found.about), (&golden.key, &golden.about));
        let files = found.open().unwrap();
        assert_eq!(files.disk_bytes, 1 << 20);
        assert!(matches!(files.working_set, WorkingSet::Known(_)));
        (&files.memory).write_all(b"x").unwrap_err();
        let mut other = manifest();
        other.template.vcpus += 1;
        assert!(store.get(&other).is_none());
    }
    assert_eq!(shelf.names(), [golden.key.as_str()]);
}

#[test]
fn folders_and_files_are_for_their_owner_only() {
    let shelf = Shelf::new();
    shelf.published();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&shelf.path("")), 0o700);
    for name in [MANIFEST, STATE, MEMORY, DISK, WORKING_SET] {
        assert_eq!(mode(&shelf.path(name)), 0o600, "{name}");
    }
}

#[test]
fn draft_that_is_dropped_leaves_nothing() {
    let shelf = Shelf::new();
    let store = shelf.open();
    drop(shelf.drafted(&store));
    assert!(shelf.names().is_empty());
}

/// What `kill -9` leaves: `forget` in the place of the destructors.
#[test]
fn killed_while_making_leaves_nothing_that_the_next_start_uses() {
    let shelf = Shelf::new();
    let store = shelf.open();
    let empty = store.draft().unwrap();
    let saved = shelf.drafted(&store);
    let described = shelf.drafted(&store);
    let about = About {
        lengths: described.settle(&manifest()).unwrap(),
        manifest: manifest(),
        made_at_ms: 1,
    };
    described.write_manifest(&about).unwrap();
    for draft in [empty, saved, described] {
        std::mem::forget(draft);
    }
    assert_eq!(shelf.names().len(), 3);
    assert!(shelf.open().list().is_empty());
    assert!(shelf.names().is_empty());
}

#[test]
fn killed_while_removing_leaves_nothing_that_the_next_start_uses() {
    let shelf = Shelf::new();
    bury(&shelf.published().folder).unwrap();
    assert!(shelf.open().list().is_empty() && shelf.names().is_empty());
}

#[test]
fn damaged_golden_is_removed_at_start() {
    let cut = |name: &'static str, length: u64| {
        move |shelf: &Shelf| {
            let file = File::options().write(true).open(shelf.path(name)).unwrap();
            file.set_len(length).unwrap();
        }
    };
    let remove =
        |name: &'static str| move |shelf: &Shelf| fs::remove_file(shelf.path(name)).unwrap();
    let edit = |from: &'static str, to: &'static str| {
        move |shelf: &Shelf| {
            let text = fs::read_to_string(shelf.path(MANIFEST)).unwrap();
            assert!(text.contains(from), "{text}");
            fs::write(shelf.path(MANIFEST), text.replace(from, to)).unwrap();
        }
    };
    type Damage = Box<dyn Fn(&Shelf)>;
    let damages: [(&str, Damage); 14] = [
        ("state cut", Box::new(cut(STATE, 4))),
        ("state empty", Box::new(cut(STATE, 0))),
        ("state longer", Box::new(cut(STATE, 6))),
        ("memory cut", Box::new(cut(MEMORY, 4096))),
        ("disk cut", Box::new(cut(DISK, 4096))),
        ("working set cut", Box::new(cut(WORKING_SET, 0))),
        ("manifest cut", Box::new(cut(MANIFEST, 40))),
        ("manifest empty", Box::new(cut(MANIFEST, 0))),
        ("manifest huge", Box::new(cut(MANIFEST, 1 << 40))),
        ("no state", Box::new(remove(STATE))),
        ("no memory", Box::new(remove(MEMORY))),
        ("no manifest", Box::new(remove(MANIFEST))),
        (
            "of another shape",
            Box::new(edit("\"vcpus\": 1", "\"vcpus\": 2")),
        ),
        (
            "with unknown fields",
            Box::new(edit("\"memMib\"", "\"memGib\"")),
        ),
    ];
    for (name, damage) in damages {
        let shelf = Shelf::new();
        shelf.published();
        damage(&shelf);
        assert!(shelf.open().list().is_empty(), "{name}");
        assert!(shelf.names().is_empty(), "{name}");
    }
}

#[test]
fn link_in_the_place_of_a_file_is_not_followed() {
    let shelf = Shelf::new();
    shelf.published();
    let outside = shelf.folder.path().join("elsewhere");
    fs::rename(shelf.path(MEMORY), &outside).unwrap();
    std::os::unix::fs::symlink(&outside, shelf.path(MEMORY)).unwrap();
    assert!(shelf.open().list().is_empty());
    assert!(outside.exists());
}

#[test]
fn golden_that_was_cut_since_the_start_is_not_opened() {
    let shelf = Shelf::new();
    let golden = shelf.published();
    let file = File::options().write(true).open(shelf.path(MEMORY));
    file.unwrap().set_len(1).unwrap();
    let error = golden.open().unwrap_err();
    assert!(
        matches!(error, StoreError::Length { found: 1, .. }),
        "{error}"
    );
}

#[test]
fn golden_of_another_build_or_host_is_removed_at_start() {
    let shelf = Shelf::new();
    shelf.published();
    let other = Host {
        build_id: "other".into(),
        ..host()
    };
    assert!(
        Store::open(shelf.folder.path(), &other)
            .unwrap()
            .list()
            .is_empty()
    );
    assert!(shelf.names().is_empty());
}

#[test]
fn what_is_not_ours_stays() {
    let shelf = Shelf::new();
    let golden = shelf.published();
    fs::create_dir(shelf.folder.path().join("lost+found")).unwrap();
    assert_eq!(shelf.open().list().len(), 1);
    let mut names = shelf.names();
    names.sort();
    assert_eq!(names, [golden.key.as_str(), "lost+found"]);
}

#[test]
fn draft_of_the_wrong_size_is_not_published() {
    let shelf = Shelf::new();
    let store = shelf.open();
    for wrong in [STATE, MEMORY, DISK] {
        let draft = shelf.drafted(&store);
        let file = File::options().write(true).open(draft.folder.join(wrong));
        file.unwrap().set_len(0).unwrap();
        draft.open(&manifest()).unwrap_err();
        store.publish(draft, manifest()).unwrap_err();
        assert!(shelf.names().is_empty(), "{wrong}");
    }
}

#[test]
fn working_set_that_was_not_recorded_is_absent() {
    let shelf = Shelf::new();
    let store = shelf.open();
    let draft = store.draft().unwrap();
    save(&draft.create().unwrap(), &manifest());
    draft.create_working_set().unwrap();
    let golden = store.publish(draft, manifest()).unwrap();
    let working_set = golden.open().unwrap().working_set;
    assert!(matches!(working_set, WorkingSet::Unknown));
    assert_eq!(shelf.open().list().len(), 1);
}

#[test]
fn removed_golden_stays_readable_for_who_holds_it_and_is_removed_once() {
    let shelf = Shelf::new();
    let store = shelf.open();
    let first = store.publish(shelf.drafted(&store), manifest()).unwrap();
    let held = first.open().unwrap();
    let second = store.publish(shelf.drafted(&store), manifest()).unwrap();
    assert_eq!(shelf.names(), [first.key.as_str()]);
    assert!(
        !store.remove(&first).unwrap(),
        "it took the one that replaced it"
    );
    assert!(store.remove(&second).unwrap() && !store.remove(&second).unwrap());
    assert!(store.get(&manifest()).is_none() && shelf.names().is_empty());
    assert_eq!(held.memory.metadata().unwrap().len(), 1 << 20);
}

#[test]
fn last_use_survives_a_restart() {
    let shelf = Shelf::new();
    let golden = shelf.published();
    let old = SystemTime::now() - Duration::from_secs(1000);
    let file = File::options().write(true).open(shelf.path(MANIFEST));
    file.unwrap().set_modified(old).unwrap();
    let again = shelf.open().list().remove(0);
    assert!(again.last_used() < golden.last_used());
    again.touch();
    assert_eq!(shelf.open().list()[0].last_used(), again.last_used());
}

/// Where the process below makes its goldens.
const CHILD_FOLDER: &str = "CABANA_TEST_GOLDENS";

/// Not a test: the process that the next one kills.
#[test]
#[ignore = "runs until it is killed"]
fn makes_and_removes_goldens_until_it_is_killed() {
    let Some(folder) = std::env::var_os(CHILD_FOLDER) else {
        return;
    };
    let store = Store::open(Path::new(&folder), &host()).unwrap();
    for vcpus in (1..=3).cycle() {
        let mut manifest = manifest();
        manifest.template.vcpus = vcpus;
        let draft = store.draft().unwrap();
        save(&draft.create().unwrap(), &manifest);
        draft.create_working_set().unwrap().write_all(b"w").unwrap();
        let golden = store.publish(draft, manifest).unwrap();
        if vcpus == 2 {
            store.remove(&golden).unwrap();
        }
    }
}

#[test]
fn store_is_whole_whenever_its_process_is_killed() {
    let shelf = Shelf::new();
    let name = "makes_and_removes_goldens_until_it_is_killed";
    let mut seen = 0;
    for round in 0..25u64 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", name])
            .env(CHILD_FOLDER, shelf.folder.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // Primes, so that the moments spread over what it does.
        std::thread::sleep(Duration::from_millis(20 + round * 37 % 61));
        child.kill().unwrap();
        child.wait().unwrap();
        for golden in shelf.open().list() {
            let files = golden.open().unwrap();
            let mut state = String::new();
            io::Read::read_to_string(&mut &files.state, &mut state).unwrap();
            assert_eq!(state, "state");
            seen += 1;
        }
        let names = shelf.names();
        let keys = names.iter().all(|name| Key::of_folder(name).is_some());
        assert!(keys, "{names:?}");
    }
    assert!(seen > 0, "no golden was ever there");
}
