//! What can go wrong with a registry, in words that name the registry and the mend.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, header};

use crate::oci::Digest;

/// Why the client cannot be built from its settings.
#[derive(Debug, thiserror::Error)]
pub enum NewError {
    #[error("`{0}` in registry.plain_http is no host: write `name`, `name:port` or `[address]:port`")]
    PlainHttp(String),
    #[error("cannot set up TLS for registries")]
    Tls(#[source] rustls::Error),
    #[error("cannot use kubelet's credential providers")]
    CredentialProviders(#[source] super::ProviderError),
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
    #[error(
        "{at}: refused the credentials ({status}{said}); this node's own are those of registry.docker_config"
    )]
    Unauthorized { at: String, status: u16, said: Said, demand: Demand },
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
    #[error("{at}: was down a moment ago, and is left alone for {rest:?}")]
    Resting { at: String, rest: Duration },
    #[error("{host}: so many questions wait for this registry that no more are taken for now")]
    Busy { host: String },
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
    #[error(
        "{at}: it does not speak TLS; a registry that is to be read in the clear is named by `plain_http` in [registry], or by `http://` in its hosts.toml"
    )]
    NoTls { at: String, source: Cause },
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

/// What a registry said beside its status; empty, or printable text, which begins with the code of an error that has one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said(pub(super) String);

impl Said {
    /// Without the code.
    fn words(&self) -> Option<&str> {
        let is_code = |word: &str| word.chars().all(|c| c.is_ascii_uppercase() || c == '_');
        let words = match self.0.split_once(' ') {
            Some((code, words)) if is_code(code) => words,
            Some(_) | None => &self.0,
        };
        (!words.is_empty()).then_some(words)
    }
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, ": {}", self.0) }
    }
}

/// What a registry demands of whoever asks, as its `WWW-Authenticate` headers have it: for a client, which can meet
/// the demand itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Demand(Vec<HeaderValue>);

/// Most demands that are passed on; registries make one or two.
const MAX_DEMANDS: usize = 8;

impl Demand {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        Self(headers.get_all(header::WWW_AUTHENTICATE).iter().take(MAX_DEMANDS).cloned().collect())
    }

    pub fn headers(&self) -> impl Iterator<Item = &HeaderValue> {
        self.0.iter()
    }
}

/// Every word of [`OriginError::reason`].
const REASONS: [&str; 20] = [
    "no_origin",
    "origin_hosts",
    "origin_not_found",
    "origin_unauthorized",
    "origin_throttled",
    "origin_unavailable",
    "origin_refused",
    "origin_unreachable",
    "origin_broken",
    "origin_stalled",
    "origin_resting",
    "origin_busy",
    "origin_truncated",
    "origin_wrong_length",
    "origin_wrong_digest",
    "origin_html",
    "origin_redirects",
    "origin_tls",
    "origin_answer",
    "origin_too_large",
];

/// The word for a metric that another member's reader sent, if it is one of ours.
#[must_use]
pub fn known_reason(word: &str) -> Option<&'static str> {
    REASONS.into_iter().find(|known| *known == word)
}

/// A queue of questions has moved on by then.
const BUSY_FOR: Duration = Duration::from_secs(1);

