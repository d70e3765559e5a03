//! What the store holds, in memory. Nothing here touches the disk, so its lock is held for moments only.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::oci::Digest;

use super::{
    arriving::Inner,
    blob::Opened,
    file_id::FileId,
    policy::{Candidate, Kind},
};

/// Blobs kept open between reads. An open file each: a quarter of the 1024 that a process may have by default.
const OPEN_MAX: usize = 256;
/// Files of containerd remembered as rotten. A node with more than these has a dying disk, and forgetting the
/// first costs one more refetch.
const DISTRUSTED_MAX: usize = 1024;

/// Whose the file of a blob is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Ours alone.
    Ours,
    /// One file with two names, ours and containerd's.
    Linked,
    /// containerd's alone, at the other end of a symbolic link, where no hard link is possible: this file was proven.
    Borrowed(FileId),
}

/// A proven blob.
pub(super) struct Held {
    pub(super) len: u64,
    pub(super) used: SystemTime,
    pub(super) turn: u64,
    /// The last use that is known on disk.
    pub(super) stamped: SystemTime,
    /// As of the last look.
    pub(super) place: Place,
    pub(super) opened: Weak<Opened>,
    /// Changes whenever another file takes the blob's place.
    pub(super) file_turn: u64,
}

/// A blob that is arriving, or was when the last daemon ended.
#[derive(Clone)]
pub(super) struct Partial {
    pub(super) len: u64,
    pub(super) progress: Arc<Progress>,
    pub(super) inner: Weak<Inner>,
    /// Its room is reserved, its files are being opened.
    pub(super) opening: bool,
}

/// What there is of a blob.
pub(super) enum Present {
    Nothing,
    Arriving(Arc<Inner>),
    Proven,
}

/// How far an arriving blob is; shared between its writers and the accounts.
pub(super) struct Progress {
    missing_bytes: AtomicU64,
    touched_s: AtomicU64,
}

impl Progress {
    pub(super) fn new(missing_bytes: u64, touched: SystemTime) -> Self {
        let progress = Self { missing_bytes: AtomicU64::new(missing_bytes), touched_s: AtomicU64::new(0) };
        progress.touch(touched);
        progress
    }

    pub(super) fn missing_bytes(&self) -> u64 {
        self.missing_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn set_missing(&self, bytes: u64) {
        self.missing_bytes.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn touch(&self, now: SystemTime) {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.touched_s.store(since.as_secs(), Ordering::Relaxed);
    }

    pub(super) fn touched(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.touched_s.load(Ordering::Relaxed))
    }
}

impl Partial {
    pub(super) fn in_use(&self) -> bool {
        self.opening || self.inner.strong_count() > 0
    }

    fn candidate(&self, digest: &Digest) -> Candidate {
        Candidate {
            digest: digest.clone(),
            kind: Kind::Partial,
            frees: self.charged(),
            used: self.progress.touched(),
            turn: 0,
            in_use: self.in_use(),
        }
    }

    fn here(&self) -> u64 {
        self.len.saturating_sub(self.progress.missing_bytes())
    }

    /// Bytes that it counts against the quota: all that will be, or, when nobody is writing, what is there.
    pub(super) fn charged(&self) -> u64 {
        if self.in_use() { self.len } else { self.here() }
    }
}

#[derive(Default)]
pub(super) struct Index {
    pub(super) blobs: HashMap<Digest, Held>,
    pub(super) arriving: HashMap<Digest, Partial>,
    /// The blobs last used, the latest at the back.
    hot: VecDeque<Arc<Opened>>,
    distrusted: VecDeque<FileId>,
    turn: u64,
}

impl Index {
    pub(super) fn next_turn(&mut self) -> u64 {
        self.turn += 1;
        self.turn
    }

