//! What a caller gets when it does not get what it asked for.
//!
//! One shape for both planes: `{"error": {"code", "message", "target"?, "traceId"}}`, the code again
//! in `x-ms-error-code`, the trace id in `operation-id`. Codes are stable words; the table in
//! `appliance/README.md` is checked against `Code::ALL`.

use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};
use serde_json::json;

use crate::images::ImageErrorCode;
use crate::pool::Denied;
use crate::pool::launcher::{StartFailure, StartFailureCause};

/// The error code again, for clients that do not read bodies.
pub const ERROR_CODE_HEADER: HeaderName = HeaderName::from_static("x-ms-error-code");
/// Names this one operation in answers and logs.
pub const OPERATION_ID_HEADER: HeaderName = HeaderName::from_static("operation-id");
/// When to come again to a host that is being emptied: only its operator knows how long that takes.
const DRAINING_RETRY: Duration = Duration::from_secs(10);

/// The stable word for what went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    SessionRequestValidationFailed,
    SessionRequestNotSupported,
    /// A call about one session, and there is none with this identifier.
    SessionWithIdentifierNotFound,
    InvalidRequestContent,
    MissingApiVersionParameter,
    InvalidApiVersionParameter,
    SessionPoolInvalidProperty,
    SessionPoolNotSupported,
    /// The container of a pool that is forked after it is ready did not become ready.
    SessionPoolContainerFailed,
    /// Something is wrong with an image; the image service has its own words.
    Image(ImageErrorCode),
    Unauthorized,
    /// From this address came too many tokens that were no good.
    TooManyFailedAttempts,
    Forbidden,
    ResourceNotFound,
    SessionPoolNotFound,
    /// There is no record of an issued token with this id.
    TokenNotFound,
    /// The certificate is not one that can be asked for.
    CertificateNotRenewable,
    /// The ACME server gave none.
    CertificateNotIssued,
    MethodNotAllowed,
    SessionPoolNameInUse,
    PreconditionFailed,
    PayloadTooLarge,
    MaxConcurrentSessionsReached,
    TooManyOperations,
    InternalError,
    /// The snapshot that sessions of the pool are forked from could not be made.
    SessionPoolGoldenFailed,
    SessionUnreachable,
    HostCapacityReached,
    /// A trusted issuer's keys were never had, so its tokens cannot be judged.
    TokenIssuerUnavailable,
    HostDraining,
    SessionStartFailed,
    SessionPoolClosing,
    /// The appliance ended while it changed a pool.
    OperationInterrupted,
    SessionStartTimeout,
    /// A client went beyond what `[limits]` lets it take.
    RequestUrlTooLong,
    RequestHeadersTooLarge,
    RequestBodyTimeout,
    SessionRequestLimitReached,
    TokenRequestLimitReached,
    RequestTimeLimitReached,
}

impl Code {
    /// Every code.
    pub const ALL: [Self; 50] = [
        Self::SessionRequestValidationFailed,
        Self::SessionRequestNotSupported,
        Self::SessionWithIdentifierNotFound,
        Self::InvalidRequestContent,
        Self::MissingApiVersionParameter,
        Self::InvalidApiVersionParameter,
        Self::SessionPoolInvalidProperty,
        Self::SessionPoolNotSupported,
        Self::SessionPoolContainerFailed,
        Self::Image(ImageErrorCode::ImageNotFound),
        Self::Image(ImageErrorCode::ImageNameInvalid),
        Self::Image(ImageErrorCode::ImagePullUnauthorized),
        Self::Image(ImageErrorCode::ImageRegistryUnreachable),
        Self::Image(ImageErrorCode::ImageCorrupt),
        Self::Image(ImageErrorCode::ImagePlatformUnsupported),
        Self::Image(ImageErrorCode::ImageTooLarge),
        Self::Image(ImageErrorCode::ImageUnsupported),
        Self::Image(ImageErrorCode::ImageInUse),
        Self::Image(ImageErrorCode::ImageStorageFailed),
        Self::Image(ImageErrorCode::ImageWorkerFailed),
        Self::Unauthorized,
        Self::Forbidden,
        Self::ResourceNotFound,
        Self::SessionPoolNotFound,
        Self::TokenNotFound,
        Self::CertificateNotRenewable,
        Self::CertificateNotIssued,
        Self::TooManyFailedAttempts,
        Self::MethodNotAllowed,
        Self::SessionPoolNameInUse,
        Self::PreconditionFailed,
        Self::PayloadTooLarge,
        Self::MaxConcurrentSessionsReached,
        Self::TooManyOperations,
        Self::InternalError,
        Self::SessionPoolGoldenFailed,
        Self::SessionUnreachable,
        Self::HostCapacityReached,
        Self::TokenIssuerUnavailable,
        Self::HostDraining,
        Self::SessionStartFailed,
        Self::SessionPoolClosing,
        Self::OperationInterrupted,
        Self::SessionStartTimeout,
        Self::RequestUrlTooLong,
        Self::RequestHeadersTooLarge,
        Self::RequestBodyTimeout,
        Self::SessionRequestLimitReached,
        Self::TokenRequestLimitReached,
        Self::RequestTimeLimitReached,
    ];

