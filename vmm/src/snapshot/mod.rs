//! A paused microVM as files, and back.

mod bounded;
pub(crate) mod envelope;
pub mod format;
pub mod inspect;
pub mod state;

pub use bounded::bounded;
pub use envelope::SnapshotError;
pub use inspect::{Inspection, inspect};
