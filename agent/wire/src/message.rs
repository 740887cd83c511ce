//! The messages of the control stream.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::hex;

/// What the host tells the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum HostMessage {
    /// Become a guest like no other. Comes first in every guest, whether it booted or was forked from a
    /// golden, and is answered with [`GuestMessage::Renewed`] or [`GuestMessage::Failed`]. After
    /// a failure every `Renew` and `Start` is refused, and a frozen container stays frozen.
    Renew(Box<Identity>),
    /// This guest is the one that the host knew on the stream before: no snapshot lies between the two, so what was
    /// renewed on that is renewed still. Not answered, and ignored by a guest that was never renewed.
    Continue,
    /// Start the container. Sent once; a second one is refused with [`GuestMessage::Failed`], and so is
    /// one that does not follow a [`Renew`](Self::Renew) on the same stream: a snapshot may lie between
    /// two streams.
    Start(Box<ContainerSpec>),
    /// Stand still for a snapshot: finish what was begun and, after [`GuestMessage::Ready`], stop every process of
    /// the container where it is until the next [`Renew`](Self::Renew). Only then or before [`Start`](Self::Start);
    /// answered with [`GuestMessage::Frozen`] or [`GuestMessage::Failed`].
    Freeze,
    /// Send the container its stop signal, wait, kill what is left, sync the disk, power off.
    #[serde(rename_all = "camelCase")]
    Stop {
        /// How long the container may take after its stop signal, in milliseconds.
        grace_ms: u64,
    },
    /// A message of a newer host; ignored.
    #[serde(other)]
    Unknown,
}

/// What the agent tells the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum GuestMessage {
    /// The first message on every control stream.
    #[serde(rename_all = "camelCase")]
    Hello {
        /// [`crate::VERSION`] of the agent.
        version: u16,
        /// Guest time since the kernel started, in microseconds.
        uptime_us: u64,
    },
    /// The guest has the identity that it was given last, and a frozen container runs again.
    Renewed,
    /// The container's process runs.
    Started {
        /// Its process id in the guest.
        pid: u32,
    },
    /// The target port accepts connections. Sent once.
    ///
    /// This and [`Started`](Self::Started), [`Exited`](Self::Exited) and [`Failed`](Self::Failed) are said again
    /// behind `Hello` when a control stream was lost and another one is opened.
    Ready,
    /// The container is frozen, and all output that it wrote before has been sent.
    Frozen,
    /// One line of the container's output, without its line end.
    Output {
        /// Which of the two it wrote to.
        stream: Stream,
        /// The text; bytes that are not UTF-8 are replaced.
        line: String,
    },
    /// The container's first process ended, and all its output has been sent. The agent stays
    /// until it is told to stop. After a stop it then ends the stream and waits a moment for the host to close
    /// it, too, before it powers off.
    Exited(Ending),
    /// What the host asked for could not be done. If the container could not be started, [`Exited`](Self::Exited)
    /// follows with the exit code that a shell would give: 125 (cannot be set up), 126 (not
    /// executable) or 127 (not found). It does not follow when the guest itself could not be
    /// prepared or renewed, when the container could not be frozen, or when a message was refused.
    Failed {
        /// What was attempted and why it failed, for the operator.
        message: String,
    },
    /// A message of a newer agent; ignored.
    #[serde(other)]
    Unknown,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Exit {
    /// It called `exit` with this status.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit status {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// How a container ended, and why, if the agent knows more than its parent would.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ending {
    /// How its first process ended.
    pub exit: Exit,
    /// The guest had no memory left, and its kernel has ended processes of the container for that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub out_of_memory: bool,
}

impl From<Exit> for Ending {
    fn from(exit: Exit) -> Self {
        Self {
            exit,
            out_of_memory: false,
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.exit.fmt(f)?;
        if self.out_of_memory {
            // The word is what a program looks for.
            f.write_str(": OutOfMemory, it wanted more than the memory of its session")?;
        }
        Ok(())
    }
}

/// Where a line of output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What the agent needs to know to start a container: the image's configuration with the pool's
/// overrides already applied (OCI image specification, `config.md`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerSpec {
    /// Entrypoint and command, joined. Never empty.
    pub argv: Vec<String>,
    /// Environment as `NAME=value`, later entries win.
    pub env: Vec<String>,
    /// Absolute path; created when the image lacks it. Empty means `/`.
    pub working_dir: String,
    /// `user`, `uid`, `user:group`, `uid:gid` or empty for root, as in the image configuration.
    pub user: String,
    /// Signal name (`SIGTERM`, `TERM`) or number; empty means `SIGTERM`.
    pub stop_signal: String,
    /// The port on `127.0.0.1` that requests go to.
    pub target_port: u16,
}

