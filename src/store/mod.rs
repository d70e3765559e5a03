//! Blobs on disk: arriving, proven, linked, expired.
//!
//! ```text
//! <dir>/lock                                  held for as long as the store is open; the daemon's process id
//! <dir>/arriving/<alg>-<hex>/data             sparse, as long as the blob
//!                            pieces           which pieces are here, and the BLAKE3 of each (`journal`)
//! <dir>/blobs/<alg>/<2 hex>/<hex>/data        the blob: a file of ours, a hard link to containerd's, or where no such
//!                                             link is possible, a symbolic one
//!                                 borrowed    only beside a symbolic link: which file was proven
//!                                 chain       the proven chain (`chain_file`)
//!                                 pieces      the BLAKE3 of each piece; its mtime is the blob's last use
//! <dir>/staging/<n>                           half-made or half-deleted; emptied at start
//! ```
//! A directory moves from `arriving/` (or `staging/`) to `blobs/` and from there to `staging/` in one rename each, so
//! whatever is under `blobs/` is proven and whole. What is in `arriving/` is believed only as far as its bytes match,
//! piece by piece, whenever they are read or a pull resumes. Files of containerd are read and linked, never written
//! and never copied.
//!
//! Blobs that containerd has are *offered* (`offers`): known by name and length, in memory only, and said to be held.
//! The first who asks has them read (`reading`), and only what is proven then is served. What was read once is a blob
//! like others and is not read again, also after a restart: a hard link keeps the very file that was proven, a
//! borrowed one is known by device, inode, length and time, and each piece is checked on its way out anyway.
//!
//! Who deletes: `sweep` (expired, over quota, below `keep_free`), an arrival that needs room, `remove`, `abandon`, and a
//! read that finds rot. All of them delete our link only.
//!
//! Bytes are counted by the lengths of blobs. What lies beside them (64 bytes a piece) and the rest of the last block
//! are not counted: under 0.01 % of a layer and less than 12 KiB a blob.

mod adopt;
mod arrive;
mod arriving;
mod blob;
mod chain_file;
mod claims;
mod file_id;
mod host;
mod index;
mod journal;
mod kept;
mod lock;
mod offers;
mod piece_file;
mod policy;
mod reading;
mod room;
mod shared;
#[cfg(test)]
mod tests;
mod tree;

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::sync::watch;

use crate::oci::Digest;

pub use adopt::{Linked, RelinkError};
pub use arrive::ArriveError;
pub use arriving::{Arriving, CommitError};
pub use blob::Blob;
pub use kept::{File, Kept};
pub use offers::Offered;
pub use piece_file::ReadError;
pub use policy::Why;
pub use reading::{AdoptError, Reading};
pub use room::{Removed, Swept};

use shared::Shared;

/// Where the store is, and how much it may hold.
#[derive(Clone, Debug)]
pub struct Settings {
    pub dir: PathBuf,
    /// Bytes that containerd does not link, with what is arriving; `None` is 10 % of the file system.
    pub quota: Option<u64>,
    /// Bytes of the file system to leave free; `None` is 20 %, above the 15 % at which kubelet begins to remove images.
    pub keep_free: Option<u64>,
    /// Blobs that nobody has used for so long go.
    pub expire_after: Duration,
    /// Whether a blob is on the platter before it is called committed. Without it, what a power failure damages is found
    /// when it is read, and fetched again.
    pub sync: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            dir: PathBuf::from("/var/lib/flotilla/store"),
            quota: None,
            keep_free: None,
            // A week: an image that is rolled out again within it does not leave the registry twice.
            expire_after: Duration::from_hours(168),
            sync: true,
        }
    }
}

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot write to the store's directory {dir}; make it writable, or set node.data_dir to another")]
    Unusable { dir: PathBuf, source: io::Error },
    #[error(
        "the store {dir} is in use by another daemon{}; stop that one, or set node.data_dir to another directory",
        pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
    )]
    InUse { dir: PathBuf, pid: Option<u32> },
    #[error("cannot read the store's blobs under {dir}")]
    Scan { dir: PathBuf, source: io::Error },
    #[error("cannot see how large the file system of {dir} is")]
    Space { dir: PathBuf, source: io::Error },
}

/// How full the store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Proven blobs, containerd's among them.
    pub blobs: u64,
    /// Bytes of proven blobs, and of what has arrived of others.
    pub bytes: u64,
    /// Bytes that count against the quota, as of the last sweep: blobs that containerd does not link, and the whole
    /// length of those arriving.
    pub charged: u64,
    pub quota: u64,
}

/// The blobs of this node. Cheap to clone. All methods block, but `get`, `usage` and `list` only for moments.
#[derive(Clone)]
pub struct Store(Arc<Shared>);

impl Store {
    /// Opens the store, makes it if it is not there, and throws away what a crash left half-made.
    ///
    /// # Errors
    /// The directory cannot be written to, or another daemon has it.
    pub fn open(settings: Settings) -> Result<Self, OpenError> {
        Shared::open(&settings, Box::new(host::Machine)).map(Self)
    }

