//! `cabana-worker`: started by `cabana serve`, which has it inside, and by nobody else.
#![forbid(unsafe_code)]

mod process;

use std::io::Write as _;
use std::process::ExitCode;

use worker::exit::Failure;

fn main() -> ExitCode {
    let exit = process::run().unwrap_or_else(|Failure { exit, line }| {
        // stderr may be closed; there is no better place to say it.
        let _ = writeln!(std::io::stderr(), "cabana: {line}");
        exit
    });
    exit.into()
}
