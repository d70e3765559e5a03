//! The tree on disk: names, atomic steps, and what a crash may leave behind.

use std::{
    ffi::OsStr,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use crate::oci::Digest;

pub(super) const DATA: &str = "data";
pub(super) const CHAIN: &str = "chain";
pub(super) const PIECES: &str = "pieces";
pub(super) const BORROWED: &str = "borrowed";
pub(super) const LOCK: &str = "lock";
const BLOBS: &str = "blobs";
const ARRIVING: &str = "arriving";
const STAGING: &str = "staging";

/// The store's directory. Every change that others can see is one rename.
pub(super) struct Tree {
    dir: PathBuf,
    sync: bool,
    staged: AtomicU64,
}

impl Tree {
    /// Makes what is missing of the tree and throws away what was staged before a crash.
    pub(super) fn open(dir: &Path, sync: bool) -> io::Result<Self> {
        let tree = Self { dir: dir.to_owned(), sync, staged: AtomicU64::new(0) };
        let staging = dir.join(STAGING);
        match fs::remove_dir_all(&staging) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        for path in [dir.join(BLOBS), dir.join(ARRIVING), staging] {
            make_dir_all(&path)?;
        }
        Ok(tree)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn blobs_dir(&self) -> PathBuf {
        self.dir.join(BLOBS)
    }

    pub(super) fn arriving_root(&self) -> PathBuf {
        self.dir.join(ARRIVING)
    }

    pub(super) fn blob_dir(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.dir.join(BLOBS).join(digest.algorithm().name()).join(&hex[..2]).join(&hex)
    }

    pub(super) fn arriving_dir(&self, digest: &Digest) -> PathBuf {
        self.dir.join(ARRIVING).join(format!("{}-{}", digest.algorithm().name(), digest.hex()))
    }

    /// A path under `staging/` that nothing else uses. What is left there at a crash goes at the next start.
    pub(super) fn stage(&self) -> PathBuf {
        let number = self.staged.fetch_add(1, Ordering::Relaxed);
        self.dir.join(STAGING).join(number.to_string())
    }

    /// Makes the directory `from`, which holds a whole blob, that blob's place in the store.
    pub(super) fn publish(&self, from: &Path, digest: &Digest) -> io::Result<()> {
        let to = self.blob_dir(digest);
        let parent = to.parent().expect("a blob's directory lies below blobs/");
        make_dir_all(parent)?;
        self.sync_dir(from)?;
        match fs::rename(from, &to) {
            // A leftover that could not be deleted when its blob left the store.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                self.discard(&to)?;
                fs::rename(from, &to)?;
            }
            renamed => renamed?,
        }
        // The names above, too: algorithm and shard directory may be new.
        for dir in parent.ancestors().take(3) {
            self.sync_dir(dir)?;
        }
        self.sync_dir(from.parent().unwrap_or(&self.dir))
    }

    /// Takes the directory at `path` out of sight in one step, then deletes it.
    pub(super) fn discard(&self, path: &Path) -> io::Result<()> {
        let staged = self.stage();
        match fs::rename(path, &staged) {
            Ok(()) => fs::remove_dir_all(staged),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            // A full disk may have no block for one more name, and one that is read-only says so even of nothing.
            Err(_) => match fs::remove_dir_all(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                removed => removed,
            },
        }
    }

    /// Writes `bytes` as `dir/name`, whole or not at all.
    pub(super) fn put(&self, dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.put_synced(&dir.join(name), bytes, self.sync)
    }

    /// As [`Self::put`], for what is checked again before it is believed.
    pub(super) fn put_unsynced(&self, dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.put_synced(&dir.join(name), bytes, false)
    }

    fn put_synced(&self, path: &Path, bytes: &[u8], sync: bool) -> io::Result<()> {
        let staged = self.stage();
        let mut file = create_new(&staged)?;
        let written = file.write_all(bytes).and_then(|()| if sync { file.sync_data() } else { Ok(()) });
        drop(file);
        written.and_then(|()| fs::rename(&staged, path)).inspect_err(|_| self.unstage(&staged))
    }

    /// Deletes a staged file. What cannot be deleted now goes at the next start.
    pub(super) fn unstage(&self, staged: &Path) {
        if let Err(error) = fs::remove_file(staged) {
            tracing::debug!(path = %staged.display(), %error, "cannot delete a staged file");
        }
    }

    pub(super) fn sync_data(&self, file: &File) -> io::Result<()> {
        if self.sync { file.sync_data() } else { Ok(()) }
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        if self.sync { File::open(dir)?.sync_all() } else { Ok(()) }
    }

    /// The digests that have a directory under `blobs/`.
    pub(super) fn blobs(&self) -> io::Result<Vec<Digest>> {
        let mut digests = Vec::new();
        for algorithm in children(&self.blobs_dir())? {
            for shard in children(&algorithm)? {
                for path in children(&shard)? {
                    let digest = parse(algorithm.file_name(), path.file_name());
                    match digest.filter(|digest| self.blob_dir(digest) == path) {
                        Some(digest) => digests.push(digest),
                        None => unknown(&path),
                    }
                }
            }
        }
        Ok(digests)
    }

    /// The digests that have a directory under `arriving/`.
    pub(super) fn arriving(&self) -> io::Result<Vec<Digest>> {
        let mut digests = Vec::new();
        for path in children(&self.arriving_root())? {
            let name = path.file_name().and_then(OsStr::to_str).and_then(|name| name.split_once('-'));
            let digest = name.and_then(|(algorithm, hex)| format!("{algorithm}:{hex}").parse().ok());
            match digest.filter(|digest| self.arriving_dir(digest) == path) {
                Some(digest) => digests.push(digest),
                None => unknown(&path),
            }
        }
        Ok(digests)
    }
}

fn parse(algorithm: Option<&OsStr>, hex: Option<&OsStr>) -> Option<Digest> {
    format!("{}:{}", algorithm?.to_str()?, hex?.to_str()?).parse().ok()
}

fn unknown(path: &Path) {
    tracing::warn!(path = %path.display(), "not a file of the store: left alone");
}

/// The directories in `dir`; whatever else lies there is not ours.
fn children(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            paths.push(entry.path());
        } else {
            unknown(&entry.path());
        }
    }
    Ok(paths)
}

/// 0700: layers may hold secrets, and who may read them is decided at the doors.
pub(super) fn make_dir_all(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// A new file, 0600, open for reading and writing.
pub(super) fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}
