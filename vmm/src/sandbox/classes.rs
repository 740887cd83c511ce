//! What each class of threads may ask for. Every rule has its reason, and one that the usual scenarios do not
//! show (boot, fork, save, working set, traffic, adoption, end) says when it is needed.

use std::io;

use super::common::{
    ABORT, CLONES_THREADS, ENDS, EVERYBODY, FAULTS, KEEPS_MEMORY, OWN, PRIVATE, READ_WRITE,
    STARTS_THREADS, STOPS, bits,
};
use super::filter::{Only, Otherwise, Program, Rule, allow, allow_only, compile, length};
use super::install;
use super::ioctls as kvm;

/// A class of threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadClass {
    /// The thread that makes a microVM of files, and starts the vCPUs that were not made ahead. It ends with that.
    Maker,
    /// The thread that hears what guest there shall be, waits for its end, takes everything down, and says why.
    Owner,
    /// A thread that pauses, resumes, saves and stops a guest on somebody's orders.
    Orders,
    Vcpu,
    /// The thread that does the work of all devices.
    Devices,
}

impl ThreadClass {
    pub const ALL: [Self; 5] = [
        Self::Maker,
        Self::Owner,
        Self::Orders,
        Self::Vcpu,
        Self::Devices,
    ];

    /// Installs its filter on this thread, for good.
    pub fn install(self) -> io::Result<()> {
        match self {
            Self::Maker => install(&MAKER_PROGRAM),
            Self::Owner => install(&OWNER_PROGRAM),
            Self::Orders => install(&ORDERS_PROGRAM),
            Self::Vcpu => install(&VCPU_PROGRAM),
            Self::Devices => install(&DEVICES_PROGRAM),
        }
    }

    /// What its filter is made of. For tests and people: nothing else needs more than the program.
    pub fn rules(self) -> impl Iterator<Item = &'static Rule> {
        let groups = match self {
            Self::Maker => MAKER,
            Self::Owner => OWNER,
            Self::Orders => ORDERS,
            Self::Vcpu => VCPU,
            Self::Devices => DEVICES,
        };
        groups.iter().copied().flatten()
    }
}

// What is special comes before what all have: it is what a class does most.
const MAKER: &[&[Rule]] = &[
    MAKES,
    CLONES_THREADS,
    STARTS_THREADS,
    MAKES_MEMORY,
    KICKS,
    EVERYBODY,
];
const OWNER: &[&[Rule]] = &[
    HEARS,
    TAKES_FILES,
    ANSWERS,
    IS_NAMED,
    KICKS,
    KEEPS_MEMORY,
    FAULTS,
    EVERYBODY,
];
const ORDERS: &[&[Rule]] = &[
    CARRIES_OUT,
    HEARS,
    TAKES_FILES,
    ANSWERS,
    KICKS,
    KEEPS_MEMORY,
    FAULTS,
    EVERYBODY,
];
const VCPU: &[&[Rule]] = &[RUNS, ENDS, STOPS, KEEPS_MEMORY, FAULTS, EVERYBODY];
const DEVICES: &[&[Rule]] = &[SERVES, ENDS, STOPS, KEEPS_MEMORY, FAULTS, EVERYBODY];

static MAKER_PROGRAM: Program<{ length(MAKER) }> = compile(MAKER, Otherwise::Kill);
static OWNER_PROGRAM: Program<{ length(OWNER) }> = compile(OWNER, Otherwise::Kill);
static ORDERS_PROGRAM: Program<{ length(ORDERS) }> = compile(ORDERS, Otherwise::Kill);
static VCPU_PROGRAM: Program<{ length(VCPU) }> = compile(VCPU, Otherwise::Kill);
static DEVICES_PROGRAM: Program<{ length(DEVICES) }> = compile(DEVICES, Otherwise::Kill);

