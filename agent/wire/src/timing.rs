//! Times that host and guest must agree on. Both sides compile these lines, so they cannot differ.

use std::time::Duration;

/// How long a container may take to end after its stop signal, unless a pool says otherwise.
pub const STOP_GRACE: Duration = Duration::from_secs(5);
/// How long the agent then needs to sync the disk and power off.
pub const AGENT_POWEROFF_GRACE: Duration = Duration::from_secs(3);
/// After this the host stops waiting for an orderly end and kills the worker.
pub const HOST_KILL_AFTER: Duration = Duration::from_secs(10);

const _: () = assert!(
    HOST_KILL_AFTER.as_millis() > STOP_GRACE.as_millis() + AGENT_POWEROFF_GRACE.as_millis(),
    "the host must wait longer than the guest's own grace periods"
);
