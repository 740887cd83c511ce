//! Tells a host that can run guests from one that only looks so.
//!
//! `/dev/kvm` may open and answer every question although what is behind it emulates a CPU in software and
//! gives up at the first SSE instruction of a kernel (`KVM internal error`). So two tiny guests are run and
//! their results checked: one in 16-bit mode, and one in 64-bit mode that does what every Linux kernel does
//! early, vector arithmetic and a 16-byte compare-and-exchange. A guest that does not end in time is taken
//! out by a kick; should even that fail, its thread is left behind and the caller told.

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;

use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress};

use crate::boot::long_mode;
use crate::machine::{self, MachineError};
use crate::memory::{self, Memory, MemoryError, layout};
use crate::vcpu::cpuid::Processor;
use crate::vcpu::kick::{self, Kickable};
use crate::vcpu::run::internal_error;

/// A guest of this size needs a few milliseconds, even when KVM itself runs on an emulated CPU.
const DEADLINE: Duration = Duration::from_secs(5);
/// A kick takes effect at once, or never.
const KICK_DEADLINE: Duration = Duration::from_secs(2);
const MEM_MIB: u32 = 1;
/// Where program and data are; the tables for 64-bit mode lie below.
const CODE: u64 = 0x1_0000;
const DATA: u64 = 0x1_1000;
/// The port that a result is written to.
const PORT: u16 = 0x10;

/// `add al, bl; out 0x10, al; hlt`
const REAL_MODE_PROGRAM: &[u8] = b"\x00\xd8\xe6\x10\xf4";

/// ```text
/// movdqa xmm0, [rsi]            66 0f 6f 06
/// paddd  xmm0, xmm0             66 0f fe c0
/// movdqu [rsi+0x10], xmm0       f3 0f 7f 46 10
/// lock cmpxchg16b [rsi+0x20]    f0 48 0f c7 4e 20
/// setz   al                     0f 94 c0
/// out    0x10, al               e6 10
/// hlt                           f4
/// ```
const LONG_MODE_PROGRAM: &[u8] = b"\x66\x0f\x6f\x06\x66\x0f\xfe\xc0\xf3\x0f\x7f\x46\x10\
    \xf0\x48\x0f\xc7\x4e\x20\x0f\x94\xc0\xe6\x10\xf4";

/// The vector, which the program doubles.
const VECTOR: u128 = 0x0000_0004_0000_0003_0000_0002_0000_0001;
/// What the compare-and-exchange expects, and what it stores.
const OLD: u128 = 0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100;
const NEW: u128 = 0xf0e0_d0c0_b0a0_9080_7060_5040_3020_1000;

/// The mode of a probe guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Real,
    Long,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Real => "16-bit",
            Self::Long => "64-bit",
        })
    }
}

/// A host that runs guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeReport {
    /// How many vCPUs one guest can have here.
    pub max_vcpus: usize,
}

/// Why a host cannot run guests although its `/dev/kvm` opens.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("Cannot use /dev/kvm")]
    Kvm { source: MachineError },
    #[error("Cannot prepare the {mode} probe guest")]
    Prepare { mode: Mode, source: io::Error },
    #[error("KVM cannot run a {mode} guest: {what}")]
    Guest { mode: Mode, what: String },
    #[error("Cannot describe the processor")]
    Describe { source: io::Error },
    #[error("KVM did not finish a {mode} guest of a few instructions in {seconds} s", seconds = DEADLINE.as_secs())]
    Deadline { mode: Mode },
}

/// Runs both guests. Takes milliseconds where all is well, and never longer than some seconds.
pub fn probe(kvm: &File) -> Result<ProbeReport, ProbeError> {
    let kvm = machine::open(kvm).map_err(|source| ProbeError::Kvm { source })?;
    let max_vcpus = kvm.get_max_vcpus();
    kick::install().map_err(|source| ProbeError::Prepare {
        mode: Mode::Real,
        source,
    })?;
    let kvm = run_with_deadline(kvm, Mode::Real)?;
    run_with_deadline(kvm, Mode::Long)?;
    Ok(ProbeReport { max_vcpus })
}

