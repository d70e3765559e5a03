//! A blob's bytes in order as they arrive, for a task that hands them on to somebody who checks the whole itself.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use tokio::sync::watch;

use super::{
    Pull, PullError,
    arrival::{Arrival, Next, Seen},
    outgoing::{Outgoing, Room},
};
use crate::{oci::Digest, piece::Statement, store::ReadError};

/// Short pieces of a proven blob are read together, up to so many bytes: the way to a thread that may block and back takes
/// as long as reading 64 KiB. Four times as many leave the processor's cache before they are sent.
const AT_ONCE: u64 = 256 << 10;

/// Why there are no more bytes. What was handed on by then must not be called whole.
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

/// A window of a pull's bytes, a piece at a time, a few where they are short, or less where memory is. Each passed its piece's check; that all
/// are the digest's is known with the last piece, which comes only then.
pub struct Pieces {
    pull: Pull,
    arrival: Arc<Arrival>,
    outgoing: Arc<Outgoing>,
    changes: watch::Receiver<()>,
    /// The piece with which the window began.
    first: u32,
    /// What is still to be handed on.
    window: Range<u64>,
    /// Of the pieces of which something was handed on, from `first`: one that is replaced by the same bytes changes nothing.
    sent: Vec<Statement>,
    /// How many of `sent` were handed on wholly, and still stand as they were.
    standing: usize,
    seen: Seen,
}

/// As [`Next`], with what is needed to hand it on.
enum Taken {
    /// One piece or more, and what each is said to be.
    Pieces(Bytes, Vec<Statement>, Room),
    Rewind(u32),
    Failed(Arc<PullError>),
}

impl Pieces {
    pub(super) fn new(pull: Pull, outgoing: Arc<Outgoing>, window: Range<u64>) -> Self {
        let arrival = pull.handle.0.arrival.clone();
        let (changes, first) = (arrival.changes(), arrival.layout().index_at(window.start));
        let (sent, standing, seen) = (Vec::new(), 0, Seen::default());
        Self { pull, arrival, outgoing, changes, first, window, sent, standing, seen }
    }

    /// What is still to be handed on.
    #[must_use]
    pub fn window(&self) -> Range<u64> {
        self.window.clone()
    }

    /// The piece that comes next, or goes on.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.arrival.layout().index_at(self.window.start)
    }

    /// The next bytes; `None` behind the last.
    ///
    /// # Errors
    /// The pull failed, or went back on what was handed on already.
    pub async fn next(&mut self) -> Option<Result<Bytes, PiecesError>> {
        // An empty blob has one empty piece, which has to be proven too.
        let is_over = self.arrival.layout().blob_len() > 0 || !self.sent.is_empty();
        if self.window.is_empty() && is_over {
            return None;
        }
        let current = self.index();
        if current + 1 == self.arrival.layout().count()
            && let Err(source) = self.pull.proven().await
        {
            return Some(Err(self.failed(source)));
        }
        loop {
            let index = self.first + u32::try_from(self.standing).expect("no more than there are pieces");
            let (bytes, statements, room) = match self.take(index, index == current).await {
                Taken::Pieces(bytes, statements, room) => (bytes, statements, room),
                Taken::Rewind(piece) => {
                    let still = usize::try_from(piece.saturating_sub(self.first)).unwrap_or(usize::MAX);
                    self.standing = self.standing.min(still);
                    continue;
                }
                Taken::Failed(source) => return Some(Err(self.failed(source))),
            };
            for (index, statement) in (index..).zip(&statements) {
                let at = usize::try_from(index - self.first).expect("no more than there are pieces");
                match self.sent.get(at) {
                    Some(sent) if sent != statement => {
                        let digest = self.pull.digest().clone();
                        return Some(Err(PiecesError::Replaced { digest, index }));
                    }
                    Some(_) => {}
                    None => self.sent.push(*statement),
                }
            }
            if index == current {
                return Some(Ok(self.cut(index, bytes, room)));
            }
            self.standing += 1;
        }
    }

    /// As much of the pieces from `index` on as is wanted, and as there is room for.
    fn cut(&mut self, index: u32, pieces: Bytes, room: Room) -> Bytes {
        let layout = self.arrival.layout();
        let start = layout.range(index).start;
        let within =
            |at: u64| usize::try_from(at.saturating_sub(start)).map_or(usize::MAX, |at| at.min(pieces.len()));
        let bytes = room.keep(&pieces, within(self.window.start)..within(self.window.end));
        self.window.start += bytes.len() as u64;
        let whole = (index..layout.count()).take_while(|&index| layout.range(index).end <= self.window.start);
        self.standing += whole.count();
        bytes
    }

    /// Piece `index`, and what is wanted behind it that is read with it. The last one comes alone: it waits for the proof.
    fn run(&self, index: u32) -> Range<u32> {
        let layout = self.arrival.layout();
        let most = u32::try_from(AT_ONCE / layout.piece_len()).expect("a few").max(1);
        let wanted = layout.index_at(self.window.end.saturating_sub(1)) + 1;
        index..(index + most).min(wanted).min(layout.count() - 1).max(index + 1)
    }

    /// Piece `index`, to be handed on with what is read with it, or only looked at.
    async fn take(&mut self, index: u32, to_hand_on: bool) -> Taken {
        loop {
            self.changes.mark_unchanged();
            if !self.arrival.has_next(index, &self.seen) {
                self.changes.changed().await.expect("the arrival is held here");
                continue;
            }
            let run = if to_hand_on { self.run(index) } else { index..index + 1 };
            let len = run.clone().map(|index| self.arrival.layout().len_of(index)).sum();
            let room = self.outgoing.room(if to_hand_on { len } else { 0 }).await;
            let run = if room.is_whole() { run } else { index..index + 1 };
            let (arrival, mut seen) = (Arc::clone(&self.arrival), self.seen);
            let reading = tokio::task::spawn_blocking(move || {
                let next = match arrival.try_next(run.clone(), &mut seen) {
                    Some(Next::Piece { bytes, proven: Some(blob) }) => {
                        let statements = run.map(|index| blob.statement(index)).collect();
                        Some(Taken::Pieces(bytes, statements, room))
                    }
                    Some(Next::Piece { bytes, proven: None }) => {
                        let statements = vec![blake3::hash(&bytes)];
                        Some(Taken::Pieces(bytes, statements, room))
                    }
                    Some(Next::Rewind(piece)) => Some(Taken::Rewind(piece)),
                    Some(Next::Failed(why)) => Some(Taken::Failed(why)),
                    None => None,
                };
                (next, seen)
            });
            let (next, seen) = reading.await.expect("reading a piece does not panic");
            self.seen = seen;
            if let Some(next) = next {
                return next;
            }
        }
    }

    fn failed(&self, source: Arc<PullError>) -> PiecesError {
        PiecesError::Failed { digest: self.pull.digest().clone(), source }
    }
}
