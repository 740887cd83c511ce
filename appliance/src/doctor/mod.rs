//! `cabana doctor`: what this host can do, in words that say what to change.

pub mod kvm;

use std::fmt::Write as _;

use serde::Serialize;

use crate::warden::{self, Confinement};

/// Memory below which hardly a session fits.
const LITTLE_MEMORY_MIB: u64 = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    /// It works, but something is weaker than it could be.
    Weaker,
    /// No guest can run.
    Fails,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    pub name: &'static str,
    pub verdict: Verdict,
    pub detail: String,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Whether guests can run here. Findings that are only weaker do not count.
    pub can_run_guests: bool,
    pub findings: Vec<Finding>,
}

impl Report {
    pub fn make() -> Self {
        let findings = vec![kvm_finding(), memory(), cgroups(), user(), jail()];
        let can_run_guests = findings
            .iter()
            .all(|finding| finding.verdict != Verdict::Fails);
        Self {
            can_run_guests,
            findings,
        }
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        for Finding {
            name,
            verdict,
            detail,
        } in &self.findings
        {
            let mark = match verdict {
                Verdict::Ok => "ok",
                Verdict::Weaker => "weaker",
                Verdict::Fails => "fails",
            };
            let _ = writeln!(text, "{mark:<8}{name:<10}{detail}");
        }
        text.push_str(if self.can_run_guests {
            "This host can run guests.\n"
        } else {
            "This host cannot run guests.\n"
        });
        text
    }
}

fn kvm_finding() -> Finding {
    let (verdict, detail) = match kvm::check() {
        Ok(report) => (
            Verdict::Ok,
            format!(
                "/dev/kvm runs 16-bit and 64-bit guests, up to {} vCPUs each (KVM API version {})",
                report.max_vcpus,
                kvm::API_VERSION
            ),
        ),
        Err(error) => (Verdict::Fails, crate::exit::chain(&error)),
    };
    Finding {
        name: "kvm",
        verdict,
        detail,
    }
}

fn memory() -> Finding {
    let free = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| available_mib(&text));
    let (verdict, detail) = match free {
        Some(mib) if mib < LITTLE_MEMORY_MIB => (
            Verdict::Weaker,
            format!("{mib} MiB available: hardly enough for one session"),
        ),
        Some(mib) => (Verdict::Ok, format!("{mib} MiB available")),
        None => (Verdict::Weaker, "/proc/meminfo cannot be read".to_owned()),
    };
    Finding {
        name: "memory",
        verdict,
        detail,
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
    let (verdict, detail) = if warden::cgroup_version_2() {
        controllers(&warden::cgroup_controllers())
    } else {
        let detail = "no version 2 at /sys/fs/cgroup: sessions run without CPU and memory limits \
                      from the host; boot with systemd.unified_cgroup_hierarchy=1";
        (Verdict::Weaker, detail.to_owned())
    };
    Finding {
        name: "cgroups",
        verdict,
        detail,
    }
}

/// `io` is not used yet, and is no reason to be worried.
fn controllers(found: &[String]) -> (Verdict, String) {
    let missing: Vec<&str> = ["cpu", "memory", "pids"]
        .into_iter()
        .filter(|name| !found.iter().any(|found| found == name))
        .collect();
    let io = match found.iter().any(|name| name == "io") {
        true => "and can limit disk access",
        false => "and cannot limit disk access (no io controller)",
    };
    if missing.is_empty() {
        return (Verdict::Ok, format!("version 2 at /sys/fs/cgroup, {io}"));
    }
    let missing = missing.join(" and ");
    let detail =
        format!("version 2 at /sys/fs/cgroup without {missing}: sessions run without that limit");
    (Verdict::Weaker, detail)
}

/// What a worker could do to this host.
fn jail() -> Finding {
    let (verdict, detail) = match warden::look_at_confinement() {
        Confinement::Whole { landlock } => (
            Verdict::Ok,
            format!("workers get an empty root, no network, and landlock (version {landlock})"),
        ),
        Confinement::Weaker(lacks) => (Verdict::Weaker, lacks),
        Confinement::Refused(why) => (
            Verdict::Fails,
            format!(
                "workers cannot be kept from the host, so `serve` starts with --unconfined only: {why}"
            ),
        ),
    };
    Finding {
        name: "jail",
        verdict,
        detail,
    }
}

fn user() -> Finding {
    let uid = rustix::process::geteuid();
    let (verdict, detail) = if uid.is_root() {
        let detail = "root: the appliance and every worker get ids of their own and no capability";
        (Verdict::Ok, detail.to_owned())
    } else {
        let detail = format!(
            "uid {}: the appliance and all workers share this id, and sessions have no CPU and \
             memory limits from the host; start as root to separate them",
            uid.as_raw()
        );
        (Verdict::Weaker, detail)
    };
    Finding {
        name: "user",
        verdict,
        detail,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(verdicts: &[Verdict]) -> Report {
        let finding = |verdict: &Verdict| Finding {
            name: "x",
            verdict: *verdict,
            detail: "y".to_owned(),
        };
        let findings: Vec<_> = verdicts.iter().map(finding).collect();
        let can_run_guests = findings
            .iter()
            .all(|finding| finding.verdict != Verdict::Fails);
        Report {
            can_run_guests,
            findings,
        }
    }

    #[test]
    fn text_ends_with_the_verdict_and_json_has_it_as_a_flag() {
        let good = report(&[Verdict::Ok, Verdict::Weaker]);
        assert!(good.text().ends_with("This host can run guests.\n"));
        let bad = report(&[Verdict::Ok, Verdict::Fails]);
        assert!(bad.text().ends_with("This host cannot run guests.\n"));
        assert_eq!(serde_json::to_value(&bad).unwrap()["canRunGuests"], false);
    }

    #[test]
    fn available_memory_is_read_in_mib() {
        let text = "MemTotal:  16000000 kB\nMemAvailable:    2097152 kB\n";
        assert_eq!(available_mib(text), Some(2048));
        assert_eq!(available_mib("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn missing_controller_is_named() {
        let names = |names: &[&str]| {
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>()
        };
        let (verdict, detail) = controllers(&names(&["cpu", "io", "memory", "pids"]));
        assert!(
            verdict == Verdict::Ok && detail.contains("can limit disk"),
            "{detail}"
        );
        let (verdict, detail) = controllers(&names(&["cpu", "memory", "pids"]));
        assert!(
            verdict == Verdict::Ok && detail.contains("no io"),
            "{detail}"
        );
        let (verdict, detail) = controllers(&names(&["cpu"]));
        assert!(
            verdict == Verdict::Weaker && detail.contains("memory and pids"),
            "{detail}"
        );
    }

    #[test]
    fn every_finding_has_a_name_and_says_something() {
        for finding in Report::make().findings {
            assert!(
                !finding.name.is_empty() && !finding.detail.is_empty(),
                "{finding:?}"
            );
        }
    }
}
