//! Somebody who may write into a folder that root works on puts something else there, before root comes and while it is at work (the class of
//! CVE-2026-1386). What it stands for must stay as it was: content, names, owner and mode.
//!
//! As root the folders are given to another user, as in earnest; anybody else gives them to itself, and the rest is the same.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use rustix::fs::{CWD, FileType, Mode, RenameFlags, mknodat, renameat_with};

use super::{Folders, clear, give};
use crate::config::Paths;
use crate::warden::records::Records;

/// Whose the folders shall be: nobody's who is there.
const STRANGER: u32 = 1_999_999_999;
/// Times that root works while somebody exchanges what it works on: some hundred of these meet in the midst of it.
const ROUNDS: u32 = 2_000;

fn owner() -> Option<u32> {
    rustix::process::geteuid().is_root().then_some(STRANGER)
}

/// What must not change.
struct Victim {
    _root: tempfile::TempDir,
    folder: PathBuf,
}

type Seen = BTreeMap<OsString, (u32, u32, u32, u64, Vec<u8>)>;

impl Victim {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("victim");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("shadow"), "root:x").unwrap();
        fs::create_dir(folder.join("inner")).unwrap();
        for (name, mode) in [("", 0o755), ("shadow", 0o640), ("inner", 0o751)] {
            fs::set_permissions(folder.join(name), Permissions::from_mode(mode)).unwrap();
        }
        Self {
            _root: root,
            folder,
        }
    }

    fn file(&self) -> PathBuf {
        self.folder.join("shadow")
    }

    fn see(&self) -> Seen {
        let names = fs::read_dir(&self.folder).unwrap();
        let mut paths: Vec<PathBuf> = names.map(|entry| entry.unwrap().path()).collect();
        paths.push(self.folder.clone());
        let look = |path: PathBuf| {
            let found = fs::symlink_metadata(&path).unwrap();
            let content = fs::read(&path).unwrap_or_default();
            let name = path.file_name().unwrap().to_owned();
            let links = found.nlink();
            (
                name,
                (found.uid(), found.gid(), found.mode(), links, content),
            )
        };
        paths.into_iter().map(look).collect()
    }
}

fn paths() -> (tempfile::TempDir, Paths) {
    let root = tempfile::tempdir().unwrap();
    fs::set_permissions(root.path(), Permissions::from_mode(0o755)).unwrap();
    let paths = Paths::under(root.path()).unwrap();
    (root, paths)
}

