//! Accepts connections and finds the handler of a request.

use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};

use crate::recorder::{Recorder, Recording};
use crate::reply::{self, Reply};
use crate::{echo, files, process, query, streams, websocket};

/// Serves until accepting fails for a reason that will not pass.
pub async fn serve(listener: TcpListener, data: PathBuf) -> io::Result<()> {
    let data: Arc<Path> = data.into();
    loop {
        let (stream, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            // The client was gone before it was accepted: its problem, not the server's.
            Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(e) => return Err(e),
        };
        tokio::spawn(connection(stream, Arc::clone(&data)));
    }
}

async fn connection(stream: TcpStream, data: Arc<Path>) {
    let (io, recording) = Recorder::new(stream);
    let service = service_fn(move |request| {
        let (data, recording) = (Arc::clone(&data), recording.clone());
        async move { Ok::<_, Infallible>(answer(request, &data, &recording).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        // A client that has sent everything and closed its half still gets its answer.
        .half_close(true)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades()
        .await;
    if let Err(e) = served {
        eprintln!("demo: connection ended: {e}");
    }
}

async fn answer(request: Request<Incoming>, data: &Path, recording: &Recording) -> Reply {
    let path = request.uri().path().to_owned();
    let get = request.method() == Method::GET;
    let post = request.method() == Method::POST;
    match path.as_str() {
        "/" if get => reply::text("Hello from Cabana\n"),
        "/echo" => echo::echo(request).await,
        path if path == "/raw" || path.starts_with("/raw/") => reply::bytes(recording.head()),
        "/headers" if get => reply::json(&echo::headers_as_object(request.headers())),
        "/env" if get => process::environment(),
        "/id" if get => process::identity(),
        "/random" if get => process::random(),
        "/exec" if post => process::exec(request).await,
        "/exit" if post => process::exit(&request),
        "/crash" if post => process::crash(&request),
        "/power" if post => process::power(&request),
        "/stdout" if get => process::stdout(&request),
        "/sse" if get => streams::events(&request),
        "/upload" if post => streams::upload(request).await,
        "/download" if get => streams::download(&request),
        "/echo-stream" if post => streams::echo(request),
        "/slow" if get => streams::slow(&request).await,
        "/ws" if get => websocket::echo(request),
        _ => match path.strip_prefix("/files/") {
            Some(name) => files::answer(request, data, &query::percent_decode(name)).await,
            None => reply::problem(
                StatusCode::NOT_FOUND,
                "no such endpoint, or not with this method",
            ),
        },
    }
}
