//! Workers: one process per microVM.
//!
//! `handle` is the appliance's side: it makes what a worker needs, asks the warden for one and
//! speaks with the agent in its guest. `process` is the worker itself, `cabana worker`. `spec` is
//! what both and the warden agree on.

mod console;
mod control;
mod exit;
mod handle;
pub mod image;
pub mod process;
pub mod spec;
mod supervisor;
#[cfg(test)]
mod tests;

pub use handle::{ConnectError, LaunchRequest, Worker, WorkerEvent, WorkerHost};
