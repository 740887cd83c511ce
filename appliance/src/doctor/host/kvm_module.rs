//! How the KVM module was loaded.

use super::super::finding::{Finding, Severity};
use super::Files;

const NX_HUGE_PAGES: &str = "/sys/module/kvm/parameters/nx_huge_pages";
const TIMER_PERIOD: &str = "/sys/module/kvm/parameters/min_timer_period_us";
const MULTIHIT: &str = "/sys/devices/system/cpu/vulnerabilities/itlb_multihit";
/// By the module: what it calls paging in two stages.
const MODULES: [(&str, &str); 2] = [("kvm_intel", "ept"), ("kvm_amd", "npt")];
/// What KVM itself allows guests at most: a periodic timer each 200 µs (arch/x86/kvm/x86.c).
const USUAL_TIMER_PERIOD_US: u64 = 200;

pub fn look(files: &Files) -> Vec<Finding> {
    let module = MODULES
        .into_iter()
        .find(|(module, _)| !files.names(&parameters(module)).is_empty());
    let (nested, paging) = match module {
        Some((module, paging)) => {
            let read = |name: &str| files.read(&format!("{}/{name}", parameters(module)));
            (
                nested(module, read("nested").as_deref()),
                two_stages(module, paging, read(paging).as_deref()),
            )
        }
        None => {
            let path = "/sys/module/kvm_{intel,amd}/parameters";
            (
                Finding::not_told("nested", path),
                Finding::not_told("two_stage_paging", path),
            )
        }
    };
    vec![
        nested,
        paging,
        nx_huge_pages(
            files.read(NX_HUGE_PAGES).as_deref(),
            files.read(MULTIHIT).as_deref(),
        ),
        timer_period(files.read(TIMER_PERIOD).as_deref()),
    ]
}

fn parameters(module: &str) -> String {
    format!("/sys/module/{module}/parameters")
}

/// Modules print a switch as `Y` and `N`, or as a number.
fn is_on(text: Option<&str>) -> Option<bool> {
    match text? {
        "Y" | "1" => Some(true),
        "N" | "0" => Some(false),
        _ => None,
    }
}

fn remedy(module: &str, setting: &str) -> String {
    format!(
        "echo 'options {module} {setting}' > /etc/modprobe.d/cabana.conf, end all guests, then: modprobe -r {module} && modprobe {module}"
    )
}

fn nested(module: &str, value: Option<&str>) -> Finding {
    match is_on(value) {
        Some(false) => Finding::ok("nested", "off"),
        Some(true) => Finding::weaker(
            "nested",
            Severity::Low,
            "on: guests are told of a processor without virtualisation, so that KVM refuses them its instructions all the same; off is \
             code less that could be reached",
            remedy(module, "nested=0"),
        ),
        None => Finding::not_told("nested", &format!("{}/nested", parameters(module))),
    }
}

/// Without it KVM keeps tables of its own for each guest, which is slow, and a part of it that has had many faults.
fn two_stages(module: &str, name: &str, value: Option<&str>) -> Finding {
    match is_on(value) {
        Some(true) => Finding::ok("two_stage_paging", format!("{name} is on")),
        Some(false) => Finding::weaker(
            "two_stage_paging",
            Severity::Medium,
            format!(
                "{name} is off: KVM follows each table of a guest in software, which is slow and much code for a guest to reach"
            ),
            format!(
                "{}; a processor without it is too old",
                remedy(module, &format!("{name}=1"))
            ),
        ),
        None => Finding::not_told(
            "two_stage_paging",
            &format!("{}/{name}", parameters(module)),
        ),
    }
}

/// Documentation/admin-guide/hw-vuln/multihit.rst: without it a guest can stop a processor that has the flaw.
fn nx_huge_pages(value: Option<&str>, multihit: Option<&str>) -> Finding {
    let needed = multihit.map(|text| !text.starts_with("Not affected"));
    match (value, needed) {
        (Some(value @ ("Y" | "1")), _) => Finding::ok(
            "nx_huge_pages",
            format!("{value}: guests' huge pages are not executable"),
        ),
        (Some(value), Some(false)) => Finding::ok(
            "nx_huge_pages",
            format!("{value}: this processor does not need it"),
        ),
        (Some(value), Some(true)) => Finding::weaker(
            "nx_huge_pages",
            Severity::Medium,
            format!("{value}: a guest can stop this processor by what it executes in huge pages"),
            "echo auto > /sys/module/kvm/parameters/nx_huge_pages; for good: boot with kvm.nx_huge_pages=auto",
        ),
        (Some(value), None) => Finding::unknown(
            "nx_huge_pages",
            format!(
                "{value}; whether this processor needs it is {} ({MULTIHIT})",
                super::super::finding::NOT_TOLD
            ),
        ),
        (None, _) => Finding::not_told("nx_huge_pages", NX_HUGE_PAGES),
    }
}