/// What a guest is told of this processor, and how fast its counter runs: the same bytes on every core of a host
/// and after every start of a process. A snapshot made under one description is of no use under another.
pub fn cpu_description(kvm: &File) -> Result<Vec<u8>, ProbeError> {
    let refused = |what| {
        move |source| ProbeError::Kvm {
            source: MachineError::Refused { what, source },
        }
    };
    let kvm = machine::open(kvm).map_err(|source| ProbeError::Kvm { source })?;
    let processor = Processor::of(&kvm).map_err(refused("GET_SUPPORTED_CPUID"))?;
    let vm = machine::create_bare(&kvm).map_err(|source| ProbeError::Kvm { source })?;
    let vcpu = vm.create_vcpu(0).map_err(refused("CREATE_VCPU"))?;
    let tsc_khz = vcpu.get_tsc_khz().map_err(refused("GET_TSC_KHZ"))?;
    let table = processor
        .table(0, 1)
        .map_err(|source| ProbeError::Describe { source })?;
    let mut entries = table.as_slice().to_vec();
    entries.sort_by_key(|entry| (entry.function, entry.index));
    let mut description = tsc_khz.to_le_bytes().to_vec();
    for entry in entries {
        let numbers = [
            entry.function,
            entry.index,
            entry.flags,
            entry.eax,
            entry.ebx,
            entry.ecx,
            entry.edx,
        ];
        description.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    }
    Ok(description)
}

/// Runs one guest on a thread of its own and gives the descriptor back.
fn run_with_deadline(kvm: Kvm, mode: Mode) -> Result<Kvm, ProbeError> {
    let (sender, result) = mpsc::channel();
    let thread = std::thread::Builder::new()
        .name("probe".to_owned())
        .spawn(move || report(kvm, mode, &sender))
        .map_err(|source| ProbeError::Prepare { mode, source })?;
    let wait = |deadline| match result.recv_timeout(deadline) {
        Ok(outcome) => Some(outcome),
        Err(RecvTimeoutError::Timeout) => None,
        Err(RecvTimeoutError::Disconnected) => Some(Err(ProbeError::Guest {
            mode,
            what: "the thread of the probe panicked".to_owned(),
        })),
    };
    wait(DEADLINE).unwrap_or_else(|| {
        kick::kick(&thread);
        wait(KICK_DEADLINE).unwrap_or(Err(ProbeError::Deadline { mode }))
    })
}

fn report(kvm: Kvm, mode: Mode, sender: &Sender<Result<Kvm, ProbeError>>) {
    let outcome = run_guest(&kvm, mode).map(|()| kvm);
    // The caller stops waiting after its deadline.
    let _ = sender.send(outcome);
}

fn run_guest(kvm: &Kvm, mode: Mode) -> Result<(), ProbeError> {
    let prepare = |source| ProbeError::Prepare { mode, source };
    let refused = |error: kvm_ioctls::Error| prepare(io::Error::from_raw_os_error(error.errno()));
    // Declared before the VM, so dropped after it: see `machine::set_memory`.
    let memory = guest_memory(mode).map_err(prepare)?;
    let vm = machine::create_bare(kvm).map_err(|source| ProbeError::Kvm { source })?;
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
        .map_err(refused)?;
    vm.set_tss_address(layout::KVM_TSS).map_err(refused)?;
    machine::set_memory(&vm, &memory).map_err(|source| ProbeError::Kvm { source })?;
    let mut vcpu = vm.create_vcpu(0).map_err(refused)?;
    let cpuid = kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(refused)?;
    vcpu.set_cpuid2(&cpuid).map_err(refused)?;
    set_registers(&vcpu, mode).map_err(refused)?;
    let output = run_to_halt(&mut vcpu, mode)?;
    let wrong = |what: String| Err(ProbeError::Guest { mode, what });
    match mode {
        Mode::Real if output != [5] => wrong(format!("2 + 3 gave {output:?}")),
        Mode::Long if output != [1] => wrong(format!("cmpxchg16b gave {output:?}")),
        Mode::Long => check_memory(&memory).or_else(wrong),
        Mode::Real => Ok(()),
    }
}

