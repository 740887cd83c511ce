//! The whole import, in process: what layers make, what archives are refused, what the cache keeps.

mod cache;
pub mod fuzz;
mod hostile;
mod import;
mod semantics;
mod umoci;
