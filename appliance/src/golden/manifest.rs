//! What a golden was made of. A golden is used where all of it is the same, and nowhere else.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::build_id;
use crate::worker::spec::ForkPoint;

/// Raised when the files beside a manifest, or the fields of one, change their meaning.
pub const FORMAT: u32 = 1;
/// Hexadecimal digits of a key: 128 bits, so no two manifests ever share one by chance.
const KEY_DIGITS: usize = 32;

/// Everything that a golden depends on. The CPU share of a pool is not part of it: it is a limit on
/// the worker, not a property of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Manifest {
    pub format: u32,
    pub host: Host,
    pub template: Template,
}

/// The part that is the same for all goldens of one appliance on one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Host {
    /// The GNU build id of the binary: state files and devices are of this build alone.
    pub build_id: String,
    /// SHA-256 of what is embedded.
    pub kernel: String,
    pub initramfs: String,
    pub scratch: String,
    /// The process that a guest is: it wrote the state, and reads it.
    pub worker: String,
    /// Digest of what a guest is told of this CPU. It cannot change under a running guest.
    pub cpu: String,
    /// `uname -r` of the host, whose KVM wrote the state.
    pub host_kernel: String,
}

/// The part that is a pool's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Template {
    /// The manifest digest of the image.
    pub root_image: String,
    pub vcpus: u8,
    pub mem_mib: u32,
    pub disk_bytes: u64,
    pub fork_point: ForkPoint,
    /// Digest of the container's settings, environment included, and of the startup probe that it has
    /// passed, when the container runs already in the golden.
    pub container: Option<String>,
}

impl Manifest {
    /// The manifest of a golden that is made here and now.
    pub fn new(host: &Host, template: Template) -> Self {
        Self {
            format: FORMAT,
            host: host.clone(),
            template,
        }
    }

    /// The name of the golden's folder.
    pub fn key(&self) -> Key {
        // Plain structs of strings and numbers: there is nothing in them that JSON cannot hold. The order
        // of the fields is that of the declaration.
        let text = serde_json::to_vec(self).unwrap_or_default();
        Key(hex(&Sha256::digest(text))[..KEY_DIGITS].to_owned())
    }

    /// The names of the fields in which `self` is not `other`, like `host.cpu`.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let value = |manifest: &Self| serde_json::to_value(manifest).unwrap_or_default();
        let mut names = Vec::new();
        compare("", &value(self), &value(other), &mut names);
        names
    }
}

fn compare(name: &str, one: &Value, other: &Value, names: &mut Vec<String>) {
    match (one, other) {
        (Value::Object(fields), Value::Object(others)) => {
            for (field, value) in fields {
                let name = match name {
                    "" => field.clone(),
                    name => format!("{name}.{field}"),
                };
                compare(
                    &name,
                    value,
                    others.get(field).unwrap_or(&Value::Null),
                    names,
                );
            }
        }
        _ if one != other => names.push(name.to_owned()),
        _ => {}
    }
}

impl Host {
    /// `packed` are kernel, initramfs, scratch file system and worker as embedded; `cpu` comes from the warden,
    /// which opened `/dev/kvm`. What is not known gets a value that no other run has, so that nothing is
    /// reused that could be wrong.
    pub fn new(build_id: Option<String>, cpu: Option<String>, packed: [&[u8]; 4]) -> Self {
        let [kernel, initramfs, scratch, worker] = packed.map(sha256);
        let unique = |what: &str| {
            tracing::warn!("{what}: goldens are made anew at every start");
            format!("unknown-{}", Uuid::new_v4().simple())
        };
        Self {
            build_id: build_id.unwrap_or_else(|| unique("This binary has no GNU build id")),
            kernel,
            initramfs,
            scratch,
            worker,
            cpu: cpu.unwrap_or_else(|| unique("The CPU of this host cannot be described")),
            host_kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
        }
    }

    /// The build id of the running binary, as text. Read it before privileges are dropped: the file need
    /// not be readable for everybody.
    pub fn build_id() -> Option<String> {
        build_id::of_this_process().map(|id| hex(&id))
    }
}

/// SHA-256 in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Names a golden: the first 32 hexadecimal digits of the SHA-256 of its manifest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