fn guest_memory(mode: Mode) -> io::Result<Memory> {
    let map = |error: MemoryError| io::Error::other(error);
    let memory = memory::map(memory::create(MEM_MIB)?, MEM_MIB).map_err(map)?;
    let fill = || -> Result<(), vm_memory::GuestMemoryError> {
        match mode {
            Mode::Real => memory.write_slice(REAL_MODE_PROGRAM, GuestAddress(CODE)),
            Mode::Long => {
                long_mode::write_tables(&memory)?;
                memory.write_slice(LONG_MODE_PROGRAM, GuestAddress(CODE))?;
                memory.write_obj(VECTOR, GuestAddress(DATA))?;
                memory.write_obj(OLD, GuestAddress(DATA + 0x20))
            }
        }
    };
    fill().map_err(io::Error::other)?;
    Ok(memory)
}

fn set_registers(vcpu: &VcpuFd, mode: Mode) -> Result<(), kvm_ioctls::Error> {
    let mut sregs = vcpu.get_sregs()?;
    let mut regs = long_mode::registers(CODE);
    match mode {
        Mode::Real => {
            // A real-mode segment starts at 16 times its selector.
            sregs.cs.base = CODE;
            sregs.cs.selector = u16::try_from(CODE >> 4).expect("a constant below 1 MiB");
            (regs.rip, regs.rax, regs.rbx) = (0, 2, 3);
        }
        Mode::Long => {
            long_mode::set_special_registers(&mut sregs);
            sregs.cr4 |= long_mode::CR4_SSE;
            regs.rsi = DATA;
            (regs.rax, regs.rdx) = halves(OLD);
            (regs.rbx, regs.rcx) = halves(NEW);
        }
    }
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&regs)
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "takes a u128 apart into its two halves"
)]
fn halves(value: u128) -> (u64, u64) {
    (value as u64, (value >> 64) as u64)
}

/// Runs the guest and collects what it writes to the port. More than one byte is a broken guest.
fn run_to_halt(vcpu: &mut VcpuFd, mode: Mode) -> Result<Vec<u8>, ProbeError> {
    let mut vcpu = Kickable::new(vcpu).map_err(|source| ProbeError::Prepare { mode, source })?;
    let failed = |what: String| Err(ProbeError::Guest { mode, what });
    let mut output = Vec::new();
    loop {
        match vcpu.fd().run() {
            Ok(VcpuExit::IoOut(PORT, data)) if output.is_empty() => output.extend_from_slice(data),
            Ok(VcpuExit::Hlt) => return Ok(output),
            Ok(VcpuExit::InternalError) => return failed(internal_error(vcpu.fd())),
            Ok(other) => return failed(format!("unexpected exit {other:?}")),
            Err(error) if error.errno() == libc::EINTR => {
                return Err(ProbeError::Deadline { mode });
            }
            Err(error) => return failed(format!("KVM_RUN failed: {error}")),
        }
    }
}

fn check_memory(memory: &Memory) -> Result<(), String> {
    let read = |at| {
        memory
            .read_obj::<u128>(GuestAddress(at))
            .map_err(|error| error.to_string())
    };
    // Every lane is doubled; none overflows.
    if read(DATA + 0x10)? != VECTOR * 2 {
        return Err("vector arithmetic gave a wrong result".to_owned());
    }
    if read(DATA + 0x20)? != NEW {
        return Err("cmpxchg16b stored a wrong value".to_owned());
    }
    Ok(())
}
