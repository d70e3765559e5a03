//! The store's state, and the steps that change it.
//!
//! Locks are taken in this order: an arrival's `ending`, one claim on a digest, the offers, the index. The last two are
//! never held while the disk is asked for anything. Who holds a claim only tries for another.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Once},
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::oci::Digest;

use super::{
    Arriving, Blob, OpenError, Settings,
    blob::{Contents, Opened},
    claims::Claims,
    file_id::FileId,
    host::{Host, Space},
    index::{Held, Index, Partial, Place, Progress},
    lock::{self, Lock, Locked},
    offers::Offers,
    policy::{Candidate, Kind},
    tree::{self, Tree},
};

/// How coarsely the last use is kept on disk: at most so much of `expire_after` is lost in a restart.
const STAMPS_PER_EXPIRY: u32 = 64;
/// Free bytes that no pull may reserve, so that containerd's and our own records can be written to a full disk.
const FLOOR_MAX: u64 = 64 << 20;
/// On a small file system, the part of it that the floor takes.
const FLOOR_PART: u64 = 64;

pub(super) struct Shared {
    pub(super) tree: Tree,
    pub(super) host: Box<dyn Host>,
    pub(super) claims: Claims,
    pub(super) index: Mutex<Index>,
    pub(super) offers: Mutex<Offers>,
    /// Told whenever a blob comes to what this node holds or offers, or goes from it.
    pub(super) changed: watch::Sender<()>,
    pub(super) limits: Limits,
    pub(super) said_that_it_copies: Once,
    _lock: Lock,
}

/// The settings with their defaults filled in; bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) quota: u64,
    pub(super) keep_free: u64,
    pub(super) floor: u64,
    pub(super) expire_after: Duration,
}

impl Limits {
    fn new(settings: &Settings, space: Space) -> Self {
        Self {
            quota: settings.quota.unwrap_or(space.total / 10),
            keep_free: settings.keep_free.unwrap_or(space.total / 5),
            floor: FLOOR_MAX.min(space.total / FLOOR_PART),
            expire_after: settings.expire_after,
        }
    }
}

impl Shared {
    pub(super) fn open(settings: &Settings, host: Box<dyn Host>) -> Result<Arc<Self>, OpenError> {
        let dir = &settings.dir;
        let unusable = |source| OpenError::Unusable { dir: dir.clone(), source };
        tree::make_dir_all(dir).map_err(unusable)?;
        let lock = match lock::lock(dir).map_err(unusable)? {
            Locked::Ours(lock) => lock,
            Locked::Theirs(pid) => return Err(OpenError::InUse { dir: dir.clone(), pid }),
        };
        let tree = Tree::open(dir, settings.sync).map_err(unusable)?;
        let space = host.space(dir).map_err(|source| OpenError::Space { dir: dir.clone(), source })?;
        let mut index = Index::default();
        scan_blobs(&tree, &mut index).map_err(|source| OpenError::Scan { dir: tree.blobs_dir(), source })?;
        scan_arriving(&tree, &mut index)
            .map_err(|source| OpenError::Scan { dir: tree.arriving_root(), source })?;
        Ok(Arc::new(Self {
            tree,
            host,
            claims: Claims::default(),
            index: Mutex::new(index),
            offers: Mutex::default(),
            changed: watch::Sender::new(()),
            limits: Limits::new(settings, space),
            said_that_it_copies: Once::new(),
            _lock: lock,
        }))
    }

