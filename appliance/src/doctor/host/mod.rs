//! How processor, memory and kernel of this host are set up, from what the kernel says of itself.
//!
//! Everything here is made of the texts of files, so that a test can be any host. A file that is not there is no failure: kernels
//! differ in what they tell, and containers hide some of it.

mod cpu;
mod kernel;
mod kvm_module;
mod memory;

use std::fs;
use std::path::{Path, PathBuf};

use super::finding::Finding;

/// The files of a host, below `/` or wherever a test has put some.
struct Files {
    root: PathBuf,
}

impl Files {
    /// Without the line's end; `None` for whatever reason.
    fn read(&self, path: &str) -> Option<String> {
        let text = fs::read_to_string(self.path(path)).ok()?;
        Some(text.trim_end().to_owned())
    }

    /// The names in a folder, in their order; none if there is no such folder.
    fn names(&self, path: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(path)) else {
            return Vec::new();
        };
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        names.sort();
        names
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }
}

/// `root`: `/`, but in tests.
pub fn look(root: &Path) -> Vec<Finding> {
    let files = Files {
        root: root.to_owned(),
    };
    let today = jiff::Timestamp::now()
        .to_zoned(jiff::tz::TimeZone::UTC)
        .date();
    let mut findings = cpu::look(&files);
    findings.extend(kvm_module::look(&files));
    findings.extend(memory::look(&files));
    findings.push(kernel::look(&files, today));
    findings
}

#[cfg(test)]
pub(in crate::doctor::host) mod tests {
    use super::super::finding::{Severity, Verdict};
    use super::*;

    /// A host with these files and no other.
    pub fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, Files) {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }
        let root = folder.path().to_owned();
        (folder, Files { root })
    }

    #[test]
    fn host_that_tells_nothing_is_unknown_and_not_weak() {
        let (folder, _) = host(&[]);
        let findings = look(folder.path());
        assert!(findings.len() > 8, "{findings:?}");
        for finding in findings {
            assert_eq!(finding.verdict, Verdict::Unknown, "{finding:?}");
            assert_eq!(finding.remedy, None, "{finding:?}");
        }
    }

    /// Values of a server with two Xeons of 2017 whose operator has left everything as it came.
    #[test]
    fn intel_server_as_it_came_has_its_holes_named() {
        let (folder, _) = host(&[
            (
                cpu::FLAWS_FILE_L1TF,
                "Mitigation: PTE Inversion; VMX: conditional cache flushes, SMT vulnerable",
            ),
            (
                "/sys/devices/system/cpu/vulnerabilities/itlb_multihit",
                "KVM: Mitigation: Split huge pages",
            ),
            (
                "/sys/devices/system/cpu/vulnerabilities/meltdown",
                "Mitigation: PTI",
            ),
            ("/sys/devices/system/cpu/smt/control", "on"),
            ("/sys/devices/system/cpu/smt/active", "1"),
            ("/sys/kernel/mm/ksm/run", "0"),
            (
                "/proc/swaps",
                "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n/dev/sda2                               partition\t8388604\t\t0\t\t-2",
            ),
            ("/sys/module/kvm_intel/parameters/nested", "Y"),
            ("/sys/module/kvm_intel/parameters/ept", "Y"),
            ("/sys/module/kvm/parameters/nx_huge_pages", "Y"),
            ("/sys/module/kvm/parameters/min_timer_period_us", "200"),
            (
                "/proc/cpuinfo",
                "processor\t: 0\nflags\t\t: fpu vmx\nmicrocode\t: 0x2007006",
            ),
        ]);
        let findings = look(folder.path());
        let weak: Vec<(&str, Severity)> = findings
            .iter()
            .filter(|finding| finding.verdict == Verdict::Weaker)
            .map(|finding| (&*finding.name, finding.severity.unwrap()))
            .collect();
        assert_eq!(
            weak,
            [
                ("l1tf", Severity::Medium),
                ("smt", Severity::Medium),
                ("nested", Severity::Low),
                ("swap", Severity::Low),
            ]
        );
    }
}
