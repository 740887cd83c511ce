//! `cabana doctor`: what this host can do, and how well it keeps sessions apart, in words that say what to change.
//!
//! `needs` tries what sessions need, `host` reads how kernel and processor are set up. What is read there follows the host guide of
//! Firecracker (`docs/prod-host-setup.md`) as far as it is about what we use: there is no tap device, no jailer and no timer chip here.

mod finding;
mod host;
pub mod kvm;
mod needs;

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

pub use finding::{Finding, Severity, Verdict};

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
        let mut findings = needs::look();
        findings.extend(host::look(Path::new("/")));
        Self::of(findings)
    }

    fn of(findings: Vec<Finding>) -> Self {
        Self {
            can_run_guests: findings
                .iter()
                .all(|finding| finding.verdict != Verdict::Fails),
            findings,
        }
    }

    /// A line for each finding, with its remedy below it, and the verdict at the end.
    pub fn text(&self) -> String {
        // Wider than the longest word of each column by the space between columns.
        const VERDICT: usize = "unknown".len() + 2;
        const SEVERITY: usize = "critical".len() + 2;
        let name_width = self
            .findings
            .iter()
            .map(|finding| finding.name.len())
            .max()
            .unwrap_or(0)
            + 2;
        let mut text = String::new();
        for finding in &self.findings {
            let verdict = finding.verdict.word();
            let severity = finding.severity.map_or("", Severity::word);
            let _ = writeln!(
                text,
                "{verdict:<VERDICT$}{severity:<SEVERITY$}{:<name_width$}{}",
                finding.name, finding.detail
            );
            if let Some(remedy) = &finding.remedy {
                let indent = VERDICT + SEVERITY + name_width;
                let _ = writeln!(text, "{:indent$}remedy: {remedy}", "");
            }
        }
        if let Some(summary) = self.weaker() {
            let _ = writeln!(text, "{summary}");
        }
        text.push_str(if self.can_run_guests {
            "This host can run guests.\n"
        } else {
            "This host cannot run guests.\n"
        });
        text
    }

    /// How many findings are weaker than they could be, worst first.
    fn weaker(&self) -> Option<String> {
        let weaker: Vec<Severity> = self
            .findings
            .iter()
            .filter(|finding| finding.verdict == Verdict::Weaker)
            .filter_map(|finding| finding.severity)
            .collect();
        if weaker.is_empty() {
            return None;
        }
        let counts: Vec<String> = [Severity::High, Severity::Medium, Severity::Low]
            .into_iter()
            .filter_map(|severity| {
                let count = weaker.iter().filter(|other| **other == severity).count();
                (count > 0).then(|| format!("{count} {}", severity.word()))
            })
            .collect();
        Some(format!("Weaker than it could be: {}.", counts.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weaker(name: &'static str, severity: Severity) -> Finding {
        Finding::weaker(name, severity, "seen", "do this")
    }

    #[test]
    fn text_ends_with_the_verdict_and_json_has_it_as_a_flag() {
        let good = Report::of(vec![
            Finding::ok("x", "y"),
            weaker("z", Severity::High),
            Finding::unknown("u", "v"),
        ]);
        assert!(good.text().ends_with("This host can run guests.\n"));
        let bad = Report::of(vec![Finding::ok("x", "y"), Finding::fails("k", "d", "r")]);
        assert!(bad.text().ends_with("This host cannot run guests.\n"));
        assert_eq!(serde_json::to_value(&bad).unwrap()["canRunGuests"], false);
    }

    #[test]
    fn details_begin_in_one_column_and_remedies_below_them() {
        let report = Report::of(vec![
            Finding::ok("kvm", "runs"),
            weaker("a_longer_name", Severity::Medium),
            Finding::unknown("ecc", "nobody says"),
        ]);
        let text = report.text();
        let lines: Vec<&str> = text.lines().collect();
        let column = lines[0].find("runs").unwrap();
        assert_eq!(lines[1].find("seen"), Some(column), "{text}");
        assert_eq!(lines[2].find("remedy: do this"), Some(column), "{text}");
        assert_eq!(lines[3].find("nobody"), Some(column), "{text}");
        assert_eq!(lines[4], "Weaker than it could be: 1 medium.", "{text}");
    }

    #[test]
    fn json_has_severity_and_remedy_as_fields_of_their_own() {
        let report = Report::of(vec![Finding::ok("x", "y"), weaker("z", Severity::Low)]);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["findings"][0]["severity"], serde_json::Value::Null);
        assert_eq!(json["findings"][0]["remedy"], serde_json::Value::Null);
        assert_eq!(json["findings"][1]["severity"], "low");
        assert_eq!(json["findings"][1]["remedy"], "do this");
    }

    #[test]
    fn worst_findings_are_counted_first() {
        let report = Report::of(vec![
            weaker("a", Severity::Low),
            weaker("b", Severity::High),
            weaker("c", Severity::Low),
        ]);
        assert_eq!(
            report.weaker().as_deref(),
            Some("Weaker than it could be: 1 high, 2 low.")
        );
        assert_eq!(Report::of(vec![Finding::ok("x", "y")]).weaker(), None);
    }

    #[test]
    fn every_finding_of_this_host_says_something_and_a_weak_one_has_a_remedy() {
        let findings = Report::make().findings;
        let mut names: Vec<_> = findings
            .iter()
            .map(|finding| finding.name.clone())
            .collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), findings.len(), "two findings of one name");
        for finding in findings {
            assert!(
                !finding.name.is_empty() && !finding.detail.is_empty(),
                "{finding:?}"
            );
            let bad = matches!(finding.verdict, Verdict::Weaker | Verdict::Fails);
            assert_eq!(finding.severity.is_some(), bad, "{finding:?}");
            assert_eq!(finding.remedy.is_some(), bad, "{finding:?}");
            assert!(!finding.detail.contains('\n'), "{finding:?}");
        }
    }
}
