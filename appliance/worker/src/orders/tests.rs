//! The codec.

use std::os::fd::OwnedFd;

use proptest::prelude::*;

use super::*;
use crate::channel;

const SPEC: WorkerSpec = WorkerSpec {
    vcpus: 1,
    cpu_millis: 250,
    mem_mib: 128,
};

fn all() -> [Order; 8] {
    [
        Order::Boot { spec: SPEC },
        restore(FirstPages::AsNeeded),
        restore(FirstPages::Prefetched),
        restore(FirstPages::Recorded),
        Order::Pause,
        Order::Resume,
        Order::Save,
        Order::SaveWorkingSet,
    ]
}

fn restore(first_pages: FirstPages) -> Order {
    Order::Restore {
        spec: SPEC,
        first_pages,
    }
}

/// Descriptors as they should be, those of shared files read-only.
fn descriptors(order: &Order, folder: &std::path::Path) -> Vec<OwnedFd> {
    let path = folder.join("file");
    std::fs::write(&path, "x").unwrap();
    let writable = std::fs::File::options();
    order
        .roles()
        .iter()
        .map(|role| {
            let mut options = writable.clone();
            options.read(true).write(!role.is_shared());
            options.open(&path).unwrap().into()
        })
        .collect()
}

#[test]
fn order_written_and_read_back_is_the_same() {
    for order in all() {
        let bytes = serde_json::to_vec(&order).unwrap();
        assert_eq!(Order::parse(&bytes).unwrap(), order);
        assert!(order.roles().len() <= channel::MAX_FDS);
    }
}

#[test]
fn order_with_its_own_descriptors_is_good_and_with_more_or_fewer_it_is_not() {
    let folder = tempfile::tempdir().unwrap();
    for order in all() {
        let mut fds = descriptors(&order, folder.path());
        assert_eq!(order.check(&fds), Ok(()), "{order:?}");
        let expected = fds.len();
        fds.push(tempfile::tempfile().unwrap().into());
        let found = fds.len();
        assert_eq!(order.check(&fds), Err(BadOrder::Count { expected, found }));
        fds.truncate(expected.saturating_sub(1));
        if expected > 0 {
            let found = fds.len();
            assert_eq!(order.check(&fds), Err(BadOrder::Count { expected, found }));
        }
    }
}

#[test]
fn snapshot_that_can_be_written_to_is_not_handed_out() {
    let folder = tempfile::tempdir().unwrap();
    let order = restore(FirstPages::Prefetched);
    for (place, role) in order.roles().iter().enumerate() {
        let mut fds = descriptors(&order, folder.path());
        fds[place] = tempfile::tempfile().unwrap().into();
        let expected = if role.is_shared() {
            Err(BadOrder::Writable { role: *role })
        } else {
            Ok(())
        };
        assert_eq!(order.check(&fds), expected);
    }
}

#[test]
fn folder_or_socket_in_the_place_of_a_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let order = Order::SaveWorkingSet;
    let role = OrderFd::SavedWorkingSet;
    for fd in [
        std::fs::File::open(folder.path()).unwrap().into(),
        channel::pair().unwrap().0,
    ] {
        assert_eq!(order.check(&[fd]), Err(BadOrder::NotAFile { role }));
    }
}

#[test]
fn unknown_order_or_field_is_not_an_order() {
    for text in [
        "{}",
        r#"{"order":"fly"}"#,
        r#"{"order":"boot","spec":{"vcpus":1,"cpuMillis":1}}"#,
        r#"{"order":"restore","spec":{"vcpus":1,"cpuMillis":1,"memMib":1}}"#,
    ] {
        assert!(Order::parse(text.as_bytes()).is_err(), "{text}");
    }
}

#[test]
fn longest_answer_fits_a_message() {
    let message = "\u{1f980}\u{0}\"".repeat(100_000);
    let bytes = Answer::Failed { message }.encode();
    assert!(bytes.len() <= channel::MAX_MESSAGE_BYTES);
    serde_json::from_slice::<Answer>(&bytes).unwrap();
    let steps = vec![("step".to_owned(), u64::MAX); 100_000];
    let bytes = Answer::Done { steps }.encode();
    assert!(bytes.len() <= channel::MAX_MESSAGE_BYTES);
}

proptest! {
    #[test]
    fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let _ = Order::parse(&bytes);
    }
}
