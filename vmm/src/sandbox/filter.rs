//! From a table of rules to a program for the kernel, at build time.
//!
//! A rule is one system call; what no rule names ends the process. The program is a constant in the binary: a worker neither
//! parses nor allocates anything to install it. The kernel runs it for each system call, but remembers which calls are allowed whatever
//! their arguments (`seccomp_cache_prepare`, kernel/seccomp.c, Linux 5.11) and does not run it for those.

use std::ffi::c_long;

use libc::sock_filter;

/// What a thread may do, and why it must.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    pub call: c_long,
    /// All of these must hold, or the process ends.
    pub only: &'static [Only],
    pub answer: Answer,
    /// For people who read or change the table; it is not in the binary.
    pub why: &'static str,
}

/// A condition on the lower half of an argument. Every argument that is looked at is one of which the kernel takes 32 bits, or gives no meaning
/// to the others.
#[derive(Debug, Clone, Copy)]
pub enum Only {
    /// The argument of this number is one of these.
    OneOf(u32, &'static [u32]),
    /// The argument of this number has no other bits than these.
    Within(u32, u32),
    /// The argument of this number is the number of this process.
    OwnProcess(u32),
}

/// What the kernel does with a call that a rule names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Allow,
    /// The process ends.
    Kill,
    /// It is not done, and fails with this number.
    Fail(u16),
}

/// Allowed whatever its arguments.
pub const fn allow(call: c_long, why: &'static str) -> Rule {
    allow_only(call, &[], why)
}

pub const fn allow_only(call: c_long, only: &'static [Only], why: &'static str) -> Rule {
    let answer = Answer::Allow;
    Rule {
        call,
        only,
        answer,
        why,
    }
}

/// Not done, and no reason to end the process.
pub const fn fail(call: c_long, errno: u16, why: &'static str) -> Rule {
    Rule {
        call,
        only: &[],
        answer: Answer::Fail(errno),
        why,
    }
}

/// The process ends, in a program that allows what no rule names.
pub const fn deny(call: c_long, why: &'static str) -> Rule {
    Rule {
        call,
        only: &[],
        answer: Answer::Kill,
        why,
    }
}

/// What the kernel does with a call that no rule names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Otherwise {
    Kill,
    /// For processes of which nobody can say all that they do. The x32 convention is refused all the same.
    Allow,
}

/// For the kernel, of `N` steps.
#[derive(Debug)]
pub struct Program<const N: usize>(pub(super) [sock_filter; N]);

/// Stands for the number of the process until the program is installed. No condition may ask for this value.
pub(super) const OWN_PROCESS: u32 = 0xffff_fffe;
/// The longest program. The one that installs it copies it to its stack.
pub const MAX_STEPS: usize = 256;

// Offsets in `struct seccomp_data` (linux/seccomp.h).
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;
const ARGUMENT_BYTES: u32 = 8;
/// linux/audit.h. A call by another convention (32 bits) has other numbers; one by the x32 convention has a bit in its number that no rule has.
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;

/// `__X32_SYSCALL_BIT` (asm/unistd.h)
const X32: u32 = 1 << 30;

// linux/filter.h, of which `libc` has the parts.
const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
pub(super) const IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const IF_ANY_BIT: u16 = 0x45; // BPF_JMP | BPF_JSET | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// Steps before the first rule, and after the last one.
const PROLOGUE: usize = 4;
const EPILOGUE: usize = 3;

/// How many steps the program of these rules has.
pub const fn length(groups: &[&[Rule]]) -> usize {
    let mut steps = PROLOGUE + EPILOGUE;
    let mut group = 0;
    while group < groups.len() {
        let mut rule = 0;
        while rule < groups[group].len() {
            steps += rule_length(&groups[group][rule]);
            rule += 1;
        }
        group += 1;
    }
    steps
}

