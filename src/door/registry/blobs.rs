//! Blobs, whole or in part, handed on while they arrive.
//!
//! Each piece was checked before it is handed on. That all of them are the digest's is known only with the last one, so
//! that one waits: a blob that is not what its digest says never ends in good order, and the connection breaks.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use http::{Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{
    Door,
    manifests::Client,
    range::{self, Wanted},
    reply::{self, BrokenOff, Reply, Sort},
    route::Asked,
};
use crate::{
    oci::Digest,
    origin::Kind,
    piece::BLOB_LEN_MAX,
    pull::{Pieces, PiecesError, Pull, Pulls, Want},
};

/// A blob is given up when no piece has come for so long, of it or of any other that shares the node's links: a pull
/// ends by itself when its sources fail, and a client that goes to the registry instead is better off.
const STALLED_AFTER: Duration = Duration::from_secs(60);
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The answer begins after this long even if nothing is known of the blob yet: containerd 2.3 and later go to the next
/// host, the registry, after 30 s without headers.
const HEADERS_AFTER: Duration = Duration::from_secs(15);
/// Pieces that wait for the client, beside the one that it is being sent.
const AHEAD: usize = 1;
/// How often a blob that rots while it is sent is fetched again.
const ROTTEN_MAX: u32 = 3;

impl Door {
    pub(super) async fn blob(&self, asked: &Asked, digest: &Digest, client: &Client) -> Reply {
        let grant = self.gate.grant(&asked.repository, (Kind::Blob, digest), &client.asker).await;
        let grant = match grant {
            Ok(grant) => grant,
            Err(error) => return reply::refused(Sort::Blob, &error),
        };
        let mut unchecked = grant.unchecked;
        let lens = match grant.len.or_else(|| self.len_here(asked, digest)) {
            Some(len) => vec![len],
            None if unchecked => self.parts.pulls.lens_elsewhere(digest).await,
            // Whoever knows the digest may have it, so that the registry is asked for no more than the length.
            None => match self.gate.ask(&asked.repository, (Kind::Blob, digest), &client.asker).await {
                Ok(len) => vec![len],
                // What a registry says that it has not is not said to be there: a push asks so whether to send it.
                Err(error) if client.head && error.status() == Some(404) => {
                    return reply::refused(Sort::Blob, &error);
                }
                Err(error) => {
                    let lens = self.parts.pulls.lens_elsewhere(digest).await;
                    if lens.is_empty() {
                        return reply::refused(Sort::Blob, &error);
                    }
                    let why = crate::pull::chain_of(&error);
                    tracing::info!(repository = %asked.repository, %digest, "members say how long it is: {why}");
                    unchecked = true;
                    lens
                }
            },
        };
        let mut reply = reply::error(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", "nobody here knows it");
        for len in lens {
            reply = self.of_len(asked, digest, len, client).await;
            if !reply.status().is_server_error() {
                break;
            }
        }
        if unchecked && reply.status().is_success() {
            reply::set(&mut reply, header::WARNING, reply::UNCHECKED);
        }
        reply
    }

    /// The blob, which has `len` bytes.
    async fn of_len(&self, asked: &Asked, digest: &Digest, len: u64, client: &Client) -> Reply {
        match range::wanted(client.range.as_deref(), len) {
            Wanted::Unsatisfiable => unsatisfiable(len),
            Wanted::Whole => self.bytes(asked, digest, (0..len, len), client).await,
            Wanted::Part(part) => {
                let mut reply = self.bytes(asked, digest, (part.clone(), len), client).await;
                if reply.status() == StatusCode::OK {
                    *reply.status_mut() = StatusCode::PARTIAL_CONTENT;
                    let content_range = format!("bytes {}-{}/{len}", part.start, part.end - 1);
                    reply::set(&mut reply, header::CONTENT_RANGE, &content_range);
                }
                reply
            }
        }
    }

    async fn bytes(
        &self,
        asked: &Asked,
        digest: &Digest,
        (window, len): (Range<u64>, u64),
        client: &Client,
    ) -> Reply {
        let body = if client.head {
            reply::full(Bytes::new())
        } else {
            let want = Want {
                digest: digest.clone(),
                len,
                origins: vec![asked.repository.clone()],
                kind: Kind::Blob,
                asker: client.asker.clone(),
                image: Some(asked.repository.to_string()),
            };
            let sending = Sending::new(self.parts.pulls.clone(), want, window.clone());
            let (sender, mut receiver) = mpsc::channel(AHEAD);
            let stop = self.stop.clone();
            self.tasks.spawn(async move { stop.run_until_cancelled(sending.run(sender)).await });
            // With its first piece it is known whether there is anything to send at all.
            let first = match tokio::time::timeout(HEADERS_AFTER, receiver.recv()).await {
                Ok(Some(Err(PiecesError::Failed { source, .. }))) => {
                    return reply::failed(Sort::Blob, &source);
                }
                Ok(Some(Err(error @ PiecesError::Replaced { .. }))) => {
                    let message = crate::pull::chain_of(&error);
                    return reply::error(StatusCode::BAD_GATEWAY, "UNAVAILABLE", &message);
                }
                Ok(Some(Ok(bytes))) => Some(Ok(bytes)),
                Ok(None) | Err(_) => None,
            };
            let pieces = tokio_stream::iter(first).chain(ReceiverStream::new(receiver));
            let pieces = pieces.map_ok(Frame::data).map_err(BrokenOff::Pieces);
            StreamBody::new(pieces).boxed_unsync()
        };
        let mut reply = Response::new(body);
        reply::name(&mut reply, digest);
        reply::set(&mut reply, header::CONTENT_TYPE, "application/octet-stream");
        reply::set(&mut reply, header::CONTENT_LENGTH, &(window.end - window.start).to_string());
        reply::set(&mut reply, header::ACCEPT_RANGES, "bytes");
        reply
    }

    /// The length of something that is here, or that a manifest of the same repository told of.
    pub(super) fn len_here(&self, asked: &Asked, digest: &Digest) -> Option<u64> {
        let stored = self.parts.store.get(digest).map(|blob| blob.len());
        let offered = || self.parts.store.unread().into_iter().find(|(offered, _)| offered == digest);
        let here = stored.or_else(|| self.known.len_of(&asked.repository, digest));
        here.or_else(|| offered().map(|(_, len)| len)).filter(|len| *len <= BLOB_LEN_MAX)
    }
}

fn unsatisfiable(len: u64) -> Reply {
    let message = format!("the blob has {len} bytes");
    let mut reply = reply::error(StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID", &message);
    reply::set(&mut reply, header::CONTENT_RANGE, &format!("bytes */{len}"));
    reply
}

/// A part of a blob on its way to a client.
struct Sending {
    pulls: Pulls,
    want: Want,
    pull: Pull,
    pieces: Pieces,
    failed: bool,
    rotten: u32,
}

impl Sending {
    fn new(pulls: Pulls, want: Want, window: Range<u64>) -> Self {
        let pull = pulls.start(want.clone());
        let pieces = pulls.pieces(&pull, window);
        Self { pulls, want, pull, pieces, failed: false, rotten: 0 }
    }

    /// What is to be sent next; `None` once all of it was.
    async fn next(&mut self) -> Option<Result<Bytes, PiecesError>> {
        loop {
            if self.failed {
                return None;
            }
            match self.next_piece().await? {
                Ok(bytes) => return Some(Ok(bytes)),
                // What was sent is the blob's: the piece that has rotted is the same in any other copy.
                Err(error) if error.is_rot() && self.rotten < ROTTEN_MAX => {
                    self.rotten += 1;
                    tracing::warn!(digest = %self.want.digest, piece = self.pieces.index(), "rot in the store: fetched again");
                    self.pull = self.pulls.start(self.want.clone());
                    self.pieces = self.pulls.pieces(&self.pull, self.pieces.window());
                }
                Err(error) => {
                    self.failed = true;
                    return Some(Err(error));
                }
            }
        }
    }

    /// Waits for a piece as long as any piece comes.
    async fn next_piece(&mut self) -> Option<Result<Bytes, PiecesError>> {
        let began = Instant::now();
        let next = self.pieces.next();
        tokio::pin!(next);
        loop {
            match tokio::time::timeout(LOOK_EVERY, &mut next).await {
                Ok(next) => return next,
                Err(_) => {
                    let others =
                        self.pulls.list().into_iter().filter_map(|status| status.last_piece_at).max();
                    let own = self.pull.status().last_piece_at;
                    let last = own.into_iter().chain(others).fold(began, Instant::max);
                    if last.elapsed() > STALLED_AFTER {
                        let digest = self.want.digest.clone();
                        let reason = format!("no piece has come for {STALLED_AFTER:?}");
                        let source = crate::pull::PullError::Swarm { digest: digest.clone(), reason }.into();
                        return Some(Err(PiecesError::Failed { digest, source }));
                    }
                }
            }
        }
    }

    async fn run(mut self, sender: mpsc::Sender<Result<Bytes, PiecesError>>) {
        let mut begun = false;
        // Nothing is read before there is somebody to take it.
        while let Ok(place) = sender.reserve().await {
            let Some(bytes) = self.next().await else { return };
            if let Err(error) = &bytes
                && begun
            {
                tracing::warn!(digest = %self.want.digest, "a client's blob breaks off: {}", crate::pull::chain_of(error));
            }
            place.send(bytes);
            begun = true;
        }
        tracing::debug!(digest = %self.want.digest, left = ?self.pieces.window(), "a client went away");
    }
}
