//! `/ws`: sends every text and binary message back.

use futures_util::{SinkExt, StreamExt};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::reply::{self, Reply};

pub fn echo(mut request: Request<Incoming>) -> Reply {
    let asks = request
        .headers()
        .get(UPGRADE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    let key = request
        .headers()
        .get(SEC_WEBSOCKET_KEY)
        .map(|key| derive_accept_key(key.as_bytes()));
    let Some(accept) = key
        .filter(|_| asks)
        .and_then(|accept| HeaderValue::try_from(accept).ok())
    else {
        return reply::problem(
            StatusCode::BAD_REQUEST,
            "this endpoint speaks WebSocket only",
        );
    };
    tokio::spawn(talk(hyper::upgrade::on(&mut request)));
    let mut reply = reply::empty(StatusCode::SWITCHING_PROTOCOLS);
    let headers = reply.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    reply
}

async fn talk(upgrade: OnUpgrade) {
    match upgrade.await {
        Ok(upgraded) => {
            if let Err(e) = send_back(upgraded).await {
                eprintln!("demo: WebSocket ended: {e}");
            }
        }
        Err(e) => eprintln!("demo: WebSocket never began: {e}"),
    }
}

async fn send_back(upgraded: Upgraded) -> Result<(), tungstenite::Error> {
    let mut socket =
        WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
    while let Some(message) = socket.next().await {
        let message = message?;
        if message.is_text() || message.is_binary() {
            socket.send(message).await?;
        }
    }
    Ok(())
}
