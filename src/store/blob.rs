//! A proven blob, and the check of each of its pieces on the way out.

use std::{
    fs::File,
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};

use arc_swap::ArcSwap;
use bytes::Bytes;

use crate::{
    oci::Digest,
    piece::{Chain, PieceLayout, Statement},
};

use super::{
    Shared, chain_file, journal,
    piece_file::{self, Found, ReadError},
    tree,
};

/// A proven, whole blob. Cheap to clone; reading goes on to work when the blob has left the store. Its bytes on disk
/// come free only when the last handle is gone, so drop it when you have read.
#[derive(Clone)]
pub struct Blob(Arc<Opened>);

/// What the handles of one blob share.
pub(super) struct Opened {
    digest: Digest,
    data: PathBuf,
    chain: Chain,
    statements: Vec<Statement>,
    /// Swapped when containerd's file takes the place of ours, so that the bytes of ours come free.
    file: ArcSwap<File>,
    /// Weak, since the store keeps some blobs open.
    store: Weak<Shared>,
}

/// What lies in a blob's directory.
pub(super) struct Contents {
    pub(super) file: Arc<File>,
    pub(super) chain: Chain,
    pub(super) statements: Vec<Statement>,
}

impl Contents {
    /// Reads what proves the blob, and opens its data. `None` if it is damaged.
    pub(super) fn load(dir: &Path, digest: &Digest, len: u64) -> io::Result<Option<Self>> {
        let layout = PieceLayout::of(len);
        let chain = chain_file::read(&dir.join(tree::CHAIN), digest, layout)?;
        let statements = journal::read_committed(&dir.join(tree::PIECES), layout)?;
        let file = Arc::new(File::open(dir.join(tree::DATA))?);
        Ok(chain.zip(statements).map(|(chain, statements)| Self { file, chain, statements }))
    }
}

impl Opened {
    pub(super) fn new(store: &Arc<Shared>, contents: Contents) -> Arc<Self> {
        let digest = contents.chain.digest().clone();
        Arc::new(Self {
            data: store.tree.blob_dir(&digest).join(tree::DATA),
            digest,
            chain: contents.chain,
            statements: contents.statements,
            file: ArcSwap::new(contents.file),
            store: Arc::downgrade(store),
        })
    }

    pub(super) fn digest(&self) -> &Digest {
        &self.digest
    }

    pub(super) fn is(&self, other: &Weak<Self>) -> bool {
        std::ptr::eq(self, other.as_ptr())
    }

    pub(super) fn file(&self) -> Arc<File> {
        self.file.load_full()
    }

    pub(super) fn swap_file(&self, file: File) {
        self.file.store(Arc::new(file));
    }
}

impl Blob {
    pub(super) fn new(opened: Arc<Opened>) -> Self {
        Self(opened)
    }

    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.0.digest
    }

    /// Bytes of the blob.
    #[must_use]
    #[expect(
        clippy::len_without_is_empty,
        reason = "a blob is no collection; an empty one has one empty piece"
    )]
    pub fn len(&self) -> u64 {
        self.layout().blob_len()
    }

    #[must_use]
    pub fn layout(&self) -> PieceLayout {
        self.0.chain.layout()
    }

    #[must_use]
    pub fn chain(&self) -> &Chain {
        &self.0.chain
    }

    /// The BLAKE3 digest of piece `index`.
    ///
    /// # Panics
    /// If there is no such piece.
    #[must_use]
    pub fn statement(&self, index: u32) -> Statement {
        self.0.statements[index as usize]
    }

    /// The file that holds the bytes. It may be containerd's: never write to it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.data
    }

    /// Piece `index`, checked. Blocking.
    ///
    /// # Errors
    /// `Absent` if there is no such piece. `Rotten` if the disk gives other bytes than were proven: the blob has then
    /// left the store, and whoever wants it pulls it again.
    pub fn read(&self, index: u32) -> Result<Bytes, ReadError> {
        match index.checked_add(1) {
            Some(end) => self.read_run(index..end),
            None => Err(ReadError::Absent { digest: self.0.digest.clone(), index }),
        }
    }

    /// The pieces of `run`, at least one, each checked. Blocking.
    ///
    /// # Errors
    /// As [`Self::read`], of the first that is bad.
    pub fn read_run(&self, run: Range<u32>) -> Result<Bytes, ReadError> {
        let (digest, layout) = (|| self.0.digest.clone(), self.layout());
        if run.is_empty() || run.end > layout.count() {
            return Err(ReadError::Absent { digest: digest(), index: run.start.max(layout.count()) });
        }
        loop {
            let file = self.0.file();
            let found = piece_file::read(&file, layout, run.clone()).map_err(|source| ReadError::Io {
                digest: digest(),
                index: run.start,
                source,
            })?;
            let index = match found {
                Found::Bytes(bytes) => match self.first_bad(&run, &bytes) {
                    None => return Ok(bytes),
                    Some(index) => index,
                },
                Found::Unreadable(index) => index,
            };
            // Containerd's file may have taken the place of ours meanwhile: what counts is what that one says.
            if Arc::ptr_eq(&file, &self.0.file()) {
                if let Some(store) = self.0.store.upgrade() {
                    store.convict(&self.0, &file, index);
                }
                return Err(ReadError::Rotten { digest: digest(), index });
            }
        }
    }

    /// The first piece of `run` of which `bytes`, all of them, are not what was proven.
    fn first_bad(&self, run: &Range<u32>, bytes: &[u8]) -> Option<u32> {
        let mut rest = bytes;
        run.clone().find(|&index| {
            let (piece, behind) = rest.split_at(self.layout().len_of(index));
            rest = behind;
            blake3::hash(piece) != self.statement(index)
        })
    }
}
