//! Directories of snapshots: where they are, and the renames that carry them from one state to the next.

use std::{
    collections::HashSet,
    fs::{self, DirBuilder, File, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, FileType, Gid, Uid};
use tokio::sync::Notify;

/// Only root walks through a snapshotter's root: setuid files of images lie under it.
const PRIVATE: u32 = 0o700;
/// The root directory of a container, as containerd makes it.
const FS_MODE: u32 = 0o755;
/// Overlay makes `work/work` itself; containerd lets everybody pass, so do we.
const WORK_MODE: u32 = 0o711;

/// The directories under one root. Hands out ids.
#[derive(Debug)]
pub(super) struct Directories {
    /// Absolute and fit for a mount option.
    root: String,
    next_id: AtomicI64,
    /// Told whenever something lands in `dead`.
    buried: Notify,
    /// One deleter at a time: two would trip over each other's entries.
    deleting: Mutex<()>,
}

impl Directories {
    /// `None` if the path cannot stand in a mount option: overlay splits them at `:` and `,` and unescapes
    /// backslashes.
    pub(super) fn at(root: &Path) -> Option<Self> {
        let root = std::path::absolute(root).ok()?.to_str()?.to_owned();
        let fit = !root.contains([':', ',', '\\', '\n']);
        fit.then(|| Self {
            root,
            next_id: AtomicI64::new(1),
            buried: Notify::new(),
            deleting: Mutex::new(()),
        })
    }

    pub(super) fn root(&self) -> &Path {
        Path::new(&self.root)
    }

    pub(super) fn fs(&self, id: i64) -> String {
        format!("{}/snapshots/{id}/fs", self.root)
    }

    pub(super) fn work(&self, id: i64) -> String {
        format!("{}/snapshots/{id}/work", self.root)
    }

    fn state(&self, state: &str) -> PathBuf {
        self.root().join(state)
    }

    fn entry(&self, state: &str, id: i64) -> PathBuf {
        self.state(state).join(id.to_string())
    }

    /// Makes what is not there yet.
    pub(super) fn make(&self) -> Result<(), (PathBuf, io::Error)> {
        let mut builder = DirBuilder::new();
        builder.mode(PRIVATE).recursive(true);
        for path in
            [self.root().to_owned(), self.state("snapshots"), self.state("staging"), self.state("dead")]
        {
            builder.create(&path).map_err(|error| (path, error))?;
        }
        Ok(())
    }

    /// Whether directory entries say what they are. Overlay cannot tell a whiteout without.
    pub(super) fn report_types(&self) -> io::Result<bool> {
        let entries = rustix::fs::Dir::new(File::open(self.root())?)?;
        for entry in entries {
            if entry?.file_type() == FileType::Unknown {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// At start: everything without a record goes to `dead`, ids continue above all that was ever seen.
    /// Returns the records whose directory is gone.
    pub(super) fn recover(&self, recorded: &HashSet<i64>, highest: i64) -> io::Result<Vec<i64>> {
        let here = self.ids("snapshots")?;
        let staged = self.ids("staging")?;
        let dead = self.ids("dead")?;
        let top = [&here, &staged, &dead].into_iter().flatten().copied().max().unwrap_or(0).max(highest);
        self.next_id.store(top + 1, Ordering::Relaxed);
        for id in staged {
            fs::rename(self.entry("staging", id), self.entry("dead", id))?;
        }
        for &id in here.difference(recorded) {
            tracing::info!(id, "sweeping a snapshot directory that has no record");
            fs::rename(self.entry("snapshots", id), self.entry("dead", id))?;
        }
        self.buried.notify_one();
        let whole = |id: &&i64| here.contains(id) && Path::new(&self.fs(**id)).is_dir();
        let mut lost: Vec<i64> = recorded.iter().filter(|id| !whole(id)).copied().collect();
        lost.sort_unstable();
        Ok(lost)
    }

    fn ids(&self, state: &str) -> io::Result<HashSet<i64>> {
        let mut ids = HashSet::new();
        for entry in fs::read_dir(self.state(state))? {
            let name = entry?.file_name();
            match name.to_str().and_then(|name| name.parse().ok()) {
                Some(id) => _ = ids.insert(id),
                None => tracing::warn!(?name, state, "leaving a directory entry that is not ours alone"),
            }
        }
        Ok(ids)
    }

    /// A fresh directory in `staging`, with room for overlay's own work if it will be written through it.
    pub(super) fn stage(self: &Arc<Self>, writable: bool) -> io::Result<Staging> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let entry = self.entry("staging", id);
        make_directory(&entry, PRIVATE)?;
        let staging = Staging { directories: self.clone(), id, fs: entry.join("fs"), moved: false };
        make_directory(&staging.fs, FS_MODE)?;
        if writable {
            make_directory(&entry.join("work"), WORK_MODE)?;
        }
        Ok(staging)
    }

    /// Takes the directory of a removed snapshot out of sight.
    pub(super) fn bury(&self, id: i64) -> io::Result<()> {
        self.bury_from("snapshots", id)
    }

    fn bury_from(&self, state: &str, id: i64) -> io::Result<()> {
        fs::rename(self.entry(state, id), self.entry("dead", id))?;
        self.buried.notify_one();
        Ok(())
    }

    /// Waits until there may be something for [`Self::delete_dead`].
    pub(super) async fn buried(&self) {
        self.buried.notified().await;
    }

    /// Deletes what is in `dead`. What cannot be deleted stays for the next time and is named in the log.
    pub(super) fn delete_dead(&self) -> io::Result<()> {
        let _only_one = self.deleting.lock();
        for entry in fs::read_dir(self.state("dead"))? {
            let path = entry?.path();
            if let Err(error) = fs::remove_dir_all(&path) {
                tracing::warn!(path = %path.display(), %error, "cannot delete a removed snapshot's directory");
            }
        }
        Ok(())
    }

    /// Writes out every file of the file system: one call, where an `fsync` a file would be thousands.
    pub(super) fn sync_file_system(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(File::open(self.root())?)?)
    }

    /// Makes the renames into `snapshots` last.
    pub(super) fn sync_snapshots(&self) -> io::Result<()> {
        File::open(self.state("snapshots"))?.sync_all()
    }
}

/// The umask of whoever started us must not decide the mode.
fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().mode(mode).create(path)?;
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// A directory that is being filled and that nothing refers to yet. Dropped, it is rubbish.
#[derive(Debug)]
pub struct Staging {
    directories: Arc<Directories>,
    id: i64,
    fs: PathBuf,
    moved: bool,
}

impl Staging {
    /// Where the tree is built. It becomes the snapshot's `fs` with the mode and owner that it has then.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.fs
    }

    /// Gives the tree the owner of the tree that it will lie over: in a merged view the upper root is seen.
    pub(super) fn own_like(&self, lower: &Path) -> io::Result<()> {
        let lower = fs::metadata(lower)?;
        let (uid, gid) = (Uid::from_raw(lower.uid()), Gid::from_raw(lower.gid()));
        let here = rustix::fs::CWD;
        Ok(rustix::fs::chownat(here, &self.fs, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Moves it to where a record of its id will look for it.
    pub(super) fn place(mut self) -> io::Result<Placed> {
        fs::rename(self.directories.entry("staging", self.id), self.directories.entry("snapshots", self.id))?;
        self.moved = true;
        Ok(Placed { directories: self.directories.clone(), id: self.id, recorded: false })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.moved {
            log_if_stuck(self.id, self.directories.bury_from("staging", self.id));
        }
    }
}

/// A directory in its place whose record is about to be written. Dropped without one, it is rubbish.
#[derive(Debug)]
pub(super) struct Placed {
    directories: Arc<Directories>,
    id: i64,
    recorded: bool,
}

impl Placed {
    pub(super) fn id(&self) -> i64 {
        self.id
    }

    /// The record is durable: the directory is its own from here on.
    pub(super) fn recorded(mut self) {
        self.recorded = true;
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        if !self.recorded {
            log_if_stuck(self.id, self.directories.bury(self.id));
        }
    }
}

fn log_if_stuck(id: i64, buried: io::Result<()>) {
    if let Err(error) = buried {
        tracing::warn!(id, %error, "cannot put away an abandoned snapshot directory: the next start will");
    }
}
