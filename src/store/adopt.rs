//! One copy on disk: files of containerd's become files of ours, by hard link where that is possible.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{AtFlags, CWD, StatxFlags, statx},
    io::Errno,
};

use crate::oci::Digest;

use super::{AdoptError, Blob, Reading, Shared, file_id::FileId, index::Place};

/// Whether containerd's file and ours are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linked {
    /// One file with two links.
    Linked,
    /// Two files: a link between them is not possible (another file system or mount).
    Copied,
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
        let mut reading = Reading::open(self, digest, len, path)?;
        loop {
            if let Some(blob) = reading.step()? {
                return Ok(blob);
            }
        }
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
            (held.place, held.file_turn) = (Place::Linked, turn);
            held.opened.upgrade()
        });
        drop(index);
        if let Some(opened) = opened {
            opened.swap_file(file);
        }
        Ok(())
    }

    /// Links `path` to `staged` where that is possible; says once where it is not.
    pub(super) fn link(&self, path: &Path, staged: &Path) -> io::Result<Linked> {
        match fs::hard_link(path, staged) {
            Ok(()) => Ok(Linked::Linked),
            Err(error) if forbids_links(&error) => {
                self.said_that_it_copies.call_once(|| {
                    tracing::warn!(store = %self.tree.dir().display(), file = %path.display(), %error, "no hard links between containerd's content store and ours: layers that are pulled are on disk twice; put node.data_dir on containerd's file system and mount");
                });
                Ok(Linked::Copied)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether files under `other` can be linked into the store: both are on one mount. Says once where they are not.
    pub(super) fn links_with(&self, other: &Path) -> io::Result<Linked> {
        let mount = |path: &Path| {
            let found = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)?;
            Ok::<_, Errno>((found.stx_dev_major, found.stx_dev_minor, found.stx_mnt_id))
        };
        if mount(self.tree.dir())? == mount(other)? {
            return Ok(Linked::Linked);
        }
        self.said_that_it_copies.call_once(|| {
            tracing::warn!(
                store = %self.tree.dir().display(),
                content = %other.display(),
                "node.data_dir is on another file system or mount than containerd's content: every blob that is pulled \
                 takes its space twice; put node.data_dir on that file system"
            );
        });
        Ok(Linked::Copied)
    }
}

/// Another file system or mount; one without hard links, or that forbids them to us; a file with all links it may have.
fn forbids_links(error: &io::Error) -> bool {
    let number = error.raw_os_error();
    [Errno::XDEV, Errno::PERM, Errno::MLINK, Errno::NOTSUP]
        .iter()
        .any(|errno| Some(errno.raw_os_error()) == number)
}
