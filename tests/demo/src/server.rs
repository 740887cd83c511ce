//! Accepts connections and finds the handler of a request.

use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};

use crate::health::{self, Health};
use crate::recorder::{Recorder, Recording};
use crate::reply::{self, Reply};
use crate::{echo, files, process, query, random, stamp, streams, system, websocket};

/// What the handlers need to know of the server.
struct Server {
    data: PathBuf,
    port: u16,
    health: Arc<Health>,
}

/// Serves until accepting fails for a reason that will not pass.
pub async fn serve(listener: TcpListener, data: PathBuf, health: Arc<Health>) -> io::Result<()> {
    let port = listener.local_addr()?.port();
    let server = Arc::new(Server { data, port, health });
    loop {
        let (stream, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            // The client was gone before it was accepted: its problem, not the server's.
            Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(e) => return Err(e),
        };
        tokio::spawn(connection(stream, Arc::clone(&server)));
    }
}

async fn connection(stream: TcpStream, server: Arc<Server>) {
    let (io, recording) = Recorder::new(stream);
    let service = service_fn(move |request| {
        let (server, recording) = (Arc::clone(&server), recording.clone());
        async move { Ok::<_, Infallible>(answer(request, &server, &recording).await) }
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

async fn answer(request: Request<Incoming>, server: &Server, recording: &Recording) -> Reply {
    let path = request.uri().path().to_owned();
    let get = request.method() == Method::GET;
    let post = request.method() == Method::POST;
    match path.as_str() {
        "/" if get => reply::text("Hello from Cabana\n"),
        "/echo" => echo::echo(request).await,
        path if path == "/raw" || path.starts_with("/raw/") => reply::bytes(recording.head()),
        "/headers" if get => reply::json(&echo::headers_as_object(request.headers())),
        "/healthz" if get => server.health.answer(),
        "/healthz" if post => server.health.set(&request),
        "/hang" if post => health::hang(),
        "/env" if get => process::environment(),
        "/id" if get => process::identity(),
        "/random" if get => random::random(&request),
        "/stamp" => stamp::answer(request).await,
        "/clock" if get => system::clock(),
        "/statvfs" if get => system::file_system(&request),
        "/isn" if get => system::initial_sequence(&request, server.port),
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
            Some(name) => files::answer(request, &server.data, &query::percent_decode(name)).await,
            None => reply::problem(
                StatusCode::NOT_FOUND,
                "no such endpoint, or not with this method",
            ),
        },
    }
}
