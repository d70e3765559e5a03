//! A blob while it arrives, for blocking threads that follow it in order.

use std::{collections::BTreeMap, io, ops::Range, sync::Arc};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use tokio::sync::{mpsc, watch};

use super::{PullError, flight::News};
use crate::{
    piece::{Chain, PieceLayout, PieceSet, Statement},
    store::{Arriving, Blob, CommitError, ReadError},
};

/// What has arrived, and how it ended. Writers are the flight's tasks, waiters are blocking threads.
pub(super) struct Arrival {
    layout: PieceLayout,
    state: Mutex<State>,
    changed: Condvar,
    /// The same for tasks.
    changes: watch::Sender<()>,
    /// Pieces found rotten, for the flight.
    rotten: mpsc::Sender<News>,
}

struct State {
    have: PieceSet,
    /// The file, from when the store made room until the flight lets go of it.
    arriving: Option<Arriving>,
    /// Pieces that fitted a chain when they came.
    links: BTreeMap<u32, Arc<Chain>>,
    /// What this node said of pieces that it read itself; what it said first, if it read one again.
    vouched: BTreeMap<u32, Statement>,
    /// Every piece that was taken back, in order of time: whoever has read past it must start again.
    taken_back: Vec<u32>,
    /// The chain has closed over what is here: nothing is taken back any more.
    sealed: bool,
    end: Option<Result<Blob, Arc<PullError>>>,
}

/// What a follower that stands before a piece gets.
pub(super) enum Next {
    Piece {
        bytes: Bytes,
        /// Where they are proven already; else whoever wants their statement has to hash them.
        proven: Option<Blob>,
    },
    /// A piece before this one was taken back: the lowest.
    Rewind(u32),
    Failed(Arc<PullError>),
}

/// What became of a commit.
pub(super) enum Commit {
    Ended(Result<Blob, CommitError>),
    /// The chain was run over a piece that is not here any more. Those named are news.
    TakenBack(Vec<u32>),
}

/// Where a follower is in the list of pieces taken back.
#[derive(Clone, Copy, Default)]
pub(super) struct Seen(usize);

impl Arrival {
    pub(super) fn new(layout: PieceLayout, rotten: mpsc::Sender<News>) -> Self {
        let have = PieceSet::empty(layout.count());
        let state = Mutex::new(State {
            have,
            arriving: None,
            links: BTreeMap::new(),
            vouched: BTreeMap::new(),
            taken_back: Vec::new(),
            sealed: false,
            end: None,
        });
        Self { layout, state, changed: Condvar::new(), changes: watch::Sender::new(()), rotten }
    }