    /// As it is sent.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SessionRequestValidationFailed => "SessionRequestValidationFailed",
            Self::SessionRequestNotSupported => "SessionRequestNotSupported",
            Self::SessionWithIdentifierNotFound => "SessionWithIdentifierNotFound",
            Self::InvalidRequestContent => "InvalidRequestContent",
            Self::MissingApiVersionParameter => "MissingApiVersionParameter",
            Self::InvalidApiVersionParameter => "InvalidApiVersionParameter",
            Self::SessionPoolInvalidProperty => "SessionPoolInvalidProperty",
            Self::SessionPoolNotSupported => "SessionPoolNotSupported",
            Self::SessionPoolContainerFailed => "SessionPoolContainerFailed",
            Self::Image(code) => code.as_str(),
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden => "Forbidden",
            Self::ResourceNotFound => "ResourceNotFound",
            Self::SessionPoolNotFound => "SessionPoolNotFound",
            Self::TokenNotFound => "TokenNotFound",
            Self::CertificateNotRenewable => "CertificateNotRenewable",
            Self::CertificateNotIssued => "CertificateNotIssued",
            Self::TooManyFailedAttempts => "TooManyFailedAttempts",
            Self::MethodNotAllowed => "MethodNotAllowed",
            Self::SessionPoolNameInUse => "SessionPoolNameInUse",
            Self::PreconditionFailed => "PreconditionFailed",
            Self::PayloadTooLarge => "PayloadTooLarge",
            Self::MaxConcurrentSessionsReached => "MaxConcurrentSessionsReached",
            Self::TooManyOperations => "TooManyOperations",
            Self::InternalError => "InternalError",
            Self::SessionPoolGoldenFailed => "SessionPoolGoldenFailed",
            Self::SessionUnreachable => "SessionUnreachable",
            Self::HostCapacityReached => "HostCapacityReached",
            Self::TokenIssuerUnavailable => "TokenIssuerUnavailable",
            Self::HostDraining => "HostDraining",
            Self::SessionStartFailed => "SessionStartFailed",
            Self::SessionPoolClosing => "SessionPoolClosing",
            Self::OperationInterrupted => "OperationInterrupted",
            Self::SessionStartTimeout => "SessionStartTimeout",
            Self::RequestUrlTooLong => "RequestUrlTooLong",
            Self::RequestHeadersTooLarge => "RequestHeadersTooLarge",
            Self::RequestBodyTimeout => "RequestBodyTimeout",
            Self::SessionRequestLimitReached => "SessionRequestLimitReached",
            Self::TokenRequestLimitReached => "TokenRequestLimitReached",
            Self::RequestTimeLimitReached => "RequestTimeLimitReached",
        }
    }

    /// The status that goes with it.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::SessionRequestValidationFailed
            | Self::SessionRequestNotSupported
            | Self::SessionWithIdentifierNotFound
            | Self::InvalidRequestContent
            | Self::MissingApiVersionParameter
            | Self::InvalidApiVersionParameter
            | Self::SessionPoolInvalidProperty
            | Self::SessionPoolNotSupported
            | Self::SessionPoolContainerFailed => StatusCode::BAD_REQUEST,
            Self::Image(code) => image_status(code),
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::ResourceNotFound | Self::SessionPoolNotFound | Self::TokenNotFound => {
                StatusCode::NOT_FOUND
            }
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::SessionPoolNameInUse | Self::CertificateNotRenewable => StatusCode::CONFLICT,
            Self::PreconditionFailed => StatusCode::PRECONDITION_FAILED,
            Self::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::MaxConcurrentSessionsReached
            | Self::TooManyOperations
            | Self::TooManyFailedAttempts
            | Self::SessionRequestLimitReached
            | Self::TokenRequestLimitReached => StatusCode::TOO_MANY_REQUESTS,
            Self::InternalError | Self::SessionPoolGoldenFailed => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            Self::SessionUnreachable | Self::CertificateNotIssued => StatusCode::BAD_GATEWAY,
            Self::HostCapacityReached
            | Self::TokenIssuerUnavailable
            | Self::HostDraining
            | Self::SessionStartFailed
            | Self::SessionPoolClosing
            | Self::OperationInterrupted => StatusCode::SERVICE_UNAVAILABLE,
            Self::SessionStartTimeout | Self::RequestTimeLimitReached => {
                StatusCode::GATEWAY_TIMEOUT
            }
            Self::RequestUrlTooLong => StatusCode::URI_TOO_LONG,
            Self::RequestHeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::RequestBodyTimeout => StatusCode::REQUEST_TIMEOUT,
        }
    }
}

