//! Snapshots that are restored with what they were not made of, and calls in the wrong state.

use std::fs::File;

use crate::support::{Guest, GuestSpec, Snapshot, kvm};
use vmm::{BlockConfig, RestoreError, SaveError, SnapshotFiles, VmExit};

const MIB: u64 = 1 << 20;
/// `jmp $`
const LOOP: &[u8] = b"\xeb\xfe";

fn disk(bytes: u64, read_only: bool) -> BlockConfig {
    let file = tempfile::tempfile().unwrap();
    file.set_len(bytes).unwrap();
    BlockConfig {
        file,
        base: None,
        read_only,
    }
}

fn guest(kvm: &File, blocks: Vec<BlockConfig>) -> Guest {
    let spec = GuestSpec {
        mem_mib: 48,
        blocks,
        ..GuestSpec::program(LOOP)
    };
    Guest::start(kvm.try_clone().unwrap(), spec)
}

fn refusal(snapshot: &Snapshot, kvm: &File, blocks: Vec<BlockConfig>) -> String {
    let error = match snapshot.restore_with(kvm, blocks) {
        Err(error) => error,
        Ok(_) => panic!("it was restored"),
    };
    let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source());
    causes
        .map(|error| error.to_string())
        .collect::<Vec<_>>()
        .join(": ")
}

#[test]
fn snapshot_of_another_shape_is_refused_by_name() {
    let Some(kvm) = kvm() else { return };
    let original = guest(&kvm, vec![disk(MIB, true), disk(2 * MIB, false)]);
    let mut snapshot = Snapshot::of(&original, 1);
    assert_eq!(original.stop().exit, VmExit::Stopped);
    let cases = [
        (vec![], "2 disks, 0 were given"),
        (
            vec![disk(MIB, true), disk(2 * MIB, false), disk(MIB, true)],
            "2 disks, 3 were given",
        ),
        (
            vec![disk(MIB, true), disk(3 * MIB, false)],
            "device 1 (block): The device has another size",
        ),
        (
            vec![disk(MIB, true), disk(2 * MIB, true)],
            "device 1 (block): The device offers other features",
        ),
        (
            vec![disk(MIB, false), disk(2 * MIB, false)],
            "device 0 (block): The device offers other features",
        ),
    ];
    for (blocks, expected) in cases {
        let said = refusal(&snapshot, &kvm, blocks);
        assert!(said.contains(expected), "{said}");
    }
    for (vcpus, mem_mib) in [(2, 48), (1, 49)] {
        let own = (snapshot.vcpus, snapshot.mem_mib);
        (snapshot.vcpus, snapshot.mem_mib) = (vcpus, mem_mib);
        let said = refusal(&snapshot, &kvm, vec![disk(MIB, true), disk(2 * MIB, false)]);
        let expected = format!("{vcpus} vCPUs and {mem_mib} MiB were asked for");
        assert!(said.contains(&expected), "{said}");
        (snapshot.vcpus, snapshot.mem_mib) = own;
    }
    // And with what it was made of, it goes on.
    let (restored, steps) = snapshot
        .restore_with(&kvm, vec![disk(MIB, true), disk(2 * MIB, false)])
        .unwrap();
    assert!(steps.0.len() > 4, "{steps:?}");
    assert_eq!(restored.stop().exit, VmExit::Stopped);
}

#[test]
fn memory_file_of_another_size_and_files_that_are_no_snapshot_are_refused() {
    let Some(kvm) = kvm() else { return };
    let original = guest(&kvm, vec![]);
    let mut snapshot = Snapshot::of(&original, 0);
    assert_eq!(original.stop().exit, VmExit::Stopped);
    snapshot.files.memory.set_len(47 * MIB).unwrap();
    assert!(matches!(
        snapshot.restore_with(&kvm, vec![]),
        Err(RestoreError::Memory { .. })
    ));
    snapshot.files.memory.set_len(48 * MIB).unwrap();
    snapshot.working_set = Some(tempfile::tempfile().unwrap());
    assert!(matches!(
        snapshot.restore_with(&kvm, vec![]),
        Err(RestoreError::WorkingSet { .. })
    ));
    snapshot.files.state.set_len(10).unwrap();
    assert!(matches!(
        snapshot.restore_with(&kvm, vec![]),
        Err(RestoreError::State { .. })
    ));
}

#[test]
fn running_guest_cannot_be_saved_nor_one_that_is_gone() {
    let Some(kvm) = kvm() else { return };
    let files = |disks| SnapshotFiles {
        state: tempfile::tempfile().unwrap(),
        memory: tempfile::tempfile().unwrap(),
        disks,
    };
    let guest = guest(&kvm, vec![disk(MIB, false)]);
    let vm = guest.vm();
    assert!(matches!(vm.save(&files(vec![])), Err(SaveError::Running)));
    vm.pause().unwrap();
    assert!(matches!(
        vm.save(&files(vec![])),
        Err(SaveError::Disks {
            expected: 1,
            given: 0
        })
    ));
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    assert!(matches!(
        vm.save_working_set(&pagemap, &tempfile::tempfile().unwrap()),
        Err(SaveError::Booted)
    ));
    assert_eq!(guest.stop().exit, VmExit::Stopped);
    assert!(matches!(vm.save(&files(vec![])), Err(SaveError::Ended)));
    assert!(vm.pause().is_err() && vm.resume().is_err());
}

#[test]
fn processor_is_described_the_same_each_time() {
    let Some(kvm) = kvm() else { return };
    let description = vmm::cpu_description(&kvm).unwrap();
    assert_eq!(vmm::cpu_description(&kvm).unwrap(), description);
    assert!(description.len() > 500, "{} bytes", description.len());
}
