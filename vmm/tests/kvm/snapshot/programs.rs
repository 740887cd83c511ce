//! Guests of a few bytes, saved in the middle of every kind of exit.
//!
//! Each of them checks itself: it goes wrong (`ud2`, a triple fault) when an access was lost or repeated, and
//! shows its progress on the serial port or in memory.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::support::{Guest, GuestSpec, Snapshot, kvm};
use vmm::VmExit;
use vmm::memory::working_set::WorkingSet;

/// Where the programs count.
const COUNTER: u64 = 0x18_0000;
/// How often each is saved and restored: pauses hit another instruction each time.
const ROUNDS: usize = 8;

/// `mov dx, 0x3f8`
const TO_SERIAL: &[u8] = b"\x66\xba\xf8\x03";
/// `inc rcx; inc qword [COUNTER]; cmp rcx, [COUNTER]; je +2; ud2`: register and memory are of one moment.
const COUNT: &[u8] = b"\x48\xff\xc1\x48\xff\x04\x25\x00\x00\x18\x00\
    \x48\x3b\x0c\x25\x00\x00\x18\x00\x74\x02\x0f\x0b";
/// `mov al, 10; out dx, al`: a line end.
const SAY_LINE: &[u8] = b"\xb0\x0a\xee";
/// `mov dword [0xb008], 0xd0000083`: the second 2 MiB show the first virtio transport.
const MAP_VIRTIO: &[u8] = b"\xc7\x04\x25\x08\xb0\x00\x00\x83\x00\x00\xd0";

/// `mov al, [READ]; mov byte [COUNTER], 1`
const READ_AND_WRITE: &[u8] = b"\x8a\x04\x25\x00\x00\x14\x00\xc6\x04\x25\x00\x00\x18\x00\x01";
const READ: u64 = 0x14_0000;
/// Where the code of a program is.
const CODE: u64 = 0x10_0000;
const PAGE: u64 = 4096;

fn spec(code: &[u8]) -> GuestSpec {
    GuestSpec {
        mem_mib: 48,
        ..GuestSpec::program(code)
    }
}

/// `parts`, then a jump back to the end of `start`.
fn endless(start: &[&[u8]], parts: &[&[u8]]) -> Vec<u8> {
    let (start, body) = (start.concat(), parts.concat());
    let back = i8::try_from(body.len() + 2).unwrap();
    [
        start.as_slice(),
        &body,
        &[0xeb, back.wrapping_neg().cast_unsigned()],
    ]
    .concat()
}

fn count(snapshot: &Snapshot) -> u64 {
    u64::from_le_bytes(snapshot.peek(COUNTER))
}

/// Saves and restores `guest` again and again. Its count must grow each time.
fn rounds(kvm: &File, mut guest: Guest, rounds: usize) {
    let mut before = 0;
    for round in 0..rounds {
        // The first line may be that of the count before.
        guest.console.wait_for("\n\n");
        let snapshot = Snapshot::of(&guest, 0);
        let now = count(&snapshot);
        assert!(now > before, "round {round}: {now} after {before}");
        before = now;
        let console = guest.console.clone();
        assert_eq!(guest.stop().exit, VmExit::Stopped, "{}", console.text());
        guest = snapshot.restore(kvm);
    }
    guest.console.wait_for("\n");
    assert_eq!(guest.stop().exit, VmExit::Stopped);
}

/// Collects what the guests of several generations print, which must be one text.
fn printed(kvm: &File, mut guest: Guest, rounds: usize) -> String {
    let mut text = String::new();
    for _ in 0..rounds {
        guest.console.wait_for_bytes(600);
        let snapshot = Snapshot::of(&guest, 0);
        let next = snapshot.restore(kvm);
        text.push_str(&without_tail(guest));
        guest = next;
    }
    guest.console.wait_for_bytes(600);
    text + &without_tail(guest)
}

/// What a guest has printed, but for the end that its restored copy prints as well: text without line ends is
/// written in pieces of 256 bytes, and the last piece goes along in the snapshot.
fn without_tail(guest: Guest) -> String {
    let ended = guest.stop();
    assert_eq!(ended.exit, VmExit::Stopped);
    let mut text = ended.console.whole_text();
    text.truncate(text.len() / 256 * 256);
    text
}