/// What the vCPU threads are kicked with (`vcpu::kick`): the first real-time signal that the C library leaves to programs.
const KICK: u32 = 34;
/// linux/userfaultfd.h: closed on execution, and of no use in the kernel.
const USERFAULT: u32 = bits(libc::O_CLOEXEC) | 1;
const UFFDIO_REGISTER: u32 = 0xc020_aa00;
const UFFDIO_API: u32 = 0xc018_aa3f;
const FIONBIO: u32 = 0x5421;
/// Getting vCPUs out of the guest.
const KICKS: &[Rule] = &[
    allow_only(
        libc::SYS_tgkill,
        &[OWN, Only::OneOf(2, &[KICK, ABORT])],
        "kicks of vCPU threads; a panic ends in SIGABRT",
    ),
    allow(libc::SYS_exit_group, "the end of the process"),
];

/// The way to those who give orders.
const ANSWERS: &[Rule] = &[allow(
    libc::SYS_sendmsg,
    "answers to orders; the report of the end",
)];

/// Waiting for orders.
const HEARS: &[Rule] = &[
    allow(libc::SYS_ppoll, "waiting for orders"),
    allow(libc::SYS_recvmsg, "an order, with its descriptors"),
    allow_only(
        libc::SYS_accept4,
        &[Only::OneOf(3, &[bits(libc::SOCK_CLOEXEC)])],
        "whoever gives orders",
    ),
];

/// The files of an order.
const TAKES_FILES: &[Rule] = &[
    allow(
        libc::SYS_fstat,
        "whether a descriptor of an order is a file",
    ),
    allow_only(
        libc::SYS_fcntl,
        &[Only::OneOf(1, &[bits(libc::F_GETFL)])],
        "whether a file that many share can be written to",
    ),
];

/// What people see of the process.
const IS_NAMED: &[Rule] = &[allow_only(
    libc::SYS_prctl,
    &[Only::OneOf(0, &[bits(libc::PR_SET_NAME)])],
    "the name of a worker that has a guest",
)];

/// A machine of files. vCPUs beyond the first have their threads made when it is known how many there are; those inherit this filter below
/// their own, so it has what they do.
const MAKES: &[Rule] = &[
    allow_only(
        libc::SYS_ioctl,
        &[Only::OneOf(
            1,
            &[
                // Each stretch of the working set is one call.
                kvm::PRE_FAULT_MEMORY,
                kvm::CHECK_EXTENSION,
                kvm::CREATE_VCPU,
                kvm::SET_USER_MEMORY_REGION,
                kvm::GET_TSC_KHZ,
                // When the snapshot is of a host with another frequency.
                kvm::SET_TSC_KHZ,
                kvm::SET_CPUID2,
                kvm::SET_MP_STATE,
                kvm::GET_SREGS,
                kvm::SET_SREGS,
                kvm::SET_REGS,
                kvm::SET_FPU,
                kvm::SET_XSAVE,
                kvm::SET_XCRS,
                kvm::SET_DEBUGREGS,
                kvm::SET_LAPIC,
                kvm::GET_MSRS,
                kvm::SET_MSRS,
                kvm::HAS_DEVICE_ATTR,
                kvm::GET_DEVICE_ATTR,
                kvm::SET_DEVICE_ATTR,
                kvm::SET_VCPU_EVENTS,
                kvm::GET_IRQCHIP,
                kvm::SET_IRQCHIP,
                kvm::IRQ_LINE,
                kvm::SET_CLOCK,
                FIONBIO,
                UFFDIO_API,
                UFFDIO_REGISTER,
                // What a vCPU's thread does that inherits this filter, see `RUNS`.
                kvm::RUN,
                kvm::KVMCLOCK_CTRL,
                kvm::GET_MP_STATE,
                kvm::GET_REGS,
                kvm::GET_XSAVE,
                kvm::GET_XSAVE2,
                kvm::GET_XCRS,
                kvm::GET_DEBUGREGS,
                kvm::GET_LAPIC,
                kvm::GET_VCPU_EVENTS,
            ],
        )],
        "memory, vCPUs and their state; sockets that do not wait; a trial's record of touched pages",
    ),
    allow(libc::SYS_pread64, "the snapshot; kernel and initramfs"),
    allow(
        libc::SYS_preadv2,
        "not seen in use: whether the memory file is in memory, where it is on a disk",
    ),
    allow(libc::SYS_statx, "how large the files are"),
    allow(libc::SYS_fstatfs, "whether the memory file is on a disk"),
    allow_only(
        libc::SYS_lseek,
        &[Only::OneOf(2, &[bits(libc::SEEK_END)])],
        "how large a disk is",
    ),
    allow(libc::SYS_epoll_create1, "the device thread's loop"),
    allow(libc::SYS_epoll_ctl, "what it watches"),
    allow(libc::SYS_eventfd2, "what parks it"),
    allow(
        libc::SYS_timerfd_create,
        "a guest with limited rates: what wakes a device that waits",
    ),
    allow(
        libc::SYS_getrandom,
        "the generation id; keys of hash tables",
    ),
    allow_only(
        libc::SYS_userfaultfd,
        &[Only::OneOf(0, &[USERFAULT])],
        "a trial's record of touched pages; it handles no fault of the kernel's",
    ),
    allow_only(
        libc::SYS_rt_sigaction,
        &[Only::OneOf(
            0,
            &[KICK, bits(libc::SIGSEGV), bits(libc::SIGBUS)],
        )],
        "the handler of kicks, once; the others as everybody",
    ),
    allow_only(
        libc::SYS_seccomp,
        &[Only::OneOf(0, &[libc::SECCOMP_SET_MODE_FILTER])],
        "the filters of the threads that it starts",
    ),
];