const fn image_status(code: ImageErrorCode) -> StatusCode {
    use ImageErrorCode::*;
    match code {
        // Not 401: that is about the caller's own rights, and clients would ask for another token.
        ImageNotFound
        | ImageNameInvalid
        | ImagePullUnauthorized
        | ImageCorrupt
        | ImagePlatformUnsupported
        | ImageUnsupported => StatusCode::BAD_REQUEST,
        ImageInUse => StatusCode::CONFLICT,
        ImageRegistryUnreachable => StatusCode::BAD_GATEWAY,
        ImageTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ImageStorageFailed | ImageWorkerFailed => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// An error on its way to a caller. `cause` is for the log and never sent.
#[derive(Debug)]
pub struct Refusal {
    pub code: Code,
    /// In place of the code's own.
    pub status: Option<StatusCode>,
    pub message: String,
    pub target: Option<String>,
    /// Boxed, since a refusal travels in many results.
    pub headers: Box<HeaderMap>,
    pub cause: Option<anyhow::Error>,
}

impl Refusal {
    /// With nothing but code and message.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            code,
            status: None,
            message,
            target: None,
            headers: Box::default(),
            cause: None,
        }
    }

    /// Something failed that the caller can do nothing about.
    pub fn internal(message: impl Into<String>, cause: impl Into<anyhow::Error>) -> Self {
        Self {
            cause: Some(cause.into()),
            ..Self::new(Code::InternalError, message)
        }
    }

    /// Names the property or parameter that is wrong.
    #[must_use]
    pub fn target(mut self, target: impl Into<String>) -> Self {
        self.target = Some(target.into());
        self
    }

    /// Adds the cause, for the log.
    #[must_use]
    pub fn cause(mut self, cause: impl Into<anyhow::Error>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
        self
    }

    /// Says when to try again, in whole seconds, at least one.
    #[must_use]
    pub fn retry_after(self, after: Duration) -> Self {
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        self.header(header::RETRY_AFTER, &seconds.max(1).to_string())
    }

    /// Status, headers and body. `trace` names the operation in our log, `operation` in the answer.
    pub fn into_response(self, trace: &str, operation: &str) -> http::Response<Bytes> {
        let mut error = json!({
            "code": self.code.as_str(), "message": self.message, "traceId": trace,
        });
        if let Some(target) = self.target {
            error["target"] = target.into();
        }
        let body = Bytes::from(json!({ "error": error }).to_string());
        let mut response = http::Response::new(body);
        *response.status_mut() = self.status.unwrap_or(self.code.status());
        *response.headers_mut() = *self.headers;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        headers.insert(
            ERROR_CODE_HEADER,
            HeaderValue::from_static(self.code.as_str()),
        );
        if let Ok(operation) = HeaderValue::from_str(operation) {
            headers.insert(OPERATION_ID_HEADER, operation);
        }
        response
    }
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Full {
                max_sessions,
                retry_after,
            } => Self::new(
                Code::MaxConcurrentSessionsReached,
                format!("The pool has reached its maximum of {max_sessions} concurrent sessions"),
            )
            .retry_after(retry_after),
            Denied::HostFull {
                shortage,
                retry_after,
            } => {
                Self::new(Code::HostCapacityReached, shortage.to_string()).retry_after(retry_after)
            }
            Denied::StartFailed(failure) => start_failed(&failure),
            Denied::NotRecorded => {
                Self::new(Code::InternalError, "The session could not be recorded")
            }
            Denied::Draining => Self::new(
                Code::HostDraining,
                "This host is being emptied and begins no new sessions",
            )
            .retry_after(DRAINING_RETRY),
            Denied::Closing => Self::new(
                Code::SessionPoolClosing,
                "The pool is being deleted or the appliance is stopping",
            )
            .retry_after(Duration::from_secs(1)),
        }
    }
}

