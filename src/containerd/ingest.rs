//! Putting a proven blob into containerd's content store.

use std::{collections::BTreeMap, io, pin::pin, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use tokio::time::{Instant, sleep};
use tonic::Code;

use super::{
    CallError, Namespace,
    write::{Committed, DATA_LEN_MAX, Opened, Session, Target, is_mismatch},
};
use crate::oci::Digest;

/// Longest wait for our own private ref. Only a stream of ours that was just dropped can hold it, until containerd
/// has noticed and has synced what it had.
const LOCKED_MAX: Duration = Duration::from_secs(10);

/// First and longest pause between two tries of a locked ref, as containerd's own clients do
/// (`content/helpers.go`: 16 ms doubling to 2 s; ours stays below, since the wait is short).
const RETRY_FIRST: Duration = Duration::from_millis(16);
const RETRY_MAX: Duration = Duration::from_millis(500);

/// A blob that is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ingest {
    /// A name that nobody else uses, and we only once at a time: never containerd's own `layer-…`, where unproven
    /// bytes would poison later pulls.
    pub r#ref: String,
    pub digest: Digest,
    /// Bytes of the blob.
    pub len: u64,
    pub labels: BTreeMap<String, String>,
    pub lease: Option<String>,
}

/// How the blob came to be in the namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ingested {
    /// Written and committed.
    Written,
    /// It was there; its labels are as they were.
    Existed,
    /// Another namespace had it; now this one has it as well.
    Shared,
}

/// Why a blob did not get into containerd's content store. In all cases the namespace does not show it.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("reading {digest} to write it into containerd")]
    Source { digest: Digest, source: io::Error },
    #[error("{digest} has {got} bytes where {len} were promised to containerd")]
    Length { digest: Digest, len: u64, got: u64 },
    #[error("containerd found that the bytes of {digest} are wrong")]
    Wrong { digest: Digest, source: CallError },
    #[error("containerd's disk is full, writing {digest}")]
    NoSpace { digest: Digest, source: CallError },
    #[error("somebody else is writing under our ref {ref:?}")]
    Locked { r#ref: String },
}

impl IngestError {
    /// The lease that came with the blob is gone. containerd has no other word for that than "not found".
    #[must_use]
    pub fn lacks_lease(&self) -> bool {
        matches!(self, Self::Call(error) if error.code() == Some(Code::NotFound) && error.words().contains("lease"))
    }

    /// The word for a metric's `reason`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Call(error) => error.reason(),
            Self::Source { .. } => "read",
            Self::Length { .. } => "length",
            Self::Wrong { .. } => "wrong_bytes",
            Self::NoSpace { .. } => "no_space",
            Self::Locked { .. } => "ref_locked",
        }
    }
}

