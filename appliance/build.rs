//! Hands the three guest artefacts to `src/guest.rs`, which embeds them, and asks the linker for a build id.
//!
//! It only looks where it is told to: no download, no build of its own, no search.

use std::path::Path;
use std::process::ExitCode;

const ARTEFACTS: [&str; 3] = ["vmlinux.zst", "initramfs.cpio.zst", "scratch.ext4.zst"];

fn main() -> ExitCode {
    // Goldens are good for the build that made them. Here and not in .cargo/config.toml, where RUSTFLAGS would
    // silently win over it.
    println!("cargo::rustc-link-arg=-Wl,--build-id=sha1");
    println!("cargo::rerun-if-env-changed=CABANA_GUEST_DIR");
    let Some(folder) = std::env::var_os("CABANA_GUEST_DIR") else {
        println!("cargo::error=CABANA_GUEST_DIR is not set: build inside the workspace");
        return ExitCode::FAILURE;
    };
    for artefact in ARTEFACTS {
        let path = Path::new(&folder).join(artefact);
        println!("cargo::rerun-if-changed={}", path.display());
        if !path.is_file() {
            println!(
                "cargo::error=The guest artefact {} is missing: run `cargo dev guest` first",
                path.display()
            );
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
