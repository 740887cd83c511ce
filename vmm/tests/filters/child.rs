//! A child that installs a filter, makes one system call, and tells by its end what the filter said; and what is to be true of every filter.
//!
//! `tests/process_filters` has this file as well, for the filters of other processes than a worker.

use std::arch::asm;
use std::ffi::{c_int, c_long};
use std::fmt::Debug;
use std::io;

use vmm::sandbox::filter::{Answer, Only, Rule};

/// A filter, and what it is made of.
pub trait Filter: Copy + Debug {
    fn install(self) -> io::Result<()>;
    fn rules(self) -> Vec<&'static Rule>;

    fn rule(self, number: c_long) -> Option<&'static Rule> {
        self.rules().into_iter().find(|rule| rule.call == number)
    }
}

/// Above all numbers that there are.
pub const NUMBERS: std::ops::Range<c_long> = 0..600;
/// `uretprobe` and `uprobe`: the kernel calls them itself from code that it puts into a process, and asks no filter (`seccomp_uprobe_exception`,
/// kernel/seccomp.c). From elsewhere they are SIGILL.
const KERNELS_OWN: [c_long; 2] = [335, 336];
/// No pointer, no descriptor, no length that is any good: a call that is allowed fails and does nothing.
pub const NONSENSE: u64 = u64::MAX;
/// A child that is not done by then waits for what never comes.
const DEADLINE_SECONDS: u32 = 30;

/// What became of a child.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// By the filter.
    Refused,
    /// It came to its end, and what it did answered so.
    Done(bool),
    Signal(c_int),
    Exit(c_int),
}

/// Does `act` in a child that has the filter.
pub fn under(filter: impl Filter, act: impl FnOnce() -> bool) -> End {
    // SAFETY: the child has this thread alone and does not return from here. What it calls is system calls, and in some tests the C library's
    // allocator, which the C library makes usable after a fork.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "no child");
    if child == 0 {
        confine(filter);
        let answer = act();
        // Two ends that no filter can refuse, since neither is a system call: SIGILL and SIGTRAP.
        match answer {
            // SAFETY: it ends this process.
            true => unsafe { asm!("ud2") },
            // SAFETY: it ends this process.
            false => unsafe { asm!("int3") },
        }
        unreachable!();
    }
    let mut status = 0;
    // SAFETY: it writes to `status` alone, and the child is ours.
    let reaped = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(reaped, child);
    match (libc::WIFSIGNALED(status), libc::WTERMSIG(status)) {
        (true, libc::SIGSYS) => End::Refused,
        (true, libc::SIGILL) => End::Done(true),
        (true, libc::SIGTRAP) => End::Done(false),
        (true, libc::SIGALRM) => panic!("a call under {filter:?} waits for ever"),
        (true, signal) => End::Signal(signal),
        (false, _) => End::Exit(libc::WEXITSTATUS(status)),
    }
}

fn confine(filter: impl Filter) {
    // SAFETY: concerns this process alone: no core file, an alarm, no privileges.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
    // SAFETY: as above.
    unsafe { libc::alarm(DEADLINE_SECONDS) };
    // SAFETY: as above.
    unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    if filter.install().is_err() {
        // SAFETY: ends this process.
        unsafe { libc::_exit(99) };
    }
}

pub fn call(number: c_long, arguments: [u64; 6]) -> c_long {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: in a child that ends right after. Its arguments are nonsense, or what a rule allows beside nonsense.
    unsafe { libc::syscall(number, a, b, c, d, e, f) }
}

/// Whether the filter lets the call through, whatever becomes of it then.
pub fn allowed(filter: impl Filter, number: c_long, arguments: [u64; 6]) -> bool {
    let end = under(filter, || {
        call(number, arguments);
        true
    });
    assert_ne!(end, End::Exit(99), "no filter was installed");
    end != End::Refused
}

/// Values that a condition takes, and some that it does not.
fn samples(condition: &Only) -> (u32, Vec<u64>, Vec<u64>) {
    match *condition {
        Only::OneOf(argument, values) => {
            let good = values.iter().map(|value| u64::from(*value)).collect();
            // Neighbours, single bits more or less, and everything.
            let near = values
                .iter()
                .flat_map(|value| [0, 1, 2, 4, 8, 16, 31].map(|bit| value ^ (1 << bit)));
            let bad = near
                .chain([u32::MAX])
                .filter(|value| !values.contains(value))
                .map(u64::from);
            (argument, good, bad.collect())
        }
        Only::Within(argument, bits) => {
            let outside = (0..32)
                .map(|bit| 1_u32 << bit)
                .filter(|bit| bits & bit == 0);
            let bad = outside.map(|bit| u64::from(bits | bit));
            (argument, vec![0, u64::from(bits)], bad.collect())
        }
        // The child's own number is filled in there.
        Only::OwnProcess(argument) => (argument, vec![], vec![1, 0, NONSENSE]),
    }
}

/// Arguments that all conditions of a rule take.
fn good_arguments(rule: &Rule) -> [u64; 6] {
    let mut arguments = [NONSENSE; 6];
    for condition in rule.only {
        let (argument, good, _) = samples(condition);
        arguments[argument as usize] = good.first().copied().unwrap_or(OWN);
    }
    arguments
}

/// Stands for the child's number.
const OWN: u64 = 0x0bad_cafe;

/// As [`allowed`], with the child's number where [`OWN`] stands.
fn try_out(filter: impl Filter, number: c_long, arguments: [u64; 6]) -> bool {
    let end = under(filter, || {
        let own = u64::from(std::process::id());
        call(
            number,
            arguments.map(|value| if value == OWN { own } else { value }),
        );
        true
    });
    assert_ne!(end, End::Exit(99), "no filter was installed");
    end != End::Refused
}

/// Of a filter that allows what it names.
pub fn assert_others_end_the_process(filter: impl Filter) {
    for number in NUMBERS {
        if filter.rule(number).is_none() && !KERNELS_OWN.contains(&number) {
            let may = allowed(filter, number, [NONSENSE; 6]);
            assert!(!may, "{filter:?} may call {number}");
        }
    }
}

/// Each value passes, and its neighbours do not; what is denied ends the process.
pub fn assert_values_are_looked_at(filter: impl Filter) {
    for rule in filter.rules() {
        let number = rule.call;
        let good = good_arguments(rule);
        let passes = rule.answer != Answer::Kill;
        assert_eq!(try_out(filter, number, good), passes, "{filter:?} {rule:?}");
        for condition in rule.only {
            let (argument, values, others) = samples(condition);
            let with = |value| {
                let mut arguments = good;
                arguments[argument as usize] = value;
                arguments
            };
            for value in values {
                let may = try_out(filter, number, with(value));
                assert!(may, "{filter:?} {rule:?} {value:#x}");
            }
            for value in others {
                let may = try_out(filter, number, with(value));
                assert!(!may, "{filter:?} {rule:?} {value:#x}");
            }
        }
    }
}

pub fn assert_failures_are_harmless(filter: impl Filter) {
    for rule in filter.rules() {
        let Answer::Fail(errno) = rule.answer else {
            continue;
        };
        let end = under(filter, || {
            let failed = call(rule.call, [NONSENSE; 6]) == -1;
            failed && io::Error::last_os_error().raw_os_error() == Some(errno.into())
        });
        assert_eq!(end, End::Done(true), "{filter:?} {rule:?}");
    }
}
