//! Makes a blob present: local, in flight, peers, origin.
//!
//! ```text
//!   start ──▶ Flight (one task for each digest) ── owns ──▶ Exchange: what to do next
//!                │  ▲                                            │
//!                │  └────────── News ◀── tasks: fetch, read, audit, track ◀── actions
//!                ├──▶ Arrival ──▶ PieceReader (unpacks), proof (the in-order chain; blocking)
//!                └──▶ Store: pieces while they arrive, the blob when the chain closes
//! ```
//! Everything that happens comes to the flight as a [`flight::News`] on one bounded queue; the flight itself
//! never waits for anything else. It ends proven, failed, or forgotten a minute after the last handle.

mod arrival;
mod document;
mod elsewhere;
mod fetch;
mod flight;
mod hands;
mod leads;
mod metrics;
mod offered;
mod outgoing;
mod pieces;
mod proof;
mod read;
mod registries;
mod session;
mod tags;
mod track;

use std::{
    collections::{HashMap, HashSet},
    io,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use self::read::chain_of;
pub use self::{
    arrival::PieceReader,
    metrics::Metrics,
    pieces::{Pieces, PiecesError},
    registries::Registries,
    tags::{Key as TagKey, Meaning, OfflineTags, Tags},
};
use self::{flight::Flight, offered::Readings, outgoing::Outgoing};
use crate::{
    mesh::Mesh,
    oci::{Digest, Repository, host_name},
    origin::{self, Asker, Kind, Origin, OriginError},
    store::{ArriveError, Arriving, Blob, CommitError, Kept, ReadError, Store},
    swarm::{Trackers, Turns, tracker::Answer},
};

/// Pieces in memory on their way to the disk, for all pulls together: 96 MiB, counted in the smallest pieces.
const BUFFERS: usize = 384;
/// As many as the questions that one host is asked at a time: what waits longer waits here, and says so.
const SMALL_READS: usize = 8;
const BUFFER_LEN: usize = 256 << 10;

/// Registries remembered as the node's own; those that come later count as strangers to it.
const USED_MAX: usize = 1024;

/// Five digests' six readers: an image of a few layers never waits for turns, and no registry's link wants more. With 12 a
/// cold crowd of 8 took 1.28 and 1.48 x F/B for four layers instead of 1.26 to 1.30: turns that go round stand empty on
/// the way.
const HOST_READERS: usize = 32;

/// One small request each, all at once, on as many connections as are kept.
const ASKED_MAX: usize = 128;

/// How pulls behave.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long a pull that nobody waits for goes on: containerd's client may come back.
    pub linger: Duration,
    /// Of which registries containerd's pulls are taken part in; none: of every one.
    pub only: Option<Registries>,
    /// Reads of blobs from one registry host at a time, by all members together.
    pub host_readers: usize,
    /// Members that a tracker asks itself who has a blob; where there are more, they ask the others.
    pub asked_max: usize,
    pub offline_tags: OfflineTags,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            linger: Duration::from_secs(60),
            only: None,
            host_readers: HOST_READERS,
            asked_max: ASKED_MAX,
            offline_tags: OfflineTags::No,
        }
    }
}

/// What pulls work with.
pub struct Parts {
    pub store: Store,
    pub origin: Origin,
    pub mesh: Mesh,
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
    pub metrics: Metrics,
    pub settings: Settings,
}

/// A blob that somebody wants here.
#[derive(Clone, Debug)]
pub struct Want {
    pub digest: Digest,
    pub len: u64,
    /// Repositories that may have it; none: from the mesh only.
    pub origins: Vec<Repository>,
    /// Whether they have it among their blobs or their manifests.
    pub kind: Kind,
    /// In whose name they are asked: these, and no others that somebody else names for the same blob.
    pub asker: Asker,
    /// For operators: the image that needs it.
    pub image: Option<String>,
}

/// The pulls of this node. Cheap to clone.
#[derive(Clone)]
pub struct Pulls(Arc<Shared>);

struct Shared {
    store: Store,
    origin: Origin,
    mesh: Mesh,
    trackers: Trackers,
    turns: Turns,
    tasks: TaskTracker,
    stop: CancellationToken,
    metrics: Metrics,
    settings: Settings,
    readings: Readings,
    tags: Tags,
    buffers: Semaphore,
    /// Small blobs that are read from registries at a time.
    small_reads: Semaphore,
    outgoing: Arc<Outgoing>,
    flights: Mutex<HashMap<Digest, Arc<Flight>>>,
    /// Hosts of which the node itself has wanted something.
    used: Mutex<HashSet<String>>,
}

