//! Makes a layer present in containerd: intercept, pull, unpack, commit, hold, adopt.
//!
//! One Prepare, as [`Layers::prepare`] answers it:
//! ```text
//! a snapshot has it, its blob is there ──────────────────────────▶ AlreadyExists   intercepted
//! made within the budget of this image's pull ── commit_tree ────▶ AlreadyExists   intercepted
//! budget used up, containerd pulls through our mirror ───────────▶ mounts          handed over: it fetches there
//! budget used up ── refs of all missing layers held ─────────────▶ mounts          handed over
//! pull failed ───── refs of the others held ─────────────────────▶ mounts          declined
//! containerd has the blob already, or is fetching it ────────────▶ mounts          bypassed, adopted afterwards
//! ```
//! State: `images` maps (namespace, manifest) to the pull of that image, `jobs` maps (namespace, chain ID, blob) to
//! the layer being made, so that images share what they have in common. Lock order: `images`, then `jobs`; neither
//! is held across an await.

pub mod adopt;
mod budget;
mod handover;
pub mod hold;
mod image_pull;
mod ingest;
pub mod intercept;
mod make;
mod metrics;
mod source;

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use metrics::{Metrics, Outcome};

use self::{
    handover::OwnLease,
    hold::{Held, Holder},
    image_pull::{ImagePull, Waiting},
    intercept::{Catalog, Declined, Found, Image, LayerOf},
    make::{Content, Job, Progress, Tree},
};
use crate::{
    containerd::Client,
    oci::{Digest, Repository},
    pull::{PullState as BlobState, Pulls},
    snapshot::{LABEL_SNAPSHOT_REF, Snapshots},
    store::Store,
};

/// How long Prepares may wait.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Longest wait of all Prepares of one pull of one image together; by containerd's version if not set.
    pub prepare_budget: Option<Duration>,
    /// A hold without a proven piece for this long ends; a minute if not set.
    pub hold_idle_max: Option<Duration>,
    /// Longest hold; by containerd's version if not set.
    pub hold_max: Option<Duration>,
}

/// This node's own mirror, as far as layers are concerned.
pub trait Mirror: Send + Sync + 'static {
    /// Whether containerd pulls one of these repositories through it now. Then it fetches there what it is handed
    /// over, while the bytes arrive, and need not be kept from fetching.
    fn is_used_for(&self, repositories: &[Repository]) -> bool;
}

/// What making layers needs of the rest.
#[derive(Clone)]
pub struct Parts {
    pub containerd: Client,
    pub snapshots: Arc<Snapshots>,
    pub store: Store,
    pub pulls: Pulls,
    pub catalog: Arc<Catalog>,
    pub holder: Holder,
    pub mirror: Arc<dyn Mirror>,
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
    pub metrics: Metrics,
}

/// A Prepare of containerd's, as far as it concerns layers.
#[derive(Clone, Debug)]
pub struct Request {
    pub namespace: String,
    /// The backend key, `<namespace>/<n>/<key>`.
    pub key: String,
    /// The backend parent, empty for none.
    pub parent: String,
    pub labels: HashMap<String, String>,
    pub lease: Option<String>,
    /// The chain ID that the snapshot is for.
    pub target: Option<String>,
}

/// How a Prepare is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// With ordinary mounts.
    Mounts,
    /// The layer is there, committed under the parent that was given.
    AlreadyExists,
}

/// Makes layers present.
pub struct Layers {
    parts: Parts,
    settings: Settings,
    images: Mutex<HashMap<(String, Digest), Arc<ImagePull>>>,
    jobs: Mutex<HashMap<JobKey, Weak<Job>>>,
    /// Leases of ours, by the extract key that they wait for.
    leases: Mutex<HashMap<String, Vec<OwnLease>>>,
    /// The budget of one pull, once containerd's version is known.
    budget: tokio::sync::OnceCell<Duration>,
    /// Trees are built by at most this many threads at once, for all images together.
    builders: Arc<Semaphore>,
}

/// The reason of a layer that was handed over to be fetched from our mirror: no ref is held for it.
const BY_MIRROR: &str = "mirror";

/// The reason of a layer whose containerd is older than Flotilla knows.
const UNFIT_CONTAINERD: &str = "containerd_version";

type JobKey = (String, Digest, Digest);