/// What makes one guest differ from every other, above all from those forked from the same golden.
/// The host draws all of it anew for each guest.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// Random bytes for the kernel's generator, exactly [`Identity::SEED_BYTES`] of them; a hex string
    /// in JSON.
    #[serde(with = "hex")]
    pub seed: Vec<u8>,
    /// Host time as nanoseconds since the Unix epoch when this was sent.
    pub unix_time_ns: u64,
    /// The container's host name: letters, digits, `-` and `.`, at most 64 bytes.
    pub hostname: String,
    /// `/etc/machine-id`: 32 lower-case hex digits (machine-id(5)).
    pub machine_id: String,
    /// `/proc/sys/kernel/random/boot_id` as the container sees it: a UUID as text.
    pub boot_id: String,
}

impl Identity {
    /// Twice the key of the kernel's generator (ChaCha20, 256 bits).
    pub const SEED_BYTES: usize = 64;
}

/// Everything but the seed, which belongs into no log.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("seed", &format_args!("{} bytes", self.seed.len()))
            .field("unix_time_ns", &self.unix_time_ns)
            .field("hostname", &self.hostname)
            .field("machine_id", &self.machine_id)
            .field("boot_id", &self.boot_id)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_of_a_newer_peer_is_unknown_and_not_an_error() {
        let newer = r#"{"type":"migrate","depth":3}"#;
        assert_eq!(
            serde_json::from_str::<HostMessage>(newer).unwrap(),
            HostMessage::Unknown
        );
        let newer = r#"{"type":"thawed","depth":3}"#;
        assert_eq!(
            serde_json::from_str::<GuestMessage>(newer).unwrap(),
            GuestMessage::Unknown
        );
    }

    #[test]
    fn spec_of_a_newer_host_keeps_what_this_agent_knows() {
        let newer = r#"{"type":"start","argv":["/bin/true"],"targetPort":80,"colour":"red"}"#;
        let HostMessage::Start(spec) = serde_json::from_str(newer).unwrap() else {
            panic!("not a start message");
        };
        assert_eq!(
            (spec.argv.as_slice(), spec.target_port),
            (&["/bin/true".to_owned()][..], 80)
        );
    }

    #[test]
    fn ending_for_want_of_memory_says_so_and_any_other_looks_as_it_always_did() {
        let plain = GuestMessage::Exited(Exit::Signal(9).into());
        let text = r#"{"type":"exited","exit":{"signal":9}}"#;
        assert_eq!(serde_json::to_string(&plain).unwrap(), text);
        assert_eq!(serde_json::from_str::<GuestMessage>(text).unwrap(), plain);
        let ending = Ending {
            exit: Exit::Signal(9),
            out_of_memory: true,
        };
        let told = serde_json::to_string(&GuestMessage::Exited(ending)).unwrap();
        let heard = serde_json::from_str::<GuestMessage>(&told).unwrap();
        assert_eq!(heard, GuestMessage::Exited(ending));
        assert!(ending.to_string().contains("OutOfMemory"), "{ending}");
    }

    fn identity() -> Identity {
        Identity {
            seed: (0..64).collect(),
            unix_time_ns: 1_700_000_000_000_000_001,
            hostname: "session-1".into(),
            machine_id: "0123456789abcdef0123456789abcdef".into(),
            boot_id: "c0ffee00-1111-4222-8333-444444444444".into(),
        }
    }

    #[test]
    fn identity_travels_with_its_seed_as_hex() {
        let message = HostMessage::Renew(Box::new(identity()));
        let json = serde_json::to_value(&message).unwrap();
        assert_eq!(json["type"], "renew");
        assert_eq!(
            json["seed"],
            "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\
             202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f"
        );
        assert_eq!(json["unixTimeNs"], 1_700_000_000_000_000_001_u64);
        assert_eq!(
            serde_json::from_value::<HostMessage>(json).unwrap(),
            message
        );
    }

    #[test]
    fn seed_that_is_no_hex_is_an_error_and_one_of_another_length_is_for_the_agent_to_refuse() {
        let with_seed = |seed: &str| {
            let mut json = serde_json::to_value(identity()).unwrap();
            json["seed"] = seed.into();
            serde_json::from_value::<Identity>(json)
        };
        for bad in ["0", "0g", "+1", "\u{e9}"] {
            assert!(with_seed(bad).is_err(), "{bad:?}");
        }
        assert!(with_seed("").unwrap().seed.is_empty());
        assert_eq!(with_seed("fF00").unwrap().seed, [0xff, 0]);
    }

    #[test]
    fn identity_without_a_seed_is_an_error() {
        let mut json = serde_json::to_value(identity()).unwrap();
        json.as_object_mut().unwrap().remove("seed");
        assert!(serde_json::from_value::<Identity>(json).is_err());
    }

    #[test]
    fn seed_is_not_in_the_debug_text() {
        let text = format!("{:?}", HostMessage::Renew(Box::new(identity())));
        assert!(text.contains("seed: 64 bytes"), "{text}");
        assert!(!text.contains("0, 1, 2"), "{text}");
    }
}
