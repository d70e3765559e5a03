//! One layer of one namespace being made: its blob pulled, its tree built, its bytes in containerd's content store.
//!
//! ```text
//! run ── pull (one flight a digest) ── proven ── ingest ── relink ──▶ Content::Present
//!   └── build, on a blocking thread, from the pull's reader ─────────▶ Tree::Ready
//! ```
//! The two ends are reported side by side: an intercepted layer needs both, a layer that was handed over needs
//! the content alone.

use std::{
    io::{self, Read},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Parts,
    budget::is_enough,
    ingest::ingest,
    intercept::{Image, LayerOf},
    source::Source,
};
use crate::{
    origin::{Asker, Kind},
    pull::{Pull, PullState, Want},
    snapshot::{Snapshots, Staging},
    store::Blob,
    unpack::{self, Built, UnpackError},
};

/// Whether a layer's blob is in the content store of its namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Pending,
    Present,
    /// The image discards unpacked layers and this one was not handed over: proven, and not wanted there.
    Unwanted,
    /// Proven, and containerd fetches it from our mirror.
    Mirrored,
    Failed {
        reason: &'static str,
    },
}

/// Where a layer's tree stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tree {
    Building,
    Ready,
    /// A snapshot has it, now or before this job.
    Taken,
    /// The layer was handed over: containerd unpacks it.
    Dropped,
    /// Our builder refuses this tar; containerd may accept it.
    Refused {
        reason: &'static str,
    },
}

/// How far a layer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) content: Content,
    pub(super) tree: Tree,
}

impl Progress {
    /// Nothing more will happen of itself.
    pub(super) fn is_settled(&self) -> bool {
        self.content != Content::Pending && self.tree != Tree::Building
    }
}

/// What a job is for.
#[derive(Clone, Debug)]
pub(super) struct Order {
    pub(super) namespace: String,
    pub(super) image: Arc<Image>,
    /// Which of the image's layers.
    pub(super) index: usize,
    /// No snapshot has this layer's tree yet.
    pub(super) tree_wanted: bool,
}

impl Order {
    pub(super) fn layer(&self) -> &LayerOf {
        &self.image.layers[self.index]
    }

    fn want(&self) -> Want {
        let blob = &self.layer().descriptor;
        Want {
            digest: blob.digest.clone(),
            len: blob.size,
            origins: self.image.origins.clone(),
            kind: Kind::Blob,
            asker: Asker::Node,
            image: Some(self.image.title()),
        }
    }
}

/// A layer being made. Dropping the last handle ends the work; the pull behind it lingers by itself.
pub(super) struct Job {
    pub(super) order: Order,
    source: Source,
    began: Instant,
    progress: watch::Sender<Progress>,
    built: Mutex<Option<(Staging, Built)>>,
    /// Of the pull that asked last; an earlier one's is gone when its client is.
    lease: Mutex<Option<String>>,
    /// The one that the blob was written under, once it was.
    kept_by: Mutex<Option<Option<String>>>,
    handed_over: AtomicBool,
    /// containerd fetches the blob from our mirror.
    mirrored: AtomicBool,
    /// containerd was told to wait for the blob.
    awaited: AtomicBool,
    /// Somebody tells the holder how the job goes.
    followed: AtomicBool,
    /// Serialises those who want to turn the tree into a snapshot.
    pub(super) claim: tokio::sync::Mutex<()>,
    _stop: DropGuard,
}

impl Job {
    /// Starts to make the layer of `order`.
    pub(super) fn start(
        parts: &Parts,
        builders: &Arc<Semaphore>,
        order: Order,
        lease: Option<String>,
    ) -> Arc<Self> {
        let stop = parts.stop.child_token();
        let tree = if order.tree_wanted { Tree::Building } else { Tree::Taken };
        let job = Arc::new(Self {
            source: Source::start(parts, order.want()),
            order,
            began: Instant::now(),
            progress: watch::Sender::new(Progress { content: Content::Pending, tree }),
            built: Mutex::new(None),
            lease: Mutex::new(lease),
            kept_by: Mutex::new(None),
            handed_over: AtomicBool::new(false),
            mirrored: AtomicBool::new(false),
            awaited: AtomicBool::new(false),
            followed: AtomicBool::new(false),
            claim: tokio::sync::Mutex::new(()),
            _stop: stop.clone().drop_guard(),
        });
        let weak = Arc::downgrade(&job);
        let worker = Worker { parts: parts.clone(), builders: Arc::clone(builders), stop };
        if job.order.tree_wanted {
            parts.tasks.spawn(worker.clone().build(weak.clone()));
        }
        parts.tasks.spawn(worker.store(weak));
        job
    }

