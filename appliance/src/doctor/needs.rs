//! What sessions need of a host: tried, not read.

use super::finding::{Finding, Severity};
use super::kvm;
use crate::warden::{self, Confinement};

/// Memory below which hardly a session fits.
const LITTLE_MEMORY_MIB: u64 = 512;
/// What the leaf of a worker is limited by.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// The version of landlock from which on it forbids all that a worker gives up (`worker/src/landlock.rs`): Linux 6.12.
const WHOLE_LANDLOCK: u32 = 6;

pub fn look() -> Vec<Finding> {
    let lsm = std::fs::read_to_string("/sys/kernel/security/lsm").ok();
    vec![
        kvm_finding(),
        memory(std::fs::read_to_string("/proc/meminfo").ok().as_deref()),
        cgroups(),
        user(),
        jail(warden::look_at_confinement()),
        landlock(warden::landlock_version(), lsm.as_deref()),
    ]
}

fn kvm_finding() -> Finding {
    match kvm::check() {
        Ok(report) => Finding::ok(
            "kvm",
            format!(
                "/dev/kvm runs 16-bit and 64-bit guests, up to {} vCPUs each (KVM API version {})",
                report.max_vcpus,
                kvm::API_VERSION
            ),
        ),
        Err(error) => Finding::fails("kvm", error.cause(), error.remedy()),
    }
}

fn memory(meminfo: Option<&str>) -> Finding {
    match meminfo.and_then(available_mib) {
        Some(mib) if mib < LITTLE_MEMORY_MIB => Finding::weaker(
            "memory",
            Severity::Low,
            format!("{mib} MiB available: hardly enough for one session"),
            "give this host more memory, or end what takes it",
        ),
        Some(mib) => Finding::ok("memory", format!("{mib} MiB available")),
        None => Finding::not_told("memory", "/proc/meminfo"),
    }
}

fn available_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib / 1024)
}

fn cgroups() -> Finding {
    if warden::cgroup_version_2() {
        controllers(&warden::cgroup_controllers())
    } else {
        Finding::weaker(
            "cgroups",
            Severity::High,
            "no version 2 at /sys/fs/cgroup: sessions run without CPU and memory limits from the host",
            "boot with systemd.unified_cgroup_hierarchy=1",
        )
    }
}

/// `io` is not used, and is no reason to be worried.
fn controllers(found: &[String]) -> Finding {
    let has = |name: &str| found.iter().any(|found| found == name);
    let missing: Vec<&str> = CONTROLLERS.into_iter().filter(|name| !has(name)).collect();
    let found = if found.is_empty() {
        "none".to_owned()
    } else {
        found.join(", ")
    };
    if missing.is_empty() {
        return Finding::ok(
            "cgroups",
            format!("version 2 at /sys/fs/cgroup, with the controllers {found}"),
        );
    }
    Finding::weaker(
        "cgroups",
        Severity::High,
        format!(
            "version 2 at /sys/fs/cgroup without {}: sessions run without that limit (it has {found})",
            missing.join(" and ")
        ),
        format!(
            "take what mounts or disables it in version 1 away (cgroup_disable=, cgroup_no_v1= on the kernel's command line); \
             in a container, delegate {}",
            missing.join(" and ")
        ),
    )
}

/// What a worker could do to this host.
fn jail(confinement: Confinement) -> Finding {
    match confinement {
        Confinement::Whole { landlock } => Finding::ok(
            "jail",
            format!("workers get an empty root, no network, and landlock (version {landlock})"),
        ),
        Confinement::Weaker(lacks) => Finding::weaker(
            "jail",
            Severity::Medium,
            lacks,
            "start as root, on a kernel with landlock (see there)",
        ),
        Confinement::Refused(why) => Finding::fails(
            "jail",
            format!(
                "workers cannot be kept from the host, so `serve` starts with --unconfined only: {why}"
            ),
            "let the service make namespaces and mount: sysctl -w user.max_net_namespaces=1000000 \
             user.max_pid_namespaces=1000000, or a container with CAP_SYS_ADMIN",
        ),
    }
}

