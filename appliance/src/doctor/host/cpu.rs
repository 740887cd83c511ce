//! The processor's known flaws, and whether sessions share a core through its threads.
//!
//! The texts are those of `arch/x86/kernel/cpu/bugs.c`; what they mean is in Documentation/admin-guide/hw-vuln.

use super::super::finding::{Finding, Severity};
use super::Files;

const FLAWS: &str = "/sys/devices/system/cpu/vulnerabilities";
#[cfg(test)]
pub const FLAWS_FILE_L1TF: &str = "/sys/devices/system/cpu/vulnerabilities/l1tf";
const SMT_CONTROL: &str = "/sys/devices/system/cpu/smt/control";
const SMT_ACTIVE: &str = "/sys/devices/system/cpu/smt/active";
const CPU: &str = "/proc/cpuinfo";
const COMMAND_LINE: &str = "/proc/cmdline";
/// A file among the flaws that is about the microcode as such (Linux 6.16).
const OLD_MICROCODE: &str = "old_microcode";

const NO_SMT: &str =
    "echo off > /sys/devices/system/cpu/smt/control; for good: boot with mitigations=auto,nosmt";
const NEW_MICROCODE: &str = "install the newest microcode (Debian, Ubuntu: apt-get install intel-microcode or amd64-microcode; \
                             else new firmware), then reboot";

/// What a text says of one flaw.
#[derive(Debug, PartialEq, Eq)]
enum Flaw {
    NotAffected,
    Mitigated,
    /// Between threads of one core only.
    BetweenThreads,
    Open,
    /// The kernel itself does not know, in a virtual machine for example.
    Unknown,
}

pub fn look(files: &Files) -> Vec<Finding> {
    let command_line = files.read(COMMAND_LINE).unwrap_or_default();
    let texts: Vec<(String, String)> = files
        .names(FLAWS)
        .into_iter()
        .filter_map(|name| {
            let text = files.read(&format!("{FLAWS}/{name}"))?;
            Some((name, text))
        })
        .collect();
    let cpu = files.read(CPU);
    let mut findings = flaws(&texts, &command_line);
    findings.push(smt(
        files.read(SMT_CONTROL).as_deref(),
        files.read(SMT_ACTIVE).as_deref(),
    ));
    let old = texts.iter().find(|(name, _)| name == OLD_MICROCODE);
    findings.push(microcode(cpu.as_deref(), old.map(|(_, text)| &**text)));
    findings.push(bare_metal(cpu.as_deref()));
    findings
}

/// One finding for all that is well, and one for each flaw that is not.
fn flaws(texts: &[(String, String)], command_line: &str) -> Vec<Finding> {
    let (mut not_affected, mut mitigated, mut untold) = (0, Vec::new(), Vec::new());
    let mut weak = Vec::new();
    for (name, text) in texts.iter().filter(|(name, _)| name != OLD_MICROCODE) {
        let flaw = judge(text);
        match flaw {
            Flaw::NotAffected => not_affected += 1,
            Flaw::Mitigated => mitigated.push(name.as_str()),
            Flaw::Unknown => untold.push(format!("{name} ({text})")),
            Flaw::BetweenThreads | Flaw::Open => {
                let severity = match flaw {
                    Flaw::BetweenThreads => Severity::Medium,
                    _ => severity(name),
                };
                weak.push(Finding::weaker(
                    name.clone(),
                    severity,
                    text.clone(),
                    remedy(name, text, &flaw, command_line),
                ));
            }
        }
    }
    let summary = if not_affected == 0 && mitigated.is_empty() && weak.is_empty() {
        match untold.is_empty() {
            true => Finding::not_told("cpu_flaws", FLAWS),
            false => Finding::unknown("cpu_flaws", untold.join(", ")),
        }
    } else {
        let list = |names: &[&str]| match names.is_empty() {
            true => "none".to_owned(),
            false => names.join(", "),
        };
        let mut detail = format!(
            "{not_affected} do not affect this processor; mitigated: {}",
            list(&mitigated)
        );
        if !untold.is_empty() {
            detail = format!("{detail}; not known: {}", untold.join(", "));
        }
        if !weak.is_empty() {
            detail = format!("{detail}; the rest has lines of its own");
        }
        Finding::ok("cpu_flaws", detail)
    };
    let mut findings = vec![summary];
    findings.append(&mut weak);
    findings
}

fn judge(text: &str) -> Flaw {
    let text = text.to_lowercase();
    if text.starts_with("not affected") {
        return Flaw::NotAffected;
    }
    if text.starts_with("unknown") {
        return Flaw::Unknown;
    }
    let mut between_threads = false;
    // `Mitigation: A; B, C: Vulnerable`: one open part is an open flaw.
    for part in text.split([';', ',']).map(str::trim) {
        if part == "smt vulnerable" {
            between_threads = true;
        } else if part.contains("vulnerable") || part == "ibpb: disabled" {
            return Flaw::Open;
        }
    }
    if between_threads {
        return Flaw::BetweenThreads;
    }
    match text.contains("mitigation") {
        true => Flaw::Mitigated,
        false => Flaw::Unknown,
    }
}