/// Where bytes came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BySource {
    pub local: u64,
    pub peer: u64,
    pub origin: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PullState {
    Waiting,
    Arriving,
    Proven,
    Failed(&'static str),
}

/// How a pull is doing.
#[derive(Clone, Debug)]
pub struct PullStatus {
    pub digest: Digest,
    /// The image for which it was started, of those that need it.
    pub image: Option<String>,
    pub len: u64,
    /// Bytes that passed their check, by where they came from. What is replaced counts twice.
    pub bytes: BySource,
    /// Bytes that are here.
    pub arrived: u64,
    pub state: PullState,
    pub last_piece_at: Option<Instant>,
}

/// Why a blob could not be made present.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    #[error("cannot begin to store {digest}")]
    Arrive { digest: Digest, source: ArriveError },
    #[error("cannot store a piece of {digest}")]
    Disk { digest: Digest, source: io::Error },
    #[error("cannot read what arrived")]
    Read { source: ReadError },
    #[error("cannot commit {digest}")]
    Commit { digest: Digest, source: CommitError },
    #[error("{digest} is with nobody in the mesh, and its origin failed")]
    Origin { digest: Digest, source: Arc<OriginError> },
    #[error("{digest} is with nobody in the mesh, and the members that asked its origin say: {reason}")]
    Swarm { digest: Digest, reason: String },
    #[error("the origin serves other bytes than {digest} names")]
    WrongDigest { digest: Digest },
    #[error("{digest}: nobody waits for it any more")]
    Forgotten { digest: Digest },
    #[error("{digest}: the daemon stops")]
    Stopped { digest: Digest },
}

impl PullError {
    /// One word for metrics and tables.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Arrive { source: ArriveError::NoSpace { .. }, .. } => "no_space",
            Self::Disk { source, .. } if source.kind() == io::ErrorKind::StorageFull => "no_space",
            Self::Arrive { .. } | Self::Disk { .. } | Self::Read { .. } | Self::Commit { .. } => "store",
            Self::Origin { source, .. } => source.reason(),
            Self::Swarm { reason, .. } => origin::known_reason(reason).unwrap_or("origin_swarm"),
            Self::WrongDigest { .. } => "wrong_digest",
            Self::Forgotten { .. } => "forgotten",
            Self::Stopped { .. } => "stopped",
        }
    }
}

/// A blob's pieces on this node.
#[derive(Clone)]
pub enum Here {
    Whole(Blob),
    Arriving(Arriving),
}