#[test]
fn vcpu_paused_inside_a_port_write_repeats_nothing_and_loses_nothing_after_restore() {
    let Some(kvm) = kvm() else { return };
    // again: mov al, 'a'; next: out dx, al; inc al; cmp al, 'z' + 1; jne next; jmp again
    let code = endless(&[TO_SERIAL], &[b"\xb0a\xee\xfe\xc0\x3c\x7b\x75\xf9"]);
    let guest = Guest::start(kvm.try_clone().unwrap(), spec(&code));
    let text = printed(&kvm, guest, ROUNDS);
    let expected = ('a'..='z').cycle().take(text.len()).collect::<String>();
    assert_eq!(text, expected);
}

#[test]
fn vcpu_paused_inside_repeated_port_writes_repeats_nothing_and_loses_nothing_after_restore() {
    let Some(kvm) = kvm() else { return };
    // lea rsi, [text]; mov ecx, 26; rep outsb
    let body: &[u8] = b"\x48\xbe\x00\x00\x10\x00\x00\x00\x00\x00\xb9\x1a\x00\x00\x00\xf3\x6e";
    // jmp over the text, which is at 0x100002
    let text: &[u8] = b"\xeb\x1aabcdefghijklmnopqrstuvwxyz";
    let mut body = body.to_vec();
    body[2] = 2;
    let code = endless(&[text, TO_SERIAL], &[&body]);
    let guest = Guest::start(kvm.try_clone().unwrap(), spec(&code));
    let text = printed(&kvm, guest, ROUNDS);
    let expected = ('a'..='z').cycle().take(text.len()).collect::<String>();
    assert_eq!(text, expected);
}

#[test]
fn vcpu_paused_inside_a_port_read_gets_its_answer_after_restore() {
    let Some(kvm) = kvm() else { return };
    // mov dx, 0x3ff; mov al, cl; out dx, al; xor eax, eax; in al, dx; cmp al, cl; je +2; ud2
    let scratch = b"\x66\xba\xff\x03\x88\xc8\xee\x31\xc0\xec\x38\xc8\x74\x02\x0f\x0b";
    let code = endless(&[], &[COUNT, scratch, TO_SERIAL, SAY_LINE]);
    let guest = Guest::start(kvm.try_clone().unwrap(), spec(&code));
    rounds(&kvm, guest, ROUNDS);
}

#[test]
fn vcpu_paused_inside_a_memory_mapped_read_gets_its_answer_after_restore() {
    let Some(kvm) = kvm() else { return };
    // xor eax, eax; mov eax, [0x200000]; cmp eax, "virt"; je +2; ud2
    let read = b"\x31\xc0\x8b\x04\x25\x00\x00\x20\x00\x3dvirt\x74\x02\x0f\x0b";
    let code = endless(&[MAP_VIRTIO, TO_SERIAL], &[COUNT, read, SAY_LINE]);
    let guest = Guest::start(kvm.try_clone().unwrap(), spec(&code));
    rounds(&kvm, guest, ROUNDS);
}

#[test]
fn vcpu_paused_inside_a_memory_mapped_write_has_written_once_after_restore() {
    let Some(kvm) = kvm() else { return };
    // The vsock device has queues of 256, 256 and 8.
    // mov dword [0x200030], 2; mov eax, [0x200034]; cmp eax, 8; je +2; ud2, then the same with queue 0
    let write = |queue: u8, size: u32| {
        let mut code = b"\xc7\x04\x25\x30\x00\x20\x00\x00\x00\x00\x00\
            \x8b\x04\x25\x34\x00\x20\x00\x3d\x00\x00\x00\x00\x74\x02\x0f\x0b"
            .to_vec();
        code[7] = queue;
        code[19..23].copy_from_slice(&size.to_le_bytes());
        code
    };
    let code = endless(
        &[MAP_VIRTIO, TO_SERIAL],
        &[COUNT, &write(2, 8), &write(0, 256), SAY_LINE],
    );
    let guest = Guest::start(kvm.try_clone().unwrap(), spec(&code));
    rounds(&kvm, guest, ROUNDS);
}

#[test]
fn halted_vcpu_is_still_halted_after_restore() {
    let Some(kvm) = kvm() else { return };
    // cli; hlt; then whatever is printed was not to be
    let code = [TO_SERIAL, SAY_LINE, b"\xfa\xf4\xb0!\xee", SAY_LINE].concat();
    let guest = Guest::start(kvm.try_clone().unwrap(), spec(&code));
    guest.console.wait_for("\n");
    let snapshot = Snapshot::of(&guest, 0);
    assert_eq!(guest.stop().exit, VmExit::Stopped);
    let guest = snapshot.restore(&kvm);
    // A guest that ran on would be in a triple fault after its line, and could not be paused.
    let again = Snapshot::of(&guest, 0);
    assert_eq!(again.peek::<8>(COUNTER), [0; 8]);
    let console = guest.console.clone();
    assert_eq!(guest.stop().exit, VmExit::Stopped);
    assert_eq!(console.text(), "");
}