    /// Whether its bytes are here by then, if they go on coming as they came.
    pub(super) fn ends_by(&self, then: Instant) -> bool {
        let status = self.pull().status();
        let (came, missing) = (status.bytes.peer + status.bytes.origin, status.len - status.arrived);
        let now = Instant::now();
        is_enough(then.saturating_duration_since(now), missing, (came, now.duration_since(self.began)))
    }

    pub(super) fn pull(&self) -> Pull {
        self.source.pull().0
    }

    fn has_another_source(&self, number: u32, parts: &Parts) -> bool {
        self.source.is_another(number, parts, || self.order.want())
    }

    pub(super) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// containerd will unpack this layer: its blob is wanted whatever the image discards, its tree is not, unless
    /// it is finished.
    pub(super) fn hand_over(&self) {
        self.handed_over.store(true, Ordering::Release);
        self.progress.send_if_modified(|progress| {
            let unfinished = progress.tree == Tree::Building;
            if unfinished {
                progress.tree = Tree::Dropped;
            }
            unfinished
        });
    }

    /// As [`Self::hand_over`], and containerd fetches the blob from our mirror: writing it there as well would be one
    /// copy too many. A tree that is finished stays, and its blob is written for it.
    pub(super) fn leave_to_mirror(&self) {
        self.hand_over();
        if self.progress.borrow().tree == Tree::Dropped {
            self.mirrored.store(true, Ordering::Release);
        }
    }

    pub(super) fn is_left_to_mirror(&self) -> bool {
        self.mirrored.load(Ordering::Acquire)
    }

    pub(super) fn is_handed_over(&self) -> bool {
        self.handed_over.load(Ordering::Acquire)
    }

    /// Nothing more will happen of itself.
    pub(super) fn is_settled(&self) -> bool {
        self.progress.borrow().is_settled()
    }

    /// The layer is where it should be, as far as this job is concerned.
    pub(super) fn is_done(&self) -> bool {
        let Progress { content, tree } = &*self.progress.borrow();
        let stored = matches!(content, Content::Present | Content::Mirrored | Content::Unwanted);
        stored && !matches!(tree, Tree::Building | Tree::Ready)
    }

    /// Done or failed: who wants the layer now needs another job.
    pub(super) fn is_spent(&self) -> bool {
        self.is_done() || matches!(self.progress.borrow().content, Content::Failed { .. })
    }

    pub(super) fn lease(&self) -> Option<String> {
        self.lease.lock().clone()
    }

    /// The lease of whoever asks now, if he has one.
    pub(super) fn set_lease(&self, lease: &Option<String>) {
        if lease.is_some() {
            self.lease.lock().clone_from(lease);
        }
    }

    /// That lease is gone.
    pub(super) fn forget_lease(&self, id: &str) {
        self.lease.lock().take_if(|lease| lease == id);
    }

    pub(super) fn set_awaited(&self) {
        self.awaited.store(true, Ordering::Release);
    }

    pub(super) fn is_awaited(&self) -> bool {
        self.awaited.load(Ordering::Acquire)
    }

    /// Whether this call is the first.
    pub(super) fn follow_first(&self) -> bool {
        !self.followed.swap(true, Ordering::AcqRel)
    }

    /// Whether containerd waits at its ref for what becomes of it.
    pub(super) fn is_followed(&self) -> bool {
        self.followed.load(Ordering::Acquire)
    }

    /// Whether the blob was written under another lease than that of the pull that asked last.
    pub(super) fn is_kept_for_another(&self) -> bool {
        self.kept_by.lock().as_ref().is_some_and(|lease| *lease != self.lease())
    }

