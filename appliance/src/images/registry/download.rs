//! One blob from its registry into a file: digest and size are checked while it streams.

use std::fs::File;

use super::blobs::{Blobs, Finished, Found, Part};
use super::client::Repository;
use super::patience::{Asking, Patience, Trouble};
use super::platform::Wanted;
use super::progress::{Progress, Reporter};
use crate::images::error::ImageError;

/// Bytes that are written and hashed at once, on a thread that may block.
const BATCH_BYTES: usize = 1 << 20;

/// Downloads `wanted` from the first of `repositories` that gives it, unless it is here.
pub async fn fetch(
    blobs: &Blobs,
    repositories: &[Repository],
    wanted: &Wanted,
    patience: &Patience,
    reporter: &Reporter,
) -> Result<File, ImageError> {
    let mut part = match blobs.find(wanted).await? {
        Found::Whole(file) => {
            report(reporter, wanted, wanted.bytes);
            return Ok(file);
        }
        Found::Part(part) => part,
    };
    let mut asking = Asking::new(repositories, *patience)?;
    // A registry whose layer is shorter than its manifest says would be begun again for ever.
    let mut may_restart = true;
    loop {
        report(reporter, wanted, part.length());
        let before = part.length();
        let (rest, trouble) = advance(part, asking.place, reporter).await;
        let Some(rest) = rest else {
            return Err(trouble.map_or_else(lost, Trouble::into_error));
        };
        part = rest;
        let trouble = match trouble {
            None => match part.finish().await? {
                Finished::Whole(file) => return Ok(file),
                Finished::Wrong {
                    part: empty,
                    resumed,
                } => {
                    part = empty;
                    let error = ImageError::corrupt(format!(
                        "What {} sent as layer {} has another digest",
                        asking.place.host(),
                        wanted.digest
                    ));
                    // What an earlier attempt left may be to blame.
                    if resumed {
                        Trouble::FromTheStart
                    } else {
                        Trouble::Lasting(error)
                    }
                }
            },
            Some(trouble) => trouble,
        };
        if part.length() > before {
            asking.progressed();
        }
        let reason = match &trouble {
            Trouble::FromTheStart => "it begins again".to_owned(),
            Trouble::Passing { error, .. } | Trouble::Lasting(error) => error.message.clone(),
        };
        tracing::info!(layer = %wanted.digest, "layer failed: {reason}");
        if matches!(trouble, Trouble::FromTheStart) && before > 0 && may_restart {
            may_restart = false;
            part = part.restart().await?;
        } else {
            asking.failed(trouble).await?;
        }
        let digest = wanted.digest.clone();
        reporter.report(Progress::Retry { digest, reason });
    }
}

fn lost() -> ImageError {
    ImageError::worker_failed("A download was lost")
}

fn report(reporter: &Reporter, wanted: &Wanted, bytes: u64) {
    let (digest, total) = (wanted.digest.clone(), wanted.bytes);
    reporter.report(Progress::Layer {
        digest,
        bytes,
        total,
    });
}

/// Goes on until every byte is here, or as far as it goes. The part is gone only if this host failed.
async fn advance(
    mut part: Box<Part>,
    repository: &Repository,
    reporter: &Reporter,
) -> (Option<Box<Part>>, Option<Trouble>) {
    if part.is_complete() {
        return (Some(part), None);
    }
    let mut stream = match repository.blob(&part.wanted().digest, part.length()).await {
        Ok(stream) => stream,
        Err(trouble) => return (Some(part), Some(trouble)),
    };
    if stream.from != part.length() {
        if stream.from != 0 {
            return (Some(part), Some(Trouble::FromTheStart));
        }
        part = match part.restart().await {
            Ok(part) => part,
            Err(error) => return (None, Some(error.into())),
        };
    }
    let mut batch = Vec::with_capacity(BATCH_BYTES);
    loop {
        let (more, end) = match stream.next().await {
            Ok(Some(bytes)) => (bytes, None),
            Ok(None) => (bytes::Bytes::new(), Some(None)),
            Err(trouble) => (bytes::Bytes::new(), Some(Some(trouble))),
        };
        let (wanted, host) = (part.wanted().clone(), repository.host());
        if part.length() + batch.len() as u64 + more.len() as u64 > wanted.bytes {
            let message = format!(
                "{host} sent more than the {} bytes of layer {}",
                wanted.bytes, wanted.digest
            );
            return (
                Some(part),
                Some(Trouble::Lasting(ImageError::corrupt(message))),
            );
        }
        batch.extend_from_slice(&more);
        if batch.len() >= BATCH_BYTES || (end.is_some() && !batch.is_empty()) {
            part = match part.append(std::mem::take(&mut batch)).await {
                Ok(part) => part,
                Err(error) => return (None, Some(error.into())),
            };
            report(reporter, &wanted, part.length());
        }
        match end {
            None => {}
            Some(None) if !part.is_complete() => {
                let (length, total) = (part.length(), wanted.bytes);
                let message = format!(
                    "{host} sent {length} of the {total} bytes of layer {}",
                    wanted.digest
                );
                return (Some(part), Some(Trouble::passing(message)));
            }
            Some(trouble) => return (Some(part), trouble),
        }
    }
}
