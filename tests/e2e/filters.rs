//! What a worker's threads may ask of the kernel (`vmm/src/sandbox`): each has a filter, none of the usual scenarios runs into one, and what
//! the filters allow is what these scenarios do.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use e2e::TestAppliance;
use e2e::appliance::WITH_SPARES;
use e2e::artifacts;
use e2e::process::{self, Process};
use e2e::registry::Registry;
use hyper::Method;

use crate::calls::{self, ParentRecorder, Recorder};
use crate::image_filter;

e2e::tests! {
    Shared: [
        thread_of_a_worker_has_its_filters_whatever_it_does,
        worker_that_its_filter_ends_is_said_to_have_been_ended_by_sigsys,
    ];
    Own: [
        rule_of_every_class_is_used_by_what_workers_do_or_says_why_not,
        rule_of_the_image_worker_is_used_by_what_it_does_or_says_why_not,
    ];
}

const LIMIT: Duration = Duration::from_secs(60);

/// A thread of KVM's own in the worker, which never leaves the kernel (`kvm_nx_huge_page_recovery_worker`, arch/x86/kvm/mmu/mmu.c).
const KVMS_OWN: &str = "kvm-nx-lpage-re";

/// How many filters each thread has, by the names of the threads.
fn filters(pid: u32) -> BTreeMap<String, u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let of = |status: String, name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.expect("proc(5) says so").trim().to_owned()
    };
    tasks
        .map(|task| {
            let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            let filters = of(status.clone(), "Seccomp_filters:").parse().unwrap();
            (of(status, "Name:"), filters)
        })
        .filter(|(name, _)| name != KVMS_OWN)
        .collect()
}

fn thread_of_a_worker_has_its_filters_whatever_it_does(host: &TestAppliance) {
    let pool = host
        .pool("filters")
        .with(&["--cpu", "1.5", "--memory", "0.5Gi"])
        .create();
    pool.session("filtered").get("/healthz");
    let worker = pool.worker_of("filtered");
    // The second vCPU's thread has inherited its maker's.
    let expected = [
        ("cabana:worker", 1),
        ("devices", 1),
        ("orders", 1),
        ("vcpu0", 1),
        ("vcpu1", 2),
    ];
    let expected = expected.map(|(name, count)| (name.to_owned(), count));
    assert_eq!(filters(worker.pid), BTreeMap::from(expected));
    pool.delete();
}

fn worker_that_its_filter_ends_is_said_to_have_been_ended_by_sigsys(host: &TestAppliance) {
    let pool = host.pool("sigsys").create();
    pool.session("ended").get("/healthz");
    let worker = pool.worker_of("ended");
    let position = host.log().position();
    calls::make_instead(worker.pid, libc::SYS_socket);
    worker.assert_ends_within(LIMIT);
    host.wait_for_line(position, LIMIT, "the end of the worker", |line| {
        line.contains("SIGSYS") && line.contains("type=1326")
    });
    pool.delete();
}

/// Values that no scenario below needs: of which system call, which, and why they stay. Rules that none needs say so themselves.
const UNUSED: &[(i64, u32, &str)] = &[
    (libc::SYS_rt_sigaction, SEGV, "the default after a fault"),
    (libc::SYS_rt_sigaction, BUS, "the default after a fault"),
    (
        libc::SYS_futex,
        0x80,
        "FUTEX_WAIT: two threads in the allocator at the same moment, which is rare",
    ),
    (libc::SYS_tgkill, ABRT, "the end of a panic"),
    (
        libc::SYS_ioctl,
        0xaea2,
        "KVM_SET_TSC_KHZ: the golden of a host with another frequency",
    ),
    (
        libc::SYS_ioctl,
        0x9000_aecf,
        "KVM_GET_XSAVE2: processors with more registers than the lab's",
    ),
    (
        libc::SYS_madvise,
        3,
        "MADV_WILLNEED: a memory file on a disk; the lab has none",
    ),
];
// asm-generic/signal.h
const ABRT: u32 = 6;
const BUS: u32 = 7;
const SEGV: u32 = 11;