/// Tells the holder when containerd has gone away from a Prepare that was waiting.
struct Cancelled<'a> {
    holder: &'a Holder,
    key: Option<&'a str>,
}

impl Drop for Cancelled<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.holder.prepare_cancelled(key);
        }
    }
}

impl Layers {
    #[must_use]
    pub fn new(parts: Parts, settings: Settings) -> Self {
        let threads = std::thread::available_parallelism().map_or(2, usize::from).max(2);
        Self {
            parts,
            settings,
            images: Mutex::default(),
            jobs: Mutex::default(),
            leases: Mutex::default(),
            budget: tokio::sync::OnceCell::new(),
            builders: Arc::new(Semaphore::new(threads)),
        }
    }

    /// Answers one Prepare.
    pub async fn prepare(&self, request: &Request) -> Answer {
        let Some(target) = request.target.as_deref() else { return Answer::Mounts };
        let began = Instant::now();
        if let Some(unfit) = self.unfit_containerd().await {
            self.decline(request, target, UNFIT_CONTAINERD, &unfit);
            return Answer::Mounts;
        }
        let found = match self.found(request, target).await {
            Ok(found) => found,
            Err(declined) => {
                self.decline(request, target, declined.reason(), &declined);
                return Answer::Mounts;
            }
        };
        let mut cancelled = Cancelled { holder: &self.parts.holder, key: Some(&request.key) };
        let (outcome, reason) = self.make_present(request, &found).await;
        cancelled.key = None;
        self.report(request, &found, (outcome, reason), began.elapsed());
        match outcome {
            Outcome::Intercepted => {
                self.parts.holder.key_settled(&request.key);
                Answer::AlreadyExists
            }
            Outcome::HandedOver | Outcome::Declined | Outcome::Bypassed | Outcome::Adopted => Answer::Mounts,
        }
    }

    /// The layer, with the repositories that the node may read it from.
    async fn found(&self, request: &Request, target: &str) -> Result<Found, Declined> {
        let mut found = self.parts.catalog.find(&request.namespace, target, &request.labels).await?;
        let named = &found.image.origins;
        let origins = self.parts.pulls.known_among(named).await;
        if origins.is_empty() && !named.is_empty() {
            return Err(Declined::Stranger { image: found.image.title() });
        }
        if origins.len() < named.len() {
            found.image = Arc::new(Image { origins, ..(*found.image).clone() });
        }
        Ok(found)
    }

    /// containerd removed the snapshot `key`: whoever held refs for it stops. Only posts events.
    pub fn removed(&self, key: &str) {
        self.parts.holder.key_gone(key);
        self.release_leases(key);
    }

    /// containerd committed the snapshot `key`: what was kept for its unpacking is let go.
    pub fn committed(&self, key: &str) {
        self.parts.holder.key_settled(key);
        self.release_leases(key);
    }

    /// Forgets layers that are done, and pulls of images in which nothing happens any more.
    pub fn sweep(&self, now: Instant) {
        self.images.lock().retain(|_, pull| !pull.is_over(now));
        self.jobs.lock().retain(|_, job| job.strong_count() > 0);
    }

    async fn make_present(&self, request: &Request, found: &Found) -> (Outcome, &'static str) {
        let layer = &found.image.layers[found.index];
        if let Err(unhandled) = &layer.compression {
            let pull = self.image_pull(request, found).await;
            self.start_jobs(&pull, request, found.index);
            self.hand_over(&pull, request).await;
            return (Outcome::Declined, unhandled.reason());
        }
        if !request.labels.contains_key(LABEL_SNAPSHOT_REF) {
            return self.heal(request, found).await;
        }
        let pull = self.image_pull(request, found).await;
        if pull.is_left_to_mirror(found.index) {
            self.start_jobs(&pull, request, found.index);
            self.hand_over(&pull, request).await;
            return (Outcome::HandedOver, BY_MIRROR);
        }
        if let Some(outcome) = self.containerd_has_begun(request, layer).await {
            self.start_jobs(&pull, request, found.index + 1);
            self.hand_over(&pull, request).await;
            return outcome;
        }
        self.start_jobs(&pull, request, found.index);
        let job = pull.jobs.lock().get(&found.index).cloned().expect("jobs from this layer on are started");
        let outcome = match self.wait(&pull, &job, request).await {
            Some(outcome) => outcome,
            None => self.out_of_budget(&pull, &job, request).await,
        };
        match outcome.0 {
            Outcome::HandedOver => self.await_unpacking(&job, request),
            Outcome::Intercepted | Outcome::Declined | Outcome::Bypassed | Outcome::Adopted => {
                self.release_lease_of(&job);
            }
        }
        outcome
    }

