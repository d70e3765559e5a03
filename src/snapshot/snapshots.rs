//! The snapshotter: every operation as a record change and a rename, in the order that survives a crash.

use std::{
    collections::HashSet,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::FlockOperation;
use tokio_util::sync::CancellationToken;

use super::{
    Cursor, Filter, Info, Kind, LABEL_SNAPSHOT_REF, Labels, Mount, OpenError, Page, SnapshotError, Staging,
    Usage,
    directories::{Directories, Placed},
    mounts::{self, Machine},
    records::{Commit, NewRecord, Records, Standing},
    usage::disk_usage,
};
use crate::oci::Digest;

/// What is on disk before a layer of ours becomes visible.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Every byte of its tree: the layer survives a power cut whole. Costs the write-out of the layer.
    #[default]
    Tree,
    /// The record only, as containerd does by default: after a power cut files can be empty.
    Record,
}

#[derive(Clone, Debug)]
pub struct Settings {
    pub root: PathBuf,
    pub sync: Durability,
}

/// All snapshots under one root. Blocking: see the module.
#[derive(Debug)]
pub struct Snapshots {
    directories: Arc<Directories>,
    records: Records,
    machine: Machine,
    sync: Durability,
    /// Records whose directory was gone at start: kept, because only containerd may drop what it knows.
    lost: HashSet<i64>,
    _lock: File,
}

impl Snapshots {
    /// Opens the snapshots under `root` with the default settings.
    pub fn open(root: &Path) -> Result<Self, OpenError> {
        Self::open_with(Settings { root: root.to_owned(), sync: Durability::default() })
    }