/// How much of the host's time a guest can take in interrupts of its own timer, beside what its `cpu.max` allows.
fn timer_period(value: Option<&str>) -> Finding {
    match value.and_then(|value| value.parse::<u64>().ok()) {
        Some(period) if period >= USUAL_TIMER_PERIOD_US => {
            Finding::ok("timer_period", format!("{period} µs at least"))
        }
        Some(period) => Finding::weaker(
            "timer_period",
            Severity::Low,
            format!(
                "{period} µs at least, where KVM itself has {USUAL_TIMER_PERIOD_US}: a guest's timer may take the host more time"
            ),
            remedy(
                "kvm",
                &format!("min_timer_period_us={USUAL_TIMER_PERIOD_US}"),
            ),
        ),
        None => Finding::not_told("timer_period", TIMER_PERIOD),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::finding::Verdict;
    use super::super::tests::host;
    use super::*;

    fn by_name<'a>(findings: &'a [Finding], name: &str) -> &'a Finding {
        findings
            .iter()
            .find(|finding| finding.name == name)
            .unwrap()
    }

    #[test]
    fn module_of_amd_is_read_as_that_of_intel_is() {
        let (_folder, files) = host(&[
            ("/sys/module/kvm_amd/parameters/nested", "1"),
            ("/sys/module/kvm_amd/parameters/npt", "Y"),
        ]);
        let findings = look(&files);
        let nested = by_name(&findings, "nested");
        assert_eq!(nested.severity, Some(Severity::Low), "{nested:?}");
        assert!(
            nested
                .remedy
                .as_deref()
                .unwrap()
                .contains("options kvm_amd nested=0")
        );
        assert_eq!(by_name(&findings, "two_stage_paging").detail, "npt is on");
        let (_folder, files) = host(&[
            ("/sys/module/kvm_intel/parameters/nested", "N"),
            ("/sys/module/kvm_intel/parameters/ept", "N"),
        ]);
        let findings = look(&files);
        assert_eq!(by_name(&findings, "nested").verdict, Verdict::Ok);
        let paging = by_name(&findings, "two_stage_paging");
        assert_eq!(paging.severity, Some(Severity::Medium), "{paging:?}");
        assert!(paging.remedy.as_deref().unwrap().contains("ept=1"));
    }

    #[test]
    fn executable_huge_pages_are_weak_on_processors_with_the_flaw_only() {
        for (value, multihit, verdict) in [
            (
                Some("Y"),
                Some("KVM: Mitigation: Split huge pages"),
                Verdict::Ok,
            ),
            (Some("N"), Some("KVM: Vulnerable"), Verdict::Weaker),
            (Some("never"), Some("KVM: Vulnerable"), Verdict::Weaker),
            (Some("N"), Some("Not affected"), Verdict::Ok),
            (Some("N"), None, Verdict::Unknown),
            (None, Some("KVM: Vulnerable"), Verdict::Unknown),
        ] {
            assert_eq!(
                nx_huge_pages(value, multihit).verdict,
                verdict,
                "{value:?} {multihit:?}"
            );
        }
    }

    #[test]
    fn timer_that_may_fire_more_often_than_kvm_allows_by_itself_is_weak() {
        assert_eq!(timer_period(Some("200")).verdict, Verdict::Ok);
        assert_eq!(timer_period(Some("500")).verdict, Verdict::Ok);
        assert_eq!(timer_period(Some("0")).severity, Some(Severity::Low));
        assert_eq!(timer_period(Some("x")).verdict, Verdict::Unknown);
        assert_eq!(timer_period(None).verdict, Verdict::Unknown);
    }
}
