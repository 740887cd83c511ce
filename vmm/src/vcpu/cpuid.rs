//! What a guest is told about its processors.
//!
//! The base is what KVM supports on this host, so that user space finds the instructions it has. Removed is
//! what a session must not have (nested virtualisation, enclaves, tracing) or what makes no sense in it
//! (performance counters, power management). Topology is ours: one package, one core per vCPU, one thread
//! per core, APIC ids counted from 0.
//!
//! Sources: Intel SDM 2A "CPUID", AMD APM 3 appendix E; KVM's own leaves are in
//! Documentation/virt/kvm/x86/cpuid.rst.

use std::io;

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

/// `KVM_CPUID_FLAG_SIGNIFCANT_INDEX`: the entry is for one sub-leaf.
const BY_INDEX: u32 = kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;

const ECX1_MONITOR: u32 = 1 << 3;
const ECX1_VMX: u32 = 1 << 5;
const ECX1_TSC_DEADLINE: u32 = 1 << 24;
const ECX1_HYPERVISOR: u32 = 1 << 31;
const EDX1_HTT: u32 = 1 << 28;
/// "Always running APIC timer": the timer does not stop in idle.
const EAX6_ARAT: u32 = 1 << 2;
const EBX7_SGX: u32 = 1 << 2;
const EBX7_TRACE: u32 = 1 << 25;
const ECX8_1_SVM: u32 = 1 << 2;
/// Core, northbridge and last-level-cache counters of AMD.
const ECX8_1_COUNTERS: u32 = 1 << 23 | 1 << 24 | 1 << 28;

/// KVM's own features.
const KVM_FEATURES: u32 = 0x4000_0001;
/// "Asynchronous page faults", their delivery at VM exits and by interrupt: the guest is told that a page of its memory has to be
/// fetched, so that it can do something else meanwhile. A restored guest is first interrupted to hear that all such pages
/// are there, of which there are none: three exits. And what KVM remembers of a page that was awaited is in no
/// snapshot, so the task that waits for it could wait for ever. Without it the vCPU waits for the page itself.
const EAX_KVM_ASYNC_PF: u32 = 1 << 4 | 1 << 10 | 1 << 14;

/// Leaves that read as zero: thermal and counters (0xa), SGX, trace, SVM, SEV, AMD counters.
const EMPTY_LEAVES: [u32; 6] = [0xa, 0x12, 0x14, 0x8000_000a, 0x8000_001f, 0x8000_0022];
/// Second descriptions of the topology, which would contradict ours.
const OTHER_TOPOLOGY: [u32; 2] = [0x1f, 0x8000_0026];
const TOPOLOGY: u32 = 0xb;
const TOPOLOGY_THREAD: u32 = 1;
const TOPOLOGY_CORE: u32 = 2;

/// What this host's KVM can give a guest, from which each vCPU gets its table.
pub struct Processor {
    supported: CpuId,
    tsc_deadline: bool,
}

impl Processor {
    pub fn of(kvm: &Kvm) -> Result<Self, kvm_ioctls::Error> {
        Ok(Self {
            supported: kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)?,
            tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
        })
    }

    /// The table for vCPU `id` of `count`. Fails only without memory.
    pub fn table(&self, id: u8, count: u8) -> io::Result<CpuId> {
        for_vcpu(self.supported.as_slice(), id, count, self.tsc_deadline)
            .map_err(|error| io::Error::other(format!("{error:?}")))
    }
}

/// The first leaf in which two tables differ. A guest that was saved with one cannot go on with the other: it
/// would use instructions that are not there, or the file would give it what is taken away above.
pub fn first_difference(saved: &[kvm_cpuid_entry2], here: &[kvm_cpuid_entry2]) -> Option<u32> {
    let differs = saved.iter().zip(here).find(|(saved, here)| saved != here);
    match differs {
        Some((saved, _)) => Some(saved.function),
        None => {
            let longer = if saved.len() > here.len() {
                saved
            } else {
                here
            };
            longer
                .get(saved.len().min(here.len()))
                .map(|entry| entry.function)
        }
    }
}

