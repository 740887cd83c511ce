//! The real kernel, saved and restored. The guest's half is in [`super::guest`].

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use crate::boot::boot;
use crate::support::{Console, Guest, Snapshot, kvm};
use vmm::{BlockConfig, VmExit};

/// Lines that [`super::guest`] prints in a flood.
pub const FLOOD: usize = 1500;
/// How far the guest's clock may go on while it is saved and restored.
const JUMP_MS: i64 = 1000;
/// Where the generation id is: `layout::VMGENID`.
const GENERATION: u64 = 0xf_f000;

/// Number and time of a line of [`super::guest`]'s ticks.
fn tick(line: &str) -> Option<(u64, i64)> {
    let (number, time) = line
        .strip_prefix("guest says: tick ")?
        .strip_suffix(" ms")?
        .split_once(" at ")?;
    Some((number.parse().ok()?, time.parse().ok()?))
}

fn wait_for_tick(console: &Console, after: u64) -> (u64, i64) {
    let later = |line: &str| tick(line).filter(|(number, _)| *number > after);
    console.wait_for_line(&format!("a tick after {after}"), later)
}

/// Where a guest stood when it was saved.
struct Stopped {
    snapshot: Snapshot,
    /// A tick that was seen, and for how long the guest went on after it.
    tick: (u64, i64),
    ran: Duration,
}

/// Saves a guest that ticks. It does not go on.
fn stop(guest: Guest, after: u64) -> Stopped {
    let tick = wait_for_tick(&guest.console, after);
    let seen = Instant::now();
    guest.vm().pause().unwrap();
    let ran = seen.elapsed();
    let snapshot = Snapshot::of(&guest, 0);
    assert_untroubled(&guest.console);
    assert_eq!(guest.stop().exit, VmExit::Stopped);
    // A clock that knows of this time would show it.
    std::thread::sleep(Duration::from_secs(2));
    Stopped {
        snapshot,
        tick,
        ran,
    }
}

/// Brings a copy back. Its clock goes on from where it stood, and every processor works. Gives its last tick.
fn go_on(kvm: &File, stopped: &Stopped) -> (Guest, u64) {
    let started = Instant::now();
    let guest = stopped.snapshot.restore(kvm);
    let (number, time) = wait_for_tick(&guest.console, stopped.tick.0);
    let ran = i64::try_from((stopped.ran + started.elapsed()).as_millis()).unwrap();
    let passed = time - stopped.tick.1;
    assert!(
        (0..ran + JUMP_MS).contains(&passed),
        "{passed} ms in the guest, which ran for {ran} ms"
    );
    let (number, _) = wait_for_tick(&guest.console, number + 2);
    assert_untroubled(&guest.console);
    (guest, number)
}

/// What the kernel's random numbers gave right after it knew that it is a copy.
fn random_after_fork(console: &Console) -> u128 {
    let find = |line: &str| {
        let number = line.strip_prefix("guest says: forked, random ")?;
        number.parse().ok()
    };
    console.wait_for_line("what it learned of being forked", find)
}

fn assert_untroubled(console: &Console) {
    let text = console.text();
    assert!(!text.contains("trouble"), "{text}");
}

/// A snapshot of a kernel on `vcpus` processors is brought back twice. Gives the last of the copies, and its last
/// tick.
fn fork_twice(kvm: &File, vcpus: u8) -> Option<(Guest, u64)> {
    let golden = stop(boot("tick", |spec| spec.vcpus = vcpus)?, 2);
    let (first, seen) = go_on(kvm, &golden);
    let random = random_after_fork(&first.console);
    let (second, last) = go_on(kvm, &golden);
    assert_ne!(random_after_fork(&second.console), random);
    wait_for_tick(&first.console, seen + 2);
    assert_untroubled(&first.console);
    assert_eq!(first.stop().exit, VmExit::Stopped);
    Some((second, last))
}

#[test]
fn kernel_on_one_processor_is_restored_twice_from_one_snapshot() {
    let Some(kvm) = kvm() else { return };
    fork_twice(&kvm, 1);
}

#[test]
fn kernel_on_four_processors_is_restored_twice_from_one_snapshot() {
    let Some(kvm) = kvm() else { return };
    fork_twice(&kvm, 4);
}