impl Key {
    /// The key that a folder of this name belongs to.
    pub fn of_folder(name: &str) -> Option<Self> {
        let digits = name.len() == KEY_DIGITS
            && name
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        digits.then(|| Self(name.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn host() -> Host {
        Host {
            build_id: "b1".into(),
            kernel: "k".into(),
            initramfs: "i".into(),
            scratch: "s".into(),
            worker: "w".into(),
            cpu: "c".into(),
            host_kernel: "6.12".into(),
        }
    }

    pub fn template() -> Template {
        Template {
            root_image: "sha256:d".into(),
            vcpus: 1,
            mem_mib: 1,
            disk_bytes: 1 << 20,
            fork_point: ForkPoint::BeforeStart,
            container: None,
        }
    }

    pub fn manifest() -> Manifest {
        Manifest::new(&host(), template())
    }

    /// One manifest for each field, in which only that field is another.
    fn variants() -> Vec<(&'static str, Manifest)> {
        let with_host = |change: fn(&mut Host)| {
            let mut other = manifest();
            change(&mut other.host);
            other
        };
        let with = |change: fn(&mut Template)| {
            let mut other = manifest();
            change(&mut other.template);
            other
        };
        let format = Manifest {
            format: FORMAT + 1,
            ..manifest()
        };
        vec![
            ("format", format),
            (
                "host.buildId",
                with_host(|host| host.build_id = "b2".into()),
            ),
            ("host.kernel", with_host(|host| host.kernel = "x".into())),
            (
                "host.initramfs",
                with_host(|host| host.initramfs = "x".into()),
            ),
            ("host.scratch", with_host(|host| host.scratch = "x".into())),
            ("host.worker", with_host(|host| host.worker = "x".into())),
            ("host.cpu", with_host(|host| host.cpu = "x".into())),
            (
                "host.hostKernel",
                with_host(|host| host.host_kernel = "x".into()),
            ),
            ("template.rootImage", with(|it| it.root_image = "x".into())),
            ("template.vcpus", with(|it| it.vcpus = 2)),
            ("template.memMib", with(|it| it.mem_mib = 2)),
            ("template.diskBytes", with(|it| it.disk_bytes = 2)),
            (
                "template.forkPoint",
                with(|it| it.fork_point = ForkPoint::AfterReady),
            ),
            (
                "template.container",
                with(|it| it.container = Some("x".into())),
            ),
        ]
    }

    #[test]
    fn every_field_changes_the_key_and_is_named_when_it_differs() {
        let variants = variants();
        for (name, other) in &variants {
            assert_ne!(other.key(), manifest().key(), "{name}");
            assert_eq!(manifest().differences(other), [*name]);
        }
        let fields: usize = serde_json::to_value(manifest())
            .unwrap()
            .as_object()
            .unwrap()
            .values()
            .map(|value| value.as_object().map_or(1, serde_json::Map::len))
            .sum();
        assert_eq!(
            variants.len(),
            fields,
            "a field is not covered by this test"
        );
        assert!(manifest().differences(&manifest()).is_empty());
    }

    #[test]
    fn key_of_a_manifest_written_and_read_back_is_the_same() {
        let text = serde_json::to_string_pretty(&manifest()).unwrap();
        let back: Manifest = serde_json::from_str(&text).unwrap();
        assert_eq!((back.key(), &back), (manifest().key(), &manifest()));
        assert_eq!(Key::of_folder(back.key().as_str()), Some(back.key()));
    }

    #[test]
    fn manifest_with_a_field_of_another_build_is_not_read() {
        let text = serde_json::to_string(&manifest()).unwrap();
        let more = text.replacen("{\"format\"", "{\"colour\":1,\"format\"", 1);
        assert_ne!(more, text);
        serde_json::from_str::<Manifest>(&more).unwrap_err();
    }

    #[test]
    fn other_names_are_not_keys() {
        let good = "0123456789abcdef0123456789abcdef";
        assert!(Key::of_folder(good).is_some());
        for bad in [
            "",
            ".new-1",
            "lost+found",
            &good[1..],
            &good.to_uppercase(),
            "../x",
        ] {
            assert!(Key::of_folder(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn what_is_not_known_of_a_host_is_never_the_same_again() {
        let packed: [&[u8]; 4] = [b"k", b"i", b"s", b"w"];
        let known = || Host::new(Some("b".into()), Some("c".into()), packed);
        assert_eq!(known(), known());
        let nameless = || Host::new(None, Some("c".into()), packed);
        assert_ne!(nameless(), nameless());
        let strange = || Host::new(Some("b".into()), None, packed);
        assert_ne!(strange(), strange());
    }

    #[test]
    fn this_binary_has_a_build_id() {
        let id = Host::build_id().unwrap();
        assert!(id.len() >= 16 && id == Host::build_id().unwrap(), "{id}");
    }
}
