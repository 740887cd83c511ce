//! Workers: one process per microVM.
//!
//! `host` is the appliance's side: it keeps shells of workers ready (`shell`, `spares`), makes a
//! guest of one when somebody needs it (`launch`), and leads the guest to where it shall be
//! (`supervisor`, by the rules of `progress`). `handle` is what its owner holds. `process` is the
//! worker itself, `cabana worker`, which does what `orders` say. `spec` is what all of them and
//! the warden agree on.

mod console;
mod control;
mod exit;
mod handle;
mod host;
mod identity;
pub mod image;
mod launch;
pub mod orders;
pub mod process;
mod progress;
mod shell;
mod spares;
pub mod spec;
mod steps;
mod supervisor;
#[cfg(test)]
mod tests;
mod turns;

pub use handle::{ConnectError, Worker, WorkerEvent};
pub use host::WorkerHost;
pub use launch::{LaunchRequest, Purpose, SaveFiles, Settings, Snapshot, Source};