#[test]
fn vcpu_that_never_leaves_the_guest_goes_on_counting_after_restore() {
    let Some(kvm) = kvm() else { return };
    let code = endless(&[TO_SERIAL, SAY_LINE], &[COUNT]);
    let mut guest = Guest::start(kvm.try_clone().unwrap(), spec(&code));
    guest.console.wait_for("\n");
    let mut before = 0;
    for _ in 0..3 {
        // It says nothing; a count that stands still for so long would be a guest that does.
        std::thread::sleep(std::time::Duration::from_millis(20));
        let snapshot = Snapshot::of(&guest, 0);
        let now = count(&snapshot);
        assert!(now > before, "{now} after {before}");
        before = now;
        assert_eq!(guest.stop().exit, VmExit::Stopped);
        guest = snapshot.restore(&kvm);
    }
    assert_eq!(guest.stop().exit, VmExit::Stopped);
}

#[test]
fn counting_guest_survives_a_hundred_generations_of_restore_and_save() {
    let Some(kvm) = kvm() else { return };
    let code = endless(&[TO_SERIAL], &[COUNT, SAY_LINE]);
    let guest = Guest::start(kvm.try_clone().unwrap(), spec(&code));
    rounds(&kvm, guest, 100);
}

#[test]
fn cve_2026_24834_snapshot_is_not_changed_by_the_guests_that_start_from_it() {
    let Some(kvm) = kvm() else { return };
    let code = endless(&[TO_SERIAL], &[COUNT, SAY_LINE]);
    let guest = Guest::start(kvm.try_clone().unwrap(), spec(&code));
    guest.console.wait_for("\n");
    let snapshot = Snapshot::of(&guest, 0);
    let before = count(&snapshot);
    let forks: Vec<Guest> = (0..3).map(|_| snapshot.restore(&kvm)).collect();
    for fork in &forks {
        fork.console.wait_for("\n\n\n");
    }
    // The one that was saved can go on, too.
    guest.vm().resume().unwrap();
    let printed = guest.console.text().len();
    guest.console.wait_for_bytes(printed + 3);
    for guest in forks.into_iter().chain([guest]) {
        assert_eq!(guest.stop().exit, VmExit::Stopped);
    }
    assert_eq!(count(&snapshot), before);
}

/// The same where the kernel fills pages itself and where it asks a file system for them.
#[test]
fn working_set_of_a_guest_is_what_it_read_and_what_it_wrote_and_nothing_beside() {
    let Some(kvm) = kvm() else { return };
    for folder in [std::env::temp_dir(), std::env::current_dir().unwrap()] {
        let code = endless(&[TO_SERIAL], &[READ_AND_WRITE, SAY_LINE]);
        let original = Guest::start(kvm.try_clone().unwrap(), spec(&code));
        original.console.wait_for("\n\n");
        let mut golden = Snapshot::of_in(&original, 0, &folder);
        assert_eq!(original.stop().exit, VmExit::Stopped);
        // The kernel has all of the file in memory, so it could map any page of it.
        let whole = [7; 128 * 4096];
        golden
            .files
            .memory
            .write_all_at(&whole, CODE + PAGE)
            .unwrap();
        golden.recorded = true;
        let fork = golden.restore(&kvm);
        fork.console.wait_for("\n\n");
        fork.vm().pause().unwrap();
        let recorded = tempfile::tempfile().unwrap();
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        fork.vm().save_working_set(&pagemap, &recorded).unwrap();
        assert_eq!(fork.stop().exit, VmExit::Stopped);
        let set = WorkingSet::read(&recorded, 48).unwrap();
        // Below are page tables, which the processor may write to, and the generation id.
        let above: Vec<_> = set.ranges().filter(|(range, _)| range.end > CODE).collect();
        let expected = [(CODE, false), (READ, false), (COUNTER, true)];
        let expected = expected.map(|(start, written)| (start..start + PAGE, written));
        assert_eq!(above, expected, "in {}", folder.display());
    }
}
