//! Tries changed inputs on whatever reads what a stranger wrote: a [`Target`] is a test that begins with good inputs, changes them, and
//! hands them to a closure, which must come back, whatever they are. Why it is no `cargo fuzz`: `vmm/decisions/fuzzing.md`.
//!
//! A target is a test whose name begins with `fuzz_`. In every test run it tries a fixed number of inputs, always the same ones.
//!
//! ```text
//! cargo dev fuzz --only virtqueue --seconds 600
//! ```
//!
//! tries them for as long as one likes, compiled with counters of what was executed, and goes on from inputs that reached something new.
//! What was found stays in `target/fuzz`, and with `--keep` the small set that reaches all of it becomes part of the target's corpus.
//!
//! | variable | what it does |
//! | --- | --- |
//! | `CABANA_FUZZ_SECONDS` | for so long, and not a fixed number of inputs |
//! | `CABANA_FUZZ_SEED` | where the random numbers begin. A failure names the one that has its input as the first |
//! | `CABANA_FUZZ_INPUT` | a file: only this input |
//! | `CABANA_FUZZ_FOUND` | a folder, for the input that is being tried (`current`) and what was found |
//! | `CABANA_FUZZ_KEEP` | with counters: what was found goes into the corpus |
//!
//! Whoever uses this crate has a counting allocator: see [`allocation`].

pub mod allocation;
mod choices;
mod coverage;
mod found;
mod mutate;
mod random;
mod target;

pub use choices::Choices;
pub use random::Random;
pub use target::Target;