/// Whether a rule or a value says itself why nobody was seen to need it, or this list does.
fn excused((call, why, value): &calls::Use, unused: &[(i64, u32, &str)]) -> bool {
    let is_it = |(other, unused, _): &(i64, u32, &str)| call == other && *value == Some(*unused);
    why.starts_with("not seen in use") || unused.iter().any(is_it)
}

fn rule_of_every_class_is_used_by_what_workers_do_or_says_why_not() {
    let mut host = TestAppliance::start_with(&format!("{WITH_SPARES}spare_workers = 8\n"));
    // None of them has a thread that is still to install its filter.
    let confined = |spare: &Process| filters(spare.pid).values().eq(&[1; 5]);
    process::appears(LIMIT, "spares with their filters", |process| {
        process.role == "serve" && host.spares().iter().filter(|spare| confined(spare)).count() == 8
    });
    let recorder = Recorder::start(host.spares().iter().map(|spare| spare.pid).collect());
    let pool = host
        .pool("recorded")
        .with(&["--cpu", "1.5", "--memory", "0.5Gi"])
        // What comes has to wait.
        .with(&["--stream-throughput", "1Mi"])
        .create();
    let session = pool.session("first");
    let written = session.call(Method::PUT, "/files/block", vec![7; 3 << 20]);
    assert!((200..300).contains(&written.status), "{written:?}");
    host.detach();
    host.restart();
    host.existing_pool("recorded")
        .session("first")
        .get("/files/block");
    host.end_in_order();
    let used = recorder.stop();
    let unused: Vec<_> = calls::all()
        .difference(&used)
        .filter(|rule| !excused(rule, UNUSED))
        .copied()
        .collect();
    assert!(unused.is_empty(), "nobody needs these: {unused:#x?}");
}

/// What an image worker shares with threads of workers, and does not need itself: calls, and values as in [`UNUSED`].
const IMAGE_WORKERS_UNUSED: &[(i64, &str)] = &[
    (libc::SYS_rt_sigreturn, "it handles no signal"),
    (libc::SYS_getpid, "the end of a panic"),
];
const IMAGE_WORKERS_UNUSED_VALUES: &[(i64, u32, &str)] = &[
    (libc::SYS_rt_sigaction, SEGV, "the default after a fault"),
    (libc::SYS_rt_sigaction, BUS, "the default after a fault"),
    (
        libc::SYS_futex,
        0x80,
        "FUTEX_WAIT: two threads in the allocator at the same moment, which is rare",
    ),
    (
        libc::SYS_futex,
        0x109,
        "FUTEX_WAIT_BITSET by the clock: a thread that has not ended when it is waited for",
    ),
    (libc::SYS_tgkill, ABRT, "the end of a panic"),
];

/// Archives with compressed layers, large and small, blobs of a registry, and an archive that is none.
fn rule_of_the_image_worker_is_used_by_what_it_does_or_says_why_not() {
    let mut host = TestAppliance::start();
    let recorder = ParentRecorder::start(host.pid(), "image-worker", image_filter::RULES);
    for archive in [artifacts::demo_image(), artifacts::python_image()] {
        let source = format!("oci-archive:{}", archive.display());
        host.cli().ok(&["image", "import", &source]);
    }
    let registry = Registry::start();
    host.cli().ok(&["image", "pull", &registry.image("nginx")]);
    let source = format!("oci-archive:{}", artifacts::cabana().display());
    host.cli()
        .run(&["image", "import", &source])
        .assert_refused(1, &[]);
    let used = recorder.stop();
    host.end_in_order();
    let all = calls::uses(image_filter::RULES.iter().copied().flatten());
    let shared = |(call, _, value): &calls::Use| {
        value.is_none() && IMAGE_WORKERS_UNUSED.iter().any(|(other, _)| call == other)
    };
    let unused: Vec<_> = all
        .difference(&used)
        .filter(|rule| !excused(rule, IMAGE_WORKERS_UNUSED_VALUES) && !shared(rule))
        .collect();
    assert!(unused.is_empty(), "nobody needs these: {unused:#x?}");
}