/// A flaw that is not known here is taken for one that reaches across.
fn severity(name: &str) -> Severity {
    match name {
        // Within one program: the host's own protect themselves, and so does the guest's kernel.
        "spec_store_bypass" | "spectre_v1" => Severity::Low,
        // Stops the host, and tells nothing.
        "itlb_multihit" => Severity::Medium,
        _ => Severity::High,
    }
}

fn remedy(name: &str, text: &str, flaw: &Flaw, command_line: &str) -> String {
    let text = text.to_lowercase();
    if *flaw == Flaw::BetweenThreads {
        return NO_SMT.to_owned();
    }
    let off = [format!("{name}="), format!("no{name}")];
    let asked = command_line.split_whitespace().find(|word| {
        *word == "mitigations=off"
            || (name == "meltdown" && matches!(*word, "nopti" | "pti=off"))
            || off.iter().any(|off| word.starts_with(off.as_str()))
    });
    if let Some(word) = asked {
        return format!("take {word} off the kernel's command line, then reboot");
    }
    if name == "itlb_multihit" {
        return "echo auto > /sys/module/kvm/parameters/nx_huge_pages; for good: boot with kvm.nx_huge_pages=auto".to_owned();
    }
    if text.contains("vmx: vulnerable") {
        return "boot with kvm-intel.vmentry_l1d_flush=cond, or with l1tf=full".to_owned();
    }
    if text.contains("microcode") {
        return NEW_MICROCODE.to_owned();
    }
    format!(
        "update the host's kernel and microcode, then reboot (in a virtual machine: whoever runs its host does); \
         https://docs.kernel.org/admin-guide/hw-vuln/ says more of {name}"
    )
}

fn smt(control: Option<&str>, active: Option<&str>) -> Finding {
    match (control, active) {
        (Some("off" | "forceoff"), _) => Finding::ok("smt", "switched off"),
        (Some("notsupported"), _) => Finding::ok("smt", "this processor has one thread per core"),
        (Some("notimplemented") | None, None) => Finding::not_told("smt", SMT_CONTROL),
        (_, Some("0")) => Finding::ok("smt", "no core has a second thread online"),
        (_, Some("1")) => Finding::weaker(
            "smt",
            Severity::Medium,
            "on: two sessions may run on one core at the same time, and learn of each other by its caches and buffers",
            "echo off > /sys/devices/system/cpu/smt/control; for good: boot with nosmt",
        ),
        (control, _) => Finding::unknown("smt", format!("{SMT_CONTROL} says {control:?}")),
    }
}

/// Whether there is newer microcode is known to kernels from 6.16 on, and of Intel's processors only: of others they say that they are not
/// affected.
fn microcode(cpu: Option<&str>, old: Option<&str>) -> Finding {
    let version = cpu.and_then(|cpu| value(cpu, "microcode"));
    let version = version.unwrap_or("of unknown version");
    let intel = cpu.and_then(|cpu| value(cpu, "vendor_id")) == Some("GenuineIntel");
    match old.map(judge) {
        Some(Flaw::NotAffected) if intel => {
            Finding::ok("microcode", format!("{version}: the kernel knows no newer"))
        }
        Some(Flaw::Open) => Finding::weaker(
            "microcode",
            Severity::High,
            format!("{version}: the kernel knows newer"),
            NEW_MICROCODE,
        ),
        _ => Finding::unknown(
            "microcode",
            format!(
                "{version}: whether there is newer is told by kernels from 6.16 on, of Intel's processors"
            ),
        ),
    }
}

fn bare_metal(cpu: Option<&str>) -> Finding {
    let Some(flags) = cpu.and_then(|cpu| value(cpu, "flags")) else {
        return Finding::not_told("bare_metal", CPU);
    };
    if flags.split_whitespace().any(|flag| flag == "hypervisor") {
        return Finding::weaker(
            "bare_metal",
            Severity::Low,
            "no, this is a virtual machine: what its own host does (threads of one core, microcode, other tenants) cannot be seen from here",
            "use a machine of your own, or ask whoever runs it",
        );
    }
    Finding::ok("bare_metal", "yes")
}