/// The table for vCPU `id` of `count`, from what KVM supports.
fn for_vcpu(
    supported: &[kvm_cpuid_entry2],
    id: u8,
    count: u8,
    tsc_deadline: bool,
) -> Result<CpuId, vmm_sys_util::fam::Error> {
    let has_topology = supported.iter().any(|entry| entry.function == TOPOLOGY);
    let dropped = |function: u32| function == TOPOLOGY || OTHER_TOPOLOGY.contains(&function);
    let mut entries: Vec<_> = supported
        .iter()
        .filter(|entry| !dropped(entry.function))
        .copied()
        .collect();
    for entry in &mut entries {
        adjust(entry, id, count, tsc_deadline);
    }
    if has_topology {
        entries.extend(topology(id, count));
    }
    CpuId::from_entries(&entries)
}

fn adjust(entry: &mut kvm_cpuid_entry2, id: u8, count: u8, tsc_deadline: bool) {
    let (id, count) = (u32::from(id), u32::from(count));
    match entry.function {
        0x1 => {
            entry.ebx = entry.ebx & 0xffff | count << 16 | id << 24;
            entry.ecx &= !(ECX1_MONITOR | ECX1_VMX | ECX1_TSC_DEADLINE);
            entry.ecx |= ECX1_HYPERVISOR;
            set(&mut entry.ecx, ECX1_TSC_DEADLINE, tsc_deadline);
            set(&mut entry.edx, EDX1_HTT, count > 1);
        }
        0x4 => {
            let cores = count.next_power_of_two() - 1;
            entry.eax = entry.eax & 0x3fff | cores << 26 | cache_sharing(entry.eax, count) << 14;
        }
        0x6 => {
            *entry = kvm_cpuid_entry2 {
                eax: entry.eax & EAX6_ARAT,
                ..empty(entry)
            };
        }
        0x7 if entry.index == 0 => entry.ebx &= !(EBX7_SGX | EBX7_TRACE),
        0x8000_0001 => entry.ecx &= !(ECX8_1_SVM | ECX8_1_COUNTERS),
        0x8000_0008 => entry.ecx = entry.ecx & !0xf0ff | (count - 1) | id_bits(count) << 12,
        0x8000_001d => entry.eax = entry.eax & 0x3fff | cache_sharing(entry.eax, count) << 14,
        0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (id, id, 0),
        KVM_FEATURES => entry.eax &= !EAX_KVM_ASYNC_PF,
        leaf if EMPTY_LEAVES.contains(&leaf) => *entry = empty(entry),
        _ => {}
    }
}

fn set(register: &mut u32, bit: u32, on: bool) {
    *register = if on {
        *register | bit
    } else {
        *register & !bit
    };
}

/// The entry's place with nothing in it.
fn empty(entry: &kvm_cpuid_entry2) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function: entry.function,
        index: entry.index,
        flags: entry.flags,
        ..Default::default()
    }
}

/// How many ids, less one, share the cache of this sub-leaf: all for the third level, one for the others.
fn cache_sharing(eax: u32, count: u32) -> u32 {
    const THIRD_LEVEL: u32 = 3;
    if eax >> 5 & 7 == THIRD_LEVEL {
        count - 1
    } else {
        0
    }
}