const fn rule_length(rule: &Rule) -> usize {
    // Its number, and what is answered.
    let mut steps = 2;
    let mut condition = 0;
    while condition < rule.only.len() {
        steps += condition_length(&rule.only[condition]);
        condition += 1;
    }
    steps
}

/// The argument is loaded, compared, and refused.
const fn condition_length(condition: &Only) -> usize {
    match condition {
        Only::OneOf(_, values) => 1 + values.len() + 1,
        Only::Within(..) | Only::OwnProcess(_) => 3,
    }
}

/// The program. `N` is its [`length`]. Rules that are needed most often belong to the front.
pub const fn compile<const N: usize>(groups: &[&[Rule]], otherwise: Otherwise) -> Program<N> {
    assert!(
        N == length(groups) && N <= MAX_STEPS,
        "the program has another length"
    );
    let mut program = [stop(); N];
    program[0] = step(LOAD, 0, 0, ARCHITECTURE);
    program[1] = step(IF_EQUAL, 1, 0, AUDIT_ARCH_X86_64);
    // Step 2 ends the process.
    program[3] = step(LOAD, 0, 0, NUMBER);
    let mut at = PROLOGUE;
    let mut group = 0;
    while group < groups.len() {
        let mut index = 0;
        while index < groups[group].len() {
            let rule = &groups[group][index];
            assert!(
                times_named(groups, rule.call) == 1,
                "two rules for one system call"
            );
            at = write_rule(&mut program, at, rule);
            index += 1;
        }
        group += 1;
    }
    if matches!(otherwise, Otherwise::Allow) {
        program[at] = step(IF_ANY_BIT, 0, 1, X32);
        // Step `at + 1` ends the process.
        program[at + 2] = step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW);
    }
    // Otherwise all of them end the process.
    assert!(at + EPILOGUE == N, "the program has another length");
    Program(program)
}

const fn times_named(groups: &[&[Rule]], call: c_long) -> usize {
    let (mut times, mut group) = (0, 0);
    while group < groups.len() {
        let mut rule = 0;
        while rule < groups[group].len() {
            if groups[group][rule].call == call {
                times += 1;
            }
            rule += 1;
        }
        group += 1;
    }
    times
}

/// Answers where the next one goes. A rule that is entered ends with a return, so none has to load the number again.
const fn write_rule<const N: usize>(
    program: &mut [sock_filter; N],
    start: usize,
    rule: &Rule,
) -> usize {
    let skip = jump(rule_length(rule) - 1);
    program[start] = step(IF_EQUAL, 0, skip, low(rule.call));
    let mut at = start + 1;
    let mut index = 0;
    while index < rule.only.len() {
        at = write_condition(program, at, &rule.only[index]);
        index += 1;
    }
    let answer = match rule.answer {
        Answer::Allow => libc::SECCOMP_RET_ALLOW,
        Answer::Kill => libc::SECCOMP_RET_KILL_PROCESS,
        Answer::Fail(errno) => libc::SECCOMP_RET_ERRNO | errno as u32,
    };
    program[at] = step(RETURN, 0, 0, answer);
    at + 1
}

/// Answers where it goes on when the condition holds.
const fn write_condition<const N: usize>(
    program: &mut [sock_filter; N],
    start: usize,
    condition: &Only,
) -> usize {
    let end = start + condition_length(condition);
    let (Only::OneOf(argument, _) | Only::Within(argument, _) | Only::OwnProcess(argument)) =
        *condition;
    assert!(argument < 6, "a system call has six arguments");
    program[start] = step(LOAD, 0, 0, FIRST_ARGUMENT + argument * ARGUMENT_BYTES);
    match *condition {
        Only::OneOf(_, values) => {
            let mut index = 0;
            while index < values.len() {
                assert!(
                    values[index] != OWN_PROCESS,
                    "this value stands for something else"
                );
                let at = start + 1 + index;
                program[at] = step(IF_EQUAL, jump(end - at - 1), 0, values[index]);
                index += 1;
            }
        }
        Only::Within(_, bits) => program[start + 1] = step(IF_ANY_BIT, 0, 1, !bits),
        Only::OwnProcess(_) => program[start + 1] = step(IF_EQUAL, 1, 0, OWN_PROCESS),
    }
    // The step before the end is what is reached when it does not hold.
    program[end - 1] = stop();
    end
}

