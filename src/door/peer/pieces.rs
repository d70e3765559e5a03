//! Pieces, chains and statements over HTTP/1.1, and what tags meant.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;

use super::{Door, fed::Fed};
use crate::{mesh::Role, oci::Digest, pull::Here, store::ReadError, swarm::message::FED_HEADER};

/// Uploads at a time: enough that a link with a queue stays full while some receivers are busy with others. In the
/// simulation of 8 nodes with 50 ms of queue the makespan is 1.15 x F/B with 8 or 12, 1.17 with 6 and 1.24 with 4.
pub(super) const SLOTS: usize = 12;
/// How long a request waits for a slot before it is told to look elsewhere: so that a slot never stands empty
/// while somebody wants it, and nobody waits while a piece is free elsewhere by now.
const SLOT_WAIT: Duration = Duration::from_millis(30);
/// How long a request for a chain waits for a blob that is offered and being read: half of what the other side waits
/// for any answer.
const CHAIN_WAIT: Duration = Duration::from_secs(5);
/// And one for a piece: below the half second after which the other side calls a request slow.
const PIECE_WAIT: Duration = Duration::from_millis(300);
/// A body is handed over in parts, so that its slot is held until nearly all of it is sent.
const PART_LEN: usize = 64 * 1024;

enum Asked {
    Piece(u32),
    Chain,
    Statements,
    Length,
}

impl Door {
    pub(super) async fn piece_request(&self, request: &Request<Incoming>, peer: &str) -> Response<Sending> {
        if request.method() != Method::GET {
            return empty(StatusCode::METHOD_NOT_ALLOWED);
        }
        let path = request.uri().path();
        if self.parts.mesh.me().role == Role::Leech {
            return empty(StatusCode::NOT_FOUND);
        }
        if let Some(name) = path.strip_prefix("/v1/tags/") {
            let told = name.parse().map(|name| self.parts.pulls.tags().told(&name));
            return match told {
                Ok(told) => told.map_or_else(|| empty(StatusCode::NOT_FOUND), |said| full(said.into())),
                Err(_) => empty(StatusCode::BAD_REQUEST),
            };
        }
        let Some((digest, asked)) = parse(path) else { return empty(StatusCode::BAD_REQUEST) };
        let patience = match asked {
            Asked::Piece(_) => PIECE_WAIT,
            Asked::Chain | Asked::Statements | Asked::Length => CHAIN_WAIT,
        };
        if !self.parts.pulls.read_offered(&digest, patience).await {
            return busy();
        }
        let Some(here) = self.parts.pulls.here(&digest) else { return empty(StatusCode::NOT_FOUND) };
        match asked {
            Asked::Piece(index) => self.piece(here, digest, index, peer).await,
            Asked::Chain => match here {
                Here::Whole(blob) => full(blob.chain().to_bytes().into()),
                Here::Arriving(_) => empty(StatusCode::NOT_FOUND),
            },
            Asked::Statements => {
                self.parts.pulls.vouched(&digest).map_or_else(|| empty(StatusCode::NOT_FOUND), full)
            }
            Asked::Length => full(length(&here).to_string().into()),
        }
    }

    async fn piece(&self, here: Here, digest: Digest, index: u32, peer: &str) -> Response<Sending> {
        let slot = tokio::time::timeout(SLOT_WAIT, self.slots.clone().acquire_owned()).await;
        let Ok(Ok(slot)) = slot else { return self.overloaded(&digest, index, peer) };
        let reading = self.tasks.spawn_blocking(move || match here {
            Here::Whole(blob) if index < blob.layout().count() => blob.read(index).map(Some),
            Here::Arriving(arriving) if index < arriving.layout().count() => arriving.read(index).map(Some),
            Here::Whole(_) | Here::Arriving(_) => Ok(None),
        });
        match reading.await {
            Ok(Ok(Some(bytes))) => {
                self.parts.mesh.upload().take(bytes.len() as u64).await;
                let sent = Sent { fed: Arc::clone(&self.fed), digest, index, to: peer.to_owned() };
                sending(bytes, Some((slot, sent)))
            }
            Ok(Ok(None)) => empty(StatusCode::BAD_REQUEST),
            Ok(Err(ReadError::Absent { .. })) => empty(StatusCode::NOT_FOUND),
            Ok(Err(error @ (ReadError::Rotten { .. } | ReadError::Io { .. }))) => {
                tracing::warn!("not served to a member: {error}");
                empty(StatusCode::NOT_FOUND)
            }
            Err(_) => empty(StatusCode::SERVICE_UNAVAILABLE),
        }
    }