/// The first `name : value` of `/proc/cpuinfo`.
fn value<'a>(cpu: &'a str, name: &str) -> Option<&'a str> {
    cpu.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        (found.trim() == name).then(|| value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::finding::Verdict;
    use super::*;

    fn texts(texts: &[(&str, &str)]) -> Vec<(String, String)> {
        texts
            .iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
            .collect()
    }

    /// Xeon of 2018 with `mitigations=off`.
    const INTEL_OFF: &[(&str, &str)] = &[
        ("itlb_multihit", "KVM: Vulnerable"),
        ("l1tf", "Mitigation: PTE Inversion; VMX: vulnerable"),
        ("mds", "Vulnerable; SMT vulnerable"),
        ("meltdown", "Vulnerable"),
        ("spec_store_bypass", "Vulnerable"),
        (
            "spectre_v1",
            "Vulnerable: __user pointer sanitization and usercopy barriers only; no swapgs barriers",
        ),
        (
            "spectre_v2",
            "Vulnerable; IBPB: disabled; STIBP: disabled; PBRSB-eIBRS: Not affected; BHI: Vulnerable",
        ),
        ("srbds", "Not affected"),
        ("tsx_async_abort", "Vulnerable"),
    ];

    /// The same with what a distribution's kernel does by itself.
    const INTEL: &[(&str, &str)] = &[
        ("gather_data_sampling", "Mitigation: Microcode"),
        ("itlb_multihit", "KVM: Mitigation: Split huge pages"),
        (
            "l1tf",
            "Mitigation: PTE Inversion; VMX: conditional cache flushes, SMT vulnerable",
        ),
        ("mds", "Mitigation: Clear CPU buffers; SMT vulnerable"),
        ("meltdown", "Mitigation: PTI"),
        (
            "mmio_stale_data",
            "Mitigation: Clear CPU buffers; SMT vulnerable",
        ),
        ("retbleed", "Mitigation: IBRS"),
        (
            "spec_store_bypass",
            "Mitigation: Speculative Store Bypass disabled via prctl",
        ),
        (
            "spectre_v1",
            "Mitigation: usercopy/swapgs barriers and __user pointer sanitization",
        ),
        (
            "spectre_v2",
            "Mitigation: IBRS; IBPB: conditional; STIBP: conditional; RSB filling; PBRSB-eIBRS: Not affected; BHI: Not affected",
        ),
        ("srbds", "Not affected"),
    ];

    /// EPYC of the second generation, with old microcode.
    const AMD: &[(&str, &str)] = &[
        ("itlb_multihit", "Not affected"),
        ("l1tf", "Not affected"),
        (
            "retbleed",
            "Mitigation: untrained return thunk; SMT enabled with STIBP protection",
        ),
        ("spec_rstack_overflow", "Vulnerable: Safe RET, no microcode"),
        (
            "spectre_v2",
            "Mitigation: Retpolines; IBPB: conditional; STIBP: always-on; RSB filling; PBRSB-eIBRS: Not affected; BHI: Not affected",
        ),
        ("vmscape", "Mitigation: IBPB before exit to userspace"),
    ];

    fn weak(findings: &[Finding]) -> Vec<(&str, Severity)> {
        findings
            .iter()
            .filter_map(|finding| Some((&*finding.name, finding.severity?)))
            .collect()
    }

    fn remedy_of<'a>(findings: &'a [Finding], name: &str) -> &'a str {
        let finding = findings.iter().find(|finding| finding.name == name);
        finding.unwrap().remedy.as_deref().unwrap()
    }

    #[test]
    fn mitigations_that_are_off_are_switched_on_by_the_kernels_command_line() {
        let findings = flaws(&texts(INTEL_OFF), "quiet mitigations=off ro");
        assert_eq!(
            weak(&findings),
            [
                ("itlb_multihit", Severity::Medium),
                ("l1tf", Severity::High),
                ("mds", Severity::High),
                ("meltdown", Severity::High),
                ("spec_store_bypass", Severity::Low),
                ("spectre_v1", Severity::Low),
                ("spectre_v2", Severity::High),
                ("tsx_async_abort", Severity::High),
            ]
        );
        for (name, _) in weak(&findings) {
            assert!(
                remedy_of(&findings, name).contains("take mitigations=off off"),
                "{name}"
            );
        }
        assert!(
            findings[0].detail.starts_with("1 do not affect"),
            "{findings:?}"
        );
    }

    #[test]
    fn switch_of_one_flaw_is_named_and_what_has_a_switch_of_its_own_gets_it() {
        let one = flaws(&texts(INTEL_OFF), "mds=off nospectre_v2 nopti");
        assert!(remedy_of(&one, "mds").contains("take mds=off off"));
        assert!(remedy_of(&one, "spectre_v2").contains("take nospectre_v2 off"));
        assert!(remedy_of(&one, "meltdown").contains("take nopti off"));
        assert!(remedy_of(&one, "l1tf").contains("vmentry_l1d_flush=cond"));
        assert!(remedy_of(&one, "itlb_multihit").contains("nx_huge_pages"));
        assert!(remedy_of(&one, "tsx_async_abort").contains("hw-vuln"));
    }

    #[test]
    fn flaw_that_is_open_between_threads_only_wants_them_off() {
        let findings = flaws(&texts(INTEL), "ro quiet");
        assert_eq!(
            weak(&findings),
            [
                ("l1tf", Severity::Medium),
                ("mds", Severity::Medium),
                ("mmio_stale_data", Severity::Medium),
            ]
        );
        assert!(remedy_of(&findings, "mds").contains("nosmt"));
        assert!(findings[0].detail.contains("spectre_v2"), "{findings:?}");
    }

    #[test]
    fn flaw_that_lacks_microcode_wants_it() {
        let findings = flaws(&texts(AMD), "");
        assert_eq!(weak(&findings), [("spec_rstack_overflow", Severity::High)]);
        assert!(remedy_of(&findings, "spec_rstack_overflow").contains("amd64-microcode"));
    }

    /// Each text as `bugs.c` has it.
    #[test]
    fn open_part_of_a_mitigation_is_an_open_flaw() {
        for (text, flaw) in [
            ("Not affected", Flaw::NotAffected),
            ("KVM: Mitigation: VMX disabled", Flaw::Mitigated),
            (
                "Mitigation: Enhanced / Automatic IBRS; IBPB: conditional; BHI: BHI_DIS_S",
                Flaw::Mitigated,
            ),
            (
                "Mitigation: Enhanced / Automatic IBRS; IBPB: conditional; BHI: Vulnerable, KVM: SW loop",
                Flaw::Open,
            ),
            (
                "Mitigation: Retpolines; IBPB: disabled; STIBP: disabled",
                Flaw::Open,
            ),
            (
                "Mitigation: Retpolines; STIBP: disabled; RSB filling",
                Flaw::Mitigated,
            ),
            (
                "Mitigation: Clear CPU buffers; SMT Host state unknown",
                Flaw::Mitigated,
            ),
            (
                "Vulnerable: Clear CPU buffers attempted, no microcode; SMT vulnerable",
                Flaw::Open,
            ),
            ("Unknown: Dependent on hypervisor status", Flaw::Unknown),
            ("something new", Flaw::Unknown),
        ] {
            assert_eq!(judge(text), flaw, "{text}");
        }
    }

    #[test]
    fn flaw_that_only_the_host_of_a_virtual_machine_knows_of_is_unknown() {
        let findings = flaws(
            &texts(&[("srbds", "Unknown: Dependent on hypervisor status")]),
            "",
        );
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].verdict, Verdict::Unknown, "{findings:?}");
        assert_eq!(flaws(&[], "")[0].verdict, Verdict::Unknown);
    }

    #[test]
    fn threads_of_a_core_are_weak_where_they_are_online() {
        for (control, active, verdict) in [
            (Some("on"), Some("1"), Verdict::Weaker),
            (Some("on"), Some("0"), Verdict::Ok),
            (Some("off"), Some("0"), Verdict::Ok),
            (Some("forceoff"), Some("0"), Verdict::Ok),
            (Some("notsupported"), Some("0"), Verdict::Ok),
            (Some("notimplemented"), Some("1"), Verdict::Weaker),
            (None, None, Verdict::Unknown),
        ] {
            assert_eq!(
                smt(control, active).verdict,
                verdict,
                "{control:?} {active:?}"
            );
        }
    }

    #[test]
    fn microcode_is_old_where_the_kernel_says_so() {
        let cpu = "processor\t: 0\nvendor_id\t: GenuineIntel\nmicrocode\t: 0x830107c\n";
        assert_eq!(
            microcode(Some(cpu), Some("Not affected")).verdict,
            Verdict::Ok
        );
        let old = microcode(Some(cpu), Some("Vulnerable"));
        assert_eq!(old.severity, Some(Severity::High), "{old:?}");
        assert!(old.detail.contains("0x830107c"), "{old:?}");
        let amd = "vendor_id\t: AuthenticAMD\nmicrocode\t: 0x830107c\n";
        assert_eq!(
            microcode(Some(amd), Some("Not affected")).verdict,
            Verdict::Unknown
        );
        assert_eq!(microcode(Some(cpu), None).verdict, Verdict::Unknown);
        assert_eq!(microcode(None, None).verdict, Verdict::Unknown);
    }

    #[test]
    fn virtual_machine_is_told_from_metal_by_its_processors_flag() {
        assert_eq!(bare_metal(Some("flags\t: fpu vmx\n")).verdict, Verdict::Ok);
        let machine = bare_metal(Some("flags\t: fpu hypervisor svm\n"));
        assert_eq!(machine.severity, Some(Severity::Low));
        assert_eq!(bare_metal(None).verdict, Verdict::Unknown);
    }
}
