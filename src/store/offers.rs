//! What containerd has and this node offers for it: known by name and length, read when somebody asks.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::oci::Digest;

use super::{AdoptError, Reading, Shared, file_id::FileId, index::Place};

/// Files remembered as wrong. A node with more of them has a dying disk, and forgetting one costs reading it again.
const REFUSED_MAX: usize = 1024;

/// containerd's blobs, whether they are proven by now or not.
#[derive(Default)]
pub(super) struct Offers {
    /// `<algorithm>/<hex>` lie in it.
    dir: PathBuf,
    lens: HashMap<Digest, u64>,
    /// Files that do not hold what their names say, and those that have rotted.
    refused: HashMap<Digest, FileId>,
}

/// How much is offered for containerd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offered {
    pub blobs: u64,
    pub bytes: u64,
    /// Blobs of these that nobody has read: they are proven when first asked for, or when the node is idle.
    pub unread: u64,
}

impl Offers {
    /// This file is not offered for the digest any more; another one under its name is.
    pub(super) fn refuse(&mut self, digest: &Digest, file: FileId) {
        self.lens.remove(digest);
        if self.refused.len() < REFUSED_MAX {
            self.refused.insert(digest.clone(), file);
        }
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        path_in(&self.dir, digest)
    }
}

impl Shared {
    pub(super) fn offer(&self, dir: &Path, mut blobs: HashMap<Digest, u64>) {
        let mended = self.mended(dir);
        let mut offers = self.offers.lock();
        dir.clone_into(&mut offers.dir);
        offers.refused.retain(|digest, file| blobs.contains_key(digest) && mended.get(digest) != Some(file));
        blobs.retain(|digest, _| !offers.refused.contains_key(digest));
        let changed = offers.lens != blobs;
        offers.lens = blobs;
        drop(offers);
        if changed {
            self.changed.send_replace(());
        }
        self.relink_apart();
    }

    /// Refused files that are others by now.
    fn mended(&self, dir: &Path) -> HashMap<Digest, FileId> {
        let mut refused = self.offers.lock().refused.clone();
        refused.retain(|digest, file| FileId::at(&path_in(dir, digest)) != Some(*file));
        refused
    }

    /// Reading what is offered for the digest came to nothing: a wrong file is not read again before it changes,
    /// another one not before the next time that containerd is said to have it.
    pub(super) fn offer_failed(&self, digest: &Digest, error: &AdoptError) {
        self.offers.lock().lens.remove(digest);
        if let AdoptError::Foreign { path, .. } = error
            && let Some(file) = FileId::at(path)
        {
            self.offers.lock().refuse(digest, file);
        }
        self.changed.send_replace(());
    }

    /// What containerd fetched once more by itself need not be on disk twice.
    fn relink_apart(&self) {
        let ours: Vec<Digest> = {
            let index = self.index.lock();
            let ours = index.blobs.iter().filter(|(_, held)| held.place == Place::Ours);
            ours.map(|(digest, _)| digest.clone()).collect()
        };
        for digest in ours {
            let offers = self.offers.lock();
            let path = offers.lens.contains_key(&digest).then(|| offers.path(&digest));
            drop(offers);
            let relinked = path.map(|path| self.relink(&digest, &path));
            if let Some(Err(error)) = relinked {
                tracing::warn!(%digest, error = &error as &dyn std::error::Error, "two copies of a blob stay on disk");
            }
        }
    }

    pub(super) fn withdraw(&self, digest: &Digest) {
        if self.offers.lock().lens.remove(digest).is_some() {
            self.changed.send_replace(());
        }
    }

    pub(super) fn is_offered(&self, digest: &Digest) -> bool {
        self.offers.lock().lens.contains_key(digest)
    }

    /// Begins to read what is offered; `None` if it is not, or is proven already.
    pub(super) fn read_offer(self: &Arc<Self>, digest: &Digest) -> Result<Option<Reading>, AdoptError> {
        if self.index.lock().blobs.contains_key(digest) {
            return Ok(None);
        }
        let offers = self.offers.lock();
        let Some(&len) = offers.lens.get(digest) else { return Ok(None) };
        let path = offers.path(digest);
        drop(offers);
        let opened = Reading::open(self, digest, len, &path);
        opened.map(Some).inspect_err(|error| self.offer_failed(digest, error))
    }

    pub(super) fn is_unread(&self, digest: &Digest) -> bool {
        self.is_offered(digest) && !self.index.lock().blobs.contains_key(digest)
    }

    /// Offered blobs that are not proven.
    pub(super) fn unread(&self) -> Vec<(Digest, u64)> {
        let (offers, index) = (self.offers.lock(), self.index.lock());
        let unread = offers.lens.iter().filter(|(digest, _)| !index.blobs.contains_key(digest));
        unread.map(|(digest, &len)| (digest.clone(), len)).collect()
    }

    pub(super) fn offered(&self) -> Offered {
        let (offers, index) = (self.offers.lock(), self.index.lock());
        let unread = offers.lens.keys().filter(|digest| !index.blobs.contains_key(digest)).count();
        Offered { blobs: offers.lens.len() as u64, bytes: offers.lens.values().sum(), unread: unread as u64 }
    }
}

fn path_in(dir: &Path, digest: &Digest) -> PathBuf {
    dir.join(digest.algorithm().name()).join(digest.hex())
}
