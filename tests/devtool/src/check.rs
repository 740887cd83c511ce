//! `cargo dev check`: what needs no virtual machine. It is the first thing that CI runs.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::cache::Cache;
use crate::suite::Report;
use crate::workspace::Workspace;
use crate::{azure_sdk, command, deny, guest, packages, schemathesis, suite};

#[derive(Debug, Default, clap::Args)]
pub struct Arguments {
    /// Fail where the database of published faults of crates cannot be fetched (also: CABANA_REQUIRE_ADVISORIES=1)
    #[arg(long)]
    advisories: bool,
}

/// `cargo dev check`
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<Report> {
    run_with(workspace, arguments, &[])
}

/// The same, with variables that name what some unit tests need.
pub fn run_with(
    workspace: &Workspace,
    arguments: &Arguments,
    variables: &[(&str, PathBuf)],
) -> Result<Report> {
    // The appliance embeds the guest, so that even its lints need one.
    let cache = Cache::open()?;
    guest::build(workspace, &cache)?;
    packages::ensure(workspace, &[packages::CHECK])?;
    let sdk = azure_sdk::PACKAGE.environments(workspace, &cache)?;
    let schemathesis = schemathesis::python(workspace, &cache)?;
    titled(
        "Format",
        workspace.cargo().args(["fmt", "--all", "--check"]),
    )?;
    deny::check(workspace, &cache, arguments.advisories)?;
    titled(
        "Lints",
        workspace.cargo().args([
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--",
            "--deny",
            "warnings",
        ]),
    )?;
    let mut documentation = workspace.cargo();
    documentation
        .args([
            "doc",
            "--quiet",
            "--workspace",
            "--no-deps",
            "--document-private-items",
        ])
        .env("RUSTDOCFLAGS", "--deny warnings");
    titled("Documentation", &mut documentation)?;
    eprintln!("== Unit tests");
    let mut tests = workspace.cargo();
    tests
        .args(["test", "--workspace", "--exclude", "e2e"])
        .env(azure_sdk::VARIABLE, sdk)
        .env(schemathesis::VARIABLE, schemathesis)
        .envs(variables.iter().map(|(name, value)| (*name, value)));
    let report = suite::run_here(&mut tests)?;
    eprintln!("Checked: {report}");
    Ok(report)
}

fn titled(title: &str, command: &mut Command) -> Result<()> {
    eprintln!("== {title}");
    command::shown(command)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use cargo_metadata::{CargoOpt, DependencyKind, MetadataCommand};

    /// Every package that `name` is built from, tests left out.
    fn closure(name: &str) -> BTreeSet<String> {
        let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml");
        let metadata = MetadataCommand::new()
            .manifest_path(manifest)
            .features(CargoOpt::AllFeatures)
            .exec()
            .expect("cargo metadata runs");
        let names: BTreeMap<_, _> = metadata
            .packages
            .iter()
            .map(|package| (&package.id, package.name.to_string()))
            .collect();
        let nodes = metadata.resolve.expect("the graph is resolved").nodes;
        let nodes: BTreeMap<_, _> = nodes.iter().map(|node| (&node.id, node)).collect();
        let start = metadata
            .packages
            .iter()
            .find(|package| package.name == name)
            .expect("the package is ours");
        let mut open = vec![&start.id];
        let mut seen = BTreeSet::new();
        while let Some(id) = open.pop() {
            for dependency in &nodes[id].deps {
                let built_in = dependency
                    .dep_kinds
                    .iter()
                    .any(|kind| kind.kind == DependencyKind::Normal);
                if built_in && seen.insert(names[&dependency.pkg].clone()) {
                    open.push(&dependency.pkg);
                }
            }
        }
        seen
    }

    fn assert_none(name: &str, forbidden: &[&str]) {
        let used = closure(name);
        let found: Vec<_> = forbidden
            .iter()
            .filter(|package| used.contains(**package))
            .collect();
        assert!(found.is_empty(), "{name} must not depend on {found:?}");
    }

    #[test]
    fn vmm_knows_no_async_no_http_no_store_and_no_wire() {
        assert_none(
            "vmm",
            &[
                "tokio",
                "hyper",
                "sled",
                "wire",
                "agent",
                "cabana",
                "appliance",
            ],
        );
    }

    #[test]
    fn wire_depends_on_nothing_of_ours() {
        assert_none(
            "wire",
            &[
                "vmm",
                "agent",
                "appliance",
                "e2e",
                "demo",
                "devtool",
                "tokio",
            ],
        );
    }

    #[test]
    fn agent_depends_on_wire_and_stays_small() {
        assert!(closure("agent").contains("wire"));
        assert_none(
            "agent",
            &[
                "vmm",
                "appliance",
                "tokio",
                "hyper",
                "e2e",
                "demo",
                "devtool",
            ],
        );
    }

    #[test]
    fn appliance_depends_on_worker_vmm_and_wire_only() {
        let used = closure("appliance");
        assert!(
            ["worker", "vmm", "wire"]
                .iter()
                .all(|name| used.contains(*name))
        );
        assert_none("appliance", &["agent", "e2e", "demo", "devtool"]);
    }

    /// Asked of `cargo tree`: the metadata also lists what no feature switches on.
    #[test]
    fn appliance_has_one_provider_of_cryptography() {
        let tree = std::process::Command::new(env!("CARGO"))
            .args(["tree", "--package", "appliance", "--edges", "normal"])
            .args(["--prefix", "none", "--target", "x86_64-unknown-linux-gnu"])
            .output()
            .expect("cargo tree runs");
        assert!(tree.status.success(), "{tree:?}");
        let tree = String::from_utf8_lossy(&tree.stdout).into_owned();
        let has = |name: &str| {
            tree.lines()
                .any(|line| line.split(' ').next() == Some(name))
        };
        assert!(has("aws-lc-rs"));
        for other in ["ring", "native-tls", "openssl", "openssl-sys"] {
            assert!(!has(other), "appliance must not depend on {other}");
        }
    }

    #[test]
    fn worker_has_none_of_the_code_that_talks_to_the_world_or_to_people() {
        assert!(closure("worker").contains("vmm"));
        assert_none(
            "worker",
            &[
                "tokio",
                "hyper",
                "http",
                "rustls",
                "aws-lc-rs",
                "clap",
                "sled",
                "tar",
                "zstd",
                "tracing-subscriber",
                "regex-automata",
                "jiff",
                "appliance",
                "agent",
                "wire",
                "e2e",
                "demo",
                "devtool",
            ],
        );
    }

    #[test]
    fn fuzz_is_in_nothing_that_is_shipped_and_depends_on_nothing() {
        for name in ["vmm", "wire", "agent", "worker", "appliance"] {
            assert_none(name, &["fuzz"]);
        }
        assert!(closure("fuzz").is_empty());
    }

    #[test]
    fn tests_reach_the_appliance_only_from_outside() {
        for name in ["e2e", "devtool", "demo"] {
            assert_none(name, &["appliance", "worker", "agent", "vmm", "wire"]);
        }
    }
}