    pub(super) fn get(self: &Arc<Self>, digest: &Digest) -> Option<Blob> {
        let now = self.host.now();
        loop {
            let (len, file_turn, stamp, opened) = self.touch(digest, now)?;
            if stamp {
                self.stamp(digest, now);
            }
            if let Some(opened) = opened {
                return Some(Blob::new(opened));
            }
            match Contents::load(&self.tree.blob_dir(digest), digest, len) {
                Ok(Some(contents)) => {
                    let opened = Opened::new(self, contents);
                    if let Some(opened) = self.keep(digest, file_turn, opened) {
                        return Some(Blob::new(opened));
                    }
                }
                Ok(None) => self.drop_damaged(digest, file_turn, "its proof is damaged"),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.drop_damaged(digest, file_turn, "a file of it is gone");
                }
                Err(error) => {
                    tracing::error!(%digest, %error, "cannot open a blob of the store");
                    return None;
                }
            }
        }
    }

    /// Notes a use of the blob: its length, which file it is in, whether the use should be put on disk, and what is open
    /// of it.
    fn touch(&self, digest: &Digest, now: SystemTime) -> Option<(u64, u64, bool, Option<Arc<Opened>>)> {
        let stamp_every = self.limits.expire_after / STAMPS_PER_EXPIRY;
        let mut index = self.index.lock();
        let turn = index.next_turn();
        let held = index.blobs.get_mut(digest)?;
        (held.used, held.turn) = (now, turn);
        let stamp = now.duration_since(held.stamped).is_ok_and(|since| since >= stamp_every);
        if stamp {
            held.stamped = now;
        }
        let (len, file_turn, opened) = (held.len, held.file_turn, held.opened.upgrade());
        let closing = opened.as_ref().and_then(|opened| index.keep_open(opened));
        drop(index);
        drop(closing);
        Some((len, file_turn, stamp, opened))
    }

    /// Puts the last use on disk, as the time of the file `pieces`.
    fn stamp(&self, digest: &Digest, now: SystemTime) {
        let path = self.tree.blob_dir(digest).join(tree::PIECES);
        if let Err(error) = File::open(path).and_then(|file| file.set_modified(now)) {
            tracing::debug!(%digest, %error, "cannot note the last use of a blob");
        }
    }

    /// Makes `opened` what others get, unless somebody was faster; `None` if the blob lies in another file by now.
    fn keep(&self, digest: &Digest, file_turn: u64, opened: Arc<Opened>) -> Option<Arc<Opened>> {
        let mut index = self.index.lock();
        let held = index.blobs.get_mut(digest).filter(|held| held.file_turn == file_turn)?;
        let opened = match held.opened.upgrade() {
            Some(faster) => faster,
            None => {
                held.opened = Arc::downgrade(&opened);
                opened
            }
        };
        let closing = index.keep_open(&opened);
        drop(index);
        drop(closing);
        Some(opened)
    }

    /// Makes the directory `from`, which holds a whole and proven blob, a blob of the store. The caller has claimed
    /// the digest.
    pub(super) fn publish(
        self: &Arc<Self>,
        from: &Path,
        contents: Contents,
        place: Place,
    ) -> io::Result<Blob> {
        let digest = contents.chain.digest().clone();
        let len = contents.chain.layout().blob_len();
        self.tree.publish(from, &digest)?;
        let opened = Opened::new(self, contents);
        let now = self.host.now();
        let mut index = self.index.lock();
        let turn = index.next_turn();
        let held = Held {
            len,
            used: now,
            turn,
            stamped: now,
            place,
            opened: Arc::downgrade(&opened),
            file_turn: turn,
        };
        index.blobs.insert(digest.clone(), held);
        let closing = index.keep_open(&opened);
        // What began to arrive is not needed any more; an open arrival ends itself.
        let leftover = index
            .arriving
            .get(&digest)
            .is_some_and(|partial| !partial.in_use() || self.tree.arriving_dir(&digest) == from);
        if leftover {
            index.arriving.remove(&digest);
        }
        drop(index);
        drop(closing);
        if leftover {
            self.discard(&self.tree.arriving_dir(&digest));
        }
        self.changed.send_replace(());
        Ok(Blob::new(opened))
    }

    /// Deletes an arrival that was abandoned or that somebody else made needless.
    pub(super) fn end_arrival(&self, digest: &Digest, arriving: &Arriving) {
        let _claim = self.claims.claim(digest);
        let mut index = self.index.lock();
        let its_own =
            index.arriving.get(digest).is_some_and(|partial| partial.inner.ptr_eq(&arriving.downgrade()));
        if its_own {
            index.arriving.remove(digest);
        }
        drop(index);
        if its_own {
            self.discard(&self.tree.arriving_dir(digest));
        }
    }

    /// The disk gave other bytes than were proven: the blob leaves the store. Only our link goes; whoever else links
    /// the file keeps it as it is.
    pub(super) fn convict(&self, opened: &Opened, file: &File, piece: u32) {
        let digest = opened.digest();
        let _claim = self.claims.claim(digest);
        let metadata = file.metadata().ok();
        let mut index = self.index.lock();
        if !index.blobs.get(digest).is_some_and(|held| opened.is(&held.opened)) {
            return;
        }
        let taken = index.take(digest);
        let borrowed = taken.as_ref().is_some_and(|(held, _)| matches!(held.place, Place::Borrowed(_)));
        let linked = borrowed || metadata.as_ref().is_some_and(|metadata| metadata.nlink() > 1);
        let theirs = metadata.filter(|_| linked).map(|metadata| FileId::of(&metadata));
        if let Some(file) = theirs {
            index.distrust(file);
        }
        drop(index);
        self.forget(digest, taken);
        if let Some(file) = theirs {
            self.offers.lock().refuse(digest, file);
        }
        if linked {
            tracing::error!(%digest, piece, "containerd's copy of a blob has rotted on disk: our link to it is dropped and the blob is fetched again when it is wanted; containerd's copy is left as it is, mend it with `ctr -n NAMESPACE content rm {digest}` and another pull of the image, and look at the disk");
        } else {
            tracing::error!(%digest, piece, "a blob has rotted on disk: it is dropped and fetched again when it is wanted; look at the disk");
        }
    }

    fn drop_damaged(&self, digest: &Digest, file_turn: u64, what: &'static str) {
        let _claim = self.claims.claim(digest);
        let mut index = self.index.lock();
        if index.blobs.get(digest).is_none_or(|held| held.file_turn != file_turn) {
            return;
        }
        let taken = index.take(digest);
        drop(index);
        self.forget(digest, taken);
        tracing::error!(%digest, "a blob of the store is dropped and fetched again when it is wanted: {what}");
    }

    pub(super) fn remove(&self, digest: &Digest) -> bool {
        let _claim = self.claims.claim(digest);
        let taken = self.index.lock().take(digest);
        let found = taken.is_some();
        if found {
            self.forget(digest, taken);
        }
        found
    }

    /// Closes and deletes what was taken out of the index. The caller has claimed the digest.
    fn forget(&self, digest: &Digest, taken: Option<(Held, Option<Arc<Opened>>)>) {
        drop(taken);
        self.discard(&self.tree.blob_dir(digest));
        self.changed.send_replace(());
    }

    /// Lets something go; the bytes that came free, `None` if somebody has begun to use it.
    pub(super) fn evict(&self, candidate: &Candidate) -> Option<u64> {
        let digest = &candidate.digest;
        let _claim = self.claims.try_claim(digest)?;
        let mut index = self.index.lock();
        let frees = index.still(candidate)?.frees;
        match candidate.kind {
            Kind::Blob => {
                let taken = index.take(digest);
                drop(index);
                self.forget(digest, taken);
            }
            Kind::Partial => {
                index.arriving.remove(digest);
                drop(index);
                self.discard(&self.tree.arriving_dir(digest));
            }
        }
        Some(frees)
    }

    pub(super) fn discard(&self, path: &Path) {
        if let Err(error) = self.tree.discard(path) {
            tracing::warn!(path = %path.display(), %error, "cannot delete from the store");
        }
    }

    /// Looks which files containerd links by now, and lets go of those that were borrowed and are gone. Costs one
    /// `stat` for each blob.
    pub(super) fn look_at_links(&self) {
        let places: Vec<(Digest, Place)> =
            self.index.lock().blobs.iter().map(|(digest, held)| (digest.clone(), held.place)).collect();
        for (digest, before) in places {
            let now = place_now(&self.data_path(&digest), before);
            if now == Some(before) {
                continue;
            }
            let Some(_claim) = self.claims.try_claim(&digest) else { continue };
            let mut index = self.index.lock();
            // Another file may have taken its place meanwhile.
            let Some(held) = index.blobs.get_mut(&digest).filter(|held| held.place == before) else {
                continue;
            };
            match now {
                Some(now) => held.place = now,
                None => {
                    let taken = index.take(&digest);
                    drop(index);
                    self.forget(&digest, taken);
                    tracing::info!(%digest, "containerd has dropped a blob that was served from its own file");
                }
            }
        }
    }

    pub(super) fn data_path(&self, digest: &Digest) -> PathBuf {
        self.tree.blob_dir(digest).join(tree::DATA)
    }
}