    /// The budget is used up: what becomes of the layer depends on whose its ref is.
    async fn out_of_budget(
        &self,
        pull: &ImagePull,
        job: &Arc<Job>,
        request: &Request,
    ) -> (Outcome, &'static str) {
        pull.state.lock().budget.exhaust();
        let mut held = self.hand_over(pull, request).await;
        match held.remove(&job.order.index) {
            Some(Held::Refused(reason)) => (Outcome::Declined, reason),
            Some(Held::FetchedByContainerd) => (Outcome::Bypassed, "being_fetched"),
            Some(Held::Present) if job.pull().status().state != BlobState::Proven => {
                (Outcome::Bypassed, "fetched_first")
            }
            Some(Held::Mirrored) => (Outcome::HandedOver, BY_MIRROR),
            Some(Held::Holding | Held::Present) | None => (Outcome::HandedOver, "budget"),
        }
    }

    /// Waits within the budget of this image's pull; `None` when it is used up.
    async fn wait(
        &self,
        pull: &ImagePull,
        job: &Arc<Job>,
        request: &Request,
    ) -> Option<(Outcome, &'static str)> {
        let deadline = pull.state.lock().budget.enter(Instant::now());
        let _waiting = Waiting(pull);
        let mut progress = job.progress();
        let settled = async { progress.wait_for(Progress::is_settled).await.map(|settled| settled.clone()) };
        let mut settled = std::pin::pin!(settled);
        let in_time = match tokio::time::timeout_at(deadline.any.into(), &mut settled).await {
            Ok(settled) => Some(settled),
            Err(_) if job.ends_by(deadline.soon) => {
                tokio::time::timeout_at(deadline.soon.into(), settled).await.ok()
            }
            Err(_) => None,
        };
        let Ok(Progress { content, tree }) = in_time? else { return Some((Outcome::Declined, "shutdown")) };
        Some(match (content, tree) {
            (Content::Failed { reason }, _) => {
                self.hand_over(pull, request).await;
                (Outcome::Declined, reason)
            }
            (_, Tree::Refused { reason }) => {
                self.hand_over(pull, request).await;
                (Outcome::HandedOver, reason)
            }
            (_, Tree::Dropped) => {
                // An earlier Prepare handed the layer over; the refs of those above may have been given up since.
                self.hand_over(pull, request).await;
                (Outcome::HandedOver, if job.is_left_to_mirror() { BY_MIRROR } else { "budget" })
            }
            (_, Tree::Ready | Tree::Taken | Tree::Building) => self.claim(pull, job, request).await,
        })
    }

    /// Makes the finished tree the snapshot that containerd asked for, unless one is there.
    async fn claim(&self, pull: &ImagePull, job: &Arc<Job>, request: &Request) -> (Outcome, &'static str) {
        let _one_at_a_time = job.claim.lock().await;
        let layer = job.order.layer();
        if let Err(reason) = job.put_back_content(&self.parts).await {
            self.hand_over(pull, request).await;
            return (Outcome::Declined, reason);
        }
        if self.snapshot_of(&layer.chain_id, &request.parent).is_some() {
            return (Outcome::Intercepted, "local");
        }
        let tree = match job.take_tree() {
            Some(tree) => Ok(tree),
            None => make::rebuild(&self.parts, layer, &job.pull()).await,
        };
        let committed = match tree {
            Ok((staging, built)) => {
                let snapshots = Arc::clone(&self.parts.snapshots);
                let (parent, labels) = (request.parent.clone(), request.labels.clone());
                let chain_id = layer.chain_id.clone();
                let commit = tokio::task::spawn_blocking(move || {
                    let below = snapshots.below(&parent).map_err(|error| error.to_string())?;
                    crate::unpack::settle(staging.path(), &built, &below)
                        .map_err(|error| error.to_string())?;
                    snapshots
                        .commit_tree(staging, &chain_id, &parent, labels)
                        .map_err(|error| error.to_string())
                });
                commit.await.expect("committing a tree does not panic").map(|_| ())
            }
            Err(error) => Err(error.to_string()),
        };
        match committed {
            Ok(()) => (Outcome::Intercepted, "made"),
            Err(error) => {
                tracing::warn!(layer = %layer.descriptor.digest, error, "layer tree not committed");
                self.hand_over(pull, request).await;
                (Outcome::HandedOver, "commit")
            }
        }
    }