impl OriginError {
    /// The word for a metric's `reason`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoOrigin { source, .. } => {
                let own = source.as_deref().filter(|source| source.is_telling());
                own.map_or("no_origin", Self::reason)
            }
            Self::NoEndpoint { .. } => "origin_hosts",
            Self::NotFound { .. } => "origin_not_found",
            Self::Unauthorized { .. } => "origin_unauthorized",
            Self::Throttled { .. } => "origin_throttled",
            Self::Unavailable { .. } => "origin_unavailable",
            Self::Refused { .. } => "origin_refused",
            Self::Connect { .. } => "origin_unreachable",
            Self::Broken { .. } => "origin_broken",
            Self::Stalled { .. } => "origin_stalled",
            Self::Resting { .. } => "origin_resting",
            Self::Busy { .. } => "origin_busy",
            Self::Truncated { .. } => "origin_truncated",
            Self::WrongLength { .. } => "origin_wrong_length",
            Self::WrongDigest { .. } => "origin_wrong_digest",
            Self::NotARegistry { .. } => "origin_html",
            Self::Redirects { .. } => "origin_redirects",
            Self::NoTls { .. } | Self::Tls { .. } => "origin_tls",
            Self::Answer { .. } => "origin_answer",
            Self::TooLarge { .. } => "origin_too_large",
        }
    }

    /// What the registry demands, where it refused whoever asked.
    #[must_use]
    pub fn demand(&self) -> Option<&Demand> {
        if let Self::Unauthorized { demand, .. } = self.own() { Some(demand) } else { None }
    }

    /// A refusal, for whoever was refused with what is his own: in the registry's words, if there were any.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        let Self::Unauthorized { at, status, said, .. } = self.own() else { return None };
        Some(said.words().map_or_else(|| format!("{at}: refused ({status})"), str::to_owned))
    }

    /// The status that the registry answered with, where its answer is the reason.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        if let Self::Unauthorized { status, .. }
        | Self::Unavailable { status, .. }
        | Self::Refused { status, .. } = self.own()
        {
            return Some(*status);
        }
        let known = [
            (matches!(self.own(), Self::NotFound { .. }), 404),
            (matches!(self.own(), Self::Throttled { .. }), 429),
        ];
        known.into_iter().find_map(|(is, status)| is.then_some(status))
    }

    /// Nobody could be asked, or whoever answered is in trouble: the registry is down, as far as this node sees.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        matches!(
            self.own(),
            Self::Unavailable { .. }
                | Self::Connect { .. }
                | Self::Broken { .. }
                | Self::Stalled { .. }
                | Self::Resting { .. }
        )
    }

    /// It was this node that had no place left for the question.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        matches!(self.own(), Self::Busy { .. })
    }

    /// Nobody is there to be asked at all, whatever is asked for.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(self.own(), Self::Connect { .. })
    }

    /// What a registry said, where this error sums up several.
    fn own(&self) -> &Self {
        if let Self::NoOrigin { source: Some(source), .. } = self { source.own() } else { self }
    }

    /// With the demand that came before the attempt to meet it failed.
    pub(super) fn with_demand(self, headers: &HeaderMap) -> Self {
        if let Self::Unauthorized { at, status, said, .. } = self {
            return Self::Unauthorized { at, status, said, demand: Demand::of(headers) };
        }
        self
    }

    /// Whether it says more than that the blob is not there: somebody answered, and with what.
    pub(super) fn is_telling(&self) -> bool {
        match self {
            Self::NoOrigin { .. }
            | Self::NoEndpoint { .. }
            | Self::NotFound { .. }
            | Self::Connect { .. }
            | Self::Broken { .. }
            | Self::Stalled { .. }
            | Self::Resting { .. }
            | Self::Busy { .. }
            | Self::WrongLength { .. } => false,
            Self::Unauthorized { .. }
            | Self::Throttled { .. }
            | Self::Unavailable { .. }
            | Self::Refused { .. }
            | Self::Truncated { .. }
            | Self::WrongDigest { .. }
            | Self::NotARegistry { .. }
            | Self::Redirects { .. }
            | Self::NoTls { .. }
            | Self::Tls { .. }
            | Self::Answer { .. }
            | Self::TooLarge { .. } => true,
        }
    }

    /// Whether the registry has had enough of us for now.
    #[must_use]
    pub fn is_throttled(&self) -> bool {
        matches!(self.own(), Self::Throttled { .. })
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
            | Self::Resting { .. }
            | Self::Busy { .. }
            | Self::Truncated { .. } => false,
            Self::NoEndpoint { .. }
            | Self::NotFound { .. }
            | Self::Unauthorized { .. }
            | Self::Refused { .. }
            | Self::WrongLength { .. }
            | Self::WrongDigest { .. }
            | Self::NotARegistry { .. }
            | Self::Redirects { .. }
            | Self::NoTls { .. }
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
            Self::Busy { .. } => Some(BUSY_FOR),
            Self::NoEndpoint { .. }
            | Self::NotFound { .. }
            | Self::Unauthorized { .. }
            | Self::Refused { .. }
            | Self::Connect { .. }
            | Self::Broken { .. }
            | Self::Stalled { .. }
            | Self::Resting { .. }
            | Self::Truncated { .. }
            | Self::WrongLength { .. }
            | Self::WrongDigest { .. }
            | Self::NotARegistry { .. }
            | Self::Redirects { .. }
            | Self::NoTls { .. }
            | Self::Tls { .. }
            | Self::Answer { .. }
            | Self::TooLarge { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nobody_has_it(source: Option<OriginError>) -> OriginError {
        let digest = Digest::of(crate::oci::Algorithm::Sha256, b"");
        OriginError::NoOrigin { digest, tried: 1, source: source.map(Box::new) }
    }

    #[test]
    fn the_registrys_own_answer_is_the_reason() {
        let at = || "https://r.local/v2/a".to_owned();
        let html = nobody_has_it(Some(OriginError::NotARegistry { at: at() }));
        assert_eq!(html.reason(), "origin_html");
        for source in [None, Some(OriginError::NotFound { at: at() })] {
            assert_eq!(nobody_has_it(source).reason(), "no_origin");
        }
    }

    #[test]
    fn a_refusal_is_in_the_registrys_own_words() {
        let refused = |said: &str| OriginError::Unauthorized {
            at: "https://r.local/v2/a".to_owned(),
            status: 403,
            said: Said(said.to_owned()),
            demand: Demand::default(),
        };
        let told = |said: &str| nobody_has_it(Some(refused(said))).refusal().unwrap();
        assert_eq!(told("DENIED access to A is denied"), "access to A is denied");
        assert_eq!(told("it demands a password"), "it demands a password");
        assert_eq!(told("DENIED"), "DENIED");
        assert_eq!(told(""), "https://r.local/v2/a: refused (403)");
        assert_eq!(nobody_has_it(None).refusal(), None);
    }

    #[test]
    fn words_of_others_are_known_or_nothing() {
        let unauthorized = OriginError::Unauthorized {
            at: String::new(),
            status: 401,
            said: Said::default(),
            demand: Demand::default(),
        };
        assert_eq!(known_reason(unauthorized.reason()), Some("origin_unauthorized"));
        assert_eq!(known_reason("<script>"), None);
    }
}