/// Where the file is by now; `None` if it was borrowed and is another one, or gone.
fn place_now(data: &Path, before: Place) -> Option<Place> {
    match (before, fs::metadata(data)) {
        (Place::Borrowed(file), Ok(found)) => (FileId::of(&found) == file).then_some(before),
        (Place::Borrowed(_), Err(_)) => None,
        (Place::Ours | Place::Linked, Ok(found)) if found.nlink() > 1 => Some(Place::Linked),
        (Place::Ours | Place::Linked, Ok(_)) => Some(Place::Ours),
        (Place::Ours | Place::Linked, Err(_)) => Some(before),
    }
}

/// Length and place of the blob in `dir`; `None` if it is not whole, or was read from a file that is another one now.
fn find_data(dir: &Path) -> Option<(u64, Place)> {
    let data = dir.join(tree::DATA);
    let (Ok(named), Ok(found)) = (fs::symlink_metadata(&data), fs::metadata(&data)) else { return None };
    let file = FileId::of(&found);
    let place = if !named.is_symlink() {
        if found.nlink() > 1 { Place::Linked } else { Place::Ours }
    } else if fs::read_to_string(dir.join(tree::BORROWED)).is_ok_and(|noted| noted == file.to_line()) {
        Place::Borrowed(file)
    } else {
        return None;
    };
    Some((found.len(), place))
}

