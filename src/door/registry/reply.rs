//! Answers in the form of the distribution specification.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};

use super::route::Misrouted;
use crate::{
    oci::Digest,
    origin::OriginError,
    pull::{PiecesError, PullError},
};

pub(super) type Reply = Response<Outgoing>;
/// A body that breaks off ends in an error, and the connection with it.
pub(super) type Outgoing = UnsyncBoxBody<Bytes, BrokenOff>;

/// Why a body does not end in good order.
#[derive(Debug, thiserror::Error)]
pub(super) enum BrokenOff {
    #[error(transparent)]
    Pieces(#[from] PiecesError),
    #[error("the registry's answer broke off")]
    Registry(#[source] hyper::Error),
    #[error("the registry's answer is not {digest}")]
    Other { digest: Digest },
}

pub(super) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// What this mirror says of an answer that it could not check with the registry (RFC 7234, 5.5).
pub(super) const STALE: &str =
    "110 flotilla \"the registry does not answer: the tag is what it was when it last did\"";
pub(super) const UNCHECKED: &str =
    "111 flotilla \"the registry does not answer: served by digest from the cluster\"";

pub(super) fn full(bytes: impl Into<Bytes>) -> Outgoing {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// An answer with a body of known length.
pub(super) fn document(bytes: impl Into<Bytes>, media_type: &str) -> Reply {
    let mut reply = Response::new(full(bytes));
    set(&mut reply, header::CONTENT_TYPE, media_type);
    reply
}

/// Sets a header, unless its text cannot be one.
pub(super) fn set(reply: &mut Reply, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        reply.headers_mut().insert(name, value);
    }
}

/// The headers by which a client knows what it got.
pub(super) fn name(reply: &mut Reply, digest: &Digest) {
    set(reply, CONTENT_DIGEST, &digest.to_string());
    set(reply, header::ETAG, &format!("\"{digest}\""));
}

/// Every answer says that a registry gave it.
pub(super) fn sign(reply: &mut Reply) {
    reply.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
}

pub(super) fn error(status: StatusCode, code: &str, message: &str) -> Reply {
    let body = serde_json::json!({ "errors": [{ "code": code, "message": message }] });
    let mut reply = document(body.to_string(), "application/json");
    *reply.status_mut() = status;
    reply
}

pub(super) fn misrouted(why: &Misrouted) -> Reply {
    match why {
        Misrouted::NotFound => {
            error(StatusCode::NOT_FOUND, "NOT_FOUND", "a mirror has /v2/ and what is pulled")
        }
        Misrouted::Name => error(StatusCode::BAD_REQUEST, "NAME_INVALID", "this is no repository, or no tag"),
        Misrouted::Digest => {
            error(StatusCode::BAD_REQUEST, "DIGEST_INVALID", "this is no sha256 or sha512 digest")
        }
        Misrouted::Unsupported => unsupported(),
    }
}

pub(super) fn unsupported() -> Reply {
    error(
        StatusCode::METHOD_NOT_ALLOWED,
        "UNSUPPORTED",
        "this mirror is for pulling; push to the registry itself",
    )
}

/// What is asked for, for the code of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sort {
    Manifest,
    Blob,
}

impl Sort {
    fn unknown(self) -> &'static str {
        match self {
            Self::Manifest => "MANIFEST_UNKNOWN",
            Self::Blob => "BLOB_UNKNOWN",
        }
    }
}

/// A registry's refusal, passed on; its demand with it, so that the client can meet it.
pub(super) fn refused(sort: Sort, why: &OriginError) -> Reply {
    let message = why.refusal().unwrap_or_else(|| crate::pull::chain_of(why));
    let status = why.status();
    let mut reply = match status {
        Some(401) => error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", &message),
        Some(403) => error(StatusCode::FORBIDDEN, "DENIED", &message),
        Some(404) => error(StatusCode::NOT_FOUND, sort.unknown(), &message),
        Some(429) => error(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", &message),
        Some(_) | None if why.is_outage() || why.is_busy() => {
            error(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", &message)
        }
        Some(_) | None => error(StatusCode::BAD_GATEWAY, "UNAVAILABLE", &message),
    };
    if status == Some(401) {
        for demand in why.demand().into_iter().flat_map(|demand| demand.headers()) {
            reply.headers_mut().append(header::WWW_AUTHENTICATE, demand.clone());
        }
    }
    if let Some(wait) = why.retry_after() {
        set(&mut reply, header::RETRY_AFTER, &wait.as_secs().max(1).to_string());
    }
    reply
}

/// A pull's failure.
pub(super) fn failed(sort: Sort, why: &PullError) -> Reply {
    match why {
        PullError::Origin { source, .. } => refused(sort, source),
        PullError::Stopped { .. } => {
            error(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", "the mirror stops")
        }
        PullError::Arrive { .. }
        | PullError::Disk { .. }
        | PullError::Read { .. }
        | PullError::Commit { .. }
        | PullError::Swarm { .. }
        | PullError::WrongDigest { .. }
        | PullError::Forgotten { .. } => {
            error(StatusCode::BAD_GATEWAY, "UNAVAILABLE", &crate::pull::chain_of(why))
        }
    }
}
