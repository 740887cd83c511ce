//! The administration socket.

use std::convert::Infallible;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Admin;
use crate::front::listener::{DRAIN_DEADLINE, stopped};

const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The socket could not be made.
#[derive(Debug, thiserror::Error)]
#[error("Cannot make the administration socket {path}")]
pub struct AdminSocketError {
    path: PathBuf,
    source: io::Error,
}

/// Makes the socket, for its owner only. It takes its name when nobody else can open it any more, and
/// takes the place of one that an earlier run left: the lock on the store says that there is no other.
pub fn bind(path: &Path) -> Result<UnixListener, AdminSocketError> {
    let failed = |source| AdminSocketError {
        path: path.to_owned(),
        source,
    };
    let unfinished = path.with_extension("new");
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&unfinished).map_err(failed)?;
    fs::set_permissions(&unfinished, Permissions::from_mode(0o600)).map_err(failed)?;
    fs::rename(&unfinished, path).map_err(failed)?;
    Ok(listener)
}

/// Serves until `shutdown` becomes true, then lets open requests finish within the deadline.
pub async fn serve(listener: UnixListener, admin: Arc<Admin>, mut shutdown: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, Arc::clone(&admin), shutdown.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on the administration socket");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            () = stopped(&mut shutdown) => break,
        }
    }
    let drained = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(DRAIN_DEADLINE, drained).await;
}

async fn connection(stream: UnixStream, admin: Arc<Admin>, mut shutdown: watch::Receiver<bool>) {
    let service = service_fn(move |request| {
        let admin = Arc::clone(&admin);
        async move { Ok::<_, Infallible>(admin.handle(request).await) }
    });
    let mut serving = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
    );
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = stopped(&mut shutdown) => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an administration connection ended with an error");
    }
}