/// Bits that hold any APIC id below `count`.
fn id_bits(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

/// The extended topology leaf: one thread per core, `count` cores, end of list.
fn topology(id: u8, count: u8) -> [kvm_cpuid_entry2; 3] {
    let (id, count) = (u32::from(id), u32::from(count));
    let level = |index, eax, ebx, kind: u32| kvm_cpuid_entry2 {
        function: TOPOLOGY,
        index,
        flags: BY_INDEX,
        eax,
        ebx,
        ecx: index | kind << 8,
        edx: id,
        ..Default::default()
    };
    [
        level(0, 0, 1, TOPOLOGY_THREAD),
        level(1, id_bits(count), count, TOPOLOGY_CORE),
        level(2, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            eax: !0,
            ebx: !0,
            ecx: !0,
            edx: !0,
            ..Default::default()
        }
    }

    /// The entry for `function` and `index` after filtering a table that has every bit set.
    fn filtered(function: u32, index: u32, id: u8, count: u8) -> kvm_cpuid_entry2 {
        let functions = [
            1,
            4,
            6,
            7,
            0xa,
            0xb,
            0x1f,
            0x8000_0001,
            0x8000_0008,
            0x8000_000a,
            0x8000_001e,
            0x8000_0026,
            KVM_FEATURES,
        ];
        let supported = functions.map(|function| leaf(function, 0));
        let table = for_vcpu(&supported, id, count, true).unwrap();
        let found = table
            .as_slice()
            .iter()
            .find(|entry| entry.function == function && entry.index == index);
        found.copied().unwrap_or_default()
    }

    #[test]
    fn cve_2026_23401_nested_virtualisation_is_hidden() {
        assert_eq!(filtered(1, 0, 0, 1).ecx & ECX1_VMX, 0);
        assert_eq!(filtered(0x8000_0001, 0, 0, 1).ecx & ECX8_1_SVM, 0);
        assert_eq!(filtered(0x8000_000a, 0, 0, 1).eax, 0);
    }

    #[test]
    fn performance_counters_are_hidden() {
        assert_eq!(filtered(0xa, 0, 0, 1).eax, 0);
        assert_eq!(filtered(0x8000_0001, 0, 0, 1).ecx & ECX8_1_COUNTERS, 0);
    }

    #[test]
    fn asynchronous_page_faults_are_hidden_and_no_other_feature_of_kvm() {
        assert_eq!(filtered(KVM_FEATURES, 0, 0, 1).eax, !EAX_KVM_ASYNC_PF);
    }

    #[test]
    fn guest_is_told_that_it_is_one() {
        assert_ne!(filtered(1, 0, 0, 1).ecx & ECX1_HYPERVISOR, 0);
    }

    #[test]
    fn every_description_of_the_topology_gives_the_same_id() {
        assert_eq!(filtered(1, 0, 2, 3).ebx >> 24, 2);
        assert_eq!(filtered(0xb, 0, 2, 3).edx, 2);
        assert_eq!(filtered(0xb, 1, 2, 3).edx, 2);
        assert_eq!(filtered(0x8000_001e, 0, 2, 3).eax, 2);
    }

    #[test]
    fn three_vcpus_are_three_cores_in_ids_of_two_bits() {
        let cores = filtered(0xb, 1, 0, 3);
        assert_eq!((cores.eax, cores.ebx, cores.ecx), (2, 3, 0x201));
        assert_eq!(filtered(0x8000_0008, 0, 0, 3).ecx & 0xf0ff, 0x2002);
        assert_eq!(filtered(1, 0, 0, 3).ebx >> 16 & 0xff, 3);
    }

    #[test]
    fn single_vcpu_does_not_claim_threads() {
        assert_eq!(filtered(1, 0, 0, 1).edx & EDX1_HTT, 0);
        assert_eq!(filtered(0xb, 1, 0, 1).eax, 0);
    }

    #[test]
    fn competing_topology_leaves_are_gone() {
        assert_eq!(
            (
                filtered(0x1f, 0, 0, 1).eax,
                filtered(0x8000_0026, 0, 0, 1).eax
            ),
            (0, 0)
        );
    }

    #[test]
    fn tables_that_differ_are_told_by_the_leaf() {
        let table = [leaf(1, 0), leaf(7, 0), leaf(0x8000_0001, 0)];
        assert_eq!(first_difference(&table, &table), None);
        assert_eq!(first_difference(&table, &table[..2]), Some(0x8000_0001));
        assert_eq!(first_difference(&table[..1], &table), Some(7));
        let mut other = table;
        other[1].ebx = 0;
        assert_eq!(first_difference(&table, &other), Some(7));
        assert_eq!(first_difference(&[], &[]), None);
    }

    #[test]
    fn deadline_timer_is_offered_only_when_kvm_has_it() {
        let ecx =
            |has| for_vcpu(&[leaf(1, 0)], 0, 1, has).unwrap().as_slice()[0].ecx & ECX1_TSC_DEADLINE;
        assert_eq!((ecx(false), ecx(true)), (0, ECX1_TSC_DEADLINE));
    }
}
