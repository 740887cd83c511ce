//! The promises of the whole, one module each. See `e2e::harness` for how they are run.
#![allow(
    clippy::unwrap_used,
    reason = "everything here is a test; a panic is how it fails"
)]

mod audit;
mod auth;
mod bad_input;
mod bombs;
mod calls;
mod certificate;
mod confinement;
mod doctor;
mod drain;
mod filters;
mod first_light;
mod forks_clock;
mod forks_golden;
mod forks_many;
mod forks_state;
mod forks_unique;
mod forwarding;
mod guest_end;
#[expect(dead_code, reason = "its rules are looked at; nobody here installs it")]
#[path = "../../appliance/src/worker/image_filter.rs"]
mod image_filter;
mod image_removal;
mod inside;
mod kill_appliance;
mod kill_images;
mod kill_workers;
mod lifecycle;
mod probes;
mod rates;
mod ready;
mod real_image;
mod registry;
mod restart;
mod service;
mod sources;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut tests = vec![
        audit::TESTS,
        doctor::TESTS,
        bad_input::TESTS,
        confinement::TESTS,
        first_light::TESTS,
        auth::TESTS,
        certificate::TESTS,
        forwarding::TESTS,
        guest_end::TESTS,
        inside::TESTS,
        real_image::TESTS,
        filters::TESTS,
        forks_unique::TESTS,
        forks_clock::TESTS,
        forks_state::TESTS,
        forks_golden::TESTS,
        forks_many::TESTS,
        probes::TESTS,
        rates::TESTS,
        ready::TESTS,
        kill_workers::TESTS,
        kill_images::TESTS,
        image_removal::TESTS,
        kill_appliance::TESTS,
        registry::TESTS,
        sources::TESTS,
        lifecycle::TESTS,
        restart::TESTS,
        drain::TESTS,
        service::TESTS,
    ];
    tests.extend(bombs::TESTS);
    e2e::harness::main(&tests)
}
