//! A blob that is arriving: a sparse file, and beside it what is known of its pieces.

use std::{
    fs::File,
    io,
    sync::{Arc, Weak},
};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use crate::{
    oci::Digest,
    piece::{Chain, PieceLayout, PieceSet, Statement},
};

use super::{
    Blob, Shared,
    arrive::had,
    blob::Contents,
    chain_file,
    index::{Place, Progress},
    journal::{self, Journal},
    piece_file::{self, Found, ReadError},
    tree,
};

/// An arriving blob; one for each digest, whoever asks. All methods block, none for longer than a piece takes, but
/// `commit`, which waits for the disk. What arrived stays on disk when the last handle is dropped. After `commit` drop
/// it: while it is open the bytes of our file stay on disk, though containerd's has taken its place.
#[derive(Clone)]
pub struct Arriving(Arc<Inner>);

/// What the handles of one arriving blob share.
pub(super) struct Inner {
    store: Arc<Shared>,
    digest: Digest,
    layout: PieceLayout,
    file: Arc<File>,
    journal: Journal,
    progress: Arc<Progress>,
    pieces: Mutex<Pieces>,
    written: Condvar,
    /// Held while the blob is committed or abandoned.
    ending: Mutex<()>,
}

struct Pieces {
    have: PieceSet,
    writing: PieceSet,
    statements: Vec<Option<Statement>>,
    stage: Stage,
}

/// How far the arrival is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Arriving,
    /// All pieces are here and proven: nothing changes any more.
    Sealed,
    /// Its directory is a blob's now, or was: the place where it lay may be another arrival's.
    Committed,
    Abandoned,
}

/// Why a blob could not be committed. What arrived is kept, so that it can be tried again.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    #[error("cannot commit {digest}: {missing} of its pieces are not here")]
    Incomplete { digest: Digest, missing: u32 },
    #[error("cannot commit {digest}: the chain is that of another blob, {other}")]
    OtherChain { digest: Digest, other: Digest },
    #[error("cannot commit {digest}: it was abandoned")]
    Abandoned { digest: Digest },
    #[error("{digest} was committed and has left the store since")]
    Left { digest: Digest },
    #[error("cannot commit {digest} to the store")]
    Io { digest: Digest, source: io::Error },
}

/// The parts of an arriving blob that lie on disk.
pub(super) struct Files {
    pub(super) file: File,
    pub(super) journal: Journal,
    pub(super) statements: Vec<Option<Statement>>,
}

impl Inner {
    pub(super) fn new(
        store: &Arc<Shared>,
        blob: (&Digest, PieceLayout),
        files: Files,
        progress: Arc<Progress>,
    ) -> Arc<Self> {
        let (digest, layout) = blob;
        let have = had(layout, &files.statements);
        let writing = PieceSet::empty(layout.count());
        let pieces = Pieces { have, writing, statements: files.statements, stage: Stage::Arriving };
        Arc::new(Self {
            store: Arc::clone(store),
            digest: digest.clone(),
            layout,
            file: Arc::new(files.file),
            journal: files.journal,
            progress,
            pieces: Mutex::new(pieces),
            written: Condvar::new(),
            ending: Mutex::new(()),
        })
    }

    pub(super) fn layout(&self) -> PieceLayout {
        self.layout
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.pieces.lock().stage == Stage::Abandoned
    }

    /// Tells the accounts how much is still to come.
    fn account(&self, pieces: &Pieces) {
        self.progress.set_missing(missing_bytes(self.layout, &pieces.have));
    }

    /// From now on nothing changes; the digests of all pieces.
    fn seal(&self) -> Result<Vec<Statement>, CommitError> {
        let digest = || self.digest.clone();
        let mut pieces = self.pieces.lock();
        match pieces.stage {
            Stage::Arriving | Stage::Sealed => {}
            Stage::Committed => return Err(CommitError::Left { digest: digest() }),
            Stage::Abandoned => return Err(CommitError::Abandoned { digest: digest() }),
        }
        let missing = self.layout.count() - pieces.have.len();
        let statements = pieces.statements.iter().copied().collect::<Option<Vec<_>>>();
        let Some(statements) = statements.filter(|_| missing == 0) else {
            return Err(CommitError::Incomplete { digest: digest(), missing });
        };
        pieces.stage = Stage::Sealed;
        Ok(statements)
    }

    fn set_stage(&self, stage: Stage) {
        self.pieces.lock().stage = stage;
        self.written.notify_all();
    }

    /// Puts proof and data on disk and the directory in its place among the blobs.
    fn publish(&self, chain: &Chain, statements: Vec<Statement>) -> io::Result<Blob> {
        let tree = &self.store.tree;
        let dir = tree.arriving_dir(&self.digest);
        tree.sync_data(&self.file)?;
        tree.put(&dir, tree::CHAIN, &chain_file::encode(chain))?;
        tree.put(&dir, tree::PIECES, &journal::encode(self.layout, (0..).zip(&statements)))?;
        let contents = Contents { file: Arc::clone(&self.file), chain: chain.clone(), statements };
        let _claim = self.store.claims.claim(&self.digest);
        self.store.publish(&dir, contents, Place::Ours)
    }
}

/// Bytes of the pieces that are not in `have`.
pub(super) fn missing_bytes(layout: PieceLayout, have: &PieceSet) -> u64 {
    let missing = u64::from(layout.count() - have.len()) * layout.piece_len();
    let last = layout.count() - 1;
    let short = layout.piece_len() - layout.len_of(last) as u64;
    if have.contains(last) { missing } else { missing - short }
}

impl Arriving {
    pub(super) fn new(inner: Arc<Inner>) -> Self {
        Self(inner)
    }