/// Reads which blobs there are. What is not whole is what a crash in the middle of a deletion leaves.
fn scan_blobs(tree: &Tree, index: &mut Index) -> io::Result<()> {
    for digest in tree.blobs()? {
        let dir = tree.blob_dir(&digest);
        let files = (find_data(&dir), fs::symlink_metadata(dir.join(tree::PIECES)));
        let (Some((len, place)), Ok(pieces)) = files else {
            tree.discard(&dir)?;
            continue;
        };
        let used = pieces.modified()?;
        let turn = index.next_turn();
        let held =
            Held { len, used, turn, stamped: used, place, opened: std::sync::Weak::new(), file_turn: turn };
        index.blobs.insert(digest, held);
    }
    Ok(())
}

/// Reads which blobs had begun to arrive. How much of each is here is known only by its blocks until somebody
/// wants it and its pieces are checked.
fn scan_arriving(tree: &Tree, index: &mut Index) -> io::Result<()> {
    const BLOCK_LEN: u64 = 512;
    for digest in tree.arriving()? {
        let dir = tree.arriving_dir(&digest);
        let Ok(data) = fs::symlink_metadata(dir.join(tree::DATA)) else {
            tree.discard(&dir)?;
            continue;
        };
        let missing = data.len().saturating_sub(data.blocks() * BLOCK_LEN);
        let partial = Partial {
            len: data.len(),
            progress: Arc::new(Progress::new(missing, data.modified()?)),
            inner: std::sync::Weak::new(),
            opening: false,
        };
        index.arriving.insert(digest, partial);
    }
    Ok(())
}
