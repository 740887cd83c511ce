//! Where everything lives, under one root.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::ConfigError;

/// `sun_path` of `unix(7)` with its final zero.
const SOCKET_PATH_BYTES: usize = 108;
/// `workers/`, 32 hexadecimal digits, `/orders.sock` and the slash in front.
const LONGEST_BELOW_RUN: usize = "/workers/".len() + 32 + "/orders.sock".len();

/// Folders and sockets of one appliance. All of them move with `--root`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paths {
    pub config_file: PathBuf,
    /// Owned by root when the warden is root; the folders below belong to the appliance.
    pub state: PathBuf,
    pub store: PathBuf,
    pub images: PathBuf,
    pub golden: PathBuf,
    pub disks: PathBuf,
    pub logs: PathBuf,
    pub tls: PathBuf,
    /// What the warden writes down about its processes. Its own, as the state folder is.
    pub records: PathBuf,
    pub run: PathBuf,
    pub workers: PathBuf,
    /// Who owns the sessions: it outlives an appliance process as workers do, and a reboot as little.
    pub sessions: PathBuf,
    pub admin_socket: PathBuf,
}

impl Paths {
    pub fn under(root: &Path) -> Result<Self, ConfigError> {
        let root = std::path::absolute(root).map_err(|source| ConfigError::Root {
            root: root.to_owned(),
            source,
        })?;
        let state = root.join("var/lib/cabana");
        let run = root.join("run/cabana");
        let longest = run.as_os_str().len() + LONGEST_BELOW_RUN;
        if longest >= SOCKET_PATH_BYTES {
            return Err(ConfigError::RootTooLong {
                spare: SOCKET_PATH_BYTES - 1 - LONGEST_BELOW_RUN - "/run/cabana".len(),
                root,
            });
        }
        Ok(Self {
            config_file: root.join("etc/cabana/cabana.toml"),
            store: state.join("store"),
            images: state.join("images"),
            golden: state.join("golden"),
            disks: state.join("disks"),
            logs: state.join("logs"),
            tls: state.join("tls"),
            records: state.join("warden"),
            workers: run.join("workers"),
            sessions: run.join("sessions"),
            admin_socket: run.join("admin.sock"),
            state,
            run,
        })
    }

    /// The folders that belong to the appliance and outlive it.
    pub fn kept(&self) -> [&Path; 6] {
        [
            &self.store,
            &self.images,
            &self.golden,
            &self.disks,
            &self.logs,
            &self.tls,
        ]
        .map(PathBuf::as_path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_moves_every_path() {
        let paths = Paths::under(Path::new("/tmp/x")).unwrap();
        let all = [&paths.config_file, &paths.state, &paths.run, &paths.workers];
        for path in all.into_iter().map(PathBuf::as_path).chain(paths.kept()) {
            assert!(
                path.starts_with("/tmp/x"),
                "{} is outside the root",
                path.display()
            );
        }
        assert_eq!(
            paths.admin_socket,
            Path::new("/tmp/x/run/cabana/admin.sock")
        );
    }

    #[test]
    fn root_that_leaves_no_room_for_a_socket_name_is_refused() {
        let root = format!("/{}", "r".repeat(SOCKET_PATH_BYTES));
        let error = Paths::under(Path::new(&root)).unwrap_err().to_string();
        assert!(error.contains("too long"), "{error}");
        let room: usize = error
            .split_whitespace()
            .find_map(|word| word.parse().ok())
            .unwrap();
        let longest = format!("/{}", "r".repeat(room - 1));
        Paths::under(Path::new(&longest)).unwrap();
        Paths::under(Path::new(&format!("{longest}r"))).unwrap_err();
    }
}
