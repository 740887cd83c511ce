//! `cabana store`: reads and writes the store of an appliance that is stopped.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, lchown};
use std::path::Path;

use serde_json::json;

use super::args::{ExportStore, ImportStore};
use super::output;
use crate::config::{self, Overrides, Paths};
use crate::exit::{Exit, Failure};
use crate::privileges;
use crate::store::{self, ImportError, SledStore, StoreError, Tally};

/// Far more than an appliance ever keeps.
const MAX_IMPORT_BYTES: u64 = 1 << 30;

pub fn export(export: &ExportStore) -> Result<Exit, Failure> {
    let folder = folder(&export.connection.root)?;
    if !folder.join("db").exists() {
        return Err(no_store(&folder));
    }
    // First: a file that cannot be made is known before the store is touched.
    let output = export.output.as_deref().map(new_file).transpose()?;
    let exported = as_owner(&folder, || {
        if export.salvage {
            return store::salvage_pools(&folder).map(store::of_pools);
        }
        let store = SledStore::open(&folder)?;
        store::export(&store, export.with_keys)
    });
    let written = exported.and_then(|exported| {
        let (text, tally) = exported.map_err(|error| failure(&error))?;
        write(&text, output.as_ref())?;
        Ok(tally)
    });
    match written {
        Ok(tally) => {
            eprintln!("cabana: exported {}", counted(&tally));
            Ok(Exit::Ok)
        }
        Err(failure) => {
            if let Some((_, path)) = &output {
                // What is in it, if anything, is not an export.
                let _ = std::fs::remove_file(path);
            }
            Err(failure)
        }
    }
}

pub fn import(import: &ImportStore) -> Result<Exit, Failure> {
    let text = read(&import.file)?;
    let folder = folder(&import.connection.root)?;
    ensure_folder(&folder, &import.connection.root)?;
    let imported = as_owner(&folder, || {
        let store = SledStore::open(&folder)?;
        store::import(&store, &text, import.replace)
    })?;
    let tally = imported.map_err(|error| match &error {
        ImportError::Store(error) => failure(error),
        _ => Failure::of(Exit::Failed, &error),
    })?;
    output::print(&import.output, &json!({ "imported": tally }), |_| {
        format!("Imported {}\n", counted(&tally))
    })?;
    Ok(Exit::Ok)
}

fn folder(root: &Path) -> Result<std::path::PathBuf, Failure> {
    let paths = Paths::under(root).map_err(|error| Failure::of(Exit::Usage, &error))?;
    Ok(paths.store)
}

fn no_store(folder: &Path) -> Failure {
    let line = format!(
        "There is no store at {}: name the --root that the appliance was started with",
        folder.display()
    );
    Failure::new(Exit::Failed, line)
}

fn failure(error: &StoreError) -> Failure {
    match error {
        StoreError::InUse { path } => {
            let line = format!(
                "The store {} is in use: stop the appliance first",
                path.display()
            );
            Failure::new(Exit::Failed, line)
        }
        StoreError::Disk { source, .. } => of_io(source, error),
        other => Failure::of(Exit::Failed, other),
    }
}

fn of_io(source: &io::Error, error: &dyn std::error::Error) -> Failure {
    let exit = match source.kind() {
        io::ErrorKind::PermissionDenied => Exit::Permission,
        _ => Exit::Failed,
    };
    Failure::of(exit, error)
}

fn cannot(what: &str, path: &Path) -> impl Fn(io::Error) -> Failure {
    let line = format!("Cannot {what} {}", path.display());
    move |error| {
        let Failure { exit, line: cause } = of_io(&error, &error);
        Failure::new(exit, format!("{line}: {cause}"))
    }
}

/// The files of the store belong to the appliance's user, who is not trusted: root must neither leave
/// files of its own among them nor follow what lies there.
fn as_owner<T>(folder: &Path, work: impl FnOnce() -> T) -> Result<T, Failure> {
    let owner = std::fs::metadata(folder).map_err(cannot("read", folder))?;
    privileges::acting_as(owner.uid(), work).map_err(|error| Failure::of(Exit::Failed, &error))
}

fn ensure_folder(folder: &Path, root: &Path) -> Result<(), Failure> {
    if folder.exists() {
        return Ok(());
    }
    let config = config::load(root, None, &Overrides::default())
        .map_err(|error| Failure::of(Exit::Usage, &error))?;
    let state = folder.parent().unwrap_or(folder);
    let mut parents = DirBuilder::new();
    parents.recursive(true).mode(0o755);
    parents.create(state).map_err(cannot("make", state))?;
    let mut builder = DirBuilder::new();
    builder
        .mode(0o700)
        .create(folder)
        .map_err(cannot("make", folder))?;
    if rustix::process::geteuid().is_root() {
        let uid = Some(config.uid_base);
        // Made a moment ago, by us; and no link is followed all the same.
        lchown(folder, uid, uid).map_err(cannot("change the owner of", folder))?;
    }
    Ok(())
}

type Output<'a> = (File, &'a Path);

fn new_file(path: &Path) -> Result<Output<'_>, Failure> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let file = options.open(path).map_err(cannot("make", path))?;
    Ok((file, path))
}

fn write(text: &str, output: Option<&Output<'_>>) -> Result<(), Failure> {
    match output {
        Some((file, path)) => {
            let mut file = file;
            let written = file.write_all(text.as_bytes());
            written
                .and_then(|()| file.sync_all())
                .map_err(cannot("write", path))
        }
        None => output::write_whole(text).map_err(|error| Failure::of(Exit::Failed, &error)),
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = if path == Path::new("-") {
        io::stdin().take(MAX_IMPORT_BYTES).read_to_string(&mut text)
    } else {
        File::open(path).and_then(|file| file.take(MAX_IMPORT_BYTES).read_to_string(&mut text))
    };
    read.map_err(cannot("read", path))?;
    Ok(text)
}

fn counted(tally: &Tally) -> String {
    if tally.is_empty() {
        return "nothing: there are no records".to_owned();
    }
    let counts: Vec<_> = tally
        .iter()
        .map(|(table, count)| format!("{count} {table}"))
        .collect();
    counts.join(", ")
}
