//! A blob's pieces in order as they arrive, for a task that hands them on to somebody who checks the whole itself.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use super::{
    Pull, PullError,
    arrival::{Arrival, Next, Seen},
};
use crate::{oci::Digest, piece::Statement, store::ReadError};

/// Why there are no more pieces. What was handed on by then must not be called whole.
#[derive(Debug, thiserror::Error)]
pub enum PiecesError {
    #[error("piece {index} of {digest} was replaced after it had been handed on")]
    Replaced { digest: Digest, index: u32 },
    #[error("{digest} cannot be read on")]
    Failed { digest: Digest, source: Arc<PullError> },
}

impl PiecesError {
    /// The store's own copy has rotted, and is gone: another pull brings the same bytes again.
    #[must_use]
    pub fn is_rot(&self) -> bool {
        let Self::Failed { source, .. } = self else { return false };
        matches!(&**source, PullError::Read { source: ReadError::Rotten { .. } })
    }
}

/// The pieces of a pull. Each passed its check; that they are the digest's is known with the last one, which comes only
/// then.
pub struct Pieces {
    pull: Pull,
    arrival: Arc<Arrival>,
    changes: watch::Receiver<()>,
    first: u32,
    /// What was handed on, from `first`: a piece that is replaced by the same bytes changes nothing.
    sent: Vec<Statement>,
    /// How many of `sent` still stand as they were.
    standing: usize,
    seen: Seen,
}

impl Pieces {
    pub(super) fn new(pull: Pull, arrival: Arc<Arrival>, first: u32) -> Self {
        let changes = arrival.changes();
        Self { pull, arrival, changes, first, sent: Vec::new(), standing: 0, seen: Seen::default() }
    }

    /// Index of the piece that comes next.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.first + u32::try_from(self.sent.len()).expect("no more than there are pieces")
    }

    /// The next piece; `None` behind the last.
    ///
    /// # Errors
    /// The pull failed, or went back on what was handed on already.
    pub async fn next(&mut self) -> Option<Result<Bytes, PiecesError>> {
        let count = self.arrival.layout().count();
        if self.index() == count {
            return None;
        }
        if self.index() + 1 == count
            && let Err(source) = self.pull.proven().await
        {
            return Some(Err(self.failed(source)));
        }
        loop {
            let again = self.standing < self.sent.len();
            let index = self.first + u32::try_from(self.standing).expect("no more than there are pieces");
            match self.take(index).await {
                Next::Piece(bytes) if again => {
                    if blake3::hash(&bytes) != self.sent[self.standing] {
                        let digest = self.pull.digest().clone();
                        return Some(Err(PiecesError::Replaced { digest, index }));
                    }
                    self.standing += 1;
                }
                Next::Piece(bytes) => {
                    self.sent.push(blake3::hash(&bytes));
                    self.standing += 1;
                    return Some(Ok(bytes));
                }
                Next::Rewind(piece) => {
                    let still = usize::try_from(piece.saturating_sub(self.first)).unwrap_or(usize::MAX);
                    self.standing = self.standing.min(still);
                }
                Next::Failed(source) => return Some(Err(self.failed(source))),
            }
        }
    }

    async fn take(&mut self, index: u32) -> Next {
        loop {
            self.changes.mark_unchanged();
            if self.arrival.has_next(index, &self.seen) {
                let (arrival, mut seen) = (Arc::clone(&self.arrival), self.seen);
                let reading = tokio::task::spawn_blocking(move || (arrival.try_next(index, &mut seen), seen));
                let (next, seen) = reading.await.expect("reading a piece does not panic");
                self.seen = seen;
                if let Some(next) = next {
                    return next;
                }
                continue;
            }
            self.changes.changed().await.expect("the arrival is held here");
        }
    }

    fn failed(&self, source: Arc<PullError>) -> PiecesError {
        PiecesError::Failed { digest: self.pull.digest().clone(), source }
    }
}
