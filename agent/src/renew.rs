//! What makes this guest differ from every other: random numbers, clock, names.
//!
//! A guest that was forked from a golden is that golden until it is renewed, so nothing of the tenant
//! may run before: no container starts, and a frozen one stays frozen. Whatever fails on
//! the way, the guest is of no use any more and refuses everything but to stop. The order: random numbers
//! first, because others may be drawn from them; the container last.

use std::fs::File;

use wire::Identity;

use crate::attempt::{Attempt, SetupError, chain};
use crate::clock;
use crate::container::Container;
use crate::guest::{random, settle};

/// The longest name that the kernel takes (`__NEW_UTS_LEN`).
const MAX_HOSTNAME_BYTES: usize = 64;
const MACHINE_ID_DIGITS: usize = 32;
/// Where a UUID has dashes, of 36 characters.
const UUID_DASHES: [usize; 4] = [8, 13, 18, 23];
const UUID_LENGTH: usize = 36;

/// Why a guest could not be renewed. No text of the seed in here.
#[derive(Debug, thiserror::Error)]
enum RenewError {
    #[error("Cannot renew the guest: the seed has {0} bytes and not {expected}", expected = Identity::SEED_BYTES)]
    SeedLength(usize),
    #[error("Cannot renew the guest: {0:?} is no host name")]
    HostName(String),
    #[error("Cannot renew the guest: {0:?} is no machine id")]
    MachineId(String),
    #[error("Cannot renew the guest: {0:?} is no boot id")]
    BootId(String),
    #[error("Cannot renew the guest: {0}")]
    NoContainer(String),
    #[error("Cannot renew the guest")]
    Step(#[from] SetupError),
}

/// Whether the guest is somebody yet.
#[derive(Debug, PartialEq, Eq)]
enum State {
    /// Nobody, or what a snapshot was taken of.
    Due,
    /// Renewed on the present control stream, or the host says that nothing lies between. A fork loses that stream, so it can
    /// never find itself in this state.
    Done { hostname: String },
    /// Renewed on a stream that was lost. A snapshot may lie between: what has this state may be a fork.
    InDoubt { hostname: String },
    /// For ever.
    Failed(String),
}

/// The guest's identity, and what may be done with it.
pub struct Renewal {
    state: State,
    /// Random numbers and clock, if they are ours to set.
    machine: Option<Machine>,
}

struct Machine {
    random: File,
    host_clock: Option<File>,
}

impl Renewal {
    pub fn new() -> Self {
        Self {
            state: State::Due,
            machine: None,
        }
    }

    pub fn own_the_machine(&mut self) -> Result<(), SetupError> {
        self.machine = Some(Machine {
            random: random::open()?,
            host_clock: clock::open_host_clock(),
        });
        Ok(())
    }

    /// Makes the machine, if it is ours, stand still for a snapshot.
    pub fn settle(&self) -> Result<(), SetupError> {
        match self.machine {
            Some(_) => settle::settle(),
            None => Ok(()),
        }
    }

    /// Another control stream: there may be a snapshot between it and the one before.
    pub fn on_new_stream(&mut self) {
        if let State::Done { hostname } = &mut self.state {
            let hostname = std::mem::take(hostname);
            self.state = State::InDoubt { hostname };
        }
    }

    /// The host, which knows whether it has made a fork, says that this is none.
    pub fn carry_on(&mut self) {
        if let State::InDoubt { hostname } = &mut self.state {
            let hostname = std::mem::take(hostname);
            self.state = State::Done { hostname };
        }
    }

    /// The host name to start a container with, or why none may start.
    pub fn hostname(&self) -> Result<&str, String> {
        match &self.state {
            State::Done { hostname } => Ok(hostname),
            State::Due | State::InDoubt { .. } => {
                Err("Nothing starts in a guest before it is renewed".into())
            }
            State::Failed(message) => Err(message.clone()),
        }
    }

