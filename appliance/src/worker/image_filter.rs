//! What an image worker may ask of the kernel. It lives on the descriptors that it was given, and starts threads to compress.

use vmm::sandbox::common::{
    ABORT, CLONES_THREADS, EVERYBODY, OWN, PRIVATE, READ_WRITE, STARTS_THREADS, bits,
};
use vmm::sandbox::filter::{
    Only, Otherwise, Program, Rule, allow, allow_only, compile, fail, length,
};

/// For the program, and for those who try it (`tests/process_filters`).
pub const RULES: &[&[Rule]] = &[JOB, CLONES_THREADS, STARTS_THREADS, EVERYBODY];
pub static PROGRAM: Program<{ length(RULES) }> = compile(RULES, Otherwise::Kill);

/// As `libc` has it, in the width that a filter answers with.
const EACCES: u16 = 13;

/// The signal by which the C library tells all threads that the process changes its ids (`SIGSETXID`).
const SET_IDS: u32 = 33;

const JOB: &[Rule] = &[
    allow(libc::SYS_pread64, "archives, blobs, and the spool"),
    allow(libc::SYS_pwrite64, "the spool and the root image"),
    allow(libc::SYS_ftruncate, "the spool and the root image"),
    allow(libc::SYS_statx, "how long an archive or a blob is"),
    allow_only(
        libc::SYS_mmap,
        &[
            Only::Within(2, READ_WRITE),
            Only::OneOf(
                3,
                &[
                    PRIVATE,
                    PRIVATE | bits(libc::MAP_STACK),
                    PRIVATE | bits(libc::MAP_NORESERVE),
                ],
            ),
        ],
        "allocations and stacks; nothing to execute, and no file",
    ),
    allow_only(
        libc::SYS_mprotect,
        &[Only::Within(2, READ_WRITE)],
        "stacks and the pages that guard them; the heaps of threads as they grow",
    ),
    allow_only(
        libc::SYS_madvise,
        &[Only::OneOf(2, &[bits(libc::MADV_DONTNEED)])],
        "stacks and heaps of threads that are given back",
    ),
    allow_only(
        libc::SYS_mremap,
        &[Only::OneOf(3, &[bits(libc::MREMAP_MAYMOVE)])],
        "not seen in use each time: large allocations that grow",
    ),
    allow(libc::SYS_brk, "small allocations"),
    allow(
        libc::SYS_getrandom,
        "not seen in use: keys of hash tables on another thread than the first, which has drawn its own before",
    ),
    allow(libc::SYS_recvmsg, "the end of the warden"),
    allow_only(
        libc::SYS_tgkill,
        &[OWN, Only::OneOf(2, &[ABORT])],
        "not seen in use: a panic ends in SIGABRT",
    ),
    allow(libc::SYS_exit_group, "the end of the process"),
    allow_only(
        libc::SYS_rt_sigaction,
        &[Only::OneOf(
            0,
            &[SET_IDS, bits(libc::SIGSEGV), bits(libc::SIGBUS)],
        )],
        "the C library's own handler, when the first thread starts; the default after a fault, so that the process dies of it",
    ),
    allow_only(
        libc::SYS_fcntl,
        &[Only::OneOf(1, &[bits(libc::F_GETFD)])],
        "not seen in use: in builds with debug assertions Rust looks whether what it closes is open",
    ),
    fail(
        libc::SYS_openat,
        EACCES,
        "Rust looks for a limit of processors in files of its control group, and does without",
    ),
];
