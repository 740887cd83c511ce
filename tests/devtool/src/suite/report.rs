//! Reads the output of test programs, shows it, and adds up what it says.
//!
//! It understands cargo's headings (`Running ... (path)`, `Doc-tests name`), the lab script's marks, the closing lines of the standard
//! test harness and of ours, and `SKIPPED: test: reason`, which a test prints that returns early because of the machine it is on.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// What the lab's script prints around each program: `@@begin NAME`, `@@end NAME CODE`.
pub const BEGIN: &str = "@@begin ";
pub const END: &str = "@@end ";
/// Between the program and the test of a second try: `@@begin NAME again TEST`.
pub const AGAIN: &str = "again";
const SKIPPED: &str = "SKIPPED: ";

/// What a run came to, by test program.
#[derive(Debug, Default)]
pub struct Report {
    programs: BTreeMap<String, Program>,
    running: String,
    in_failures: bool,
}

#[derive(Debug, Default)]
struct Program {
    has_result: bool,
    /// As the harness counts: with the skipped ones.
    passed: usize,
    failed: usize,
    failures: Vec<String>,
    skipped: BTreeMap<String, String>,
    /// Those that failed and then passed by themselves.
    unsteady: Vec<String>,
}

/// One stream of output.
pub struct LineSink {
    prefix: String,
    line: Vec<u8>,
    report: Arc<Mutex<Report>>,
}

// === impl Report ===

impl Report {
    pub fn passed(&self) -> usize {
        self.programs
            .values()
            .map(|program| program.passed.saturating_sub(program.skipped.len()))
            .sum()
    }

    pub fn failed(&self) -> usize {
        self.programs.values().map(|program| program.failed).sum()
    }

    pub fn failures(&self) -> impl Iterator<Item = String> {
        self.programs.iter().flat_map(|(name, program)| {
            program
                .failures
                .iter()
                .map(move |failure| format!("{name}: {failure}"))
        })
    }

    /// Program, test and reason.
    pub fn skipped(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        self.programs.iter().flat_map(|(name, program)| {
            program
                .skipped
                .iter()
                .map(|(test, reason)| (name.as_str(), test.as_str(), reason.as_str()))
        })
    }

    /// Tests that failed and passed at the second try.
    pub fn unsteady(&self) -> impl Iterator<Item = String> {
        self.programs.iter().flat_map(|(name, program)| {
            let tests = program.unsteady.iter();
            tests.map(move |test| format!("{name}: {test}"))
        })
    }

    /// Makes one of each program and the second tries of its tests.
    pub fn settle(&mut self) {
        let second: Vec<(String, String, String)> = self
            .programs
            .keys()
            .filter_map(|key| {
                let (name, test) = key.split_once(&format!(" {AGAIN} "))?;
                Some((key.clone(), name.to_owned(), test.to_owned()))
            })
            .collect();
        for (key, name, test) in second {
            let passed = self
                .programs
                .remove(&key)
                .is_some_and(|second| second.failed == 0 && second.passed == 1);
            let Some(program) = self.programs.get_mut(&name).filter(|_| passed) else {
                continue;
            };
            program.failures.retain(|failure| *failure != test);
            program.failed = program.failed.saturating_sub(1);
            program.passed += 1;
            program.unsteady.push(test);
        }
    }

    /// A failure that no test has reported.
    pub fn fail(&mut self, program: &str, what: String) {
        let program = self.programs.entry(program.to_owned()).or_default();
        program.failed += 1;
        program.failures.push(what);
    }

    /// Adds a later run, which is the one with a KVM. A program that ran in both counts as it did in the later one. One that was dealt out
    /// there (`NAME 1`, `NAME 2`) has run there what it skipped before.
    pub fn merge(&mut self, later: Self) {
        for part in later.programs.keys() {
            let whole = part.rsplit_once(' ').map(|(whole, _)| whole);
            if let Some(before) = whole.and_then(|whole| self.programs.get_mut(whole)) {
                before.passed = before.passed.saturating_sub(before.skipped.len());
                before.skipped.clear();
            }
        }
        self.programs.extend(later.programs);
    }

    /// A program ended: its exit code must agree with what its tests said.
    pub fn ended(&mut self, name: &str, code: i32) {
        let program = self.programs.entry(name.to_owned()).or_default();
        if program.failed > 0 {
            return;
        }
        if code != 0 {
            self.fail(name, format!("ended with exit code {code}"));
        } else if !program.has_result {
            self.fail(name, "ended without a result".to_owned());
        }
    }

    fn read(&mut self, line: &str) {
        if let Some(name) = heading(line) {
            self.running = name;
            self.in_failures = false;
            return;
        }
        if let Some((name, code)) = line
            .strip_prefix(END)
            .and_then(|rest| rest.rsplit_once(' '))
        {
            return self.ended(name, code.parse().unwrap_or(1));
        }
        let program = self.programs.entry(self.running.clone()).or_default();
        if let Some((test, reason)) = line
            .strip_prefix(SKIPPED)
            .and_then(|rest| rest.split_once(": "))
        {
            program.skipped.insert(test.to_owned(), reason.to_owned());
        } else if let Some(result) = line.strip_prefix("test result: ") {
            program.has_result = true;
            program.passed += count(result, " passed");
            program.failed += count(result, " failed");
            self.in_failures = false;
        } else if line == "failures:" {
            self.in_failures = true;
        } else if let Some(test) = line
            .strip_prefix("    ")
            .filter(|test| self.in_failures && !test.contains(' '))
            && !program.failures.iter().any(|known| known == test)
        {
            program.failures.push(test.to_owned());
        }
    }
}