/// `lsm`: what is switched on now, from securityfs.
fn landlock(version: Option<u32>, lsm: Option<&str>) -> Finding {
    match version {
        Some(version) if version >= WHOLE_LANDLOCK => {
            Finding::ok("landlock", format!("version {version}"))
        }
        Some(version) => Finding::weaker(
            "landlock",
            Severity::Low,
            format!(
                "version {version}: signals and abstract sockets are forbidden from {WHOLE_LANDLOCK} on; the workers' namespaces forbid them, too"
            ),
            "use a host kernel from Linux 6.12 on",
        ),
        None => Finding::weaker(
            "landlock",
            Severity::Medium,
            "none: the workers' empty root is the only wall before the host's files",
            match lsm.map(str::trim).filter(|lsm| !lsm.is_empty()) {
                Some(lsm) => format!("boot with lsm=landlock,{lsm}"),
                None => "use a kernel with CONFIG_SECURITY_LANDLOCK, and `landlock` in `lsm=` of its command line".to_owned(),
            },
        ),
    }
}

fn user() -> Finding {
    let uid = rustix::process::geteuid();
    if uid.is_root() {
        return Finding::ok(
            "user",
            "root: the appliance and every worker get ids of their own and no capability",
        );
    }
    Finding::weaker(
        "user",
        Severity::High,
        format!(
            "uid {}: the appliance and all workers share this id, and sessions have no CPU and memory limits from the host",
            uid.as_raw()
        ),
        "start as root to separate them",
    )
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn available_memory_is_read_in_mib() {
        let text = "MemTotal:  16000000 kB\nMemAvailable:    2097152 kB\n";
        assert_eq!(available_mib(text), Some(2048));
        assert_eq!(available_mib("MemTotal: 1 kB\n"), None);
        assert_eq!(memory(None).verdict, Verdict::Unknown);
        assert_eq!(
            memory(Some("MemAvailable: 1024 kB\n")).verdict,
            Verdict::Weaker
        );
    }

    #[test]
    fn missing_controller_is_named() {
        let look = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            controllers(&names)
        };
        let whole = look(&["cpu", "io", "memory", "pids"]);
        assert_eq!(whole.verdict, Verdict::Ok, "{whole:?}");
        assert!(whole.detail.contains("cpu, io, memory, pids"), "{whole:?}");
        let without_io = look(&["cpu", "memory", "pids"]);
        assert_eq!(without_io.verdict, Verdict::Ok, "{without_io:?}");
        let little = look(&["cpu"]);
        assert_eq!(little.verdict, Verdict::Weaker, "{little:?}");
        assert!(little.detail.contains("memory and pids"), "{little:?}");
        assert!(look(&[]).detail.contains("it has none"));
    }

    #[test]
    fn landlock_that_is_switched_off_is_switched_on_beside_what_there_is() {
        assert_eq!(landlock(Some(6), None).verdict, Verdict::Ok);
        assert_eq!(landlock(Some(7), None).verdict, Verdict::Ok);
        let old = landlock(Some(3), None);
        assert_eq!(old.severity, Some(Severity::Low), "{old:?}");
        let off = landlock(None, Some("lockdown,capability,yama,apparmor\n"));
        assert_eq!(
            off.remedy.as_deref(),
            Some("boot with lsm=landlock,lockdown,capability,yama,apparmor")
        );
        assert!(
            landlock(None, None)
                .remedy
                .unwrap()
                .contains("CONFIG_SECURITY_LANDLOCK")
        );
    }

    #[test]
    fn host_that_refuses_namespaces_fails_and_says_how_to_allow_them() {
        let refused = jail(Confinement::Refused("no namespaces".to_owned()));
        assert_eq!(refused.verdict, Verdict::Fails);
        assert!(refused.detail.contains("--unconfined"), "{refused:?}");
        assert!(refused.remedy.unwrap().contains("max_net_namespaces"));
    }
}