    /// Wakes with whatever a follower may be waiting for.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    fn notify(&self) {
        self.changed.notify_all();
        self.changes.send_replace(());
    }

    pub(super) fn layout(&self) -> PieceLayout {
        self.layout
    }

    pub(super) fn arriving(&self) -> Option<Arriving> {
        self.state.lock().arriving.clone()
    }

    /// The store has made room; some of it may be here from before.
    pub(super) fn begin(&self, arriving: Arriving) {
        let mut state = self.state.lock();
        state.have = arriving.have();
        state.arriving = Some(arriving);
        drop(state);
        self.notify();
    }

    /// Whether the piece was not here before.
    pub(super) fn arrived(&self, index: u32) -> bool {
        let is_new = self.state.lock().have.insert(index);
        self.notify();
        is_new
    }

    /// The bytes stored as piece `index`, which is about to arrive, are what `chain` says.
    pub(super) fn linked(&self, index: u32, chain: Arc<Chain>) {
        self.state.lock().links.insert(index, chain);
    }

    /// This node has read the piece from the origin, and is about to say so.
    pub(super) fn vouch(&self, index: u32, statement: Statement) {
        self.state.lock().vouched.entry(index).or_insert(statement);
    }

    /// Of each piece what this node said when it read it; zeros for those that it did not read.
    pub(super) fn vouched(&self) -> Vec<Statement> {
        let vouched = &self.state.lock().vouched;
        let of = |index| vouched.get(&index).copied().unwrap_or(Statement::from_bytes([0; blake3::OUT_LEN]));
        (0..self.layout.count()).map(of).collect()
    }

    /// The piece is not here any more, unless it has been proven meanwhile.
    pub(super) fn take_back(&self, index: u32) {
        let mut state = self.state.lock();
        if state.sealed {
            return;
        }
        state.links.remove(&index);
        if state.have.remove(index) {
            state.taken_back.push(index);
        }
        let arriving = state.arriving.clone();
        drop(state);
        if let Some(arriving) = arriving {
            arriving.forget(index);
        }
        self.notify();
    }

    /// Commits what `chain` was run over by the follower at `seen`, unless a piece was taken back meanwhile: then
    /// the chain is to be run again.
    pub(super) fn commit(&self, chain: &Chain, seen: &Seen) -> Commit {
        let mut state = self.state.lock();
        if state.taken_back.len() != seen.0 {
            return Commit::TakenBack(Vec::new());
        }
        state.sealed = true;
        let arriving = state.arriving.clone().expect("the chain is made of what arrived");
        drop(state);
        let committed = arriving.commit(chain);
        if !matches!(committed, Err(CommitError::Incomplete { .. })) {
            return Commit::Ended(committed);
        }
        // The store has found a piece rotten while it served it.
        let here = arriving.have();
        let mut state = self.state.lock();
        state.sealed = false;
        let gone: Vec<u32> = state.have.iter().filter(|&index| !here.contains(index)).collect();
        for &index in &gone {
            state.links.remove(&index);
            state.have.remove(index);
            state.taken_back.push(index);
        }
        Commit::TakenBack(gone)
    }

    pub(super) fn end(&self, end: Result<Blob, Arc<PullError>>) {
        self.state.lock().end = Some(end);
        self.notify();
    }

    /// Lets go of the files: nobody follows any more. `end` is what a late follower is told.
    pub(super) fn release(&self, end: Arc<PullError>) {
        let mut state = self.state.lock();
        state.arriving = None;
        state.end = Some(Err(end));
    }

    /// Waits for piece `index`; blocking. Behind the last piece it waits for a rewind or the end.
    pub(super) fn next(&self, index: u32, seen: &mut Seen) -> Next {
        loop {
            match self.wait(index, seen) {
                Look::Is(next) => return next,
                Look::Here(whence) => {
                    if let Some(next) = self.take(index..index + 1, whence) {
                        return next;
                    }
                }
            }
        }
    }

    /// Waits as [`Self::next`] does. A piece that fitted a chain as it came need not be read by whoever wants the chain
    /// and not the bytes; whatever else there is, `next` tells.
    pub(super) fn next_link(&self, index: u32, seen: Seen) -> Option<Arc<Chain>> {
        let is_here = matches!(self.wait(index, &mut { seen }), Look::Here(_));
        let state = self.state.lock();
        let is_current = state.taken_back.len() == seen.0 && state.have.contains(index);
        if is_here && is_current { state.links.get(&index).cloned() } else { None }
    }

    /// Waits until there is something to say of piece `index`.
    fn wait(&self, index: u32, seen: &mut Seen) -> Look {
        let mut state = self.state.lock();
        loop {
            if let Some(look) = state.look(index, seen) {
                return look;
            }
            self.changed.wait(&mut state);
        }
    }

    /// Whether [`Self::try_next`] has anything to say. Memory only.
    pub(super) fn has_next(&self, index: u32, seen: &Seen) -> bool {
        self.state.lock().look(index, &mut Seen(seen.0)).is_some()
    }

    /// As [`Self::next`] of the first piece of `run`, but it does not wait; blocking only as long as reading takes. Of a
    /// proven blob all of `run` comes at once.
    pub(super) fn try_next(&self, run: Range<u32>, seen: &mut Seen) -> Option<Next> {
        let look = self.state.lock().look(run.start, seen);
        match look? {
            Look::Is(next) => Some(next),
            Look::Here(whence) => self.take(run, whence),
        }
    }

    /// Reads a piece, or `run` of a proven blob; `None` if it was not there after all.
    fn take(&self, run: Range<u32>, (blob, arriving): Whence) -> Option<Next> {
        let index = run.start;
        match read(run, blob.as_ref(), arriving.as_ref()) {
            Ok(bytes) => return Some(Next::Piece { bytes, proven: blob }),
            Err(ReadError::Absent { .. }) if blob.is_none() => self.take_back(index),
            Err(ReadError::Rotten { .. }) if blob.is_none() => {
                self.take_back(index);
                // A full queue is full of the same news.
                let _told = self.rotten.try_send(News::Rotten(index));
            }
            Err(source) => return Some(Next::Failed(Arc::new(PullError::Read { source }))),
        }
        None
    }
}

/// Where a piece that is here is read.
type Whence = (Option<Blob>, Option<Arriving>);

enum Look {
    Is(Next),
    Here(Whence),
}

impl State {
    /// `None` while there is nothing to say of piece `index`.
    fn look(&self, index: u32, seen: &mut Seen) -> Option<Look> {
        let news = &self.taken_back[seen.0..];
        let lowest = news.iter().copied().filter(|&taken| taken < index).min();
        seen.0 = self.taken_back.len();
        if let Some(lowest) = lowest {
            return Some(Look::Is(Next::Rewind(lowest)));
        }
        let blob = match &self.end {
            Some(Err(error)) => return Some(Look::Is(Next::Failed(error.clone()))),
            Some(Ok(blob)) => Some(blob.clone()),
            None => None,
        };
        if blob.is_none() && !self.have.contains(index) {
            return None;
        }
        Some(Look::Here((blob, self.arriving.clone())))
    }
}

fn read(run: Range<u32>, blob: Option<&Blob>, arriving: Option<&Arriving>) -> Result<Bytes, ReadError> {
    match (blob, arriving) {
        (Some(blob), _) => blob.read_run(run),
        (None, Some(arriving)) => arriving.read(run.start),
        (None, None) => unreachable!("nothing is here before the store made room"),
    }
}

/// A blob's bytes in order as they arrive, for a blocking thread. They are not proven before the pull is.
pub struct PieceReader {
    arrival: Arc<Arrival>,
    index: u32,
    current: Bytes,
    seen: Seen,
    /// The flight goes on as long as somebody reads.
    _handle: super::Handle,
}

impl PieceReader {
    pub(super) fn new(arrival: Arc<Arrival>, handle: super::Handle) -> Self {
        Self { arrival, index: 0, current: Bytes::new(), seen: Seen::default(), _handle: handle }
    }
}

impl io::Read for PieceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.current.is_empty() && self.index < self.arrival.layout.count() {
            match self.arrival.next(self.index, &mut self.seen) {
                Next::Piece { bytes, .. } => {
                    self.current = bytes;
                    self.index += 1;
                }
                Next::Rewind(piece) => {
                    return Err(io::Error::other(format!("rewound: piece {piece} is replaced")));
                }
                Next::Failed(error) => return Err(io::Error::other(error)),
            }
        }
        let len = buffer.len().min(self.current.len());
        buffer[..len].copy_from_slice(&self.current.split_to(len));
        Ok(len)
    }
}
