//! The promises of the whole, one module each. See `e2e::harness` for how they are run.
#![allow(
    clippy::unwrap_used,
    reason = "everything here is a test; a panic is how it fails"
)]

mod auth;
mod bad_input;
mod doctor;
mod first_light;
mod forwarding;
mod guest_end;
mod lifecycle;
mod real_image;
mod sources;

use std::process::ExitCode;

fn main() -> ExitCode {
    e2e::harness::main(&[
        doctor::TESTS,
        bad_input::TESTS,
        first_light::TESTS,
        auth::TESTS,
        forwarding::TESTS,
        guest_end::TESTS,
        real_image::TESTS,
        sources::TESTS,
        lifecycle::TESTS,
    ])
}
