//! Holds of containerd content-store refs: a layer handed over is waited for instead of fetched.
//!
//! ```text
//! Holder::hold ──► table: may we? ──► a task opens the ref and owns its stream
//!                                        ├── lost: containerd ended the stream
//! key_gone, prepare_cancelled,           ├── told to end ◄── table, for whatever event came
//! key_settled, blob_committed, progress ─┤
//!   (post to the table, never wait)      ├── hold_idle_max or hold_max is over
//!                                        └── shutdown
//!                                        ▼
//!                                     ref given up, then an `Ended` to whoever made the holder
//! ```
//! One task owns one stream; the table decides under a lock that is never held across a wait. A hold that was
//! lost is not retaken by anybody here: the next Prepare asks anew, and that looks at the ref first.

mod table;
mod task;

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::table::{Asked, RefKey, Table};
use super::intercept::Image;
use crate::{
    containerd::{Client, Hold, Version},
    oci::Digest,
};

/// Ends that wait for their reader. A reader that is away holds up only the tasks that have nothing else to do.
const ENDED_QUEUE: usize = 64;

/// How long refs are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Since the last proven piece of the blob.
    pub idle_max: Duration,
    /// In total; `None`: as long as pieces arrive.
    pub total_max: Option<Duration>,
}

impl Limits {
    /// Without a setting: a minute without a piece is a pull that is stuck, wherever it runs. containerd 1.6 and 1.7
    /// retry a held ref inside their write transaction, which slows every other write to half a second and more
    /// (measured), so that there a minute is all.
    #[must_use]
    pub fn of(version: &Version) -> Self {
        let minute = Duration::from_secs(60);
        Self { idle_max: minute, total_max: version.slowed_by_holds().then_some(minute) }
    }
}

impl Default for Limits {
    /// Those of the versions that bear least, until the version is known.
    fn default() -> Self {
        Self { idle_max: Duration::from_secs(60), total_max: Some(Duration::from_secs(60)) }
    }
}

/// A layer whose ref is to be held, for the Prepare of `extract_key`.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub namespace: &'a str,
    pub image: &'a Image,
    /// Which of the image's layers.
    pub index: usize,
    pub extract_key: &'a str,
    pub lease: Option<&'a str>,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// containerd waits for the blob; an [`Ended`] will follow.
    Holding,
    /// containerd is fetching the blob: adopt it afterwards.
    FetchedByContainerd,
    /// The namespace has the blob, or has it now from another namespace.
    Present,
    /// Not held: containerd fetches the blob from this node's own mirror, as it arrives.
    Mirrored,
    /// Not held, and containerd will fetch the blob; the word for a metric's `reason`.
    Refused(&'static str),
}

/// Why a hold ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// The blob is in the namespace: containerd goes on at once.
    BlobCommitted,
    /// Neither mesh nor origin has the blob.
    PullFailed,
    /// No pull is left that waits for it: the last extract key was removed.
    KeyRemoved,
    PrepareCancelled,
    /// No proven piece for `hold_idle_max`.
    IdleMax,
    /// `hold_max` is over.
    TotalMax,
    /// containerd ended the stream, or is gone.
    Lost,
    Shutdown,
}

impl End {
    /// The word for a metric's `reason`.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::BlobCommitted => "blob_committed",
            Self::PullFailed => "pull_failed",
            Self::KeyRemoved => "key_removed",
            Self::PrepareCancelled => "prepare_cancelled",
            Self::IdleMax => "hold_idle_max",
            Self::TotalMax => "hold_max",
            Self::Lost => "hold_lost",
            Self::Shutdown => "shutdown",
        }
    }

    /// A client still waits for the layer, and containerd now fetches it by itself.
    #[must_use]
    pub fn declines(self) -> bool {
        match self {
            Self::PullFailed | Self::IdleMax | Self::TotalMax | Self::Lost | Self::Shutdown => true,
            Self::BlobCommitted | Self::KeyRemoved | Self::PrepareCancelled => false,
        }
    }
}

/// A hold is over, and its ref is free.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub namespace: String,
    pub r#ref: String,
    pub digest: Digest,
    pub end: End,
    pub held_for: Duration,
}

/// Holds refs, one hold for each namespace and ref. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Holder {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    client: Client,
    tasks: TaskTracker,
    stop: CancellationToken,
    state: Mutex<State>,
    /// Bumped when a ref stops being opened or ended: whoever waits for one asks again.
    changed: watch::Sender<()>,
    ended: mpsc::Sender<Ended>,
}

#[derive(Debug)]
struct State {
    table: Table,
    /// Ways to tell the tasks of held refs that it is over.
    enders: HashMap<RefKey, oneshot::Sender<End>>,
}

