//! What can go wrong with a registry, in words that name the registry and the mend.

use std::time::Duration;

use crate::oci::Digest;

/// Why the client cannot be built from its settings.
#[derive(Debug, thiserror::Error)]
pub enum NewError {
    #[error("`{0}` in registry.plain_http is no host: write `name`, `name:port` or `[address]:port`")]
    PlainHttp(String),
    #[error("cannot set up TLS for registries")]
    Tls(#[source] rustls::Error),
}

/// Why a registry did not give what was asked for. `at` is an address without its query, which may carry
/// a signature.
#[derive(Debug, thiserror::Error)]
pub enum OriginError {
    #[error("no registry of {tried} asked has {digest} with the length that its manifest states")]
    NoOrigin { digest: Digest, tried: usize, source: Option<Box<OriginError>> },
    #[error("{host} cannot be asked: {why}")]
    NoEndpoint { host: String, why: String },
    #[error("{at}: not found")]
    NotFound { at: String },
    #[error("{at}: refused our credentials ({status}{said}); check registry.docker_config")]
    Unauthorized { at: String, status: u16, said: Said },
    #[error("{at}: too many requests{said}")]
    Throttled { at: String, retry_after: Option<Duration>, said: Said },
    #[error("{at}: answered {status}{said}")]
    Unavailable { at: String, status: u16, retry_after: Option<Duration>, said: Said },
    #[error("{at}: answered {status}{said}")]
    Refused { at: String, status: u16, said: Said },
    #[error("{at}: cannot connect")]
    Connect { at: String, source: Cause },
    #[error("{at}: the connection broke")]
    Broken { at: String, source: Cause },
    #[error("{at}: nothing came for {after:?}")]
    Stalled { at: String, after: Duration },
    #[error("{at}: the body ended after {got} of {expected} bytes")]
    Truncated { at: String, expected: u64, got: u64 },
    #[error("{at}: has {actual} bytes where {expected} were expected")]
    WrongLength { at: String, expected: u64, actual: Actual },
    #[error("{at}: the bytes have digest {actual}, not {expected}")]
    WrongDigest { at: String, expected: Digest, actual: Digest },
    #[error("{at}: answered with a web page; this is no registry, or a login page stands before it")]
    NotARegistry { at: String },
    #[error("{at}: redirect refused")]
    Redirects { at: String, source: super::redirect::RedirectError },
    #[error("{at}: TLS failed; a private CA belongs into the `ca` of this host's hosts.toml")]
    Tls { at: String, source: Cause },
    #[error("{at}: {what}")]
    Answer { at: String, what: &'static str },
    #[error("{at}: more than {limit} bytes")]
    TooLarge { at: String, limit: usize },
}

/// The error of a library below.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A length that the other side showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actual {
    Stated(u64),
    /// It went on after the expected length.
    More,
}

impl std::fmt::Display for Actual {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stated(len) => write!(f, "{len}"),
            Self::More => f.write_str("more"),
        }
    }
}

/// What a registry said beside its status; empty, or `: ` and printable text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said(pub(super) String);

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, ": {}", self.0) }
    }
}

impl OriginError {
    /// The word for a metric's `reason`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoOrigin { .. } => "no_origin",
            Self::NoEndpoint { .. } => "origin_hosts",
            Self::NotFound { .. } => "origin_not_found",
            Self::Unauthorized { .. } => "origin_unauthorized",
            Self::Throttled { .. } => "origin_throttled",
            Self::Unavailable { .. } => "origin_unavailable",
            Self::Refused { .. } => "origin_refused",
            Self::Connect { .. } => "origin_unreachable",
            Self::Broken { .. } => "origin_broken",
            Self::Stalled { .. } => "origin_stalled",
            Self::Truncated { .. } => "origin_truncated",
            Self::WrongLength { .. } => "origin_wrong_length",
            Self::WrongDigest { .. } => "origin_wrong_digest",
            Self::NotARegistry { .. } => "origin_html",
            Self::Redirects { .. } => "origin_redirects",
            Self::Tls { .. } => "origin_tls",
            Self::Answer { .. } => "origin_answer",
            Self::TooLarge { .. } => "origin_too_large",
        }
    }

    /// Whether asking the same host again later is pointless.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::NoOrigin { source, .. } => source.as_ref().is_none_or(|source| source.is_final()),
            Self::Throttled { .. }
            | Self::Unavailable { .. }
            | Self::Connect { .. }
            | Self::Broken { .. }
            | Self::Stalled { .. }
            | Self::Truncated { .. } => false,
            Self::NoEndpoint { .. }
            | Self::NotFound { .. }
            | Self::Unauthorized { .. }
            | Self::Refused { .. }
            | Self::WrongLength { .. }
            | Self::WrongDigest { .. }
            | Self::NotARegistry { .. }
            | Self::Redirects { .. }
            | Self::Tls { .. }
            | Self::Answer { .. }
            | Self::TooLarge { .. } => true,
        }
    }

    /// How long the registry asked to be left alone.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Throttled { retry_after, .. } | Self::Unavailable { retry_after, .. } => *retry_after,
            Self::NoOrigin { source, .. } => source.as_ref().and_then(|source| source.retry_after()),
            Self::NoEndpoint { .. }
            | Self::NotFound { .. }
            | Self::Unauthorized { .. }
            | Self::Refused { .. }
            | Self::Connect { .. }
            | Self::Broken { .. }
            | Self::Stalled { .. }
            | Self::Truncated { .. }
            | Self::WrongLength { .. }
            | Self::WrongDigest { .. }
            | Self::NotARegistry { .. }
            | Self::Redirects { .. }
            | Self::Tls { .. }
            | Self::Answer { .. }
            | Self::TooLarge { .. } => None,
        }
    }
}