    /// Writes the blob under the lease of the pull that asked last; one that is there becomes that lease's as well.
    async fn keep_content(&self, parts: &Parts, blob: Blob) -> Result<(), &'static str> {
        let lease = self.lease();
        ingest(parts, &self.order, lease.clone(), blob).await?;
        *self.kept_by.lock() = Some(lease);
        Ok(())
    }

    /// A client that went away may have let containerd collect the blob of a layer that it never got, or let it be
    /// collected any moment: then it is written once more. The word for a metric where that fails.
    pub(super) async fn put_back_content(&self, parts: &Parts) -> Result<(), &'static str> {
        if !matches!(self.progress.borrow().content, Content::Present | Content::Mirrored) {
            return Ok(());
        }
        if !self.is_kept_for_another() {
            let namespace = parts.containerd.namespace(&self.order.namespace);
            let found = namespace.info(&self.order.layer().descriptor.digest).await;
            if found.map_err(|error| error.reason())?.is_some() {
                return Ok(());
            }
        }
        let blob = self.pull().proven().await.map_err(|error| error.reason())?;
        self.keep_content(parts, blob).await
    }

    /// The finished tree, for whoever makes the snapshot of it.
    pub(super) fn take_tree(&self) -> Option<(Staging, Built)> {
        let tree = self.built.lock().take();
        if tree.is_some() {
            self.progress.send_modify(|progress| progress.tree = Tree::Taken);
        }
        tree
    }

    fn set_tree(&self, tree: Tree) {
        self.progress.send_if_modified(|progress| {
            let building = progress.tree == Tree::Building;
            if building {
                progress.tree = tree;
            }
            building
        });
    }

    fn set_content(&self, content: Content) {
        self.progress.send_modify(|progress| progress.content = content);
    }
}

