//! `/files/<path>`: files below the data directory.

use std::io;
use std::path::{Component, Path, PathBuf};

use bytes::BytesMut;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::CONTENT_LENGTH;
use hyper::{Method, Request, Response, StatusCode};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::query;
use crate::reply::{self, BoxError, Reply};

const CHUNK_BYTES: usize = 64 * 1024;

pub async fn answer(request: Request<Incoming>, data: &Path, name: &str) -> Reply {
    let Some(path) = below(data, name) else {
        return reply::problem(
            StatusCode::BAD_REQUEST,
            "the path leaves the data directory",
        );
    };
    let done = match *request.method() {
        Method::GET => get(&path).await,
        Method::PUT => {
            let copies = query::number(&request, "copies", 0_u32);
            match copies {
                Ok(copies) => put(&path, request.into_body(), copies).await,
                Err(refusal) => return *refusal,
            }
        }
        Method::DELETE => tokio::fs::remove_file(&path)
            .await
            .map(|()| reply::empty(StatusCode::NO_CONTENT))
            .map_err(Into::into),
        _ => return reply::problem(StatusCode::METHOD_NOT_ALLOWED, "GET, PUT or DELETE"),
    };
    done.unwrap_or_else(|e: BoxError| {
        let missing = e
            .downcast_ref::<io::Error>()
            .is_some_and(|e| e.kind() == io::ErrorKind::NotFound);
        let status = if missing {
            StatusCode::NOT_FOUND
        } else {
            StatusCode::INTERNAL_SERVER_ERROR
        };
        reply::problem(status, &format!("{}: {e}", path.display()))
    })
}

/// `data` joined with a name that consists of plain components only.
fn below(data: &Path, name: &str) -> Option<PathBuf> {
    let name = Path::new(name);
    let plain = name
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    (plain && name.components().next().is_some()).then(|| data.join(name))
}

async fn get(path: &Path) -> Result<Reply, BoxError> {
    let file = File::open(path).await?;
    let length = file.metadata().await?.len();
    let chunks = stream::unfold(Some(file), |file| async {
        let mut file = file?;
        let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
        match file.read_buf(&mut chunk).await {
            Ok(0) => None,
            Ok(_) => Some((Ok(Frame::data(chunk.freeze())), Some(file))),
            Err(e) => Some((Err(BoxError::from(e)), None)),
        }
    });
    let mut reply = Response::new(StreamBody::new(chunks.boxed()).boxed_unsync());
    reply.headers_mut().insert(CONTENT_LENGTH, length.into());
    Ok(reply)
}

/// With copies beside it, all of them are on the disk when the answer comes.
async fn put(path: &Path, mut body: Incoming, copies: u32) -> Result<Reply, BoxError> {
    if let Some(parent) = path.parent() {
        tokio::fs::create_dir_all(parent).await?;
    }
    let mut file = File::create(path).await?;
    while let Some(frame) = body.frame().await {
        if let Some(data) = frame?.data_ref() {
            file.write_all(data).await?;
        }
    }
    file.flush().await?;
    for copy in 0..copies {
        tokio::fs::copy(path, path.with_extension(copy.to_string())).await?;
    }
    if copies > 0 {
        // All of the system: a container's own file system may take no notice of `fsync`.
        tokio::task::spawn_blocking(rustix::fs::sync).await?;
    }
    Ok(reply::empty(StatusCode::CREATED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_the_data_directory_are_refused() {
        let data = Path::new("/data");
        assert_eq!(below(data, "a/b.txt"), Some(PathBuf::from("/data/a/b.txt")));
        for name in ["", "/etc/passwd", "../etc/passwd", "a/../../b"] {
            assert_eq!(below(data, name), None, "{name:?}");
        }
    }
}