    /// Every slot is taken: others have just been sent the piece.
    fn overloaded(&self, digest: &Digest, index: u32, peer: &str) -> Response<Sending> {
        let mut response = busy();
        let names = self.fed.lock().of(digest, index, peer).join(",");
        if let Some(names) = HeaderValue::try_from(names).ok().filter(|names| !names.is_empty()) {
            response.headers_mut().insert(FED_HEADER, names);
        }
        response
    }
}

/// `/v1/blobs/<digest>/…`
fn parse(path: &str) -> Option<(Digest, Asked)> {
    let (digest, rest) = path.strip_prefix("/v1/blobs/")?.split_once('/')?;
    let asked = match rest {
        "chain" => Asked::Chain,
        "statements" => Asked::Statements,
        "length" => Asked::Length,
        piece => Asked::Piece(piece.strip_prefix("pieces/")?.parse().ok()?),
    };
    Some((digest.parse().ok()?, asked))
}

fn length(here: &Here) -> u64 {
    match here {
        Here::Whole(blob) => blob.len(),
        Here::Arriving(arriving) => arriving.layout().blob_len(),
    }
}

fn empty(status: StatusCode) -> Response<Sending> {
    let mut response = full(Bytes::new());
    *response.status_mut() = status;
    response
}

/// Every slot is taken, or the blob is still being read; the hint is how long one is taken for, in milliseconds.
fn busy() -> Response<Sending> {
    let mut response = empty(StatusCode::SERVICE_UNAVAILABLE);
    let wait = u64::try_from(SLOT_WAIT.as_millis()).expect("a tenth of a second");
    response.headers_mut().insert("flotilla-retry-after-ms", wait.into());
    response
}

fn full(bytes: Bytes) -> Response<Sending> {
    sending(bytes, None)
}

fn sending(bytes: Bytes, upload: Option<(OwnedSemaphorePermit, Sent)>) -> Response<Sending> {
    let len = bytes.len() as u64;
    let mut response = Response::new(Sending { rest: bytes, upload });
    response.headers_mut().insert(header::CONTENT_LENGTH, len.into());
    response
}

/// A piece on its way, to be remembered when it is sent.
struct Sent {
    fed: Arc<Mutex<Fed>>,
    digest: Digest,
    index: u32,
    to: String,
}

/// A body that holds its upload slot while it is sent.
pub(super) struct Sending {
    rest: Bytes,
    upload: Option<(OwnedSemaphorePermit, Sent)>,
}

impl Body for Sending {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let len = self.rest.len().min(PART_LEN);
        let part = self.rest.split_to(len);
        if let Some((_, Sent { fed, digest, index, to })) = &self.upload
            && self.rest.is_empty()
        {
            fed.lock().note(digest.clone(), *index, to.clone());
        }
        Poll::Ready(Some(Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_paths_are_understood() {
        let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let asked = |rest: &str| parse(&format!("/v1/blobs/{digest}/{rest}")).map(|(_, asked)| asked);
        assert!(matches!(asked("pieces/7"), Some(Asked::Piece(7))));
        assert!(matches!(asked("chain"), Some(Asked::Chain)));
        assert!(matches!(asked("statements"), Some(Asked::Statements)));
        assert!(matches!(asked("length"), Some(Asked::Length)));
        for odd in ["pieces/", "pieces/-1", "pieces/4294967296", "pieces/1/2", "", "chain/"] {
            assert!(asked(odd).is_none(), "{odd}");
        }
        assert!(parse("/v1/blobs/sha256:../../etc/passwd/chain").is_none());
    }
}
