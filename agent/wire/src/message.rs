//! The messages of the control stream.

use serde::{Deserialize, Serialize};

/// What the host tells the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum HostMessage {
    /// Start the container. Sent once; a second one is refused with [`GuestMessage::Failed`].
    Start(Box<ContainerSpec>),
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
    Exited {
        /// How it ended.
        exit: Exit,
    },
    /// The container could not be started. [`Exited`](Self::Exited) follows with the exit code that a shell
    /// would give: 125 (cannot be set up), 126 (not executable) or 127 (not found). It does not
    /// follow when the guest itself could not be prepared, or when a second `Start` was refused.
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

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit status {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
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
    /// The guest's host name.
    pub hostname: String,
    /// Host time as nanoseconds since the Unix epoch when this was sent; 0 leaves the clock alone.
    pub unix_time_ns: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_of_a_newer_peer_is_unknown_and_not_an_error() {
        let newer = r#"{"type":"freeze","depth":3}"#;
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
}
