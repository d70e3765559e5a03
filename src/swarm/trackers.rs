//! The swarms that this node tracks: the shell around [`Swarm`].
//!
//! ```text
//!   this node's pulls ──┐                         ┌── outbox ──▶ pull, or the stream of a peer
//!                       ├──▶ join ─▶ Seat ─▶ Swarm┤
//!   Swarm.Join (door) ──┘                         └── outbox ──▶ …
//! ```
//! One lock holds all swarms, for the time of a decision. An outbox that is full belongs to somebody who does
//! not listen: it is closed, and its member has left. One task keeps the time.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    message::{Event, Handle, Join, Report, SMALL_MAX},
    poll::RELAYS_MAX,
    tracker::{JoinError, Swarm},
};
use crate::{
    mesh::{Member, Mesh},
    oci::Digest,
    store::Store,
};

/// Swarms at a time: a node tracks its share of what the cluster pulls in two minutes; 4096 are 400 images.
const SWARMS_MAX: usize = 4096;
/// Batches that a member may leave unread: at one a piece of 64 KiB, three seconds of eight members on 100 Mbit/s. One that was full too
/// soon (512) let go of members whose connection stood still for half a second, and their leases were read twice.
const OUTBOX_MAX: usize = 4096;
/// Small blobs that are kept in memory, of 128 KiB at most: 32 MiB. Others are fetched from who has them.
const CONTENTS_MAX: usize = 256;
const TICK: Duration = Duration::from_millis(100);
/// Five beats a second tell pullers that their tracker lives: after two missed ones they look for the next.
const TICKS_PER_BEAT: u32 = 2;

/// Why a pull cannot be tracked here.
#[derive(Debug, thiserror::Error)]
pub enum TrackError {
    #[error("this member tracks {SWARMS_MAX} swarms already")]
    Full,
    #[error("the join is refused")]
    Join(#[from] JoinError),
}

/// The trackers of this node. Cheap to clone.
#[derive(Clone)]
pub struct Trackers(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) mesh: Mesh,
    pub(super) store: Store,
    pub(super) tasks: TaskTracker,
    /// Members that this node itself asks when a swarm begins.
    pub(super) asked_max: usize,
    pub(super) relays: Semaphore,
    pub(super) stop: CancellationToken,
    swarms: Mutex<HashMap<Digest, Tracked>>,
    /// Members that this node has convicted, by name and generation: a restart is another chance.
    banned: Mutex<HashMap<String, u64>>,
}

struct Tracked {
    swarm: Swarm,
    is_small: bool,
    outboxes: BTreeMap<Handle, mpsc::Sender<Vec<Event>>>,
}

/// A member's place in a swarm; dropping it is leaving.
pub struct Seat {
    trackers: Trackers,
    digest: Digest,
    handle: Handle,
}

impl Trackers {
    /// Starts the task that keeps the time; it ends with `stop`.
    #[must_use]
    pub fn new(
        mesh: Mesh,
        store: Store,
        asked_max: usize,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let inner = Arc::new(Inner {
            mesh,
            store,
            tasks,
            asked_max,
            relays: Semaphore::new(RELAYS_MAX),
            stop: stop.clone(),
            swarms: Mutex::default(),
            banned: Mutex::default(),
        });
        inner.tasks.spawn(keep_time(Arc::downgrade(&inner), stop));
        Self(inner)
    }

    /// Seats a puller, one that is banned here as a discredited one. Events come in batches; an empty batch is a beat; the
    /// end is the end of the swarm.
    ///
    /// # Errors
    /// There are too many swarms or members, or the join contradicts the swarm.
    pub fn join(&self, join: &Join) -> Result<(Seat, mpsc::Receiver<Vec<Event>>), TrackError> {
        let is_banned = self.is_banned(&join.from);
        let now = Instant::now();
        let mut swarms = self.0.swarms.lock();
        let has_room = swarms.len() < SWARMS_MAX;
        let tracked = match swarms.entry(join.digest.clone()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(_) if !has_room => return Err(TrackError::Full),
            Entry::Vacant(entry) => {
                let swarm = Swarm::new(join.blob_len, self.poll(&join.digest, &join.from.name), now);
                entry.insert(Tracked {
                    swarm,
                    is_small: join.blob_len <= SMALL_MAX,
                    outboxes: BTreeMap::new(),
                })
            }
        };
        if is_banned {
            tracked.swarm.distrust(&join.from.name);
        }
        let handle = tracked.swarm.join(join, now)?;
        let (outbox, inbox) = mpsc::channel(OUTBOX_MAX);
        tracked.outboxes.insert(handle, outbox);
        tracked.deliver(now);
        Ok((Seat { trackers: self.clone(), digest: join.digest.clone(), handle }, inbox))
    }

