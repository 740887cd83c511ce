//! What the tests run against, named by the environment.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value;

use crate::Cli;

/// The binary under test; without it the first `cabana` in `PATH`.
const BINARY_VARIABLE: &str = "CABANA_BIN";
/// An OCI archive with the demo server of `tests/demo` as its entrypoint.
const DEMO_VARIABLE: &str = "CABANA_DEMO_IMAGE";
const DEMO_DEFAULT: &str = "/demo.tar";
/// An OCI archive of a Debian system with `python3`.
const PYTHON_VARIABLE: &str = "CABANA_PYTHON_IMAGE";
const PYTHON_DEFAULT: &str = "/python.tar";
/// An archive of a Debian system with systemd.
const SYSTEMD_VARIABLE: &str = "CABANA_SYSTEMD_ROOT";
const SYSTEMD_DEFAULT: &str = "/systemd.tar";
/// The storage of a registry with the images of real servers.
const REGISTRY_VARIABLE: &str = "CABANA_REGISTRY_STORAGE";
const REGISTRY_DEFAULT: &str = "/registry";
/// `1`: a host that cannot run guests is a failure and not a reason to skip.
const REQUIRE_KVM_VARIABLE: &str = "CABANA_REQUIRE_KVM";
/// `1`: the host is there for the tests alone, so that whatever is new on it is theirs.
const OWN_HOST_VARIABLE: &str = "CABANA_OWN_HOST";

/// The binary under test, as an absolute path without links.
pub fn cabana() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let candidates: Vec<PathBuf> = match env::var_os(BINARY_VARIABLE) {
            Some(path) => vec![path.into()],
            None => env::split_paths(&env::var_os("PATH").unwrap_or_default())
                .map(|folder| folder.join("cabana"))
                .collect(),
        };
        let found = candidates.iter().find_map(|path| path.canonicalize().ok());
        found.unwrap_or_else(|| {
            panic!("no `cabana` to test: set {BINARY_VARIABLE} or put it into PATH")
        })
    })
}

pub fn demo_image() -> PathBuf {
    artifact(DEMO_VARIABLE, DEMO_DEFAULT)
}

pub fn python_image() -> PathBuf {
    artifact(PYTHON_VARIABLE, PYTHON_DEFAULT)
}

pub fn systemd_root() -> PathBuf {
    artifact(SYSTEMD_VARIABLE, SYSTEMD_DEFAULT)
}

pub fn registry_storage() -> PathBuf {
    artifact(REGISTRY_VARIABLE, REGISTRY_DEFAULT)
}

fn artifact(variable: &str, default: &str) -> PathBuf {
    let path = env::var_os(variable).map_or_else(|| PathBuf::from(default), PathBuf::from);
    assert!(
        path.exists(),
        "there is nothing at {}: set {variable}",
        path.display()
    );
    path
}

/// Whether guests must be able to run here.
pub fn kvm_is_required() -> bool {
    is_set(REQUIRE_KVM_VARIABLE)
}

/// Whether nobody else uses this host.
pub fn host_is_ours() -> bool {
    is_set(OWN_HOST_VARIABLE)
}

fn is_set(variable: &str) -> bool {
    env::var_os(variable).is_some_and(|value| value == "1")
}

/// What `cabana doctor` says about this host.
pub fn doctor() -> Value {
    let ran = Cli::without_root().run(&["doctor", "--json"]);
    serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("no JSON ({e}): {ran:#?}"))
}

/// `Err`: why guests cannot run here, in the words of `cabana doctor`.
pub fn kvm() -> Result<(), &'static str> {
    static KVM: OnceLock<Result<(), String>> = OnceLock::new();
    let found = KVM.get_or_init(|| {
        let report = doctor();
        if report["canRunGuests"] == true {
            return Ok(());
        }
        let findings = report["findings"].as_array().into_iter().flatten();
        let failed = findings.filter(|finding| finding["verdict"] == "fails");
        let reasons: Vec<_> = failed
            .filter_map(|finding| {
                let (detail, remedy) = (finding["detail"].as_str()?, finding["remedy"].as_str()?);
                Some(format!("{detail}: {remedy}"))
            })
            .collect();
        Err(reasons.join("; "))
    });
    found.as_ref().copied().map_err(String::as_str)
}
