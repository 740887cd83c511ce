//! Runs the tests one after the other and looks after the appliance that they share.
//!
//! The standard harness cannot end something that tests share, and the end of an appliance is half
//! of what is tested here. The command line and the output are the standard harness's, as far as
//! they are used: name filters, `--exact`, `--skip`, `--list`.
//!
//! Last comes the leak audit (see `audit`). `--note-host FILE` runs no test and writes down what it begins with, for a run
//! with `--host-before FILE` that comes after other programs: then it is about all of them.
//!
//! A test that needs guests on a host that cannot run them prints `SKIPPED: <test>: <reason>` and passes,
//! unless `CABANA_REQUIRE_KVM=1`.

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::appliance::{self, TestAppliance};
use crate::artifacts;
use crate::audit::Audit;

/// A test that takes longer hangs. Two hundred forks are the longest one.
const TEST_LIMIT: Duration = Duration::from_secs(360);
/// What the standard harness exits with after a failure.
const FAILED: u8 = 101;
/// The end of the shared appliance, which is a test too.
const LAST: &str = "shared_appliance_ends_in_order_and_leaves_nothing_behind";

/// Comes when nothing runs any more.
const AUDIT: &str = "leak_audit_finds_nothing_on_the_host";

/// What a test needs.
#[derive(Clone, Copy)]
pub enum Run {
    /// Guests; it uses the shared appliance and leaves no session on it.
    Shared(fn(&TestAppliance)),
    /// Guests; it starts appliances of its own.
    Own(fn()),
    /// The binary alone.
    Anywhere(fn()),
}

pub struct Test {
    /// As `module_path!()` gives it.
    pub module: &'static str,
    pub function: &'static str,
    pub run: Run,
}

/// Lists the tests of a module. One that is not listed is dead code, and that does not compile.
#[macro_export]
macro_rules! tests {
    ($($run:ident: [$($test:ident),* $(,)?];)*) => {
        pub const TESTS: &[$crate::harness::Test] = &[$($(
            $crate::harness::Test {
                module: module_path!(),
                function: stringify!($test),
                run: $crate::harness::Run::$run($test),
            },
        )*)*];
    };
}

impl Test {
    fn name(&self) -> String {
        let module = self
            .module
            .split_once("::")
            .map_or(self.module, |(_, module)| module);
        format!("{module}::{}", self.function)
    }
}

#[derive(Default)]
struct Arguments {
    filters: Vec<String>,
    skip: Vec<String>,
    exact: bool,
    list: bool,
    note_host: Option<PathBuf>,
    host_before: Option<PathBuf>,
}

/// Runs what the command line asks for.
pub fn main(tests: &[&[Test]]) -> ExitCode {
    let arguments = match Arguments::parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(message) => return ended(Err(message)),
    };
    let all: Vec<&Test> = tests.iter().copied().flatten().collect();
    let chosen: Vec<&Test> = all
        .iter()
        .copied()
        .filter(|test| arguments.choose(&test.name()))
        .collect();
    if arguments.list {
        chosen
            .iter()
            .for_each(|test| println!("{}: test", test.name()));
        return ExitCode::SUCCESS;
    }
    // Into the same stream as everything else, so that they stand in the order in which they happened.
    panic::set_hook(Box::new(|info| println!("{info}")));
    if let Some(file) = &arguments.note_host {
        return ended(Audit::begin().note(file));
    }
    let audit = match &arguments.host_before {
        Some(file) => Audit::begun_at(file),
        None => Ok(Audit::begin()),
    };
    let audit = match audit {
        Ok(audit) => audit,
        Err(message) => return ended(Err(message)),
    };
    let mut session = Runner {
        audit,
        shared: None,
        passed: 0,
        failed: Vec::new(),
        started: Instant::now(),
    };
    println!("\nrunning {} tests", chosen.len());
    for test in &chosen {
        session.run(test);
    }
    session.finish(all.len() - chosen.len())
}

fn ended(outcome: Result<(), String>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::from(FAILED)
        }
    }
}

impl Arguments {
    fn parse(mut from: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut arguments = Self::default();
        while let Some(argument) = from.next() {
            match argument.as_str() {
                "--exact" => arguments.exact = true,
                "--list" => arguments.list = true,
                "--skip" => arguments
                    .skip
                    .push(from.next().ok_or("--skip needs a name")?),
                "--note-host" => arguments.note_host = Some(file(&argument, from.next())?),
                "--host-before" => arguments.host_before = Some(file(&argument, from.next())?),
                // One after the other and seen at once: that is how it is here anyway.
                "--nocapture" | "--no-capture" | "--show-output" | "--test-threads=1"
                | "--quiet" | "-q" => {}
                flag if flag.starts_with('-') => {
                    return Err(format!("this harness does not know {flag}"));
                }
                filter => arguments.filters.push(filter.to_owned()),
            }
        }
        Ok(arguments)
    }

    fn choose(&self, name: &str) -> bool {
        let fits = |filter: &String| {
            if self.exact {
                name == filter
            } else {
                name.contains(filter)
            }
        };
        (self.filters.is_empty() || self.filters.iter().any(fits)) && !self.skip.iter().any(fits)
    }
}

