//! Sockets across a restore.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

use crate::boot::boot;
use crate::support::{DEADLINE, Guest, Snapshot, kvm};
use vmm::VmExit;

/// A connection to the guest's echo.
struct Echo(BufReader<UnixStream>);

impl Echo {
    fn connect(guest: &Guest) -> Self {
        let mut stream = guest.connect_vsock();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(b"CONNECT 1025\n").unwrap();
        let mut echo = Self(BufReader::new(stream));
        let answer = echo.line();
        assert!(answer.starts_with("OK "), "{answer:?}");
        echo
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line
    }

    fn assert_answers(&mut self, text: &str) {
        writeln!(self.0.get_mut(), "{text}").unwrap();
        assert_eq!(self.line(), format!("{text}\n"));
    }
}

#[test]
fn firecracker_5688_5882_5958_6100_listening_socket_survives_a_restore_old_connections_are_reset_and_new_ones_work()
 {
    let Some(kvm) = kvm() else { return };
    let Some(original) = boot("echo", |_| ()) else {
        return;
    };
    original.console.wait_for("guest says: listening");
    let mut old = Echo::connect(&original);
    old.assert_answers("before");
    // One that is busy: what it sends is never read.
    let mut busy = Echo::connect(&original);
    busy.0.get_mut().write_all(&[b'x'; 32 * 1024]).unwrap();
    let golden = Snapshot::of(&original, 0);

    // The copies know nothing of the host's end of these.
    for round in 0..2 {
        let fork = golden.restore(&kvm);
        let mut new = Echo::connect(&fork);
        new.assert_answers("after");
        let mut another = Echo::connect(&fork);
        another.assert_answers("and again");
        let resets = |line: &str| (line == "guest says: connection: reset").then_some(());
        fork.console
            .wait_for_line("the reset of its connection", resets);
        drop((new, another));
        fork.console.wait_for("connection: end");
        if round == 1 {
            // Also a copy of a copy, whose connections have gone already.
            let again = Snapshot::of(&fork, 0);
            let copy = again.restore(&kvm);
            Echo::connect(&copy).assert_answers("a copy of a copy");
            assert_eq!(copy.stop().exit, VmExit::Stopped);
        }
        assert_eq!(fork.stop().exit, VmExit::Stopped);
    }

    // The one that was saved has lost nothing.
    original.vm().resume().unwrap();
    old.assert_answers("still here");
    let mut back = vec![0; 32 * 1024];
    busy.0.read_exact(&mut back).unwrap();
    assert!(back.iter().all(|byte| *byte == b'x'));
    assert_eq!(original.stop().exit, VmExit::Stopped);
}

/// What is prefetched is what another copy has touched until its first answer.
#[test]
fn copy_whose_working_set_is_prefetched_answers_and_has_spent_time_on_it() {
    let Some(kvm) = kvm() else { return };
    let Some(original) = boot("echo", |_| ()) else {
        return;
    };
    original.console.wait_for("guest says: listening");
    let mut golden = Snapshot::of(&original, 0);
    assert_eq!(original.stop().exit, VmExit::Stopped);
    golden.recorded = true;
    let first = golden.restore(&kvm);
    Echo::connect(&first).assert_answers("recorded");
    first.vm().pause().unwrap();
    let recorded = tempfile::tempfile().unwrap();
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    first.vm().save_working_set(&pagemap, &recorded).unwrap();
    assert_eq!(first.stop().exit, VmExit::Stopped);

    golden.working_set = Some(recorded);
    let (second, steps) = golden.restore_with(&kvm, Vec::new()).unwrap();
    Echo::connect(&second).assert_answers("prefetched");
    let names: Vec<&str> = steps.0.iter().map(|(name, _)| *name).collect();
    assert!(
        names.contains(&"working set") && names.contains(&"pages mapped"),
        "{names:?}"
    );
    assert_eq!(second.stop().exit, VmExit::Stopped);
}
