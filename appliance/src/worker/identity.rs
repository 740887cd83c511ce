//! What makes a guest differ from every other one; drawn anew for each.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::rand::{GetRandomFlags, getrandom};
use uuid::Uuid;
use wire::Identity;

/// A new identity, with the time of this moment: make it when it is sent and keep no copy.
pub fn draw(worker: Uuid) -> io::Result<Identity> {
    let mut seed = vec![0; Identity::SEED_BYTES];
    let filled = getrandom(&mut seed, GetRandomFlags::empty())?;
    if filled != seed.len() {
        // The kernel gives up to 256 bytes whole (getrandom(2)).
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_err(io::Error::other)?;
    Ok(Identity {
        seed,
        unix_time_ns: u64::try_from(now.as_nanos()).map_err(io::Error::other)?,
        hostname: hostname(worker),
        // Both are UUIDs of version 4: machine-id(5), drivers/char/random.c.
        machine_id: Uuid::new_v4().simple().to_string(),
        boot_id: Uuid::new_v4().to_string(),
    })
}

fn hostname(worker: Uuid) -> String {
    format!("session-{}", &worker.simple().to_string()[..12])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn two_identities_of_one_worker_share_nothing_but_its_name() {
        let id = Uuid::new_v4();
        let drawn: Vec<Identity> = (0..100).map(|_| draw(id).unwrap()).collect();
        let distinct =
            |value: fn(&Identity) -> Vec<u8>| drawn.iter().map(value).collect::<HashSet<_>>().len();
        assert_eq!(distinct(|it| it.seed.clone()), drawn.len());
        assert_eq!(distinct(|it| it.machine_id.clone().into()), drawn.len());
        assert_eq!(distinct(|it| it.boot_id.clone().into()), drawn.len());
        assert_eq!(distinct(|it| it.hostname.clone().into()), 1);
    }

    #[test]
    fn identity_has_the_forms_that_the_agent_expects() {
        let id = Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        let identity = draw(id).unwrap();
        assert_eq!(identity.seed.len(), 64);
        assert_eq!(identity.hostname, "session-0123456789ab");
        assert_eq!(identity.machine_id.len(), 32);
        assert!(identity.machine_id.bytes().all(|b| b.is_ascii_hexdigit()));
        let boot_id = Uuid::try_parse(&identity.boot_id).unwrap();
        assert_eq!(boot_id.get_version_num(), 4);
        assert_eq!(identity.boot_id.len(), 36);
    }
}
