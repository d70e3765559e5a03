//! One copy on disk: files of containerd's become files of ours, by hard link where that is possible.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{AtFlags, CWD, StatxFlags, ioctl_ficlone, statx},
    io::Errno,
};

use crate::{
    oci::Digest,
    piece::{ChainBuilder, PieceLayout},
};

use super::{
    ArriveError, Blob, Shared,
    arrive::BLOB_LEN_MAX,
    blob::Contents,
    chain_file,
    file_id::FileId,
    journal,
    piece_file::{self, Found},
    tree,
};

/// Whether containerd's file and ours are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linked {
    /// One file with two links.
    Linked,
    /// Two files: a link between them is not possible (another file system or mount).
    Copied,
}

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
    #[error("no room for a copy of {digest}")]
    NoRoom { digest: Digest, source: ArriveError },
}

/// Why our file of a blob was not replaced. It stays what it was.
#[derive(Debug, thiserror::Error)]
pub enum RelinkError {
    #[error("{digest} is not in the store")]
    Absent { digest: Digest },
    #[error("{path} is no file of {len} bytes: not linked for {digest}")]
    Foreign { digest: Digest, len: u64, path: PathBuf },
    #[error(
        "{path} has rotted on disk: not linked for {digest}; mend it with `ctr -n NAMESPACE content rm {digest}` and another pull"
    )]
    Distrusted { digest: Digest, path: PathBuf },
    #[error("cannot link {path} for {digest}")]
    Io { digest: Digest, path: PathBuf, source: io::Error },
}

impl Shared {
    pub(super) fn adopt(
        self: &Arc<Self>,
        digest: &Digest,
        len: u64,
        path: &Path,
    ) -> Result<Blob, AdoptError> {
        if let Some(blob) = self.get(digest) {
            if let Err(error) = self.relink(digest, path) {
                tracing::warn!(%digest, path = %path.display(), %error, "two copies of a blob stay on disk");
            }
            return Ok(blob);
        }
        let staged = self.tree.stage();
        let adopted = Adoption { store: self, digest, len, path, staged: &staged }.run();
        if adopted.is_err() {
            self.discard(&staged);
        }
        adopted
    }

    pub(super) fn relink(&self, digest: &Digest, path: &Path) -> Result<Linked, RelinkError> {
        let _claim = self.claims.claim(digest);
        let held = self.index.lock().blobs.get(digest).map(|held| held.len);
        let len = held.ok_or_else(|| RelinkError::Absent { digest: digest.clone() })?;
        let failed = |source| RelinkError::Io { digest: digest.clone(), path: path.to_owned(), source };
        let staged = self.tree.stage();
        if self.link(path, &staged).map_err(failed)? == Linked::Copied {
            return Ok(Linked::Copied);
        }
        let replaced = self.replace(digest, len, &staged, path);
        // Nothing is left there after a rename, but for one between two links of one file, which does nothing.
        if fs::symlink_metadata(&staged).is_ok() {
            self.tree.unstage(&staged);
        }
        replaced.map(|()| Linked::Linked)
    }

    /// Puts the staged link in the place of our file. The caller has claimed the digest.
    fn replace(&self, digest: &Digest, len: u64, staged: &Path, path: &Path) -> Result<(), RelinkError> {
        let failed = |source| RelinkError::Io { digest: digest.clone(), path: path.to_owned(), source };
        let metadata = fs::symlink_metadata(staged).map_err(failed)?;
        if !metadata.is_file() || metadata.len() != len {
            return Err(RelinkError::Foreign { digest: digest.clone(), len, path: path.to_owned() });
        }
        if self.index.lock().distrusts(&FileId::of(&metadata)) {
            return Err(RelinkError::Distrusted { digest: digest.clone(), path: path.to_owned() });
        }
        let file = File::open(staged).map_err(failed)?;
        fs::rename(staged, self.data_path(digest)).map_err(failed)?;
        let mut index = self.index.lock();
        let turn = index.next_turn();
        let opened = index.blobs.get_mut(digest).and_then(|held| {
            (held.linked, held.file_turn) = (true, turn);
            held.opened.upgrade()
        });
        drop(index);
        if let Some(opened) = opened {
            opened.swap_file(file);
        }
        Ok(())
    }

