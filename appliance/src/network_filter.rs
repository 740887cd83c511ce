//! What the process that faces the network may not ask of the kernel.
//!
//! It opens files, listens, dials, and runs an asynchronous runtime, a database and a TLS library, each of which has a choice of
//! system calls to do the same by. A list of what it may do would be long and break with each of them; so this is a list of what none of them does:
//! becoming another program, looking into or acting on other processes, changing what the host or this process is, and the parts of the kernel
//! that are attacked most and needed here least.

use vmm::sandbox::common::{CLONES_THREADS, READ_WRITE};
use vmm::sandbox::filter::{Only, Otherwise, Program, Rule, allow_only, compile, deny, length};

/// For the program, and for those who try it (`tests/process_filters`).
pub const RULES: &[&[Rule]] = &[CODE, CLONES_THREADS, PROCESSES, HOST, KERNEL];
pub static PROGRAM: Program<{ length(RULES) }> = compile(RULES, Otherwise::Allow);

const CODE: &[Rule] = &[
    allow_only(
        libc::SYS_mmap,
        // Written out, so that what is missing is the right to execute.
        &[Only::Within(2, READ_WRITE)],
        "nothing to execute: all code is in the binary",
    ),
    allow_only(
        libc::SYS_mprotect,
        &[Only::Within(2, READ_WRITE)],
        "as above",
    ),
    deny(libc::SYS_pkey_mprotect, "as above"),
    deny(libc::SYS_remap_file_pages, "as above"),
    deny(libc::SYS_shmat, "as above"),
    deny(
        libc::SYS_personality,
        "as above: readable memory that can be executed",
    ),
    deny(
        libc::SYS_execve,
        "another program; the warden starts all processes",
    ),
    deny(libc::SYS_execveat, "as above"),
    deny(libc::SYS_fork, "as above"),
    deny(libc::SYS_vfork, "as above"),
    deny(libc::SYS_modify_ldt, "segments of old programs"),
    deny(libc::SYS_iopl, "hardware"),
    deny(libc::SYS_ioperm, "hardware"),
];

/// Of other processes.
const PROCESSES: &[Rule] = &[
    deny(libc::SYS_ptrace, "looking into another process"),
    deny(libc::SYS_process_vm_readv, "as above"),
    deny(libc::SYS_process_vm_writev, "as above"),
    deny(libc::SYS_process_madvise, "as above"),
    deny(
        libc::SYS_pidfd_getfd,
        "taking what another process has open",
    ),
    deny(libc::SYS_kcmp, "comparing what processes have"),
    deny(libc::SYS_kill, "signals; workers are killed by the warden"),
    deny(libc::SYS_tkill, "as above"),
    deny(libc::SYS_rt_sigqueueinfo, "as above"),
    deny(libc::SYS_rt_tgsigqueueinfo, "as above"),
    deny(libc::SYS_pidfd_send_signal, "as above"),
    deny(
        libc::SYS_migrate_pages,
        "where the memory of another process is",
    ),
    deny(libc::SYS_move_pages, "as above"),
];

/// What the host and this process are.
const HOST: &[Rule] = &[
    deny(
        libc::SYS_unshare,
        "namespaces, and the capabilities that a new one brings",
    ),
    deny(libc::SYS_setns, "as above"),
    deny(libc::SYS_mount, "file systems"),
    deny(libc::SYS_umount2, "as above"),
    deny(libc::SYS_pivot_root, "as above"),
    deny(libc::SYS_chroot, "as above"),
    deny(libc::SYS_open_tree, "as above"),
    deny(libc::SYS_move_mount, "as above"),
    deny(libc::SYS_fsopen, "as above"),
    deny(libc::SYS_fsconfig, "as above"),
    deny(libc::SYS_fsmount, "as above"),
    deny(libc::SYS_fspick, "as above"),
    deny(libc::SYS_mount_setattr, "as above"),
    deny(libc::SYS_swapon, "as above"),
    deny(libc::SYS_swapoff, "as above"),
    deny(libc::SYS_quotactl, "as above"),
    deny(
        libc::SYS_setuid,
        "who this process is: it has become that for good",
    ),
    deny(libc::SYS_setgid, "as above"),
    deny(libc::SYS_setreuid, "as above"),
    deny(libc::SYS_setregid, "as above"),
    deny(libc::SYS_setresuid, "as above"),
    deny(libc::SYS_setresgid, "as above"),
    deny(libc::SYS_setfsuid, "as above"),
    deny(libc::SYS_setfsgid, "as above"),
    deny(libc::SYS_setgroups, "as above"),
    deny(libc::SYS_capset, "as above"),
    deny(libc::SYS_settimeofday, "the clock"),
    deny(libc::SYS_clock_settime, "as above"),
    deny(libc::SYS_adjtimex, "as above"),
    deny(libc::SYS_clock_adjtime, "as above"),
    deny(libc::SYS_sethostname, "names"),
    deny(libc::SYS_setdomainname, "names"),
    deny(libc::SYS_reboot, "the host's end"),
    deny(libc::SYS_kexec_load, "another kernel"),
    deny(libc::SYS_kexec_file_load, "as above"),
    deny(libc::SYS_init_module, "more kernel"),
    deny(libc::SYS_finit_module, "as above"),
    deny(libc::SYS_delete_module, "as above"),
    deny(libc::SYS_acct, "accounting"),
    deny(libc::SYS_syslog, "the kernel's log"),
    deny(libc::SYS_vhangup, "terminals"),
    deny(libc::SYS_mknod, "devices"),
    deny(libc::SYS_mknodat, "devices"),
    deny(
        libc::SYS_open_by_handle_at,
        "files beyond the paths that lead to them",
    ),
    deny(libc::SYS_name_to_handle_at, "as above"),
];

/// Parts of the kernel that have been the way in more often than others.
const KERNEL: &[Rule] = &[
    deny(libc::SYS_bpf, "programs in the kernel"),
    deny(libc::SYS_perf_event_open, "counters"),
    deny(libc::SYS_io_uring_setup, "system calls that no filter sees"),
    deny(libc::SYS_io_uring_enter, "as above"),
    deny(libc::SYS_io_uring_register, "as above"),
    deny(libc::SYS_io_setup, "the older of these"),
    deny(libc::SYS_io_submit, "as above"),
    deny(
        libc::SYS_userfaultfd,
        "holding the kernel up in the middle of a copy",
    ),
    deny(libc::SYS_keyctl, "keyrings"),
    deny(libc::SYS_add_key, "keyrings"),
    deny(libc::SYS_request_key, "keyrings"),
    deny(libc::SYS_vmsplice, "pages given to pipes"),
    deny(libc::SYS_fanotify_init, "watching everybody's files"),
    deny(libc::SYS_lookup_dcookie, "profiling"),
    deny(libc::SYS_set_mempolicy, "where memory is"),
    deny(libc::SYS_mbind, "as above"),
    deny(libc::SYS_seccomp, "a filter that answers for others"),
];
