//! Rules that classes share, also those of other processes than a worker.
//!
//! A rule that the usual scenarios do not show says when it is needed.

use super::filter::{Only, Rule, allow, allow_only, fail};

/// As `libc` has it, in the width that a filter answers with.
const ENOSYS: u16 = 38;

#[expect(clippy::cast_sign_loss, reason = "the bits count")]
pub const fn bits(value: i32) -> u32 {
    value as u32
}

pub const READ_WRITE: u32 = bits(libc::PROT_READ | libc::PROT_WRITE);
pub const PRIVATE: u32 = bits(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
pub const ABORT: u32 = bits(libc::SIGABRT);
/// The C library takes its own thread, and no other: it is how a program ends after a panic.
pub const OWN: Only = Only::OwnProcess(0);
/// What a thread of the C library shares with its process: everything, and nothing else is a thread.
const THREAD: u32 = bits(
    libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM
        | libc::CLONE_SETTLS
        | libc::CLONE_PARENT_SETTID
        | libc::CLONE_CHILD_CLEARTID,
);
const WAIT: u32 = bits(libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG);
const WAKE: u32 = bits(libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG);
const WAIT_UNTIL: u32 = bits(libc::FUTEX_WAIT_BITSET | libc::FUTEX_PRIVATE_FLAG);
/// The kernel wakes this one when a thread ends, and knows nothing of private ones there.
const JOIN: u32 = bits(libc::FUTEX_WAIT_BITSET | libc::FUTEX_CLOCK_REALTIME);

/// Every thread: locks, logs, and an orderly end when something is wrong.
pub const EVERYBODY: &[Rule] = &[
    allow_only(
        libc::SYS_futex,
        &[Only::OneOf(1, &[WAIT, WAKE, WAIT_UNTIL, JOIN])],
        "locks, channels, and waiting for a thread's end; no robust or priority-inheriting ones",
    ),
    allow(
        libc::SYS_write,
        "events that wake or interrupt; the console; a line of the log",
    ),
    allow(
        libc::SYS_close,
        "descriptors of files and clients that are done with",
    ),
    allow(libc::SYS_munmap, "memory that is given back"),
    allow(
        libc::SYS_rt_sigprocmask,
        "the C library blocks signals while a thread ends or sends one",
    ),
    allow(libc::SYS_rt_sigreturn, "the end of a signal's handler"),
    allow(
        libc::SYS_sched_yield,
        "not seen in use each time: channels give way for a moment when two meet",
    ),
    allow(
        libc::SYS_sigaltstack,
        "a thread that ends gives up its stack for signals",
    ),
    allow(
        libc::SYS_getpid,
        "the number that a signal to a thread needs",
    ),
    allow(
        libc::SYS_gettid,
        "as above, and the name of a thread in a panic's message",
    ),
    allow(
        libc::SYS_clock_gettime,
        "not seen in use: what the time is where the kernel cannot tell it in the vDSO",
    ),
    allow(
        libc::SYS_restart_syscall,
        "not seen in use: how a wait goes on after the process was stopped or frozen",
    ),
];

/// A thread that installs no handler of its own.
pub const FAULTS: &[Rule] = &[allow_only(
    libc::SYS_rt_sigaction,
    &[Only::OneOf(0, &[bits(libc::SIGSEGV), bits(libc::SIGBUS)])],
    "not seen in use: after a fault that is no stack's end, Rust's handler puts the default back, so that the process dies of it",
)];

/// A thread that nobody kicks others from: it can only end the process by a panic.
pub const STOPS: &[Rule] = &[allow_only(
    libc::SYS_tgkill,
    &[OWN, Only::OneOf(2, &[ABORT])],
    "not seen in use: a panic ends in SIGABRT",
)];

/// The allocator of a thread that maps nothing else.
pub const KEEPS_MEMORY: &[Rule] = &[
    allow_only(
        libc::SYS_mmap,
        &[Only::OneOf(2, &[READ_WRITE]), Only::OneOf(3, &[PRIVATE])],
        "large allocations",
    ),
    allow_only(
        libc::SYS_mremap,
        &[Only::OneOf(3, &[bits(libc::MREMAP_MAYMOVE)])],
        "not seen in use each time: large allocations that grow",
    ),
    allow(libc::SYS_brk, "small allocations"),
];

/// A thread that ends while the process lives on.
pub const ENDS: &[Rule] = &[
    allow(libc::SYS_exit, "the end of a thread"),
    allow_only(
        libc::SYS_madvise,
        &[Only::OneOf(2, &[bits(libc::MADV_DONTNEED)])],
        "the C library gives back the stack of a thread that ends",
    ),
];

/// Threads, and nothing else that can be cloned.
pub const CLONES_THREADS: &[Rule] = &[
    fail(
        libc::SYS_clone3,
        ENOSYS,
        "its arguments are in memory, where no filter sees them; the C library then uses clone",
    ),
    allow_only(
        libc::SYS_clone,
        &[Only::OneOf(0, &[THREAD])],
        "threads, and no processes or namespaces",
    ),
];

/// A thread that starts others ([`CLONES_THREADS`]). These inherit its filter, so it has what the C library and Rust do when a thread begins and ends.
pub const STARTS_THREADS: &[Rule] = &[
    allow(libc::SYS_set_robust_list, "a thread begins"),
    allow(libc::SYS_rseq, "a thread begins"),
    allow(
        libc::SYS_sched_getaffinity,
        "a thread begins: where its stack is",
    ),
    allow_only(
        libc::SYS_prctl,
        &[Only::OneOf(0, &[bits(libc::PR_SET_NAME)])],
        "the names of threads, for people",
    ),
    allow(libc::SYS_exit, "a thread that inherited this filter ends"),
];
