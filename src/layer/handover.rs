//! Layers that outlast their budget: containerd waits for their blobs, then unpacks them itself.
//!
//! ```text
//! hand_over ── containerd pulls through our mirror: it fetches there, nothing is held
//!          └── hold every missing layer's ref ── follow: one task a job ──▶ holder: piece, committed, failed
//!                                                                             │ hold over
//! watch_holds ◀───────────────────────────────────────────────────────────────┘ declined, where containerd waited
//! ```

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::{Duration, SystemTime},
};

use tokio::sync::mpsc;

use super::{
    Layers, Outcome, Request,
    hold::{Ended, Held, Wanted},
    image_pull::ImagePull,
    ingest::ingest,
    make::{Content, Job},
};

/// How long a lease of ours keeps a handed-over layer of an image that discards its layers: a generous hour for
/// containerd to unpack it; released as soon as the extract key is gone.
const LEASE_FOR: Duration = Duration::from_secs(3600);

/// A lease of ours, by its name in a namespace.
pub(super) struct OwnLease {
    namespace: String,
    id: String,
    /// What is written under it.
    job: Weak<Job>,
}

impl OwnLease {
    /// The one that a job has, if it is ours.
    fn of(job: &Arc<Job>) -> Option<Self> {
        let id = own_lease(job);
        let namespace = job.order.namespace.clone();
        (job.lease().as_ref() == Some(&id)).then(|| Self { namespace, id, job: Arc::downgrade(job) })
    }
}

impl Layers {
    /// Holds containerd's refs of all layers that are still missing, before any Prepare returns mounts. Answers what
    /// became of each.
    pub(super) async fn hand_over(&self, pull: &ImagePull, request: &Request) -> BTreeMap<usize, Held> {
        let jobs: Vec<Arc<Job>> = pull.jobs.lock().values().cloned().collect();
        let mut outcomes = BTreeMap::new();
        let mirrored = self.parts.mirror.is_used_for(&pull.image.origins);
        for job in jobs {
            let content = job.progress().borrow().content.clone();
            match content {
                Content::Present if job.is_kept_for_another() => {
                    // An earlier pull was cancelled, and with its lease the blob goes. What fails here is logged there.
                    let _ = job.put_back_content(&self.parts).await;
                    continue;
                }
                Content::Present | Content::Mirrored | Content::Failed { .. } => continue,
                Content::Pending | Content::Unwanted if is_left_to_mirror(mirrored, job.is_followed()) => {
                    job.leave_to_mirror();
                    outcomes.insert(job.order.index, Held::Mirrored);
                    continue;
                }
                Content::Unwanted => {
                    // A failure is logged there, and leaves containerd to fetch the layer.
                    let _ = self.write_after_all(&job, request).await;
                }
                Content::Pending => {
                    self.lease_until_unpacked(&job, request).await;
                    job.hand_over();
                }
            }
            let order = &job.order;
            let lease = job.lease();
            let wanted = Wanted {
                namespace: &pull.namespace,
                image: &order.image,
                index: order.index,
                extract_key: &request.key,
                lease: lease.as_deref(),
            };
            let held = self.parts.holder.hold(wanted).await;
            match held {
                Held::Holding if job.follow_first() => self.follow(&job),
                // Why a ref is not held, the holder has logged. What containerd fetches by itself is adopted once
                // its image is there.
                Held::Holding
                | Held::Present
                | Held::FetchedByContainerd
                | Held::Mirrored
                | Held::Refused(_) => {}
            }
            outcomes.insert(order.index, held);
        }
        outcomes
    }

    /// Tells the holder what becomes of a layer whose ref is held.
    fn follow(&self, job: &Arc<Job>) {
        let holder = self.parts.holder.clone();
        let mut progress = job.progress();
        let mut pull = job.pull().watch();
        let (namespace, digest) = (job.order.namespace.clone(), job.order.layer().descriptor.digest.clone());
        let stop = self.parts.stop.clone();
        self.parts.tasks.spawn(async move {
            loop {
                let content = progress.borrow_and_update().content.clone();
                match content {
                    Content::Present | Content::Mirrored | Content::Unwanted => {
                        return holder.blob_committed(&namespace, &digest);
                    }
                    Content::Failed { .. } => return holder.pull_failed(&namespace, &digest),
                    Content::Pending => {}
                }
                tokio::select! {
                    () = stop.cancelled() => return,
                    changed = progress.changed() => if changed.is_err() { return },
                    changed = pull.changed() => {
                        if changed.is_err() { return }
                        holder.progress(&digest);
                    }
                }
            }
        });
    }