#[test]
fn kernel_on_two_processors_goes_on_for_generations_and_learns_each_time_that_it_is_a_copy() {
    let Some(kvm) = kvm() else { return };
    let Some((mut guest, mut last)) = fork_twice(&kvm, 2) else {
        return;
    };
    let mut random = vec![random_after_fork(&guest.console)];
    let mut ids: Vec<[u8; 16]> = Vec::new();
    for _ in 0..2 {
        let stopped = stop(guest, last);
        (guest, last) = go_on(&kvm, &stopped);
        random.push(random_after_fork(&guest.console));
        ids.push(stopped.snapshot.peek(GENERATION));
    }
    assert_eq!(guest.stop().exit, VmExit::Stopped);
    assert_ne!(ids[0], ids[1]);
    assert!(
        random[0] != random[1] && random[1] != random[2],
        "{random:?}"
    );
}

#[test]
fn firecracker_5494_kernel_that_was_paused_for_a_minute_reports_no_lockup_and_its_clock_went_on() {
    let Some(guest) = boot("tick", |spec| spec.vcpus = 2) else {
        return;
    };
    let (_, before) = wait_for_tick(&guest.console, 2);
    let seen = Instant::now();
    guest.vm().pause().unwrap();
    std::thread::sleep(Duration::from_secs(60));
    guest.vm().resume().unwrap();
    let later = |line: &str| tick(line).filter(|(_, time)| *time >= before + 60_000);
    let (next, now) = guest.console.wait_for_line("a tick a minute later", later);
    let passed = i64::try_from(seen.elapsed().as_millis()).unwrap();
    assert!(
        now - before < passed + JUMP_MS,
        "{} ms in the guest, {passed} ms on the host",
        now - before
    );
    // The kernel's watchdogs look a few seconds later, too.
    wait_for_tick(&guest.console, next + 100);
    assert_untroubled(&guest.console);
    assert_eq!(guest.stop().exit, VmExit::Stopped);
}

#[test]
fn serial_output_goes_on_where_a_snapshot_cut_it() {
    let Some(kvm) = kvm() else { return };
    let Some(original) = boot("flood", |_| ()) else {
        return;
    };
    original.console.wait_for("line 300");
    let golden = Snapshot::of(&original, 0);
    let mut first = original.stop().console.whole_text();
    // The unfinished line goes along in the snapshot.
    first.truncate(first.rfind('\n').unwrap() + 1);
    let ended = golden.restore(&kvm).wait();
    assert_eq!(ended.exit, VmExit::PowerOff);
    let text = first + &ended.console.whole_text();
    let mut said = text.lines().map(str::trim_end);
    for number in 0..FLOOD {
        assert_eq!(
            said.next(),
            Some(format!("guest says: line {number}").as_str())
        );
    }
    assert_eq!(said.next(), Some("guest says: bye"));
}

#[test]
fn firecracker_2193_disk_of_a_paused_guest_does_not_change() {
    let Some(kvm) = kvm() else { return };
    let disk = tempfile::tempfile().unwrap();
    disk.set_len(1 << 20).unwrap();
    let block = |file: &File| BlockConfig {
        file: file.try_clone().unwrap(),
        base: None,
        read_only: false,
    };
    let Some(guest) = boot("write", |spec| spec.blocks = vec![block(&disk)]) else {
        return;
    };
    guest.console.wait_for("guest says: writing");
    let content = |disk: &File| {
        let mut bytes = vec![0; 1 << 20];
        disk.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    let changes = |disk: &File, before: &[u8]| {
        let started = Instant::now();
        while content(disk) == before {
            assert!(started.elapsed() < crate::support::DEADLINE, "no write");
        }
    };
    for _ in 0..5 {
        guest.vm().pause().unwrap();
        let before = content(&disk);
        std::thread::sleep(Duration::from_millis(100));
        assert!(content(&disk) == before, "a write landed after the pause");
        guest.vm().resume().unwrap();
        changes(&disk, &before);
    }
    // A fork writes to its own disk and goes on with the next number.
    let golden = Snapshot::of(&guest, 1);
    let saved = content(&golden.files.disks[0]);
    assert!(saved == content(&disk));
    assert_eq!(guest.stop().exit, VmExit::Stopped);
    let own = tempfile::tempfile().unwrap();
    own.write_all_at(&saved, 0).unwrap();
    let (fork, _) = golden.restore_with(&kvm, vec![block(&own)]).unwrap();
    changes(&own, &saved);
    assert_eq!(fork.stop().exit, VmExit::Stopped);
    assert!(content(&golden.files.disks[0]) == saved);
}