/// The two tasks of a job. They hold it weakly: a job that nobody wants any more ends.
#[derive(Clone)]
struct Worker {
    parts: Parts,
    builders: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Worker {
    async fn store(self, job: std::sync::Weak<Job>) {
        let content = loop {
            let source = |job: Arc<Job>| (job.source.pull(), job.order.clone());
            let Some(((pull, number), order)) = job.upgrade().map(source) else { return };
            let proven = tokio::select! {
                () = self.stop.cancelled() => return,
                proven = pull.proven() => proven,
            };
            let content = match proven {
                Ok(blob) => self.keep(&job, &order, blob).await,
                Err(error) => break Content::Failed { reason: error.reason() },
            };
            let has_failed = matches!(content, Content::Failed { .. });
            if !has_failed || !self.has_another_source(&job, number) {
                break content;
            }
        };
        if let Some(job) = job.upgrade() {
            job.set_content(content);
        }
    }

    /// Puts a proven blob where the image wants it.
    async fn keep(&self, job: &std::sync::Weak<Job>, order: &Order, blob: Blob) -> Content {
        if job.upgrade().is_some_and(|job| job.is_left_to_mirror()) {
            return Content::Mirrored;
        }
        let handed_over = || job.upgrade().is_some_and(|job| job.is_handed_over());
        if order.image.discard_unpacked && !handed_over() {
            return Content::Unwanted;
        }
        let lease = job.upgrade().and_then(|job| job.lease());
        let written = ingest(&self.parts, order, lease.clone(), blob).await;
        if let Some(job) = job.upgrade().filter(|_| written.is_ok()) {
            *job.kept_by.lock() = Some(lease);
        }
        match written {
            Ok(()) => Content::Present,
            Err(reason) => Content::Failed { reason },
        }
    }

    async fn build(self, job: std::sync::Weak<Job>) {
        let permit = tokio::select! {
            () = self.stop.cancelled() => return,
            permit = self.builders.acquire() => permit.expect("the semaphore is never closed"),
        };
        let tree = loop {
            let Some((pull, number)) = job.upgrade().map(|job| job.source.pull()) else { return };
            let proven = pull.status().state == PullState::Proven;
            let Some(built) = self.build_from(&job, pull.reader()).await else { return };
            // What was built from bytes that were not proven yet counts only once they are.
            if pull.proven().await.is_err() {
                break Tree::Refused { reason: "pull" };
            }
            match built {
                Ok(built) => return finished(&job, built),
                // The bytes were a liar's, or a piece was replaced that had been read: the proven ones have the word.
                Err(BuildError::Unpack(_)) if !proven => {}
                Err(BuildError::Unpack(_)) if self.has_another_source(&job, number) => {}
                Err(error) => {
                    let reason = error.reason();
                    if let Some(job) = job.upgrade() {
                        tracing::warn!(layer = %job.order.layer().descriptor.digest, reason, error = &error as &dyn std::error::Error, "layer tree refused");
                    }
                    break Tree::Refused { reason };
                }
            }
        };
        drop(permit);
        if let Some(job) = job.upgrade() {
            job.set_tree(tree);
        }
    }

    fn has_another_source(&self, job: &std::sync::Weak<Job>, number: u32) -> bool {
        job.upgrade().is_some_and(|job| job.has_another_source(number, &self.parts))
    }

    /// Builds the tree from `reader`; `None` if nobody wants it any more.
    async fn build_from(
        &self,
        job: &std::sync::Weak<Job>,
        reader: impl Read + Send + 'static,
    ) -> Option<Result<(Staging, Built), BuildError>> {
        let layer = job.upgrade()?.order.layer().clone();
        let snapshots = Arc::clone(&self.parts.snapshots);
        let wanted = Wanted { job: job.clone(), reader };
        let build = tokio::task::spawn_blocking(move || build_tree(&snapshots, &layer, wanted));
        let result = build.await.expect("building a tree does not panic");
        let job = job.upgrade()?;
        let dropped = job.progress.borrow().tree == Tree::Dropped;
        (!dropped).then_some(result)
    }
}

/// The tree stands; it goes if the layer was handed over meanwhile.
fn finished(job: &std::sync::Weak<Job>, built: (Staging, Built)) {
    let Some(job) = job.upgrade() else { return };
    *job.built.lock() = Some(built);
    job.set_tree(Tree::Ready);
    if !matches!(job.progress.borrow().tree, Tree::Ready) {
        job.built.lock().take();
    }
}

/// Builds the tree of a proven layer again, for a second snapshot with another parent.
pub(super) async fn rebuild(
    parts: &Parts,
    layer: &LayerOf,
    pull: &Pull,
) -> Result<(Staging, Built), BuildError> {
    let (reader, layer, snapshots) = (pull.reader(), layer.clone(), Arc::clone(&parts.snapshots));
    let build = tokio::task::spawn_blocking(move || build_tree(&snapshots, &layer, reader));
    build.await.expect("building a tree does not panic")
}

/// Unpacks a layer into a fresh staging folder; blocking.
fn build_tree(
    snapshots: &Snapshots,
    layer: &LayerOf,
    compressed: impl Read,
) -> Result<(Staging, Built), BuildError> {
    let compression = layer.compression.clone().map_err(|_| BuildError::MediaType)?;
    let bottom = layer.chain_id == layer.diff_id;
    let staging = snapshots.stage().map_err(BuildError::Stage)?;
    let form = unpack::Layer { compression, diff_id: &layer.diff_id, bottom };
    let built = unpack::unpack(&form, compressed, staging.path())?;
    Ok((staging, built))
}

/// Why a tree was not built.
#[derive(Debug, thiserror::Error)]
pub(super) enum BuildError {
    #[error("cannot make a staging directory")]
    Stage(#[source] io::Error),
    #[error("the layer's media type is not handled")]
    MediaType,
    #[error("cannot unpack")]
    Unpack(#[from] UnpackError),
}

impl BuildError {
    fn reason(&self) -> &'static str {
        match self {
            Self::Stage(_) => "disk",
            Self::MediaType => "media_type",
            Self::Unpack(error) => error.reason(),
        }
    }
}

/// A reader that fails once the tree it feeds is no longer wanted.
struct Wanted<R> {
    job: std::sync::Weak<Job>,
    reader: R,
}

impl<R: Read> Read for Wanted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.job.upgrade() {
            Some(job) if job.progress.borrow().tree == Tree::Building => {}
            _ => return Err(io::Error::other("the tree is no longer wanted")),
        }
        self.reader.read(buffer)
    }
}
