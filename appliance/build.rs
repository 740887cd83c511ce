//! Hands the guest artefacts to `src/guest.rs` and the worker to `src/warden/program.rs`, which embed them, and asks the linker for a
//! build id.
//!
//! It only looks where it is told to: no download, no build of its own, no search.

use std::path::Path;
use std::process::ExitCode;

/// By the variable that names their folder.
const ARTEFACTS: [(&str, &[&str]); 2] = [
    (
        "CABANA_GUEST_DIR",
        &["vmlinux.zst", "initramfs.cpio.zst", "scratch.ext4.zst"],
    ),
    ("CABANA_WORKER_DIR", &["cabana-worker.zst"]),
];

fn main() -> ExitCode {
    // Goldens are good for the build that made them. Here and not in .cargo/config.toml, where RUSTFLAGS would
    // silently win over it.
    println!("cargo::rustc-link-arg=-Wl,--build-id=sha1");
    for (variable, artefacts) in ARTEFACTS {
        println!("cargo::rerun-if-env-changed={variable}");
        let Some(folder) = std::env::var_os(variable) else {
            println!("cargo::error={variable} is not set: build inside the workspace");
            return ExitCode::FAILURE;
        };
        for artefact in artefacts {
            let path = Path::new(&folder).join(artefact);
            println!("cargo::rerun-if-changed={}", path.display());
            if !path.is_file() {
                println!(
                    "cargo::error=The artefact {} is missing: run `cargo dev guest` first",
                    path.display()
                );
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