/// A guest's memory, and the stacks of threads.
const MAKES_MEMORY: &[Rule] = &[
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
                    bits(libc::MAP_PRIVATE | libc::MAP_NORESERVE),
                    bits(libc::MAP_SHARED),
                ],
            ),
        ],
        "allocations, stacks, the memory of a guest that boots and of a fork, what KVM shares of a vCPU; nothing to execute",
    ),
    allow_only(
        libc::SYS_mprotect,
        &[Only::Within(2, READ_WRITE)],
        "stacks and the pages that guard them",
    ),
    allow_only(
        libc::SYS_madvise,
        &[Only::OneOf(
            2,
            &[
                // Each page of the working set is one call or a part of one.
                bits(libc::MADV_POPULATE_READ),
                bits(libc::MADV_POPULATE_WRITE),
                bits(libc::MADV_RANDOM),
                bits(libc::MADV_HUGEPAGE),
                // Where the memory file is on a disk.
                bits(libc::MADV_WILLNEED),
                // Stacks of threads that have ended.
                bits(libc::MADV_DONTNEED),
            ],
        )],
        "how memory is read and mapped",
    ),
    allow_only(
        libc::SYS_mremap,
        &[Only::OneOf(3, &[bits(libc::MREMAP_MAYMOVE)])],
        "not seen in use each time: large allocations that grow",
    ),
    allow(libc::SYS_brk, "small allocations"),
];

/// The saved guest, and how long it takes to end.
const CARRIES_OUT: &[Rule] = &[
    allow_only(
        libc::SYS_ioctl,
        &[Only::OneOf(1, &[kvm::GET_IRQCHIP, kvm::GET_CLOCK])],
        "what KVM keeps for all vCPUs, when a guest is saved",
    ),
    allow(
        libc::SYS_pread64,
        "disks that are saved; the pagemap of a trial",
    ),
    allow(libc::SYS_pwrite64, "the files of a snapshot"),
    allow(libc::SYS_ftruncate, "the files of a snapshot"),
    allow_only(
        libc::SYS_lseek,
        &[Only::OneOf(
            2,
            &[bits(libc::SEEK_DATA), bits(libc::SEEK_HOLE)],
        )],
        "what of a disk is no hole",
    ),
    allow_only(
        libc::SYS_madvise,
        &[Only::OneOf(
            2,
            &[bits(libc::MADV_SEQUENTIAL), bits(libc::MADV_RANDOM)],
        )],
        "not seen in use: a fork that is saved is read from its first page to its last",
    ),
    allow(
        libc::SYS_clock_nanosleep,
        "not seen in use: how long vCPUs may take to stop when nobody is there to be told",
    ),
];