const fn stop() -> sock_filter {
    step(RETURN, 0, 0, libc::SECCOMP_RET_KILL_PROCESS)
}

const fn step(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

#[expect(clippy::cast_possible_truncation, reason = "checked")]
const fn jump(steps: usize) -> u8 {
    assert!(steps <= u8::MAX as usize, "a rule is longer than a jump");
    steps as u8
}

/// The number of a system call.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked"
)]
const fn low(call: c_long) -> u32 {
    assert!(
        call >= 0 && call < 1 << 16,
        "this is no number of a system call"
    );
    call as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: &[&[Rule]] = &[
        &[allow_only(
            16,
            &[
                Only::OneOf(1, &[7, 8]),
                Only::Within(2, 3),
                Only::OwnProcess(0),
            ],
            "",
        )],
        &[allow(1, ""), fail(435, 38, "")],
    ];
    const STEPS: usize = length(RULES);
    static PROGRAM: Program<STEPS> = compile(RULES, Otherwise::Kill);
    static OTHERS: Program<STEPS> = compile(RULES, Otherwise::Allow);

    /// What the kernel would answer: its interpreter in a few lines.
    fn run(program: &Program<STEPS>, architecture: u32, call: u32, arguments: [u64; 6]) -> u32 {
        let load = |offset: u32| match offset {
            NUMBER => call,
            ARCHITECTURE => architecture,
            _ => {
                let argument = arguments[((offset - FIRST_ARGUMENT) / ARGUMENT_BYTES) as usize];
                u32::try_from(argument & 0xffff_ffff).unwrap()
            }
        };
        let (mut at, mut value) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program.0[at];
            at += 1;
            let jump = |taken: bool| usize::from(if taken { jt } else { jf });
            match code {
                LOAD => value = load(k),
                IF_EQUAL => at += jump(value == k),
                IF_ANY_BIT => at += jump(value & k != 0),
                RETURN => return k,
                _ => panic!("{code}"),
            }
        }
    }

    #[test]
    fn program_allows_what_the_rules_name_and_ends_the_process_for_the_rest() {
        const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;
        let own = u64::from(OWN_PROCESS);
        let cases = [
            (16, [own, 7, 3, 0, 0, 0], libc::SECCOMP_RET_ALLOW),
            (16, [own, 8, 0, 9, 9, 9], libc::SECCOMP_RET_ALLOW),
            (16, [own, 6, 0, 0, 0, 0], KILL),
            (16, [own, 8, 4, 0, 0, 0], KILL),
            (16, [1, 8, 0, 0, 0, 0], KILL),
            (1, [9; 6], libc::SECCOMP_RET_ALLOW),
            (435, [0; 6], libc::SECCOMP_RET_ERRNO | 38),
            (2, [0; 6], KILL),
            // x32.
            (1 | 1 << 30, [0; 6], KILL),
        ];
        for (call, arguments, answer) in cases {
            let answers = |program| run(program, AUDIT_ARCH_X86_64, call, arguments);
            assert_eq!(answers(&PROGRAM), answer, "{call} {arguments:?}");
            let unnamed = call == 2;
            let otherwise = if unnamed {
                libc::SECCOMP_RET_ALLOW
            } else {
                answer
            };
            assert_eq!(answers(&OTHERS), otherwise, "{call} {arguments:?}");
            for program in [&PROGRAM, &OTHERS] {
                // A program of 32 bits.
                assert_eq!(run(program, 0x4000_0003, call, arguments), KILL);
            }
        }
    }
}