impl Holder {
    /// A holder, and where it tells of every hold that is over. Its tasks run on `tasks`, and all holds are
    /// dropped when `stop` is cancelled.
    #[must_use]
    pub fn new(
        client: Client,
        tasks: TaskTracker,
        stop: CancellationToken,
        limits: Limits,
    ) -> (Self, mpsc::Receiver<Ended>) {
        let (ended, endings) = mpsc::channel(ENDED_QUEUE);
        let state = Mutex::new(State { table: Table::new(limits), enders: HashMap::new() });
        let changed = watch::Sender::new(());
        (Self { inner: Arc::new(Inner { client, tasks, stop, state, changed, ended }) }, endings)
    }

    /// Other limits, once containerd's version is known. Holds that exist take them at their next deadline.
    pub fn set_limits(&self, limits: Limits) {
        self.inner.state.lock().table.set_limits(limits);
    }

    /// Makes containerd wait for a layer. Once this was called with an extract key, its fate must be told by
    /// [`Self::key_gone`], [`Self::key_settled`] or [`Self::prepare_cancelled`], also if this future was dropped.
    pub async fn hold(&self, wanted: Wanted<'_>) -> Held {
        let layer = &wanted.image.layers[wanted.index];
        let ref_key = RefKey { namespace: wanted.namespace.to_owned(), r#ref: layer.r#ref.clone() };
        let digest = &layer.descriptor.digest;
        let mut changed = self.inner.changed.subscribe();
        loop {
            if self.inner.stop.is_cancelled() {
                return Held::Refused(End::Shutdown.reason());
            }
            changed.mark_unchanged();
            let asked =
                self.inner.state.lock().table.ask(&ref_key, digest, wanted.extract_key, Instant::now());
            match asked {
                Asked::Holding => return Held::Holding,
                Asked::Refused(reason) => return Held::Refused(reason),
                Asked::Wait => {
                    // An error would mean that the sender is gone, and it lives in `self`.
                    let _ = changed.changed().await;
                }
                Asked::Open => {
                    let hold = Hold {
                        r#ref: layer.r#ref.clone(),
                        digest: digest.clone(),
                        len: layer.descriptor.size,
                        labels: wanted.image.blob_labels(wanted.index),
                        lease: wanted.lease.map(str::to_owned),
                    };
                    return self.open(ref_key, hold).await;
                }
            }
        }
    }

    /// Opens the ref in a task of its own, which a caller that goes away does not take along.
    async fn open(&self, ref_key: RefKey, hold: Hold) -> Held {
        let (answer, answered) = oneshot::channel();
        let inner = Arc::clone(&self.inner);
        self.inner.tasks.spawn(async move { inner.run(ref_key, hold, answer).await });
        answered.await.unwrap_or(Held::Refused(End::Shutdown.reason()))
    }

    /// The extract key was removed. Only posts; may be called from a snapshotter's Remove.
    pub fn key_gone(&self, extract_key: &str) {
        self.post(End::KeyRemoved, |table| table.key_gone(extract_key, End::KeyRemoved));
    }

    /// The client no longer waits for the Prepare of this key.
    pub fn prepare_cancelled(&self, extract_key: &str) {
        self.post(End::PrepareCancelled, |table| table.key_gone(extract_key, End::PrepareCancelled));
    }

    /// The extract key was committed, or its Prepare was answered with AlreadyExists: the key will not be heard
    /// of again, but its pull goes on to the next layer. Only posts; may be called from a snapshotter's Commit.
    pub fn key_settled(&self, extract_key: &str) {
        self.inner.state.lock().table.key_settled(extract_key);
    }

    /// The blob is in the namespace's content store.
    pub fn blob_committed(&self, namespace: &str, digest: &Digest) {
        self.post(End::BlobCommitted, |table| table.blob_settled(namespace, digest, End::BlobCommitted));
    }

    /// Neither mesh nor origin has the blob: containerd may fetch it.
    pub fn pull_failed(&self, namespace: &str, digest: &Digest) {
        self.post(End::PullFailed, |table| table.blob_settled(namespace, digest, End::PullFailed));
    }

    /// A piece of the blob was proven just now.
    pub fn progress(&self, digest: &Digest) {
        self.inner.state.lock().table.progress(digest, Instant::now());
    }

    /// How many refs are held now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.state.lock().enders.len()
    }

    /// No ref is held now.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until no ref is held.
    pub async fn emptied(&self) {
        let mut changed = self.inner.changed.subscribe();
        while !self.is_empty() {
            changed.changed().await.expect("this holder has the sender");
        }
    }

    fn post(&self, end: End, event: impl FnOnce(&mut Table) -> Vec<RefKey>) {
        let mut state = self.inner.state.lock();
        for ref_key in event(&mut state.table) {
            if let Some(ender) = state.enders.remove(&ref_key) {
                // A task that is no longer listening is already ending.
                let _ = ender.send(end);
            }
        }
    }
}