    /// This node has proof that the member stated wrong bytes: none of its trackers believes it, no pull asks it.
    pub fn ban(&self, member: &Member) {
        self.0.banned.lock().insert(member.name.clone(), member.generation);
        let now = Instant::now();
        for tracked in self.0.swarms.lock().values_mut() {
            tracked.swarm.distrust(&member.name);
            tracked.deliver(now);
        }
    }

    #[must_use]
    pub fn is_banned(&self, member: &Member) -> bool {
        self.0.banned.lock().get(&member.name) == Some(&member.generation)
    }

    /// Whether the tracker of this digest hands out its bytes.
    #[must_use]
    pub fn has_content(&self, digest: &Digest) -> bool {
        self.0.swarms.lock().get(digest).is_some_and(|tracked| tracked.swarm.has_content())
    }

    /// A small blob that this node has goes out with the answers to joins.
    pub(super) async fn learn(&self, digest: Digest) {
        if self.0.swarms.lock().get(&digest).is_none_or(|tracked| !tracked.is_small) {
            return;
        }
        let store = self.0.store.clone();
        let of = digest.clone();
        let read = self.0.tasks.spawn_blocking(move || store.get(&of)?.read(0).ok()).await;
        if let Some(bytes) = read.ok().flatten().filter(|_| self.has_room()) {
            self.with(&digest, |swarm, _| swarm.learn(bytes));
        }
    }

    fn has_room(&self) -> bool {
        let swarms = self.0.swarms.lock();
        swarms.values().filter(|tracked| tracked.swarm.has_content()).count() < CONTENTS_MAX
    }

    /// Whether these are a blob's bytes, and there is room for them.
    fn takes(&self, digest: &Digest, bytes: &[u8]) -> bool {
        self.has_room() && Digest::of(digest.algorithm(), bytes) == *digest
    }

    pub(super) fn with(&self, digest: &Digest, change: impl FnOnce(&mut Swarm, Instant)) {
        let now = Instant::now();
        if let Some(tracked) = self.0.swarms.lock().get_mut(digest) {
            change(&mut tracked.swarm, now);
            tracked.deliver(now);
        }
    }
}

impl Seat {
    /// Says something; no reports at all are a beat.
    pub fn report(&self, mut reports: Vec<Report>) {
        reports.retain(|report| {
            if let Report::Content(bytes) = report { self.trackers.takes(&self.digest, bytes) } else { true }
        });
        self.trackers.with(&self.digest, |swarm, now| match reports.is_empty() {
            true => swarm.beat(self.handle, now),
            false => swarm.reports(self.handle, reports, now),
        });
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.trackers.with(&self.digest, |swarm, now| swarm.leave(self.handle, now));
    }
}

impl Tracked {
    fn deliver(&mut self, now: Instant) {
        // Somebody who does not listen leaves, which is news for the others.
        while let Err(deaf) = self.try_deliver() {
            for handle in deaf {
                self.outboxes.remove(&handle);
                self.swarm.leave(handle, now);
            }
        }
        self.outboxes.retain(|handle, _| self.swarm.has(*handle));
    }

    fn try_deliver(&mut self) -> Result<(), Vec<Handle>> {
        let mut batches: BTreeMap<Handle, Vec<Event>> = BTreeMap::new();
        for (handle, event) in self.swarm.take_events() {
            batches.entry(handle).or_default().push(event);
        }
        let deaf: Vec<Handle> = batches
            .into_iter()
            .filter_map(|(handle, batch)| {
                let sent = self.outboxes.get(&handle).map(|outbox| outbox.try_send(batch));
                matches!(sent, Some(Err(_))).then_some(handle)
            })
            .collect();
        if deaf.is_empty() { Ok(()) } else { Err(deaf) }
    }

    /// A full outbox has a beat's worth of news in it already.
    fn beat(&self) {
        for outbox in self.outboxes.values() {
            let _full = outbox.try_send(Vec::new());
        }
    }
}

async fn keep_time(inner: Weak<Inner>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for tick in (0..TICKS_PER_BEAT).cycle() {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let Some(inner) = inner.upgrade() else { return };
        if inner.swarms.lock().is_empty() {
            continue;
        }
        let live: Vec<String> = inner.mesh.members().into_iter().map(|member| member.name).collect();
        let now = Instant::now();
        let mut swarms = inner.swarms.lock();
        swarms.retain(|_, tracked| !tracked.swarm.is_over(now));
        for tracked in swarms.values_mut() {
            tracked.swarm.unreachable(|name| live.iter().any(|live| live == name), now);
            tracked.swarm.tick(now);
            tracked.deliver(now);
            if tick == 0 {
                tracked.beat();
            }
        }
    }
}
