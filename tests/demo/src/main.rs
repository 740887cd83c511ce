//! The well-known guest: a small HTTP server that the end-to-end tests and the tour talk to.
//!
//! It listens on loopback only, because that is where a session's port is looked for and because
//! `/exec` must not be reachable from a network when somebody starts the program by hand.
//!
//! # Environment
//! - `PORT`: the port to listen on, 8080 by default.
//! - `DATA_DIR`: where `/files` keeps its files, `/data` by default.
//! - `DEMO_DELAY_MS`: listen only after so many milliseconds, like a server that is slow to start.
//! - `DEMO_HEALTHY_AFTER_MS`: `/healthz` answers 503 for so many milliseconds.
//! - `DEMO_HEALTH_PORT`: answer on this port, too.
//! - `EXIT_AT_START`: print three lines to stderr and exit with this status, like a broken image.
//!
//! # Arguments
//! With arguments it is no server but a tenant that takes what it can get, see `bomb.rs`.

mod bomb;
mod echo;
mod files;
mod health;
mod pattern;
mod process;
mod query;
mod random;
mod recorder;
mod reply;
mod server;
mod stamp;
mod streams;
mod system;
mod vdso;
mod vsock;
mod websocket;

use std::env;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use health::Health;

const DEFAULT_PORT: u16 = 8080;
const DEFAULT_DATA_DIR: &str = "/data";

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if !arguments.is_empty() {
        return bomb::run(&arguments).unwrap_or_else(|| {
            eprintln!("demo: no such command: {}", arguments.join(" "));
            ExitCode::FAILURE
        });
    }
    match run().await {
        Ok(code) => code,
        Err(message) => {
            eprintln!("demo: {message}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<ExitCode, String> {
    if let Some(code) = number::<u8>("EXIT_AT_START")? {
        eprintln!("demo: reading the settings");
        eprintln!("demo: the settings are no good");
        eprintln!("demo: giving up with status {code}");
        return Ok(ExitCode::from(code));
    }
    stamp::make();
    // Before the delay, so that a server that is still starting can be stopped too.
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|e| format!("cannot watch for SIGTERM: {e}"))?;
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(|e| format!("cannot watch for SIGINT: {e}"))?;
    tokio::select! {
        result = listen() => result.map(|()| ExitCode::SUCCESS),
        _ = terminate.recv() => { println!("demo: ended by SIGTERM"); Ok(ExitCode::SUCCESS) }
        _ = interrupt.recv() => { println!("demo: ended by SIGINT"); Ok(ExitCode::SUCCESS) }
    }
}

async fn listen() -> Result<(), String> {
    if let Some(delay) = number::<u64>("DEMO_DELAY_MS")? {
        tokio::time::sleep(Duration::from_millis(delay)).await;
    }
    let port = number::<u16>("PORT")?.unwrap_or(DEFAULT_PORT);
    let data =
        env::var_os("DATA_DIR").map_or_else(|| PathBuf::from(DEFAULT_DATA_DIR), PathBuf::from);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .await
        .map_err(|e| format!("cannot listen on 127.0.0.1:{port}: {e}"))?;
    // Port 0 means any port, so say which one it became.
    let address = listener
        .local_addr()
        .map_err(|e| format!("cannot tell the address: {e}"))?;
    println!("demo: listening on {address}");
    let healthy_after = number::<u64>("DEMO_HEALTHY_AFTER_MS")?.unwrap_or(0);
    let health = Health::new(Duration::from_millis(healthy_after));
    if let Some(port) = number::<u16>("DEMO_HEALTH_PORT")? {
        let other = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .await
            .map_err(|e| format!("cannot listen on 127.0.0.1:{port}: {e}"))?;
        let address = other
            .local_addr()
            .map_err(|e| format!("cannot tell the address: {e}"))?;
        println!("demo: listening on {address}, too");
        tokio::spawn(server::serve(other, data.clone(), Arc::clone(&health)));
    }
    server::serve(listener, data, health)
        .await
        .map_err(|e| format!("cannot accept: {e}"))
}

fn number<T: FromStr>(name: &str) -> Result<Option<T>, String> {
    let Ok(text) = env::var(name) else {
        return Ok(None);
    };
    text.parse()
        .map(Some)
        .map_err(|_| format!("{name} is not a number in range: {text:?}"))
}