    /// A blob that is proven and whole; touches its last use.
    #[must_use]
    pub fn get(&self, digest: &Digest) -> Option<Blob> {
        self.0.get(digest)
    }

    /// Begins the arrival of a blob, goes on with one that a restart cut off, or joins one that is under way. Reserves the
    /// bytes that are still missing, and as many as containerd's copy will take. Checks again what an earlier daemon
    /// left, so it blocks for as long as reading that takes.
    ///
    /// # Errors
    /// `NoSpace` if they do not fit, even without all that may be let go. `Proven` if the blob is in the store.
    pub fn arrive(&self, digest: &Digest, len: u64) -> Result<Arriving, ArriveError> {
        self.0.arrive(digest, len)
    }

    /// Takes in a file that containerd owns: reads it once, proves it, and links it (on another file system: points to
    /// it).
    ///
    /// # Errors
    /// `Foreign` if it holds other bytes; then nothing is kept.
    pub fn adopt(&self, digest: &Digest, len: u64, path: &Path) -> Result<Blob, AdoptError> {
        self.0.adopt(digest, len, path)
    }

    /// Puts containerd's file, which it has verified, in the place of ours: one copy on disk. `Copied` if that is not
    /// possible between the two places; ours then stays.
    ///
    /// # Errors
    /// The blob is not in the store, or the file is not one of its length or has been found rotten before.
    pub fn relink(&self, digest: &Digest, path: &Path) -> Result<Linked, RelinkError> {
        self.0.relink(digest, path)
    }

    /// Whether files under `other` (containerd's content store) can be linked into this store.
    ///
    /// # Errors
    /// One of the two places cannot be looked at.
    pub fn links_with(&self, other: &Path) -> io::Result<Linked> {
        self.0.links_with(other)
    }

    /// Lets a proven blob go; whether it was there.
    pub fn remove(&self, digest: &Digest) -> bool {
        self.0.remove(digest)
    }

    #[must_use]
    pub fn usage(&self) -> Usage {
        let index = self.0.index.lock();
        Usage {
            blobs: index.blobs.len() as u64,
            bytes: index.bytes(),
            charged: index.charged(),
            quota: self.0.limits.quota,
        }
    }

    /// Removes what has expired, then, least recently used first, what is over quota and what must go for `keep_free`.
    /// A blob or an arrival that somebody has open stays: its bytes would not come free.
    pub fn sweep(&self, now: SystemTime) -> Swept {
        self.0.sweep(now)
    }

    /// Offers what containerd has, in place of all that was offered before: `dir` has the files as
    /// `<algorithm>/<hex>`, of these lengths. Reads nothing; puts containerd's file in the place of ours where there
    /// are two.
    pub fn offer(&self, dir: &Path, blobs: HashMap<Digest, u64>) {
        self.0.offer(dir, blobs);
    }

    /// containerd has dropped a blob: it is not offered any more. What is proven of it stays as any blob does.
    pub fn withdraw(&self, digest: &Digest) {
        self.0.withdraw(digest);
    }

    /// Begins to read an offered blob; `None` if it is not offered, or proven by now.
    ///
    /// # Errors
    /// The file is not what it should be, or not there.
    pub fn read_offer(&self, digest: &Digest) -> Result<Option<Reading>, AdoptError> {
        self.0.read_offer(digest)
    }

    /// Whether the blob is offered and not proven yet.
    #[must_use]
    pub fn is_unread(&self, digest: &Digest) -> bool {
        self.0.is_unread(digest)
    }

    /// Offered blobs that are not proven yet, and their lengths.
    #[must_use]
    pub fn unread(&self) -> Vec<(Digest, u64)> {
        self.0.unread()
    }

    #[must_use]
    pub fn offered(&self) -> Offered {
        self.0.offered()
    }

    /// Whether the whole blob can be had here: it is proven, or will be as soon as it is asked for. Memory only.
    #[must_use]
    pub fn holds(&self, digest: &Digest) -> bool {
        self.0.index.lock().blobs.contains_key(digest) || self.0.is_offered(digest)
    }

    /// Everything that [`Self::holds`] is true of, with its length. Memory only: a millisecond for thousands.
    #[must_use]
    pub fn holdings(&self) -> Vec<(Digest, u64)> {
        let mut all = self.list();
        all.extend(self.unread());
        all
    }

    /// Wakes when [`Self::holdings`] or [`Self::unread`] may have changed.
    #[must_use]
    pub fn holdings_changed(&self) -> watch::Receiver<()> {
        self.0.changed.subscribe()
    }

    /// The proven blobs and their lengths.
    #[must_use]
    pub fn list(&self) -> Vec<(Digest, u64)> {
        let index = self.0.index.lock();
        index.blobs.iter().map(|(digest, held)| (digest.clone(), held.len)).collect()
    }

    /// Keeps a small file in the store's directory, whole or not at all.
    ///
    /// # Errors
    /// The disk's.
    fn keep_file(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.0.tree.put(self.0.tree.dir(), name, bytes)
    }

    /// What was kept under this name.
    ///
    /// # Errors
    /// It cannot be read.
    fn kept_file(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match std::fs::read(self.0.tree.dir().join(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}
