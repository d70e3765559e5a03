//! The beginning of an arrival: what arrived before is held against its digests, and room is reserved.

use std::{
    fs::{File, OpenOptions},
    io,
    path::Path,
    sync::{Arc, Weak},
};

use crate::{
    oci::Digest,
    piece::{BLOB_LEN_MAX, PieceLayout, PieceSet, Statement},
};

use super::{
    Arriving, Shared,
    arriving::{Files, Inner, missing_bytes},
    index::Present,
    journal::{self, Journal},
    piece_file::{self, Found},
    tree,
};

/// Why a blob cannot begin to arrive.
#[derive(Debug, thiserror::Error)]
pub enum ArriveError {
    #[error(
        "no space in the store: {needed} bytes needed, {available} available; free some, or raise store.quota"
    )]
    NoSpace { needed: u64, available: u64 },
    #[error("{digest} is said to have {len} bytes, and the store takes blobs of up to 1 TiB")]
    TooLong { digest: Digest, len: u64 },
    #[error("{digest} is arriving with {arriving} bytes, not {len}: two manifests disagree")]
    OtherLength { digest: Digest, len: u64, arriving: u64 },
    #[error("{digest} is in the store already")]
    Proven { digest: Digest },
    #[error("cannot open the files for the arrival of {digest}")]
    Io { digest: Digest, source: io::Error },
}

impl Shared {
    pub(super) fn arrive(self: &Arc<Self>, digest: &Digest, len: u64) -> Result<Arriving, ArriveError> {
        if len > BLOB_LEN_MAX {
            return Err(ArriveError::TooLong { digest: digest.clone(), len });
        }
        let _claim = self.claims.claim(digest);
        let present = self.index.lock().present(digest);
        match present {
            Present::Proven => return Err(ArriveError::Proven { digest: digest.clone() }),
            // Whoever abandoned it has not come round to deleting it.
            Present::Arriving(inner) if inner.is_abandoned() => self.discard(&self.tree.arriving_dir(digest)),
            Present::Arriving(inner) if inner.layout().blob_len() == len => return Ok(Arriving::new(inner)),
            Present::Arriving(inner) => {
                let arriving = inner.layout().blob_len();
                return Err(ArriveError::OtherLength { digest: digest.clone(), len, arriving });
            }
            Present::Nothing => {}
        }
        self.begin(digest, PieceLayout::of(len))
    }

    fn begin(self: &Arc<Self>, digest: &Digest, layout: PieceLayout) -> Result<Arriving, ArriveError> {
        let dir = self.tree.arriving_dir(digest);
        let statements =
            recheck(&dir, layout).map_err(|source| ArriveError::Io { digest: digest.clone(), source })?;
        let missing = missing_bytes(layout, &had(layout, &statements));
        let progress = self.reserve(digest, layout, missing)?;
        match self.open_files(&dir, layout, statements) {
            Ok(files) => {
                let inner = Inner::new(self, (digest, layout), files, progress);
                self.index.lock().opened(digest, Arc::downgrade(&inner));
                Ok(Arriving::new(inner))
            }
            Err(source) => {
                self.index.lock().opened(digest, Weak::new());
                Err(if source.kind() == io::ErrorKind::StorageFull {
                    ArriveError::NoSpace { needed: missing, available: 0 }
                } else {
                    ArriveError::Io { digest: digest.clone(), source }
                })
            }
        }
    }

    /// Opens the sparse file and a journal of just these pieces. What lies there for a blob of another length is not
    /// ours to go on with.
    fn open_files(
        &self,
        dir: &Path,
        layout: PieceLayout,
        statements: Vec<Option<Statement>>,
    ) -> io::Result<Files> {
        if statements.iter().all(Option::is_none) {
            self.tree.discard(dir)?;
        }
        tree::make_dir_all(dir)?;
        let data = dir.join(tree::DATA);
        let file = match tree::create_new(&data) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => open_both(&data)?,
            created => created?,
        };
        file.set_len(layout.blob_len())?;
        let known = || (0..).zip(&statements).filter_map(|(index, known)| Some((index, known.as_ref()?)));
        self.tree.put_unsynced(dir, tree::PIECES, &journal::encode(layout, known()))?;
        let journal = Journal::new(open_both(&dir.join(tree::PIECES))?, known().count() as u64);
        Ok(Files { file, journal, statements })
    }
}

/// The pieces that the journal in `dir` names and that are on disk as it says: one after the other, so that this takes
/// the memory of one.
fn recheck(dir: &Path, layout: PieceLayout) -> io::Result<Vec<Option<Statement>>> {
    let none = || vec![None; layout.count() as usize];
    let file = match File::open(dir.join(tree::DATA)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(none()),
        Err(error) => return Err(error),
    };
    if file.metadata()?.len() != layout.blob_len() {
        return Ok(none());
    }
    let mut statements = journal::replay(&dir.join(tree::PIECES), layout)?;
    for (index, statement) in (0..).zip(&mut statements) {
        let Some(stated) = *statement else { continue };
        let good = match piece_file::read(&file, layout, index..index + 1)? {
            Found::Bytes(bytes) => blake3::hash(&bytes) == stated,
            Found::Unreadable(_) => false,
        };
        if !good {
            *statement = None;
        }
    }
    Ok(statements)
}

/// The pieces that have a statement.
pub(super) fn had(layout: PieceLayout, statements: &[Option<Statement>]) -> PieceSet {
    let mut have = PieceSet::empty(layout.count());
    for (index, _) in (0..).zip(statements).filter(|(_, statement)| statement.is_some()) {
        have.insert(index);
    }
    have
}

fn open_both(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}
