//! Guests of a few bytes on a real KVM: every way to end, and that every other way can be stopped.
//!
//! The programs begin in 64-bit mode at 1 MiB, as the kernel would.

use std::os::unix::fs::FileExt;
use std::time::Instant;

use crate::support::{DEADLINE, Guest, kvm};
use vmm::VmExit;
use vmm::devices::serial::CONSOLE_LIMIT;

/// `mov dx, 0x3f8; mov al, 10; out dx, al`: a line end on the serial port, so that the test knows we run.
const SAY_LINE: &[u8] = b"\x66\xba\xf8\x03\xb0\x0a\xee";
/// `mov dx, 0x600; mov al, 0x34; out dx, al; hlt`: ACPI S5.
const POWER_OFF: &[u8] = b"\x66\xba\x00\x06\xb0\x34\xee\xf4";
/// `jmp $`
const LOOP: &[u8] = b"\xeb\xfe";

fn program(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

#[test]
fn guest_that_writes_to_the_serial_port_and_powers_off_ends_in_order() {
    let Some(kvm) = kvm() else { return };
    // mov dx, 0x3f8; mov al, 'H'; out dx, al; mov al, 'i'; out dx, al
    let say = b"\x66\xba\xf8\x03\xb0H\xee\xb0i\xee";
    let ended = Guest::run_program(kvm, &program(&[say, POWER_OFF])).wait();
    assert_eq!(ended.exit, VmExit::PowerOff);
    ended.console.wait_for("Hi");
}

#[test]
fn guest_reads_the_magic_number_of_a_virtio_device() {
    let Some(kvm) = kvm() else { return };
    let read = b"\xc7\x04\x25\x08\xb0\x00\x00\x83\x00\x00\xd0\
        \x8b\x04\x25\x00\x00\x20\x00\
        \x66\xba\xf8\x03\
        \xee\xc1\xe8\x08\xee\xc1\xe8\x08\xee\xc1\xe8\x08\xee";
    // mov dword [0xb008], 0xd0000083: the second 2 MiB show the first virtio transport
    // mov eax, [0x200000]; mov dx, 0x3f8; out dx, al; shr eax, 8; ... four times
    let ended = Guest::run_program(kvm, &program(&[read, POWER_OFF])).wait();
    assert_eq!(ended.exit, VmExit::PowerOff);
    ended.console.wait_for("virt");
}

#[test]
fn guest_that_resets_by_acpi_is_reported_as_a_reset() {
    let Some(kvm) = kvm() else { return };
    // mov dx, 0x602; mov al, 1; out dx, al; hlt
    let ended = Guest::run_program(kvm, b"\x66\xba\x02\x06\xb0\x01\xee\xf4").wait();
    assert_eq!(ended.exit, VmExit::Reset);
}

#[test]
fn guest_that_resets_by_the_keyboard_controller_is_reported_as_a_reset() {
    let Some(kvm) = kvm() else { return };
    // mov al, 0xfe; out 0x64, al; hlt
    let ended = Guest::run_program(kvm, b"\xb0\xfe\xe6\x64\xf4").wait();
    assert_eq!(ended.exit, VmExit::Reset);
}

#[test]
fn guest_without_an_interrupt_table_that_faults_ends_in_a_triple_fault() {
    let Some(kvm) = kvm() else { return };
    // ud2
    let ended = Guest::run_program(kvm, b"\x0f\x0b").wait();
    assert_eq!(ended.exit, VmExit::TripleFault);
}

#[test]
fn guest_that_halts_with_interrupts_off_can_be_stopped() {
    let Some(kvm) = kvm() else { return };
    // cli; hlt; jmp back
    let guest = Guest::run_program(kvm, &program(&[SAY_LINE, b"\xfa\xf4\xeb\xfc"]));
    guest.console.wait_for("\n");
    assert_eq!(guest.stop().exit, VmExit::Stopped);
}

#[test]
fn guest_that_loops_for_ever_can_be_stopped() {
    let Some(kvm) = kvm() else { return };
    let guest = Guest::run_program(kvm, &program(&[SAY_LINE, LOOP]));
    guest.console.wait_for("\n");
    assert_eq!(guest.stop().exit, VmExit::Stopped);
}

/// Once, the kick of the stop came before the thread of the vCPU could be kicked, and the guest ran for ever.
#[test]
fn guest_that_is_stopped_before_its_first_instruction_ends_all_the_same() {
    let Some(kvm) = kvm() else { return };
    for _ in 0..20 {
        let guest = Guest::run_program(kvm.try_clone().unwrap(), LOOP);
        assert_eq!(guest.stop().exit, VmExit::Stopped);
    }
}

#[test]
fn guest_that_hammers_ports_and_memory_that_nobody_claims_can_be_stopped() {
    let Some(kvm) = kvm() else { return };
    // again: out 0x99, al; in eax, 0x99; mov dword [0x3ffffff0], eax (no memory there); jmp again
    let hammer = b"\xe6\x99\xe5\x99\x89\x04\x25\xf0\xff\xff\x3f\xeb\xf3";
    let guest = Guest::run_program(kvm, &program(&[SAY_LINE, hammer]));
    guest.console.wait_for("\n");
    assert_eq!(guest.stop().exit, VmExit::Stopped);
}

#[test]
fn guest_that_floods_the_serial_port_can_be_stopped() {
    let Some(kvm) = kvm() else { return };
    // mov dx, 0x3f8; mov al, 'y'; again: out dx, al; jmp again
    let guest = Guest::run_program(kvm, b"\x66\xba\xf8\x03\xb0y\xee\xeb\xfd");
    guest.console.wait_for_bytes(10_000);
    let ended = guest.stop();
    assert_eq!(ended.exit, VmExit::Stopped);
    let printed = ended.console.text().len();
    assert!(
        printed < usize::try_from(CONSOLE_LIMIT).unwrap() + 100,
        "{printed} bytes"
    );
}

#[test]
fn guest_that_repeats_string_output_for_ever_can_be_stopped() {
    let Some(kvm) = kvm() else { return };
    // mov rcx, -1; mov rsi, 0x100000; mov dx, 0x99; rep outsb
    let flood = b"\x48\xc7\xc1\xff\xff\xff\xff\x48\xc7\xc6\x00\x00\x10\x00\x66\xba\x99\x00\xf3\x6e";
    let guest = Guest::run_program(kvm, &program(&[SAY_LINE, flood]));
    guest.console.wait_for("\n");
    assert_eq!(guest.stop().exit, VmExit::Stopped);
}

/// Counts in memory at `COUNTER` for ever: `inc qword [0x180000]; jmp back`.
const COUNT: &[u8] = b"\x48\xff\x04\x25\x00\x00\x18\x00\xeb\xf6";
const COUNTER: u64 = 0x18_0000;

fn counter(guest: &Guest) -> u64 {
    let mut bytes = [0; 8];
    guest.memory.read_exact_at(&mut bytes, COUNTER).unwrap();
    u64::from_le_bytes(bytes)
}

/// Waits until the counter has passed `value`.
fn wait_for_progress(guest: &Guest, value: u64) {
    let started = Instant::now();
    while counter(guest) <= value {
        assert!(
            started.elapsed() < DEADLINE,
            "the guest stands still at {value}"
        );
        std::thread::yield_now();
    }
}

#[test]
fn paused_guest_stands_still_until_it_is_resumed() {
    let Some(kvm) = kvm() else { return };
    let guest = Guest::run_program(kvm, COUNT);
    wait_for_progress(&guest, 0);
    guest.vm().pause().unwrap();
    let before = counter(&guest);
    // Long enough for a running guest to be seen: the same loop notices progress in the lines below.
    (0..10_000).for_each(|_| assert_eq!(counter(&guest), before));
    guest.vm().resume().unwrap();
    wait_for_progress(&guest, before);
    assert_eq!(guest.stop().exit, VmExit::Stopped);
}

#[test]
fn running_guest_that_is_told_to_run_can_still_be_paused() {
    let Some(kvm) = kvm() else { return };
    let guest = Guest::run_program(kvm, COUNT);
    wait_for_progress(&guest, 0);
    for _ in 0..20 {
        guest.vm().resume().unwrap();
        guest.vm().pause().unwrap();
        guest.vm().resume().unwrap();
    }
    assert_eq!(guest.stop().exit, VmExit::Stopped);
}

#[test]
fn paused_guest_can_be_stopped() {
    let Some(kvm) = kvm() else { return };
    let guest = Guest::run_program(kvm, COUNT);
    guest.vm().pause().unwrap();
    assert_eq!(guest.stop().exit, VmExit::Stopped);
}

#[test]
fn guest_that_has_ended_cannot_be_paused() {
    let Some(kvm) = kvm() else { return };
    let guest = Guest::run_program(kvm, &program(&[SAY_LINE, POWER_OFF]));
    guest.console.wait_for("\n");
    // The exit follows the line; until then pausing may work.
    let started = Instant::now();
    while guest.vm().pause() == Ok(()) {
        assert!(started.elapsed() < DEADLINE, "the guest never ends");
        // It may end between the two.
        let _ = guest.vm().resume();
    }
    assert_eq!(guest.wait().exit, VmExit::PowerOff);
}

#[test]
fn guest_paused_in_the_middle_of_port_writes_repeats_none_and_loses_none() {
    let Some(kvm) = kvm() else { return };
    // mov dx, 0x3f8; again: mov al, 'a'; next: out dx, al; inc al; cmp al, 'z' + 1; jne next; jmp again
    let guest = Guest::run_program(
        kvm,
        b"\x66\xba\xf8\x03\xb0a\xee\xfe\xc0\x3c\x7b\x75\xf9\xeb\xf5",
    );
    for _ in 0..100 {
        guest.vm().pause().unwrap();
        guest.vm().resume().unwrap();
    }
    guest.console.wait_for("xyz");
    let console = guest.console.clone();
    assert_eq!(guest.stop().exit, VmExit::Stopped);
    let text = console.text();
    let expected = ('a'..='z').cycle().take(text.len()).collect::<String>();
    assert_eq!(text, expected);
}

#[test]
fn second_microvm_starts_after_the_first_one_is_gone() {
    let Some(kvm) = kvm() else { return };
    for _ in 0..2 {
        let ended = Guest::run_program(kvm.try_clone().unwrap(), POWER_OFF).wait();
        assert_eq!(ended.exit, VmExit::PowerOff);
    }
}