impl Pulls {
    /// Starts the trackers of this node as well; they end with `stop`.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts { store, origin, mesh, tasks, stop, metrics, settings } = parts;
        let trackers =
            Trackers::new(mesh.clone(), store.clone(), settings.asked_max, tasks.clone(), stop.clone());
        let turns = Turns::new(
            mesh.clone(),
            settings.host_readers,
            metrics.turns.clone(),
            tasks.clone(),
            stop.clone(),
        );
        let tags = Tags::new(Kept::start(&store, tags::FILE, &tasks, &stop), settings.offline_tags);
        let (buffers, small_reads) = (Semaphore::new(BUFFERS), Semaphore::new(SMALL_READS));
        Self(Arc::new(Shared {
            store,
            origin,
            mesh,
            trackers,
            turns,
            tasks,
            stop,
            metrics,
            settings,
            readings: Readings::new(),
            tags,
            buffers,
            small_reads,
            outgoing: Arc::new(Outgoing::new()),
            flights: Mutex::default(),
            used: Mutex::default(),
        }))
    }

    /// What tags meant when their registry last said so to this node.
    #[must_use]
    pub fn tags(&self) -> &Tags {
        &self.0.tags
    }

    /// Joins the flight for this digest, or starts it.
    #[must_use]
    pub fn start(&self, want: Want) -> Pull {
        self.note_used(&want);
        let mut flights = self.0.flights.lock();
        if let Some(flight) = flights.get(&want.digest).filter(|flight| flight.takes(want.len)) {
            flight.leads.add(&want);
            return Pull { handle: Handle::of(flight) };
        }
        let flight = Arc::new(Flight::new(want.clone()));
        let pull = Pull { handle: Handle::of(&flight) };
        if !flight.can_be(&self.0) {
            return pull;
        }
        if let Some(blob) = self.0.store.get(&want.digest).filter(|blob| blob.len() == want.len) {
            flight.finish_local(&self.0, blob);
            return pull;
        }
        flight.pulling.lock().replace(self.0.readings.pulling());
        flights.insert(want.digest, flight.clone());
        self.0.tasks.spawn(flight::run(flight, self.0.clone()));
        pull
    }

    fn note_used(&self, want: &Want) {
        let mut used = self.0.used.lock();
        for repository in want.origins.iter().filter(|_| want.asker == Asker::Node) {
            if used.len() < USED_MAX && !used.contains(&repository.host) {
                used.insert(repository.host.clone());
            }
        }
    }

    /// Whether the node has wanted something of this registry in its own name. containerd's labels lose the port.
    #[must_use]
    pub fn has_used(&self, host: &str) -> bool {
        let used = self.0.used.lock();
        used.contains(host) || used.contains(host_name(host))
    }

    /// Those repositories of an image of containerd's that the node may have to do with, where it takes no strangers.
    pub async fn known_among(&self, repositories: &[Repository]) -> Vec<Repository> {
        let Some(only) = &self.0.settings.only else { return repositories.to_vec() };
        let mut known = Vec::new();
        for repository in repositories {
            if only.include(&repository.host) || self.0.origin.is_named(&repository.host).await {
                known.push(repository.clone());
            }
        }
        known
    }

    /// The bytes of a pull within `window` as they arrive, for a task; the last piece of the blob comes once all is proven.
    #[must_use]
    pub fn pieces(&self, pull: &Pull, window: Range<u64>) -> Pieces {
        Pieces::new(pull.clone(), self.0.outgoing.clone(), window)
    }

    /// The pulls under way, and those that still serve their swarm.
    #[must_use]
    pub fn list(&self) -> Vec<PullStatus> {
        self.0.flights.lock().values().map(|flight| flight.status()).collect()
    }

    /// What is here of a blob, proven or arriving.
    #[must_use]
    pub fn here(&self, digest: &Digest) -> Option<Here> {
        if let Some(blob) = self.0.store.get(digest) {
            return Some(Here::Whole(blob));
        }
        let flight = self.0.flights.lock().get(digest).cloned()?;
        flight.arrival.arriving().map(Here::Arriving)
    }

    /// What this node has stated of the blob's pieces that it read from the origin itself, while it still pulls or seeds:
    /// 32 bytes a piece, zeros for others.
    #[must_use]
    pub fn vouched(&self, digest: &Digest) -> Option<Bytes> {
        let flight = self.0.flights.lock().get(digest).cloned()?;
        Some(flight.arrival.vouched().iter().flat_map(|statement| *statement.as_bytes()).collect())
    }

    /// Another member begins to track this digest: what is here of it? A pull under way moves there if that
    /// member, `tracker`, is the first of the digest's rank.
    #[must_use]
    pub fn answer(&self, digest: &Digest, tracker: Option<&str>) -> Answer {
        if self.0.store.holds(digest) {
            return Answer::Whole;
        }
        match self.0.flights.lock().get(digest) {
            Some(flight) => {
                if let Some(tracker) = tracker {
                    flight.called_by(tracker);
                }
                Answer::Pulling
            }
            None => Answer::Nothing,
        }
    }

    /// The turns at registries that this node keeps.
    #[must_use]
    pub fn turns(&self) -> &Turns {
        &self.0.turns
    }

    /// The swarms that this node tracks.
    #[must_use]
    pub fn trackers(&self) -> &Trackers {
        &self.0.trackers
    }
}

impl Shared {
    /// Room for a piece in memory.
    async fn buffer(&self, len: usize) -> SemaphorePermit<'_> {
        let buffers = u32::try_from(len.div_ceil(BUFFER_LEN)).expect("a piece is at most 4 MiB");
        self.buffers.acquire_many(buffers).await.expect("never closed")
    }

    fn refuse(&self, reason: &'static str, peer: &str) {
        let labels = metrics::Refused { reason, peer: peer.to_owned() };
        self.metrics.refused.get_or_create(&labels).inc();
    }
}

/// Interest in a flight: it goes on for a while after the last one is dropped.
struct Handle(Arc<Flight>);

impl Handle {
    fn of(flight: &Arc<Flight>) -> Self {
        flight.handles.send_modify(|handles| *handles += 1);
        Self(flight.clone())
    }
}

impl Clone for Handle {
    fn clone(&self) -> Self {
        Self::of(&self.0)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.handles.send_modify(|handles| *handles -= 1);
    }
}

/// A pull that the caller waits for.
#[derive(Clone)]
pub struct Pull {
    handle: Handle,
}

impl Pull {
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.handle.0.want.digest
    }

    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "an empty blob is a blob like others")]
    pub fn len(&self) -> u64 {
        self.handle.0.want.len
    }

    #[must_use]
    pub fn status(&self) -> PullStatus {
        self.handle.0.status()
    }

    #[must_use]
    pub fn watch(&self) -> watch::Receiver<PullStatus> {
        self.handle.0.status.subscribe()
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// The pull failed.
    pub async fn proven(&self) -> Result<Blob, Arc<PullError>> {
        let mut end = self.handle.0.end.subscribe();
        let ended = end.wait_for(Option::is_some).await.expect("the flight is held by this handle");
        ended.clone().expect("waited for it")
    }

    /// The bytes in order as they arrive, not proven yet. It fails when the pull fails, and with "rewound" when
    /// a piece that was read is replaced: then read again from a new reader.
    #[must_use]
    pub fn reader(&self) -> PieceReader {
        PieceReader::new(self.handle.0.arrival.clone(), self.handle.clone())
    }
}
