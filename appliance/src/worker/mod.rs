//! Workers: one process per microVM.
//!
//! `host` is the appliance's side: it keeps shells of workers ready (`shell`, `spares`), makes a
//! guest of one when somebody needs it (`launch`), and leads the guest to where it shall be
//! (`supervisor`, by the rules of `progress`). `handle` is what its owner holds, `notes` and `leftovers` are what
//! a later appliance finds. The
//! process itself is an executable of its own, the crate `worker`, and does what `orders` say.

mod console;
mod control;
mod exit;
mod handle;
mod host;
mod identity;
pub mod image;
mod image_filter;
mod intake;
mod launch;
mod leftovers;
mod notes;
pub mod orders;
mod progress;
mod shell;
mod spares;
pub mod spec;
mod steps;
mod supervisor;
#[cfg(test)]
mod tests;
mod turns;

pub use console::{Entry, Log, LogReader, tame};
pub use handle::{ConnectError, Worker, WorkerEvent};
pub use host::WorkerHost;
pub use launch::{
    LaunchRequest, Purpose, SaveFiles, Settings, Snapshot, Source, Urgency, WorkingSet,
};
pub use leftovers::Leftover;
pub use notes::Noted;