    /// Gives the guest and its container this identity, and thaws the container.
    pub fn renew(
        &mut self,
        identity: &Identity,
        container: &mut Result<Container, String>,
    ) -> Result<(), String> {
        if let State::Failed(message) = &self.state {
            return Err(message.clone());
        }
        match apply(identity, self.machine.as_ref(), container) {
            Ok(()) => {
                self.state = State::Done {
                    hostname: identity.hostname.clone(),
                };
                Ok(())
            }
            Err(error) => {
                let message = chain(&error);
                self.state = State::Failed(message.clone());
                Err(message)
            }
        }
    }
}

fn apply(
    identity: &Identity,
    machine: Option<&Machine>,
    container: &mut Result<Container, String>,
) -> Result<(), RenewError> {
    let seed = check(identity)?;
    let container = match container {
        Ok(container) => match container.failure() {
            Some(message) => return Err(RenewError::NoContainer(message.to_owned())),
            None => container,
        },
        Err(message) => return Err(RenewError::NoContainer(message.clone())),
    };
    if let Some(machine) = machine {
        random::reseed(&machine.random, seed)?;
        clock::follow_host(machine.host_clock.as_ref(), identity.unix_time_ns)
            .attempt(|| "set the clock".into())?;
    }
    container.set_identity(identity)?;
    Ok(container.thaw()?)
}

/// Nothing is done with an identity that is wrong in any part. Answers its seed.
fn check(identity: &Identity) -> Result<&[u8; Identity::SEED_BYTES], RenewError> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let Identity {
        seed,
        hostname,
        machine_id,
        boot_id,
        unix_time_ns: _,
    } = identity;
    let length = hostname.len();
    if !(1..=MAX_HOSTNAME_BYTES).contains(&length) || !hostname.bytes().all(is_name) {
        return Err(RenewError::HostName(hostname.clone()));
    }
    if machine_id.len() != MACHINE_ID_DIGITS || !machine_id.bytes().all(is_digit) {
        return Err(RenewError::MachineId(machine_id.clone()));
    }
    let is_uuid_part = |(index, byte)| {
        if UUID_DASHES.contains(&index) {
            byte == b'-'
        } else {
            is_digit(byte)
        }
    };
    if boot_id.len() != UUID_LENGTH || !boot_id.bytes().enumerate().all(is_uuid_part) {
        return Err(RenewError::BootId(boot_id.clone()));
    }
    seed.as_slice()
        .try_into()
        .map_err(|_| RenewError::SeedLength(seed.len()))
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn identity() -> Identity {
        Identity {
            seed: vec![7; Identity::SEED_BYTES],
            unix_time_ns: 1_700_000_000_000_000_000,
            hostname: "session-1".into(),
            machine_id: "0123456789abcdef0123456789abcdef".into(),
            boot_id: "01234567-89ab-cdef-0123-456789abcdef".into(),
        }
    }

    #[test]
    fn identity_that_is_whole_passes() {
        assert_eq!(check(&identity()).unwrap(), &[7; 64]);
    }

    #[test]
    fn identity_that_is_wrong_in_any_part_is_refused() {
        let wrong: [fn(&mut Identity); 13] = [
            |it| it.seed.clear(),
            |it| it.seed.truncate(63),
            |it| it.seed.push(0),
            |it| it.hostname.clear(),
            |it| it.hostname = "x".repeat(65),
            |it| it.hostname = "a\nb".into(),
            |it| it.hostname = "a b".into(),
            |it| it.machine_id.clear(),
            |it| it.machine_id = "0123456789ABCDEF0123456789abcdef".into(),
            |it| it.machine_id.push('\n'),
            |it| it.boot_id.clear(),
            |it| it.boot_id = it.boot_id.replace('-', "0"),
            |it| it.boot_id = "g1234567-89ab-cdef-0123-456789abcdef".into(),
        ];
        for (index, spoil) in wrong.iter().enumerate() {
            let mut identity = identity();
            spoil(&mut identity);
            assert!(check(&identity).is_err(), "{index}");
        }
    }

    #[test]
    fn guest_whose_stream_broke_is_in_doubt_until_its_host_says_that_it_is_no_fork() {
        let hostname = "session-1".to_owned();
        let mut renewal = Renewal {
            state: State::Done { hostname },
            machine: None,
        };
        for _ in 0..2 {
            renewal.on_new_stream();
            assert!(renewal.hostname().unwrap_err().contains("renewed"));
        }
        renewal.carry_on();
        assert_eq!(renewal.hostname(), Ok("session-1"));
    }

    #[test]
    fn guest_that_was_never_renewed_is_not_by_word_of_its_host() {
        let mut renewal = Renewal::new();
        renewal.on_new_stream();
        renewal.carry_on();
        assert_eq!(renewal.state, State::Due);
    }

    #[test]
    fn guest_without_a_container_fails_for_ever() {
        let mut renewal = Renewal::new();
        assert!(renewal.hostname().is_err());
        let mut container = Err("no disk".to_owned());
        let failure = "Cannot renew the guest: no disk".to_owned();
        let renewed = renewal.renew(&identity(), &mut container);
        assert_eq!(renewed, Err(failure.clone()));
        renewal.on_new_stream();
        assert_eq!(renewal.hostname(), Err(failure));
    }
}