fn start_failed(failure: &StartFailure) -> Refusal {
    let code = match failure.cause {
        StartFailureCause::TimedOut { .. } => Code::SessionStartTimeout,
        StartFailureCause::Launch { .. }
        | StartFailureCause::Container { .. }
        | StartFailureCause::Exited { .. }
        | StartFailureCause::Ended { .. }
        | StartFailureCause::Unhealthy(_)
        | StartFailureCause::GuestEnded { .. } => Code::SessionStartFailed,
    };
    Refusal::new(code, failure.describe(&failure.cause.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readme_lists_every_code_with_its_status() {
        let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
        let readme = std::fs::read_to_string(readme).unwrap();
        for code in Code::ALL {
            let row = format!("| {} | `{}` |", code.status().as_u16(), code.as_str());
            assert!(
                readme.contains(&row),
                "appliance/README.md lacks the row {row}"
            );
        }
    }

    #[test]
    fn cause_is_not_sent() {
        let refusal = Refusal::internal("It failed", anyhow::anyhow!("secret path")).target("x");
        let response = refusal.into_response("t-1", "o-1");
        let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        let expected = json!({"error": {
            "code": "InternalError", "message": "It failed", "target": "x", "traceId": "t-1"
        }});
        assert_eq!(body, expected);
        assert_eq!(response.headers()[OPERATION_ID_HEADER], "o-1");
    }

    #[test]
    fn retry_after_is_rounded_up_and_never_zero() {
        for (millis, header) in [
            (0, "1"),
            (1, "1"),
            (1000, "1"),
            (1001, "2"),
            (300_000, "300"),
        ] {
            let refusal = Refusal::new(Code::MaxConcurrentSessionsReached, "")
                .retry_after(Duration::from_millis(millis));
            assert_eq!(refusal.headers[header::RETRY_AFTER], header);
        }
    }

    #[test]
    fn failed_start_carries_only_the_last_lines() {
        let console = (0..30).map(|n| format!("line {n}")).collect();
        let cause = StartFailureCause::Exited {
            how: "exit status 3".into(),
            port: 80,
        };
        let refusal = Refusal::from(Denied::StartFailed(StartFailure { cause, console }));
        assert_eq!(refusal.code, Code::SessionStartFailed);
        assert!(
            refusal
                .message
                .starts_with("The container ended with exit status 3")
        );
        assert!(refusal.message.ends_with("line 29") && !refusal.message.contains("line 9\n"));
    }
}