    /// Opens what is there, or begins anew; clears up after a crash.
    pub fn open_with(settings: Settings) -> Result<Self, OpenError> {
        let Settings { root, sync } = settings;
        let disk = |action, path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Disk { action, path, source }
        };
        let directories =
            Directories::at(&root).ok_or_else(|| OpenError::Unmountable { path: root.clone() })?;
        directories.make().map_err(|(path, source)| disk("making directory", &path)(source))?;
        let lock = lock(&root)?;
        if !directories.report_types().map_err(disk("reading directory", &root))? {
            return Err(OpenError::NoDirectoryTypes { path: root });
        }
        let database = root.join("metadata.db");
        let records = Records::open(&database)?;
        let unreadable = |source| OpenError::Records { path: database.clone(), source };
        let recorded = records.ids().map_err(unreadable)?;
        let highest = records.highest_id().map_err(unreadable)?;
        let lost = directories.recover(&recorded, highest).map_err(disk("sweeping", &root))?;
        for &id in &lost {
            let name = records.name_of(id).map_err(unreadable)?;
            tracing::error!(
                id,
                name,
                "a snapshot has lost its directory: remove its image and pull it again"
            );
        }
        let machine = Machine::probe(&root);
        let directories = Arc::new(directories);
        Ok(Self { directories, records, machine, sync, lost: lost.into_iter().collect(), _lock: lock })
    }

    /// Begins a snapshot that can be written and committed, over `parent` or, if that is empty, nothing.
    pub fn prepare(&self, key: &str, parent: &str, labels: &Labels) -> Result<Vec<Mount>, SnapshotError> {
        self.begin(Kind::Active, key, parent, labels)
    }

    /// Begins a snapshot that can only be looked at.
    pub fn view(&self, key: &str, parent: &str, labels: &Labels) -> Result<Vec<Mount>, SnapshotError> {
        self.begin(Kind::View, key, parent, labels)
    }

    fn begin(
        &self,
        kind: Kind,
        key: &str,
        parent: &str,
        labels: &Labels,
    ) -> Result<Vec<Mount>, SnapshotError> {
        let parents = self.records.below(key, parent)?;
        self.refuse_lost(parent, &parents)?;
        let disk = SnapshotError::disk("making a snapshot directory under", self.directories.root());
        let make = || -> io::Result<Placed> {
            let staging = self.directories.stage(kind == Kind::Active)?;
            if let Some(&nearest) = parents.first() {
                staging.own_like(Path::new(&self.directories.fs(nearest)))?;
            }
            staging.place()
        };
        let placed = make().map_err(disk)?;
        let id = placed.id();
        let usage = Usage::default();
        self.records.insert(&NewRecord { id, name: key, parent, kind, labels, usage })?;
        placed.recorded();
        let chain: Vec<i64> = std::iter::once(id).chain(parents).collect();
        Ok(mounts::mounts(&self.directories, &self.machine, kind, &chain))
    }

    /// The mounts of a view or an active snapshot, once more.
    pub fn mounts(&self, key: &str) -> Result<Vec<Mount>, SnapshotError> {
        let Standing { kind, chain } = self.records.standing(key)?;
        if kind == Kind::Committed {
            return Err(SnapshotError::NotMountable { name: key.to_owned() });
        }
        self.refuse_lost(key, &chain)?;
        Ok(mounts::mounts(&self.directories, &self.machine, kind, &chain))
    }

    /// Finishes the active snapshot `key` under `name`. `labels` replace those it had; `parent` may name one
    /// only where `key` has none. The walk that counts its usage is done before the records are touched.
    pub fn commit(
        &self,
        name: &str,
        key: &str,
        parent: Option<&str>,
        labels: &Labels,
    ) -> Result<(), SnapshotError> {
        let (kind, id, _) = self.records.stored_usage(key)?;
        let usage = match kind {
            Kind::Active => self.count(id)?,
            Kind::View | Kind::Committed => Usage::default(),
        };
        self.records.commit(key, usage, &Commit { name, parent, labels })
    }

    /// Forgets a snapshot that nothing stands on. Its directory is deleted by [`Self::cleanup`].
    pub fn remove(&self, key: &str) -> Result<(), SnapshotError> {
        let id = self.records.remove(key)?;
        // The record is gone, so the call has succeeded; what stays behind is swept at the next start.
        if let Err(error) = self.directories.bury(id)
            && !self.lost.contains(&id)
        {
            tracing::warn!(id, key, %error, "cannot put away a removed snapshot's directory");
        }
        Ok(())
    }

    pub fn stat(&self, key: &str) -> Result<Info, SnapshotError> {
        self.records.stat(key)
    }

    /// Changes labels of `name`. `mask` is a list of `labels` and `labels.<key>`, where the key is everything
    /// behind the first dot; an empty one means all that can change. Nothing else can.
    pub fn update(&self, name: &str, new: &Labels, mask: &[String]) -> Result<Info, SnapshotError> {
        self.records.relabel(name, |mut labels| {
            if mask.is_empty() {
                return Ok(new.clone());
            }
            for path in mask {
                if path == "labels" {
                    labels.clone_from(new);
                } else if let Some(key) = path.strip_prefix("labels.") {
                    // Without a new value it is empty, which is how a label goes.
                    labels.insert(key.to_owned(), new.get(key).cloned().unwrap_or_default());
                } else {
                    return Err(SnapshotError::Immutable { name: name.to_owned(), path: path.clone() });
                }
            }
            Ok(labels)
        })
    }

    /// The next snapshots behind `after` that `filter` lets through. Whoever lists holds no lock between two
    /// pages; what is made or removed meanwhile may or may not be seen.
    pub fn list(&self, filter: &Filter, after: Cursor) -> Result<Page, SnapshotError> {
        self.records.page(filter, after)
    }

    /// What a snapshot takes up itself: as counted at its commit, or now if it is active. A view takes up
    /// nothing.
    pub fn usage(&self, key: &str) -> Result<Usage, SnapshotError> {
        match self.records.stored_usage(key)? {
            (Kind::Active, id, _) => {
                self.refuse_lost(key, &[id])?;
                self.count(id)
            }
            (Kind::View | Kind::Committed, _, stored) => Ok(stored),
        }
    }

    /// Deletes the directories of removed snapshots.
    pub fn cleanup(&self) -> Result<(), SnapshotError> {
        let disk = SnapshotError::disk("deleting removed snapshots under", self.directories.root());
        self.directories.delete_dead().map_err(disk)
    }

    /// Deletes the directories of removed snapshots as they come, until `stop`.
    pub async fn keep_clean(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.directories.buried() => {}
            }
            let snapshots = self.clone();
            let cleaned = tokio::task::spawn_blocking(move || snapshots.cleanup()).await;
            if let Ok(Err(error)) = cleaned {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot clean up snapshots");
            }
        }
    }

    /// The committed snapshot that was made for `snapshot_ref` on exactly `parent`. One chain ID can have
    /// several parents, so neither alone says that a snapshot will do.
    pub fn find(&self, snapshot_ref: &str, parent: &str) -> Result<Option<Info>, SnapshotError> {
        let found = self.records.find(snapshot_ref, parent)?;
        Ok(found.into_iter().find(|(id, _)| !self.lost.contains(id)).map(|(_, info)| info))
    }

    /// A fresh directory to build a tree in. It is on the snapshots' file system and goes when it is dropped.
    pub fn stage(&self) -> io::Result<Staging> {
        self.directories.stage(false)
    }

    /// Makes the tree in `staging` a committed snapshot for `chain_id` on `parent`, under the name
    /// `<id>/<chain_id>` and with the label that [`Self::find`] looks for. When this returns, the layer
    /// survives whatever [`Durability`] promises.
    pub fn commit_tree(
        &self,
        staging: Staging,
        chain_id: &Digest,
        parent: &str,
        mut labels: Labels,
    ) -> Result<Info, SnapshotError> {
        let root = self.directories.root();
        self.below(parent)?;
        let usage = disk_usage(staging.path())
            .map_err(SnapshotError::disk("counting the usage of", staging.path()))?;
        if self.sync == Durability::Tree {
            let disk = SnapshotError::disk("writing out the file system of", root);
            self.directories.sync_file_system().map_err(disk)?;
        }
        let placed = staging.place().map_err(SnapshotError::disk("moving a finished layer under", root))?;
        if self.sync == Durability::Tree {
            let disk = SnapshotError::disk("writing out the directory of", root);
            self.directories.sync_snapshots().map_err(disk)?;
        }
        let id = placed.id();
        let name = format!("{id}/{chain_id}");
        labels.insert(LABEL_SNAPSHOT_REF.to_owned(), chain_id.to_string());
        let kind = Kind::Committed;
        let info =
            self.records.insert(&NewRecord { id, name: &name, parent, kind, labels: &labels, usage })?;
        placed.recorded();
        Ok(info)
    }

    /// `fs` directories of the committed `parent` and what it stands on, nearest first; none for `""`.
    pub fn below(&self, parent: &str) -> Result<Vec<PathBuf>, SnapshotError> {
        let chain = self.records.below("", parent)?;
        self.refuse_lost(parent, &chain)?;
        Ok(chain.into_iter().map(|id| PathBuf::from(self.directories.fs(id))).collect())
    }

    fn count(&self, id: i64) -> Result<Usage, SnapshotError> {
        let fs = PathBuf::from(self.directories.fs(id));
        disk_usage(&fs).map_err(SnapshotError::disk("counting the usage of", &fs))
    }

    fn refuse_lost(&self, name: &str, chain: &[i64]) -> Result<(), SnapshotError> {
        match chain.iter().find(|id| self.lost.contains(id)) {
            None => Ok(()),
            Some(&id) => {
                let path = PathBuf::from(self.directories.fs(id));
                Err(SnapshotError::DirectoryLost { name: name.to_owned(), path })
            }
        }
    }
}

/// Takes the root for this process. The kernel gives it back however the process ends.
fn lock(root: &Path) -> Result<File, OpenError> {
    let path = root.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(|source| OpenError::Disk { action: "opening", path: path.clone(), source })?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::InUse { path: root.to_owned() }),
        Err(errno) => Err(OpenError::Disk { action: "locking", path, source: errno.into() }),
    }
}