impl Namespace {
    /// Writes a blob and commits it with its labels. Reads `pieces` only if containerd needs the bytes. Dropping the
    /// future leaves a part under the private ref, which the next call of the same ref removes, or containerd
    /// after a day.
    ///
    /// # Errors
    /// See [`IngestError`]; what was written is removed again if containerd still answers.
    pub async fn ingest(
        &self,
        ingest: &Ingest,
        pieces: impl Stream<Item = io::Result<Bytes>>,
    ) -> Result<Ingested, IngestError> {
        let session = match self.open_whole(ingest).await? {
            Whole::Done(ingested) => return Ok(ingested),
            Whole::Empty(session) => session,
        };
        let result = fill(session, ingest, pieces).await;
        if result.is_err()
            && let Err(error) = self.abort(&ingest.r#ref).await
        {
            tracing::debug!(r#ref = ingest.r#ref, %error, "a part of a blob stays behind in containerd");
        }
        result
    }

    /// Opens the ref with nothing in it, or finds that the blob needs no writing.
    async fn open_whole(&self, ingest: &Ingest) -> Result<Whole, IngestError> {
        // containerd would go on from what an earlier try left, hashing it inside its write transaction. It is
        // cheaper to throw that away, best before the ref is opened.
        if self.status(&ingest.r#ref).await?.is_some() {
            self.throw_away(&ingest.r#ref).await?;
        }
        // Twice: a stream of ours that is going away may still leave something.
        for _ in 0..2 {
            let (session, offset) = match self.open_unlocked(ingest).await? {
                None => return Ok(Whole::Done(Ingested::Existed)),
                Some((session, 0)) => return Ok(Whole::Empty(session)),
                Some(partial) => partial,
            };
            if offset == ingest.len {
                match session.commit(&ingest.labels).await {
                    Ok(Committed::Now) => return Ok(Whole::Done(Ingested::Shared)),
                    Ok(Committed::Before) => return Ok(Whole::Done(Ingested::Existed)),
                    // All bytes of an earlier try, but wrong ones.
                    Err(error) if is_mismatch(&error) => {}
                    Err(error) => return Err(error.into()),
                }
            } else {
                session.close().await;
            }
            self.abort(&ingest.r#ref).await?;
        }
        Err(IngestError::Locked { r#ref: ingest.r#ref.clone() })
    }

    /// Opens the ref, waiting a little for a stream of ours that is going away; `None` if the namespace has the
    /// blob.
    async fn open_unlocked(&self, ingest: &Ingest) -> Result<Option<(Session, u64)>, IngestError> {
        let target = Target {
            r#ref: &ingest.r#ref,
            digest: &ingest.digest,
            len: ingest.len,
            lease: ingest.lease.as_deref(),
        };
        let mut patience = Patience::new();
        loop {
            match Session::open(self, target).await? {
                Opened::Exists => return Ok(None),
                Opened::Ours { session, offset } => return Ok(Some((session, offset))),
                Opened::Locked if patience.wait().await => {}
                Opened::Locked => return Err(IngestError::Locked { r#ref: ingest.r#ref.clone() }),
            }
        }
    }

    /// Aborts what an earlier try left. While its stream is still going away, containerd may write and remove at the
    /// same time, and trip over itself ("directory not empty").
    async fn throw_away(&self, r#ref: &str) -> Result<(), CallError> {
        let mut patience = Patience::new();
        loop {
            match self.abort(r#ref).await {
                Err(error) if error.code() == Some(Code::Unknown) && patience.wait().await => {}
                result => return result,
            }
        }
    }
}

/// Pauses between tries, until [`LOCKED_MAX`] is over.
struct Patience {
    deadline: Instant,
    pause: Duration,
}

impl Patience {
    fn new() -> Self {
        Self { deadline: Instant::now() + LOCKED_MAX, pause: RETRY_FIRST }
    }

    /// Pauses; `false`, at once, if the time is over.
    async fn wait(&mut self) -> bool {
        if Instant::now() >= self.deadline {
            return false;
        }
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(RETRY_MAX);
        true
    }
}

/// A blob as a whole: all there, or all to be written.
enum Whole {
    Done(Ingested),
    Empty(Session),
}

/// Writes all pieces, from the first byte, and commits. The stream has ended when this returns.
async fn fill(
    mut session: Session,
    ingest: &Ingest,
    pieces: impl Stream<Item = io::Result<Bytes>>,
) -> Result<Ingested, IngestError> {
    let mut offset = 0;
    let mut pieces = pin!(pieces);
    while let Some(piece) = pieces.next().await {
        let piece = match fitting(piece, offset, ingest) {
            Ok(piece) => piece,
            Err(error) => {
                session.close().await;
                return Err(error);
            }
        };
        match write_piece(&mut session, &mut offset, piece).await {
            Ok(true) => {}
            Ok(false) => return Ok(Ingested::Existed),
            Err(error) => return Err(failed(ingest, error)),
        }
    }
    if offset != ingest.len {
        session.close().await;
        return Err(IngestError::Length { digest: ingest.digest.clone(), len: ingest.len, got: offset });
    }
    match session.commit(&ingest.labels).await {
        Ok(Committed::Now) => Ok(Ingested::Written),
        Ok(Committed::Before) => Ok(Ingested::Existed),
        Err(error) => Err(failed(ingest, error)),
    }
}

/// The piece, if it could be read and does not reach beyond the blob.
fn fitting(piece: io::Result<Bytes>, offset: u64, ingest: &Ingest) -> Result<Bytes, IngestError> {
    let piece = piece.map_err(|source| IngestError::Source { digest: ingest.digest.clone(), source })?;
    let got = offset + piece.len() as u64;
    if got > ingest.len {
        return Err(IngestError::Length { digest: ingest.digest.clone(), len: ingest.len, got });
    }
    Ok(piece)
}

/// Writes a piece in messages that containerd takes; `false` if the namespace got the blob in the meantime.
async fn write_piece(session: &mut Session, offset: &mut u64, mut piece: Bytes) -> Result<bool, CallError> {
    while !piece.is_empty() {
        let data = piece.split_to(piece.len().min(DATA_LEN_MAX));
        let len = data.len() as u64;
        if !session.write(*offset, data).await? {
            return Ok(false);
        }
        *offset += len;
    }
    Ok(true)
}

fn failed(ingest: &Ingest, error: CallError) -> IngestError {
    let digest = ingest.digest.clone();
    if is_mismatch(&error) {
        return IngestError::Wrong { digest, source: error };
    }
    // Go's text for ENOSPC; containerd has no code for it.
    if error.words().contains("no space left on device") {
        return IngestError::NoSpace { digest, source: error };
    }
    error.into()
}