/// Running the guest.
const RUNS: &[Rule] = &[allow_only(
    libc::SYS_ioctl,
    &[Only::OneOf(
        1,
        &[
            kvm::RUN,
            kvm::KVMCLOCK_CTRL,
            // When it is saved.
            kvm::GET_MP_STATE,
            kvm::GET_REGS,
            kvm::GET_SREGS,
            kvm::GET_XSAVE,
            // On processors with more registers than fit into the former.
            kvm::GET_XSAVE2,
            kvm::GET_XCRS,
            kvm::GET_DEBUGREGS,
            kvm::GET_LAPIC,
            kvm::GET_TSC_KHZ,
            kvm::GET_MSRS,
            kvm::GET_VCPU_EVENTS,
        ],
    )],
    "running, and being saved",
)];

/// The work of all devices.
const SERVES: &[Rule] = &[
    allow(
        libc::SYS_epoll_pwait,
        "waiting for doorbells, clients and orders",
    ),
    allow(libc::SYS_sendmsg, "a guest's bytes to a client"),
    allow(libc::SYS_recvmsg, "a client's bytes to a guest"),
    allow(libc::SYS_preadv, "disks"),
    allow(libc::SYS_pwritev, "disks"),
    allow(
        libc::SYS_pread64,
        "not seen in use each time: a block of a disk that is written in part has its rest copied",
    ),
    allow(
        libc::SYS_pwrite64,
        "not seen in use each time: a block of a disk that is written in part has its rest copied",
    ),
    allow(libc::SYS_fdatasync, "disks"),
    allow_only(
        libc::SYS_fallocate,
        &[Only::OneOf(
            1,
            &[bits(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)],
        )],
        "blocks that a guest discards",
    ),
    allow(
        libc::SYS_getrandom,
        "the guest's random generator; keys of hash tables",
    ),
    allow(libc::SYS_read, "the event that parks this thread"),
    allow_only(
        libc::SYS_accept4,
        &[Only::OneOf(3, &[bits(libc::SOCK_CLOEXEC)])],
        "clients of the guest",
    ),
    allow(libc::SYS_epoll_ctl, "clients of the guest"),
    allow(
        libc::SYS_timerfd_settime,
        "a guest with limited rates: when a device goes on",
    ),
    allow_only(
        libc::SYS_ioctl,
        &[Only::OneOf(1, &[FIONBIO])],
        "clients of the guest: nobody is waited for",
    ),
    allow_only(
        libc::SYS_recvfrom,
        // No address is asked for.
        &[Only::OneOf(4, &[0])],
        "the first line of a client",
    ),
    allow_only(
        libc::SYS_sendto,
        // No address is given: a datagram could go anywhere.
        &[Only::OneOf(4, &[0]), Only::OneOf(5, &[0])],
        "the first line to a client, and what a client took in part",
    ),
    allow(libc::SYS_shutdown, "a guest that will send no more"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vcpu::kick;

    #[test]
    fn kick_that_is_allowed_is_the_one_that_is_sent() {
        let mut rules = ThreadClass::Owner.rules();
        let rule = rules.find(|rule| rule.call == libc::SYS_tgkill).unwrap();
        let kick = u32::try_from(kick::signal()).unwrap();
        let allows = |condition: &Only| matches!(condition, Only::OneOf(2, values) if values.contains(&kick));
        assert!(rule.only.iter().any(allows));
    }
}