fn file(flag: &str, named: Option<String>) -> Result<PathBuf, String> {
    named
        .map(PathBuf::from)
        .ok_or_else(|| format!("{flag} needs a file"))
}

/// The shared appliance, once a test has asked for it.
enum Shared {
    Running(Box<TestAppliance>),
    /// It did not start; who comes later is told so at once.
    Broken,
}

struct Runner {
    audit: Audit,
    shared: Option<Shared>,
    passed: usize,
    failed: Vec<String>,
    started: Instant,
}

impl Runner {
    fn run(&mut self, test: &Test) {
        let (name, started) = (test.name(), Instant::now());
        if !matches!(test.run, Run::Anywhere(_))
            && let Err(why) = artifacts::kvm()
            && !artifacts::kvm_is_required()
        {
            skipped_test(&name, why);
            return self.report(&name, started, Ok(()));
        }
        let shared = &mut self.shared;
        let outcome = guarded(&name, move || match test.run {
            Run::Anywhere(test) => test(),
            Run::Own(test) => {
                assert_kvm();
                test();
            }
            Run::Shared(test) => {
                assert_kvm();
                run_shared(shared, test);
            }
        });
        self.report(&name, started, outcome);
    }

    fn report(&mut self, name: &str, started: Instant, outcome: Result<(), Failed>) {
        // As the standard harness does with --report-time.
        let time = format!("<{:.1}s>", started.elapsed().as_secs_f32());
        match outcome {
            Ok(()) => {
                self.passed += 1;
                println!("test {name} ... ok {time}");
            }
            Err(Failed) => {
                self.failed.push(name.to_owned());
                println!("test {name} ... FAILED {time}");
            }
        }
    }

    fn finish(mut self, filtered: usize) -> ExitCode {
        if let Some(Shared::Running(host)) = self.shared.take() {
            let started = Instant::now();
            let outcome = guarded(LAST, || host.stop());
            self.report(LAST, started, outcome);
        }
        let started = Instant::now();
        let audit = &self.audit;
        let outcome = guarded(AUDIT, || audit.finish());
        self.report(AUDIT, started, outcome);
        if !self.failed.is_empty() {
            println!("\nfailures:\n    {}", self.failed.join("\n    "));
        }
        let verdict = if self.failed.is_empty() {
            "ok"
        } else {
            "FAILED"
        };
        println!(
            "\ntest result: {verdict}. {} passed; {} failed; 0 ignored; 0 measured; {filtered} filtered out; finished in {:.2}s\n",
            self.passed,
            self.failed.len(),
            self.started.elapsed().as_secs_f32(),
        );
        if self.failed.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(FAILED)
        }
    }
}

/// Says why the running test returns without having tested anything.
pub fn skipped(reason: &str) {
    skipped_test(thread::current().name().unwrap_or_default(), reason);
}

/// The form that `cargo dev test` counts.
fn skipped_test(name: &str, reason: &str) {
    println!("SKIPPED: {name}: {reason}");
}

struct Failed;

/// Runs a test on a thread of its own, with a limit. One that hangs ends the whole run.
fn guarded(name: &str, test: impl FnOnce() + Send) -> Result<(), Failed> {
    thread::scope(|scope| {
        let (done, is_done) = mpsc::channel();
        let body = move || {
            let outcome = panic::catch_unwind(AssertUnwindSafe(test));
            // The receiver waits for this, or has ended the process.
            let _ = done.send(outcome);
        };
        let thread = thread::Builder::new().name(name.to_owned());
        thread
            .spawn_scoped(scope, body)
            .expect("a thread can be started");
        match is_done.recv_timeout(TEST_LIMIT) {
            Ok(outcome) => outcome.map_err(|_: Box<dyn Any + Send>| Failed),
            Err(_) => {
                println!("{}", appliance::abandon_all());
                println!(
                    "test {name} ... FAILED: it hangs for {TEST_LIMIT:?}; the other tests are not run"
                );
                std::process::exit(FAILED.into());
            }
        }
    })
}

fn assert_kvm() {
    if let Err(why) = artifacts::kvm() {
        panic!("CABANA_REQUIRE_KVM=1, but: {why}");
    }
}

fn run_shared(shared: &mut Option<Shared>, test: fn(&TestAppliance)) {
    if shared.is_none() {
        // Until it has started, and for good if it never does.
        *shared = Some(Shared::Broken);
        *shared = Some(Shared::Running(Box::new(TestAppliance::start())));
    }
    let Some(Shared::Running(host)) = shared else {
        panic!("the shared appliance did not start")
    };
    let position = host.log().position();
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| test(host)));
    let outcome =
        outcome.and_then(|()| panic::catch_unwind(AssertUnwindSafe(|| host.assert_idle())));
    if let Err(panicked) = outcome {
        println!("{}", host.report(position));
        // What the test has left must not fail the next one too.
        let _ = panic::catch_unwind(AssertUnwindSafe(|| host.forget_leftovers()));
        panic::resume_unwind(panicked);
    }
}
