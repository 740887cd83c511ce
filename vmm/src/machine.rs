//! The KVM side of a microVM: its descriptor, its memory, its interrupt controllers, its buses.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::sync::{Arc, Mutex};

use kvm_bindings::{
    KVM_API_VERSION, KVM_CAP_PMU_CAPABILITY, KVM_PMU_CAP_DISABLE, kvm_enable_cap,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{
    Cap, Kvm, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuFd, VmFd,
};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::devices::serial::Serial;
use crate::devices::virtio::mmio::MmioTransport;
use crate::lines::{LineError, Lines};
use crate::memory::one_by_one::OneByOne;
use crate::memory::{Memory, layout};
use crate::sandbox::{Filters, ThreadClass};
use crate::vcpu::VcpuHandle;
use crate::vcpu::cpuid::Processor;
use crate::vcpu::exit::Buses;
use crate::vcpu::state::Registers;
use crate::vm::IdleThread;
use crate::wiring::{DeviceThread, Wired};

/// What KVM must be able to do. All of it is in every Linux since 4.12.
pub const REQUIRED: [(Cap, &str); 8] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// Why `/dev/kvm` gives no machine.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    #[error("Cannot duplicate the descriptor of /dev/kvm")]
    Duplicate { source: io::Error },
    #[error(
        "This is not KVM, or not one that this program knows: API version {found}, not {KVM_API_VERSION}"
    )]
    ApiVersion { found: i32 },
    #[error("KVM on this host lacks {name}")]
    Capability { name: &'static str },
    #[error("Cannot join devices and guest")]
    Lines { source: LineError },
    #[error("Cannot start a thread, or confine it")]
    Thread { source: io::Error },
    #[error("Cannot create vCPU {vcpu}")]
    CreateVcpu { vcpu: u8, source: kvm_ioctls::Error },
    /// `what` is the ioctl without its `KVM_` prefix.
    #[error("KVM refused {what}")]
    Refused {
        what: &'static str,
        source: kvm_ioctls::Error,
    },
}

/// A KVM VM with interrupt controllers, its first vCPU, the threads that every microVM has, and no memory or device: all
/// that can be made before it is known which guest it is for. Made ahead, because the kernel takes its time for it.
pub struct BlankMachine {
    pub(crate) fd: VmFd,
    pub(crate) processor: Processor,
    pub(crate) registers: Registers,
    /// Taken as the devices are connected.
    pub(crate) lines: Lines,
    first_vcpu: VcpuFd,
    threads: Threads,
}

/// Those that every microVM has.
pub(crate) struct Threads {
    /// What these and the ones made later install.
    pub filters: Filters,
    /// The first vCPU's.
    pub first: IdleThread,
    pub devices: IdleThread,
}

/// A machine that is complete but for the state of its vCPUs.
pub(crate) struct Assembled {
    pub machine: Machine,
    /// By their numbers.
    pub vcpus: Vec<VcpuFd>,
    pub threads: Threads,
}

impl BlankMachine {
    /// `kvm` is an open `/dev/kvm`. With filters, the threads of the microVM have theirs from here on. The thread that starts or restores
    /// a guest in it may have [`ThreadClass::Maker`], and who waits for the guest's end [`ThreadClass::Owner`].
    pub fn create(kvm: &File, filters: Filters) -> Result<Self, MachineError> {
        let refused = |what| move |source| MachineError::Refused { what, source };
        let kvm = open(kvm)?;
        let fd = create(&kvm)?;
        let thread = |name, class| {
            IdleThread::spawn(name, filters, class)
                .map_err(|source| MachineError::Thread { source })
        };
        // Not entered here, not even to leave at once: KVM notes the thread, and when the next entry comes from another
        // one it waits for all of its readers (`synchronize_rcu` in `kvm_vcpu_ioctl`, virt/kvm/kvm_main.c), 10 ms in the lab.
        let first_vcpu = fd
            .create_vcpu(0)
            .map_err(|source| MachineError::CreateVcpu { vcpu: 0, source })?;
        let threads = Threads {
            filters,
            first: thread(VcpuHandle::thread_name(0), ThreadClass::Vcpu)?,
            devices: thread(DeviceThread::NAME.to_owned(), ThreadClass::Devices)?,
        };
        Ok(Self {
            processor: Processor::of(&kvm).map_err(refused("GET_SUPPORTED_CPUID"))?,
            registers: Registers::of(&kvm, &fd).map_err(refused("GET_MSR_INDEX_LIST"))?,
            lines: Lines::make(&fd).map_err(|source| MachineError::Lines { source })?,
            fd,
            first_vcpu,
            threads,
        })
    }
}

impl fmt::Debug for BlankMachine {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("BlankMachine").finish_non_exhaustive()
    }
}

/// What all threads share. Fields drop in the order written, and the order matters: see `set_memory`.
pub(crate) struct Machine {
    pub fd: VmFd,
    pub buses: Buses,
    pub serial: Arc<Mutex<Serial>>,
    /// In the order of their slots.
    pub transports: Vec<Arc<Mutex<MmioTransport>>>,
    pub processor: Processor,
    pub registers: Registers,
    /// Of a fork whose working set is recorded.
    pub recording: Option<OneByOne>,
    /// It is here also to keep the mapping for as long as `fd` can write to it.
    pub memory: Memory,
}

