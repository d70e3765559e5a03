//! A blob's bytes in order as they arrive, for a task that hands them on to somebody who checks the whole itself.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use tokio::sync::watch;

use super::{
    Pull, PullError,
    arrival::{Arrival, Next, Seen},
    outgoing::{Outgoing, Room},
};
use crate::{
    oci::Digest,
    piece::{PieceLayout, Statement},
    store::ReadError,
};

/// Short pieces are read together up to so many bytes: the way to a thread that may block and back takes as long as reading
/// 64 KiB. Twice as many leave the processor's cache before they are sent.
const AT_ONCE: usize = 256 << 10;

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

/// A window of a pull's bytes, a piece or a few short ones at a time, or less where memory is short. Each passed its piece's check; that all
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

/// A piece that was read and passed its check.
struct Ready {
    bytes: Bytes,
    statement: Statement,
    room: Room,
}

/// As [`Next`], with what is needed to hand it on.
enum Taken {
    /// At least one.
    Pieces(Vec<Ready>),
    Rewind(u32),
    Failed(Arc<PullError>),
}

impl Pieces {
    pub(super) fn new(pull: Pull, outgoing: Arc<Outgoing>, window: Range<u64>) -> Self {
        let arrival = pull.handle.0.arrival.clone();
        let (changes, first) = (arrival.changes(), piece_at(arrival.layout(), window.start));
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
        piece_at(self.arrival.layout(), self.window.start)
    }

    /// The next bytes, in one run or more; `None` behind the last.
    ///
    /// # Errors
    /// The pull failed, or went back on what was handed on already.
    pub async fn next(&mut self) -> Option<Result<Vec<Bytes>, PiecesError>> {
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
            let ready = match self.take(index, index == current).await {
                Taken::Pieces(ready) => ready,
                Taken::Rewind(piece) => {
                    let still = usize::try_from(piece.saturating_sub(self.first)).unwrap_or(usize::MAX);
                    self.standing = self.standing.min(still);
                    continue;
                }
                Taken::Failed(source) => return Some(Err(self.failed(source))),
            };
            if index == current {
                return Some(ready.into_iter().map(|ready| self.hand_on(ready)).collect());
            }
            if let Some(Err(error)) = ready.first().map(|ready| self.check(index, ready.statement)) {
                return Some(Err(error));
            }
            self.standing += 1;
        }
    }

    /// What was handed on of the piece before is what is here now.
    fn check(&mut self, index: u32, statement: Statement) -> Result<(), PiecesError> {
        match self.sent.get(self.standing) {
            Some(sent) if *sent != statement => {
                Err(PiecesError::Replaced { digest: self.pull.digest().clone(), index })
            }
            Some(_) => Ok(()),
            None => {
                self.sent.push(statement);
                Ok(())
            }
        }
    }

    fn hand_on(&mut self, Ready { bytes, statement, room }: Ready) -> Result<Bytes, PiecesError> {
        let index = self.index();
        self.check(index, statement)?;
        Ok(self.cut(index, bytes, room))
    }

    /// As much of piece `index` as is wanted, and as there is room for.
    fn cut(&mut self, index: u32, piece: Bytes, room: Room) -> Bytes {
        let range = self.arrival.layout().range(index);
        let within =
            |at: u64| usize::try_from(at.clamp(range.start, range.end) - range.start).expect("a piece");
        let bytes = room.keep(&piece, within(self.window.start)..within(self.window.end));
        self.window.start += bytes.len() as u64;
        if self.window.start == range.end {
            self.standing += 1;
        }
        bytes
    }

    /// Piece `index` and those to be read with it. The last one comes alone, since it waits for the proof.
    fn run(&self, index: u32) -> Range<u32> {
        let layout = self.arrival.layout();
        let wanted = piece_at(layout, self.window.end.saturating_sub(1));
        let most = u32::try_from(AT_ONCE as u64 / layout.piece_len()).expect("a few").max(1);
        index..(index + most).min(wanted + 1).min(layout.count() - 1).max(index + 1)
    }

    /// Piece `index`, to be handed on with some behind it that are here, or only looked at.
    async fn take(&mut self, index: u32, to_hand_on: bool) -> Taken {
        loop {
            self.changes.mark_unchanged();
            if !self.arrival.has_next(index, &self.seen) {
                self.changes.changed().await.expect("the arrival is held here");
                continue;
            }
            let run = if to_hand_on { self.run(index) } else { index..index };
            let len = run.clone().map(|index| self.arrival.layout().len_of(index)).sum();
            let room = self.outgoing.room(len).await;
            let (arrival, mut seen) = (Arc::clone(&self.arrival), self.seen);
            let reading = tokio::task::spawn_blocking(move || {
                let next = match arrival.try_next(index, &mut seen) {
                    Some(Next::Piece { bytes, statement }) => {
                        Some(Taken::Pieces(read_on(&arrival, run, seen, (bytes, statement), &room)))
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

/// `first`, and of the rest of `run` what is here, one after the other, as long as there is room for whole pieces. Blocking.
fn read_on(
    arrival: &Arrival,
    run: Range<u32>,
    seen: Seen,
    first: (Bytes, Option<Statement>),
    room: &Room,
) -> Vec<Ready> {
    let mut pieces = vec![first];
    for index in run.skip(1).take_while(|_| room.is_whole()) {
        // What else there is to say is said when the piece's turn has come.
        let Some(Next::Piece { bytes, statement }) = arrival.try_next(index, &mut { seen }) else { break };
        pieces.push((bytes, statement));
    }
    let ready = |(bytes, statement): (Bytes, Option<Statement>)| {
        let statement = statement.unwrap_or_else(|| blake3::hash(&bytes));
        Ready { bytes, statement, room: room.clone() }
    };
    pieces.into_iter().map(ready).collect()
}

fn piece_at(layout: PieceLayout, byte: u64) -> u32 {
    let index = u32::try_from(byte / layout.piece_len()).expect("no more than there are pieces");
    index.min(layout.count() - 1)
}
