//! The filters of the image worker and of the process that faces the network, tried on the kernel as those of a worker's threads are
//! (`vmm/tests/filters`). The tables are read from where they are used: the appliance is a program, and has nothing to link to.
//!
//! A program of its own, for the reason that is given there.
#![allow(
    clippy::unwrap_used,
    reason = "everything here is a test; a panic is how it fails"
)]

#[path = "../../vmm/tests/filters/child.rs"]
mod child;
#[path = "../../appliance/src/worker/image_filter.rs"]
mod image_filter;
#[path = "../../appliance/src/network_filter.rs"]
mod network_filter;

use std::io;

use child::{End, Filter, NONSENSE, allowed, under};
use vmm::sandbox::filter::{Answer, Rule};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Process {
    ImageWorker,
    Network,
}

impl Filter for Process {
    fn install(self) -> io::Result<()> {
        match self {
            Self::ImageWorker => vmm::sandbox::install(&image_filter::PROGRAM),
            Self::Network => vmm::sandbox::install(&network_filter::PROGRAM),
        }
    }

    fn rules(self) -> Vec<&'static Rule> {
        let groups = match self {
            Self::ImageWorker => image_filter::RULES,
            Self::Network => network_filter::RULES,
        };
        groups.iter().copied().flatten().collect()
    }
}

const ALL: [Process; 2] = [Process::ImageWorker, Process::Network];

#[test]
fn system_call_that_no_rule_names_ends_an_image_worker() {
    child::assert_others_end_the_process(Process::ImageWorker);
}

#[test]
fn call_that_is_denied_ends_the_process_and_values_are_looked_at() {
    ALL.into_iter().for_each(child::assert_values_are_looked_at);
}

#[test]
fn call_that_is_to_fail_fails_with_its_number_and_the_process_lives() {
    ALL.into_iter()
        .for_each(child::assert_failures_are_harmless);
}

/// A sample of what the runtime, the database and the TLS library do.
#[test]
fn call_that_no_rule_denies_passes_in_the_process_that_faces_the_network() {
    let usual = [
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_openat,
        libc::SYS_statx,
        libc::SYS_fsync,
        libc::SYS_fdatasync,
        libc::SYS_rename,
        libc::SYS_unlink,
        libc::SYS_flock,
        libc::SYS_socket,
        libc::SYS_connect,
        libc::SYS_accept4,
        libc::SYS_listen,
        libc::SYS_sendmsg,
        libc::SYS_recvmsg,
        libc::SYS_epoll_ctl,
        libc::SYS_eventfd2,
        libc::SYS_getrandom,
        libc::SYS_madvise,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_getdents64,
        libc::SYS_sync_file_range,
    ];
    for number in usual {
        assert!(Process::Network.rule(number).is_none());
        let may = allowed(Process::Network, number, [NONSENSE; 6]);
        assert!(may, "{number}");
    }
}

#[test]
fn neither_may_execute_trace_mount_or_change_who_it_is() {
    for process in ALL {
        for number in [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_fork,
            libc::SYS_vfork,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_pidfd_getfd,
            libc::SYS_kill,
            libc::SYS_tkill,
            libc::SYS_mount,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_setuid,
            libc::SYS_capset,
            libc::SYS_bpf,
            libc::SYS_io_uring_setup,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_seccomp,
        ] {
            let may = allowed(process, number, [NONSENSE; 6]);
            assert!(!may, "{process:?} may call {number}");
        }
    }
}

/// What is refused by name is refused by the x32 convention as well, whatever else may pass.
#[test]
fn system_call_of_another_convention_ends_the_process() {
    const X32: i64 = 1 << 30;
    for process in ALL {
        assert!(!allowed(process, libc::SYS_getpid | X32, [0; 6]));
        assert!(!allowed(process, libc::SYS_execve | X32, [NONSENSE; 6]));
    }
}

/// Image workers die of a fault, and of a panic, by their own signals: an operator is told what happened, and not that a filter was in the way.
#[test]
fn process_that_gives_up_dies_of_sigabrt_and_not_of_its_filter() {
    for process in ALL {
        let end = under(process, || std::process::abort());
        assert_eq!(end, End::Signal(libc::SIGABRT), "{process:?}");
    }
}

#[test]
fn rule_of_the_process_that_faces_the_network_takes_something_away() {
    let idle = |rule: &&Rule| rule.answer == Answer::Allow && rule.only.is_empty();
    assert_eq!(
        Process::Network
            .rules()
            .iter()
            .copied()
            .find(|rule| idle(rule))
            .map(|rule| rule.why),
        None
    );
}
