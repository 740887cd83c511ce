//! `cabana appliance`: the process that talks to the world and has no privilege.

use std::os::fd::OwnedFd;
use std::pin::pin;
use std::time::Duration;

use ::worker::setup::first_message;
use anyhow::Context as _;
use tokio::sync::watch;

use crate::config::Checked;
use crate::exit::{Exit, Failure};
use crate::guest::Guest;
use crate::warden::client::WardenClient;
use crate::warden::program;
use crate::warden::protocol::{ApplianceSetup, Ending, Task};
use crate::worker::{Settings, WorkerHost};
use crate::{bench, golden, images, network_filter, privileges, service, telemetry};

/// How long blocking work may go on when everything else has ended.
const BLOCKING_LIMIT: Duration = Duration::from_secs(1);

pub fn run() -> Result<Exit, Failure> {
    let first = first_message::<ApplianceSetup>(c"cabana:applianc")?;
    let Some((socket, setup, fds)) = first else {
        return Ok(Exit::Ok);
    };
    // Before privileges are dropped: the binary need not be readable for everybody.
    let build_id = golden::Host::build_id();
    privileges::drop_to(setup.uid).map_err(|error| Failure::of(Exit::Internal, &error))?;
    telemetry::start();
    make_room_for_descriptors();
    if setup.confined {
        // Before the first thread, so that all of them have it.
        vmm::sandbox::install(&network_filter::PROGRAM)
            .map_err(|error| Failure::of(Exit::Internal, &error))?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::of(Exit::Internal, &error))?;
    let result = runtime.block_on(run_until_stopped(setup, build_id, socket, fds));
    // Not waiting for blocking threads: the store has flushed what it has answered for.
    runtime.shutdown_timeout(BLOCKING_LIMIT);
    match result {
        Ok(exit) => Ok(exit),
        Err(error) => Err(Failure::new(
            Exit::Failed,
            format!("{error:#}").replace('\n', " "),
        )),
    }
}

/// The kernel doubles a process's table of descriptors when it is full, and with several threads lets everybody who opens something
/// wait for that (`expand_fdtable` in fs/file.c waits for RCU): tens of milliseconds in which no claim is answered. As long as there
/// is one thread it costs nothing, so the table is made large enough for two thousand sessions now.
fn make_room_for_descriptors() {
    const DESCRIPTORS: i32 = 16_384;
    // Where the limit is lower, the table stays as it is.
    let _ = rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), DESCRIPTORS - 1);
}

async fn run_until_stopped(
    setup: ApplianceSetup,
    build_id: Option<String>,
    socket: OwnedFd,
    fds: Vec<OwnedFd>,
) -> anyhow::Result<Exit> {
    let warden = WardenClient::start(socket).context("Cannot use the warden's socket")?;
    let ending = warden.ending();
    let mut work = pin!(work(setup, build_id, fds, warden, ending.clone()));
    let result = tokio::select! {
        result = work.as_mut() => result,
        () = warden_gone(ending.clone()) => leave(Exit::Internal),
    };
    if *ending.borrow() == Some(Ending::Detach) && result.is_ok() {
        leave(Exit::Ok);
    }
    result.map(|()| Exit::Ok)
}

/// Ends the process as it is. Sessions are to live on, and whatever is taken apart here might take one with it.
fn leave(exit: Exit) -> ! {
    std::process::exit(exit.code().into())
}

async fn work(
    setup: ApplianceSetup,
    build_id: Option<String>,
    fds: Vec<OwnedFd>,
    warden: WardenClient,
    mut ending: watch::Receiver<Option<Ending>>,
) -> anyhow::Result<()> {
    let ApplianceSetup {
        config, cpu, task, ..
    } = setup;
    let guest = tokio::task::spawn_blocking(Guest::unpack).await??;
    let workers = WorkerHost::new(warden, guest, config.paths.clone(), settings(&config))
        .context("Cannot make the folder of the workers")?;
    match task {
        Task::Serve => {
            let mut fds = fds.into_iter();
            let listener = fds.next().context("The warden sent no listening socket")?;
            let plain = config.tls.plain_listen();
            let plain = plain.map(|_| fds.next().context("The warden sent no socket for HTTP-01"));
            let images =
                images::Cache::open(&config.paths.images).context("Cannot open the image cache")?;
            service::run(
                service::Context {
                    config,
                    listener: listener.into(),
                    plain: plain.transpose()?.map(Into::into),
                    workers,
                    images,
                    host: golden::Host::new(build_id, cpu, packed()),
                },
                ending,
            )
            .await
        }
        Task::Bench(plan) => tokio::select! {
            result = bench::run(&workers, &config.paths, plan) => result,
            _ = ending.wait_for(Option::is_some) => Ok(()),
        },
    }
}

/// What is embedded, in the order that the manifest of a golden wants.
fn packed() -> [&'static [u8]; 4] {
    let [kernel, initramfs, scratch] = Guest::packed();
    [kernel, initramfs, scratch, program::packed()]
}

fn settings(config: &Checked) -> Settings {
    let count = |number| usize::try_from(number).unwrap_or(usize::MAX);
    Settings {
        spares: count(config.spare_workers),
        parallel_starts: count(config.parallel_starts),
    }
}

/// Resolves when the warden is gone. Nothing can be served without it, and the next one needs the port and the store.
async fn warden_gone(mut ending: watch::Receiver<Option<Ending>>) {
    while ending.changed().await.is_ok() {}
}