    /// A Prepare that cannot be told `AlreadyExists`: an old `ctr`, or a container created from an image whose
    /// snapshots are gone. If containerd has the blob, all is well; else it is put there.
    async fn heal(&self, request: &Request, found: &Found) -> (Outcome, &'static str) {
        let layer = &found.image.layers[found.index];
        let namespace = self.parts.containerd.namespace(&request.namespace);
        match namespace.info(&layer.descriptor.digest).await {
            Ok(Some(_)) => return (Outcome::Bypassed, "fetched_first"),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "containerd does not say what it has"
                );
                return (Outcome::Declined, "containerd");
            }
        }
        let pull = self.image_pull(request, found).await;
        let job = self.job(request, &found.image, found.index, false);
        self.lease_until_unpacked(&job, request).await;
        job.hand_over();
        let deadline = pull.state.lock().budget.enter(Instant::now());
        let _waiting = Waiting(&pull);
        let mut progress = job.progress();
        let stored = progress.wait_for(|progress| progress.content != Content::Pending);
        let stored = tokio::time::timeout_at(deadline.any.into(), stored).await;
        let healed = match stored.map(|stored| stored.map(|progress| progress.content.clone())) {
            Ok(Ok(content)) => match content {
                Content::Present => Ok(()),
                Content::Mirrored => job.put_back_content(&self.parts).await,
                Content::Unwanted => self.write_after_all(&job, request).await,
                Content::Failed { reason } => Err(reason),
                Content::Pending => Err("shutdown"),
            },
            Ok(Err(_)) => unreachable!("the job is held here"),
            Err(_) => Err("budget"),
        };
        match healed {
            Ok(()) => {
                self.await_unpacking(&job, request);
                (Outcome::HandedOver, "healed")
            }
            Err(reason) => {
                self.release_lease_of(&job);
                (Outcome::Declined, reason)
            }
        }
    }

    /// Whether containerd has the layer's blob under way by itself: then it is left to it.
    async fn containerd_has_begun(
        &self,
        request: &Request,
        layer: &LayerOf,
    ) -> Option<(Outcome, &'static str)> {
        let namespace = self.parts.containerd.namespace(&request.namespace);
        let status = namespace.status(&layer.r#ref).await.ok().flatten()?;
        let begun = status.offset > 0 && status.offset < layer.descriptor.size;
        begun.then_some((Outcome::Bypassed, "being_fetched"))
    }

    /// A layer of which nothing is known but its chain ID.
    fn decline(
        &self,
        request: &Request,
        chain_id: &str,
        reason: &'static str,
        error: &(dyn std::error::Error + 'static),
    ) {
        self.parts.metrics.count(Outcome::Declined, reason);
        tracing::info!(namespace = request.namespace, chain_id, outcome = "declined", reason, error, "layer");
    }

    fn report(&self, request: &Request, found: &Found, end: (Outcome, &'static str), took: Duration) {
        let layer = &found.image.layers[found.index];
        let (outcome, reason) = end;
        self.parts.metrics.count(outcome, reason);
        self.parts.metrics.observe_prepare(took);
        let pull =
            self.images.lock().get(&(request.namespace.clone(), found.image.manifest.clone())).cloned();
        let job = pull.and_then(|pull| pull.jobs.lock().get(&found.index).cloned());
        if outcome == Outcome::HandedOver {
            job.iter().for_each(|job| job.set_awaited());
        }
        let bytes = job.map(|job| job.pull().status().bytes).unwrap_or_default();
        tracing::info!(
            layer = %layer.descriptor.digest,
            namespace = request.namespace,
            image = found.image.name,
            size = layer.descriptor.size,
            outcome = outcome.name(),
            reason,
            bytes_local = bytes.local,
            bytes_peer = bytes.peer,
            bytes_origin = bytes.origin,
            millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            "layer"
        );
    }
}