impl Machine {
    /// Gives memory, devices and all of its vCPUs to a VM and keeps them together from here on.
    pub fn assemble(
        blank: BlankMachine,
        wired: Wired,
        memory: Memory,
        vcpus: u8,
    ) -> Result<Assembled, MachineError> {
        let machine = Self {
            fd: blank.fd,
            buses: wired.buses,
            serial: wired.serial,
            transports: wired.transports,
            processor: blank.processor,
            registers: blank.registers,
            recording: None,
            memory,
        };
        set_memory(&machine.fd, &machine.memory)?;
        let mut fds = vec![blank.first_vcpu];
        for vcpu in 1..vcpus {
            let created = machine.fd.create_vcpu(vcpu.into());
            fds.push(created.map_err(|source| MachineError::CreateVcpu { vcpu, source })?);
        }
        Ok(Assembled {
            machine,
            vcpus: fds,
            threads: blank.threads,
        })
    }

    /// Raises an edge on an interrupt line, at once. (An irqfd raises it a moment later.)
    pub fn pulse(&self, gsi: u32) -> Result<(), MachineError> {
        for level in [true, false] {
            self.fd
                .set_irq_line(gsi, level)
                .map_err(|source| MachineError::Refused {
                    what: "IRQ_LINE",
                    source,
                })?;
        }
        Ok(())
    }
}

/// Opens the KVM interface on a copy of the caller's descriptor and checks that it is the one we know.
pub(crate) fn open(kvm: &File) -> Result<Kvm, MachineError> {
    let copy = kvm
        .try_clone()
        .map_err(|source| MachineError::Duplicate { source })?;
    // SAFETY: `Kvm` takes the descriptor over and closes it; `into_raw_fd` has given it up.
    // Should it not be /dev/kvm, the next call fails with ENOTTY: no memory is involved.
    let kvm = unsafe { Kvm::from_raw_fd(copy.into_raw_fd()) };
    let found = kvm.get_api_version();
    if u32::try_from(found) != Ok(KVM_API_VERSION) {
        return Err(MachineError::ApiVersion { found });
    }
    match REQUIRED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        Some((_, name)) => Err(MachineError::Capability { name }),
        None => Ok(kvm),
    }
}

/// Makes a VM with interrupt controllers and without performance counters. No PIT: the guest has the local
/// APIC's timer and kvm-clock.
fn create(kvm: &Kvm) -> Result<VmFd, MachineError> {
    let vm = create_bare(kvm)?;
    let refused = |what| move |source| MachineError::Refused { what, source };
    // Before the first vCPU, or KVM refuses. The identity map goes before the TSS (api.rst, 4.79).
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
        .map_err(refused("SET_IDENTITY_MAP_ADDR"))?;
    vm.set_tss_address(layout::KVM_TSS)
        .map_err(refused("SET_TSS_ADDR"))?;
    vm.create_irq_chip().map_err(refused("CREATE_IRQCHIP"))?;
    disable_counters(&vm).map_err(refused("to disable the counters"))?;
    Ok(vm)
}

/// Makes a VM with nothing in it.
pub(crate) fn create_bare(kvm: &Kvm) -> Result<VmFd, MachineError> {
    loop {
        match kvm.create_vm() {
            // Making a VM allocates much and may be interrupted by any signal.
            Err(error) if error.errno() == libc::EINTR => {}
            other => {
                return other.map_err(|source| MachineError::Refused {
                    what: "CREATE_VM",
                    source,
                });
            }
        }
    }
}

/// Takes the performance counters also from a guest that does not ask CPUID: they leak what neighbours do.
/// A KVM that cannot (before Linux 5.18) has them hidden by CPUID only.
fn disable_counters(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    let offered = vm.check_extension_raw(KVM_CAP_PMU_CAPABILITY.into());
    if u32::try_from(offered).is_ok_and(|offered| offered & KVM_PMU_CAP_DISABLE != 0) {
        let mut cap = kvm_enable_cap {
            cap: KVM_CAP_PMU_CAPABILITY,
            ..Default::default()
        };
        cap.args[0] = KVM_PMU_CAP_DISABLE.into();
        vm.enable_cap(&cap)?;
    }
    if vm.check_extension(Cap::X86MsrFilter) {
        refuse_k7_counters(vm)
    } else {
        Ok(())
    }
}

/// Linux on AMD tries the oldest counters whatever CPUID says. Without a counter unit KVM ignores the write,
/// but notes it in the host's log, once per boot of every guest. Refused by a filter, it faults in silence.
fn refuse_k7_counters(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    /// MSR_K7_EVNTSEL0 to 3 and MSR_K7_PERFCTR0 to 3 (arch/x86/include/asm/msr-index.h).
    const BASE: u32 = 0xc001_0000;
    const COUNT: u32 = 8;
    let range = MsrFilterRange {
        flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
        base: BASE,
        msr_count: COUNT,
        // One bit each; zero refuses.
        bitmap: &[0],
    };
    vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &[range])
}

/// Tells KVM about all of `memory`. The caller keeps it until `vm` and its vCPUs are closed.
pub(crate) fn set_memory(vm: &VmFd, memory: &Memory) -> Result<(), MachineError> {
    for (slot, region) in memory.iter().enumerate() {
        let slot = kvm_userspace_memory_region {
            slot: u32::try_from(slot).expect("two regions at most"),
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: after this call the kernel writes to the range on the guest's behalf.
        // - Valid: `region` is a live mapping of exactly `region.len()` bytes.
        // - Outlived: the slot lives as long as the VM, which lives as long as `vm` or a vCPU of it is open.
        //   A vCPU thread closes its vCPU before its share of the `Machine`, and in `Machine` the field
        //   `fd` drops before `memory`. The probe keeps the same order in one function.
        // - Not aliased: the host reaches guest memory only through `vm-memory`'s volatile accesses; no
        //   reference into it is ever formed.
        // - Distinct: `layout::ram_ranges` gives ranges that do not overlap, and slots count up from 0.
        unsafe { vm.set_user_memory_region(slot) }.map_err(|source| MachineError::Refused {
            what: "SET_USER_MEMORY_REGION",
            source,
        })?;
    }
    Ok(())
}
