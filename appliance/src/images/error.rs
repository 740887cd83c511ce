//! Why an image could not be imported.
//!
//! The error crosses a process boundary (image worker to appliance), so it is plain data: a stable
//! code for programs and one line for people. Each line says what is wrong and, where something
//! can be done about it, what.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

/// Stable words; clients match on them.
#[expect(
    clippy::enum_variant_names,
    reason = "the names are the words that clients see, prefix included"
)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageErrorCode {
    /// No image of that name, reference or digest.
    ImageNotFound,
    /// What was given is not the name of an image.
    ImageNameInvalid,
    /// The registry wants other credentials, or any.
    ImagePullUnauthorized,
    /// The registry does not answer, or not as a registry does.
    ImageRegistryUnreachable,
    /// The archive, a manifest or a layer is damaged, truncated or does not match its digest.
    ImageCorrupt,
    /// The image exists, but not for this host's platform.
    ImagePlatformUnsupported,
    /// A limit is exceeded.
    ImageTooLarge,
    /// Well formed, but uses something this build does not implement.
    ImageUnsupported,
    /// It cannot be removed: a pool, a session or an import needs it.
    ImageInUse,
    /// The host could not read or write its own files (disk full, for example).
    ImageStorageFailed,
    /// The image worker died without an answer.
    ImageWorkerFailed,
}

impl ImageErrorCode {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ImageNotFound => "ImageNotFound",
            Self::ImageNameInvalid => "ImageNameInvalid",
            Self::ImagePullUnauthorized => "ImagePullUnauthorized",
            Self::ImageRegistryUnreachable => "ImageRegistryUnreachable",
            Self::ImageCorrupt => "ImageCorrupt",
            Self::ImagePlatformUnsupported => "ImagePlatformUnsupported",
            Self::ImageTooLarge => "ImageTooLarge",
            Self::ImageUnsupported => "ImageUnsupported",
            Self::ImageInUse => "ImageInUse",
            Self::ImageStorageFailed => "ImageStorageFailed",
            Self::ImageWorkerFailed => "ImageWorkerFailed",
        }
    }
}

impl fmt::Display for ImageErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One line and a code. The cause is already in the line: a `source()` would not survive the
/// way from the image worker to the appliance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ImageError {
    pub code: ImageErrorCode,
    pub message: String,
}

impl ImageError {
    pub fn new(code: ImageErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: one_line(&message.into()),
        }
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ImageErrorCode::ImageNotFound, message)
    }

    pub fn name(message: impl Into<String>) -> Self {
        Self::new(ImageErrorCode::ImageNameInvalid, message)
    }

    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(ImageErrorCode::ImagePullUnauthorized, message)
    }

    pub fn unreachable(message: impl Into<String>) -> Self {
        Self::new(ImageErrorCode::ImageRegistryUnreachable, message)
    }

    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(ImageErrorCode::ImageCorrupt, message)
    }

    pub fn platform(message: impl Into<String>) -> Self {
        Self::new(ImageErrorCode::ImagePlatformUnsupported, message)
    }

    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(ImageErrorCode::ImageTooLarge, message)
    }

    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ImageErrorCode::ImageUnsupported, message)
    }

    pub fn in_use(message: impl Into<String>) -> Self {
        Self::new(ImageErrorCode::ImageInUse, message)
    }

    pub fn worker_failed(message: impl Into<String>) -> Self {
        Self::new(ImageErrorCode::ImageWorkerFailed, message)
    }

    /// `action` completes "Cannot ...".
    pub fn storage(action: impl fmt::Display, cause: &io::Error) -> Self {
        let remedy = match cause.kind() {
            io::ErrorKind::StorageFull => "; free disk space and try again",
            _ => "",
        };
        Self::new(
            ImageErrorCode::ImageStorageFailed,
            format!("Cannot {action}: {cause}{remedy}"),
        )
    }

    /// For an error met while reading image data. An error of the operating system is the
    /// host's; everything else was made up by a decoder and means bad data.
    pub fn reading(what: impl fmt::Display, cause: &io::Error) -> Self {
        if cause.raw_os_error().is_some() {
            return Self::storage(format_args!("read {what}"), cause);
        }
        match cause.kind() {
            io::ErrorKind::UnexpectedEof => Self::corrupt(format!("{what} is truncated")),
            _ => Self::corrupt(format!("{what} is damaged: {cause}")),
        }
    }

    /// Says where: `layer 2 (sha256:...): ...`.
    pub fn within(mut self, place: impl fmt::Display) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }
}

/// Longest message; names in it come from strangers.
const MESSAGE_LIMIT: usize = 1000;

/// Control characters would let a file name forge log lines or drive a terminal.
fn one_line(text: &str) -> String {
    let mut line: String = text
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .take(MESSAGE_LIMIT)
        .collect();
    if text.chars().nth(MESSAGE_LIMIT).is_some() {
        line.push_str("...");
    }
    line
}

/// A path for messages: bytes that are not UTF-8 are replaced, long ones cut in the middle.
pub fn printable(path: &[u8]) -> String {
    const KEEP: usize = 100;
    let text = String::from_utf8_lossy(path);
    let count = text.chars().count();
    if count <= 2 * KEEP {
        return text.into_owned();
    }
    let head: String = text.chars().take(KEEP).collect();
    let tail: String = text.chars().skip(count - KEEP).collect();
    format!("{head}...{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_stays_on_one_line_and_short() {
        let error = ImageError::corrupt(format!("a\nb\x1b[2J{}", "x".repeat(5000)));
        assert!(error.message.starts_with("a?b?[2Jx"));
        assert!(error.message.len() <= MESSAGE_LIMIT + 3);
    }

    #[test]
    fn operating_system_error_blames_the_host_and_decoder_error_the_image() {
        let full = io::Error::from_raw_os_error(28);
        let host = ImageError::reading("layer 1", &full);
        assert_eq!(host.code, ImageErrorCode::ImageStorageFailed);
        assert!(host.message.contains("free disk space"), "{host}");
        let bad = io::Error::new(io::ErrorKind::InvalidData, "invalid gzip header");
        assert_eq!(
            ImageError::reading("layer 1", &bad).code,
            ImageErrorCode::ImageCorrupt
        );
    }

    #[test]
    fn error_survives_the_way_between_processes() {
        let error = ImageError::too_large("Layer 3 is too large");
        let text = serde_json::to_string(&error).unwrap();
        assert!(text.contains("\"ImageTooLarge\""), "{text}");
        assert_eq!(serde_json::from_str::<ImageError>(&text).unwrap(), error);
    }
}
