//! What the front door takes of the host, whatever goes through it.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, SizeHint};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

use super::*;

const POOL: &str = "door";
const HTTP_1: http::Version = http::Version::HTTP_11;
const MIB: u64 = 1 << 20;
const BODY_BYTES: u64 = 1 << 30;
/// A thirty-second of it: buffers of a connection, of its TLS and of its stream, and what the allocator keeps of them, which was
/// 17 MiB on the way down when this was written.
const MOST_OF_A_BODY: u64 = 32 * MIB;
const MESSAGE_BYTES: usize = 4 << 20;
/// Of [`MESSAGE_BYTES`]: 100 MB in all.
const MESSAGES: u8 = 25;
/// Messages that are on their way while the first of them comes back.
const AHEAD: u8 = 3;
const IDLE: usize = 10_000;
/// Handshakes at a time.
const SHAKING: usize = 64;
/// Of a connection that does nothing: its task, its TLS, and no buffer of a body.
const MOST_OF_A_CONNECTION: u64 = 64 << 10;

/// So many bytes, none of which is kept.
struct Zeros(u64);

impl Body for Zeros {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        static PIECE: [u8; 64 << 10] = [0; 64 << 10];
        let piece = self.0.min(PIECE.len() as u64);
        self.0 -= piece;
        let length = usize::try_from(piece).unwrap();
        Poll::Ready((length > 0).then(|| Ok(Frame::data(Bytes::from_static(&PIECE[..length])))))
    }

    fn is_end_stream(&self) -> bool {
        self.0 == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0)
    }
}

/// The most that the appliance had while `work` was going on, over what it had before.
async fn peak<T>(native: &Native, work: impl Future<Output = T>) -> (T, u64) {
    let before = native.memory();
    let ended = AtomicBool::new(false);
    let watch = async {
        let mut most = 0;
        while !ended.load(Ordering::Relaxed) {
            most = most.max(native.memory());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        most
    };
    let work = async {
        let done = work.await;
        ended.store(true, Ordering::Relaxed);
        done
    };
    let (done, most) = tokio::join!(work, watch);
    (done, most.saturating_sub(before))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gibibyte_goes_up_and_down_without_being_held() {
    let Some(native) = Native::start("gibibyte").await else {
        return;
    };
    native.pool(POOL, 1, 0).await;
    let client = native.client().await;
    client.get(POOL, "/", "user").await.unwrap();
    let upload = client.stream(
        HTTP_1,
        "POST",
        POOL,
        "/upload?identifier=user",
        Zeros(BODY_BYTES),
    );
    let (answer, up) = peak(&native, upload).await;
    let answer = answer.into_body().collect().await.unwrap().to_bytes();
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!(answer["bytes"], BODY_BYTES);
    let download = async {
        let tail = format!("/download?bytes={BODY_BYTES}&identifier=user");
        let mut answer = client.stream(HTTP_1, "GET", POOL, &tail, Zeros(0)).await;
        let mut bytes = 0;
        while let Some(frame) = answer.frame().await {
            bytes += frame.unwrap().data_ref().map_or(0, Bytes::len) as u64;
        }
        bytes
    };
    let (bytes, down) = peak(&native, download).await;
    assert_eq!(bytes, BODY_BYTES);
    println!(
        "1 GiB took {} KiB on its way up, {} KiB on its way down",
        up >> 10,
        down >> 10
    );
    assert!(
        up < MOST_OF_A_BODY && down < MOST_OF_A_BODY,
        "{up} up, {down} down"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn websocket_brings_100_mb_back_without_holding_them() {
    let Some(native) = Native::start("websocket").await else {
        return;
    };
    native.pool(POOL, 1, 0).await;
    let client = native.client().await;
    client.get(POOL, "/", "user").await.unwrap();
    // Each differs from the others, and no two bytes beside each other are the same.
    let message = |number: u8| -> Bytes {
        let bytes = (0..=250).cycle().take(MESSAGE_BYTES);
        bytes.map(|byte: u8| byte ^ number).collect()
    };
    let echo = async {
        let socket = client.websocket(POOL, "/ws?identifier=user").await;
        let (mut sink, mut stream) = socket.split();
        let (sent, mut on_its_way) = tokio::sync::mpsc::channel(AHEAD.into());
        let send = async move {
            for number in 0..MESSAGES {
                sent.send(number).await.unwrap();
                sink.send(Message::Binary(message(number))).await.unwrap();
            }
            sink
        };
        let receive = async {
            let mut back = 0;
            while let Some(number) = on_its_way.recv().await {
                let got = tokio::time::timeout(DEADLINE, stream.next()).await;
                let got = got.expect("no echo").unwrap().unwrap().into_data();
                assert!(
                    got == message(number),
                    "message {number} is not what was sent"
                );
                back += got.len();
            }
            back
        };
        let (mut sink, back) = tokio::join!(send, receive);
        sink.close().await.unwrap();
        let last = tokio::time::timeout(DEADLINE, stream.next()).await;
        assert!(last.expect("no farewell").unwrap().unwrap().is_close());
        back
    };
    let (back, most) = peak(&native, echo).await;
    assert_eq!(back, MESSAGE_BYTES * usize::from(MESSAGES));
    println!(
        "a WebSocket of {back} bytes each way took {} KiB",
        most >> 10
    );
    assert!(most < MOST_OF_A_BODY, "{most}");
    let sessions = native.sessions(POOL).await;
    assert_eq!(sessions[0]["openRequests"], 0, "{sessions}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_idle_connections_are_cheap_and_one_more_is_served() {
    let Some(native) = Native::start("idle_connections").await else {
        return;
    };
    native.pool(POOL, 1, 0).await;
    let client = Arc::new(native.client().await);
    client.get(POOL, "/", "user").await.unwrap();
    let before = native.memory();
    let mut shaking = JoinSet::new();
    for _ in 0..SHAKING {
        let client = Arc::clone(&client);
        shaking.spawn(async move { client.prepare(IDLE / SHAKING).await });
    }
    shaking.join_all().await;
    let count = (IDLE / SHAKING * SHAKING) as u64;
    let each = native.memory().saturating_sub(before) / count;
    println!("{count} idle connections, {each} bytes of the appliance's memory each");
    assert!(each < MOST_OF_A_CONNECTION, "{each} bytes each");
    let answer = client.get(POOL, "/", "user").await.unwrap();
    assert_eq!(answer.status, 200);
}
