//! A file of containerd's is read once, a slice at a time, and becomes a blob of the store without being copied: by a
//! hard link where that is possible, else by a symbolic link and a note of which file was read.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{MetadataExt, symlink},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{Advice, fadvise};

use crate::{
    oci::Digest,
    piece::{BLOB_LEN_MAX, ChainBuilder, PieceLayout, Statement},
};

use super::{
    Blob, Linked, Shared,
    blob::Contents,
    chain_file,
    file_id::FileId,
    index::Place,
    journal,
    piece_file::{self, Found},
    tree,
};

/// Bytes read in one go: a tenth of a second from a slow disk, after which others may come first.
const SLICE_LEN: u64 = 16 << 20;

/// Why a file of containerd's was not adopted. Nothing of it is kept.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    #[error(
        "{path} does not hold {digest} of {len} bytes: not adopted; if it is containerd's, mend it with `ctr -n NAMESPACE content rm {digest}` and another pull"
    )]
    Foreign { digest: Digest, len: u64, path: PathBuf },
    #[error("cannot read {path} to adopt {digest}")]
    Read { digest: Digest, path: PathBuf, source: io::Error },
    #[error("cannot put {digest} into the store")]
    Write { digest: Digest, source: io::Error },
}

impl AdoptError {
    /// The file has gone since somebody spoke of it: nothing is wrong.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// A file of containerd's that is being read. What was staged for it goes with this value, unless it was proven.
pub struct Reading {
    store: Arc<Shared>,
    digest: Digest,
    path: PathBuf,
    /// The directory that will be the blob's.
    staged: PathBuf,
    file: Arc<File>,
    place: Place,
    builder: ChainBuilder,
    layout: PieceLayout,
    statements: Vec<Statement>,
}

impl Drop for Reading {
    fn drop(&mut self) {
        // Once published it is not there any more.
        self.store.discard(&self.staged);
    }
}

impl Reading {
    /// Links the file, and looks whether it can be the blob.
    pub(super) fn open(
        store: &Arc<Shared>,
        digest: &Digest,
        len: u64,
        path: &Path,
    ) -> Result<Self, AdoptError> {
        let foreign = || AdoptError::Foreign { digest: digest.clone(), len, path: path.to_owned() };
        let unreadable = |source| AdoptError::Read { digest: digest.clone(), path: path.to_owned(), source };
        let unwritable = |source| AdoptError::Write { digest: digest.clone(), source };
        let named = fs::symlink_metadata(path).map_err(unreadable)?;
        if !named.is_file() || named.len() != len || len > BLOB_LEN_MAX {
            return Err(foreign());
        }
        let staged = store.tree.stage();
        tree::make_dir_all(&staged).map_err(unwritable)?;
        let layout = PieceLayout::of(len);
        let data = staged.join(tree::DATA);
        // From here on what is staged goes with the value.
        let mut reading = Self {
            file: Arc::new(File::open(path).map_err(|source| {
                store.discard(&staged);
                unreadable(source)
            })?),
            store: Arc::clone(store),
            digest: digest.clone(),
            path: path.to_owned(),
            staged,
            place: Place::Linked,
            builder: ChainBuilder::new(digest, len),
            layout,
            statements: Vec::with_capacity(layout.count() as usize),
        };
        match store.link(path, &data).map_err(unreadable)? {
            Linked::Linked => reading.file = Arc::new(File::open(&data).map_err(unreadable)?),
            Linked::Copied => reading.borrow(&data).map_err(unwritable)?,
        }
        // The name may have come to mean another file since its length was looked at.
        let opened = reading.file.metadata().map_err(unreadable)?;
        if opened.len() == len { Ok(reading) } else { Err(foreign()) }
    }

    /// Points to the file where it is, and notes which one it was.
    fn borrow(&mut self, data: &Path) -> io::Result<()> {
        let file = FileId::of(&self.file.metadata()?);
        symlink(&self.path, data)?;
        self.store.tree.put(&self.staged, tree::BORROWED, file.to_line().as_bytes())?;
        self.place = Place::Borrowed(file);
        Ok(())
    }

    /// Reads the next slice; the blob once the last one is read and all of it is proven. Blocking, for as long as a
    /// slice takes.
    ///
    /// # Errors
    /// `Foreign` if the file holds other bytes. It is not offered again before it changes.
    pub fn step(&mut self) -> Result<Option<Blob>, AdoptError> {
        self.read_slice().inspect_err(|error| self.store.offer_failed(&self.digest, error))
    }

    fn read_slice(&mut self) -> Result<Option<Blob>, AdoptError> {
        let end = self.next_start() + SLICE_LEN;
        while self.builder.next() < self.layout.count() {
            self.read_piece()?;
            if self.next_start() >= end {
                return Ok(None);
            }
        }
        let chain = self.builder.finish().ok_or_else(|| self.foreign())?;
        let contents = Contents {
            file: Arc::clone(&self.file),
            chain,
            statements: std::mem::take(&mut self.statements),
        };
        self.publish(contents).map(Some).map_err(|source| self.unwritable(source))
    }

    /// Nobody asks for what was read so far: others need the memory more.
    pub fn forget_cached(&self) {
        if let Err(error) = fadvise(&self.file, 0, None, Advice::DontNeed) {
            tracing::debug!(%error, "cannot let the page cache go");
        }
    }

    fn next_start(&self) -> u64 {
        u64::from(self.builder.next()) * self.layout.piece_len()
    }

    fn read_piece(&mut self) -> Result<(), AdoptError> {
        let index = self.builder.next();
        let found = piece_file::read(&self.file, self.layout, index..index + 1);
        let Found::Bytes(bytes) = found.map_err(|source| self.unreadable(source))? else {
            return Err(self.foreign());
        };
        self.builder.push(&bytes);
        self.statements.push(blake3::hash(&bytes));
        Ok(())
    }

    fn publish(&self, contents: Contents) -> io::Result<Blob> {
        let tree = &self.store.tree;
        tree.sync_data(&contents.file)?;
        tree.put(&self.staged, tree::CHAIN, &chain_file::encode(&contents.chain))?;
        let pieces = journal::encode(self.layout, (0..).zip(&contents.statements));
        tree.put(&self.staged, tree::PIECES, &pieces)?;
        loop {
            let claim = self.store.claims.claim(&self.digest);
            if !self.store.index.lock().blobs.contains_key(&self.digest) {
                // containerd may have dropped its name meanwhile.
                let alone = self.place == Place::Linked && contents.file.metadata()?.nlink() == 1;
                let place = if alone { Place::Ours } else { self.place };
                return self.store.publish(&self.staged, contents, place);
            }
            drop(claim);
            // Somebody was faster. If his has left the store again by now, ours is as good as ever.
            if let Some(blob) = self.store.get(&self.digest) {
                return Ok(blob);
            }
        }
    }

    fn foreign(&self) -> AdoptError {
        let (digest, len) = (self.digest.clone(), self.layout.blob_len());
        AdoptError::Foreign { digest, len, path: self.path.clone() }
    }

    fn unreadable(&self, source: io::Error) -> AdoptError {
        AdoptError::Read { digest: self.digest.clone(), path: self.path.clone(), source }
    }

    fn unwritable(&self, source: io::Error) -> AdoptError {
        AdoptError::Write { digest: self.digest.clone(), source }
    }
}