    /// Keeps `opened` open; what has to be closed for it comes back, to be closed outside the lock.
    #[must_use]
    pub(super) fn keep_open(&mut self, opened: &Arc<Opened>) -> Option<Arc<Opened>> {
        match self.hot.iter().rposition(|hot| Arc::ptr_eq(hot, opened)) {
            Some(position) => {
                let hot = self.hot.remove(position)?;
                self.hot.push_back(hot);
                None
            }
            None => {
                self.hot.push_back(Arc::clone(opened));
                if self.hot.len() > OPEN_MAX { self.hot.pop_front() } else { None }
            }
        }
    }

    /// Takes a blob out, and its open file from those that are kept open.
    pub(super) fn take(&mut self, digest: &Digest) -> Option<(Held, Option<Arc<Opened>>)> {
        let held = self.blobs.remove(digest)?;
        let position = self.hot.iter().position(|hot| hot.digest() == digest);
        Some((held, position.and_then(|position| self.hot.remove(position))))
    }

    pub(super) fn distrust(&mut self, file: FileId) {
        if self.distrusted.len() == DISTRUSTED_MAX {
            self.distrusted.pop_front();
        }
        self.distrusted.push_back(file);
    }

    pub(super) fn distrusts(&self, file: &FileId) -> bool {
        self.distrusted.contains(file)
    }

    /// Bytes that count against the quota.
    pub(super) fn charged(&self) -> u64 {
        let blobs = self.blobs.values().filter(|held| held.place == Place::Ours).map(|held| held.len);
        blobs.chain(self.arriving.values().map(Partial::charged)).sum()
    }

    /// Bytes in the store, whoever else links them.
    pub(super) fn bytes(&self) -> u64 {
        let arrived = self.arriving.values().map(|partial| partial.here());
        self.blobs.values().map(|held| held.len).chain(arrived).sum()
    }

    /// Bytes of the file system that pulls under way have still to write: the rest of the blob, and containerd's
    /// copy of the whole, which stands beside ours until the link takes its place.
    pub(super) fn outstanding(&self) -> u64 {
        let open = self.arriving.values().filter(|partial| partial.in_use());
        open.map(|partial| partial.progress.missing_bytes() + partial.len).sum()
    }

    /// What there is of `digest`.
    pub(super) fn present(&self, digest: &Digest) -> Present {
        if self.blobs.contains_key(digest) {
            return Present::Proven;
        }
        let inner = self.arriving.get(digest).and_then(|partial| partial.inner.upgrade());
        inner.map_or(Present::Nothing, Present::Arriving)
    }

    /// The files of an arrival whose room was reserved are open, or could not be opened.
    pub(super) fn opened(&mut self, digest: &Digest, inner: Weak<Inner>) {
        if let Some(partial) = self.arriving.get_mut(digest) {
            partial.inner = inner;
            partial.opening = false;
        }
    }

    /// Everything that may be let go.
    pub(super) fn candidates(&self) -> Vec<Candidate> {
        let blobs = self.blobs.iter().map(|(digest, held)| self.blob_candidate(digest, held));
        let partials = self.arriving.iter().map(|(digest, partial)| partial.candidate(digest));
        blobs.chain(partials).collect()
    }

    /// `candidate` as it is now; `None` if it was used since, or is in use.
    pub(super) fn still(&self, candidate: &Candidate) -> Option<Candidate> {
        let digest = &candidate.digest;
        let now = match candidate.kind {
            Kind::Blob => self.blob_candidate(digest, self.blobs.get(digest)?),
            Kind::Partial => self.arriving.get(digest)?.candidate(digest),
        };
        (!now.in_use && now.turn == candidate.turn && now.used == candidate.used).then_some(now)
    }

    fn blob_candidate(&self, digest: &Digest, held: &Held) -> Candidate {
        let handles = held.opened.strong_count();
        let kept_open = handles > 0 && self.hot.iter().any(|hot| hot.is(&held.opened));
        Candidate {
            digest: digest.clone(),
            kind: Kind::Blob,
            frees: if held.place == Place::Ours { held.len } else { 0 },
            used: held.used,
            turn: held.turn,
            in_use: handles > usize::from(kept_open),
        }
    }
}
