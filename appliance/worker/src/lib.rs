//! What a worker is told and what it says: all that it shares with the warden, which starts it, and the appliance, which orders it about.
//!
//! The process itself is `main.rs`. It is an executable of its own inside the binary `cabana`; see `decisions/worker-executable.md` of the
//! appliance for why.
#![deny(unsafe_code)]

pub mod channel;
pub mod exit;
#[expect(
    unsafe_code,
    reason = "neither the standard library nor rustix knows these system calls"
)]
pub mod landlock;
pub mod limits;
pub mod orders;
pub mod privileges;
pub mod room;
pub mod setup;
pub mod spec;
#[expect(
    unsafe_code,
    reason = "the standard library cannot start a process in a control group"
)]
pub mod start;
pub mod telemetry;