fn fifo(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

/// Runs `work` again and again while another thread exchanges `one` and `other`, each as often as it can.
fn while_exchanged(one: &Path, other: &Path, mut work: impl FnMut()) {
    let (over, exchanges) = (AtomicBool::new(false), AtomicU32::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                // Either may be gone for a moment, while root removes it.
                if renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).is_ok() {
                    exchanges.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        for _ in 0..ROUNDS {
            work();
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(exchanges.into_inner() > 0, "nobody was in the way");
}

#[test]
fn what_is_planted_in_the_place_of_a_folder_or_of_the_lock_is_refused() {
    let victim = Victim::new();
    let before = victim.see();
    type Plant = fn(&Victim, &Path);
    let plants: [(&str, Plant); 4] = [
        ("link to a folder", |victim, at| {
            symlink(&victim.folder, at).unwrap()
        }),
        ("link to a file", |victim, at| {
            symlink(victim.file(), at).unwrap()
        }),
        ("file", |_, at| fs::write(at, "").unwrap()),
        ("FIFO", |_, at| fifo(at)),
    ];
    for (what, plant) in plants {
        let (_root, paths) = paths();
        fs::create_dir_all(&paths.state).unwrap();
        plant(&victim, &paths.images);
        Folders::prepare(&paths, owner()).expect_err(what);
        fs::remove_file(&paths.images).unwrap();
        drop(Folders::prepare(&paths, owner()).unwrap());
        // The records are root's alone, and so is what may lie there.
        plant(&victim, &paths.records);
        Records::open(&paths.records).expect_err(what);
        assert_eq!(victim.see(), before, "{what}");
    }
    let (_root, paths) = paths();
    fs::create_dir_all(&paths.state).unwrap();
    symlink(victim.file(), paths.state.join("lock")).unwrap();
    Folders::prepare(&paths, owner()).expect_err("a link is no lock");
    assert_eq!(victim.see(), before);
}

#[test]
fn folder_that_is_exchanged_for_a_link_while_it_is_given_away_is_given_away_and_nothing_else() {
    let victim = Victim::new();
    let before = victim.see();
    let (root, paths) = paths();
    fs::create_dir_all(&paths.images).unwrap();
    let link = root.path().join("link");
    symlink(&victim.folder, &link).unwrap();
    let own = fs::symlink_metadata(root.path()).unwrap().uid();
    let (mut given, mut refused) = (0, 0);
    while_exchanged(&paths.images, &link, || {
        match give(&paths.images, owner()) {
            Ok(()) => given += 1,
            Err(_) => refused += 1,
        }
        // As it was, wherever it is by now, so that the next round has something to do.
        for place in [&paths.images, &link] {
            let _ = std::os::unix::fs::lchown(place, Some(own), None);
        }
    });
    assert_eq!(
        victim.see(),
        before,
        "given {given} times, refused {refused}"
    );
}

#[test]
fn run_folder_is_emptied_of_whatever_its_owner_has_put_there_and_nothing_else_is() {
    let victim = Victim::new();
    let (_root, paths) = paths();
    let worker = paths.workers.join("0123");
    fs::create_dir_all(&worker).unwrap();
    symlink(&victim.folder, worker.join("folder")).unwrap();
    symlink(victim.file(), paths.run.join("admin.sock")).unwrap();
    symlink("folder/..", worker.join("loop")).unwrap();
    fifo(&worker.join("console.log"));
    // A second name of a file that is not its owner's; where that is forbidden (`protected_hardlinks`) it is not tried.
    let linked = fs::hard_link(victim.file(), worker.join("hard")).is_ok();
    let before = victim.see();
    let mut folders = Folders::prepare(&paths, owner()).unwrap();
    folders.open_run(owner(), false).unwrap();
    assert_eq!(fs::read_dir(&paths.run).unwrap().count(), 0);
    let mut after = victim.see();
    if linked {
        // The one thing that removing a name changes.
        after.get_mut(std::ffi::OsStr::new("shadow")).unwrap().3 += 1;
    }
    assert_eq!(after, before);
}

#[test]
fn folder_that_is_exchanged_for_a_link_while_the_run_folder_is_emptied_leads_nowhere() {
    let victim = Victim::new();
    let before = victim.see();
    let (root, paths) = paths();
    let link = root.path().join("link");
    symlink(&victim.folder, &link).unwrap();
    while_exchanged(&paths.workers, &link, || {
        for depth in ["a/b", "c"] {
            // May meet the link, and then makes nothing: a folder of this name is not there.
            let _ = fs::create_dir_all(&paths.run);
            let _ = fs::create_dir(&paths.workers);
            if fs::symlink_metadata(&paths.workers).is_ok_and(|found| found.is_dir()) {
                let _ = fs::create_dir_all(root.path().join("filled").join(depth));
                let _ = fs::rename(root.path().join("filled"), paths.workers.join("filled"));
            }
        }
        // Refused where something is put there faster than it is removed; what counts is what it touches.
        let _ = clear(&paths.run);
        let _ = fs::symlink_metadata(&link)
            .is_err()
            .then(|| symlink(&victim.folder, &link));
    });
    let planted = victim.folder.join("filled");
    if planted.exists() {
        // Moved there by the test itself, whose rename met the link.
        fs::remove_dir_all(planted).unwrap();
    }
    assert_eq!(victim.see(), before);
}
