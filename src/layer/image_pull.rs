//! The pull of one image: its layers being made, and how long its Prepares have waited.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{
    Layers, Request,
    budget::Budget,
    hold::Limits,
    intercept::{Found, Image},
    make::{Job, Order},
};
use crate::{containerd::VersionError, oci::Digest, snapshot::Info};

/// An image's pull is forgotten when nothing has happened in it for this long: the time in which kubelet retries a
/// pull that it cancelled (its back-off starts at 10 s).
const IMAGE_LINGER: Duration = Duration::from_secs(60);

/// 2.x: a Prepare that blocks makes containerd's snapshot GC wait, and a waiting GC every other Prepare: 10 s is
/// what a node may lose at worst, 15 s for layers that are here by then.
const BUDGET_2: Duration = Duration::from_secs(10);
/// 1.6 and 1.7: a hold slows every other write of containerd's database to half a second, so a longer wait is the
/// lesser evil.
const BUDGET_1: Duration = Duration::from_secs(20);

/// One pull of one image in one namespace.
pub(super) struct ImagePull {
    pub(super) namespace: String,
    pub(super) image: Arc<Image>,
    /// By the layer's place, bottom first.
    pub(super) jobs: Mutex<BTreeMap<usize, Arc<Job>>>,
    pub(super) state: Mutex<PullState>,
}

pub(super) struct PullState {
    pub(super) budget: Budget,
    pub(super) last_seen: Instant,
    /// The layer that was asked for last.
    reached: usize,
}

impl ImagePull {
    /// Nothing has happened in it for a while, nobody waits, and nothing that containerd waits for is under way.
    /// Lets go of layers that are done: they keep blobs open, whose bytes would not come free where somebody
    /// removes the image.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        let state = self.state.lock();
        let waiting = state.budget.is_waiting();
        let idle = now.saturating_duration_since(state.last_seen) >= IMAGE_LINGER;
        let mut jobs = self.jobs.lock();
        if !waiting {
            jobs.retain(|_, job| !job.is_done());
        }
        let working = jobs.values().any(|job| job.is_handed_over() && !job.is_settled());
        idle && !working && !waiting
    }

    /// containerd fetches this layer from our mirror.
    pub(super) fn is_left_to_mirror(&self, index: usize) -> bool {
        self.jobs.lock().get(&index).is_some_and(|job| job.is_left_to_mirror())
    }

    /// A Prepare for layer `index`. containerd asks for each layer once, bottom first: whoever goes back pulls the
    /// image again, after a failure, a cancelled pull or a removal. That pull has a budget of its own, and what is
    /// over and done with is made anew.
    fn enter(&self, index: usize, limit: Duration) {
        let mut state = self.state.lock();
        state.last_seen = Instant::now();
        if index <= state.reached {
            if !state.budget.is_waiting() {
                state.budget = Budget::new(limit);
            }
            self.jobs.lock().retain(|_, job| !job.is_spent());
        }
        state.reached = index;
    }
}

/// A Prepare that waits; leaving gives back what is left of the budget, however it ends.
pub(super) struct Waiting<'a>(pub(super) &'a ImagePull);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.budget.leave(Instant::now());
        state.last_seen = Instant::now();
    }
}

impl Layers {
    pub(super) async fn image_pull(&self, request: &Request, found: &Found) -> Arc<ImagePull> {
        let limit = self.budget().await;
        let key = (request.namespace.clone(), found.image.manifest.clone());
        let mut images = self.images.lock();
        let pull = images.entry(key).or_insert_with(|| {
            let state =
                PullState { budget: Budget::new(limit), last_seen: Instant::now(), reached: found.index };
            Arc::new(ImagePull {
                namespace: request.namespace.clone(),
                image: Arc::clone(&found.image),
                jobs: Mutex::default(),
                state: Mutex::new(state),
            })
        });
        pull.enter(found.index, limit);
        Arc::clone(pull)
    }

    async fn budget(&self) -> Duration {
        self.known_budget().await.unwrap_or(BUDGET_2)
    }

    /// What is wrong with containerd's version, if it tells one that does not do.
    pub(super) async fn unfit_containerd(&self) -> Option<VersionError> {
        match self.known_budget().await {
            Ok(_) | Err(VersionError::Call(_)) => None,
            Err(unfit @ (VersionError::TooOld(_) | VersionError::Unreadable(_))) => Some(unfit),
        }
    }

    /// The budget of one pull. With containerd's version the limits of holds become known, too.
    async fn known_budget(&self) -> Result<Duration, VersionError> {
        let known = self.budget.get_or_try_init(async || {
            let version = self.parts.containerd.version().await?;
            let by_version = Limits::of(&version);
            self.parts.holder.set_limits(Limits {
                idle_max: self.settings.hold_idle_max.unwrap_or(by_version.idle_max),
                total_max: self.settings.hold_max.or(by_version.total_max),
            });
            let slowed = version.slowed_by_holds();
            let budget = self.settings.prepare_budget.unwrap_or(if slowed { BUDGET_1 } else { BUDGET_2 });
            Ok::<_, VersionError>(budget)
        });
        known.await.copied()
    }

    /// Starts every layer from `first` on that is not being made yet.
    pub(super) fn start_jobs(&self, pull: &ImagePull, request: &Request, first: usize) {
        // A layer above one that has no snapshot has none with the right parent either.
        let mut parent = Some(request.parent.clone());
        for (index, layer) in pull.image.layers.iter().enumerate().skip(first) {
            let snapshot = parent.and_then(|parent| self.snapshot_of(&layer.chain_id, &parent));
            let tree_wanted = snapshot.is_none();
            parent = snapshot.map(|info| info.name);
            if layer.compression.is_err() {
                continue;
            }
            let started = pull.jobs.lock().get(&index).cloned();
            match started {
                Some(job) => job.set_lease(&request.lease),
                None => {
                    let job = self.job(request, &pull.image, index, tree_wanted);
                    pull.jobs.lock().insert(index, job);
                }
            }
        }
    }

    /// The committed snapshot of a layer on exactly this parent.
    pub(super) fn snapshot_of(&self, chain_id: &Digest, parent: &str) -> Option<Info> {
        self.parts.snapshots.find(&chain_id.to_string(), parent).unwrap_or_else(|error| {
            tracing::warn!(%chain_id, error = &error as &dyn std::error::Error, "cannot look for a snapshot");
            None
        })
    }

    pub(super) fn job(
        &self,
        request: &Request,
        image: &Arc<Image>,
        index: usize,
        tree_wanted: bool,
    ) -> Arc<Job> {
        let layer = &image.layers[index];
        let digest = &layer.descriptor.digest;
        let key = (request.namespace.clone(), layer.chain_id.clone(), digest.clone());
        let mut jobs = self.jobs.lock();
        if let Some(job) = jobs.get(&key).and_then(Weak::upgrade)
            && !job.is_spent()
        {
            job.set_lease(&request.lease);
            return job;
        }
        let order =
            Order { namespace: request.namespace.clone(), image: Arc::clone(image), index, tree_wanted };
        let job = Job::start(&self.parts, &self.builders, order, request.lease.clone());
        jobs.insert(key, Arc::downgrade(&job));
        job
    }
}
