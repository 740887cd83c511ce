//! One thing that was looked at: how it is, how bad that is, and what to do about it.

use std::borrow::Cow;

use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    /// This host does not tell. That alone is no reason to worry.
    Unknown,
    /// It works, but something is weaker than it could be.
    Weaker,
    /// No guest can run.
    Fails,
}

/// How much it matters where the code in sessions is hostile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Another wall holds, or it is about comfort.
    Low,
    /// Half of an attack: it lacks a second fault, or tells little.
    Medium,
    /// A known attack reaches other sessions or the host, or a wall is missing.
    High,
    /// No guest can run.
    Critical,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    pub name: Cow<'static, str>,
    pub verdict: Verdict,
    /// Only of what is weaker or fails.
    pub severity: Option<Severity>,
    /// What was seen.
    pub detail: String,
    /// A command, a parameter of the kernel, or whom to ask.
    pub remedy: Option<String>,
}

/// What a file that is not there, or says nothing that is understood, amounts to.
pub const NOT_TOLD: &str = "not told by this kernel";

// === impl Verdict ===

impl Verdict {
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unknown => "unknown",
            Self::Weaker => "weaker",
            Self::Fails => "fails",
        }
    }
}

// === impl Severity ===

impl Severity {
    pub fn word(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

// === impl Finding ===

impl Finding {
    pub fn ok(name: impl Into<Cow<'static, str>>, detail: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            verdict: Verdict::Ok,
            severity: None,
            detail: detail.into(),
            remedy: None,
        }
    }

    pub fn unknown(name: impl Into<Cow<'static, str>>, detail: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Unknown,
            ..Self::ok(name, detail)
        }
    }

    /// The file at `path` is what would tell.
    pub fn not_told(name: impl Into<Cow<'static, str>>, path: &str) -> Self {
        Self::unknown(name, format!("{NOT_TOLD} ({path})"))
    }

    pub fn weaker(
        name: impl Into<Cow<'static, str>>,
        severity: Severity,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            verdict: Verdict::Weaker,
            severity: Some(severity),
            remedy: Some(remedy.into()),
            ..Self::ok(name, detail)
        }
    }

    pub fn fails(
        name: impl Into<Cow<'static, str>>,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            verdict: Verdict::Fails,
            severity: Some(Severity::Critical),
            remedy: Some(remedy.into()),
            ..Self::ok(name, detail)
        }
    }
}