/// The closing line.
impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{} passed, {} failed, {} skipped",
            self.passed(),
            self.failed(),
            self.skipped().count()
        )
    }
}

/// The program that starts here.
fn heading(line: &str) -> Option<String> {
    if let Some(name) = line.strip_prefix(BEGIN) {
        return Some(name.to_owned());
    }
    let trimmed = line.trim_start();
    if let Some(name) = trimmed.strip_prefix("Doc-tests ") {
        return Some(format!("doc {name}"));
    }
    let path = trimmed
        .strip_prefix("Running ")?
        .split_once(" (")?
        .1
        .strip_suffix(')')?;
    // `target/debug/deps/boot-0123456789abcdef`
    let name = Path::new(path).file_name()?.to_str()?;
    Some(
        name.rsplit_once('-')
            .map_or(name, |(name, _)| name)
            .to_owned(),
    )
}

/// The number before ` passed` and the like.
fn count(result: &str, what: &str) -> usize {
    let before = result.split_once(what).map_or("", |(before, _)| before);
    before
        .rsplit(' ')
        .next()
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

// === impl LineSink ===

impl LineSink {
    pub fn new(prefix: String, report: &Arc<Mutex<Report>>) -> Self {
        Self {
            prefix,
            line: Vec::new(),
            report: Arc::clone(report),
        }
    }

    fn finish_line(&mut self) {
        let line = String::from_utf8_lossy(&self.line).into_owned();
        self.line.clear();
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        report.read(&line);
        // Under the lock, so that lines of two streams do not mix. A closed standard output does not stop the tests.
        let _ = match line.strip_prefix(BEGIN) {
            Some(name) => writeln!(io::stdout(), "{}== {name}", self.prefix),
            None if line.starts_with(END) => Ok(()),
            None => writeln!(io::stdout(), "{}{line}", self.prefix),
        };
    }
}

impl io::Write for LineSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            if *byte == b'\n' {
                self.finish_line()
            } else {
                self.line.push(*byte)
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LineSink {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            self.finish_line();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Report {
        let mut report = Report::default();
        text.lines().for_each(|line| report.read(line));
        report
    }

    const NATIVE: &str =
        "     Running unittests src/lib.rs (target/debug/deps/vmm-00112233aabbccdd)
test result: ok. 30 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s
     Running tests/boot.rs (target/debug/deps/boot-00112233aabbccdd)
SKIPPED: guest_boots: no KVM: none
test guest_boots ... ok
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s
   Doc-tests vmm
test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s
";

    #[test]
    fn skipped_test_is_not_counted_as_passed_and_keeps_its_reason() {
        let report = read(NATIVE);
        assert_eq!(report.to_string(), "32 passed, 0 failed, 1 skipped");
        assert_eq!(
            report.skipped().next(),
            Some(("boot", "guest_boots", "no KVM: none"))
        );
    }

    #[test]
    fn test_that_was_skipped_here_and_passed_in_the_lab_counts_once_as_passed() {
        let mut report = read(NATIVE);
        let lab = "@@begin boot\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n@@end boot 0\n";
        report.merge(read(lab));
        assert_eq!(report.to_string(), "33 passed, 0 failed, 0 skipped");
        let mut report = read(NATIVE);
        report.merge(read(&lab.replace("boot", "boot 2")));
        assert_eq!(report.to_string(), "33 passed, 0 failed, 0 skipped");
    }

    #[test]
    fn failures_are_counted_and_named() {
        let report = read(
            "@@begin e2e 1
failures:
    echo::request_is_forwarded

test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out
@@end e2e 1 101
",
        );
        assert_eq!(report.to_string(), "3 passed, 1 failed, 0 skipped");
        assert_eq!(
            report.failures().collect::<Vec<_>>(),
            ["e2e 1: echo::request_is_forwarded"]
        );
    }

    const FAILED: &str = "@@begin kvm 1
failures:
    boot::one
    boot::two

test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out
@@end kvm 1 101
";

    #[test]
    fn test_that_passes_at_its_second_try_counts_as_passed_and_is_named() {
        let tries = "@@begin kvm 1 again boot::one
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 4 filtered out
@@end kvm 1 again boot::one 0
@@begin kvm 1 again boot::two
failures:
    boot::two

test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 4 filtered out
@@end kvm 1 again boot::two 101
";
        let mut report = read(&format!("{FAILED}{tries}"));
        report.settle();
        assert_eq!(report.to_string(), "4 passed, 1 failed, 0 skipped");
        assert_eq!(report.failures().collect::<Vec<_>>(), ["kvm 1: boot::two"]);
        assert_eq!(report.unsteady().collect::<Vec<_>>(), ["kvm 1: boot::one"]);
    }

    #[test]
    fn second_try_that_dies_or_runs_nothing_changes_nothing() {
        for second in [
            "@@begin kvm 1 again boot::one\n@@end kvm 1 again boot::one 139\n",
            "@@begin kvm 1 again boot::one\ntest result: ok. 0 passed; 0 failed;\n@@end kvm 1 again boot::one 0\n",
        ] {
            let mut report = read(&format!("{FAILED}{second}"));
            report.settle();
            assert_eq!(report.to_string(), "3 passed, 2 failed, 0 skipped");
            assert_eq!(report.unsteady().count(), 0);
        }
    }

    #[test]
    fn program_that_dies_or_says_nothing_is_a_failure() {
        assert_eq!(read("@@begin boot\n@@end boot 139\n").failed(), 1);
        assert_eq!(read("@@begin boot\n@@end boot 0\n").failed(), 1);
    }
}