    pub(super) fn downgrade(&self) -> Weak<Inner> {
        Arc::downgrade(&self.0)
    }

    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.0.digest
    }

    #[must_use]
    pub fn layout(&self) -> PieceLayout {
        self.0.layout
    }

    /// The pieces that are here.
    #[must_use]
    pub fn have(&self) -> PieceSet {
        self.0.pieces.lock().have.clone()
    }

    /// The BLAKE3 digest of piece `index`, if it is here.
    #[must_use]
    pub fn statement(&self, index: u32) -> Option<Statement> {
        self.0.pieces.lock().statements.get(index as usize).copied().flatten()
    }

    /// Keeps piece `index`, which the caller has checked against `statement` or the chain. Of two who write the same
    /// piece the first counts.
    ///
    /// # Errors
    /// `StorageFull` when the disk is; `InvalidInput` if there is no such piece or it has another length; `NotFound`
    /// after [`Self::abandon`].
    pub fn write(&self, index: u32, bytes: &[u8], statement: Statement) -> io::Result<()> {
        let inner = &*self.0;
        if index >= inner.layout.count() || bytes.len() != inner.layout.len_of(index) {
            let what = format!("{} bytes are not piece {index} of {}", bytes.len(), inner.digest);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        if !self.begin_write(index)? {
            return Ok(());
        }
        let written = piece_file::write(&inner.file, inner.layout, index, bytes)
            .and_then(|()| inner.journal.have(index, &statement));
        let mut pieces = inner.pieces.lock();
        pieces.writing.remove(index);
        if written.is_ok() {
            pieces.have.insert(index);
            pieces.statements[index as usize] = Some(statement);
            inner.account(&pieces);
            inner.progress.touch(inner.store.host.now());
        }
        drop(pieces);
        inner.written.notify_all();
        written
    }

    /// Whether the caller is the one to write piece `index`; waits for whoever is writing it now.
    fn begin_write(&self, index: u32) -> io::Result<bool> {
        let mut pieces = self.0.pieces.lock();
        loop {
            if pieces.stage == Stage::Abandoned {
                let what = format!("the arrival of {} was abandoned", self.0.digest);
                return Err(io::Error::new(io::ErrorKind::NotFound, what));
            }
            if pieces.have.contains(index) {
                return Ok(false);
            }
            if pieces.writing.insert(index) {
                return Ok(true);
            }
            self.0.written.wait(&mut pieces);
        }
    }

    /// Piece `index`, checked against the digest it came with.
    ///
    /// # Errors
    /// `Absent` if it is not here. `Rotten` if the disk gives other bytes than were written: it is then forgotten.
    pub fn read(&self, index: u32) -> Result<Bytes, ReadError> {
        let inner = &*self.0;
        let digest = || inner.digest.clone();
        // Twice: the piece may have been forgotten and written again while the first was under way.
        for _ in 0..2 {
            let statement =
                self.statement(index).ok_or_else(|| ReadError::Absent { digest: digest(), index })?;
            let found = piece_file::read(&inner.file, inner.layout, index..index + 1)
                .map_err(|source| ReadError::Io { digest: digest(), index, source })?;
            match found {
                Found::Bytes(bytes) if blake3::hash(&bytes) == statement => return Ok(bytes),
                Found::Bytes(_) | Found::Unreadable(_) => {}
            }
        }
        if let Some(blob) = self.committed() {
            return blob.read(index);
        }
        tracing::error!(digest = %inner.digest, piece = index, "a piece rotted while its blob was arriving: forgotten, to be fetched again; look at the disk");
        self.forget(index);
        Err(ReadError::Rotten { digest: digest(), index })
    }

    fn committed(&self) -> Option<Blob> {
        let committed = self.0.pieces.lock().stage == Stage::Committed;
        if committed { self.0.store.get(&self.0.digest) } else { None }
    }

    /// Piece `index` was convicted: it is not here any more.
    pub fn forget(&self, index: u32) {
        let mut pieces = self.0.pieces.lock();
        if pieces.stage != Stage::Arriving || !pieces.have.remove(index) {
            return;
        }
        pieces.statements[index as usize] = None;
        self.0.account(&pieces);
        drop(pieces);
        if let Err(error) = self.0.journal.forget(index) {
            // The next start finds the old record, and bytes that are checked again before they are used.
            tracing::debug!(digest = %self.0.digest, piece = index, %error, "cannot note that a piece is forgotten");
        }
    }

    /// Makes the blob a proven one, all or nothing, also when the power fails. `chain` is what the caller has run over
    /// the pieces that are here.
    ///
    /// # Errors
    /// Pieces are missing, the chain is another blob's, or the disk refuses.
    pub fn commit(&self, chain: &Chain) -> Result<Blob, CommitError> {
        let inner = &*self.0;
        let digest = || inner.digest.clone();
        let _ending = inner.ending.lock();
        if let Some(blob) = inner.store.get(&inner.digest) {
            inner.set_stage(Stage::Committed);
            inner.store.end_arrival(&inner.digest, self);
            return Ok(blob);
        }
        if chain.digest() != &inner.digest || chain.layout() != inner.layout {
            return Err(CommitError::OtherChain { digest: digest(), other: chain.digest().clone() });
        }
        let statements = inner.seal()?;
        let published = inner.publish(chain, statements);
        inner.set_stage(if published.is_ok() { Stage::Committed } else { Stage::Arriving });
        published.map_err(|source| CommitError::Io { digest: digest(), source })
    }

    /// Deletes what arrived.
    pub fn abandon(&self) {
        let _ending = self.0.ending.lock();
        if self.0.pieces.lock().stage == Stage::Arriving {
            self.0.set_stage(Stage::Abandoned);
            self.0.store.end_arrival(&self.0.digest, self);
        }
    }
}
