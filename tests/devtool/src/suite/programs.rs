//! The test programs that run in the labs, and how they are dealt out.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use cargo_metadata::{Message, TargetKind};

use super::FOLDER;
use super::report::{AGAIN, BEGIN, END};
use crate::command;
use crate::lab::LabFile;
use crate::workspace::Workspace;

/// Packages whose integration tests need a KVM.
const PACKAGES: &[&str] = &["vmm", "e2e"];
/// The program whose leak audit is about all of them.
const LAST: &str = "e2e";
/// The host before the first test, for the leak audit after the last one.
const HOST_BEFORE: &str = "/suite/host-before";

pub struct Programs(Vec<Program>);

struct Program {
    name: String,
    path: PathBuf,
}

impl Programs {
    /// Builds them, statically linked like everything we build.
    pub fn build(workspace: &Workspace) -> Result<Self> {
        let mut cargo = workspace.cargo();
        cargo.args([
            "test",
            "--no-run",
            "--message-format=json-render-diagnostics",
        ]);
        for package in PACKAGES {
            cargo.args(["--package", package]);
        }
        cargo.stderr(Stdio::inherit());
        let messages = command::output(&mut cargo)?;
        let mut programs = Vec::new();
        for message in Message::parse_stream(messages.as_bytes()) {
            if let Message::CompilerArtifact(artifact) =
                message.context("Cannot read cargo's messages")?
                && artifact.target.kind.contains(&TargetKind::Test)
                && let Some(path) = artifact.executable
            {
                programs.push(Program {
                    name: artifact.target.name,
                    path: path.into(),
                });
            }
        }
        programs.sort_by(|left, right| {
            let key = |program: &Program| (program.name == LAST, program.name.clone());
            key(left).cmp(&key(right))
        });
        if !programs.iter().any(|program| program.name == LAST) {
            bail!("cargo built no test program {LAST}");
        }
        Ok(Self(programs))
    }

    pub fn files(&self) -> Vec<LabFile> {
        self.0
            .iter()
            .map(|program| LabFile {
                source: program.path.clone(),
                target: format!("{FOLDER}/{}", program.name),
            })
            .collect()
    }

    /// One shell script for each lab that has something to do. Each program is dealt out test by test.
    pub fn deal(&self, labs: usize, only: Option<&str>) -> Result<Vec<String>> {
        let mut hands = vec![String::new(); labs];
        for program in &self.0 {
            let tests = program.tests(only)?;
            for (number, hand) in hands.iter_mut().enumerate() {
                let mine = tests.iter().skip(number).step_by(labs);
                let mine: Vec<&str> = mine.map(String::as_str).collect();
                if mine.is_empty() {
                    continue;
                }
                let label = format!("{} {}", program.name, number + 1);
                let audit = ["--host-before", HOST_BEFORE].into_iter();
                let audit = audit.take(if program.name == LAST { 2 } else { 0 });
                let arguments = audit.chain(["--exact"]).chain(mine);
                hand.push_str(&run_line(&label, &program.name, arguments));
            }
        }
        let setting = format!(
            "export CABANA_REQUIRE_KVM=1 CABANA_OWN_HOST=1 CABANA_GUEST_DIR={FOLDER}/guest RUST_BACKTRACE=1\nexec 2>&1\n\
             {FOLDER}/{LAST} --note-host {HOST_BEFORE}\n"
        );
        Ok(hands
            .into_iter()
            .filter(|hand| !hand.is_empty())
            .map(|hand| format!("{setting}{hand}"))
            .collect())
    }
}

impl Program {
    fn tests(&self, only: Option<&str>) -> Result<Vec<String>> {
        let list = command::output(Command::new(&self.path).arg("--list").args(only))?;
        Ok(list
            .lines()
            .filter_map(|line| line.strip_suffix(": test"))
            .map(str::to_owned)
            .collect())
    }
}

/// The output of a program, in the lab.
const OUTPUT: &str = "/suite/output";
/// More failures than these in one program are no accident, and none of them gets a second try.
const MOST_SECOND_TRIES: u32 = 2;

/// Runs a program, and those tests that have failed once more, each alone: the labs are emulated hosts on a machine that others use as
/// well, and one of some hundred guests in them may meet an accident of that. The report names what passed only then. What is no test of a
/// module (the leak audit after the last one) says nothing by itself, and is not tried again.
///
/// Names of tests are Rust paths, so that nothing in them is special to the shell; a filter of the user is quoted.
fn run_line<'a>(label: &str, program: &str, arguments: impl Iterator<Item = &'a str>) -> String {
    let arguments: String = arguments
        .map(|argument| format!(" '{}'", argument.replace('\'', r"'\''")))
        .collect();
    format!(
        "echo '{BEGIN}{label}'
{{ {FOLDER}/{program} --test-threads=1{arguments}; code=$?; echo \"{END}{label} $code\"; }} | tee {OUTPUT}
failed=$(sed -n '/^failures:$/,/^test result: /s/^    \\([^ ]*::[^ ]*\\)$/\\1/p' {OUTPUT} | sort -u)
count=$(echo \"$failed\" | grep -c .)
if [ \"$count\" -ge 1 ] && [ \"$count\" -le {MOST_SECOND_TRIES} ]; then for test in $failed; do
echo \"{BEGIN}{label} {AGAIN} $test\"
{FOLDER}/{program} --test-threads=1 --exact \"$test\"
echo \"{END}{label} {AGAIN} $test $?\"
done; fi
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_line_quotes_what_the_user_typed() {
        let line = run_line("boot", "boot", ["it's"].into_iter());
        assert!(
            line.contains(r"/suite/boot --test-threads=1 'it'\''s'"),
            "{line}"
        );
        assert!(line.contains("@@end boot $code"), "{line}");
    }

    /// What comes out when the program says `said` and ends with `code`, and at a second try of one test with `later`.
    fn play(said: &str, code: i32, later: i32) -> String {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let program = format!(
            "#!/bin/sh\ncase \"$*\" in *--exact*) echo again \"$3\"; exit {later};; esac\ncat <<'END'\n{said}\nEND\nexit {code}\n"
        );
        std::fs::write(at("boot"), program).unwrap();
        let line = run_line("boot 1", "boot", std::iter::empty())
            .replace(&format!("{FOLDER}/boot"), &format!("sh {}", at("boot")))
            .replace(OUTPUT, &at("output"));
        let output = Command::new("sh").args(["-c", &line]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn test_that_failed_is_tried_once_more_by_itself() {
        let said = "failures:\n\n---- one::two stdout ----\nfailures:\n    one::two\n\ntest result: FAILED. 3 passed; 1 failed;";
        let out = play(said, 101, 0);
        assert!(
            out.ends_with(
                "@@end boot 1 101\n@@begin boot 1 again one::two\nagain one::two\n@@end boot 1 again one::two 0\n"
            ),
            "{out}"
        );
    }

    #[test]
    fn nothing_is_tried_again_when_all_is_well_or_much_is_not() {
        let well = play("test result: ok. 4 passed; 0 failed;", 0, 0);
        assert!(well.ends_with("@@end boot 1 0\n"), "{well}");
        let audit = play(
            "failures:\n    leak_audit\n\ntest result: FAILED. 3 passed; 1 failed;",
            101,
            0,
        );
        assert!(audit.ends_with("@@end boot 1 101\n"), "{audit}");
        let names = "    a::one\n    a::two\n    a::three\n";
        let said = format!("failures:\n{names}\ntest result: FAILED. 0 passed; 3 failed;");
        let much = play(&said, 101, 0);
        assert!(much.ends_with("@@end boot 1 101\n"), "{much}");
    }
}
