//! The codec.

use std::os::fd::OwnedFd;

use proptest::prelude::*;

use super::*;
use crate::channel;
use crate::spec::RateLimits;

const SPEC: WorkerSpec = WorkerSpec {
    vcpus: 1,
    cpu_millis: 250,
    mem_mib: 128,
    limits: LIMITS,
};

const LIMITS: RateLimits = RateLimits {
    disk_bytes_per_second: std::num::NonZeroU64::new(1 << 40),
    disk_iops: None,
    stream_bytes_per_second: std::num::NonZeroU64::new(1),
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
        spec: WorkerSpec {
            limits: RateLimits::NONE,
            ..SPEC
        },
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

mod lifelines {
    use std::os::fd::{AsFd, OwnedFd};
    use std::time::{Duration, Instant};

    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

    use super::super::server::{Desk, Heard};
    use super::*;

    const ORPHAN_LIMIT: Duration = Duration::from_millis(100);

    /// A worker's desk, and the warden's end of its socket.
    struct Setting {
        desk: Desk,
        warden: OwnedFd,
        address: SocketAddrUnix,
        _folder: tempfile::TempDir,
    }

    impl Setting {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let address = SocketAddrUnix::new(folder.path().join("orders.sock")).unwrap();
            let listener = socket();
            rustix::net::bind(&listener, &address).unwrap();
            rustix::net::listen(&listener, 1).unwrap();
            let (warden, theirs) = channel::pair().unwrap();
            Self {
                desk: Desk::new(theirs, listener),
                warden,
                address,
                _folder: folder,
            }
        }

        fn appliance(&self) -> OwnedFd {
            let appliance = socket();
            rustix::net::connect(&appliance, &self.address).unwrap();
            appliance
        }
    }

    fn socket() -> OwnedFd {
        let flags = SocketFlags::CLOEXEC;
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
    }

    fn order(appliance: &OwnedFd, order: &Order) {
        let bytes = serde_json::to_vec(order).unwrap();
        channel::send(appliance.as_fd(), &bytes, &[], true).unwrap();
    }

    #[test]
    fn spare_ends_with_its_warden_at_once() {
        let Setting {
            mut desk,
            warden,
            _folder,
            ..
        } = Setting::new();
        drop(warden);
        assert!(matches!(desk.wait().unwrap(), Heard::End));
    }

    #[test]
    fn guest_that_nobody_adopts_ends_after_the_orphan_limit_and_not_before() {
        let Setting {
            mut desk,
            warden,
            _folder,
            ..
        } = Setting::new();
        desk.outlive(ORPHAN_LIMIT);
        let lost = Instant::now();
        drop(warden);
        assert!(matches!(desk.wait().unwrap(), Heard::End));
        assert!(lost.elapsed() >= ORPHAN_LIMIT);
    }

    #[test]
    fn guest_without_a_warden_obeys_the_appliance_that_adopts_it_and_then_the_next() {
        let mut setting = Setting::new();
        setting.desk.outlive(ORPHAN_LIMIT);
        let first = setting.appliance();
        order(&first, &Order::Pause);
        let (warden, _) = channel::pair().unwrap();
        drop(std::mem::replace(&mut setting.warden, warden));
        let heard = setting.desk.wait().unwrap();
        assert!(matches!(heard, Heard::Order(Order::Pause, _)), "{heard:?}");
        // The next one is there before the first one has gone.
        let next = setting.appliance();
        order(&next, &Order::Resume);
        drop(first);
        let heard = setting.desk.wait().unwrap();
        assert!(matches!(heard, Heard::Order(Order::Resume, _)), "{heard:?}");
        let lost = Instant::now();
        drop(next);
        assert!(matches!(setting.desk.wait().unwrap(), Heard::End));
        assert!(lost.elapsed() >= ORPHAN_LIMIT);
    }
}