    /// Links `path` to `staged` where that is possible; says once where it is not.
    fn link(&self, path: &Path, staged: &Path) -> io::Result<Linked> {
        match fs::hard_link(path, staged) {
            Ok(()) => Ok(Linked::Linked),
            Err(error) if forbids_links(&error) => {
                self.said_that_it_copies.call_once(|| {
                    tracing::warn!(store = %self.tree.dir().display(), file = %path.display(), %error, "no hard links between containerd's content store and ours: layers are on disk twice; put node.data_dir on containerd's file system and mount");
                });
                Ok(Linked::Copied)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether files under `other` can be linked into the store: both are on one mount.
    pub(super) fn links_with(&self, other: &Path) -> io::Result<Linked> {
        let mount = |path: &Path| {
            let found = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)?;
            Ok::<_, Errno>((found.stx_dev_major, found.stx_dev_minor, found.stx_mnt_id))
        };
        Ok(if mount(self.tree.dir())? == mount(other)? { Linked::Linked } else { Linked::Copied })
    }
}

/// Another file system or mount; one without hard links, or that forbids them to us; a file with all links it may have.
fn forbids_links(error: &io::Error) -> bool {
    let number = error.raw_os_error();
    [Errno::XDEV, Errno::PERM, Errno::MLINK, Errno::NOTSUP]
        .iter()
        .any(|errno| Some(errno.raw_os_error()) == number)
}

/// One file on its way into the store.
struct Adoption<'a> {
    store: &'a Arc<Shared>,
    digest: &'a Digest,
    len: u64,
    path: &'a Path,
    /// The directory that will be the blob's.
    staged: &'a Path,
}

/// How the bytes come to us.
enum Source {
    /// Ours already: a link, or a clone of the extents.
    Ours(File),
    /// To be copied, from the first to the second.
    Copy(File, File),
}

impl Adoption<'_> {
    fn run(&self) -> Result<Blob, AdoptError> {
        let metadata = fs::symlink_metadata(self.path).map_err(|source| self.unreadable(source))?;
        if !metadata.is_file() || metadata.len() != self.len || self.len > BLOB_LEN_MAX {
            return Err(self.foreign());
        }
        tree::make_dir_all(self.staged).map_err(|source| self.unwritable(source))?;
        let data = self.staged.join(tree::DATA);
        let linked = self.store.link(self.path, &data).map_err(|source| self.unreadable(source))?;
        let contents = self.prove(self.bring(linked, &data)?)?;
        self.publish(contents).map_err(|source| self.unwritable(source))
    }

    fn bring(&self, linked: Linked, data: &Path) -> Result<Source, AdoptError> {
        if linked == Linked::Linked {
            return File::open(data).map(Source::Ours).map_err(|source| self.unreadable(source));
        }
        let room = self.store.room_for_copy(self.digest, self.len);
        room.map_err(|source| AdoptError::NoRoom { digest: self.digest.clone(), source })?;
        let theirs = File::open(self.path).map_err(|source| self.unreadable(source))?;
        let ours = tree::create_new(data).map_err(|source| self.unwritable(source))?;
        // Between two mounts of one file system the extents can be shared where the file itself cannot.
        Ok(match ioctl_ficlone(&ours, &theirs) {
            Ok(()) => Source::Ours(ours),
            Err(_) => Source::Copy(theirs, ours),
        })
    }

    /// Reads the file once, a piece at a time.
    fn prove(&self, source: Source) -> Result<Contents, AdoptError> {
        let layout = PieceLayout::of(self.len);
        let (Source::Ours(from) | Source::Copy(from, _)) = &source;
        // The name may have come to mean another file since its length was looked at.
        if from.metadata().map_err(|source| self.unreadable(source))?.len() != self.len {
            return Err(self.foreign());
        }
        let mut builder = ChainBuilder::new(self.digest, self.len);
        let mut statements = Vec::with_capacity(layout.count() as usize);
        for index in 0..layout.count() {
            let found = piece_file::read(from, layout, index).map_err(|source| self.unreadable(source))?;
            let Found::Bytes(bytes) = found else { return Err(self.foreign()) };
            builder.push(&bytes);
            statements.push(blake3::hash(&bytes));
            if let Source::Copy(_, to) = &source {
                piece_file::write(to, layout, index, &bytes).map_err(|source| self.unwritable(source))?;
            }
        }
        let chain = builder.finish().ok_or_else(|| self.foreign())?;
        let (Source::Ours(file) | Source::Copy(_, file)) = source;
        Ok(Contents { file: Arc::new(file), chain, statements })
    }

    fn publish(&self, contents: Contents) -> io::Result<Blob> {
        let tree = &self.store.tree;
        let layout = PieceLayout::of(self.len);
        tree.sync_data(&contents.file)?;
        tree.put(self.staged, tree::CHAIN, &chain_file::encode(&contents.chain))?;
        tree.put(self.staged, tree::PIECES, &journal::encode(layout, (0..).zip(&contents.statements)))?;
        loop {
            let claim = self.store.claims.claim(self.digest);
            if !self.store.index.lock().blobs.contains_key(self.digest) {
                let linked = contents.file.metadata()?.nlink() > 1;
                return self.store.publish(self.staged, contents, linked);
            }
            drop(claim);
            // Somebody was faster. If his has left the store again by now, ours is as good as ever.
            if let Some(blob) = self.store.get(self.digest) {
                self.store.discard(self.staged);
                return Ok(blob);
            }
        }
    }

    fn foreign(&self) -> AdoptError {
        AdoptError::Foreign { digest: self.digest.clone(), len: self.len, path: self.path.to_owned() }
    }

    fn unreadable(&self, source: io::Error) -> AdoptError {
        AdoptError::Read { digest: self.digest.clone(), path: self.path.to_owned(), source }
    }

    fn unwritable(&self, source: io::Error) -> AdoptError {
        AdoptError::Write { digest: self.digest.clone(), source }
    }
}