    /// A layer of an image that discards its layers, proven and handed over: its blob is written all the same. Answers
    /// with the word for a metric where it fails.
    pub(super) async fn write_after_all(
        &self,
        job: &Arc<Job>,
        request: &Request,
    ) -> Result<(), &'static str> {
        self.lease_until_unpacked(job, request).await;
        job.hand_over();
        let blob = job.pull().proven().await.map_err(|error| error.reason())?;
        ingest(&self.parts, &job.order, job.lease(), blob).await
    }

    /// Where nothing else keeps a blob from being collected before it is unpacked, and the caller has no lease, it
    /// gets one of ours.
    pub(super) async fn lease_until_unpacked(&self, job: &Job, request: &Request) {
        if !job.order.image.discard_unpacked || request.lease.is_some() || job.lease().is_some() {
            return;
        }
        let namespace = self.parts.containerd.namespace(&job.order.namespace);
        let id = own_lease(job);
        match namespace.create_lease(&id, SystemTime::now() + LEASE_FOR).await {
            Ok(()) => job.set_lease(&Some(id)),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "no lease for a handed-over layer");
            }
        }
    }

    /// containerd unpacks the layer under this request's key: a lease of ours lives until that key is gone.
    pub(super) fn await_unpacking(&self, job: &Arc<Job>, request: &Request) {
        if let Some(lease) = OwnLease::of(job) {
            self.leases.lock().entry(request.key.clone()).or_default().push(lease);
        }
    }

    /// containerd has nothing of this job's to unpack.
    pub(super) fn release_lease_of(&self, job: &Arc<Job>) {
        OwnLease::of(job).into_iter().for_each(|lease| self.release(lease));
    }

    pub(super) fn release_leases(&self, key: &str) {
        let leases = self.leases.lock().remove(key).unwrap_or_default();
        leases.into_iter().for_each(|lease| self.release(lease));
    }

    fn release(&self, lease: OwnLease) {
        if let Some(job) = lease.job.upgrade() {
            job.forget_lease(&lease.id);
        }
        let namespace = self.parts.containerd.namespace(&lease.namespace);
        self.parts.tasks.spawn(async move {
            if let Err(error) = namespace.delete_lease(&lease.id).await {
                // It expires by itself.
                tracing::debug!(error = &error as &dyn std::error::Error, "lease not released");
            }
        });
    }

    /// Counts the layers whose hold ended before their blob was there: containerd fetches those by itself.
    pub async fn watch_holds(self: Arc<Self>, mut endings: mpsc::Receiver<Ended>) {
        loop {
            let ended = tokio::select! {
                biased;
                ended = endings.recv() => ended,
                () = self.has_let_go() => None,
            };
            let Some(ended) = ended else { return };
            let reason = ended.end.reason();
            // A layer that containerd has not asked for yet is counted when it does.
            if ended.end.declines() && self.is_awaited(&ended) {
                self.parts.metrics.count(Outcome::Declined, reason);
                tracing::warn!(
                    layer = %ended.digest,
                    namespace = ended.namespace,
                    outcome = "declined",
                    reason,
                    held_for = ?ended.held_for,
                    "containerd fetches a layer that was handed over"
                );
            } else {
                tracing::debug!(layer = %ended.digest, reason, held_for = ?ended.held_for, "hold ended");
            }
        }
    }

    /// The daemon stops, and no ref is held any more.
    async fn has_let_go(&self) {
        self.parts.stop.cancelled().await;
        self.parts.holder.emptied().await;
    }

    fn is_awaited(&self, ended: &Ended) -> bool {
        let jobs = self.jobs.lock();
        let mut of_it = jobs
            .iter()
            .filter(|((namespace, _, digest), _)| *namespace == ended.namespace && *digest == ended.digest);
        of_it.any(|(_, job)| Weak::upgrade(job).is_some_and(|job| job.is_awaited()))
    }
}

/// containerd waits for a ref that is held, and is told what comes of it: a visit to the mirror since then changes nothing.
fn is_left_to_mirror(mirrored: bool, followed: bool) -> bool {
    mirrored && !followed
}

/// The name of our lease for one layer of one namespace. An image may have a layer twice, and each is unpacked by itself.
fn own_lease(job: &Job) -> String {
    let layer = job.order.layer();
    format!("flotilla-{}-{}", layer.chain_id.hex(), layer.descriptor.digest.hex())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_containerd_waits_for_is_not_left_to_the_mirror() {
        assert!(is_left_to_mirror(true, false));
        assert!(!is_left_to_mirror(true, true) && !is_left_to_mirror(false, false));
    }
}
