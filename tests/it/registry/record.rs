//! What a registry was asked, and what it sent.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use http::{HeaderMap, Method, Request, header};
use parking_lot::Mutex;

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Manifest,
    Blob,
    Token,
    Other,
}

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) kind: Kind,
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: HeaderMap,
    body_bytes: Arc<AtomicU64>,
}

impl Seen {
    /// Bytes of the answer's body that were handed to the network.
    pub(crate) fn body_bytes(&self) -> u64 {
        self.body_bytes.load(Ordering::Relaxed)
    }

    /// First byte of the range asked for.
    pub(crate) fn range_start(&self) -> Option<u64> {
        let range = self.headers.get(header::RANGE)?.to_str().ok()?;
        range.strip_prefix("bytes=")?.split('-').next()?.parse().ok()
    }

    pub(crate) fn carried_credentials(&self) -> bool {
        self.headers.contains_key(header::AUTHORIZATION)
    }
}

#[derive(Default)]
pub(super) struct Record(Mutex<Vec<Seen>>);

impl Record {
    pub(super) fn all(&self) -> Vec<Seen> {
        self.0.lock().clone()
    }

    /// Notes a request; the counter is for the bytes of its answer.
    pub(super) fn note<B>(&self, request: &Request<B>) -> (Kind, Arc<AtomicU64>) {
        let path = request.uri().path().to_owned();
        let kind = match path.as_str() {
            "/token" => Kind::Token,
            path if path.contains("/manifests/") => Kind::Manifest,
            path if path.contains("/blobs/") => Kind::Blob,
            _ => Kind::Other,
        };
        let body_bytes = Arc::new(AtomicU64::new(0));
        self.0.lock().push(Seen {
            kind,
            method: request.method().clone(),
            path,
            query: request.uri().query().unwrap_or_default().to_owned(),
            headers: request.headers().clone(),
            body_bytes: body_bytes.clone(),
        });
        (kind, body_bytes)
    }
}
